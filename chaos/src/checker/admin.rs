//! Pages about health answer throughout.

use std::time::Duration;

use crate::history::{Lane, Operation, Via};
use crate::run::Record;

use super::{Verdict, noise, percentile, shown};

/// Fewer say nothing about a 99th percentile.
const ENOUGH: usize = 20;

pub(super) fn control_plane(record: &Record, within: Duration) -> Verdict {
    check(record, Via::Admin, "a control plane", within)
}

pub(super) fn service(record: &Record, within: Duration) -> Verdict {
    check(record, Via::Http, "a service", within)
}

fn check(record: &Record, via: Via, what: &str, within: Duration) -> Verdict {
    let asked: Vec<&Operation> = record.operations(Lane::Monitor, via).collect();
    if asked.len() < ENOUGH {
        return Verdict::Undecided(format!("there was no page of {what} to ask"));
    }
    let silent = asked.iter().filter(|page| page.ended.is_none()).count();
    // 503 is an answer: the page says what it thinks.
    let broken = asked.iter().filter(|page| page.failure().is_some_and(|why| why.status.is_none())).count();
    let times: Vec<Duration> = asked.iter().filter_map(|page| page.latency()).collect();
    let slowest = times.iter().max().copied().unwrap_or_default();
    let p99 = percentile(times, 0.99).unwrap_or_default();
    let figures = format!(
        "{} questions, {silent} without answer, {broken} broken, p99 {}, slowest {}",
        asked.len(),
        shown(p99),
        shown(slowest)
    );
    if silent + broken > 0 {
        return Verdict::Refuted(figures);
    }
    noise::judge(p99, within, noise::least_time(record, &(record.start..record.end)), figures)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::fixture::{ms, record};

    fn run(took: u64) -> Record {
        (0..100).fold(record(), |run, number| {
            let took = if number < 2 { took } else { 3 };
            run.ok(Lane::Monitor, 1_000 + number * 100, took).via(Via::Admin)
        })
    }

    #[test]
    fn a_page_that_hangs_with_the_data_path_is_found() {
        // Two of a hundred are more than one per cent.
        assert!(control_plane(&run(50), ms(50)).holds());
        assert!(matches!(control_plane(&run(51), ms(50)), Verdict::Refuted(_)));
        let silent = run(3).with(Lane::Monitor, 15_000, None, None).via(Via::Admin);
        assert!(matches!(control_plane(&silent, ms(50)), Verdict::Refuted(_)));
        assert!(matches!(service(&run(3), ms(50)), Verdict::Undecided(_)));
    }
}
