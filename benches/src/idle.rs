//! Memory held for sessions that are logged in and do nothing.

use std::fmt::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::environment::Environment;
use crate::process::check_interrupted;
use crate::session;
use crate::subject::{Demand, Kind};
use crate::usage::resident_kib;

/// What a subject may still be doing after the last login (freeing buffers, say) is over by then.
const SETTLE: Duration = Duration::from_secs(1);

/// Resident memory of one subject around the opening of the sessions.
#[derive(Debug, Clone, Copy)]
struct Growth {
    before_kib: u64,
    after_kib: u64,
}

/// Opens `sessions` sessions to each of these subjects in turn and shows a table. Fails at the first that refuses.
pub fn table(environment: &Environment, kinds: &[Kind], sessions: u32) -> Result<String> {
    let mut text =
        format!("\n| subject | sessions | RSS before MiB | RSS with them MiB | KiB per session |\n{RULE}\n");
    for &kind in kinds {
        let growth = measure(environment, kind, sessions).with_context(|| kind.name())?;
        let grown_tenths = growth.after_kib.saturating_sub(growth.before_kib) * 10 / u64::from(sessions);
        writeln!(
            text,
            "| {} | {sessions} | {} | {} | {} |",
            kind.name(),
            tenths(growth.before_kib * 10 / 1024),
            tenths(growth.after_kib * 10 / 1024),
            tenths(grown_tenths),
        )?;
    }
    Ok(text)
}

const RULE: &str = "|---|---:|---:|---:|---:|";

/// A number of tenths with its decimal point.
fn tenths(number: u64) -> String {
    format!("{}.{}", number / 10, number % 10)
}

fn measure(environment: &Environment, kind: Kind, sessions: u32) -> Result<Growth> {
    let subject = kind.start(environment, Demand::Plain)?;
    let processes = subject.processes();
    ensure!(!processes.is_empty(), "it has no process of its own to measure");
    let before_kib = resident_kib(&processes)?;
    let held = open(subject.port, sessions)?;
    std::thread::sleep(SETTLE);
    let after_kib = resident_kib(&subject.processes())?;
    drop(held);
    Ok(Growth { before_kib, after_kib })
}

fn open(port: u16, sessions: u32) -> Result<Vec<TcpStream>> {
    (0..sessions)
        .map(|number| {
            check_interrupted()?;
            session::log_in(port).with_context(|| format!("login {} of {sessions}", number + 1))
        })
        .collect()
}
