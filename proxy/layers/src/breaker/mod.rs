//! A circuit breaker for services that *hang*: it trips on calls that have not finished.
//!
//! Breakers that count completions learn of a hang only when calls time out, and by then everything that waits
//! behind them is stuck, too. This one looks at the calls in flight, ten times a second.
//!
//! **Two sides.** A [`Handle`] is what calls touch: admission is one atomic load, completion a few relaxed writes,
//! and the calls in flight stand in a [`SlotTable`]. A [`Watchdog`] is the one task that decides; its rules are
//! the [`Machine`], which has no clock and no I/O.
//!
//! **Trips.** A call is stuck after four times the 99th percentile of the last minute, at least 250 ms, at most 1 s
//! ([`BreakerConfig`]). At half of that the service is *suspect*, and a [`Probe`] asks it at once to do the same kind of work.
//!
//! | probe says | trips when |
//! |---|---|
//! | good | never: the calls wait for something of their own (a lock, a slow statement) |
//! | failed, or silent for 500 ms | a call is stuck, or two probes failed in a row, and no call finished meanwhile; or a call is stuck and four probes failed in a row |
//! | failed, or silent, or inconclusive | five failures in a row, or half of at least twenty calls of the last ten seconds ([`BreakerConfig::rate_window`]) failed or were slow |
//! | inconclusive, or not sent | at least three calls and half of those in flight are stuck on two ticks in a row, and no call finished meanwhile |
//! | not asked | at once, by [`Handle::report`] (a proof) or [`Handle::force`] (an order) |
//!
//! **Recovers.** Open for 1 s, doubled up to 30 s each time it trips while ramping, or before the service has worked for four
//! times the last hold; then half-open, where only probes go through: three good ones in a row that span a second, one of them on a
//! fresh connection ([`ProbeOutcome::Unwanted`] is none of them). Then it ramps: see [`Phase::ramp_limit`]. User traffic is never the guinea pig.
//!
//! **Epochs.** Every admission carries the epoch it belongs to. A completion or a stuck call of an older
//! epoch changes nothing, so stragglers of an outage can neither re-open nor close what came after it.
//!
//! * **Promises:** if nothing finishes (calls that do not need what the others wait for are [`Outcome::Answered`]), it is open at most 1.5 s after the first stuck call *began*, however many
//!   successes came before and however few calls there are, if its task gets to run and a probe can be made. A
//!   storm of calls that wait for each other never opens it while probes are good. A refusal is a load, a
//!   short read lock and a clone of the cause.
//! * **Does not** end the calls in flight (their deadlines do), limit concurrency (give [`Phase::ramp_limit`] to
//!   what does), or retry. Refusals come from `call`, never from `poll_ready`: a service that is not ready would
//!   be discarded.
//! * **Overflow:** calls beyond the slots of the table are admitted but not watched; reports beyond sixteen
//!   are dropped, as the first decides.

mod config;
mod decide;
mod error;
mod event;
mod future;
mod handle;
mod latency;
mod layer;
mod phase;
mod probes;
mod slots;
mod state;
mod tally;
mod watchdog;
mod window;

use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;
use tower_service::Service;

pub use config::BreakerConfig;
pub use error::CircuitOpen;
pub use event::{
    Change, Diagnose, Event, Events, Evidence, Force, NoDiagnosis, Probe, ProbeOutcome, Session, Sight,
};
pub use future::ResponseFuture;
pub use handle::{Handle, Ticket};
pub use layer::BreakerLayer;
pub use phase::Phase;
pub use slots::{Scan, SlotTable};
pub use state::Machine;
pub use tally::Outcome;
pub use watchdog::{Senses, Watchdog};
pub use window::Counts;

use future::Call;

/// A success that took longer than this was slow: the latest time at which a call is stuck by default.
const SLOW: Duration = Duration::from_secs(1);

/// Tells what a result says about the health of the service.
pub trait Classify<T, E> {
    /// What it says. An error that is the caller's fault is [`Outcome::Ok`]: the service did its work.
    fn classify(&self, result: Result<&T, &E>) -> Outcome;
}

/// Every error is a failure.
#[derive(Debug, Clone, Copy, Default)]
pub struct ErrorsAreFailures;

impl<T, E> Classify<T, E> for ErrorsAreFailures {
    fn classify(&self, result: Result<&T, &E>) -> Outcome {
        if result.is_ok() { Outcome::Ok } else { Outcome::Failed }
    }
}

/// Refuses calls while the breaker is open; see the [module](self).
///
/// The inner error must be able to say that a call was refused (`From<CircuitOpen<C>>`): an enum of the caller's,
/// or a boxed error.
#[derive(Debug, Clone)]
pub struct Breaker<S, C, K> {
    inner: S,
    handle: Handle<C>,
    classify: K,
}

impl<S, C, K> Breaker<S, C, K> {
    /// Wraps `inner` behind the breaker of `handle`.
    pub const fn new(inner: S, handle: Handle<C>, classify: K) -> Self {
        Self { inner, handle, classify }
    }
}

impl<S, R, C, K> Service<R> for Breaker<S, C, K>
where
    S: Service<R>,
    S::Error: From<CircuitOpen<C>>,
    C: Clone,
    K: Classify<S::Response, S::Error> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, C, K>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        match self.handle.admit(Instant::now()) {
            Ok(ticket) => {
                let call = Call::begin(self.handle.clone(), ticket);
                ResponseFuture::admitted(self.inner.call(request), call, self.classify.clone())
            }
            Err(refusal) => ResponseFuture::refused(refusal),
        }
    }
}
