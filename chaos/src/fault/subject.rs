//! Faults of the subject itself.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cluster::{Doing, Error, Result, Signal, command};
use crate::daemon::Daemon;
use crate::subject::{CONFIG, STATE, Subject};

use super::{Guard, threads};

/// What names of threads that carry traffic contain; the kernel keeps fifteen bytes of them.
const WORKER: &str = "worker";

const LIMIT: Duration = Duration::from_secs(10);

/// What happens to the subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SubjectFault {
    /// SIGKILL; healed by starting it again.
    Kill,
    /// SIGSTOP.
    Freeze,
    /// Its configuration is cut off in the middle, and SIGHUP sent.
    TornConfig,
    /// Its configuration lists no upstream, and SIGHUP is sent.
    EmptyMap,
    /// Its configuration lists other servers than all that it uses, and SIGHUP is sent.
    WrongMap,
    /// The threads that carry traffic stop, and no other.
    BlockWorkers,
    /// The folder of its journal and outbox has no space left.
    StateFull,
}

impl std::fmt::Display for SubjectFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kill => "proxy killed",
            Self::Freeze => "proxy frozen",
            Self::TornConfig => "torn configuration",
            Self::EmptyMap => "empty node list",
            Self::WrongMap => "node list of another cluster",
            Self::BlockWorkers => "proxy's workers blocked",
            Self::StateFull => "state folder full",
        })
    }
}

pub(super) fn inject(subject: &Subject, what: SubjectFault) -> Result<Guard> {
    let none = || Error::Unsupported { what: what.to_string(), why: "the subject has no process".to_owned() };
    let daemon = Arc::clone(subject.daemon().ok_or_else(none)?);
    match what {
        SubjectFault::Kill => {
            daemon.kill();
            Ok(Guard::new(move || daemon.resume()))
        }
        SubjectFault::Freeze => {
            daemon.signal(Signal::STOP)?;
            Ok(Guard::new(move || daemon.signal(Signal::CONT)))
        }
        SubjectFault::TornConfig => reconfigure(daemon, |text| text[..text.len() / 2].to_owned()),
        SubjectFault::EmptyMap => reconfigure(daemon, |text| with_upstreams(text, "[]")),
        // Ports that are in nobody's range: to connect is refused at once.
        SubjectFault::WrongMap => {
            reconfigure(daemon, |text| with_upstreams(text, "[\"127.0.0.1:1\", \"127.0.0.1:2\"]"))
        }
        SubjectFault::BlockWorkers => threads::stop(&daemon, WORKER),
        SubjectFault::StateFull => fill(&daemon.dir().join(STATE)),
    }
}

/// Writes into the very file, as a careless tool does, and asks for a reload.
fn reconfigure(daemon: Arc<Daemon>, change: impl FnOnce(&str) -> String) -> Result<Guard> {
    let path = daemon.dir().join(CONFIG);
    let before = fs::read_to_string(&path).doing_to("read", &path)?;
    fs::write(&path, change(&before)).doing_to("write", &path)?;
    daemon.signal(Signal::HUP)?;
    Ok(Guard::new(move || {
        fs::write(&path, before).doing_to("write", &path)?;
        daemon.signal(Signal::HUP)
    }))
}

fn with_upstreams(text: &str, list: &str) -> String {
    let line = format!("upstreams = {list}");
    let is_list = |line: &&str| line.trim_start().starts_with("upstreams");
    let lines = text.lines().map(|old| if is_list(&old) { line.as_str() } else { old });
    lines.collect::<Vec<_>>().join("\n")
}

/// A tiny filesystem over the folder, full.
fn fill(state: &Path) -> Result<Guard> {
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=64k,mode=0777", "tidegate-state"]).arg(state);
    command::run(&mut mount, "", LIMIT)?;
    let state = state.to_owned();
    let ballast = state.join("ballast");
    let guard = Guard::new(move || {
        command::run(Command::new("umount").arg("--lazy").arg(&state), "", LIMIT).map(drop)
    });
    // Fails when the space is used up, which is the purpose.
    let _ = fs::write(ballast, vec![0_u8; 128 << 10]);
    Ok(guard)
}
