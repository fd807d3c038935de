//! A primary and its streaming standbys.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

mod cable;
pub(crate) mod command;
mod error;
mod node;
mod owner;
mod ports;
mod processes;
mod programs;
mod roles;
mod settings;
mod sql;
mod template;
mod wal;
mod wheel;
mod workdir;

pub use cable::Cable;
pub(crate) use error::Doing;
pub use error::{Error, Result};
pub use node::{Node, StopMode};
pub use owner::Owner;
pub use ports::PortLease;
pub use processes::ServerProcess;
pub(crate) use processes::signal as send_signal;
pub use programs::Programs;
pub use rustix::process::Signal;
pub use settings::{Durability, NodeOptions, TlsFiles};
pub use sql::{SecretKind, quote_identifier, quote_literal};
pub use template::Identity;
pub(crate) use wal::MOUNT as WAL_MOUNT;
pub use wal::WalStorage;
pub use workdir::{Workdir, inhabitants};

/// Whether commits wait for standbys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Replication {
    /// They do not.
    #[default]
    Asynchronous,
    /// They wait for the first of the standbys (`FIRST 1 (s1, s2, …)`).
    Synchronous,
}

/// How a cluster is set up.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Options of each server; the name is given here.
    pub node: NodeOptions,
    /// Number of standbys: s1, s2, …
    pub standbys: usize,
    /// Whether commits wait for them.
    pub replication: Replication,
}

/// One primary, n streaming standbys. Field names say where they started: promotion changes roles.
#[derive(Debug)]
pub struct Cluster {
    /// Standbys first: they end before their primary does.
    standbys: Vec<Arc<Node>>,
    primary: Arc<Node>,
}

impl Cluster {
    /// Starts all servers and waits until the standbys stream.
    pub fn start(options: &ClusterOptions) -> Result<Self> {
        let primary = Arc::new(Node::start(&options.node.clone().name("primary"))?);
        let names: Vec<String> = (1..=options.standbys).map(|number| format!("s{number}")).collect();
        let standby = |name: &String| primary.start_standby_of(&options.node.clone().name(name));
        let standbys: Result<Vec<Arc<Node>>> = names.iter().map(|name| standby(name).map(Arc::new)).collect();
        let cluster = Self { standbys: standbys?, primary };
        cluster.wait_streaming(cluster.standbys.len())?;
        if options.replication == Replication::Synchronous {
            cluster.primary.set("synchronous_standby_names", &format!("FIRST 1 ({})", names.join(", ")))?;
            cluster
                .wait_for("SELECT count(*) >= 1 FROM pg_stat_replication WHERE sync_state = 'sync'", "t")?;
        }
        Ok(cluster)
    }

    /// The server that started as primary.
    pub fn primary(&self) -> &Arc<Node> {
        &self.primary
    }

    /// The servers that started as standbys: s1, s2, …
    pub fn standbys(&self) -> &[Arc<Node>] {
        &self.standbys
    }

    /// All servers, the one that started as primary first.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        std::iter::once(&self.primary).chain(&self.standbys)
    }

    /// The server of this name: `primary`, `s1`, `s2`, …
    pub fn node(&self, name: &str) -> Result<&Arc<Node>> {
        let missing =
            || Error::Unsupported { what: format!("node {name}"), why: "the cluster has none".to_owned() };
        self.nodes().find(|node| node.name() == name).ok_or_else(missing)
    }

    /// Waits until this many standbys stream from the primary.
    pub fn wait_streaming(&self, count: usize) -> Result<()> {
        self.wait_for(
            "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'",
            &count.to_string(),
        )
    }

    /// Waits until every standby has replayed what the primary has written so far.
    pub fn wait_replayed(&self) -> Result<()> {
        let written = self.primary.sql("SELECT pg_current_wal_insert_lsn()")?;
        let count = self.standbys.len().to_string();
        self.wait_for(
            &format!("SELECT count(*) FROM pg_stat_replication WHERE replay_lsn >= '{written}'"),
            &count,
        )
    }

    fn wait_for(&self, sql: &str, wanted: &str) -> Result<()> {
        let start = Instant::now();
        while self.primary.sql(sql)? != wanted {
            if start.elapsed() > node::PATIENCE {
                return Err(Error::Late { what: "replication".to_owned(), limit: node::PATIENCE });
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}
