//! The processes of one server.

use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

use super::error::{Doing, Result};
use super::workdir::inhabitants;

/// One process of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerProcess {
    /// Process id; of a backend it is the one in `pg_stat_activity`.
    pub pid: u32,
    /// What it calls itself: "walreceiver streaming 0/3000148", or the command line of the postmaster.
    pub title: String,
}

/// Every process whose working directory is this data directory.
pub(crate) fn of(data: &Path) -> Vec<ServerProcess> {
    let pids = inhabitants(data).into_iter();
    let titled = pids.filter_map(|pid| Some(ServerProcess { pid, title: title(pid)? }));
    titled.collect()
}

fn title(pid: u32) -> Option<String> {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let text = String::from_utf8_lossy(&raw).replace('\0', " ");
    let text = text.trim();
    Some(text.strip_prefix("postgres: ").unwrap_or(text).to_owned())
}

/// Sends a signal; a process that is already gone is no error.
pub(crate) fn signal(pid: u32, signal: Signal) -> Result<()> {
    let Some(target) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    match kill_process(target, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).doing(|| format!("cannot signal process {pid}")),
    }
}
