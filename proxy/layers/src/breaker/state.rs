//! The states of the breaker and the rules between them.

use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

use super::config::BreakerConfig;
use super::event::{Change, Event, Evidence, Force, ProbeOutcome, Session, Sight};
use super::phase::{Phase, RAMP_STEPS};
use super::probes::{Probes, Verdict};
use super::slots::Scan;

/// A cause found longer ago says nothing about a trip: it was that of something else.
const CAUSE_MAX: Duration = Duration::from_secs(3);

/// The states, with what each must remember.
#[derive(Debug, Clone, PartialEq)]
enum State {
    Closed,
    Suspect,
    Open { until: Instant },
    HalfOpen { good: Good },
    Ramp { step: u8, next: Instant },
    ForcedOpen,
    ForcedClosed,
}

/// A trip is a relapse of the one before if it comes in the ramp, or before the service has worked for this many times the
/// last hold. Later it is another incident: a service that hangs for two seconds every minute must not be shut out for half
/// of them.
const RELAPSE: u32 = 4;

/// Good probes in a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Good {
    count: u32,
    /// How many of them saw the service work.
    seen: u32,
    /// When the first of them came back.
    first: Option<Instant>,
    fresh: bool,
}

/// From what is seen to what is done. Pure: time and randomness are arguments.
///
/// The rules are in the documentation of the [module](crate::breaker).
#[derive(Debug)]
pub struct Machine<C> {
    config: BreakerConfig,
    state: State,
    epoch: u64,
    probes: Probes,
    stuck_ticks: u32,
    cause: Option<C>,
    /// When the cause was found.
    cause_at: Instant,
    /// The hold of the last trip.
    last_hold: Option<Duration>,
    /// When the last ramp ended well.
    closed_at: Option<Instant>,
}

impl<C: Clone> Machine<C> {
    /// Closed; the first probe is due at once.
    pub const fn new(config: BreakerConfig, now: Instant) -> Self {
        Self {
            config,
            state: State::Closed,
            epoch: 0,
            probes: Probes::new(now),
            stuck_ticks: 0,
            cause: None,
            cause_at: now,
            last_hold: None,
            closed_at: None,
        }
    }

    /// Goes by other rules from now on.
    pub fn configure(&mut self, config: BreakerConfig, now: Instant) {
        self.config = config;
        self.probes.no_later_than(now + config.probe_closed);
    }

    /// What it is doing.
    pub const fn phase(&self) -> Phase {
        match self.state {
            State::Closed => Phase::Closed,
            State::Suspect => Phase::Suspect,
            State::Open { .. } => Phase::Open,
            State::HalfOpen { .. } => Phase::HalfOpen,
            State::Ramp { step, .. } => Phase::Ramp { step },
            State::ForcedOpen => Phase::ForcedOpen,
            State::ForcedClosed => Phase::ForcedClosed,
        }
    }

    /// Counts the admission periods: one per trip, one per return of traffic.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What is wrong, as far as it is known.
    pub const fn cause(&self) -> Option<&C> {
        self.cause.as_ref()
    }

    /// When calls may be let through at the earliest; `None` while they are.
    pub fn retry_at(&self, now: Instant) -> Option<Instant> {
        let probes = self.config.good_span;
        match &self.state {
            State::Open { until } => Some((*until).max(now) + probes),
            State::HalfOpen { .. } | State::ForcedOpen => Some(now + probes),
            State::Closed | State::Suspect | State::Ramp { .. } | State::ForcedClosed => None,
        }
    }

    /// Whether to start a probe now, and on which connection. The caller must have none outstanding. After a
    /// probe was started there is none due until the cadence says so.
    pub fn probe_due(
        &mut self,
        since_ok: Option<Duration>,
        now: Instant,
        random: &mut impl Rng,
    ) -> Option<Session> {
        let calm = matches!(self.state, State::Closed | State::ForcedClosed);
        // Good probes must span a time: without jitter they do so after as few as possible.
        let counting = matches!(self.state, State::HalfOpen { good } if good.count > 0);
        let cadence = if calm { self.config.probe_closed } else { self.config.probe_other };
        let cadence = if counting { cadence } else { self.config.jittered(cadence, random) };
        if !self.probes.due(cadence, now) {
            return None;
        }
        // Traffic that succeeds is the better probe.
        let spared = calm && since_ok.is_some_and(|since| since < self.config.good_span);
        (!spared).then(|| self.probes.start(now))
    }

