//! The rounds over what may be overdue.
//!
//! Deadlines are kept here and not by timers: an exchange costs none. It runs on a thread of its own, which sleeps in
//! between; a timer of a runtime would wake that three times for each round, and nothing else is due as often. While
//! nobody waits, no write is slow and nothing is due soon it sleeps longer: to wake up costs more than to look.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use crate::clock;
use crate::pool::Upstream;
use crate::server::Shared;
use crate::session::registry::{Phase, Signal};
use crate::watchdog::Who;

/// Between two sweeps while somebody waits in a queue, something is due soon, or writes are slow: how late a deadline is
/// noticed, or that a write has taken the last idle backend.
const BUSY: Duration = Duration::from_millis(10);
/// Else. What is set meanwhile and due earlier than this is noticed that much late; nobody sets such deadlines but to
/// see what happens.
const QUIET: Duration = Duration::from_millis(50);
/// Between two looks at idle backends and idle sessions.
const ROUND: Duration = Duration::from_millis(250);

/// Sweeps from now until the end of the process. What a sweep begins, such as to close an idle backend, goes on
/// in `runtime`.
///
/// # Errors
/// When there can be no further thread.
pub fn start(shared: &Arc<Shared>, runtime: Handle) -> io::Result<()> {
    let shared = Arc::clone(shared);
    let sweeping = move || {
        let _runtime = runtime.enter();
        let mut looked = Instant::now();
        let mut pause = BUSY;
        loop {
            std::thread::sleep(pause);
            shared.watchdog.count(Who::Sweep);
            let upstreams = shared.routes.tended();
            pause = sweep(&shared, &upstreams);
            if looked.elapsed() >= ROUND {
                looked = Instant::now();
                look_at_idle_ones(&shared, &upstreams);
            }
        }
    };
    std::thread::Builder::new().name("tidegate-sweep".to_owned()).spawn(sweeping).map(drop)
}

/// Gives the pause until the next sweep.
fn sweep(shared: &Shared, upstreams: &[Arc<Upstream>]) -> Duration {
    clock::tick();
    let (now, now_ms) = (tokio::time::Instant::now(), clock::now_ms());
    let soon = now_ms + clock::millis(QUIET);
    let mut busy = false;
    for upstream in upstreams {
        busy |= upstream.guard.slots.sweep(now_ms).is_some_and(|next| next <= soon);
        for pool in upstream.pools() {
            busy |= pool.sweep_waiters(now);
        }
    }
    // Not of those that are being given up.
    for upstream in shared.routes.upstreams() {
        busy |= upstream.keep_spares(now);
    }
    if busy { BUSY } else { QUIET }
}

fn look_at_idle_ones(shared: &Shared, upstreams: &[Arc<Upstream>]) {
    for upstream in upstreams {
        for pool in upstream.pools() {
            pool.sweep_idle();
        }
        upstream.drop_unused_pools();
    }
    shared.routes.wind_down();
    let timeouts = shared.config.load().timeouts;
    for entry in shared.registry.all() {
        let (phase, since) = entry.phase();
        let limit = match phase {
            Phase::Idle => entry.idle.outside(timeouts.idle_session),
            Phase::IdleInTransaction => entry.idle.in_transaction(timeouts.idle_in_transaction),
            Phase::Login | Phase::Queued | Phase::Active => Duration::ZERO,
        };
        if limit > Duration::ZERO && clock::since(since) > limit {
            entry.signal(Signal::Overdue);
        }
    }
}
