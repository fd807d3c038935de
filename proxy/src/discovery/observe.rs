//! How a server is asked who it is. The questions themselves are asked by whoever implements [`Observe`].

use std::future::Future;

use thiserror::Error;

use crate::exchange::Cause;
use crate::upstream::topology::UpstreamView;
use crate::upstream::{Lsn, Observation};

/// Which connection to ask on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// One that is kept for the purpose: cheap, but says nothing about accepting and authenticating.
    Kept,
    /// A new one, which is kept afterwards.
    Fresh,
}

/// Why a server did not say who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ObserveError {
    /// Nobody listens there, or the connection was reset: the server's process is gone.
    #[error("it cannot be reached")]
    Unreachable,
    /// Its machine does not answer either, or packets get lost on the way.
    #[error("its machine does not answer")]
    Missing,
    /// It is starting up or shutting down (57P03, 57P01).
    #[error("it is starting up or shutting down")]
    NotReady,
    /// It did not answer in time.
    #[error("it did not answer in time")]
    Silent,
    /// It has no room for one more connection (53300).
    #[error("it has no room for one more connection")]
    Overloaded,
    /// It does not let us in.
    #[error("it does not let us in")]
    Denied,
    /// Nobody is known yet whom to ask as: it was not asked.
    #[error("nobody is known to ask as")]
    NotAsked,
    /// It answered something that cannot be understood.
    #[error("its answer cannot be understood")]
    Unintelligible,
}

/// What a failed question proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// It cannot serve.
    Dead,
    /// It cannot serve, unless packets got lost for a moment.
    Missing,
    /// It is slow, or the fault is ours: others may be served well.
    Silent,
}

impl ObserveError {
    pub(super) const fn meaning(self) -> Meaning {
        match self {
            Self::Unreachable | Self::NotReady => Meaning::Dead,
            Self::Missing => Meaning::Missing,
            Self::Silent | Self::Overloaded | Self::Denied | Self::NotAsked | Self::Unintelligible => {
                Meaning::Silent
            }
        }
    }

    /// Whether the server is gone, rather than slow.
    pub fn is_death(self) -> bool {
        self.meaning() != Meaning::Silent
    }

    /// In the words that all parts share.
    pub const fn cause(self) -> Cause {
        match self {
            Self::Unreachable | Self::Missing | Self::NotReady => Cause::Unreachable,
            Self::Silent => Cause::Frozen,
            Self::Overloaded => Cause::Overload,
            Self::Denied => Cause::Auth,
            Self::NotAsked | Self::Unintelligible => Cause::Unknown,
        }
    }
}

/// Asks servers. Each server is asked by one task, one question at a time.
pub trait Observe: Send + Sync + 'static {
    /// Asks a server who it is. Bounded by the caller, which drops the future when its time is over.
    ///
    /// # Errors
    /// See [`ObserveError`].
    ///
    /// # Cancel safety
    /// Must hold: after a drop a kept connection may be in any state, and must not be used again.
    fn observe(
        &self,
        upstream: &UpstreamView,
        connection: Connection,
    ) -> impl Future<Output = Result<Observation, ObserveError>> + Send;

    /// Commits a write that leaves no trace, and returns a position at or behind the commit. The same bound and the
    /// same rule for drops; a write that hangs must not be followed by a second one on another connection.
    ///
    /// # Errors
    /// Why it was not seen to commit, in the words that all parts share.
    fn commit(&self, upstream: &UpstreamView) -> impl Future<Output = Result<Lsn, Cause>> + Send;
}
