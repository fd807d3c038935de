//! What happened lately, for people: the journal's entries as sentences, the newest first.

use super::{Event, Level};
use crate::exchange::Cause;
use crate::journal::{Decision, Entry, Journal, Kind};
use crate::sql::Lane;

/// Events that are shown; the journal's files have more.
pub const EVENTS: usize = 200;

/// The latest events.
pub fn latest(journal: &Journal) -> Vec<Event> {
    journal.recent().iter().rev().take(EVENTS).map(|entry| event(entry)).collect()
}

fn event(entry: &Entry) -> Event {
    let decision = &entry.decision;
    let (level, what) = sentence(decision);
    Event {
        at_ms: entry.at.unix_ms(),
        level,
        kind: decision.kind.word().to_owned(),
        lane: decision.subject.lane.map(|lane| lane.word().to_owned()),
        upstream: decision.subject.upstream.as_deref().map(str::to_owned),
        what,
        cause: decision.cause.map(|cause| cause.word().to_owned()),
        evidence: Some(decision.evidence.to_string()).filter(|evidence| !evidence.is_empty()),
    }
}

/// How urgent it was, and what happened.
fn sentence(decision: &Decision) -> (Level, String) {
    let Decision { from, to, .. } = decision;
    let plain = |level, text: &str| (level, text.to_owned());
    match (decision.kind, decision.subject.lane) {
        (Kind::Breaker, Some(lane)) => breaker(lane, from, to, decision.cause),
        (Kind::Operator, Some(lane)) => {
            let word = lane.word();
            match &**to {
                "open" => (Level::Critical, format!("An operator had {word}s refused.")),
                "closed" => {
                    (Level::Warning, format!("An operator had {word}s let through, whatever is seen."))
                }
                _ => (Level::Ok, format!("An operator gave the {word} lane back to its breaker.")),
            }
        }
        (Kind::Operator, None) => match (&**from, &**to) {
            (_, "paused") => plain(Level::Critical, "An operator paused traffic."),
            ("paused", _) => plain(Level::Ok, "The pause ended."),
            (_, "reconnecting") => plain(Level::Ok, "An operator had backends replaced."),
            (_, "killed") => {
                plain(Level::Critical, "An operator ended all sessions of a database and paused it.")
            }
            (_, to) => (Level::Warning, format!("An operator ordered: {to}.")),
        },
        (Kind::Configuration, _) if from == to => {
            plain(Level::Warning, "A reload was refused; what was in force stays.")
        }
        (Kind::Configuration, _) => plain(Level::Ok, "The configuration was reloaded."),
        (Kind::Process, _) => match &**to {
            "serving" => plain(Level::Ok, "The sidecar was started."),
            "draining" => plain(Level::Warning, "The sidecar was told to stop."),
            "stopped" => plain(Level::Warning, "The sidecar stopped."),
            _ => plain(Level::Critical, "The sidecar ended, so that its supervisor starts it anew."),
        },
        (Kind::Watchdog, _) if to == "alive" => plain(Level::Ok, "Threads that hung make progress again."),
        (Kind::Watchdog, _) => plain(Level::Critical, "Threads of the sidecar make no progress."),
        (Kind::Breaker | Kind::Topology | Kind::Journal, _) => {
            (Level::Warning, format!("{}: from {from} to {to}.", decision.kind.word()))
        }
    }
}

/// A breaker's words are in `tidegate_layers::breaker::Phase::name`.
fn breaker(lane: Lane, from: &str, to: &str, cause: Option<Cause>) -> (Level, String) {
    let lanes = match lane {
        Lane::Read => "Reads",
        Lane::Write => "Writes",
    };
    let refused = cause.map_or_else(
        || format!("{lanes} are refused from now on."),
        |cause| format!("{lanes} are refused from now on: {}.", cause.sentence()),
    );
    match (from, to) {
        ("open", "open") => {
            let why = cause.unwrap_or_default().sentence();
            (Level::Critical, format!("Why {} are refused is known now: {why}.", lanes.to_lowercase()))
        }
        ("half_open", "open") => {
            (Level::Critical, format!("A probe failed: {} stay refused.", lanes.to_lowercase()))
        }
        (_, "open") => (Level::Critical, refused),
        (_, "forced_open") => (Level::Critical, format!("{lanes} are refused by order.")),
        (_, "half_open") => {
            (Level::Critical, format!("Probes ask whether {} work again.", lanes.to_lowercase()))
        }
        (_, "suspect") => (Level::Warning, format!("{lanes} look stuck; they are being looked into.")),
        (_, "forced_closed") => (Level::Warning, format!("{lanes} are let through by order.")),
        ("ramp", "ramp") => (Level::Warning, format!("More {} are let in.", lanes.to_lowercase())),
        (_, "ramp") => (Level::Warning, format!("{lanes} are let in again, few at first.")),
        ("suspect", _) => (Level::Ok, format!("{lanes} were not stuck.")),
        _ => (Level::Ok, format!("{lanes} are served again.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Subject;

    #[test]
    fn the_timeline_is_bounded_and_newest_first() {
        // A breaker that flaps for days must not fill the page, and what happened last is looked for first.
        let journal = Journal::in_memory();
        for n in 0..EVENTS + 10 {
            journal.record(Decision::new(Kind::Configuration).evidence(&n.to_string())).forget();
        }

        let events = latest(&journal);

        assert_eq!(events.len(), EVENTS);
        assert_eq!(events[0].evidence.as_deref(), Some("209"));
    }

    #[test]
    fn a_trip_says_which_lane_and_why() {
        // "closed to open" reads as good news to whoever thinks of doors.
        let decision = Decision::new(Kind::Breaker)
            .about(Subject { upstream: Some("db:5432".into()), lane: Some(Lane::Write) })
            .change("suspect", "open")
            .cause(Cause::SyncStandby);

        let (level, what) = sentence(&decision);

        assert_eq!(level, Level::Critical);
        assert_eq!(what, "Writes are refused from now on: commits wait for a synchronous standby.");
    }
}
