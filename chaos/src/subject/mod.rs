//! What stands between the application and `PostgreSQL`: nothing, `PgBouncer`, tidegate, or any program.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cluster::{Doing, Error, Owner, PortLease, Result, Workdir};
use crate::daemon::{Daemon, Recipe};

pub mod broken;
mod pgbouncer;
mod tidegate;

pub(crate) use tidegate::{CONFIG, STATE, merge};

/// The name that `--subject` takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The application connects to the primary itself.
    Direct,
    /// `PgBouncer` in transaction mode, otherwise as it is installed.
    PgBouncer,
    /// The sidecar.
    Tidegate,
    /// A command line, which gets `LISTEN` and `UPSTREAM` (both `host:port`) in its environment, and all servers as
    /// `UPSTREAMS`, with commas.
    Command(String),
}

impl std::str::FromStr for Kind {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "direct" => Self::Direct,
            "pgbouncer" => Self::PgBouncer,
            "tidegate" => Self::Tidegate,
            command => Self::Command(command.to_owned()),
        })
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::PgBouncer => "pgbouncer",
            Self::Tidegate => "tidegate",
            Self::Command(command) => command,
        })
    }
}

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct SubjectPrograms {
    /// The sidecar's binary.
    pub tidegate: PathBuf,
    /// `PgBouncer`'s.
    pub pgbouncer: PathBuf,
}

/// How to set a subject up.
#[derive(Debug, Clone)]
pub struct SubjectOptions {
    /// The servers, the primary first.
    pub upstreams: Vec<SocketAddr>,
    /// Backends that it may hold.
    pub pool: usize,
    /// Where its alerts go.
    pub webhook: Option<String>,
    /// Parts of tidegate's configuration that replace the harness's.
    pub tidegate: toml::Table,
}

/// A subject that runs.
#[derive(Debug)]
pub struct Subject {
    kind: Kind,
    version: String,
    address: SocketAddr,
    admin: Option<SocketAddr>,
    daemon: Option<Arc<Daemon>>,
    /// Held for as long as the program may listen there.
    _ports: Vec<PortLease>,
}

impl Subject {
    /// Starts it and waits until it accepts connections. Blocks.
    pub fn start(kind: &Kind, programs: &SubjectPrograms, options: &SubjectOptions) -> Result<Self> {
        match kind {
            Kind::Direct => Self::direct(options),
            Kind::PgBouncer => pgbouncer::start(&programs.pgbouncer, options),
            Kind::Tidegate => tidegate::start(&programs.tidegate, options),
            Kind::Command(line) => Self::command(line, options),
        }
    }

    fn direct(options: &SubjectOptions) -> Result<Self> {
        let address = first_upstream(options)?;
        let version = "no proxy".to_owned();
        Ok(Self { kind: Kind::Direct, version, address, admin: None, daemon: None, _ports: Vec::new() })
    }

    fn command(line: &str, options: &SubjectOptions) -> Result<Self> {
        let listen = PortLease::take()?;
        let address = loopback(listen.port());
        let owner = Owner::caller();
        let workdir = Workdir::create("subject", &owner)?;
        let upstream = first_upstream(options)?;
        let all: Vec<String> = options.upstreams.iter().map(ToString::to_string).collect();
        let recipe = Recipe {
            program: PathBuf::from("/bin/sh"),
            // So that signals reach the program, not the shell.
            arguments: vec!["-c".to_owned(), format!("exec {line}")],
            environment: vec![
                ("LISTEN".to_owned(), address.to_string()),
                ("UPSTREAM".to_owned(), upstream.to_string()),
                ("UPSTREAMS".to_owned(), all.join(",")),
            ],
            listens: address,
        };
        let daemon = Some(Arc::new(Daemon::start(recipe, owner, workdir)?));
        let version = "unknown version".to_owned();
        Ok(Self {
            kind: Kind::Command(line.to_owned()),
            version,
            address,
            admin: None,
            daemon,
            _ports: vec![listen],
        })
    }

    /// What it is.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// What it says of its version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Where applications connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its control plane, where it has one over HTTP.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Where the sidecar keeps its journal.
    pub(crate) fn state_dir(&self) -> Option<PathBuf> {
        let daemon = self.daemon.as_ref().filter(|_| self.kind == Kind::Tidegate)?;
        Some(daemon.dir().join(STATE))
    }

    /// Its process, unless there is none.
    pub fn daemon(&self) -> Option<&Arc<Daemon>> {
        self.daemon.as_ref()
    }
}

fn first_upstream(options: &SubjectOptions) -> Result<SocketAddr> {
    let missing = || Error::Unsupported { what: "a subject".to_owned(), why: "no upstream".to_owned() };
    options.upstreams.first().copied().ok_or_else(missing)
}

/// This port on 127.0.0.1.
pub(crate) fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// The first line that a program prints when asked for its version.
fn version_of(program: &Path) -> Result<String> {
    let output = std::process::Command::new(program).arg("--version").output();
    let output = output.doing_to("run", program)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().next().unwrap_or("unknown version").to_owned())
}
