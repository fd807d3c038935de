//! One server as the decider knows it: standing, fence, proof.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::observe::{Connection, Meaning, ObserveError};
use crate::config::UpstreamAddress;
use crate::exchange::Cause;
use crate::upstream::topology::{Epoch, Health, Role, UpstreamView};
use crate::upstream::{Fence, Lsn, Observation, UpstreamId};

/// Unanswered questions in a row after which a server counts as silent. With a deadline of 500 ms, and the next
/// question right behind it, that is 1.5 s.
const SILENCES: u32 = 3;
/// Good answers in a row that a server which was gone has to give ...
pub(super) const GOOD_ANSWERS: u32 = 3;
/// ... over at least this long, so that one lucky moment of a restart loop is not enough.
pub(super) const GOOD_SPAN: Duration = Duration::from_secs(1);

/// How far a server is to be relied on, with what each state must remember.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It was not asked yet.
    Unasked,
    /// It answers.
    Up,
    /// Some questions were not answered.
    Unsure { silences: u32 },
    /// It does not answer, and is kept as there is no other.
    Silent,
    /// It cannot be used.
    Down,
    /// It answers again.
    Proving { good: u32, first: Instant, fresh: bool },
}

/// Whether there is another that could take the role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peers {
    /// There is.
    Others,
    /// It is the last one.
    Last,
    /// It is the primary that serves, also if it was never asked.
    None,
}

impl Standing {
    /// It answered.
    pub(super) fn answered(self, connection: Connection, at: Instant) -> Self {
        match self {
            // ## (Unasked | Up | Unsure | Silent) => Up: nothing is held against it.
            Self::Unasked | Self::Up | Self::Unsure { .. } | Self::Silent => Self::Up,
            // ## Down => Proving
            Self::Down => Self::Proving { good: 1, first: at, fresh: connection == Connection::Fresh },
            // ## Proving => (Proving | Up)
            Self::Proving { good, first, fresh } => {
                let (good, fresh) = (good + 1, fresh || connection == Connection::Fresh);
                let spans = at.duration_since(first) >= GOOD_SPAN;
                if good >= GOOD_ANSWERS && spans && fresh {
                    Self::Up
                } else {
                    Self::Proving { good, first, fresh }
                }
            }
        }
    }

    /// It did not.
    pub(super) fn failed(self, meaning: Meaning, peers: Peers) -> Self {
        match (self, meaning) {
            // ## Up => Unsure
            (Self::Up, Meaning::Missing | Meaning::Silent) => Self::Unsure { silences: 1 },
            // ## Unasked => Unsure: the list made it the primary, and it has served since.
            (Self::Unasked, Meaning::Missing | Meaning::Silent) if peers == Peers::None => {
                Self::Unsure { silences: 1 }
            }
            // ## Unsure => Unsure
            (Self::Unsure { silences }, Meaning::Missing | Meaning::Silent) if silences + 1 < SILENCES => {
                Self::Unsure { silences: silences + 1 }
            }
            // ## (Unsure | Silent) => Silent: the last of a role is not given up for being slow.
            (Self::Unsure { .. } | Self::Silent, Meaning::Silent) if peers != Peers::Others => Self::Silent,
            // ## _ => Down
            _ => Self::Down,
        }
    }

    pub(super) const fn health(self) -> Health {
        match self {
            Self::Unasked => Health::Unknown,
            Self::Up => Health::Up,
            Self::Unsure { .. } => Health::Unsure,
            Self::Silent => Health::Silent,
            Self::Down => Health::Down,
            Self::Proving { .. } => Health::Proving,
        }
    }
}

/// Whether a write was seen to commit since the server last became a primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// None was tried, or the first is under way.
    None,
    /// The last one did not commit in time.
    Failed(Cause),
    /// One did.
    Committed(Lsn),
}

/// One server.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) id: UpstreamId,
    pub(super) address: UpstreamAddress,
    pub(super) name: Arc<str>,
    pub(super) standing: Standing,
    pub(super) fenced: Option<Fence>,
    pub(super) epoch: Epoch,
    /// What it said last, and when it was asked.
    pub(super) seen: Option<(Observation, Instant)>,
    pub(super) failure: Option<ObserveError>,
    pub(super) proof: Proof,
    /// Since when it has been seen to take writes on its timeline: an older commit proves nothing.
    pub(super) writable_since: Option<Instant>,
    /// How far it is behind, as a standby.
    pub(super) lag: Option<Duration>,
    /// Until when it is asked more often.
    pub(super) doubted_until: Option<Instant>,
    /// Since when it cannot be used.
    pub(super) down_since: Option<Instant>,
    /// When its address changed: what was asked before was asked of another server.
    pub(super) moved_at: Option<Instant>,
}

impl Member {
    pub(super) fn new(id: UpstreamId, address: UpstreamAddress, epoch: Epoch) -> Self {
        Self {
            id,
            name: address.to_string().into(),
            address,
            standing: Standing::Unasked,
            fenced: None,
            epoch,
            seen: None,
            failure: None,
            proof: Proof::None,
            writable_since: None,
            lag: None,
            doubted_until: None,
            down_since: None,
            moved_at: None,
        }
    }

    /// Whether an answer to a question of that time is about the server that is meant now.
    pub(super) fn is_current(&self, asked: Instant) -> bool {
        self.moved_at.is_none_or(|moved| asked >= moved)
    }

    /// Whether it has not said anything yet, and is not known to be gone.
    pub(super) fn is_unheard(&self) -> bool {
        self.seen.is_none() && self.standing != Standing::Down
    }

