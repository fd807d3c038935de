//! When the write lane is shut.

use std::time::Duration;

use crate::history::Operation;
use crate::run::Record;

use super::{Verdict, shown};

/// A write that takes longer than this is stuck, for the clock that starts with it.
const STUCK: Duration = Duration::from_millis(500);

/// The first write of the trouble that did not succeed, or not soon: when the subject could have known.
pub(super) fn first_stuck(record: &Record) -> Option<&Operation> {
    let trouble = record.trouble()?;
    // One that was on its way when the fault struck counts too.
    let from = trouble.start.saturating_sub(STUCK);
    let candidates = record.writes().filter(|write| {
        write.sent.is_some_and(|sent| sent >= from && sent < trouble.end)
            && write.ended.is_none_or(|ended| ended >= trouble.start)
    });
    let stuck =
        candidates.filter(|write| !write.is_ok() || write.service_time().is_none_or(|took| took > STUCK));
    stuck.min_by_key(|write| write.sent)
}

/// When the application was told for the first time that the breaker is open.
pub(super) fn opened(record: &Record) -> Option<Duration> {
    let from = record.first_fault()?;
    let told = record.writes().filter(|write| write.refused_for("breaker_open"));
    told.filter_map(|write| write.ended).filter(|ended| *ended >= from).min()
}

pub(super) fn opens(record: &Record, within: Duration) -> Verdict {
    let Some(first) = first_stuck(record) else {
        return Verdict::Undecided("no write got stuck".to_owned());
    };
    let sent = first.sent.unwrap_or(first.intended);
    let Some(opened) = opened(record) else {
        let unanswered = record.writes().filter(|write| write.ended.is_none()).count();
        return Verdict::Refuted(format!(
            "no write was refused by a breaker; the first one stuck was sent at {}, {unanswered} were never answered",
            shown(sent.saturating_sub(record.start))
        ));
    };
    let took = opened.saturating_sub(sent.max(record.first_fault().unwrap_or_default()));
    Verdict::when(took <= within, format!("open {} after the first stuck write", shown(took)))
}

pub(super) fn stays_closed(record: &Record) -> Verdict {
    if record.trouble().is_none() || record.writes().next().is_none() {
        return Verdict::Undecided("no fault, or no writes".to_owned());
    }
    match opened(record) {
        Some(at) => Verdict::Refuted(format!(
            "a write was refused by the breaker at {}",
            shown(at.saturating_sub(record.start))
        )),
        None => Verdict::Holds("no write was refused by a breaker".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Lane;
    use crate::run::fixture::{ms, record};

    const OPEN: &str = "reason=breaker_open lane=write cause=sync_standby";

    #[test]
    fn a_breaker_that_opens_late_or_never_is_found() {
        // The first stuck write is sent at 10.1 s.
        let stuck = record().ok(Lane::Write, 9_000, 5).with(Lane::Write, 10_100, None, None);

        let verdict = |run: &Record| opens(run, ms(1_500));

        assert!(verdict(&stuck.clone().refused(11_600, 0, OPEN)).holds());
        assert!(matches!(verdict(&stuck.clone().refused(11_601, 0, OPEN)), Verdict::Refuted(_)));
        assert!(matches!(verdict(&stuck), Verdict::Refuted(_)));
    }

    #[test]
    fn without_a_stuck_write_nothing_is_proven() {
        // A fault that does not bite would otherwise make every breaker look good.
        let run = record().ok(Lane::Write, 12_000, 5);

        assert!(matches!(opens(&run, ms(1_500)), Verdict::Undecided(_)));
    }

    #[test]
    fn a_breaker_that_opens_for_a_lock_is_found() {
        // The opposite claim, for lock storms.
        let run = record().ok(Lane::Write, 12_000, 5);
        assert!(stays_closed(&run).holds());

        assert!(matches!(stays_closed(&run.refused(12_000, 1, OPEN)), Verdict::Refuted(_)));
    }
}
