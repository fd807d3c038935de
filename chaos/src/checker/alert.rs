//! Somebody is told, soon, and why.

use std::time::Duration;

use crate::run::Record;

use super::{Verdict, shown};

pub(super) fn check(record: &Record, within: Duration, cause: &str) -> Verdict {
    let Some(from) = record.first_fault() else {
        return Verdict::Undecided("no fault was injected".to_owned());
    };
    let firing = |name: Option<&str>| name == Some("firing");
    let raised: Vec<_> =
        record.alerts.iter().filter(|alert| alert.at >= from && firing(alert.field("status"))).collect();
    let Some(first) = raised.iter().find(|alert| cause.is_empty() || alert.field("cause") == Some(cause))
    else {
        let others: Vec<&str> = raised.iter().filter_map(|alert| alert.field("cause")).collect();
        return Verdict::Refuted(if others.is_empty() {
            "no alert was raised".to_owned()
        } else {
            format!("no alert named {cause}; named were {}", others.join(", "))
        });
    };
    let took = first.at.saturating_sub(from);
    let named = first.field("cause").unwrap_or("none");
    Verdict::when(took <= within, format!("alert {} after the fault, cause {named}", shown(took)))
}

/// One that may have begun before the fault: what it is about was there from the start.
pub(super) fn named(record: &Record, name: &str, within: Duration) -> Verdict {
    let Some(from) = record.first_fault() else {
        return Verdict::Undecided("no fault was injected".to_owned());
    };
    let raised = record.alerts.iter().filter(|alert| alert.field("status") == Some("firing"));
    let Some(first) = raised.filter(|alert| alert.field("alert") == Some(name)).map(|alert| alert.at).min()
    else {
        return Verdict::Refuted(format!("no alert {name} was raised"));
    };
    let figures = format!("alert {name} at {}", shown(first.saturating_sub(record.start)));
    Verdict::when(first <= from + within, figures)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Alert;
    use crate::run::fixture::{ms, record};

    fn run(at: u64, cause: &str) -> Record {
        let mut run = record();
        let body = serde_json::json!({"status": "firing", "cause": cause});
        run.alerts.push(Alert { at: ms(at), body });
        run
    }

    #[test]
    fn an_alert_of_another_name_is_not_the_one() {
        // Somebody was told, but not of this.
        let mut run = run(12_000, "");
        let firing = |name: &str| serde_json::json!({"status": "firing", "alert": name});
        run.alerts[0].body = firing("write_stalled");
        assert!(matches!(named(&run, "worker_stalled", ms(5_000)), Verdict::Refuted(_)));

        run.alerts[0].body = firing("worker_stalled");

        assert!(named(&run, "worker_stalled", ms(5_000)).holds());
        assert!(matches!(named(&run, "worker_stalled", ms(1_000)), Verdict::Refuted(_)));
    }

    #[test]
    fn a_late_a_wrong_and_a_missing_alert_are_found() {
        // An alert from before the fault is about something else.
        let verdict = |run: &Record| check(run, ms(5_000), "storage");

        assert!(verdict(&run(15_000, "storage")).holds());
        for bad in [run(15_001, "storage"), run(12_000, "lock"), run(9_999, "storage"), record()] {
            assert!(matches!(verdict(&bad), Verdict::Refuted(_)));
        }
    }
}
