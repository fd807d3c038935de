//! Deadlines: an instant by which an answer is due, however many steps it takes.
//!
//! A [`Deadline`] is fixed once, when the work arrives, and handed down; nobody restarts the clock. Combining two
//! keeps the earlier. gRPC and Finagle carry deadlines the same way.
//!
//! [`EnforceDeadline`] bounds one call of a service by the deadline of its request.
//! * **Acts** when the deadline of a request passes before its response: the inner future is dropped and the
//!   caller gets [`DeadlineExceeded`]. A request that arrives too late never reaches the inner service.
//! * **Promises** an answer within a millisecond (the resolution of tokio's timer) after the deadline, on a
//!   runtime that is not blocked; and that a response which is ready in time is delivered even if the timer
//!   fired in the same poll.
//! * **Does not** undo anything: work that was sent elsewhere goes on there, and whether it happened is unknown.
//!   It does not bound `poll_ready`, which no deadline has reached yet.
//! * Costs one timer per call. Where that is too much (one call per row, one per packet), keep the instants in a
//!   table and sweep it instead.

mod error;
mod future;
mod layer;

use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;
use tower_service::Service;

pub use error::{DeadlineExceeded, Progress};
pub use future::ResponseFuture;
pub use layer::EnforceDeadlineLayer;

/// The instant by which an answer is due. It can be tightened, never extended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Deadline(Instant);

impl Deadline {
    /// Due at `instant`.
    pub const fn at(instant: Instant) -> Self {
        Self(instant)
    }

    /// Due `budget` from now. A budget that overflows the clock counts as thirty years.
    pub fn within(budget: Duration) -> Self {
        Self::after(Instant::now(), budget)
    }

    /// Due `budget` after `start`, for work that arrived earlier than now.
    pub fn after(start: Instant, budget: Duration) -> Self {
        const FAR: Duration = Duration::from_hours(30 * 365 * 24);
        Self(start.checked_add(budget).unwrap_or_else(|| start + FAR))
    }

    /// The earlier of two deadlines.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Ord::min(self, other)
    }

    /// The instant itself.
    pub const fn instant(self) -> Instant {
        self.0
    }

    /// What is left of the budget at `now`; zero once it has passed.
    pub fn remaining(self, now: Instant) -> Duration {
        self.0.saturating_duration_since(now)
    }

    /// Whether it has passed at `now`.
    pub fn expired(self, now: Instant) -> bool {
        self.0 <= now
    }
}

/// A request that knows when its answer is due.
pub trait HasDeadline {
    /// The deadline, or `None` for a request that may take for ever.
    fn deadline(&self) -> Option<Deadline>;
}

/// Bounds each call by the deadline of its request; see the [module](self).
///
/// The inner error must be able to say that the deadline passed (`From<DeadlineExceeded>`): an enum of the
/// caller's, or a boxed error.
#[derive(Debug, Clone)]
pub struct EnforceDeadline<S> {
    inner: S,
}

impl<S> EnforceDeadline<S> {
    /// Wraps `inner`.
    pub const fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S, R> Service<R> for EnforceDeadline<S>
where
    S: Service<R>,
    S::Error: From<DeadlineExceeded>,
    R: HasDeadline,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        match request.deadline() {
            None => ResponseFuture::unbounded(self.inner.call(request)),
            Some(deadline) if deadline.expired(Instant::now()) => ResponseFuture::expired(),
            Some(deadline) => ResponseFuture::bounded(self.inner.call(request), deadline),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_clock_is_never_restarted() {
        // If `remaining` counted from anything but the first instant, a second step would get a fresh budget.
        let deadline = Deadline::within(Duration::from_millis(100));

        tokio::time::advance(Duration::from_millis(70)).await;
        assert_eq!(deadline.remaining(Instant::now()), Duration::from_millis(30));

        tokio::time::advance(Duration::from_millis(30)).await;
        assert!(deadline.expired(Instant::now()));
        assert_eq!(deadline.remaining(Instant::now()), Duration::ZERO);
    }

    #[test]
    fn of_two_deadlines_the_earlier_holds() {
        // Taking the later would let a careless caller widen what a careful one had fixed.
        let now = Instant::now();
        let (near, far) = (Deadline::at(now), Deadline::after(now, Duration::from_secs(1)));

        assert_eq!(near.min(far), near);
        assert_eq!(far.min(near), near);
    }

    #[test]
    fn an_endless_budget_does_not_overflow_the_clock() {
        // `Instant + Duration::MAX` panics; a configured "for ever" must not.
        let now = Instant::now();

        assert!(!Deadline::after(now, Duration::MAX).expired(now + Duration::from_hours(1)));
    }
}
