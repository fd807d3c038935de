//! The words of the queue: what a request asks, and what it is answered.

use std::time::Duration;

use tokio::time::Instant;

use super::codel::CodelConfig;
use super::error::Overloaded;
use super::limit::LimitConfig;
use super::list::WaiterId;
use super::priority::{Priority, Shares};

/// Bounds and targets of a queue.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueueConfig {
    /// How many may wait. Zero: nobody waits.
    pub queue_max: usize,
    /// How long a request may wait, overloaded or not.
    pub wait_max: Duration,
    /// A request whose deadline is nearer than this is refused on arrival: it could not be met.
    pub headroom: Duration,
    /// When waiting becomes overload.
    pub codel: CodelConfig,
    /// What each priority may fill under contention.
    pub shares: Shares,
    /// How the limit adapts.
    pub limit: LimitConfig,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            queue_max: 2000,
            wait_max: Duration::from_secs(1),
            headroom: Duration::ZERO,
            codel: CodelConfig::default(),
            shares: Shares::default(),
            limit: LimitConfig::default(),
        }
    }
}

/// What a request tells about itself when it asks for a permit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ask {
    /// How much it matters.
    pub priority: Priority,
    /// When its answer is due, if ever.
    pub deadline: Option<Instant>,
    /// How many may be in flight in its lane for it to be let in, where that is less than for all others. It never
    /// waits for that: with as many in flight it is refused, on arrival or when its turn comes.
    pub ceiling: Option<usize>,
    /// How long it may wait, where that is not as for all others.
    pub wait_max: Option<Duration>,
}

/// Answer to a request that asks for a permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Go on.
    Admitted,
    /// No permit now; it may join the queue.
    MustWait,
    /// No permit, and no place in the queue either.
    Refused(Overloaded),
}

/// A waiter has joined the queue.
#[derive(Debug)]
#[must_use = "an evicted waiter must be told"]
pub struct Joined<W> {
    /// Names it, for [`AdmitQueue::remove`](super::AdmitQueue::remove).
    pub id: WaiterId,
    /// The less important waiter that had to leave for it.
    pub evicted: Option<(W, Overloaded)>,
}

/// How an admitted request fared, as far as the limit is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fared {
    /// Served within its time.
    Well,
    /// Lost to overload: too long in service, or refused there for lack of resources.
    Badly {
        /// When that was known.
        at: Instant,
    },
    /// Says nothing about load: given up by the caller, or failed for its own reasons.
    #[default]
    Unknown,
}
