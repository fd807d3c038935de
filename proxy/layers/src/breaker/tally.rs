//! Completed calls as they are counted on the hot path: a few relaxed atomics, drained by the watchdog.

use std::array;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::latency::{BUCKETS, bucket_of, micros_of};
use super::window::Counts;

/// How a call ended, as far as the health of the service is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The service did its work. An error that is the caller's fault is one, too.
    Ok,
    /// The service did its work, but took too long.
    Slow,
    /// The service failed, or did not answer in time.
    Failed,
    /// The service answered, but did not do what others may wait for: it has not failed, and they may be stuck all the same.
    Answered,
    /// Says nothing about the service: the caller went away.
    Ignored,
}

#[derive(Debug)]
pub(super) struct Tally {
    base: Instant,
    ok: AtomicU64,
    slow: AtomicU64,
    failed: AtomicU64,
    failures_in_a_row: AtomicU32,
    /// Microseconds since `base`, plus one; zero before the first.
    last_ok: AtomicU64,
    latencies: [AtomicU32; BUCKETS],
    /// Completions of an epoch that is over. For metrics only.
    stragglers: AtomicU64,
}

impl Tally {
    pub(super) fn new() -> Self {
        Self {
            base: Instant::now(),
            ok: AtomicU64::new(0),
            slow: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            failures_in_a_row: AtomicU32::new(0),
            last_ok: AtomicU64::new(0),
            latencies: array::from_fn(|_| AtomicU32::new(0)),
            stragglers: AtomicU64::new(0),
        }
    }

    pub(super) fn record(&self, outcome: Outcome, elapsed: Duration, now: Instant) {
        match outcome {
            Outcome::Ok => self.succeeded(&self.ok, elapsed, now),
            Outcome::Slow => self.succeeded(&self.slow, elapsed, now),
            Outcome::Failed => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                self.failures_in_a_row.fetch_add(1, Ordering::Relaxed);
            }
            Outcome::Answered => {
                self.ok.fetch_add(1, Ordering::Relaxed);
                self.has_not_failed();
            }
            Outcome::Ignored => {}
        }
    }

    pub(super) fn straggler(&self) {
        self.stragglers.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn stragglers(&self) -> u64 {
        self.stragglers.load(Ordering::Relaxed)
    }

    /// What completed since the last call.
    pub(super) fn drain(&self) -> Counts {
        let take = |count: &AtomicU64| count.swap(0, Ordering::Relaxed);
        Counts { ok: take(&self.ok), slow: take(&self.slow), failed: take(&self.failed) }
    }

    /// How long the calls took that completed since the last call.
    pub(super) fn drain_latencies(&self) -> [u32; BUCKETS] {
        array::from_fn(|bucket| self.latencies[bucket].swap(0, Ordering::Relaxed))
    }

    pub(super) fn failures_in_a_row(&self) -> u32 {
        self.failures_in_a_row.load(Ordering::Relaxed)
    }

    /// A new epoch starts with a clean slate: what failed before says nothing about now.
    pub(super) fn forget(&self) {
        self.drain();
        self.failures_in_a_row.store(0, Ordering::Relaxed);
    }

    /// Time since a call last did its work. `None` if none ever did.
    pub(super) fn since_ok(&self, now: Instant) -> Option<Duration> {
        let last = self.last_ok.load(Ordering::Relaxed).checked_sub(1)?;
        Some(now.saturating_duration_since(self.base).saturating_sub(Duration::from_micros(last)))
    }

    fn succeeded(&self, count: &AtomicU64, elapsed: Duration, now: Instant) {
        count.fetch_add(1, Ordering::Relaxed);
        self.latencies[bucket_of(elapsed)].fetch_add(1, Ordering::Relaxed);
        let micros = micros_of(now.saturating_duration_since(self.base));
        self.last_ok.store(micros.saturating_add(1), Ordering::Relaxed);
        self.has_not_failed();
    }

    fn has_not_failed(&self) {
        // Read first: in the steady state the line stays shared between cores.
        if self.failures_in_a_row.load(Ordering::Relaxed) != 0 {
            self.failures_in_a_row.store(0, Ordering::Relaxed);
        }
    }
}
