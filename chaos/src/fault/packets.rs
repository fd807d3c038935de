//! Packets that vanish, with nftables.
//!
//! They are dropped on the receiving side (`input`): a drop in `output` on the same host is seen by the sender's
//! own stack, which then uses its persist timer and never notices a dead peer.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::cluster::{Result, command};

use super::Guard;

const LIMIT: Duration = Duration::from_secs(10);

static NUMBER: AtomicU32 = AtomicU32::new(0);

pub(super) fn inject(port: u16, larger_than: Option<u32>, both_ways: bool) -> Result<Guard> {
    // A table of our own: removing it removes everything, and nobody else's rules are touched.
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let table = format!("tidegate_{}_{number}", std::process::id());
    nft(&rules(&table, port, larger_than, both_ways))?;
    Ok(Guard::new(move || nft(&format!("delete table inet {table}\n"))))
}

/// Removes the tables of processes that are gone: SIGKILL heals nothing.
pub fn sweep() {
    if super::catalogue::needs_root_and("nft").is_some() {
        return;
    }
    let Ok(text) = command::run(Command::new("nft").args(["list", "tables"]), "", LIMIT) else { return };
    for table in text.lines().filter_map(abandoned) {
        // Somebody else's sweep may have been faster.
        let _ = nft(&format!("delete table inet {table}\n"));
    }
}

/// The table's name, when it is one of ours and its process is gone.
fn abandoned(line: &str) -> Option<&str> {
    let table = line.strip_prefix("table inet ")?.trim();
    let (pid, _) = table.strip_prefix("tidegate_")?.split_once('_')?;
    let pid: u32 = pid.parse().ok()?;
    (!Path::new("/proc").join(pid.to_string()).exists()).then_some(table)
}

fn rules(table: &str, port: u16, larger_than: Option<u32>, both_ways: bool) -> String {
    let size = larger_than.map(|bytes| format!("ip length > {bytes} ")).unwrap_or_default();
    let back = if both_ways { format!("    tcp sport {port} {size}drop\n") } else { String::new() };
    format!(
        "table inet {table} {{\n  chain input {{\n    type filter hook input priority 0;\n    \
         tcp dport {port} {size}drop\n{back}  }}\n}}\n"
    )
}

fn nft(script: &str) -> Result<()> {
    command::run(Command::new("nft").args(["-f", "-"]), script, LIMIT).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tables_of_dead_processes_are_swept() {
        // Healing another run's fault would make its verdict worthless. No process has an id above 2^22.
        let ours = format!("table inet tidegate_{}_0", std::process::id());

        assert_eq!(abandoned(&ours), None);
        assert_eq!(abandoned("table inet filter"), None);
        assert_eq!(abandoned("table inet tidegate_99999999_3"), Some("tidegate_99999999_3"));
    }

    #[test]
    fn packets_are_dropped_where_they_arrive() {
        // A drop in the output hook is no blackhole.
        let text = rules("t", 5432, Some(600), false);

        assert!(text.contains("hook input"), "{text}");
        assert!(text.contains("tcp dport 5432 ip length > 600 drop"), "{text}");
        assert!(!text.contains("sport"), "{text}");
    }
}
