//! A cheap 99th percentile: buckets by powers of two, over one to two half-minutes.

use std::time::Duration;

use tokio::time::Instant;

/// The last bucket starts at 2^38 microseconds, three days.
pub(super) const BUCKETS: usize = 40;

/// Fewer calls say nothing about one in a hundred.
const CALLS_MIN: u64 = 100;

const HALF: Duration = Duration::from_secs(30);

/// Whole microseconds, without the 128 bits of `Duration::as_micros`.
#[inline]
pub(super) fn micros_of(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000).saturating_add(u64::from(duration.subsec_micros()))
}

/// Bucket `n` holds times from 2^(n-1) up to 2^n microseconds.
#[inline]
pub(super) fn bucket_of(elapsed: Duration) -> usize {
    let bits = u64::BITS - micros_of(elapsed).leading_zeros();
    usize::try_from(bits).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

/// Times of the last 30 to 60 seconds.
#[derive(Debug)]
pub(super) struct Latencies {
    halves: [[u64; BUCKETS]; 2],
    turned: Instant,
}

impl Latencies {
    pub(super) const fn new(now: Instant) -> Self {
        Self { halves: [[0; BUCKETS]; 2], turned: now }
    }

    pub(super) fn add(&mut self, counts: &[u32; BUCKETS], now: Instant) {
        if now.duration_since(self.turned) >= HALF {
            self.halves.swap(0, 1);
            self.halves[0] = [0; BUCKETS];
            self.turned = now;
        }
        for (sum, count) in self.halves[0].iter_mut().zip(counts) {
            *sum += u64::from(*count);
        }
    }

    /// The 99th percentile, interpolated within its bucket. `None` if there were too few calls to say.
    pub(super) fn p99(&self) -> Option<Duration> {
        let count = |bucket: usize| self.halves[0][bucket] + self.halves[1][bucket];
        let total: u64 = (0..BUCKETS).map(count).sum();
        if total < CALLS_MIN {
            return None;
        }
        let mut above = total - total / 100;
        for bucket in 0..BUCKETS {
            if above <= count(bucket) {
                return Some(within(bucket, above, count(bucket)));
            }
            above -= count(bucket);
        }
        None
    }
}

/// The time that `rank` of `count` calls in the bucket did not exceed, if they are spread evenly.
fn within(bucket: usize, rank: u64, count: u64) -> Duration {
    let upper = 1_u64 << bucket;
    let lower = upper / 2;
    Duration::from_micros(lower + (upper - lower).saturating_mul(rank) / count.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(times_us: impl IntoIterator<Item = u64>) -> Latencies {
        let now = Instant::now();
        let mut latencies = Latencies::new(now);
        for time in times_us {
            let mut counts = [0; BUCKETS];
            counts[bucket_of(Duration::from_micros(time))] = 1;
            latencies.add(&counts, now);
        }
        latencies
    }

    #[test]
    fn the_estimate_is_within_a_factor_of_two() {
        // Off by a bucket, a call would be stuck at half or twice the time meant.
        for time in [1, 3, 100, 1000, 12_345, 900_000] {
            let p99 = with([time; 1000]).p99().unwrap().as_micros();
            assert!(p99 >= u128::from(time) / 2 && p99 <= u128::from(time) * 2, "{time}: {p99}");
        }
    }

    #[test]
    fn the_slowest_hundredth_is_left_out() {
        // A maximum would let one slow call in a minute make every stall invisible.
        let p99 = with([1000; 995].into_iter().chain([10_000_000; 5])).p99().unwrap();
        assert!(p99 <= Duration::from_millis(2), "{p99:?}");
    }

    #[test]
    fn what_is_older_than_a_minute_is_forgotten() {
        // A slow hour in the morning must not blind the breaker in the afternoon.
        let mut latencies = with([1_000_000; 1000]);
        let start = latencies.turned;
        for half in 1..=2 {
            latencies.add(&[0; BUCKETS], start + HALF * half);
        }
        assert_eq!(latencies.p99(), None);
    }
}
