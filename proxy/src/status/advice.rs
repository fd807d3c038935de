//! What the matter is, and what to do next, in sentences for whoever was woken up.

use super::source::LaneSource;
use super::{LaneState, Level, Verdict};
use crate::exchange::cause::Cause;
use crate::sql::Lane;
use crate::upstream::WhyNot;

const fn name(lane: Lane) -> &'static str {
    match lane {
        Lane::Read => "Reads",
        Lane::Write => "Writes",
    }
}

/// What a cause means, to follow "because".
const fn because(cause: Cause) -> &'static str {
    match cause {
        Cause::Unknown => "PostgreSQL does not finish them, and why is not known yet",
        Cause::SyncStandby => "commits wait for a synchronous standby that does not answer",
        Cause::Storage => "PostgreSQL waits for its disk",
        Cause::Lock => "statements wait for locks that others hold",
        Cause::ReadOnly => "the server refuses writes (it is read-only)",
        Cause::InRecovery => "the server is a standby, not a primary",
        Cause::Frozen => "the server accepts connections and says nothing",
        Cause::Unreachable => "the server cannot be reached",
        Cause::Auth => "the server does not let us in",
        Cause::Overload => "the server has no room for more connections",
        Cause::Forced => "an operator ordered so",
    }
}

/// What to do about a cause, when nothing else is known.
pub const fn next(cause: Cause) -> &'static str {
    match cause {
        Cause::Unknown => {
            "Look at pg_stat_activity on the primary: wait_event of the sessions that are active. Writes resume by \
             themselves once a probe commits."
        }
        Cause::SyncStandby => {
            "Bring the standby named in the evidence back, or take it out of synchronous_standby_names on the \
             primary and reload PostgreSQL. Writes resume by themselves."
        }
        Cause::Storage => {
            "Check the volume of the data directory and of pg_wal on the primary: space, errors, throttling. If it \
             does not come back, fail over with your HA tool."
        }
        Cause::Lock => {
            "Look at the process that holds the lock (pid in the evidence) and end it with pg_terminate_backend(pid) \
             if it is not meant to run."
        }
        Cause::ReadOnly => {
            "Find out why the primary is read-only: default_transaction_read_only, a full disk guard, or a failover \
             in progress."
        }
        Cause::InRecovery => {
            "Check with your HA tool which server is the primary, and that cluster.upstreams lists it. A promotion \
             in progress ends this by itself."
        }
        Cause::Frozen => {
            "The machine or PostgreSQL hangs: check it from outside, fence it, and fail over with your HA tool."
        }
        Cause::Unreachable => {
            "Check that PostgreSQL runs and that the network and firewall let this machine through. Traffic resumes \
             by itself."
        }
        Cause::Auth => {
            "Compare pg_hba.conf and the passwords in the userlist or of cluster.user with PostgreSQL's; the log \
             has its message."
        }
        Cause::Overload => {
            "Compare max_connections with pool.max_per_upstream times the number of sidecars; look for other \
             applications that hold connections."
        }
        Cause::Forced => {
            "Give the lane back to its breaker when you are done: POST /lanes/{read|write}/auto."
        }
    }
}

/// State and cause of a lane in a sentence.
pub fn sentence(lane: Lane, state: LaneState, cause: Option<Cause>) -> String {
    let name = name(lane);
    let because = cause.map(because);
    match (state, because) {
        (LaneState::Serving, None) => format!("{name} are served."),
        (LaneState::Serving, Some(because)) => format!("{name} are served, although {because}."),
        (LaneState::Suspect, None) => format!("{name} are served, but some do not finish; looking into it."),
        (LaneState::Suspect, Some(because)) => format!("{name} are still served, but hang: {because}."),
        (LaneState::Refusing, None) => format!("{name} are refused at once."),
        (LaneState::Refusing, Some(because)) => format!("{name} are refused at once, because {because}."),
        (LaneState::Recovering, _) => format!("{name} are let in again, more each second."),
    }
}

/// As [`sentence`], of a lane as it is.
pub fn lane_sentence(lane: Lane, source: &LaneSource) -> String {
    match (source.nowhere, &source.diagnosis) {
        (Some(why), Some(diagnosis)) if *diagnosis.evidence == *why.to_string() => {
            format!("{} are refused at once, because {why}.", name(lane))
        }
        (_, diagnosis) => sentence(lane, source.state, diagnosis.as_ref().map(|diagnosis| diagnosis.cause)),
    }
}

/// What to do about a lane as it is.
pub fn next_of(source: &LaneSource) -> &'static str {
    match source.nowhere {
        Some(WhyNot::SplitBrain) => {
            "Find out with your HA tool which of them is the primary, and stop the other; the journal names both."
        }
        Some(WhyNot::NoPrimary { cause: Cause::Unreachable | Cause::InRecovery | Cause::Unknown }) => {
            next(Cause::InRecovery)
        }
        Some(WhyNot::NoPrimary { cause }) => next(cause),
        Some(WhyNot::Late) => "Look at pg_stat_replication on the primary: do the standbys follow it?",
        _ => lane_next(source.state, source.diagnosis.as_ref().map(|diagnosis| diagnosis.cause)),
    }
}

