//! What is known of all servers at one moment: an immutable snapshot with one writer, `discovery`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::fencing::Fence;
use super::identity::{Observation, UpstreamId};
use crate::config::UpstreamAddress;
use crate::exchange::Cause;

/// Counts the states of the cluster that connections belong to: raised whenever a primary is elected and whenever
/// a server that was gone is admitted again. Never falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a server does in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Takes writes.
    Primary,
    /// Replays what the primary wrote.
    Standby,
}

impl Role {
    /// The word that stands in labels and files.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Standby => "standby",
        }
    }
}

/// How far a server is to be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// It answers.
    Up,
    /// The last one or two questions were not answered in time.
    Unsure,
    /// It does not answer in time, and is kept because there is no other of its role.
    Silent,
    /// It came back, and has not yet shown that it stays.
    Proving,
    /// It cannot be used.
    Down,
    /// It was not asked yet.
    Unknown,
}

impl Health {
    /// Whether it may be given work.
    pub const fn is_usable(self) -> bool {
        matches!(self, Self::Up | Self::Unsure | Self::Silent)
    }

    /// The word that stands in labels and files.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Unsure => "unsure",
            Self::Silent => "silent",
            Self::Proving => "proving",
            Self::Down => "down",
            Self::Unknown => "unknown",
        }
    }
}

/// Whether writes can be sent, and why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// To the primary.
    Open,
    /// There is no primary.
    NoPrimary,
    /// There is a primary, and no write has been seen to commit on it yet.
    Unproven {
        /// What the last attempt met; `None` while the first is under way.
        failed: Option<Cause>,
    },
    /// Several servers of one timeline take writes. Choosing one could lose what the other accepted.
    SplitBrain,
}

/// One server in a snapshot.
#[derive(Debug, Clone, PartialEq)]
pub struct UpstreamView {
    /// Which.
    pub id: UpstreamId,
    /// Where, as configured.
    pub address: UpstreamAddress,
    /// The address as text.
    pub name: Arc<str>,
    /// What it does; `None` when that is not known.
    pub role: Option<Role>,
    /// Connections opened under an older one must not be used any more.
    pub epoch: Epoch,
    /// Whether it answers.
    pub health: Health,
    /// What it does wrong, while it does not answer.
    pub cause: Option<Cause>,
    /// Why it is not used, whatever it says.
    pub fenced: Option<Fence>,
    /// How far a standby is behind, at most; `None` when that is not known.
    pub lag: Option<Duration>,
    /// What it said last, and when it was asked. Whatever a primary had answered by then is before its position.
    pub observed: Option<(Observation, Instant)>,
}

impl UpstreamView {
    /// Whether it may answer reads as a standby that is at most `max_lag` behind.
    #[inline]
    pub fn reads_within(&self, max_lag: Duration) -> bool {
        self.is_standby() && self.lag.is_some_and(|lag| lag <= max_lag)
    }

    /// Whether it is a standby that can be used.
    #[inline]
    pub fn is_standby(&self) -> bool {
        self.role == Some(Role::Standby) && self.fenced.is_none() && self.health.is_usable()
    }
}

/// All servers. See the [module](self).
#[derive(Debug, Clone, PartialEq)]
pub struct Topology {
    epoch: Epoch,
    upstreams: Box<[UpstreamView]>,
    /// Index of the primary.
    primary: Option<usize>,
    writes: Writes,
}

impl Topology {
    /// A snapshot. `primary` must be among the upstreams, else there is none.
    pub fn new(
        epoch: Epoch,
        upstreams: Vec<UpstreamView>,
        primary: Option<UpstreamId>,
        writes: Writes,
    ) -> Self {
        let primary = upstreams.iter().position(|view| Some(view.id) == primary);
        let writes = if primary.is_none() && writes == Writes::Open { Writes::NoPrimary } else { writes };
        Self { epoch, upstreams: upstreams.into(), primary, writes }
    }

    /// Before anything is known.
    pub fn empty() -> Self {
        Self::new(Epoch::default(), Vec::new(), None, Writes::NoPrimary)
    }

    /// Counts changes of primary and returns of servers.
    #[inline]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// All servers, in the order of the configuration.
    #[inline]
    pub fn upstreams(&self) -> &[UpstreamView] {
        &self.upstreams
    }

    /// One server.
    pub fn get(&self, id: UpstreamId) -> Option<&UpstreamView> {
        self.upstreams.iter().find(|view| view.id == id)
    }

    /// The primary: good for reads; for writes see [`writes`](Self::writes).
    #[inline]
    pub fn primary(&self) -> Option<&UpstreamView> {
        self.upstreams.get(self.primary?)
    }

    /// Whether writes can be sent to the primary.
    #[inline]
    pub const fn writes(&self) -> Writes {
        self.writes
    }

    /// Standbys that may answer reads.
    pub fn standbys(&self, max_lag: Duration) -> impl Iterator<Item = &UpstreamView> {
        self.upstreams.iter().filter(move |view| view.reads_within(max_lag))
    }
}
