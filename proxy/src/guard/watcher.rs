//! Looks at backends that take long, buries those that are gone, and follows up doubts. On the control thread.

use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use tidegate_layers::breaker::{Probe as _, Session};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::{Guard, reports};
use crate::exchange::{Cause, Diagnosis};
use crate::pool::Upstream;
use crate::probe::Wait;
use crate::probe::looks::{end_idle, look};
use crate::session::registry::Signal;
use crate::sql::Lane;

/// Between two looks at backends that take long.
const PERIOD: Duration = Duration::from_millis(100);
/// A backend is looked at when its exchange has run for so long: the least at which a breaker calls it stuck.
const LONG: Duration = Duration::from_millis(200);
/// How long a look may take: a server that takes longer says nothing, and whoever wants to know why needs the
/// connection.
const LOOK: Duration = Duration::from_millis(200);
/// How long the answer to a doubt may take.
const DOUBT: Duration = Duration::from_millis(500);

/// Watches one upstream for as long as it is there.
pub(super) async fn watch(upstream: Weak<Upstream>) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pulse = reports::Follower::default();
    loop {
        let Some(here) = upstream.upgrade() else { return };
        let guard = &here.guard;
        tokio::select! {
            _ = ticks.tick() => {}
            () = guard.asked.notified() => {}
        }
        if guard.is_doubted() && guard.is_primary() {
            follow_up(&here).await;
        }
        take_looks(&here).await;
        pulse.follow(&here);
    }
}

/// Looks at what takes long, and at zombies: one question, and none while there is nothing to look at.
async fn take_looks(upstream: &Upstream) {
    let guard = &upstream.guard;
    let zombies = guard.zombies.process_ids();
    let mut slow = guard.slots.running_longer_than(LONG);
    // What has waited in a queue of ours may be late without having run for long.
    slow.append(&mut guard.asked_for.lock().unwrap_or_else(PoisonError::into_inner));
    if !slow.is_empty() {
        // What was seen before stays when nothing can be seen now.
        let asked = Instant::now();
        let _ = timeout(LOOK, guard.looks.refresh(&guard.control, &slow)).await;
        let waits = |pid| {
            let look = guard.looks.since(asked, pid);
            look.is_some_and(|look| look.waits_as_a_write() || look.wait == Wait::Lock)
        };
        guard.slots.signal(Signal::Learn, waits);
    }
    if !zombies.is_empty() {
        look_at_zombies(guard, &zombies).await;
    }
}

/// Buries the dead. One that is idle has nothing more to do, and may wait for ever for a connection whose end never came
/// there: it is ended, and buried at the next look.
async fn look_at_zombies(guard: &Guard, zombies: &[u32]) {
    let deadline = Instant::now() + Duration::from_secs(1);
    let Ok(alive) = look(&guard.control, zombies, deadline).await else {
        return guard.zombies.bury(&[], |_| true);
    };
    guard.zombies.bury(zombies, |pid| alive.contains_key(&pid));
    let is_idle = |pid| alive.get(&pid).is_some_and(|look| look.wait == Wait::Idle);
    let idle = guard.zombies.ages(is_idle, Instant::now());
    if idle.is_empty() {
        return;
    }
    if let Err(error) = end_idle(&guard.control, &idle, deadline).await {
        let error = &error as &dyn std::error::Error;
        tracing::debug!(error, "cannot end backends that were given up on");
    }
}

/// A server refused a write. Whether it refuses all of them is asked before anybody else has to try.
async fn follow_up(upstream: &Arc<Upstream>) {
    let guard = &upstream.guard;
    // Its outcome is in the pulse.
    let _ = timeout(DOUBT, guard.write_probe.probe(Session::Kept)).await;
    if let Some(cause @ (Cause::ReadOnly | Cause::InRecovery)) = guard.write_probe.pulse().finding() {
        guard.breaker(Lane::Write).report(Arc::new(Diagnosis::of(cause)));
    }
}
