//! Writes flow again by themselves, after each heal behind which nothing else was broken.

use std::ops::Range;
use std::time::Duration;

use crate::run::Record;

use super::{Verdict, noise, shown};

pub(super) fn check(record: &Record, within: Duration) -> Verdict {
    let ends = record.faults.iter().filter_map(|fault| fault.until);
    let mut heals: Vec<Duration> = ends.filter(|healed| is_quiet(record, *healed, within)).collect();
    heals.sort_unstable();
    if heals.is_empty() {
        return Verdict::Undecided("no fault was healed with nothing else broken behind it".to_owned());
    }
    let starts = record.first_fault().into_iter().chain(heals.iter().copied());
    let troubles = starts.zip(&heals).map(|(from, healed)| from..*healed);
    let disturbing = troubles.filter(|trouble| is_disturbed(record, trouble));
    let recoveries = disturbing.map(|trouble| (first_write(record, trouble.end), trouble.end));
    let Some((took, healed)) = recoveries.max_by_key(|(took, _)| took.unwrap_or(Duration::MAX)) else {
        return Verdict::Undecided("no write was disturbed".to_owned());
    };
    let at = shown(healed.saturating_sub(record.start));
    let Some(took) = took else {
        return Verdict::Refuted(format!("no write was acknowledged after the heal at {at}"));
    };
    let machine = noise::least_time(record, &(healed..healed + within + within));
    noise::judge(took, within, machine, format!("first write {} after the heal at {at}", shown(took)))
}

/// Whether no other fault is in force from this heal on, for so long.
fn is_quiet(record: &Record, healed: Duration, within: Duration) -> bool {
    let overlaps =
        |from, until: Option<Duration>| from < healed + within && until.is_none_or(|until| until > healed);
    !record.faults.iter().any(|fault| overlaps(fault.from, fault.until))
}

fn is_disturbed(record: &Record, trouble: &Range<Duration>) -> bool {
    record.writes().any(|write| {
        trouble.contains(&write.intended)
            && (!write.is_ok() || write.ended.is_none_or(|ended| ended >= trouble.end))
    })
}

/// How long after the heal the first of the writes that were sent after it was acknowledged.
fn first_write(record: &Record, healed: Duration) -> Option<Duration> {
    let after =
        record.writes().filter(|write| write.is_ok() && write.sent.is_some_and(|sent| sent >= healed));
    after.filter_map(|write| write.ended).min().map(|ended| ended.saturating_sub(healed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Lane;
    use crate::run::FaultWindow;
    use crate::run::fixture::{ms, record};

    #[test]
    fn a_lane_that_stays_shut_is_found() {
        // The backlog's acknowledgements do not count: they were sent before the heal.
        let stuck = record().ok(Lane::Write, 12_000, 8_001);

        let verdict = |run: Record| check(&run, ms(2_000));

        assert!(verdict(stuck.clone().ok(Lane::Write, 21_900, 100)).holds());
        assert!(matches!(verdict(stuck.clone().ok(Lane::Write, 22_000, 1)), Verdict::Refuted(_)));
        assert!(matches!(verdict(stuck), Verdict::Refuted(_)));
    }

    #[test]
    fn a_fault_that_disturbed_nothing_proves_nothing() {
        // Otherwise every subject recovers at once.
        let run = record().ok(Lane::Write, 12_000, 1).ok(Lane::Write, 20_100, 1);

        assert!(matches!(check(&run, ms(2_000)), Verdict::Undecided(_)));
    }

    #[test]
    fn a_slow_recovery_is_found_before_a_later_fault_too() {
        // Counted from the last heal of all, seven seconds of a lane that stays shut were none.
        let later = |from, until| {
            let stuck = record().ok(Lane::Write, 12_000, 8_001).refused(25_000, 1, "");
            let mut run = stuck.ok(Lane::Write, 26_900, 100);
            let label = "later".to_owned();
            run.faults.push(FaultWindow { label, frozen: false, from: ms(from), until: Some(ms(until)) });
            run
        };
        let verdict = |run: Record| check(&run, ms(2_000));

        assert!(matches!(verdict(later(22_500, 26_000)), Verdict::Refuted(text) if text.contains("7.00 s")));
        // While something else is broken nobody can ask for a recovery.
        assert!(verdict(later(21_900, 26_000)).holds());
        assert!(verdict(later(15_000, 26_000)).holds());
    }
}
