//! A primary and its streaming standbys.

use std::thread;
use std::time::{Duration, Instant};

mod command;
mod error;
mod node;
mod owner;
mod ports;
mod processes;
mod programs;
mod settings;
mod sql;
mod template;
mod wheel;
mod workdir;

pub use error::{Error, Result};
pub use node::{Node, StopMode};
pub use owner::Owner;
pub use ports::PortLease;
pub use processes::ServerProcess;
pub use programs::Programs;
pub use rustix::process::Signal;
pub use settings::{Durability, NodeOptions, TlsFiles};
pub use sql::{SecretKind, quote_identifier, quote_literal};
pub use template::Identity;
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
    standbys: Vec<Node>,
    primary: Node,
}

impl Cluster {
    /// Starts all servers and waits until the standbys stream.
    pub fn start(options: &ClusterOptions) -> Result<Self> {
        let primary = Node::start(&options.node.clone().name("primary"))?;
        let names: Vec<String> = (1..=options.standbys).map(|number| format!("s{number}")).collect();
        let standbys: Result<Vec<Node>> =
            names.iter().map(|name| primary.start_standby_of(&options.node.clone().name(name))).collect();
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
    pub fn primary(&self) -> &Node {
        &self.primary
    }

    /// The servers that started as standbys: s1, s2, …
    pub fn standbys(&self) -> &[Node] {
        &self.standbys
    }

    /// Waits until this many standbys stream from the primary.
    pub fn wait_streaming(&self, count: usize) -> Result<()> {
        self.wait_for(
            "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'",
            &count.to_string(),
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