    /// Takes in what happened. Returns what changed.
    pub fn on(&mut self, event: Event<C>, now: Instant, random: &mut impl Rng) -> Option<Change<C>> {
        match event {
            Event::Tick(sight) => self.tick(&sight, now, random),
            Event::Probed { started, session, outcome } => self.probed(started, session, outcome, now),
            Event::Diagnosed(cause) => self.diagnosed(cause, now),
            Event::Reported(cause) => self.reported(cause, now, random),
            Event::Forced(force) => self.forced(force, now),
            Event::Renewed => self.renewed(now),
            Event::Expected => {
                self.probes.hurry(now);
                None
            }
        }
    }

    fn tick(&mut self, sight: &Sight, now: Instant, random: &mut impl Rng) -> Option<Change<C>> {
        self.count_stuck(sight);
        match self.state {
            // ## Closed => Suspect
            State::Closed => {
                let evidence = self.suspicion(sight)?;
                self.probes.ask_again(self.config.tick * 2, now);
                self.cause = None;
                Some(self.change(State::Suspect, evidence, now))
            }
            State::Suspect => self.confirm(sight, now, random),
            // ## Open => HalfOpen
            State::Open { until } => (now >= until).then(|| {
                let hold = self.last_hold.unwrap_or(Duration::ZERO);
                self.probes.hurry(now);
                self.change(State::HalfOpen { good: Good::default() }, Evidence::HoldOver(hold), now)
            }),
            State::Ramp { step, next } => self.ramp(step, next, sight, now, random),
            State::HalfOpen { .. } | State::ForcedOpen | State::ForcedClosed => None,
        }
    }

    fn confirm(&mut self, sight: &Sight, now: Instant, random: &mut impl Rng) -> Option<Change<C>> {
        if let Some(evidence) = self.trips(sight) {
            // ## Suspect => Open
            return Some(self.trip(evidence, now, random));
        }
        // ## Suspect => Closed
        let answered = !matches!(self.probes.verdict(), Verdict::Pending | Verdict::Bad);
        (answered && self.suspicion(sight).is_none()).then(|| {
            self.cause = None;
            self.change(State::Closed, Evidence::Cleared, now)
        })
    }

    fn ramp(
        &mut self,
        step: u8,
        next: Instant,
        sight: &Sight,
        now: Instant,
        random: &mut impl Rng,
    ) -> Option<Change<C>> {
        // ## Ramp => Open
        if let Some(evidence) = self.trips(sight) {
            return Some(self.trip(evidence, now, random));
        }
        let failing = percent(sight.recent.failed, sight.recent.calls()) >= self.config.ramp_failures;
        let stuck = sight.scan.stuck > 0 && self.probes.verdict() != Verdict::Good;
        // A rate that stays bad while probes are good is not the service's: it must not pin the ramp for ever.
        let patient = now < next + self.config.ramp_step * 4;
        if now < next || stuck || failing && patient {
            return None;
        }
        // ## Ramp => Closed
        if step + 1 >= RAMP_STEPS {
            self.cause = None;
            self.closed_at = Some(now);
            return Some(self.change(State::Closed, Evidence::RampStep, now));
        }
        // ## Ramp => Ramp
        let state = State::Ramp { step: step + 1, next: now + self.config.ramp_step };
        Some(self.change(state, Evidence::RampStep, now))
    }

    fn probed(
        &mut self,
        started: Instant,
        session: Session,
        outcome: ProbeOutcome,
        now: Instant,
    ) -> Option<Change<C>> {
        self.probes.answered(outcome);
        match self.state {
            State::HalfOpen { good } => self.half_open(good, started, session, outcome, now),
            // ## Closed => Suspect: a service that nobody calls can fail, too.
            State::Closed if self.probes.verdict() == Verdict::Bad => {
                self.probes.hurry(now + self.config.tick * 2);
                self.cause = None;
                Some(self.change(State::Suspect, Evidence::Probe(outcome), now))
            }
            State::Closed
            | State::Suspect
            | State::Open { .. }
            | State::Ramp { .. }
            | State::ForcedOpen
            | State::ForcedClosed => None,
        }
    }

