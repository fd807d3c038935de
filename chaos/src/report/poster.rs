//! The picture for people in a hurry: one row for each subject, what became of reads and writes, and four short
//! sentences about it.

use std::fmt::Write as _;
use std::time::Duration;

use crate::checker::percentile;
use crate::history::{Lane, Operation, Via};
use crate::run::Record;

use super::Judgement;
use super::chart::{FULL_HEIGHT, STYLE, Scale, WIDTH, chart, escaped};
use super::series::{self, Series};

const GAP: f64 = 24.0;
const HEAD: f64 = 58.0;
/// Room for the sentences.
const WORDS: f64 = 316.0;
const LINE: f64 = 22.0;

/// An answer that takes longer is of no use to anybody.
const USEFUL: Duration = Duration::from_secs(1);

/// A queue longer than this is one.
const FEW: u64 = 10;

/// A sentence, and whether it is good news.
struct Finding {
    good: bool,
    words: String,
}

/// All subjects, one below the other.
pub(super) fn poster(judged: &[Judgement]) -> String {
    let curves: Vec<Vec<Series>> = judged.iter().map(|one| named(series::throughput(&one.record))).collect();
    let rates = judged.iter().map(|one| series::quiet_rate(&curves, &one.record));
    let scale = Scale::up_to(rates.fold(1.0, f64::max));
    let width = GAP + WORDS + WIDTH + GAP;
    let height = judged.iter().fold(HEAD + 8.0, |height, _| height + FULL_HEIGHT + GAP / 2.0);
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:.0} {height:.0}' width='{width:.0}' \
         height='{height:.0}'><style>{STYLE}.say{{font-size:13px}}.name{{font-size:17px;font-weight:700}}</style>\
         <rect width='100%' height='100%' fill='#fff'/>"
    );
    if let Some(first) = judged.first() {
        let summary = escaped(&first.record.header.summary);
        let what = faults(&first.record);
        let _ = write!(
            svg,
            "<text x='{GAP}' y='26' class='head'>{summary}</text>\
             <text x='{GAP}' y='45' class='sub'>The same load, the same PostgreSQL {}, the same fault. Shaded: {}.</text>",
            escaped(&first.record.header.postgres),
            escaped(&what)
        );
    }
    let mut top = HEAD;
    for (one, curves) in judged.iter().zip(&curves) {
        let _ = write!(svg, "<g transform='translate({GAP} {top:.0})'>{}</g>", words(&one.record));
        let left = GAP + WORDS;
        let drawn = chart(&one.record, "answers per second", curves, scale);
        let _ = write!(svg, "<g transform='translate({left:.0} {top:.0})'>{drawn}</g>");
        top += FULL_HEIGHT + GAP / 2.0;
    }
    svg + "</svg>\n"
}

/// What is an error for a program is, for whoever looks at the picture, an answer: no.
fn named(mut series: Vec<Series>) -> Vec<Series> {
    for one in &mut series {
        if one.name == "errors" {
            "refused".clone_into(&mut one.name);
        }
    }
    series
}

fn faults(record: &Record) -> String {
    let labels: Vec<&str> = record.faults.iter().map(|fault| fault.label.as_str()).collect();
    labels.join(", ")
}

fn words(record: &Record) -> String {
    let header = &record.header;
    let name = match header.subject.as_str() {
        "direct" => "no proxy",
        other => other,
    };
    let mut svg = format!("<text x='0' y='16' class='name'>{}</text>", escaped(name));
    if header.subject != "direct" {
        let _ = write!(svg, "<text x='0' y='33' class='sub'>{}</text>", escaped(&header.subject_version));
    }
    let mut y = 34.0 + LINE;
    for Finding { good, words } in findings(record) {
        let (mark, colour) = if good { ("✓", "#2b8a3e") } else { ("✗", "#c92a2a") };
        let _ = write!(
            svg,
            "<text x='0' y='{y:.0}' class='say' style='fill:{colour};font-weight:700'>{mark}</text>\
             <text x='18' y='{y:.0}' class='say'>{}</text>",
            escaped(&words)
        );
        y += LINE;
    }
    svg
}

fn findings(record: &Record) -> Vec<Finding> {
    let Some(trouble) = record.trouble() else { return Vec::new() };
    let of = |lane| -> Vec<&Operation> {
        record.operations(lane, Via::Sql).filter(|one| trouble.contains(&one.intended)).collect()
    };
    let mut all = vec![reads(&of(Lane::Read)), writes(record, &of(Lane::Write))];
    all.extend(queue(record));
    all.push(alert(record));
    all
}

