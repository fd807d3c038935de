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
        evidence: Some(evidence(decision).to_owned()).filter(|evidence| !evidence.is_empty()),
    }
}

/// What was known; without the server at its beginning, which is shown before it.
fn evidence(decision: &Decision) -> &str {
    let named = decision.subject.upstream.as_deref();
    let rest = named.and_then(|name| decision.evidence.strip_prefix(name)?.strip_prefix(' '));
    rest.unwrap_or(&decision.evidence)
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
        (Kind::Topology, _) => match topology(to) {
            Some((level, text)) => plain(level, text),
            None => (Level::Warning, format!("The upstreams changed: {to}.")),
        },
        (Kind::Journal, _) => {
            plain(Level::Warning, "The journal is written to the disk again; entries are missing in it.")
        }
        (Kind::Breaker, None) => (Level::Warning, format!("{}: from {from} to {to}.", decision.kind.word())),
    }
}

/// Its words are in [`crate::discovery::What::word`]; those of another release may be others.
fn topology(word: &str) -> Option<(Level, &'static str)> {
    Some(match word {
        "cluster_established" => (Level::Ok, "It is known now which cluster the servers are of."),
        "primary_elected" => {
            (Level::Ok, "A primary was found; writes follow once one was seen to commit there.")
        }
        "writes_opened" => (Level::Ok, "Writes go to the primary: one was seen to commit there."),
        "primary_lost" => {
            (Level::Critical, "The primary was lost; writes go nowhere until there is another.")
        }
        "split_brain" => {
            (Level::Critical, "Several servers take writes on one timeline: writes are refused.")
        }
        "split_brain_over" => (Level::Ok, "No more than one server takes writes again."),
        "undecided" => {
            (Level::Critical, "The servers are of several clusters, none with more than half of them.")
        }
        "roles_listed" => (Level::Ok, "Roles are those of the list from now on, whatever servers say."),
        "fenced" => (Level::Critical, "A server is fenced: it is not used, whatever it says."),
        "unfenced" => (Level::Ok, "A server is fenced no more; it has to prove itself."),
        "admitted" => (Level::Ok, "A server that was gone is used again."),
        "ejected" => (Level::Warning, "A server is not used until it has proven itself."),
        "members_changed" => (Level::Ok, "The list of upstreams is another one now."),
        "members_refused" => {
            (Level::Warning, "Another list of upstreams was refused; what was in force stays.")
        }
        "address_changed" => (Level::Ok, "A server's name leads elsewhere; its old connections are closed."),
        "patroni_lost" => (Level::Warning, "Patroni does not answer: roles are found by asking the servers."),
        "patroni_back" => (Level::Ok, "Patroni answers again: it says which server is the primary."),
        _ => return None,
    })
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
    use crate::discovery::What;
    use crate::journal::Subject;
    use crate::upstream::membership::Refused;
    use crate::upstream::topology::Role;
    use crate::upstream::{Fence, Lineage, Lsn, SystemIdentifier};

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

    /// All that topology decides: the one after `what`, which a new one makes incomplete for the compiler.
    fn after(what: &What) -> Option<What> {
        let fence = Fence::ForeignVersion { major: 17, established: 18 };
        Some(match what {
            What::ClusterEstablished(_) => What::PrimaryElected,
            What::PrimaryElected => What::WritesOpened { lsn: Lsn(1) },
            What::WritesOpened { .. } => What::PrimaryLost,
            What::PrimaryLost => What::SplitBrain { claimants: Vec::new() },
            What::SplitBrain { .. } => What::SplitBrainOver,
            What::SplitBrainOver => What::Undecided,
            What::Undecided => What::RolesListed,
            What::RolesListed => What::Fenced(fence),
            What::Fenced(_) => What::Unfenced(fence),
            What::Unfenced(_) => What::Admitted(Role::Standby),
            What::Admitted(_) => What::Ejected(Role::Standby),
            What::Ejected(_) => What::MembersChanged { added: Vec::new(), removed: Vec::new() },
            What::MembersChanged { .. } => What::MembersRefused(Refused::Empty),
            What::MembersRefused(_) => What::AddressChanged,
            What::AddressChanged => What::PatroniLost,
            What::PatroniLost => What::PatroniBack,
            What::PatroniBack => return None,
        })
    }

    #[test]
    fn every_change_of_the_topology_is_a_sentence_that_alarms_when_somebody_should_be_woken() {
        // "topology: from  to writes_opened." as a warning is what each normal start showed.
        let lineage = Lineage { system: SystemIdentifier(7), major: 18 };
        let all = std::iter::successors(Some(What::ClusterEstablished(lineage)), after);
        for what in all {
            let decision = Decision::new(Kind::Topology).change("", what.word());

            let (level, text) = sentence(&decision);

            assert!(topology(what.word()).is_some(), "{} has no sentence", what.word());
            assert!(text.starts_with(char::is_uppercase) && text.ends_with('.'), "{text}");
            assert_eq!(
                what.is_alarming(),
                level == Level::Critical || what.word() == "members_refused",
                "{text}"
            );
        }
    }

    #[test]
    fn the_evidence_does_not_name_the_server_again() {
        // The server is shown in front of it.
        let decision = Decision::new(Kind::Topology)
            .about(Subject { upstream: Some("db:5432".into()), lane: None })
            .evidence("db:5432 is the primary; why=newest_timeline epoch=1");

        assert_eq!(evidence(&decision), "is the primary; why=newest_timeline epoch=1");
        assert_eq!(
            evidence(&Decision { subject: Subject::default(), ..decision.clone() }),
            &*decision.evidence
        );
    }
}
