//! Everything that a run needs, in the order in which it must end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::cluster::{Cable, Cluster, Error, Node, Result};
use crate::observe::machine::Mirror;
use crate::observe::webhook::Webhook;
use crate::relay::Relay;
use crate::subject::Subject;

use super::edge::Edge;

/// Database of the workload.
pub const DATABASE: &str = "app";

/// Role of the workload, owner of the database.
pub const USER: &str = "app";

/// Where programs are that a run may need.
#[derive(Debug, Clone)]
pub struct RunPrograms {
    /// The subjects'.
    pub subjects: crate::subject::SubjectPrograms,
    /// The HTTP service; without it nothing is measured over HTTP.
    pub service: Option<Service>,
    /// `HAProxy`; without it too.
    pub haproxy: Option<PathBuf>,
}

/// A program that reads `DATABASE_URL` and `LISTEN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its binary.
    pub program: PathBuf,
    /// What to call it with.
    pub arguments: Vec<String>,
}

/// The parts of a run.
#[derive(Debug)]
pub struct Rig {
    /// The service and its reverse proxy, when both can be had.
    pub(super) edge: Option<Edge>,
    pub(super) subject: Subject,
    pub(super) relays: BTreeMap<String, Arc<Relay>>,
    /// Behind the relays, which listen at their far ends.
    pub(super) cables: BTreeMap<String, Arc<Cable>>,
    pub(super) webhook: Webhook,
    pub(super) mirror: Mirror,
    /// A server of another cluster, with tables of the same names.
    pub(super) stranger: Option<Node>,
    pub(super) fallen: Arc<Fallen>,
    pub(super) cluster: Cluster,
}

/// Keys that former primaries held when their history ended.
#[derive(Debug, Default)]
pub(crate) struct Fallen(Mutex<Vec<i64>>);

impl Fallen {
    /// Remembers them, one key a line.
    pub(crate) fn add(&self, keys: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(keys.lines().filter_map(|key| key.trim().parse::<i64>().ok()));
    }

    /// All of them.
    pub(super) fn keys(&self) -> Vec<i64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Rig {
    /// The servers.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// One of them.
    pub fn node(&self, name: &str) -> Result<&Arc<Node>> {
        self.cluster.node(name)
    }

    /// The relay in front of a server.
    pub fn relay(&self, node: &str) -> Result<&Arc<Relay>> {
        let missing = || Error::Unsupported {
            what: format!("a fault of the link to {node}"),
            why: "the scenario's cluster needs relay = true".to_owned(),
        };
        self.relays.get(node).ok_or_else(missing)
    }

    /// The cable to a server.
    pub(crate) fn cable(&self, node: &str) -> Result<&Arc<Cable>> {
        let missing = || Error::Unsupported {
            what: format!("pulling the cable of {node}"),
            why: "the scenario's cluster needs cable = true".to_owned(),
        };
        self.cables.get(node).ok_or_else(missing)
    }

    /// What former primaries held.
    pub(crate) fn fallen(&self) -> &Arc<Fallen> {
        &self.fallen
    }

    /// What is between application and servers.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// The receiver of alerts.
    pub fn webhook(&self) -> &Webhook {
        &self.webhook
    }

    /// The server that accepts writes on the highest timeline: what is in it is the truth.
    pub fn authority(&self) -> Result<&Arc<Node>> {
        let mut best: Option<(u32, &Arc<Node>)> = None;
        for node in self.cluster.nodes() {
            let asked = node.sql(
                "SELECT ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int \
                 WHERE NOT pg_is_in_recovery()",
            );
            let timeline = asked.ok().and_then(|text| text.parse().ok());
            if let Some(timeline) = timeline
                && best.is_none_or(|(known, _)| timeline > known)
            {
                best = Some((timeline, node));
            }
        }
        let nobody = || Error::Unsupported {
            what: "the verdict".to_owned(),
            why: "no server accepts writes".to_owned(),
        };
        best.map(|(_, node)| node).ok_or_else(nobody)
    }

    /// Copies what the programs said into a folder.
    pub fn keep_logs(&self, dir: &Path) -> std::io::Result<()> {
        for node in self.cluster.nodes() {
            std::fs::write(dir.join(format!("{}.log", node.name())), node.log())?;
        }
        if let Some(daemon) = self.subject.daemon() {
            std::fs::write(dir.join("subject.log"), daemon.log())?;
        }
        self.edge.as_ref().map_or(Ok(()), |edge| edge.keep_logs(dir))
    }
}
