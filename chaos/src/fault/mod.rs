//! What goes wrong: one file each, as data, with a guard that heals.
//!
//! Every fault is what an operator would meet. Injecting and healing block the calling thread. What a fault
//! needs of the machine is said by [`Fault::obstacle`], before a run rather than in the middle of it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::cluster::{Error, Node, Result};
use crate::run::Rig;

pub mod catalogue;
mod deaf_webhook;
mod demote;
mod disk_full;
mod exhaustion;
mod freeze;
mod holder;
mod kill;
mod link;
mod lock_storm;
pub mod packets;
mod prepared;
mod promote;
mod read_only;
mod restart;
mod split_brain;
mod subject;
mod sync_names;
mod threads;
mod unplug;
mod wal_freeze;

pub use freeze::Processes;
pub use link::Link;
pub use subject::SubjectFault;

/// One fault with its parameters. Servers are named as they started: `primary`, `s1`, …
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "kebab-case")]
pub enum Fault {
    /// SIGSTOP to processes of a server.
    Freeze {
        /// Which server.
        node: String,
        /// Which of its processes.
        #[serde(default)]
        what: Processes,
    },
    /// SIGKILL to processes of a server; healed by starting it again.
    Kill {
        /// Which server.
        node: String,
        /// Which of its processes.
        #[serde(default)]
        what: Processes,
    },
    /// `synchronous_standby_names` names a server that does not exist, as after a careless failover.
    DeadStandbyName {
        /// Which server.
        node: String,
    },
    /// Kills the old primary and promotes a standby; healed by rewinding the old one into its standby.
    Failover {
        /// Who was primary.
        from: String,
        /// Who becomes it.
        to: String,
    },
    /// Promotes a standby while the old primary lives on; healed by rewinding the old one.
    SplitBrain {
        /// The old primary.
        from: String,
        /// The new one.
        to: String,
    },
    /// `default_transaction_read_only` on a primary.
    ReadOnly {
        /// Which server.
        node: String,
    },
    /// Restarts a primary as a standby, where it stands; healed by promoting it again.
    Demote {
        /// Which server.
        node: String,
    },
    /// A session holds a lock that all writers of the shared row need.
    LockStorm {
        /// Which server.
        node: String,
        /// The whole table rather than the row.
        #[serde(default)]
        table: bool,
    },
    /// A prepared transaction that nobody finishes holds the shared row.
    PreparedOrphan {
        /// Which server.
        node: String,
    },
    /// Idle sessions take every slot of `max_connections`.
    ConnectionExhaustion {
        /// Which server.
        node: String,
        /// How many sessions to leave to others.
        #[serde(default)]
        leave: u32,
    },
    /// Stops and starts a server.
    Restart {
        /// Which server.
        node: String,
        /// Without a checkpoint, with recovery.
        #[serde(default)]
        immediate: bool,
    },
    /// Something between the subject and a server; see [`Link`].
    Link {
        /// Which server.
        node: String,
        /// What happens to the connections.
        #[serde(flatten)]
        link: Link,
    },
    /// Packets to a server's port vanish in the kernel.
    DropPackets {
        /// Which server.
        node: String,
        /// Only those larger than this many bytes, as behind a path with a small MTU.
        #[serde(default)]
        larger_than: Option<u32>,
        /// Those from the server too.
        #[serde(default)]
        both_ways: bool,
    },
    /// The network namespace of a server loses its cable.
    Unplug {
        /// Which server.
        node: String,
    },
    /// `fsfreeze` of the filesystem that holds `pg_wal`.
    WalFreeze {
        /// Which server.
        node: String,
    },
    /// The filesystem that holds `pg_wal` has no space left; healed by making space and a restart.
    DiskFull {
        /// Which server.
        node: String,
    },
    /// The receiver of alerts answers 503.
    DeafWebhook,
    /// More load than the pool can serve: reads of the workload's kind, played by the workload.
    Burst {
        /// Reads per second on top of the others.
        reads_per_second: f64,
        /// Sessions that it brings.
        sessions: usize,
    },
    /// Something happens to the subject itself; see [`SubjectFault`].
    Subject {
        /// What.
        what: SubjectFault,
    },
}

impl Fault {
    /// Why it cannot be injected here, as far as the machine is concerned.
    pub fn obstacle(&self) -> Option<String> {
        match self {
            Self::DropPackets { .. } => catalogue::needs_root_and("nft"),
            Self::Unplug { .. } => catalogue::needs_root_and("ip"),
            Self::WalFreeze { .. } => catalogue::needs_root_and("fsfreeze"),
            Self::DiskFull { .. } | Self::Subject { what: SubjectFault::StateFull } => {
                catalogue::needs_root_and("mount")
            }
            _ => None,
        }
    }

    /// Makes a fault of one server happen to this server, whatever name it gives. Blocks.
    pub fn strike(&self, node: &Arc<Node>) -> Result<Guard> {
        self.possible()?;
        match self {
            Self::Freeze { what, .. } => freeze::inject(node, what),
            Self::ReadOnly { .. } => read_only::inject(node),
            Self::DropPackets { larger_than, both_ways, .. } => {
                packets::inject(node.port(), *larger_than, *both_ways)
            }
            Self::WalFreeze { .. } => wal_freeze::inject(node),
            _ => {
                let why = "it needs more than the server".to_owned();
                Err(Error::Unsupported { what: self.to_string(), why })
            }
        }
    }

