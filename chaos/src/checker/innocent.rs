//! A lock hurts those who need it, and nobody else.

use std::time::Duration;

use crate::history::Operation;
use crate::run::Record;

use super::{Verdict, noise, percentile, shown};

/// Fewer say nothing.
const ENOUGH: usize = 30;

pub(super) fn check(record: &Record, factor: f64, floor: Duration) -> Verdict {
    let Some(trouble) = record.trouble() else {
        return Verdict::Undecided("no fault was injected and healed".to_owned());
    };
    let innocent = |from: Duration, until: Duration| -> Vec<&Operation> {
        let others = record.writes().filter(|write| write.what != "hot");
        others.filter(|write| (from..until).contains(&write.intended)).collect()
    };
    let (quiet, stuck) = (innocent(record.start, record.quiet_end), innocent(trouble.start, trouble.end));
    let guilty =
        record.writes().filter(|write| write.what == "hot" && trouble.contains(&write.intended)).count();
    if quiet.len() < ENOUGH || stuck.len() < ENOUGH || guilty == 0 {
        return Verdict::Undecided("too few writes to compare".to_owned());
    }
    let p99 = |writes: &[&Operation]| {
        let end = record.end;
        let latency = |write: &&Operation| write.latency().unwrap_or(end.saturating_sub(write.intended));
        percentile(writes.iter().map(latency).collect(), 0.99).unwrap_or_default()
    };
    let failed = stuck.iter().filter(|write| !write.is_ok()).count();
    let limit = p99(&quiet).mul_f64(factor) + floor;
    let figures = format!(
        "{failed} of {} other writes failed or unanswered, p99 {} against {} when quiet (limit {})",
        stuck.len(),
        shown(p99(&stuck)),
        shown(p99(&quiet)),
        shown(limit)
    );
    if failed > 0 {
        return Verdict::Refuted(figures);
    }
    let machine = noise::slowdown_with_server(record, &(record.start..record.quiet_end), &trouble);
    noise::judge(p99(&stuck), limit, machine, figures)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Lane;
    use crate::run::fixture::{ms, record};

    fn run(took: u64) -> Record {
        let mut run = (0..200).fold(record(), |run, number| {
            let at = number * 90;
            run.ok(Lane::Write, at, if at < 10_000 { 10 } else { took })
        });
        run = run.with(Lane::Write, 15_000, None, None);
        if let Some(last) = run.operations.last_mut() {
            last.what = "hot".to_owned();
        }
        run
    }

    #[test]
    fn a_pool_that_fills_up_with_waiters_is_found() {
        // The stuck one itself does not count; those behind it do.
        assert!(check(&run(12), 1.25, ms(5)).holds());
        assert!(matches!(check(&run(2_000), 1.25, ms(5)), Verdict::Refuted(_)));
    }
}
