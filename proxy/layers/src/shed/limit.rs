//! How many requests may be in flight.

use std::time::Duration;

use tokio::time::Instant;

/// How the adaptive part of a [`Limit`] moves.
///
/// The defaults are starting points, not tuned to any load. Netflix' concurrency-limits cuts by 0.9 for every
/// loss; here the cut is deeper and rarer, as losses come in batches when a service stalls.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LimitConfig {
    /// What a loss multiplies the limit by.
    pub cut: f64,
    /// Losses within this time of a cut are the same event: many requests fail together, and cutting for each
    /// would end at the floor at once.
    pub cut_every: Duration,
    /// The limit never falls below this part of the ceiling ...
    pub floor_share: f64,
    /// ... nor below this many, unless the ceiling is lower.
    pub floor: usize,
}

impl Default for LimitConfig {
    fn default() -> Self {
        Self { cut: 0.7, cut_every: Duration::from_millis(500), floor_share: 0.1, floor: 2 }
    }
}

/// How many requests may be in flight: the smallest of a fixed ceiling, the ramp after an outage, and what the
/// service has shown to bear. Pure: time is an argument.
///
/// The adaptive part is AIMD (Chiu and Jain, 1989): each success adds `1/limit` while at least half of the limit
/// is in use, each loss multiplies by 0.7, at most once per 500 ms. A *loss* is a request that took longer in
/// service than it should, or that the service refused for lack of resources. The wait for a permit must not be
/// counted: cutting because of our own queue makes the queue longer.
#[derive(Debug, Clone)]
pub struct Limit {
    config: LimitConfig,
    ceiling: usize,
    ramp: Option<usize>,
    adaptive: f64,
    /// What `ceiling` and `adaptive` come to in whole requests: asked for far more often than they change.
    without_ramp: usize,
    last_cut: Option<Instant>,
}

impl Limit {
    /// Starts at the ceiling: the service is taken for healthy until it shows otherwise.
    pub fn new(ceiling: usize, config: LimitConfig) -> Self {
        let adaptive = as_float(ceiling);
        Self { config, ceiling, ramp: None, adaptive, without_ramp: ceiling, last_cut: None }
    }

    /// How many may be in flight now.
    #[inline]
    pub fn current(&self) -> usize {
        self.without_ramp.min(self.ramp.unwrap_or(usize::MAX))
    }

