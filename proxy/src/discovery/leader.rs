//! What Patroni says about who holds the leader lock, and for how long that is believed.
//!
//! Patroni's leader holds a lock with a time to live (`ttl`, 30 s by default) that it renews every `loop_wait`
//! (10 s), and demotes itself when it cannot. So a confirmed answer says that nobody else was promoted up to then.

use std::time::Duration;

use tokio::time::Instant;

use super::decide::State;
use super::decision::{Decision, What, Why};
use crate::config::Roles;
use crate::upstream::UpstreamId;

/// How long a leader is believed without a new answer: Patroni's default `ttl`.
pub(super) const TTL: Duration = Duration::from_secs(30);
/// The oldest answer that a new primary is chosen on: Patroni's default `loop_wait`.
pub(super) const FRESH: Duration = Duration::from_secs(10);

/// What Patroni said about the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatroniAnswer {
    /// This server holds the lock, and says so itself (`GET /primary` is 200).
    Confirmed(UpstreamId),
    /// Other members say that this server holds the lock; its own Patroni does not answer.
    Named(UpstreamId),
    /// Nobody holds it, or a server that is not configured.
    Nobody,
    /// No member's Patroni answers.
    Unreachable,
}

/// See the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leader {
    /// Patroni was not asked yet.
    Unasked,
    /// The last answer; `id` is `None` when nobody holds the lock.
    Known { id: Option<UpstreamId>, at: Instant },
    /// It has not answered for too long.
    Lost,
}

/// What follows for the choice of a primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Patroni has no say.
    Probe,
    /// Wait for its first answer.
    Waiting,
    /// This one and no other.
    Leader { id: UpstreamId, fresh: bool },
    /// None.
    Nobody,
}

impl Leader {
    pub(super) const fn new() -> Self {
        Self::Unasked
    }

    /// Takes in an answer.
    fn hear(self, answer: PatroniAnswer, now: Instant) -> Self {
        match (answer, self) {
            // ## _ => Known
            (PatroniAnswer::Confirmed(id), _) => Self::Known { id: Some(id), at: now },
            // Its Patroni may only be restarting; the belief in it ages.
            (PatroniAnswer::Named(id), Self::Known { id: Some(known), at }) if known == id => {
                Self::Known { id: Some(known), at }
            }
            // Nobody has the lock, or somebody who has not confirmed it yet.
            (PatroniAnswer::Nobody | PatroniAnswer::Named(_), _) => Self::Known { id: None, at: now },
            // ## Unasked => Lost: there is no answer to keep.
            (PatroniAnswer::Unreachable, Self::Unasked) => Self::Lost,
            (PatroniAnswer::Unreachable, known) => known,
        }
    }
}

impl State {
    pub(super) fn patroni(&mut self, answer: PatroniAnswer, now: Instant, out: &mut Vec<Decision>) {
        let before = self.leader;
        self.leader = before.hear(answer, now);
        match (before, self.leader) {
            (Leader::Lost, Leader::Known { .. }) => {
                out.push(self.decision(None, What::PatroniBack, Why::Answered, now));
            }
            (Leader::Unasked, Leader::Lost) => {
                out.push(self.decision(None, What::PatroniLost, Why::Expired, now));
            }
            _ => {}
        }
    }

    pub(super) fn expire_patroni(&mut self, now: Instant, out: &mut Vec<Decision>) {
        // ## Known => Lost
        if let Leader::Known { at, .. } = self.leader
            && now.duration_since(at) > TTL
        {
            self.leader = Leader::Lost;
            out.push(self.decision(None, What::PatroniLost, Why::Expired, now));
        }
    }

    pub(super) fn verdict(&self, now: Instant) -> Verdict {
        match (self.rules.roles, self.leader) {
            (Roles::Probe | Roles::Static, _) | (Roles::Patroni, Leader::Lost) => Verdict::Probe,
            (Roles::Patroni, Leader::Unasked) => Verdict::Waiting,
            (Roles::Patroni, Leader::Known { id: None, .. }) => Verdict::Nobody,
            (Roles::Patroni, Leader::Known { id: Some(id), at }) => {
                Verdict::Leader { id, fresh: now.duration_since(at) <= FRESH }
            }
        }
    }
}