    /// What it said last, while that is still worth something.
    pub(super) fn said(&self) -> Option<&Observation> {
        let current = !matches!(self.standing, Standing::Unasked | Standing::Down);
        self.seen.as_ref().map(|(seen, _)| seen).filter(|_| current)
    }

    /// Whether it says that it takes writes, and is not fenced for it.
    pub(super) fn claims_writes(&self) -> bool {
        self.fenced.is_none() && self.said().is_some_and(|seen| !seen.in_recovery)
    }

    /// Whether it can be given reads as a standby, apart from its lag.
    pub(super) fn is_usable_standby(&self) -> bool {
        self.fenced.is_none()
            && self.standing.health().is_usable()
            && self.said().is_some_and(|seen| seen.in_recovery)
    }

    /// Takes in what it says; forgets a proof that is not about this timeline.
    pub(super) fn see(&mut self, seen: Observation, asked: Instant, now: Instant) {
        let same = self.said().is_some_and(|old| {
            !old.in_recovery && old.timeline == seen.timeline && old.system == seen.system
        });
        if seen.in_recovery {
            self.forget_proof();
        } else if !same || self.writable_since.is_none() {
            self.proof = Proof::None;
            self.writable_since = Some(now);
        }
        self.seen = Some((seen, asked));
        self.failure = None;
    }

    /// Why no write commits there, as far as that was tried.
    pub(super) fn refusal(&self) -> Option<Cause> {
        match self.proof {
            _ if self.said().is_some_and(|seen| seen.read_only) => Some(Cause::ReadOnly),
            Proof::Failed(cause) => Some(cause),
            Proof::None | Proof::Committed(_) => None,
        }
    }

    /// Whatever committed before says nothing about what comes.
    pub(super) const fn forget_proof(&mut self) {
        self.proof = Proof::None;
        self.writable_since = None;
    }

    /// Its state for all to see.
    pub(super) fn view(&self, role: Option<Role>) -> UpstreamView {
        UpstreamView {
            id: self.id,
            address: self.address.clone(),
            name: Arc::clone(&self.name),
            role,
            epoch: self.epoch,
            health: self.standing.health(),
            cause: self.failure.map(ObserveError::cause),
            fenced: self.fenced,
            lag: self.lag,
            observed: self.seen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up_after(answers: &[(u64, Connection)]) -> bool {
        let start = Instant::now();
        let mut standing = Standing::Down;
        for (millis, connection) in answers {
            standing = standing.answered(*connection, start + Duration::from_millis(*millis));
        }
        standing == Standing::Up
    }

    #[test]
    fn a_returning_server_needs_three_answers_over_a_second_and_one_fresh_connection() {
        // Without the span a restart loop gets in; without the fresh connection a server that accepts nobody does.
        use Connection::{Fresh, Kept};

        assert!(up_after(&[(0, Fresh), (500, Kept), (1000, Kept)]));
        assert!(up_after(&[(0, Kept), (500, Kept), (1000, Fresh)]));
        assert!(!up_after(&[(0, Fresh), (1000, Kept)]));
        assert!(!up_after(&[(0, Fresh), (499, Kept), (999, Kept)]));
        assert!(!up_after(&[(0, Kept), (500, Kept), (1000, Kept)]));
    }

    #[test]
    fn one_failure_while_proving_starts_over() {
        // Else two good moments with an outage between them would do.
        let now = Instant::now();
        let proving = Standing::Down.answered(Connection::Fresh, now);

        assert_eq!(proving.failed(Meaning::Silent, Peers::Last), Standing::Down);
        assert_eq!(proving.failed(Meaning::Dead, Peers::Last), Standing::Down);
    }

    #[test]
    fn the_last_of_a_role_is_given_up_when_dead_and_not_when_slow() {
        // Slow is better than nothing; a server whose process is gone only costs time.
        let mut slow = Standing::Up;
        for _ in 0..100 {
            slow = slow.failed(Meaning::Silent, Peers::Last);
        }

        assert_eq!(slow, Standing::Silent);
        assert_eq!(slow.answered(Connection::Kept, Instant::now()), Standing::Up);
        assert_eq!(slow.failed(Meaning::Dead, Peers::Last), Standing::Down);
    }

    #[test]
    fn packets_that_are_lost_for_a_moment_cost_no_server_its_role_and_three_lost_handshakes_do() {
        // One lost handshake took the writes of a healthy primary away until it had proved itself again. But one whose machine
        // is gone must not be waited for like one that is slow.
        let once = Standing::Up.failed(Meaning::Missing, Peers::Last);
        let twice = once.failed(Meaning::Missing, Peers::Last);

        assert_eq!(once, Standing::Unsure { silences: 1 });
        assert_eq!(once.answered(Connection::Kept, Instant::now()), Standing::Up);
        assert_eq!(twice.failed(Meaning::Missing, Peers::Last), Standing::Down);
        assert_eq!(Standing::Silent.failed(Meaning::Missing, Peers::Last), Standing::Down);
    }

    #[test]
    fn with_another_of_its_role_a_server_is_given_up_after_three_silences() {
        // Two would eject for a pause of a second, four would keep readers waiting for longer than 2 s.
        let mut standing = Standing::Up;
        let mut steps = Vec::new();
        for _ in 0..3 {
            standing = standing.failed(Meaning::Silent, Peers::Others);
            steps.push(standing);
        }

        assert_eq!(
            steps,
            [Standing::Unsure { silences: 1 }, Standing::Unsure { silences: 2 }, Standing::Down]
        );
        assert_eq!(Standing::Silent.failed(Meaning::Silent, Peers::Others), Standing::Down);
    }
}