    fn half_open(
        &mut self,
        mut good: Good,
        started: Instant,
        session: Session,
        outcome: ProbeOutcome,
        now: Instant,
    ) -> Option<Change<C>> {
        match outcome {
            ProbeOutcome::Ok => good.seen += 1,
            // Where probes cannot tell, an answer is all there is to go by; the ramp is careful.
            ProbeOutcome::Inconclusive | ProbeOutcome::Unasked => {}
            ProbeOutcome::Timeout | ProbeOutcome::Failed | ProbeOutcome::Unwanted => {
                self.state = State::HalfOpen { good: Good::default() };
                return None;
            }
        }
        let first = *good.first.get_or_insert(now);
        if good.count == 0 {
            self.probes.hurry(started + self.config.probe_other);
        }
        good.count += 1;
        good.fresh |= session == Session::Fresh;
        // Probes start on ticks: half a tick less than the span is the span.
        let spans = now.duration_since(first) + self.config.tick / 2 >= self.config.good_span;
        if good.count >= self.config.good_probes && spans && good.fresh {
            // ## HalfOpen => Ramp
            let evidence = if good.seen > 0 { Evidence::ProbesGood } else { Evidence::ProbesSilent };
            return Some(self.start_ramp(evidence, now));
        }
        self.state = State::HalfOpen { good };
        None
    }

    fn renewed(&mut self, now: Instant) -> Option<Change<C>> {
        match self.state {
            State::ForcedOpen | State::ForcedClosed => None,
            // ## _ => Ramp
            State::Closed
            | State::Suspect
            | State::Open { .. }
            | State::HalfOpen { .. }
            | State::Ramp { .. } => {
                self.cause = None;
                self.last_hold = None;
                self.closed_at = None;
                self.probes = Probes::new(now);
                Some(self.start_ramp(Evidence::Renewed, now))
            }
        }
    }

    fn start_ramp(&mut self, evidence: Evidence, now: Instant) -> Change<C> {
        self.epoch += 1;
        self.stuck_ticks = 0;
        let state = State::Ramp { step: 0, next: now + self.config.ramp_step };
        self.change(state, evidence, now)
    }

    fn diagnosed(&mut self, cause: C, now: Instant) -> Option<Change<C>> {
        self.cause = Some(cause);
        self.cause_at = now;
        // Refusals name the cause, and whoever was told of the trip without one hears it now.
        let refusing = matches!(self.state, State::Open { .. } | State::HalfOpen { .. });
        refusing.then(|| self.change(self.state.clone(), Evidence::Diagnosed, now))
    }

    fn reported(&mut self, cause: C, now: Instant, random: &mut impl Rng) -> Option<Change<C>> {
        match self.state {
            // ## Closed | Suspect | Ramp => Open
            State::Closed | State::Suspect | State::Ramp { .. } => {
                self.cause = Some(cause);
                self.cause_at = now;
                Some(self.trip(Evidence::Reported, now, random))
            }
            // Whatever was counted before the proof is void.
            State::HalfOpen { .. } => {
                self.state = State::HalfOpen { good: Good::default() };
                None
            }
            State::Open { .. } | State::ForcedOpen | State::ForcedClosed => None,
        }
    }

    fn forced(&mut self, force: Force, now: Instant) -> Option<Change<C>> {
        let state = match (force, &self.state) {
            // ## _ => ForcedOpen
            (Force::Open, State::ForcedOpen) | (Force::Closed, State::ForcedClosed) => return None,
            (Force::Open, _) => State::ForcedOpen,
            // ## _ => ForcedClosed
            (Force::Closed, _) => State::ForcedClosed,
            // ## ForcedOpen => HalfOpen: whether the service is well has to be shown.
            (Force::Auto, State::ForcedOpen) => State::HalfOpen { good: Good::default() },
            // ## ForcedClosed => Closed
            (Force::Auto, State::ForcedClosed) => State::Closed,
            (Force::Auto, _) => return None,
        };
        self.cause = None;
        self.probes.hurry(now);
        self.epoch += 1;
        Some(self.change(state, Evidence::Forced(force), now))
    }

