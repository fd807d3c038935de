//! Bounded exponential backoff with full jitter.
//!
//! Acts between attempts at something that may be down (a connect, a probe). Each delay is drawn uniformly from
//! zero to a ceiling that starts at `base`, doubles with every delay and stops at `cap`: the *full jitter* of
//! Marc Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015), the variant that spreads a herd
//! of clients best and costs the least work in all.
//!
//! Promises: no delay above `cap`, no overflow however long the outage, no clock and no random source of its own.
//! Does not promise a least delay (it may be zero), nor a number of attempts: whoever waits has a deadline for that.

use std::time::Duration;

use rand::{Rng, RngExt};

/// The delays between attempts; see the [module](self).
///
/// ```
/// use std::time::Duration;
/// use tidegate_layers::Backoff;
///
/// let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
/// let delay = backoff.next(&mut rand::rng());
/// assert!(delay <= Duration::from_millis(100));
/// // It worked: the next outage starts from the base again.
/// backoff.reset();
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    ceiling: Duration,
}

impl Backoff {
    /// Starts at `base` and never exceeds `cap`. A `base` above `cap` is taken as `cap`.
    pub const fn new(base: Duration, cap: Duration) -> Self {
        let base = if base.as_nanos() > cap.as_nanos() { cap } else { base };
        Self { base, cap, ceiling: base }
    }

    /// The delay before the next attempt, and doubles the ceiling of the one after it.
    pub fn next(&mut self, random: &mut (impl Rng + ?Sized)) -> Duration {
        let delay = up_to(self.ceiling, random);
        self.ceiling = self.ceiling.saturating_mul(2).min(self.cap);
        delay
    }

    /// The longest delay that the next call of [`next`](Self::next) may return.
    pub const fn ceiling(&self) -> Duration {
        self.ceiling
    }

    /// Back to `base`. Call it when an attempt succeeded.
    pub const fn reset(&mut self) {
        self.ceiling = self.base;
    }
}

/// Uniform in `0..=ceiling`, in whole nanoseconds. A ceiling beyond 584 years counts as 584 years.
fn up_to(ceiling: Duration, random: &mut (impl Rng + ?Sized)) -> Duration {
    let nanos = u64::try_from(ceiling.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(random.random_range(0..=nanos))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    const BASE: Duration = Duration::from_millis(100);
    const CAP: Duration = Duration::from_secs(5);

    #[test]
    fn the_ceiling_doubles_up_to_the_cap_and_stays_there() {
        // A factor other than two, or a cap applied one step late, changes this list.
        let mut random = SmallRng::seed_from_u64(1);
        let mut backoff = Backoff::new(BASE, CAP);

        let ceilings: Vec<_> = (0..8)
            .map(|_| {
                let ceiling = backoff.ceiling().as_millis();
                backoff.next(&mut random);
                ceiling
            })
            .collect();

        assert_eq!(ceilings, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }

    #[test]
    fn a_reset_starts_from_the_base_again() {
        // If the ceiling survived a success, a short outage would be punished for the long one before it.
        let mut random = SmallRng::seed_from_u64(1);
        let mut backoff = Backoff::new(BASE, CAP);
        for _ in 0..8 {
            backoff.next(&mut random);
        }

        backoff.reset();

        assert_eq!(backoff, Backoff::new(BASE, CAP));
    }

    #[test]
    fn delays_spread_over_the_whole_ceiling() {
        // "Equal jitter" or none would leave the lower half empty, and a herd would stay a herd.
        let mut random = SmallRng::seed_from_u64(7);
        let delays: Vec<_> = (0..1000).map(|_| Backoff::new(BASE, CAP).next(&mut random)).collect();

        let low = delays.iter().filter(|delay| **delay < BASE / 2).count();

        assert!((400..600).contains(&low), "{low} of 1000 delays in the lower half");
    }

    proptest! {
        #[test]
        fn no_delay_exceeds_its_ceiling_nor_the_cap(
            base in any::<u64>(), cap in any::<u64>(), seed in any::<u64>(), steps in 0_usize..200,
        ) {
            // An overflow when doubling would show as a panic or as a delay above the cap.
            let cap = Duration::from_nanos(cap);
            let mut random = SmallRng::seed_from_u64(seed);
            let mut backoff = Backoff::new(Duration::from_nanos(base), cap);

            for _ in 0..steps {
                let ceiling = backoff.ceiling();
                let delay = backoff.next(&mut random);
                prop_assert!(delay <= ceiling && ceiling <= cap);
            }
        }
    }
}