/// What to do about a lane; empty when nothing is to be done.
pub const fn lane_next(state: LaneState, cause: Option<Cause>) -> &'static str {
    match (state, cause) {
        (LaneState::Serving, None | Some(Cause::Unknown)) => "",
        (LaneState::Recovering, _) => "Nothing: the lane is back within seconds if probes stay good.",
        (LaneState::Suspect | LaneState::Refusing, None) => next(Cause::Unknown),
        (LaneState::Serving | LaneState::Suspect | LaneState::Refusing, Some(cause)) => next(cause),
    }
}

/// What the verdict is made of.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Told to stop.
    pub draining: bool,
    /// Told to wait.
    pub paused: bool,
    /// States of the read and the write lane.
    pub states: [LaneState; 2],
    /// What the lanes say of themselves.
    pub sentences: [&'a str; 2],
    /// What they say is to be done.
    pub next: [&'a str; 2],
    /// A thread that makes no progress.
    pub stalled: Option<&'a str>,
}

/// The whole in a word and two sentences.
pub fn verdict(facts: &Facts<'_>) -> Verdict {
    let told = |level, sentence: &str, next: &str| Verdict {
        level,
        sentence: sentence.to_owned(),
        next: next.to_owned(),
    };
    if facts.draining {
        return told(
            Level::Warning,
            "This sidecar is stopping: it finishes what runs and takes nothing new.",
            "",
        );
    }
    if let Some(thread) = facts.stalled {
        let sentence = format!("The sidecar itself hangs: {thread} makes no progress.");
        return told(
            Level::Critical,
            &sentence,
            "Restart this sidecar unless its watchdog does, and keep its log.",
        );
    }
    if facts.paused {
        let next = "End the pause when you are done: POST /resume.";
        return told(Level::Critical, "An operator paused all traffic: sessions wait for a backend.", next);
    }
    let both_refused = facts.states.iter().all(|state| *state == LaneState::Refusing);
    if both_refused {
        let sentence = format!("Nothing is served. {}", facts.sentences[1]);
        return told(Level::Critical, &sentence, facts.next[1]);
    }
    // Writes first: they are what stalls.
    for wanted in [LaneState::Refusing, LaneState::Suspect, LaneState::Recovering] {
        for at in [1, 0] {
            if facts.states[at] == wanted {
                let level = if wanted == LaneState::Refusing { Level::Critical } else { Level::Warning };
                let other =
                    if facts.states[1 - at] == LaneState::Serving { facts.sentences[1 - at] } else { "" };
                let sentence = format!("{} {other}", facts.sentences[at]);
                return told(level, sentence.trim_end(), facts.next[at]);
            }
        }
    }
    told(Level::Ok, "All is well: reads and writes are served.", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(states: [LaneState; 2], sentences: [&str; 2]) -> Facts<'_> {
        Facts { draining: false, paused: false, states, sentences, next: ["r", "w"], stalled: None }
    }

    #[test]
    fn every_cause_of_a_refusal_has_a_sentence_and_something_to_do() {
        // Who is paged at night must not meet an empty line, nor the same line for everything.
        let mut seen = std::collections::BTreeSet::new();
        for cause in Cause::ALL {
            let sentence = sentence(Lane::Write, LaneState::Refusing, Some(cause));
            let next = lane_next(LaneState::Refusing, Some(cause));

            assert!(sentence.starts_with("Writes are refused at once, because "), "{sentence}");
            assert!(next.len() > 20 && next.ends_with('.'), "{next}");
            assert!(seen.insert(next), "{cause}: said twice");
        }
    }

    #[test]
    fn a_stall_of_writes_is_told_before_all_else_and_says_that_reads_go_on() {
        // The first question in an incident is whether anything works at all.
        let states = [LaneState::Serving, LaneState::Refusing];

        let verdict = verdict(&facts(states, ["Reads are served.", "Writes are refused."]));

        assert_eq!(verdict.level, Level::Critical);
        assert_eq!(verdict.sentence, "Writes are refused. Reads are served.");
        assert_eq!(verdict.next, "w");
    }

    #[test]
    fn a_hanging_sidecar_is_not_called_well() {
        // The lanes look fine when nobody measures them.
        let mut facts = facts([LaneState::Serving; 2], ["", ""]);
        assert_eq!(verdict(&facts).level, Level::Ok);

        facts.stalled = Some("tidegate-worker-0");

        assert_eq!(verdict(&facts).level, Level::Critical);
    }
}
