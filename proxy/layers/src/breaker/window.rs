//! Outcomes of the last while, ten seconds by default: ten buckets of a tenth of it, exact counts.
//!
//! Counts slide with time, not with calls, and are not averages: a long good past cannot outvote a bad present,
//! and a moving average cannot hide a total outage behind a burst.

use std::time::Duration;

use tokio::time::Instant;

const BUCKETS: usize = 10;

/// Narrower buckets would be emptied by every tick.
const WIDTH_MIN: Duration = Duration::from_millis(1);

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
    width: Duration,
    current: usize,
    /// When the current bucket began.
    began: Instant,
}

impl Window {
    /// One that looks back for so long.
    pub(super) fn new(span: Duration, now: Instant) -> Self {
        let width = (span / 10).max(WIDTH_MIN);
        Self { buckets: [Counts::default(); BUCKETS], width, current: 0, began: now }
    }

    pub(super) fn add(&mut self, counts: Counts, now: Instant) {
        self.slide(now);
        self.buckets[self.current] = self.buckets[self.current].plus(counts);
    }

    /// The sum over the last nine to ten tenths of the span.
    pub(super) fn sum(&self) -> Counts {
        self.buckets.iter().fold(Counts::default(), |sum, bucket| sum.plus(*bucket))
    }

    pub(super) fn clear(&mut self, now: Instant) {
        self.buckets = [Counts::default(); BUCKETS];
        self.current = 0;
        self.began = now;
    }

    fn slide(&mut self, now: Instant) {
        let elapsed = now.duration_since(self.began);
        let steps = usize::try_from(elapsed.as_nanos() / self.width.as_nanos()).unwrap_or(BUCKETS);
        if steps >= BUCKETS {
            self.clear(now);
            return;
        }
        for _ in 0..steps {
            self.current = (self.current + 1) % BUCKETS;
            self.buckets[self.current] = Counts::default();
            self.began += self.width;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: Counts = Counts { ok: 0, slow: 0, failed: 1 };
    const SPAN: Duration = Duration::from_secs(10);

    #[test]
    fn a_call_counts_for_the_span_and_no_longer() {
        // A window that does not slide needs as many failures as there were successes before it.
        let now = Instant::now();
        let mut window = Window::new(SPAN, now);
        window.add(Counts { ok: 1_000_000, ..Counts::default() }, now);

        window.add(FAILED, now + SPAN * 9 / 10);
        assert_eq!(window.sum().calls(), 1_000_001);

        window.add(FAILED, now + SPAN);
        assert_eq!(window.sum(), Counts { failed: 2, ..Counts::default() });
    }

    #[test]
    fn a_longer_span_remembers_for_longer() {
        // A service with two writes a second has no rate within ten seconds.
        let now = Instant::now();
        let mut window = Window::new(SPAN * 6, now);
        window.add(FAILED, now);

        window.add(FAILED, now + SPAN * 5);
        assert_eq!(window.sum().calls(), 2);
        window.add(FAILED, now + SPAN * 6);

        assert_eq!(window.sum().calls(), 2);
    }

    #[test]
    fn a_long_silence_empties_it() {
        // Sliding bucket by bucket over a night would take long; not sliding would keep yesterday's failures.
        let now = Instant::now();
        let mut window = Window::new(SPAN, now);
        window.add(FAILED, now);

        window.add(Counts::default(), now + Duration::from_hours(8));

        assert_eq!(window.sum(), Counts::default());
    }
}
