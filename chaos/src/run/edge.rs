//! A real HTTP service behind a real reverse proxy: where a stuck database hurts.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::cluster::{Doing, Owner, PortLease, Result, Workdir};
use crate::daemon::{Daemon, Recipe};
use crate::subject::loopback;

use super::rig::{DATABASE, Service, USER};

/// Requests that one instance of the service gets at a time; the rest waits in the reverse proxy, where it is
/// counted.
const PER_INSTANCE: u32 = 32;

/// See the module.
#[derive(Debug)]
pub(super) struct Edge {
    haproxy: Daemon,
    service: Daemon,
    address: SocketAddr,
    _ports: [PortLease; 2],
}

impl Edge {
    /// Starts both, the service with the subject as its database.
    pub(super) fn start(service: &Service, haproxy: &Path, database: SocketAddr) -> Result<Self> {
        let ports = [PortLease::take()?, PortLease::take()?];
        let [inner, outer] = [&ports[0], &ports[1]].map(|port| loopback(port.port()));
        let service = start_service(service, inner, database)?;
        let haproxy = start_haproxy(haproxy, outer, inner)?;
        Ok(Self { haproxy, service, address: outer, _ports: ports })
    }

    /// Where browsers come.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The reverse proxy's socket for statistics.
    pub(super) fn stats(&self) -> PathBuf {
        self.haproxy.dir().join("stats")
    }

    pub(super) fn keep_logs(&self, dir: &Path) -> std::io::Result<()> {
        fs::write(dir.join("service.log"), self.service.log())?;
        fs::write(dir.join("haproxy.log"), self.haproxy.log())
    }
}

fn start_service(service: &Service, listens: SocketAddr, database: SocketAddr) -> Result<Daemon> {
    let owner = Owner::caller();
    let program = fs::canonicalize(&service.program).doing_to("find", &service.program)?;
    let environment = vec![
        ("DATABASE_URL".to_owned(), format!("postgres://{USER}@{database}/{DATABASE}")),
        ("LISTEN".to_owned(), listens.to_string()),
    ];
    let recipe = Recipe { program, arguments: service.arguments.clone(), environment, listens };
    let workdir = Workdir::create("service", &owner)?;
    Daemon::start(recipe, owner, workdir)
}

fn start_haproxy(program: &Path, listens: SocketAddr, service: SocketAddr) -> Result<Daemon> {
    let owner = Owner::caller();
    let workdir = Workdir::create("haproxy", &owner)?;
    let path = workdir.path().join("haproxy.cfg");
    let stats = workdir.path().join("stats");
    let config = format!(
        "global\n  stats socket {}\n  maxconn 4000\n\
         defaults\n  mode http\n  timeout connect 5s\n  timeout client 2m\n  timeout server 2m\n  \
         timeout queue 1m\n\
         frontend browsers\n  bind {listens}\n  default_backend orders\n\
         backend orders\n  server node {service} maxconn {PER_INSTANCE}\n",
        stats.display()
    );
    fs::write(&path, config).doing_to("write", &path)?;
    let arguments = vec!["-db".to_owned(), "-f".to_owned(), path.to_string_lossy().into_owned()];
    let recipe = Recipe { program: program.to_owned(), arguments, environment: Vec::new(), listens };
    Daemon::start(recipe, owner, workdir)
}
