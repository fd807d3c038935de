use std::time::Duration;

use thiserror::Error;

/// A request was refused for load, before anything was done for it: sending it again is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("overloaded: {}", reason.sentence())]
pub struct Overloaded {
    /// Why.
    pub reason: Reason,
    /// How long the load is expected to last; a hint for the caller's next attempt.
    pub retry_after: Duration,
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// As many are waiting as may wait.
    QueueFull,
    /// It waited as long as it may: the bound of the queue or, under overload, twice `CoDel`'s target.
    QueueTimeout,
    /// No permit is free, and waiting is not allowed.
    Limit,
    /// More important requests need what is there.
    Priority,
    /// Its own deadline passed, or is so near that it could not be met.
    Deadline,
    /// The whole queue was emptied by [`flush`](super::Handoff::flush).
    Flushed,
}

impl Reason {
    /// The name as it is written in errors and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::QueueTimeout => "queue_timeout",
            Self::Limit => "limit",
            Self::Priority => "priority",
            Self::Deadline => "deadline",
            Self::Flushed => "flushed",
        }
    }

    const fn sentence(self) -> &'static str {
        match self {
            Self::QueueFull => "the queue is full",
            Self::QueueTimeout => "waited too long for a permit",
            Self::Limit => "no permit is free",
            Self::Priority => "more important requests come first",
            Self::Deadline => "the deadline is too near",
            Self::Flushed => "the queue was flushed",
        }
    }
}
