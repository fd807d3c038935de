//! Refusals cost no time, and say why.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::history::Operation;
use crate::run::Record;

use super::{Verdict, breaker, noise, percentile, shown};

/// How long a diagnosis may take: until then the cause may be unknown.
const DIAGNOSIS: Duration = Duration::from_secs(1);

/// Fewer say nothing about a 99th percentile.
const ENOUGH: usize = 20;

pub(super) fn check(record: &Record, limit: Duration, cause: &str) -> Verdict {
    let (Some(opened), Some(healed)) = (breaker::opened(record), record.healed()) else {
        return Verdict::Refuted("no write was refused by a breaker".to_owned());
    };
    // Those that were waiting when it opened were told so at once, but waited before.
    let fresh =
        record.writes().filter(|write| write.sent.is_some_and(|sent| sent >= opened && sent < healed));
    let refused: Vec<&Operation> = fresh.filter(|write| is_refused(write)).collect();
    if refused.len() < ENOUGH {
        return Verdict::Undecided(format!("{} refusals are too few", refused.len()));
    }
    let times = refused.iter().filter_map(|write| write.service_time()).collect();
    let p99 = percentile(times, 0.99).unwrap_or_default();
    let mut causes: BTreeMap<&str, usize> = BTreeMap::new();
    for write in refused.iter().filter(|write| write.ended.is_some_and(|ended| ended > opened + DIAGNOSIS)) {
        let named = write.failure().and_then(|failure| failure.field("cause")).unwrap_or("none");
        *causes.entry(named).or_default() += 1;
    }
    let retry = refused
        .iter()
        .filter(|write| write.failure().is_some_and(|failure| failure.field("retry_after_ms").is_some()));
    let when = retry.count();
    let right = causes.keys().all(|named| *named == cause) && when == refused.len();
    let causes: Vec<String> = causes.iter().map(|(named, count)| format!("{named} {count}x")).collect();
    let figures = format!(
        "{} refusals, {when} say when to try again, p99 {} (limit {}); cause {}, expected {cause}",
        refused.len(),
        shown(p99),
        shown(limit),
        causes.join(", ")
    );
    if !right {
        return Verdict::Refuted(figures);
    }
    noise::judge(p99, limit, noise::least_time(record, &(opened..healed)), figures)
}

/// Whether nobody was asked: for the breaker, or, once a server that hung is called lost, for want of a primary.
fn is_refused(write: &Operation) -> bool {
    write.refused_for("breaker_open") || write.refused_for("no_upstream")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::fixture::{ms, record};

    fn run(took: u64, cause: &str) -> Record {
        let detail = format!("reason=breaker_open cause={cause} retry_after_ms=100");
        (0..100).fold(record(), |run, number| run.refused(11_000 + number * 50, took, &detail))
    }

    #[test]
    fn slow_refusals_and_wrong_causes_are_found() {
        // Both are part of the promise: fast, and useful.
        let verdict = |run: &Record| check(run, ms(5), "storage");

        assert!(verdict(&run(5, "storage")).holds());
        assert!(matches!(verdict(&run(6, "storage")), Verdict::Refuted(_)));
        assert!(matches!(verdict(&run(5, "lock")), Verdict::Refuted(_)));
        assert!(matches!(verdict(&record()), Verdict::Refuted(_)));
        let mute = run(5, "storage").refused(12_000, 1, "reason=breaker_open cause=storage");
        assert!(matches!(verdict(&mute), Verdict::Refuted(_)));
        // Seen: a primary that was called lost in the middle of a stall, whose writes then waited for another.
        let held = "reason=no_upstream cause=storage retry_after_ms=100";
        let held = (0..2).fold(run(5, "storage"), |run, number| run.refused(14_000 + number, 1_500, held));
        assert!(matches!(verdict(&held), Verdict::Refuted(_)));
    }
}
