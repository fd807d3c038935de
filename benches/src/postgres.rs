//! The throwaway `PostgreSQL` server behind every subject, filled for pgbench.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use crate::process::{Daemon, RunAs, find_program, free_port, run_to_end, version_of};
use crate::session;

/// The superuser that everything logs in as, and its database.
pub const USER: &str = "postgres";

/// pgbench's scale: a million accounts, about 150 MB, so that everything stays in memory.
const SCALE: &str = "10";

/// Settings that take the disk and background work out of the measurement.
const SETTINGS: &[&str] = &[
    "listen_addresses=127.0.0.1",
    // 500 direct sessions next to 500 of a pooler in session mode, and the pools of the others.
    "max_connections=1200",
    "shared_buffers=512MB",
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
    "max_wal_size=8GB",
    "checkpoint_timeout=1h",
    "autovacuum=off",
    "jit=off",
];

/// A running server. Stopped when dropped; its folder belongs to the caller.
#[derive(Debug)]
pub struct Server {
    _daemon: Daemon,
    port: u16,
    programs: PathBuf,
}

impl Server {
    /// Creates a cluster in `folder` (which `run_as` must be able to write), starts it and fills it.
    pub fn start(folder: &Path, run_as: RunAs) -> Result<Self> {
        let programs = find_programs().context("no PostgreSQL server found; set PG_BIN to its bin folder")?;
        let data = folder.join("data");
        init(&programs, &data, folder, run_as)?;
        let port = free_port()?;
        let daemon = launch(&programs, &data, folder, port, run_as)?;
        let server = Self { _daemon: daemon, port, programs };
        server.fill(folder)?;
        Ok(server)
    }

    /// Its TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Path of one of the programs that belong to this server.
    pub fn program(&self, name: &str) -> PathBuf {
        let own = self.programs.join(name);
        if own.is_file() { own } else { find_program(name).unwrap_or(own) }
    }

    /// The server's version line.
    pub fn version(&self) -> String {
        version_of(&self.programs.join("postgres"), "--version").unwrap_or_else(|| "PostgreSQL ?".to_owned())
    }

    fn fill(&self, folder: &Path) -> Result<()> {
        let mut pgbench = Command::new(self.program("pgbench"));
        pgbench.args(["-i", "-q", "-s", SCALE, "--unlogged-tables", "-h", "127.0.0.1", "-U", USER]);
        pgbench.args(["-p", &self.port.to_string(), USER]);
        run_to_end(&mut pgbench, &folder.join("pgbench-init.log"))
    }
}

fn init(programs: &Path, data: &Path, folder: &Path, run_as: RunAs) -> Result<()> {
    let mut initdb = Command::new(programs.join("initdb"));
    initdb.args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C", "-U", USER, "-D"]).arg(data);
    initdb.current_dir(folder);
    run_as.apply(&mut initdb);
    run_to_end(&mut initdb, &folder.join("initdb.log"))
}

fn launch(programs: &Path, data: &Path, folder: &Path, port: u16, run_as: RunAs) -> Result<Daemon> {
    let mut postgres = Command::new(programs.join("postgres"));
    postgres.arg("-D").arg(data).args(["-p", &port.to_string(), "-k"]).arg(folder).current_dir(folder);
    for setting in SETTINGS {
        postgres.args(["-c", setting]);
    }
    run_as.apply(&mut postgres);
    // SIGINT is PostgreSQL's fast shutdown: sessions are ended, not waited for.
    let mut daemon = Daemon::spawn("postgres", &mut postgres, folder, Signal::SIGINT)?;
    daemon.wait_until_ready(|| session::log_in(port).map(drop))?;
    Ok(daemon)
}

/// `PG_BIN`, else `pg_config --bindir`, else Debian's folders, newest version first.
fn find_programs() -> Option<PathBuf> {
    let told = std::env::var_os("PG_BIN").map(PathBuf::from);
    let configured = version_of(Path::new("pg_config"), "--bindir").map(PathBuf::from);
    let mut packaged: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            Some((entry.as_ref().ok()?.file_name().to_str()?.parse().ok()?, entry.ok()?.path()))
        })
        .collect();
    packaged.sort_unstable_by_key(|(version, _)| std::cmp::Reverse(*version));
    let packaged = packaged.into_iter().map(|(_, folder)| folder.join("bin"));
    told.into_iter().chain(configured).chain(packaged).find(|folder| folder.join("initdb").is_file())
}
