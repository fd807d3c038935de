//! How long things took, counted without locks or allocations.
//!
//! Log-linear buckets as those of `HdrHistogram`: each power of two of microseconds is cut into [`STEPS`] equal
//! parts, so that a value read back is off by at most 1/32 (3.2 %). From [`MAX`] on all values count alike.
//!
//! Counting is one atomic addition in the shard of the calling worker: threads do not meet. The sum is made from
//! the middles of the buckets when somebody asks; a second addition would double the price of the first.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::pool::upstream::current_worker;

/// Parts of a power of two.
const STEPS: usize = 16;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// The highest power of two of microseconds that has buckets of its own: 2^27 µs are 134 s.
const TOP_BIT: u32 = 27;
/// Values below `STEPS` have one bucket each, then every power of two has `STEPS`.
const BUCKETS: usize = STEPS * (TOP_BIT - STEP_BITS + 2) as usize;
/// Values from here on are in the last bucket.
const MAX: u64 = (1 << (TOP_BIT + 1)) - 1;
/// Threads that count without meeting another; workers beyond share.
const SHARDS: usize = 16;

/// Upper bounds of the buckets that Prometheus gets, in seconds: the usual ones of its client libraries, finer at
/// the fast end, up to the longest deadline that is common.
pub const BOUNDS: [f64; 17] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0,
];

/// See the module documentation.
pub struct Histogram {
    shards: Box<[Shard]>,
}

/// Aligned to two cache lines, which is what common processors fetch at once.
#[repr(align(128))]
struct Shard([AtomicU64; BUCKETS]);

impl Default for Histogram {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Shard([const { AtomicU64::new(0) }; BUCKETS])).collect() }
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Histogram").field("count", &self.snapshot().count()).finish_non_exhaustive()
    }
}

impl Histogram {
    /// Counts one.
    #[inline]
    pub fn record(&self, took: Duration) {
        // Not as_micros(): it divides numbers of 128 bits.
        let micros = took.as_secs().saturating_mul(1_000_000).saturating_add(u64::from(took.subsec_micros()));
        let shard = self.shards.get(current_worker() % SHARDS);
        if let Some(bucket) = shard.and_then(|shard| shard.0.get(bucket_of(micros))) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All counts since the start.
    pub fn snapshot(&self) -> Snapshot {
        let mut counts = vec![0; BUCKETS].into_boxed_slice();
        for shard in &self.shards {
            for (sum, bucket) in counts.iter_mut().zip(&shard.0) {
                *sum += bucket.load(Ordering::Relaxed);
            }
        }
        Snapshot { counts }
    }
}

/// Counts, of all time or of a window between two moments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    counts: Box<[u64]>,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS].into_boxed_slice() }
    }
}

impl Snapshot {
    /// What came after an earlier snapshot of the same histogram.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let counts = self.counts.iter().zip(&earlier.counts).map(|(now, then)| now.saturating_sub(*then));
        Self { counts: counts.collect() }
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All durations together, in seconds.
    pub fn sum_seconds(&self) -> f64 {
        let of_bucket = |(index, count): (usize, &u64)| middle(index) * as_f64(*count);
        self.counts.iter().enumerate().map(of_bucket).sum::<f64>() / 1e6
    }

    /// The duration that the share `quantile` of all did not exceed; `None` without any.
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = (as_f64(count) * quantile).ceil().max(1.0);
        let mut seen = 0;
        let reaches = |count: &u64| {
            seen += count;
            as_f64(seen) >= rank
        };
        let index = self.counts.iter().position(reaches).unwrap_or(BUCKETS - 1);
        Some(Duration::from_secs_f64(middle(index) / 1e6))
    }

    /// For each of [`BOUNDS`] how many did not exceed it.
    pub fn cumulative(&self) -> [u64; BOUNDS.len()] {
        BOUNDS.map(|bound| {
            let below = |(index, _): &(usize, &u64)| middle(*index) <= bound * 1e6;
            self.counts.iter().enumerate().take_while(below).map(|(_, count)| count).sum()
        })
    }
}

