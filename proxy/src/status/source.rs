//! What the parts of the sidecar know, in their own types, before it becomes a document.

use std::time::{Duration, SystemTime};

use super::LaneState;
use super::controls::Order;
use crate::exchange::cause::Diagnosis;
use crate::upstream::WhyNot;

/// A lane, as far as its breaker and its admission know.
#[derive(Debug, Clone, Default)]
pub struct LaneSource {
    /// What applications meet.
    pub state: LaneState,
    /// The breaker's word; empty stands for `closed`.
    pub phase: &'static str,
    /// What an operator ordered.
    pub order: Order,
    /// What is wrong, and what was seen of it.
    pub diagnosis: Option<Diagnosis>,
    /// Why no server may run it, when none may.
    pub nowhere: Option<WhyNot>,
    /// Since when the state holds.
    pub since: Option<SystemTime>,
    /// Backends lent to it, those given up on included.
    pub in_flight: Option<u64>,
    /// Sessions that wait for a backend.
    pub queued: Option<u64>,
    /// How long the oldest exchange has run without progress.
    pub oldest_in_flight: Option<Duration>,
}

/// A server, as far as probes and topology know.
#[derive(Debug, Clone, Default)]
pub struct UpstreamSource {
    /// primary, standby; empty stands for `unknown`.
    pub role: &'static str,
    /// Timeline of its WAL.
    pub timeline: Option<u32>,
    /// Position in its WAL.
    pub lsn: Option<u64>,
    /// How far a standby is behind, in time.
    pub lag: Option<Duration>,
    /// How far a standby is behind, in WAL.
    pub lag_bytes: Option<u64>,
    /// Version of PostgreSQL.
    pub version: Option<String>,
    /// Its backends of an older one are not used any more.
    pub epoch: u64,
    /// A newer timeline has been seen.
    pub fenced: bool,
    /// Why it cannot be used.
    pub problem: Option<String>,
    /// Its breakers: lane, phase, cause.
    pub breakers: Vec<super::Breaker>,
    /// How long the last probe took that read.
    pub probe_read: Option<Duration>,
    /// How long the last probe took that committed a write.
    pub probe_write: Option<Duration>,
    /// When a write was last seen to commit.
    pub last_write: Option<SystemTime>,
    /// Backends given up on and not yet known dead.
    pub zombies: u64,
}
