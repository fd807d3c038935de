//! What a breaker is told, and what it tells.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use super::phase::Phase;
use super::slots::Scan;
use super::window::Counts;

/// Which connection a probe is to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    /// One that is kept for probes: fast, but says nothing about accepting and authenticating.
    Kept,
    /// A new one.
    Fresh,
}

/// What a probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// The service does its work.
    Ok,
    /// It did not answer in time.
    Timeout,
    /// It answered that it cannot do its work, or could not be reached.
    Failed,
    /// It was asked and could not say (e.g. the probe lacks the rights): no news.
    Inconclusive,
    /// There was no way to ask yet. Calls that failed are then no proof: nobody has seen the service work.
    Unasked,
    /// Nobody expects the work of the service now, and it was not asked: no news, and no proof of a recovery either.
    Unwanted,
}

/// Synthetic traffic: asks the service to do what the calls behind this breaker ask for.
pub trait Probe {
    /// Asks once. It need not bound itself: it is dropped after `probe_timeout`, and there is never a second one
    /// at the same time.
    ///
    /// # Cancel safety
    /// Must hold: after a drop the kept session may be in any state, and must not be trusted by the next probe.
    fn probe(&self, session: Session) -> impl Future<Output = ProbeOutcome> + Send;
}

/// Finds out *why* the service hangs. Asked as soon as it is suspect, so that the answer is there when it trips.
pub trait Diagnose<C> {
    /// The cause, if it can be told. Dropped after `diagnosis_max`.
    fn diagnose(&self) -> impl Future<Output = Option<C>> + Send;
}

/// For services of which nothing can be asked.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoDiagnosis;

impl<C> Diagnose<C> for NoDiagnosis {
    async fn diagnose(&self) -> Option<C> {
        None
    }
}

/// Who is told of each change, before calls are let through and after they are refused.
pub trait Events<C> {
    /// A change is about to take effect, and waits until this is done: to write it down first. What can take long
    /// needs a bound of its own, since calls go on as before in the meantime.
    fn record(&mut self, change: &Change<C>) -> impl Future<Output = ()> + Send {
        let _ = change;
        std::future::ready(())
    }

    /// Something changed. Called by the watchdog's task: must not block.
    fn changed(&mut self, change: &Change<C>);
}

impl<C, F: FnMut(&Change<C>)> Events<C> for F {
    fn changed(&mut self, change: &Change<C>) {
        self(change);
    }
}

/// A change of phase, or (with equal phases) a cause that was found after the breaker opened.
#[derive(Debug, Clone, PartialEq)]
pub struct Change<C> {
    /// When.
    pub at: Instant,
    /// The phase before.
    pub from: Phase,
    /// The phase after.
    pub to: Phase,
    /// Counts the admission periods: a completion of an older epoch changes nothing.
    pub epoch: u64,
    /// What is wrong, once it is known.
    pub cause: Option<C>,
    /// What was seen.
    pub evidence: Evidence,
}

/// What made a breaker change.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Evidence {
    /// Calls that do not finish.
    Stuck(Scan),
    /// Failures in a row.
    ConsecutiveFailures(u32),
    /// Failures and slow calls among those of [`rate_window`](super::BreakerConfig::rate_window).
    FailureRate(Counts),
    /// A probe that failed.
    Probe(ProbeOutcome),
    /// A proof from outside that needs no confirmation; see [`Handle::report`](super::Handle::report).
    Reported,
    /// An order.
    Forced(Force),
    /// The diagnosis came back.
    Diagnosed,
    /// What was suspected was not so.
    Cleared,
    /// The time to stay open is over.
    HoldOver(Duration),
    /// Enough good probes.
    ProbesGood,
    /// Enough probes, and none could tell.
    ProbesSilent,
    /// The service is not the one that was seen before.
    Renewed,
    /// The ramp went well.
    RampStep,
}

/// An order to a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Force {
    /// Decide by what is seen.
    #[default]
    Auto,
    /// Refuse everything.
    Open,
    /// Admit everything.
    Closed,
}

/// What is seen at one tick.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sight {
    /// What is in flight.
    pub scan: Scan,
    /// What completed within [`rate_window`](super::BreakerConfig::rate_window).
    pub recent: Counts,
    /// Failures since the last success.
    pub failures_in_a_row: u32,
    /// Time since a call last did its work.
    pub since_ok: Option<Duration>,
    /// When a call counts as stuck.
    pub stuck_after: Duration,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event<C> {
    /// Time for a look.
    Tick(Sight),
    /// A probe came back that was started at this time.
    Probed {
        /// When it was started.
        started: Instant,
        /// On which connection.
        session: Session,
        /// What it found.
        outcome: ProbeOutcome,
    },
    /// The diagnosis came back.
    Diagnosed(C),
    /// A proof that needs no confirmation.
    Reported(C),
    /// An order.
    Forced(Force),
    /// The service is not the one that was seen before, and was seen to work.
    Renewed,
    /// From now on the service is to do this work.
    Expected,
}