/// The bucket of a value: below `STEPS` the value itself, above it the position of the highest bit and the
/// `STEP_BITS` bits after it.
#[inline]
fn bucket_of(micros: u64) -> usize {
    let micros = micros.min(MAX);
    #[expect(clippy::cast_possible_truncation, reason = "below BUCKETS")]
    let index = |value: u64| value as usize;
    if micros < STEPS as u64 {
        return index(micros);
    }
    let shift = micros.ilog2() - STEP_BITS;
    index(u64::from(shift) * STEPS as u64 + (micros >> shift))
}

/// The middle of a bucket, in microseconds.
fn middle(index: usize) -> f64 {
    if index < STEPS {
        return as_f64(index as u64) + 0.5;
    }
    let shift = index / STEPS - 1;
    let low = ((index - shift * STEPS) as u64) << shift;
    as_f64(low) + as_f64(1 << shift) / 2.0
}

#[expect(clippy::cast_precision_loss, reason = "good to one in 2^52")]
fn as_f64(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_duration_is_read_back_within_a_thirtieth(micros in 16..MAX) {
            // One wrong bit in the bucket's number would be off by a sixteenth or a power of two.
            let histogram = Histogram::default();

            histogram.record(Duration::from_micros(micros));

            let read = histogram.snapshot().quantile(0.5).unwrap().as_secs_f64() * 1e6;
            #[expect(clippy::cast_precision_loss, reason = "below 2^52")]
            let written = micros as f64;
            prop_assert!((read / written - 1.0).abs() <= 1.0 / 30.0, "{written} was read as {read}");
        }
    }

    #[test]
    fn what_is_longer_than_all_buckets_counts_in_the_last() {
        // A stall of an hour must not vanish from the figures, nor be taken for something short.
        let histogram = Histogram::default();

        histogram.record(Duration::from_hours(1));

        assert!(histogram.snapshot().quantile(0.99).unwrap() > Duration::from_mins(2));
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_those_of_the_window() {
        // Were the difference not taken, a thousand fast ones of before would hide ten slow ones of now.
        let histogram = Histogram::default();
        (0..1000).for_each(|_| histogram.record(Duration::from_millis(1)));
        let before = histogram.snapshot();
        (0..10).for_each(|_| histogram.record(Duration::from_millis(100)));

        let window = histogram.snapshot().since(&before);

        assert_eq!(window.count(), 10);
        let p50 = window.quantile(0.5).unwrap();
        assert!(p50 > Duration::from_millis(95) && p50 < Duration::from_millis(105), "{p50:?}");
        assert_eq!(histogram.snapshot().since(&histogram.snapshot()).quantile(0.5), None);
    }

    #[test]
    fn cumulative_counts_never_fall_and_end_with_what_is_below_the_last_bound() {
        // Prometheus takes a falling bucket for a reset of the counter.
        let histogram = Histogram::default();
        for millis in [0, 1, 2, 30, 400, 5000, 60_000] {
            histogram.record(Duration::from_millis(millis));
        }

        let cumulative = histogram.snapshot().cumulative();

        assert!(cumulative.is_sorted(), "{cumulative:?}");
        assert_eq!(cumulative[BOUNDS.len() - 1], 6);
        assert_eq!(histogram.snapshot().count(), 7);
        let seconds = histogram.snapshot().sum_seconds();
        assert!((64.0..67.0).contains(&seconds), "{seconds}");
    }

    #[test]
    fn threads_lose_no_count() {
        // A load and a store instead of an addition would.
        let histogram = std::sync::Arc::new(Histogram::default());
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let histogram = std::sync::Arc::clone(&histogram);
                std::thread::spawn(move || {
                    (0..10_000).for_each(|micros| histogram.record(Duration::from_micros(micros)));
                })
            })
            .collect();

        for thread in threads {
            thread.join().unwrap();
        }

        assert_eq!(histogram.snapshot().count(), 40_000);
    }
}
