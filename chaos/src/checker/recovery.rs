//! Writes flow again by themselves.

use std::time::Duration;

use crate::run::Record;

use super::{Verdict, noise, shown};

pub(super) fn check(record: &Record, within: Duration) -> Verdict {
    let Some(healed) = record.healed() else {
        return Verdict::Undecided("no fault was injected and healed".to_owned());
    };
    let disturbed = record.writes().any(|write| {
        record.trouble().is_some_and(|trouble| trouble.contains(&write.intended))
            && (!write.is_ok() || write.ended.is_none_or(|ended| ended >= healed))
    });
    if !disturbed {
        return Verdict::Undecided("no write was disturbed".to_owned());
    }
    let after =
        record.writes().filter(|write| write.is_ok() && write.sent.is_some_and(|sent| sent >= healed));
    let Some(first) = after.filter_map(|write| write.ended).min() else {
        return Verdict::Refuted("no write was acknowledged after the heal".to_owned());
    };
    let took = first.saturating_sub(healed);
    let machine = noise::least_time(record, &(healed..healed + within + within));
    noise::judge(took, within, machine, format!("first write {} after the heal", shown(took)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Lane;
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
}
