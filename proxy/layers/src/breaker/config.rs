use std::time::Duration;

use rand::{Rng, RngExt};

/// When the breaker trips, and how it comes back.
///
/// Defaults with a precedent: five failures in a row as in Envoy (`consecutive_5xx`) and gobreaker; half of at
/// least twenty calls within ten seconds as in Hystrix; one connect in the proof of recovery because a live session
/// says nothing about accepting. The others follow from the promise to trip within 1.5 s: a bound of 1 s, half
/// of it to suspicion, and 500 ms for the probe that runs meanwhile.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BreakerConfig {
    /// Time between two looks at what is in flight.
    pub tick: Duration,
    /// A call is stuck after this many times the 99th percentile of the last minute ...
    pub stuck_factor: u32,
    /// ... but not before this ...
    pub stuck_min: Duration,
    /// ... and at the latest after this.
    pub stuck_max: Duration,
    /// Where probes say nothing: how many stuck calls are enough.
    pub stuck_calls: usize,
    /// Where probes say nothing: which part of the calls in flight must be stuck, in percent.
    pub stuck_share: u8,
    /// Where probes say nothing: on how many ticks in a row.
    pub stuck_ticks: u32,
    /// Failures in a row that make the service suspect.
    pub consecutive_failures: u32,
    /// How far back a rate looks.
    pub rate_window: Duration,
    /// Calls within that time without which a rate means nothing. Hystrix' `requestVolumeThreshold`.
    pub rate_calls: u64,
    /// Failed and slow calls among them that make the service suspect, in percent.
    pub rate_share: u8,
    /// Probe cadence while closed. No probe is sent while calls succeed.
    pub probe_closed: Duration,
    /// Probe cadence otherwise.
    pub probe_other: Duration,
    /// A probe that takes longer has failed.
    pub probe_timeout: Duration,
    /// Failed probes in a row that trip even when there is no traffic. Twice as many trip even while calls finish, if others are
    /// stuck.
    pub probe_failures: u32,
    /// Good probes in a row that end half-open ...
    pub good_probes: u32,
    /// ... if they span this long.
    pub good_span: Duration,
    /// How long the diagnosis may take.
    pub diagnosis_max: Duration,
    /// How long it stays open at first.
    pub hold_min: Duration,
    /// How long it stays open at most, however often it trips again.
    pub hold_max: Duration,
    /// Holds and probe cadences vary by this much either way, in percent.
    pub jitter: u8,
    /// Time between two doublings of the ramp.
    pub ramp_step: Duration,
    /// The ramp stands still while more than this part of the calls fail, in percent.
    pub ramp_failures: u8,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            tick: Duration::from_millis(100),
            stuck_factor: 4,
            stuck_min: Duration::from_millis(250),
            stuck_max: Duration::from_secs(1),
            stuck_calls: 3,
            stuck_share: 50,
            stuck_ticks: 2,
            consecutive_failures: 5,
            rate_window: Duration::from_secs(10),
            rate_calls: 20,
            rate_share: 50,
            probe_closed: Duration::from_secs(5),
            probe_other: Duration::from_millis(500),
            probe_timeout: Duration::from_millis(500),
            probe_failures: 2,
            good_probes: 3,
            good_span: Duration::from_secs(1),
            diagnosis_max: Duration::from_secs(1),
            hold_min: Duration::from_secs(1),
            hold_max: Duration::from_secs(30),
            jitter: 20,
            ramp_step: Duration::from_secs(1),
            ramp_failures: 10,
        }
    }
}

impl BreakerConfig {
    /// When a call is stuck, given the 99th percentile of those before it (`None`: too few to say).
    pub(super) fn stuck_after(&self, p99: Option<Duration>) -> Duration {
        p99.map_or(self.stuck_max, |p99| {
            p99.saturating_mul(self.stuck_factor).clamp(self.stuck_min, self.stuck_max)
        })
    }

    /// The time, more or less.
    pub(super) fn jittered(&self, time: Duration, random: &mut impl Rng) -> Duration {
        let spread = u32::from(self.jitter.min(100));
        time * random.random_range(100 - spread..=100 + spread) / 100
    }
}
