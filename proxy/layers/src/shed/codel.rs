//! Is there a standing queue? Pure: time is an argument.
//!
//! Controlled delay (Nichols and Jacobson, RFC 8289) in the form that request queues use ("Fail at Scale",
//! ACM Queue 13(8), 2015; `folly/executors/Codel.cpp`): the signal is the *least* wait within an interval. A
//! burst raises the mean and the maximum, but only a standing queue raises the minimum, so a service with slow
//! and fast requests is not mistaken for an overloaded one.

use std::time::Duration;

use tokio::time::Instant;

/// When waiting becomes overload.
///
/// The defaults are wider than folly's 5 ms and 100 ms, which are for queues within one process: a wait of a fifth
/// of a second is bearable to whoever waits, and a burst that drains within a second is served, not refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodelConfig {
    /// The wait that is acceptable for ever.
    pub target: Duration,
    /// How long every wait must have been above the target.
    pub interval: Duration,
}

impl Default for CodelConfig {
    fn default() -> Self {
        Self { target: Duration::from_millis(200), interval: Duration::from_secs(1) }
    }
}

impl CodelConfig {
    /// While overloaded, whoever waited longer than this is refused: twice the target, as in folly.
    pub(super) fn slough(&self) -> Duration {
        self.target * 2
    }
}

/// Watches the age of the oldest waiter.
///
/// Enters overload at the end of an interval in which every sample was above the target; leaves it at the first
/// sample that is not, as RFC 8289 does, so that nobody is refused on account of a queue that has drained.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Codel {
    interval: Option<Interval>,
    overloaded: bool,
}

/// An interval in which every sample so far was above the target.
#[derive(Debug, Clone, Copy)]
struct Interval {
    ends: Instant,
    last_sample: Instant,
}

impl Codel {
    /// Feeds the age of the oldest waiter (zero when nobody waits).
    pub(super) fn sample(&mut self, age: Duration, config: &CodelConfig, now: Instant) {
        if age <= config.target {
            *self = Self::default();
            return;
        }
        let fresh = Interval { ends: now + config.interval, last_sample: now };
        // A silence as long as the interval says nothing about the queue in between.
        let current = self.interval.filter(|i| now.duration_since(i.last_sample) < config.interval);
        match current {
            None => self.interval = Some(fresh),
            Some(interval) if now >= interval.ends => {
                self.overloaded = true;
                self.interval = Some(fresh);
            }
            Some(interval) => self.interval = Some(Interval { last_sample: now, ..interval }),
        }
    }

    pub(super) const fn overloaded(&self) -> bool {
        self.overloaded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: CodelConfig =
        CodelConfig { target: Duration::from_millis(200), interval: Duration::from_secs(1) };

    /// Feeds one sample each 100 ms.
    fn overloaded_after(ages_ms: impl IntoIterator<Item = u64>) -> bool {
        let mut now = Instant::now();
        let mut codel = Codel::default();
        for age in ages_ms {
            codel.sample(Duration::from_millis(age), &CONFIG, now);
            now += Duration::from_millis(100);
        }
        codel.overloaded()
    }

    #[test]
    fn a_queue_that_stands_for_an_interval_is_overload() {
        // Ten samples span 0.9 s, less than the interval: a verdict then would be one on a burst.
        assert!(!overloaded_after([300; 10]));
        assert!(overloaded_after([300; 11]));
    }

    #[test]
    fn one_short_wait_within_the_interval_clears_it() {
        // The minimum decides: were it the mean or the last wait, slow requests alone would look like overload.
        assert!(!overloaded_after([900, 900, 900, 900, 900, 150, 900, 900, 900, 900, 900, 900]));
    }

    #[test]
    fn overload_ends_with_the_first_short_wait() {
        // Staying overloaded to the end of the interval would refuse requests that nothing stands in the way of.
        assert!(!overloaded_after([300; 30].into_iter().chain([0])));
    }

    #[test]
    fn a_silence_starts_afresh() {
        // Two slow requests an hour apart are no standing queue.
        let start = Instant::now();
        let mut codel = Codel::default();

        codel.sample(Duration::from_millis(300), &CONFIG, start);
        codel.sample(Duration::from_millis(300), &CONFIG, start + Duration::from_hours(1));

        assert!(!codel.overloaded());
    }
}
