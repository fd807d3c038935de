//! When to ask again: often while there is doubt, seldom otherwise, and never in step with other sidecars.
//!
//! A fleet asks as often as all its sidecars together, so every pace has a floor, and every distance is drawn
//! anew from 80 to 120 %: sidecars that began at the same moment drift apart within a few questions.

use std::time::Duration;

use rand::{Rng, RngExt};

/// While all is well.
const QUIET: Duration = Duration::from_secs(1);
/// While something is expected to change. A promotion takes 0.1 s, so this is what finding it costs.
const DOUBT: Duration = Duration::from_millis(200);
/// In a long outage. With three good answers over a second it still recovers within 2 s of the first.
const LONG: Duration = Duration::from_millis(500);
/// The least distance between two questions, whatever hints there are.
pub(super) const FLOOR: Duration = Duration::from_millis(50);

/// How often to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Once a second.
    Quiet,
    /// Five times a second.
    Doubt,
    /// Twice a second.
    Long,
}

impl Pace {
    /// The mean distance between two questions.
    pub const fn mean(self) -> Duration {
        match self {
            Self::Quiet => QUIET,
            Self::Doubt => DOUBT,
            Self::Long => LONG,
        }
    }

    /// The distance from the beginning of one question to that of the next.
    pub fn next(self, random: &mut (impl Rng + ?Sized)) -> Duration {
        self.mean() * random.random_range(80..=120) / 100
    }

    /// The distance to the first question: anywhere, so that sidecars that start together do not ask together.
    pub fn first(random: &mut (impl Rng + ?Sized)) -> Duration {
        FLOOR * random.random_range(0..=100) / 100
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    #[test]
    fn distances_stay_within_a_fifth_of_the_mean_and_fill_that_range() {
        // Without jitter a fleet that lost its database at one moment asks at one moment for ever.
        let mut random = SmallRng::seed_from_u64(1);
        for pace in [Pace::Quiet, Pace::Doubt, Pace::Long] {
            let drawn: Vec<_> = (0..1000).map(|_| pace.next(&mut random)).collect();
            let (low, high) = (drawn.iter().min().unwrap(), drawn.iter().max().unwrap());

            assert!(*low >= pace.mean() * 8 / 10 && *high <= pace.mean() * 12 / 10, "{low:?} {high:?}");
            assert!(*high > *low + pace.mean() / 3, "{low:?} {high:?}");
        }
    }

    #[test]
    fn a_server_that_came_back_is_proven_within_two_seconds() {
        // The promise to recover within 2 s of the first good answer; a slower long pace would break it.
        let mut random = SmallRng::seed_from_u64(2);
        for _ in 0..1000 {
            // It comes back right after a question; from the first good answer on there is doubt.
            let mut at = Pace::Long.next(&mut random);
            let first = at;
            let mut good = 1;
            while good < 3 || at < first + Duration::from_secs(1) {
                at += Pace::Doubt.next(&mut random);
                good += 1;
            }
            assert!(at < Duration::from_secs(2), "{at:?}");
        }
    }
}
