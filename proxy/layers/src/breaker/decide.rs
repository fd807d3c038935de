//! Between what is counted and the machine that decides.

use std::collections::VecDeque;

use rand::Rng;
use tokio::time::Instant;

use super::config::BreakerConfig;
use super::event::{Change, Event, Events, Force, ProbeOutcome, Session, Sight};
use super::handle::{Handle, Report};
use super::latency::Latencies;
use super::phase::Phase;
use super::state::Machine;
use super::window::Window;

/// A probe that is under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) started: Instant,
    pub(super) session: Session,
}

/// The one thing that happened first.
#[derive(Debug)]
pub(super) enum Woken<C> {
    Tick,
    Probed(Asked, ProbeOutcome),
    Diagnosed(Option<C>),
    Report(Report<C>),
}

/// Whether to look for the cause now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Diagnosis {
    Wanted,
    Unneeded,
}

/// Feeds the machine, and makes effective what it decides.
#[derive(Debug)]
pub(super) struct Decider<C, E, R> {
    handle: Handle<C>,
    machine: Machine<C>,
    config: BreakerConfig,
    window: Window,
    latencies: Latencies,
    /// Calls that began before this are of an epoch that is over.
    epoch_began: Instant,
    force: Force,
    /// While the breaker is open without a cause: when to ask for it again.
    next_diagnosis: Instant,
    /// Decided, and not yet in force.
    changes: VecDeque<Change<C>>,
    events: E,
    random: R,
}

impl<C: Clone, E: Events<C>, R: Rng> Decider<C, E, R> {
    pub(super) fn new(config: BreakerConfig, handle: Handle<C>, events: E, random: R, now: Instant) -> Self {
        Self {
            handle,
            machine: Machine::new(config, now),
            config,
            window: Window::new(config.rate_window, now),
            latencies: Latencies::new(now),
            epoch_began: now,
            force: Force::Auto,
            next_diagnosis: now,
            changes: VecDeque::new(),
            events,
            random,
        }
    }

    pub(super) fn take(&mut self, woken: Woken<C>, now: Instant) -> Diagnosis {
        self.obey(now);
        let event = match woken {
            Woken::Tick => {
                self.learn(now);
                Event::Tick(self.look(now))
            }
            Woken::Probed(Asked { started, session }, outcome) => Event::Probed { started, session, outcome },
            Woken::Diagnosed(Some(cause)) => Event::Diagnosed(cause),
            Woken::Report(Report::Proof(cause)) => Event::Reported(cause),
            Woken::Report(Report::Renewed) => Event::Renewed,
            Woken::Report(Report::Expected) => Event::Expected,
            Woken::Diagnosed(None) | Woken::Report(Report::Ordered) => return self.diagnosis(now),
        };
        self.feed(event, now);
        self.diagnosis(now)
    }

    /// The cause is asked for as soon as there is something to explain, and again while there is no answer.
    fn diagnosis(&mut self, now: Instant) -> Diagnosis {
        let unexplained = match self.machine.phase() {
            Phase::Suspect | Phase::Open | Phase::HalfOpen => self.machine.cause().is_none(),
            Phase::Closed | Phase::Ramp { .. } | Phase::ForcedOpen | Phase::ForcedClosed => false,
        };
        if !unexplained {
            self.next_diagnosis = now;
            return Diagnosis::Unneeded;
        }
        if now < self.next_diagnosis {
            return Diagnosis::Unneeded;
        }
        self.next_diagnosis = now + self.config.diagnosis_max;
        Diagnosis::Wanted
    }

    /// Whether to start a probe now.
    pub(super) fn probe_due(&mut self, now: Instant) -> Option<Session> {
        let since_ok = self.handle.tally().since_ok(now);
        self.machine.probe_due(since_ok, now, &mut self.random)
    }

    /// The rules that it goes by.
    pub(super) const fn config(&self) -> BreakerConfig {
        self.config
    }

    fn learn(&mut self, now: Instant) {
        if let Some(config) = self.handle.new_config() {
            if config.rate_window != self.config.rate_window {
                self.window = Window::new(config.rate_window, now);
            }
            self.config = config;
            self.machine.configure(config, now);
        }
    }

    fn obey(&mut self, now: Instant) {
        let force = self.handle.ordered();
        if force != self.force {
            self.force = force;
            self.feed(Event::Forced(force), now);
        }
    }

    fn look(&mut self, now: Instant) -> Sight {
        let tally = self.handle.tally();
        self.window.add(tally.drain(), now);
        self.latencies.add(&tally.drain_latencies(), now);
        let stuck_after = self.config.stuck_after(self.latencies.p99());
        Sight {
            scan: self.handle.table().scan(self.epoch_began, now, stuck_after),
            recent: self.window.sum(),
            failures_in_a_row: tally.failures_in_a_row(),
            since_ok: tally.since_ok(now),
            stuck_after,
        }
    }

    fn feed(&mut self, event: Event<C>, now: Instant) {
        let epoch = self.machine.epoch();
        if let Some(change) = self.machine.on(event, now, &mut self.random) {
            if change.epoch != epoch {
                self.start_epoch(now);
            }
            self.changes.push_back(change);
        }
    }

    /// Puts in force what was decided, once it is recorded.
    ///
    /// # Cancel safety
    /// Dropping it leaves the rest undone; the watchdog that is dropped with it decides nothing more.
    pub(super) async fn put_in_force(&mut self) {
        while let Some(change) = self.changes.pop_front() {
            self.events.record(&change).await;
            self.switch(&change, Instant::now());
        }
    }

    /// What was counted before says nothing about the new epoch.
    fn start_epoch(&mut self, now: Instant) {
        self.epoch_began = now;
        self.handle.tally().forget();
        self.window.clear(now);
    }

    /// Shuts before it tells (or whoever is told would flush a queue that still fills), and tells before it opens
    /// (or calls would pass a limit that is not set yet).
    fn switch(&mut self, change: &Change<C>, now: Instant) {
        let publish = |decider: &Self| {
            let retry_at = decider.machine.retry_at(now);
            decider.handle.publish(change.to, change.epoch, change.cause.clone(), retry_at);
        };
        if change.to.admits() {
            self.events.changed(change);
            publish(self);
        } else {
            publish(self);
            self.events.changed(change);
        }
    }
}
