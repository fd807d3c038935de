//! The round every 10 ms over what may be overdue.
//!
//! Deadlines are kept here and not by timers: an exchange costs none. It runs on a thread of its own, which sleeps in
//! between; a timer of a runtime would wake that three times for each round, and nothing else is due as often.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::clock;
use crate::pool::Upstream;
use crate::server::Shared;
use crate::session::registry::{Phase, Signal};
use crate::watchdog::Who;

/// Its period.
const SWEEP: Duration = Duration::from_millis(10);
/// Sweeps between two looks at idle backends and idle sessions.
const SWEEPS_PER_ROUND: u64 = 25;

/// Sweeps from now until the end of the process. What a sweep begins, such as to close an idle backend, goes on
/// in `runtime`.
///
/// # Errors
/// When there can be no further thread.
pub fn start(shared: &Arc<Shared>, runtime: Handle) -> io::Result<()> {
    let shared = Arc::clone(shared);
    let sweeping = move || {
        let _runtime = runtime.enter();
        for round in 1.. {
            std::thread::sleep(SWEEP);
            shared.watchdog.count(Who::Sweep);
            sweep(&shared, round);
        }
    };
    std::thread::Builder::new().name("tidegate-sweep".to_owned()).spawn(sweeping).map(drop)
}

fn sweep(shared: &Shared, round: u64) {
    clock::tick();
    let now = tokio::time::Instant::now();
    let upstreams = shared.routes.tended();
    for upstream in &upstreams {
        upstream.guard.slots.sweep(clock::now_ms());
        for pool in upstream.pools() {
            pool.sweep_waiters(now);
        }
    }
    if round.is_multiple_of(SWEEPS_PER_ROUND) {
        look_at_idle_ones(shared, &upstreams);
    }
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