    fn trip(&mut self, evidence: Evidence, now: Instant, random: &mut impl Rng) -> Change<C> {
        let ramps = matches!(self.state, State::Ramp { .. });
        let served = self.closed_at.map(|closed| now.duration_since(closed));
        let relapses = |hold| ramps || served.is_some_and(|served| served < hold * RELAPSE);
        let hold = match self.last_hold {
            Some(hold) if relapses(hold) => (hold * 2).min(self.config.hold_max),
            Some(_) | None => self.config.hold_min,
        };
        self.last_hold = Some(hold);
        if now.duration_since(self.cause_at) > CAUSE_MAX {
            self.cause = None;
        }
        self.epoch += 1;
        self.stuck_ticks = 0;
        let until = now + self.config.jittered(hold, random);
        self.change(State::Open { until }, evidence, now)
    }

    /// Why the service looks wrong, if it does.
    fn suspicion(&self, sight: &Sight) -> Option<Evidence> {
        let rate = percent(sight.recent.bad(), sight.recent.calls());
        if sight.scan.suspect > 0 {
            Some(Evidence::Stuck(sight.scan))
        } else if sight.failures_in_a_row >= self.config.consecutive_failures {
            Some(Evidence::ConsecutiveFailures(sight.failures_in_a_row))
        } else if sight.recent.calls() >= self.config.rate_calls && rate >= self.config.rate_share {
            Some(Evidence::FailureRate(sight.recent))
        } else {
            self.probes.failures(1).map(Evidence::Probe)
        }
    }

    /// Why the service is to be taken for gone, if it is.
    fn trips(&self, sight: &Sight) -> Option<Evidence> {
        let verdict = self.probes.verdict();
        let bad = match verdict {
            Verdict::Good | Verdict::Pending => return None,
            Verdict::Bad => true,
            Verdict::Unknown | Verdict::Unasked => false,
        };
        let progress = sight.since_ok.is_some_and(|since| since < sight.stuck_after);
        let rate = percent(sight.recent.bad(), sight.recent.calls());
        let many = self.stuck_ticks >= self.config.stuck_ticks;
        if !progress && (many || bad && sight.scan.stuck > 0) {
            Some(Evidence::Stuck(sight.scan))
        } else if let Some(failed) = self.probes.failures(self.probes_wanted(sight, progress)) {
            Some(Evidence::Probe(failed))
        } else if verdict == Verdict::Unasked {
            None
        } else if sight.failures_in_a_row >= self.config.consecutive_failures {
            Some(Evidence::ConsecutiveFailures(sight.failures_in_a_row))
        } else if sight.recent.calls() >= self.config.rate_calls && rate >= self.config.rate_share {
            Some(Evidence::FailureRate(sight.recent))
        } else {
            None
        }
    }

    /// How many probes in a row must have failed to prove by themselves that the service is gone. Progress is a reason to ask once
    /// more, but not for ever: where calls are stuck as probes are, those that end do not need what these wait for.
    fn probes_wanted(&self, sight: &Sight, progress: bool) -> u32 {
        match progress {
            false => self.config.probe_failures,
            true if sight.scan.stuck > 0 => self.config.probe_failures * 2,
            true => u32::MAX,
        }
    }

    /// On how many ticks in a row so many calls were stuck that they need no probe.
    fn count_stuck(&mut self, sight: &Sight) {
        let Scan { stuck, in_flight, .. } = sight.scan;
        let share = (in_flight * usize::from(self.config.stuck_share)).div_ceil(100);
        let enough = stuck >= self.config.stuck_calls.max(share);
        self.stuck_ticks = if enough { self.stuck_ticks + 1 } else { 0 };
    }

    fn change(&mut self, state: State, evidence: Evidence, at: Instant) -> Change<C> {
        let from = self.phase();
        self.state = state;
        Change { at, from, to: self.phase(), epoch: self.epoch, cause: self.cause.clone(), evidence }
    }
}

fn percent(part: u64, whole: u64) -> u8 {
    u8::try_from((part * 100).checked_div(whole).unwrap_or(0)).unwrap_or(100)
}
