//! All subjects side by side, as part of the page.

use std::fmt::Write as _;

use crate::checker::Verdict;

use super::Judgement;
use super::chart::{FULL_HEIGHT, STYLE, Scale, WIDTH, chart, escaped};
use super::series::{self, Series};

const GAP: f64 = 28.0;
const HEAD: f64 = 46.0;

/// One row of charts: the same for every subject, on the same scale.
struct Row {
    title: &'static str,
    curves: Vec<Vec<Series>>,
    scale: Scale,
}

fn rows(judged: &[Judgement]) -> Vec<Row> {
    let of = |curves: fn(&crate::run::Record) -> Vec<Series>| -> Vec<Vec<Series>> {
        judged.iter().map(|one| curves(&one.record)).collect()
    };
    let linear = |title, curves: Vec<Vec<Series>>| {
        let scale = Scale::covering(&curves);
        Row { title, curves, scale }
    };
    let throughput = of(series::throughput);
    vec![
        Row { title: "per second", scale: clipped(&throughput, judged), curves: throughput },
        Row { title: "time to an answer, p99", curves: of(series::latency), scale: Scale::Decades },
        linear("waiting for an answer", of(series::waiting)),
        linear("PostgreSQL backends", of(series::waits)),
    ]
}

fn clipped(throughput: &[Vec<Series>], judged: &[Judgement]) -> Scale {
    let rates = judged.iter().map(|one| series::quiet_rate(throughput, &one.record));
    Scale::up_to(rates.fold(1.0, f64::max))
}

/// The charts.
pub(super) fn picture(judged: &[Judgement]) -> String {
    let rows = rows(judged);
    let width = length(judged) * (WIDTH + GAP) + GAP;
    let height = HEAD + length(&rows) * FULL_HEIGHT + 8.0;
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:.0} {height:.0}' width='{width:.0}' \
         height='{height:.0}'><style>{STYLE}</style><rect width='100%' height='100%' fill='#fff'/>"
    );
    let mut left = GAP;
    for (number, one) in judged.iter().enumerate() {
        let _ = write!(svg, "<g transform='translate({left:.0} 0)'>{}</g>", head(one));
        let mut top = HEAD;
        for row in &rows {
            let drawn = chart(&one.record, row.title, &row.curves[number], row.scale);
            let _ = write!(svg, "<g transform='translate({left:.0} {top:.0})'>{drawn}</g>");
            top += FULL_HEIGHT;
        }
        left += WIDTH + GAP;
    }
    svg + "</svg>\n"
}

fn head(one: &Judgement) -> String {
    let header = &one.record.header;
    let refuted = one.claims.iter().filter(|judged| matches!(judged.verdict, Verdict::Refuted(_))).count();
    let held = one.claims.iter().filter(|judged| judged.verdict.holds()).count();
    let (class, words) = match refuted {
        0 => ("good", format!("{held} claims hold")),
        _ => ("bad", format!("{refuted} claims refuted, {held} hold")),
    };
    let faults: Vec<String> = one.record.faults.iter().map(|fault| escaped(&fault.label)).collect();
    format!(
        "<text x='46' y='22' class='head'>{}</text><text x='{WIDTH}' y='22' class='{class}' \
         text-anchor='end'>{words}</text><text x='46' y='38' class='sub'>{} · shaded: {}</text>",
        escaped(&header.subject),
        escaped(&header.subject_version),
        faults.join(", ")
    )
}

#[expect(clippy::cast_precision_loss, reason = "a handful")]
fn length<T>(all: &[T]) -> f64 {
    all.len() as f64
}
