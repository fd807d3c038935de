//! What works on this machine, and why the rest does not.

use std::path::Path;
use std::{env, fs};

use super::{Fault, Link, Processes, SubjectFault};

/// One line of `tidegate-chaos faults`.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Name as in scenario files.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    /// Why it does not work here.
    pub obstacle: Option<String>,
}

/// Every fault, by its name in scenario files.
pub fn catalogue() -> Vec<Entry> {
    faults().into_iter().map(|(name, what, fault)| Entry { name, what, obstacle: fault.obstacle() }).collect()
}

fn faults() -> Vec<(&'static str, &'static str, Fault)> {
    let node = || "primary".to_owned();
    let pair = || ("primary".to_owned(), "s1".to_owned());
    let ((from, to), (from_2, to_2)) = (pair(), pair());
    let subject = |what| Fault::Subject { what };
    vec![
        (
            "freeze",
            "SIGSTOP: whole server, postmaster, walreceiver, …",
            Fault::Freeze { node: node(), what: Processes::All },
        ),
        ("kill", "SIGKILL: a crash", Fault::Kill { node: node(), what: Processes::All }),
        (
            "dead-standby-name",
            "synchronous_standby_names names nobody",
            Fault::DeadStandbyName { node: node() },
        ),
        ("failover", "primary dies, standby is promoted", Fault::Failover { from, to }),
        ("split-brain", "standby promoted, old primary lives", Fault::SplitBrain { from: from_2, to: to_2 }),
        ("read-only", "default_transaction_read_only", Fault::ReadOnly { node: node() }),
        ("demote", "primary restarts as a standby", Fault::Demote { node: node() }),
        ("lock-storm", "row or table locked", Fault::LockStorm { node: node(), table: false }),
        (
            "prepared-orphan",
            "forgotten prepared transaction holds a row",
            Fault::PreparedOrphan { node: node() },
        ),
        (
            "connection-exhaustion",
            "max_connections used up",
            Fault::ConnectionExhaustion { node: node(), leave: 0 },
        ),
        ("restart", "fast or immediate", Fault::Restart { node: node(), immediate: false }),
        (
            "link",
            "relay: down, stall, latency, bandwidth, slice, reset, cut",
            Fault::Link { node: node(), link: Link::Down },
        ),
        (
            "drop-packets",
            "nftables: port unreachable, or only for large packets",
            Fault::DropPackets { node: node(), larger_than: None, both_ways: false },
        ),
        ("unplug", "network namespace: the cable to a server is pulled", Fault::Unplug { node: node() }),
        ("wal-freeze", "fsfreeze of pg_wal", Fault::WalFreeze { node: node() }),
        ("disk-full", "no space for WAL", Fault::DiskFull { node: node() }),
        ("deaf-webhook", "the receiver of alerts answers 503", Fault::DeafWebhook),
        (
            "burst",
            "more load than the pool can serve",
            Fault::Burst { reads_per_second: 100.0, sessions: 100 },
        ),
        ("subject kill", "the proxy crashes", subject(SubjectFault::Kill)),
        ("subject freeze", "the proxy is paused", subject(SubjectFault::Freeze)),
        ("subject torn-config", "half a configuration, then SIGHUP", subject(SubjectFault::TornConfig)),
        ("subject empty-map", "a configuration without upstreams", subject(SubjectFault::EmptyMap)),
        (
            "subject wrong-map",
            "a configuration with other servers than all in use",
            subject(SubjectFault::WrongMap),
        ),
        ("subject block-workers", "threads that carry traffic stop", subject(SubjectFault::BlockWorkers)),
        ("subject state-full", "no space for journal and outbox", subject(SubjectFault::StateFull)),
    ]
}

/// Numbers of capabilities, as in `linux/capability.h`.
const NET_ADMIN: u32 = 12;
const SYS_ADMIN: u32 = 21;

/// What is missing for a fault that needs root and a program.
pub(crate) fn needs_root_and(program: &str) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(why) = lacks_capability(&status, program) {
        return Some(why);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let found =
        env::split_paths(&path).any(|dir: std::path::PathBuf| Path::new(&dir).join(program).is_file());
    (!found).then(|| format!("needs the program {program}"))
}

/// Root in a container has a part of root's powers.
fn lacks_capability(status: &str, program: &str) -> Option<String> {
    let needed: &[(u32, &str)] = match program {
        "nft" => &[(NET_ADMIN, "CAP_NET_ADMIN")],
        // A namespace is made, and interfaces in it.
        "ip" => &[(SYS_ADMIN, "CAP_SYS_ADMIN"), (NET_ADMIN, "CAP_NET_ADMIN")],
        _ => &[(SYS_ADMIN, "CAP_SYS_ADMIN")],
    };
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(effective.trim(), 16).ok()?;
    let lacking = needed.iter().find(|(number, _)| effective & (1 << number) == 0);
    lacking.map(|(_, name)| format!("needs the capability {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_without_powers_is_told_before_the_run() {
        // A container's default set: without it a scenario would fail in the middle instead of being skipped.
        let container = "Name:\tx\nCapEff:\t00000000a80425fb\nSeccomp:\t2\n";
        let machine = "CapEff:\t000001ffffffffff\n";
        let network = "CapEff:\t0000000000001000\n";

        for program in ["nft", "ip", "mount", "fsfreeze"] {
            assert!(lacks_capability(container, program).is_some(), "{program}");
            assert_eq!(lacks_capability(machine, program), None, "{program}");
        }
        assert_eq!(lacks_capability(network, "nft"), None);
        assert!(lacks_capability(network, "mount").is_some());
    }
}
