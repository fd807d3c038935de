//! Too much load costs little of what can be served, and nobody waits for long.

use std::time::Duration;

use crate::history::{Lane, Operation, Via};
use crate::run::Record;

use super::{Verdict, percentile, shown};

pub(super) fn check(record: &Record, capacity: f64, share: f64, within: Duration) -> Verdict {
    let Some(trouble) = record.trouble() else {
        return Verdict::Undecided("there was no overload".to_owned());
    };
    let reads = record.operations(Lane::Read, Via::Sql);
    let due: Vec<&Operation> = reads.filter(|read| trouble.contains(&read.intended)).collect();
    let seconds = trouble.end.saturating_sub(trouble.start).as_secs_f64();
    let (offered, wanted) = (rate(due.len(), seconds), capacity * share);
    if offered < capacity {
        return Verdict::Undecided(format!("{offered:.0} reads per second are no overload"));
    }
    let useful = |read: &&&Operation| read.is_ok() && read.latency().is_some_and(|latency| latency <= within);
    let served = rate(due.iter().filter(useful).count(), seconds);
    let open = due.iter().filter(|read| read.ended.is_none()).count();
    let slowest =
        percentile(due.iter().filter_map(|read| read.latency()).collect(), 0.99).unwrap_or_default();
    let figures = format!(
        "{served:.0} of {offered:.0} reads per second served in time, capacity {capacity:.0}; \
         p99 of all answers {} (limit {}), {open} never answered",
        shown(slowest),
        shown(within)
    );
    Verdict::when(served >= wanted && slowest <= within && open == 0, figures)
}

#[expect(clippy::cast_precision_loss, reason = "a run has fewer than 2^52 operations")]
fn rate(count: usize, seconds: f64) -> f64 {
    count as f64 / seconds
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Failure, Outcome};
    use crate::run::fixture::{ms, record};

    /// 30 reads per second for 10 s, of which every third is served.
    fn run(took: u64) -> Record {
        (0..300).fold(record(), |run, number| {
            let at = 10_000 + number * 33;
            let refused = Outcome::Fail(Failure::local("shed"));
            let outcome = if number % 3 == 0 { Outcome::Ok } else { refused };
            run.with(Lane::Read, at, Some(took), Some(outcome))
        })
    }

    #[test]
    fn a_queue_that_serves_only_what_is_too_late_is_found() {
        // Throughput stays at capacity while nobody gets an answer in time.
        assert!(check(&run(900), 10.0, 0.9, ms(1_000)).holds());
        assert!(matches!(check(&run(1_001), 10.0, 0.9, ms(1_000)), Verdict::Refuted(_)));
        assert!(matches!(check(&run(900), 12.0, 0.9, ms(1_000)), Verdict::Refuted(_)));
        assert!(matches!(check(&run(900), 40.0, 0.9, ms(1_000)), Verdict::Undecided(_)));
    }
}