    /// As [`current`](Self::current), for who is in flight already and only changes lanes: a ramp of zero lets nobody
    /// in, but who is in must come to its end.
    pub fn current_within(&self) -> usize {
        self.without_ramp.min(self.ramp.filter(|ramp| *ramp > 0).unwrap_or(usize::MAX))
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between floor and ceiling")]
    fn adapt(&mut self, adaptive: f64) {
        self.adaptive = adaptive;
        self.without_ramp = self.ceiling.min(adaptive as usize);
    }

    /// The fixed bound.
    pub const fn ceiling(&self) -> usize {
        self.ceiling
    }

    /// Changes the fixed bound. An adaptive part that stood at the old ceiling follows it.
    pub fn set_ceiling(&mut self, ceiling: usize) {
        let unrestricted = self.adaptive >= as_float(self.ceiling);
        self.ceiling = ceiling;
        let highest = as_float(ceiling);
        self.adapt(if unrestricted { highest } else { self.adaptive.clamp(self.floor(), highest) });
    }

    /// Changes how the adaptive part moves from now on.
    pub const fn set_config(&mut self, config: LimitConfig) {
        self.config = config;
    }

    /// Sets the bound of the ramp after an outage, or lifts it. Zero is a pause.
    pub const fn set_ramp(&mut self, ramp: Option<usize>) {
        self.ramp = ramp;
    }

    /// A request was served as it should be while `in_flight` (itself included) were.
    #[inline]
    pub fn succeeded(&mut self, in_flight: usize) {
        // Nothing grows beyond the ceiling. And a limit that nobody pushes against has proven nothing.
        if self.without_ramp < self.ceiling && as_float(in_flight) * 2.0 >= self.adaptive {
            self.adapt((self.adaptive + 1.0 / self.adaptive.max(1.0)).min(as_float(self.ceiling)));
        }
    }

    /// A request was lost to overload.
    pub fn lost(&mut self, now: Instant) {
        let same_event = self.last_cut.is_some_and(|cut| now.duration_since(cut) < self.config.cut_every);
        if !same_event {
            self.adapt((self.adaptive * self.config.cut).max(self.floor()));
            self.last_cut = Some(now);
        }
    }

    fn floor(&self) -> f64 {
        let share = as_float(self.ceiling) * self.config.floor_share;
        share.max(as_float(self.config.floor)).min(as_float(self.ceiling))
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of requests in flight are far below 2^52")]
const fn as_float(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limit(ceiling: usize) -> Limit {
        Limit::new(ceiling, LimitConfig::default())
    }

    #[test]
    fn many_losses_at_once_cut_once() {
        // Fifty timeouts of one stall would otherwise take the limit to its floor in one step.
        let now = Instant::now();
        let mut limit = limit(50);

        for _ in 0..50 {
            limit.lost(now);
        }
        assert_eq!(limit.current(), 35);

        limit.lost(now + Duration::from_millis(500));
        assert_eq!(limit.current(), 24);
    }

    #[test]
    fn the_floor_is_two_or_a_tenth_and_never_above_the_ceiling() {
        // Below the floor nothing succeeds often enough for the limit to come back.
        for (ceiling, floor) in [(1, 1), (2, 2), (10, 2), (50, 5), (200, 20)] {
            let mut limit = limit(ceiling);
            for cut in 0..100 {
                limit.lost(Instant::now() + Duration::from_secs(cut));
            }
            assert_eq!(limit.current(), floor, "ceiling {ceiling}");
        }
    }

    #[test]
    fn a_limit_that_is_not_used_does_not_grow() {
        // Growth without pressure is a promise about load the service has never seen.
        let mut limit = limit(50);
        limit.lost(Instant::now());

        for _ in 0..10_000 {
            limit.succeeded(17);
        }
        assert_eq!(limit.current(), 35);

        for _ in 0..10_000 {
            limit.succeeded(26);
        }
        assert_eq!(limit.current(), 50);
    }

    #[test]
    fn it_grows_by_about_one_per_round_of_successes() {
        // Adding one per success (not per limit's worth of them) would overshoot fifty-fold.
        let mut limit = limit(100);
        limit.lost(Instant::now());
        assert_eq!(limit.current(), 70);

        for _ in 0..71 {
            limit.succeeded(70);
        }
        assert_eq!(limit.current(), 71);
    }

    #[test]
    fn the_smallest_of_ceiling_ramp_and_adaptive_holds() {
        // If any of them were ignored, a recovering service would get its whole herd back at once.
        let mut limit = limit(50);
        limit.set_ramp(Some(5));
        assert_eq!(limit.current(), 5);

        limit.set_ramp(None);
        limit.lost(Instant::now());
        assert_eq!(limit.current(), 35);

        limit.set_ceiling(10);
        assert_eq!(limit.current(), 10);
    }

    #[test]
    fn a_raised_ceiling_is_usable_at_once_unless_the_service_showed_strain() {
        // Otherwise a larger pool after a reload would stay as small as the old one until it is pushed.
        let mut limit = limit(10);
        limit.set_ceiling(40);
        assert_eq!(limit.current(), 40);
    }

    /// The same limit, reckoned anew each time.
    struct Naive {
        ceiling: usize,
        ramp: Option<usize>,
        adaptive: f64,
    }

    impl Naive {
        fn current(&self) -> usize {
            let whole = (0..=self.ceiling).rev().find(|whole| as_float(*whole) <= self.adaptive);
            whole.unwrap_or(0).min(self.ramp.unwrap_or(usize::MAX))
        }

        fn succeeded(&mut self, in_flight: usize) {
            if as_float(in_flight) * 2.0 >= self.adaptive {
                self.adaptive = (self.adaptive + 1.0 / self.adaptive.max(1.0)).min(as_float(self.ceiling));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn what_is_kept_of_a_limit_is_what_would_be_reckoned_anew(
            ceiling in 0..20_usize, steps in proptest::collection::vec((0..4_u8, 0..20_usize), 1..200),
        ) {
            // A success that is not counted, or a change that the kept figure misses, shifts the limit for good.
            let mut limit = limit(ceiling);
            let mut naive = Naive { ceiling, ramp: None, adaptive: as_float(ceiling) };
            let start = Instant::now();
            for (at, (what, count)) in (0..).zip(steps) {
                match what {
                    0 => {
                        limit.lost(start + Duration::from_secs(at));
                        naive.adaptive = (naive.adaptive * limit.config.cut).max(limit.floor());
                    }
                    1 => {
                        limit.set_ceiling(count);
                        let unrestricted = naive.adaptive >= as_float(naive.ceiling);
                        naive.ceiling = count;
                        let highest = as_float(count);
                        naive.adaptive =
                            if unrestricted { highest } else { naive.adaptive.clamp(limit.floor(), highest) };
                    }
                    2 => {
                        naive.ramp = (count < 10).then_some(count);
                        limit.set_ramp(naive.ramp);
                    }
                    _ => {
                        limit.succeeded(count);
                        naive.succeeded(count);
                    }
                }
                prop_assert_eq!(limit.current(), naive.current());
            }
        }
    }
}