fn reads(reads: &[&Operation]) -> Finding {
    let useful = |read: &&&Operation| read.is_ok() && read.latency().is_some_and(|took| took <= USEFUL);
    let served = reads.iter().filter(useful).count();
    let per_cent = (served * 100).checked_div(reads.len()).unwrap_or(0);
    if served == reads.len() {
        return Finding { good: true, words: "reads go on as if nothing happened".to_owned() };
    }
    Finding { good: false, words: format!("reads hang, too: {per_cent} % are answered within 1 s") }
}

fn writes(record: &Record, writes: &[&Operation]) -> Finding {
    let times: Vec<Duration> =
        writes.iter().map(|write| write.ended.unwrap_or(record.end).saturating_sub(write.intended)).collect();
    let longest = times.iter().max().copied().unwrap_or_default();
    let median = percentile(times, 0.5).unwrap_or_default();
    let refused = writes.iter().filter(|write| write.failure().is_some()).count() * 2 > writes.len();
    if median > USEFUL {
        let words = format!("writes hang, for up to {:.0} s", longest.as_secs_f64());
        return Finding { good: false, words };
    }
    if refused {
        let words = format!("writes are told to try later, in {:.0} ms", median.as_secs_f64() * 1e3);
        return Finding { good: true, words };
    }
    Finding { good: true, words: "writes go on".to_owned() }
}

fn queue(record: &Record) -> Option<Finding> {
    let longest = record.queue.iter().map(|sample| sample.queued).max()?;
    Some(if longest <= FEW {
        Finding { good: true, words: "HTTP requests do not queue: 503, Retry-After".to_owned() }
    } else {
        Finding { good: false, words: format!("{longest} HTTP requests queue in front of the app") }
    })
}

fn alert(record: &Record) -> Finding {
    let from = record.first_fault().unwrap_or_default();
    let firing = record.alerts.iter().filter(|alert| alert.field("status") == Some("firing"));
    let named = firing.filter(|alert| alert.at >= from && alert.field("cause").is_some());
    let Some(first) = named.min_by_key(|alert| alert.at) else {
        return Finding { good: false, words: "nobody is told".to_owned() };
    };
    let after = first.at.saturating_sub(from).as_secs_f64();
    let cause = first.field("cause").unwrap_or_default();
    Finding { good: true, words: format!("somebody is paged after {after:.1} s: {cause}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Failure, Outcome};
    use crate::observe::{Alert, QueueSample};
    use crate::run::fixture::{ms, record};

    fn stuck() -> Record {
        let mut run = record().with(Lane::Write, 11_000, Some(8_000), Some(Outcome::Ok));
        run = run.with(Lane::Read, 11_000, Some(7_000), Some(Outcome::Ok)).ok(Lane::Read, 12_000, 5);
        run.queue.push(QueueSample { at: ms(12_000), queued: 300, sessions: 400 });
        run
    }

    fn words_of(run: &Record) -> Vec<(bool, String)> {
        findings(run).into_iter().map(|finding| (finding.good, finding.words)).collect()
    }

    #[test]
    fn a_subject_that_hangs_gets_no_good_word() {
        // A picture that flatters is worse than none.
        let said = words_of(&stuck());

        assert_eq!(said.len(), 4);
        assert!(said.iter().all(|(good, _)| !good), "{said:?}");
        assert!(said[0].1.contains("50 %"), "{said:?}");
    }

    #[test]
    fn a_subject_that_refuses_soon_and_tells_somebody_is_shown_so() {
        // Refusals are answers: they must not be drawn as the same thing as silence.
        let failure = Failure::local("later");
        let mut run = record().with(Lane::Write, 11_000, Some(2), Some(Outcome::Fail(failure)));
        run = run.ok(Lane::Read, 12_000, 5);
        run.queue.push(QueueSample { at: ms(12_000), queued: 0, sessions: 3 });
        let body = serde_json::json!({"status": "firing", "cause": "sync_standby"});
        run.alerts.push(Alert { at: ms(11_200), body });

        let said = words_of(&run);

        assert!(said.iter().all(|(good, _)| *good), "{said:?}");
        assert!(said[3].1.contains("1.2 s: sync_standby"), "{said:?}");
    }
}
