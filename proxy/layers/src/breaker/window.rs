//! Outcomes of the last ten seconds: ten buckets of one second, exact counts.
//!
//! Counts slide with time, not with calls, and are not averages: a long good past cannot outvote a bad present,
//! and a moving average cannot hide a total outage behind a burst.

use std::time::Duration;

use tokio::time::Instant;

const BUCKETS: usize = 10;
const WIDTH: Duration = Duration::from_secs(1);

/// Completed calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Did their work in time.
    pub ok: u64,
    /// Did their work, but slowly.
    pub slow: u64,
    /// Failed.
    pub failed: u64,
}

impl Counts {
    /// All of them.
    pub const fn calls(self) -> u64 {
        self.ok + self.slow + self.failed
    }

    /// Those that failed or were slow.
    pub const fn bad(self) -> u64 {
        self.slow + self.failed
    }

    const fn plus(self, other: Self) -> Self {
        Self { ok: self.ok + other.ok, slow: self.slow + other.slow, failed: self.failed + other.failed }
    }
}

/// The ring; see the [module](self).
#[derive(Debug)]
pub(super) struct Window {
    buckets: [Counts; BUCKETS],
    current: usize,
    /// When the current bucket began.
    began: Instant,
}

impl Window {
    pub(super) const fn new(now: Instant) -> Self {
        Self { buckets: [Counts { ok: 0, slow: 0, failed: 0 }; BUCKETS], current: 0, began: now }
    }

    pub(super) fn add(&mut self, counts: Counts, now: Instant) {
        self.slide(now);
        self.buckets[self.current] = self.buckets[self.current].plus(counts);
    }

    /// The sum over the last nine to ten seconds.
    pub(super) fn sum(&self) -> Counts {
        self.buckets.iter().fold(Counts::default(), |sum, bucket| sum.plus(*bucket))
    }

    pub(super) fn clear(&mut self, now: Instant) {
        *self = Self::new(now);
    }

    fn slide(&mut self, now: Instant) {
        let elapsed = now.duration_since(self.began);
        let steps = usize::try_from(elapsed.as_secs() / WIDTH.as_secs()).unwrap_or(BUCKETS);
        if steps >= BUCKETS {
            self.clear(now);
            return;
        }
        for _ in 0..steps {
            self.current = (self.current + 1) % BUCKETS;
            self.buckets[self.current] = Counts::default();
            self.began += WIDTH;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: Counts = Counts { ok: 0, slow: 0, failed: 1 };

    #[test]
    fn a_call_counts_for_ten_seconds_and_no_longer() {
        // A window that does not slide needs as many failures as there were successes before it.
        let now = Instant::now();
        let mut window = Window::new(now);
        window.add(Counts { ok: 1_000_000, ..Counts::default() }, now);

        window.add(FAILED, now + WIDTH * 9);
        assert_eq!(window.sum().calls(), 1_000_001);

        window.add(FAILED, now + WIDTH * 10);
        assert_eq!(window.sum(), Counts { failed: 2, ..Counts::default() });
    }

    #[test]
    fn a_long_silence_empties_it() {
        // Sliding bucket by bucket over a night would take long; not sliding would keep yesterday's failures.
        let now = Instant::now();
        let mut window = Window::new(now);
        window.add(FAILED, now);

        window.add(Counts::default(), now + Duration::from_hours(8));

        assert_eq!(window.sum(), Counts::default());
    }
}
