//! What follows for the outside: the snapshot to publish, what to ask of whom, and what to remember.

use std::time::Duration;

use tokio::time::Instant;

use super::decide::{Claims, Established, Memory, State};
use super::hints::Expected;
use super::member::{Member, Proof, Standing};
use super::observe::Connection;
use super::schedule::Pace;
use crate::config::Roles;
use crate::upstream::UpstreamId;
use crate::upstream::topology::{Role, Topology, Writes};

/// After this long in doubt there is no hurry: whoever waits for the end has been told.
const LONG: Duration = Duration::from_secs(10);

/// Whether to try a write after the question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trial {
    /// Commit one.
    Commit,
    /// Only ask.
    None,
}

/// What to ask of a server next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// How soon.
    pub pace: Pace,
    /// On which connection.
    pub connection: Connection,
    /// Whether a commit is to be seen, too.
    pub trial: Trial,
}

impl State {
    /// The snapshot that follows from all that is known.
    pub fn topology(&self) -> Topology {
        let views = self.members.iter().map(|member| member.view(self.role(member))).collect();
        Topology::new(self.epoch, views, self.primary.map(|elected| elected.id), self.writes())
    }

    fn role(&self, member: &Member) -> Option<Role> {
        if self.is_primary(member.id) {
            return Some(Role::Primary);
        }
        // Before it is known which cluster it is, a standby may be one of another.
        let known = self.established.is_some() || self.rules.roles == Roles::Static;
        member.seen.filter(|(seen, _)| seen.in_recovery && known).map(|_| Role::Standby)
    }

    fn writes(&self) -> Writes {
        match self.primary {
            _ if self.claims == Claims::Several => Writes::SplitBrain,
            None => Writes::NoPrimary,
            Some(elected) if elected.opened => Writes::Open,
            Some(elected) => Writes::Unproven { failed: self.member(elected.id).and_then(Member::refusal) },
        }
    }

    /// What to ask of a server next; `None` for one that is not configured.
    pub fn wish(&self, id: UpstreamId, now: Instant) -> Option<Wish> {
        let member = self.member(id)?;
        let trial = self.trial(member);
        let connection = match member.standing {
            Standing::Unasked | Standing::Down | Standing::Proving { fresh: false, .. } => Connection::Fresh,
            Standing::Up | Standing::Unsure { .. } | Standing::Silent | Standing::Proving { .. } => {
                Connection::Kept
            }
        };
        Some(Wish { pace: self.pace(member, trial, now), connection, trial })
    }

    fn trial(&self, member: &Member) -> Trial {
        let newest = self.established.map(|established| established.newest);
        let candidate = member.claims_writes()
            && member.said().is_some_and(|seen| Some(seen.timeline) == newest && !seen.read_only);
        match member.proof {
            Proof::None | Proof::Failed(_) if candidate => Trial::Commit,
            Proof::None | Proof::Failed(_) | Proof::Committed(_) => Trial::None,
        }
    }

    fn pace(&self, member: &Member, trial: Trial, now: Instant) -> Pace {
        // There is nothing to find out about one alone: it is its breakers that doubt it, and they hint.
        let calm = self.is_one_alone() || member.standing == Standing::Up && trial == Trial::None;
        let hinted = member.doubted_until.is_some_and(|until| now < until);
        let since = match (self.closed_since, member.down_since) {
            (None, None) if calm && !hinted => return Pace::Quiet,
            // Being asked whether it is still fenced can wait.
            (None, None) if member.fenced.is_some() => return Pace::Quiet,
            (Some(closed), Some(down)) => Some(closed.max(down)),
            (closed, down) => closed.or(down),
        };
        let long = since.is_some_and(|since| now.duration_since(since) > LONG);
        if long && !hinted { Pace::Long } else { Pace::Doubt }
    }

    /// What sessions of a server may be told of it without a need to ask it.
    pub(super) fn expected(&self, id: UpstreamId) -> Expected {
        match self.member(id).and_then(Member::said) {
            _ if self.is_one_alone() => Expected::Either,
            Some(seen) if seen.in_recovery => Expected::InRecovery,
            Some(_) => Expected::Writable,
            None => Expected::Nothing,
        }
    }

    /// What a later process must know, so that it does not believe a stale primary.
    pub fn memory(&self) -> Option<Memory> {
        self.established.map(|Established { lineage, newest }| Memory { lineage, newest })
    }
}
