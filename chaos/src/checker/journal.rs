//! Decisions are on record, with what was known, before they take effect.

use std::time::Duration;

use crate::run::Record;

use super::{Verdict, breaker, shown};

/// The journal's clock counts milliseconds.
const GRAIN: Duration = Duration::from_millis(1);

/// How soon after it was asked for a refused change must be on record.
const SOON: Duration = Duration::from_secs(2);

pub(super) fn ahead(record: &Record) -> Verdict {
    let Some(refused) = breaker::opened(record) else {
        return Verdict::Undecided("no write was refused by a breaker".to_owned());
    };
    let from = record.first_fault().unwrap_or_default();
    let opened =
        record.journal.iter().find(|one| one.kind == "breaker" && one.to == "open" && one.at >= from);
    let Some(opened) = opened else {
        return Verdict::Refuted("the journal knows of no breaker that opened".to_owned());
    };
    let figures = format!(
        "decided {} before the first refusal, and on record by then: {}",
        shown(refused.saturating_sub(opened.at)),
        opened.evidence
    );
    match opened.missing {
        // What counts is the file, not the time that it tells.
        Some(missing) if missing > refused => {
            let late = shown(missing.saturating_sub(refused));
            Verdict::Refuted(format!("not yet on record {late} after the first refusal"))
        }
        Some(_) => Verdict::when(!opened.evidence.is_empty(), figures),
        None => Verdict::when(opened.at <= refused + GRAIN && !opened.evidence.is_empty(), figures),
    }
}

pub(super) fn changes_refused(record: &Record, changes: &[String]) -> Verdict {
    if record.faults.is_empty() {
        return Verdict::Undecided("no fault was injected".to_owned());
    }
    let mut told = Vec::new();
    for label in changes {
        let Some(fault) = record.faults.iter().find(|fault| fault.label == *label) else {
            return Verdict::Undecided(format!("{label} was not injected"));
        };
        let window = fault.from.saturating_sub(GRAIN)..fault.from + SOON;
        let refusal = record.journal.iter().find(|one| {
            let refused = (one.kind == "configuration" && one.from == one.to) || one.to == "members_refused";
            refused && window.contains(&one.at) && !one.evidence.is_empty()
        });
        match refusal {
            Some(refusal) => told.push(format!("{label}: {}", refusal.evidence)),
            None => return Verdict::Refuted(format!("{label}: no refusal with a reason is on record")),
        }
    }
    Verdict::Holds(told.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::journal::Decision;
    use crate::run::fixture::{ms, record};

    fn decision(at: u64, kind: &str, to: &str) -> Decision {
        let text = str::to_owned;
        let (kind, from, to, evidence) = (text(kind), text("old"), text(to), text("why"));
        Decision { at: ms(at), missing: None, kind, from, to, evidence }
    }

    #[test]
    fn a_decision_that_is_written_down_afterwards_is_found() {
        // Whoever looks after a crash must find what had been decided.
        let mut run = record().refused(11_000, 100, "reason=breaker_open");
        assert!(matches!(ahead(&run), Verdict::Refuted(_)));

        run.journal = vec![decision(11_102, "breaker", "open")];
        assert!(matches!(ahead(&run), Verdict::Refuted(_)));

        run.journal = vec![decision(11_090, "breaker", "open")];
        assert!(ahead(&run).holds());

        // The time in a line is no proof of when it was written.
        run.journal[0].missing = Some(ms(11_120));
        assert!(matches!(ahead(&run), Verdict::Refuted(_)));
        run.journal[0].missing = Some(ms(11_095));
        assert!(ahead(&run).holds());
        assert!(matches!(ahead(&record()), Verdict::Undecided(_)));
    }

    #[test]
    fn a_change_that_was_taken_over_or_dropped_in_silence_is_found() {
        // Both leave no refusal on record.
        let mut run = record();
        let verdict = |run: &Record| changes_refused(run, &["fault".to_owned()]);
        assert!(matches!(verdict(&run), Verdict::Refuted(_)));

        run.journal = vec![decision(10_100, "configuration", "new")];
        assert!(matches!(verdict(&run), Verdict::Refuted(_)));

        run.journal = vec![decision(10_100, "configuration", "old")];
        assert!(verdict(&run).holds());
        assert!(matches!(changes_refused(&run, &["another".to_owned()]), Verdict::Undecided(_)));
    }
}
