//! What a hand-off shows without its lock: whoever watches it never waits for those who use it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::time::Instant;

use super::handoff::{Lane, LaneStats};
use super::queue::AdmitQueue;

/// No one waits.
const NEVER: u64 = 0;

/// Figures as of the last change. Each is right for itself; two of them may be from different moments.
#[derive(Debug)]
pub(super) struct Board {
    base: Instant,
    idle: AtomicUsize,
    lanes: Box<[Figures]>,
}

#[derive(Debug, Default)]
struct Figures {
    in_flight: AtomicUsize,
    waiting: AtomicUsize,
    limit: AtomicUsize,
    /// Microseconds since `base`, and one.
    waiting_since: AtomicU64,
}

impl Board {
    pub(super) fn new(lanes: &[AdmitQueue<usize>]) -> Self {
        let board = Self {
            base: Instant::now(),
            idle: AtomicUsize::new(0),
            lanes: lanes.iter().map(|_| Figures::default()).collect(),
        };
        board.show(lanes, &mut lanes.iter().map(|_| None).collect::<Vec<_>>(), 0);
        board
    }

    /// Called by whoever holds the lock of what is shown. `longest` is since when the longest waiting of each lane has
    /// waited, as it was shown last: that changes less often than the rest, and costs most.
    pub(super) fn show(&self, lanes: &[AdmitQueue<usize>], longest: &mut [Option<Instant>], idle: usize) {
        for (lane, (queue, longest)) in lanes.iter().zip(longest).enumerate() {
            self.show_flight(lane, queue, idle);
            let Some(figures) = self.lanes.get(lane) else { continue };
            figures.waiting.store(queue.waiting(), Ordering::Relaxed);
            let since = queue.waiting_since();
            if since != *longest {
                *longest = since;
                let micros = since.map_or(NEVER, |at| self.micros(at));
                figures.waiting_since.store(micros, Ordering::Relaxed);
            }
        }
    }

    /// As [`Board::show`], where nothing has changed but what is idle and in flight in one lane.
    #[inline]
    pub(super) fn show_flight(&self, lane: Lane, queue: &AdmitQueue<usize>, idle: usize) {
        self.idle.store(idle, Ordering::Relaxed);
        if let Some(figures) = self.lanes.get(lane) {
            figures.in_flight.store(queue.in_flight(), Ordering::Relaxed);
            figures.limit.store(queue.limit().current(), Ordering::Relaxed);
        }
    }

    fn micros(&self, at: Instant) -> u64 {
        let micros = at.saturating_duration_since(self.base).as_micros();
        u64::try_from(micros).unwrap_or(u64::MAX - 1) + 1
    }

    pub(super) fn idle(&self) -> usize {
        self.idle.load(Ordering::Relaxed)
    }

    pub(super) fn stats(&self, lane: Lane) -> Option<LaneStats> {
        self.lanes.get(lane).map(|figures| {
            let since = figures.waiting_since.load(Ordering::Relaxed);
            LaneStats {
                in_flight: figures.in_flight.load(Ordering::Relaxed),
                waiting: figures.waiting.load(Ordering::Relaxed),
                limit: figures.limit.load(Ordering::Relaxed),
                waiting_since: (since != NEVER)
                    .then(|| self.base + std::time::Duration::from_micros(since - 1)),
            }
        })
    }
}
