//! Harm done by the relay between the subject and a server. Needs no privileges.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::relay::{Cut, Kind, Relay, Stream, Toxic};

use super::Guard;

/// What happens to the connections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "link", rename_all = "kebab-case")]
pub enum Link {
    /// Nobody listens, connections are closed.
    Down,
    /// Data is held back, and so are FIN and RST; all arrives when the fault heals.
    Stall {
        /// Only towards the server, or only from it.
        #[serde(default)]
        only: Option<Stream>,
    },
    /// Data arrives later.
    Latency {
        /// Milliseconds each way.
        ms: u64,
        /// More or less by this.
        #[serde(default)]
        jitter_ms: u64,
    },
    /// Data arrives slowly.
    Bandwidth {
        /// Kilobytes per second.
        kb_per_second: u64,
    },
    /// Data arrives in small pieces.
    Slice {
        /// Bytes.
        bytes: u64,
    },
    /// Connections are reset.
    Reset,
    /// Something happens at a certain message.
    Cut(Cut),
}

impl std::fmt::Display for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Down => f.write_str("down"),
            Self::Stall { only: None } => f.write_str("stalled"),
            Self::Stall { only: Some(Stream::Upstream) } => f.write_str("stalled towards the server"),
            Self::Stall { only: Some(Stream::Downstream) } => f.write_str("stalled from the server"),
            Self::Latency { ms, .. } => write!(f, "{ms} ms latency"),
            Self::Bandwidth { kb_per_second } => write!(f, "{kb_per_second} kB/s"),
            Self::Slice { bytes } => write!(f, "slices of {bytes} bytes"),
            Self::Reset => f.write_str("reset"),
            Self::Cut(cut) => write!(f, "cut {:?} {:?}", cut.when, cut.message),
        }
    }
}

static NUMBER: AtomicU64 = AtomicU64::new(0);

pub(super) fn inject(relay: &Arc<Relay>, link: &Link) -> Guard {
    if *link == Link::Down {
        relay.enable(false);
        let relay = Arc::clone(relay);
        return Guard::new(move || {
            relay.enable(true);
            Ok(())
        });
    }
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let mut names = Vec::new();
    for (stream, kind) in toxics(link) {
        let name = format!("{number}-{}", names.len());
        relay.add(Toxic::new(&name, stream, kind));
        names.push(name);
    }
    let relay = Arc::clone(relay);
    Guard::new(move || {
        for name in &names {
            relay.remove(name);
        }
        Ok(())
    })
}

fn toxics(link: &Link) -> Vec<(Stream, Kind)> {
    let both = |kind: Kind| vec![(Stream::Upstream, kind.clone()), (Stream::Downstream, kind)];
    match link {
        Link::Down => Vec::new(),
        Link::Stall { only: None } => both(Kind::Stall {}),
        Link::Stall { only: Some(stream) } => vec![(*stream, Kind::Stall {})],
        Link::Latency { ms, jitter_ms } => both(Kind::Latency { latency: *ms, jitter: *jitter_ms }),
        Link::Bandwidth { kb_per_second } => both(Kind::Bandwidth { rate: *kb_per_second }),
        Link::Slice { bytes } => {
            both(Kind::Slicer { average_size: *bytes, size_variation: bytes / 2, delay: 100 })
        }
        Link::Reset => vec![(Stream::Downstream, Kind::ResetPeer { timeout: 0 })],
        Link::Cut(cut) => {
            let stream = if cut.message.is_frontend() { Stream::Upstream } else { Stream::Downstream };
            vec![(stream, Kind::Cut(cut.clone()))]
        }
    }
}
