//! What the kernel does about a peer that says nothing.

use std::time::Duration;

use crate::wait_for;

/// Longer than a busy machine takes to have everything acknowledged.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long the idle TCP connection with this local port may be dead before the kernel asks, by its timer
/// (`Documentation/networking/proc_net_tcp.rst`: a timer of kind 2, in hundredths of a second).
pub async fn keepalive_of(local_port: u16) -> Duration {
    // It has another timer while something is not acknowledged, and may be passed over while the table changes.
    wait_for(PATIENCE, "a keepalive timer", async || timer(local_port)).await
}

fn timer(local_port: u16) -> Option<Duration> {
    const ESTABLISHED: &str = "01";
    const KEEPALIVE: &str = "02";
    let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
    let local = format!(":{local_port:04X}");
    table.lines().find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [_, from, _, state, _, timer, ..] = columns.as_slice() else { return None };
        let (kind, ticks) = timer.split_once(':')?;
        let is_it = from.ends_with(&local) && *state == ESTABLISHED && kind == KEEPALIVE;
        is_it.then(|| u64::from_str_radix(ticks, 16).ok().map(|ticks| Duration::from_millis(ticks * 10)))?
    })
}
