//! The page: self-contained, no other file and no network needed.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use crate::checker::Verdict;

use super::Judgement;
use super::chart::escaped;
use super::picture::picture;

const STYLE: &str = "body{font:14px/1.5 system-ui,-apple-system,'Segoe UI',sans-serif;margin:2rem;color:#343a40}\
h1{font-size:1.4rem;margin:0 0 .2rem}.meta{color:#868e96;margin:0 0 1.2rem}.wide{overflow-x:auto}\
table{border-collapse:collapse;margin-top:1.4rem}th,td{text-align:left;vertical-align:top;padding:.45rem .8rem;\
border-bottom:1px solid #e9ecef}td{max-width:34rem}b{display:inline-block;min-width:6rem}\
.holds b{color:#2b8a3e}.refuted b{color:#c92a2a}.undecided b{color:#e67700}code{background:#f1f3f5;padding:0 .3em}";

/// The whole page.
pub(super) fn page(judged: &[Judgement]) -> String {
    let Some(first) = judged.first() else { return String::new() };
    let header = &first.record.header;
    let title = format!("{}: {}", escaped(&header.scenario), escaped(&header.summary));
    let quick = if header.quick { ", shortened phases" } else { "" };
    let mut html = format!(
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title><style>{STYLE}</style>\
         </head><body><h1>{title}</h1><p class='meta'>seed {} · PostgreSQL {} · harness {} · {}{quick} · again: <code>tidegate-chaos run {} --seed {}</code></p><div class='wide'>{}</div>",
        header.seed,
        escaped(&header.postgres),
        escaped(&header.harness),
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(header.started_at)),
        escaped(&header.scenario),
        header.seed,
        picture(judged)
    );
    claims(&mut html, judged);
    troubles(&mut html, judged);
    html + "</body></html>\n"
}

fn claims(html: &mut String, judged: &[Judgement]) {
    *html += "<div class='wide'><table><tr><th>claim</th>";
    for one in judged {
        let _ = write!(html, "<th>{}</th>", escaped(&one.record.header.subject));
    }
    *html += "</tr>";
    let count = judged.first().map_or(0, |one| one.claims.len());
    for number in 0..count {
        let name = judged[0].claims[number].claim.name();
        let _ = write!(html, "<tr><td>{name}</td>");
        for one in judged {
            let (class, word) = match &one.claims[number].verdict {
                Verdict::Holds(_) => ("holds", "holds"),
                Verdict::Refuted(_) => ("refuted", "refuted"),
                Verdict::Undecided(_) => ("undecided", "undecided"),
            };
            let because = escaped(one.claims[number].verdict.because());
            let _ = write!(html, "<td class='{class}'><b>{word}</b> {because}</td>");
        }
        *html += "</tr>";
    }
    *html += "</table></div>";
}

/// What went wrong with the runs themselves, and what the webhook got.
fn troubles(html: &mut String, judged: &[Judgement]) {
    for one in judged {
        for trouble in &one.record.troubles {
            let _ = write!(html, "<p>{}: {}</p>", escaped(&one.record.header.subject), escaped(trouble));
        }
        for alert in &one.record.alerts {
            let at = super::series::seconds(&one.record, alert.at);
            let _ =
                write!(html, "<p>alert at {at:.1} s: <code>{}</code></p>", escaped(&alert.body.to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::Claim;
    use crate::history::Lane;
    use crate::run::fixture::record;

    #[test]
    fn the_page_needs_nothing_but_itself() {
        // A link to a script or a font would leave the page empty where there is no network.
        let run = record().ok(Lane::Write, 1_000, 5).row(0, 1_001);
        let judgement = Judgement::of(run, &[Claim::AcknowledgedWritesPresent, Claim::NoDuplicates]);

        let html = page(&[judgement.clone(), judgement]);

        for reference in ["src=", "href=", "@import", "url("] {
            assert!(!html.contains(reference), "{reference}");
        }
        assert_eq!(html.matches("<b>holds</b>").count(), 4);
    }

    #[test]
    fn text_from_outside_cannot_become_markup() {
        // A subject's command line is shown as it is.
        let mut run = record();
        run.header.subject = "sh -c '<script>'".to_owned();

        let html = page(&[Judgement::of(run, &[])]);

        assert!(!html.contains("<script>"), "{html}");
    }
}
