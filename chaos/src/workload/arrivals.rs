//! When operations are due; pure.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Evenly spaced instants with a seeded jitter of half a step, so that lanes do not beat together.
#[derive(Debug)]
pub struct Arrivals {
    step: f64,
    from: f64,
    until: f64,
    number: u32,
    random: SmallRng,
}

impl Arrivals {
    /// Instants between `from` and `until`; none at all for a rate of zero.
    pub fn new(per_second: f64, seed: u64, from: Duration, until: Duration) -> Self {
        let until = if per_second > 0.0 { until.as_secs_f64() } else { 0.0 };
        let random = SmallRng::seed_from_u64(seed);
        Self { step: 1.0 / per_second, from: from.as_secs_f64(), until, number: 0, random }
    }
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let jitter: f64 = self.random.random_range(0.0..0.5);
        let due = self.from + (f64::from(self.number) + jitter) * self.step;
        self.number += 1;
        (due < self.until).then(|| Duration::from_secs_f64(due))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_rate_is_kept_and_the_order_too() {
        // Jitter that accumulated would change the rate.
        let due: Vec<Duration> = Arrivals::new(40.0, 7, SECOND, 11 * SECOND).collect();

        assert_eq!(due.len(), 400);
        assert!(due.is_sorted());
        assert!(due[0] >= SECOND);
    }

    #[test]
    fn the_same_seed_gives_the_same_plan() {
        // A run must be repeatable.
        let plan = |seed| Arrivals::new(10.0, seed, Duration::ZERO, SECOND).collect::<Vec<_>>();

        assert_eq!(plan(3), plan(3));
        assert_ne!(plan(3), plan(4));
    }

    #[test]
    fn a_rate_of_zero_is_silence() {
        // A division by zero must not become an endless stream.
        assert_eq!(Arrivals::new(0.0, 1, Duration::ZERO, SECOND).count(), 0);
    }
}
