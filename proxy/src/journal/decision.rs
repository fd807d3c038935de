//! One decision, and the line that it becomes.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use tidegate_layers::breaker::Phase;

use crate::exchange::Cause;
use crate::sql::Lane;
use crate::timestamp::Timestamp;

/// Bytes of evidence that are kept; a sentence or two is meant.
const EVIDENCE_MAX: usize = 2048;

/// The word of a breaker that looks into something.
const SUSPECT: &str = Phase::Suspect.name();

/// What kind of decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The process begins or ends to serve.
    Process,
    /// The configuration was replaced, or a new one was refused.
    Configuration,
    /// A breaker changed its state.
    Breaker,
    /// Roles, timelines or membership of upstreams.
    Topology,
    /// What an operator ordered.
    Operator,
    /// Threads that stopped making progress, or make it again.
    Watchdog,
    /// The journal about itself.
    Journal,
}

impl Kind {
    /// The word, as in the journal's file.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Configuration => "configuration",
            Self::Breaker => "breaker",
            Self::Topology => "topology",
            Self::Operator => "operator",
            Self::Watchdog => "watchdog",
            Self::Journal => "journal",
        }
    }
}

/// What the decision is about; empty is the process as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Subject {
    /// The upstream.
    pub upstream: Option<Box<str>>,
    /// The lane.
    pub lane: Option<Lane>,
}

/// What was decided, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Its kind.
    pub kind: Kind,
    /// What it is about.
    #[serde(flatten)]
    pub subject: Subject,
    /// The state before, in a word.
    pub from: Cow<'static, str>,
    /// The state after, in a word.
    pub to: Cow<'static, str>,
    /// The cause, where there is one.
    pub cause: Option<Cause>,
    /// What was known, for people. No SQL text, no secrets.
    pub evidence: Box<str>,
}

impl Decision {
    /// A decision about the process as a whole, with nothing else said yet.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            subject: Subject::default(),
            from: Cow::Borrowed(""),
            to: Cow::Borrowed(""),
            cause: None,
            evidence: Box::default(),
        }
    }

    /// What it is about.
    #[must_use]
    pub fn about(self, subject: Subject) -> Self {
        Self { subject, ..self }
    }

    /// The states before and after.
    #[must_use]
    pub fn change(self, from: impl Into<Cow<'static, str>>, to: impl Into<Cow<'static, str>>) -> Self {
        Self { from: from.into(), to: to.into(), ..self }
    }

    /// The cause.
    #[must_use]
    pub fn cause(self, cause: Cause) -> Self {
        Self { cause: Some(cause), ..self }
    }

    /// Whether it says that what a breaker suspected before was not so, and all is as it was.
    pub(super) fn clears(&self, before: &Self) -> bool {
        let suspected = &*before.to == SUSPECT && *self.from == *SUSPECT;
        self.kind == Kind::Breaker && suspected && self.to == before.from
    }

    /// What was known. Cut after 2 KiB.
    #[must_use]
    pub fn evidence(self, evidence: &str) -> Self {
        let end = evidence.floor_char_boundary(EVIDENCE_MAX);
        Self { evidence: evidence.get(..end).unwrap_or_default().into(), ..self }
    }
}

/// A decision with its place in time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Greater than that of any entry before, also over restarts unless the clock went back.
    pub id: u64,
    /// When it was decided.
    pub at: Timestamp,
    /// What was decided.
    #[serde(flatten)]
    pub decision: Decision,
}

impl Entry {
    pub(super) fn new(id: u64, at: Timestamp, decision: Decision) -> Self {
        Self { id, at, decision }
    }

    /// Appends the entry as a line of JSON.
    pub(super) fn put_line(&self, out: &mut Vec<u8>) {
        let start = out.len();
        match serde_json::to_writer(&mut *out, self) {
            Ok(()) => out.push(b'\n'),
            // A vector takes everything, and no part of an entry can fail; half a line would be worse than none.
            Err(_) => out.truncate(start),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_one_line_and_is_read_back_as_it_was() {
        // A line break in the evidence must not end the line.
        let subject = Subject { upstream: Some("db:5432".into()), lane: Some(Lane::Read) };
        let decision = Decision::new(Kind::Topology).about(subject).change("a", "b").evidence("one\ntwo");
        let entry = Entry::new(7, Timestamp::now(), decision);
        let mut line = Vec::new();

        entry.put_line(&mut line);

        assert_eq!(line.split(|byte| *byte == b'\n').count(), 2);
        assert_eq!(serde_json::from_slice::<Entry>(&line).unwrap(), entry);
    }

    #[test]
    fn long_evidence_is_cut_between_characters() {
        // A cut inside of a character panics.
        let decision = Decision::new(Kind::Breaker).evidence(&"é".repeat(EVIDENCE_MAX));

        assert_eq!(decision.evidence.len(), EVIDENCE_MAX);
    }

    #[test]
    fn causes_have_the_same_word_everywhere() {
        // The word in the journal must be that of errors and metrics.
        for cause in [
            Cause::Unknown,
            Cause::SyncStandby,
            Cause::Storage,
            Cause::Lock,
            Cause::ReadOnly,
            Cause::InRecovery,
            Cause::Frozen,
            Cause::Unreachable,
            Cause::Auth,
            Cause::Overload,
            Cause::Forced,
        ] {
            assert_eq!(serde_json::to_value(cause).unwrap(), cause.word());
        }
        for lane in [Lane::Read, Lane::Write] {
            assert_eq!(serde_json::to_value(lane).unwrap(), lane.word());
        }
    }
}