    fn possible(&self) -> Result<()> {
        let refuse = |why| Err(Error::Unsupported { what: self.to_string(), why });
        self.obstacle().map_or(Ok(()), refuse)
    }

    /// Whether a whole server stands still that accepts writes now.
    pub(crate) fn pauses_a_primary(&self, rig: &Rig) -> bool {
        let Self::Freeze { node, what: Processes::All } = self else { return false };
        rig.node(node).is_ok_and(|node| !node.is_standby())
    }

    /// Makes it happen. Blocks.
    pub fn inject(&self, rig: &Rig) -> Result<Guard> {
        self.possible()?;
        match self {
            Self::Freeze { node, .. }
            | Self::ReadOnly { node }
            | Self::DropPackets { node, .. }
            | Self::WalFreeze { node } => self.strike(rig.node(node)?),
            Self::Kill { node, what } => kill::inject(rig.node(node)?, what),
            Self::DeadStandbyName { node } => sync_names::inject(rig.node(node)?),
            Self::Failover { from, to } => promote::inject(rig.node(from)?, rig.node(to)?, rig.fallen()),
            Self::SplitBrain { from, to } => {
                split_brain::inject(rig.node(from)?, rig.node(to)?, rig.fallen())
            }
            Self::Demote { node } => demote::inject(rig.node(node)?),
            Self::LockStorm { node, table } => lock_storm::inject(rig.node(node)?, *table),
            Self::PreparedOrphan { node } => prepared::inject(rig.node(node)?),
            Self::ConnectionExhaustion { node, leave } => exhaustion::inject(rig.node(node)?, *leave),
            Self::Restart { node, immediate } => restart::inject(rig.node(node)?, *immediate),
            Self::Link { node, link } => Ok(link::inject(rig.relay(node)?, link)),
            Self::Unplug { node } => unplug::inject(rig.cable(node)?),
            Self::DiskFull { node } => disk_full::inject(rig.node(node)?),
            Self::DeafWebhook => Ok(deaf_webhook::inject(rig.webhook())),
            // The workload knows the plan.
            Self::Burst { .. } => Ok(Guard::new(|| Ok(()))),
            Self::Subject { what } => subject::inject(rig.subject(), *what),
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Freeze { node, what } => write!(f, "{what} of {node} frozen"),
            Self::Kill { node, what } => write!(f, "{what} of {node} killed"),
            Self::DeadStandbyName { node } => write!(f, "{node} waits for a standby that does not exist"),
            Self::Failover { from, to } => write!(f, "failover from {from} to {to}"),
            Self::SplitBrain { from, to } => write!(f, "{to} promoted beside {from}"),
            Self::ReadOnly { node } => write!(f, "{node} is read-only"),
            Self::Demote { node } => write!(f, "{node} demoted in place"),
            Self::LockStorm { node, table: false } => write!(f, "row locked on {node}"),
            Self::LockStorm { node, table: true } => write!(f, "table locked on {node}"),
            Self::PreparedOrphan { node } => write!(f, "orphan prepared transaction on {node}"),
            Self::ConnectionExhaustion { node, .. } => write!(f, "no connection slots on {node}"),
            Self::Restart { node, immediate } => {
                write!(f, "{node} restarted{}", if *immediate { " after a crash" } else { "" })
            }
            Self::Link { node, link } => write!(f, "link to {node}: {link}"),
            Self::DropPackets { node, larger_than: None, .. } => write!(f, "packets to {node} dropped"),
            Self::DropPackets { node, larger_than: Some(size), .. } => {
                write!(f, "packets over {size} bytes to {node} dropped")
            }
            Self::Unplug { node } => write!(f, "cable of {node} pulled"),
            Self::WalFreeze { node } => write!(f, "pg_wal of {node} frozen"),
            Self::DiskFull { node } => write!(f, "pg_wal of {node} full"),
            Self::DeafWebhook => f.write_str("alerts refused"),
            Self::Burst { reads_per_second, .. } => write!(f, "{reads_per_second} more reads per second"),
            Self::Subject { what } => write!(f, "{what}"),
        }
    }
}

type Heal = Box<dyn FnOnce() -> Result<()> + Send>;

/// A fault in force. It is healed when dropped, also by a panic.
#[must_use = "the fault is healed as soon as the guard is dropped"]
pub struct Guard {
    heal: Option<Heal>,
}

impl Guard {
    /// The heal runs once.
    pub(crate) fn new(heal: impl FnOnce() -> Result<()> + Send + 'static) -> Self {
        Self { heal: Some(Box::new(heal)) }
    }

    /// Heals now, and says whether that worked. Blocks.
    pub fn heal(mut self) -> Result<()> {
        self.heal.take().map_or(Ok(()), |heal| heal())
    }
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("in_force", &self.heal.is_some()).finish()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.heal.take().map(|heal| heal()) {
            eprintln!("a fault was not healed: {error}");
        }
    }
}
