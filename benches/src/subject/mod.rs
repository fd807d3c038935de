//! What stands between pgbench and `PostgreSQL`. Each subject is started anew for each row.

mod haproxy;
mod pgbouncer;
mod tidegate;
mod watcher;

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::Serialize;

use self::watcher::Watcher;
use crate::environment::Environment;
use crate::plan::{Protocol, Row};
use crate::process::{Daemon, find_program, free_port, service, version_of};
use crate::session;
use crate::usage::process_tree;

/// Backends of the poolers in transaction mode, the same for all.
const POOL_SIZE: u32 = 20;

/// The subjects that we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// No proxy at all.
    Direct,
    /// Our bare TCP relay, see [`crate::relay`].
    Relay,
    /// `PgBouncer`.
    #[value(name = "pgbouncer")]
    PgBouncer,
    /// `HAProxy` in TCP mode.
    #[value(name = "haproxy")]
    HaProxy,
    /// tidegate.
    Tidegate,
    /// tidegate, scraped each second and with a dashboard open: what being watched costs. Only when asked for.
    Watched,
}

/// What a row asks of a subject beyond being there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// Sessions without prepared statements.
    Plain,
    /// Named prepared statements in this many sessions.
    Prepared {
        /// Sessions at the same time.
        sessions: u32,
    },
}

impl From<Row> for Demand {
    fn from(row: Row) -> Self {
        match row.protocol {
            Protocol::Simple | Protocol::Extended => Self::Plain,
            Protocol::Prepared => Self::Prepared { sessions: row.clients },
        }
    }
}

/// A subject that accepts sessions. Stopped when dropped.
#[derive(Debug)]
pub struct Subject {
    /// Which one.
    pub kind: Kind,
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// What the reader of its figures must know.
    pub note: Option<String>,
    daemon: Option<Daemon>,
    /// Looks at it all the time.
    _watcher: Option<Watcher>,
}

impl Kind {
    /// All subjects, in the order of the tables.
    pub const ALL: [Self; 6] =
        [Self::Direct, Self::Relay, Self::PgBouncer, Self::HaProxy, Self::Tidegate, Self::Watched];

    /// Name in tables and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::PgBouncer => "pgbouncer",
            Self::HaProxy => "haproxy",
            Self::Tidegate => "tidegate",
            Self::Watched => "watched",
        }
    }

    /// Its version, or `None` when it is not installed.
    pub fn version(self, environment: &Environment) -> Option<String> {
        match self {
            Self::Direct => Some(environment.postgres.version()),
            Self::Relay => Some(concat!("bare relay ", env!("CARGO_PKG_VERSION")).to_owned()),
            Self::PgBouncer => version_of(&find_program("pgbouncer")?, "--version"),
            Self::HaProxy => version_of(&find_program("haproxy")?, "-v"),
            Self::Tidegate | Self::Watched => version_of(&environment.tidegate, "--version"),
        }
    }

    /// Starts it in front of the server and waits until a login through it succeeds.
    pub fn start(self, environment: &Environment, demand: Demand) -> Result<Subject> {
        let port = free_port()?;
        let mut admin = None;
        let (mut command, note) = match self {
            Self::Direct => {
                return Ok(Subject {
                    kind: self,
                    port: environment.postgres.port(),
                    note: None,
                    daemon: None,
                    _watcher: None,
                });
            }
            Self::Relay => (relay(environment, port)?, None),
            Self::PgBouncer => pgbouncer::command(environment, port, demand)?,
            Self::HaProxy => (haproxy::command(environment, port)?, None),
            Self::Tidegate | Self::Watched => {
                let (command, port) = tidegate::command(environment, port)?;
                admin = Some(port);
                (command, None)
            }
        };
        let mut daemon = Daemon::spawn(self.name(), &mut command, environment.folder(), Signal::SIGTERM)?;
        daemon.wait_until_ready(|| session::log_in(port).map(drop))?;
        let watcher = admin.filter(|_| self == Self::Watched).map(Watcher::start);
        Ok(Subject { kind: self, port, note, daemon: Some(daemon), _watcher: watcher })
    }
}

impl Subject {
    /// Its processes as of now; none for a direct connection.
    pub fn processes(&self) -> Vec<Pid> {
        self.daemon.as_ref().map(|daemon| process_tree(daemon.pid())).unwrap_or_default()
    }
}

fn relay(environment: &Environment, port: u16) -> Result<Command> {
    let mut command = service(std::env::current_exe().context("where is our own program?")?);
    command.args(["relay", "--listen", &format!("127.0.0.1:{port}")]);
    command.args(["--to", &format!("127.0.0.1:{}", environment.postgres.port())]);
    Ok(command)
}

/// A command for a program that must be installed, run by the unprivileged user with its configuration file.
fn unprivileged(environment: &Environment, name: &str, arguments: &[&str], file: &Path) -> Result<Command> {
    let program = find_program(name).with_context(|| format!("{name} is not installed"))?;
    let mut command = service(program);
    command.args(arguments).arg(file).current_dir(environment.folder());
    environment.run_as.apply(&mut command);
    Ok(command)
}
