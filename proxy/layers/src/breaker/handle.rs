//! The side of the breaker that calls see: atomics, no decisions.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::config::BreakerConfig;
use super::error::CircuitOpen;
use super::event::Force;
use super::phase::{Phase, Word};
use super::slots::SlotTable;
use super::tally::{Outcome, Tally};

/// Reports beyond this many are dropped: the first decides.
pub(super) const REPORTS_MAX: usize = 16;

/// What the watchdog is told between two ticks.
#[derive(Debug)]
pub(super) enum Report<C> {
    Proof(C),
    /// There is a new order: look at [`Handle::force`].
    Ordered,
    /// What was seen is void.
    Renewed,
    /// Work is asked for from now on.
    Expected,
}

/// Admits calls and takes in how they end. Clones share everything.
///
/// An admission is one atomic load; a completion three or four relaxed writes. Nothing is allocated or locked,
/// except that a refusal reads the cause under a lock that is held for the time of a clone.
pub struct Handle<C> {
    shared: Arc<Shared<C>>,
}

struct Shared<C> {
    base: Instant,
    word: AtomicU64,
    /// Milliseconds since `base`.
    retry_at: AtomicU64,
    force: AtomicU8,
    cause: RwLock<Option<C>>,
    /// What the watchdog is to go by, as long as it has not seen it.
    config: Mutex<Option<BreakerConfig>>,
    tally: Tally,
    slots: SlotTable,
    reports: mpsc::Sender<Report<C>>,
}

/// The right to make one call, and what has to be known when it completes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "tell how the call ended: Handle::complete"]
pub struct Ticket {
    epoch: u64,
    started: Instant,
}

impl Ticket {
    /// When the call was admitted.
    pub const fn started(&self) -> Instant {
        self.started
    }
}

impl<C: Clone> Handle<C> {
    pub(super) fn new(slots: usize) -> (Self, mpsc::Receiver<Report<C>>) {
        let (reports, receiver) = mpsc::channel(REPORTS_MAX);
        let shared = Shared {
            base: Instant::now(),
            word: AtomicU64::new(Word { phase: Phase::Closed, epoch: 0 }.pack()),
            retry_at: AtomicU64::new(0),
            force: AtomicU8::new(0),
            cause: RwLock::new(None),
            config: Mutex::new(None),
            tally: Tally::new(),
            slots: SlotTable::new(slots),
            reports,
        };
        (Self { shared: Arc::new(shared) }, receiver)
    }

    /// May a call be made?
    ///
    /// # Errors
    /// Not now, with the cause as far as it is known.
    pub fn admit(&self, now: Instant) -> Result<Ticket, CircuitOpen<C>> {
        let word = self.word();
        if word.phase.admits() {
            Ok(Ticket { epoch: word.epoch, started: now })
        } else {
            Err(self.refusal(now))
        }
    }

    /// The call ended. One of an older epoch is counted as a straggler and nothing else.
    pub fn complete(&self, ticket: Ticket, outcome: Outcome, now: Instant) {
        self.finish(ticket, now.saturating_duration_since(ticket.started), outcome, now);
    }

    /// As [`complete`](Self::complete), for whoever has measured already how long the call took.
    pub fn complete_after(&self, ticket: Ticket, elapsed: Duration, outcome: Outcome, now: Instant) {
        self.finish(ticket, elapsed, outcome, now);
    }

    /// Proof that the service cannot do its work: trips without confirmation, as soon as the watchdog runs.
    /// Cheap to repeat; dropped when sixteen reports wait already.
    pub fn report(&self, cause: C) {
        // Full: the ones before it will trip. Closed: there is no watchdog that could.
        drop(self.shared.reports.try_send(Report::Proof(cause)));
    }

    /// What was seen so far says nothing about the service of now, which was seen to work: calls are let through, by
    /// the ramp. Orders stay in force. Whether it will be heard: not when sixteen reports wait already.
    pub fn renew(&self) -> bool {
        self.shared.reports.try_send(Report::Renewed).is_ok()
    }

    /// From now on the service is to do this work: a probe is due at once.
    pub fn expect(&self) {
        // Full: there will be a probe soon enough.
        drop(self.shared.reports.try_send(Report::Expected));
    }

    /// Orders the breaker open or closed, or leaves it to itself again. The last order holds.
    pub fn force(&self, force: Force) {
        self.shared.force.store(force as u8, Ordering::Relaxed);
        // If the channel is full the next tick sees it.
        drop(self.shared.reports.try_send(Report::Ordered));
    }

    /// Other rules, from the watchdog's next tick on. What it is doing goes on; `tick` stays as it is, and where a rate
    /// looks further back or less far than before it is counted anew.
    pub fn configure(&self, config: BreakerConfig) {
        *self.shared.config.lock().unwrap_or_else(PoisonError::into_inner) = Some(config);
    }

    /// Rules that the watchdog has not seen yet.
    pub(super) fn new_config(&self) -> Option<BreakerConfig> {
        self.shared.config.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// What the breaker is doing.
    pub fn phase(&self) -> Phase {
        self.word().phase
    }

    /// What is wrong, as far as it is known.
    pub fn cause(&self) -> Option<C> {
        self.shared.cause.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The calls in flight. Begin and end each admitted call there, or hangs are not seen.
    pub fn slots(&self) -> &SlotTable {
        self.table()
    }

    /// Completions that came after their epoch was over.
    pub fn stragglers(&self) -> u64 {
        self.shared.tally.stragglers()
    }

    fn refusal(&self, now: Instant) -> CircuitOpen<C> {
        let retry_at = Duration::from_millis(self.shared.retry_at.load(Ordering::Relaxed));
        let elapsed = now.saturating_duration_since(self.shared.base);
        let retry_after = retry_at.saturating_sub(elapsed).max(RETRY_MIN);
        CircuitOpen { cause: self.cause(), retry_after }
    }
}

/// What a refusal says when the service should be back already: one probe may still fail.
const RETRY_MIN: Duration = Duration::from_millis(500);

/// What needs no cause.
impl<C> Handle<C> {
    pub(super) fn finish(&self, ticket: Ticket, elapsed: Duration, outcome: Outcome, now: Instant) {
        if ticket.epoch == self.word().epoch {
            self.shared.tally.record(outcome, elapsed, now);
        } else {
            self.shared.tally.straggler();
        }
    }

    pub(super) fn table(&self) -> &SlotTable {
        &self.shared.slots
    }

    pub(super) fn tally(&self) -> &Tally {
        &self.shared.tally
    }

    pub(super) fn ordered(&self) -> Force {
        match self.shared.force.load(Ordering::Relaxed) {
            1 => Force::Open,
            2 => Force::Closed,
            _ => Force::Auto,
        }
    }

    /// Makes a decision effective. The cause first: whoever is refused by the new phase must find it.
    pub(super) fn publish(&self, phase: Phase, epoch: u64, cause: Option<C>, retry_at: Option<Instant>) {
        *self.shared.cause.write().unwrap_or_else(PoisonError::into_inner) = cause;
        if let Some(retry_at) = retry_at {
            let millis = retry_at.saturating_duration_since(self.shared.base).as_millis();
            self.shared.retry_at.store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        self.shared.word.store(Word { phase, epoch }.pack(), Ordering::Release);
    }

    fn word(&self) -> Word {
        Word::unpack(self.shared.word.load(Ordering::Acquire))
    }
}

impl<C> Clone for Handle<C> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<C> fmt::Debug for Handle<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("word", &self.word()).finish_non_exhaustive()
    }
}
