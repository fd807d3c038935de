//! The breakers: one per lane, each with its watchdog.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use tidegate_layers::breaker::{Change, Handle, Outcome, Senses, Ticket, Watchdog};
use tidegate_layers::shed::Handoff;
use tidegate_layers::{BreakerConfig, CircuitOpen};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::connector::Connector;
use crate::control::Control;
use crate::names;
use crate::probe::LaneProbe;
use crate::words::{Cause, Lane};

/// A sidecar that refuses a lane is believed this long; then it is asked again.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The breaker of a lane, and what the sidecar said of it.
#[derive(Debug)]
pub(crate) struct LaneBreaker {
    handle: Handle<Cause>,
    gate: Arc<Gate>,
}

/// What a sidecar says of its own lane: while it refuses, it need not be asked.
#[derive(Debug)]
pub(crate) struct Gate {
    lane: Lane,
    permits: Handoff<()>,
    /// Whether there may be a pause: as long as there is none, nobody takes the lock.
    is_paused: AtomicBool,
    paused: Mutex<Option<Pause>>,
}

#[derive(Debug, Clone, Copy)]
struct Pause {
    until: Instant,
    cause: Option<Cause>,
}

impl LaneBreaker {
    /// A closed breaker, and the task that decides. Must be called within a runtime.
    pub(crate) fn start(lane: Lane, parts: &Parts) -> (Self, AbortHandle) {
        let Parts { pool, config, permits, ceilings, connector, control } = parts;
        let gate = Arc::new(Gate {
            lane,
            permits: permits.clone(),
            is_paused: AtomicBool::new(false),
            paused: Mutex::default(),
        });
        let senses = Senses {
            probe: LaneProbe::new(lane, Arc::clone(connector), Arc::clone(&gate)),
            diagnose: control.clone(),
            events: listener(lane, pool.clone(), permits.clone(), ceilings[lane.index()]),
            random: SmallRng::from_rng(&mut rand::rng()),
        };
        let (handle, watchdog) = Watchdog::new(*config, ceilings[lane.index()], senses);
        names::breaker(pool, lane, handle.phase());
        let task = tokio::spawn(watchdog.run()).abort_handle();
        (Self { handle, gate }, task)
    }

    /// May something be sent?
    pub(crate) fn admit(&self, now: Instant) -> Result<Ticket, CircuitOpen<Cause>> {
        let ticket = self.handle.admit(now)?;
        self.gate.look(now)?;
        Ok(ticket)
    }

    /// A sidecar refuses the lane.
    pub(crate) fn pause(&self, after: Duration, cause: Option<Cause>) {
        self.gate.pause(after, cause);
    }

    pub(crate) fn complete(&self, ticket: Ticket, outcome: Outcome, now: Instant) {
        self.handle.complete(ticket, outcome, now);
    }

    /// Proof that the lane cannot do its work.
    pub(crate) fn report(&self, cause: Cause) {
        self.handle.report(cause);
    }

    pub(crate) fn handle(&self) -> &Handle<Cause> {
        &self.handle
    }
}

impl Gate {
    fn look(&self, now: Instant) -> Result<(), CircuitOpen<Cause>> {
        if self.is_paused.load(Ordering::Acquire) { self.look_at_pause(now) } else { Ok(()) }
    }

    fn look_at_pause(&self, now: Instant) -> Result<(), CircuitOpen<Cause>> {
        let mut paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Pause { until, cause }) = *paused
            && now < until
        {
            return Err(CircuitOpen { cause, retry_after: until.saturating_duration_since(now) });
        }
        *paused = None;
        self.is_paused.store(false, Ordering::Release);
        Ok(())
    }

    /// Refuses who comes and who waits, for a while.
    pub(crate) fn pause(&self, after: Duration, cause: Option<Cause>) {
        let until = Instant::now() + after.min(PAUSE_MAX);
        let mut paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        *paused = Some(Pause { until, cause });
        self.is_paused.store(true, Ordering::Release);
        drop(paused);
        self.permits.flush(self.lane.index());
    }
}

/// What breakers are made of.
pub(crate) struct Parts {
    pub(crate) pool: Arc<str>,
    pub(crate) config: BreakerConfig,
    pub(crate) permits: Handoff<()>,
    pub(crate) ceilings: [usize; 2],
    pub(crate) connector: Arc<Connector>,
    pub(crate) control: Control,
}

/// Tells of each change, refuses whoever waits when the lane closes, and limits the lane while it ramps up.
fn listener(
    lane: Lane,
    pool: Arc<str>,
    permits: Handoff<()>,
    ceiling: usize,
) -> impl FnMut(&Change<Cause>) + Send + 'static {
    move |change| {
        permits.set_ramp(lane.index(), change.to.ramp_limit(ceiling));
        if !change.to.admits() {
            permits.flush(lane.index());
        }
        names::breaker(&pool, lane, change.to);
        let cause = change.cause.unwrap_or_default();
        tracing::info!(
            pool = &*pool,
            lane = lane.word(),
            from = change.from.name(),
            to = change.to.name(),
            cause = cause.word(),
            evidence = ?change.evidence,
            "breaker changed"
        );
    }
}
