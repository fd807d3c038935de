//! Load shedding: refuse early what cannot be served in time, so that the rest can be.
//!
//! [`Shed`] admits a request when a permit is free, lets it wait in a bounded queue when not, and refuses it with
//! a [`Reason`] when waiting would be useless.
//!
//! * **Acts** on arrival (no permit, no place in the queue, deadline too near, more important work waiting), on
//!   hand-over (waited too long, or more in flight than [`Ask::ceiling`] of its own), and on each sweep.
//! * **Limit:** as many requests are in flight as [`Limit`] allows: the least of a ceiling, a ramp after an outage,
//!   and what the service has shown to bear (AIMD). A loss counts at once, a success when its lease ends.
//! * **Queue:** per [`Priority`], the most important first. Among equals first come, first served; once `CoDel`
//!   sees a standing queue, last come, first served, and whoever has waited twice the target is refused:
//!   what is served then is still wanted.
//! * **Contention:** when someone had to wait longer than `CoDel`'s target, those less important are held to
//!   their [`Shares`] of the permits for one interval, so that permits are free when important work arrives. A
//!   load of one priority is never held to a share.
//! * **Overflow:** a full queue refuses in constant time and allocates nothing; a more important request
//!   takes the place of the least important waiter.
//! * **Promises:** nobody waits longer than [`QueueConfig::wait_max`] or its own deadline (plus the time between
//!   two sweeps, or a timer's resolution under [`Shed`]); no permit is lost, whatever is dropped when; a freed
//!   permit goes to the waiter whose turn it is, not to whoever polls first.
//! * **Does not** shed what it has admitted (a lease that has to change lanes waits before all others, and is refused
//!   only by a flush), bound the time in service, or know what a request costs.
//!
//! The permit is a value in the response ([`Admitted`]): hold it as long as the request weighs on the
//! service, which may be long after the response began. It is acquired inside the future of `call` and
//! never parked in `poll_ready`, so an idle clone of the service holds nothing.
//!
//! Three levels can be used by themselves: [`AdmitQueue`] is the policy alone; [`Handoff`] lends out items of
//! any type (connections) by that policy; [`Shed`] is a Tower service that needs only permits.

mod ask;
mod board;
mod checkout;
mod codel;
mod error;
mod future;
mod handoff;
mod layer;
mod lease;
mod limit;
mod list;
mod priority;
mod queue;
mod wake;

use std::task::{Context, Poll, Waker};

use tokio::time::Instant;
use tower_service::Service;

use crate::deadline::HasDeadline;

pub use ask::{Admission, Ask, Fared, Joined, QueueConfig};
pub use checkout::Checkout;
pub use codel::CodelConfig;
pub use error::{Overloaded, Reason};
pub use future::ResponseFuture;
pub use handoff::{Handoff, Lane, LaneConfig, LaneStats};
pub use layer::ShedLayer;
pub use lease::{Charge, Lease};
pub use limit::{Limit, LimitConfig};
pub use list::WaiterId;
pub use priority::{Priority, Shares};
pub use queue::AdmitQueue;

/// Permits without items, as [`Shed`] uses them.
pub type Permits = Handoff<()>;

/// The right of one request to be in flight. Dropping it frees the permit.
pub type AdmitPermit = Lease<()>;

/// The only lane of [`Shed`].
const LANE: Lane = 0;

/// A request that knows how much it matters.
pub trait HasPriority {
    /// The priority.
    fn priority(&self) -> Priority;
}

/// A response, and the permit of its request.
#[derive(Debug)]
pub struct Admitted<T> {
    /// What the inner service answered.
    pub response: T,
    /// Hold it for as long as the request weighs on the service.
    pub permit: AdmitPermit,
}

/// A request that has to wait.
struct Queued {
    permits: Permits,
    checkout: Checkout<()>,
    until: Instant,
}

/// Admits, queues or refuses each call; see the [module](self).
///
/// The inner error must be able to say that a request was refused (`From<Overloaded>`): an enum of the
/// caller's, or a boxed error. The inner service is cloned only when a request has to wait.
#[derive(Debug, Clone)]
pub struct Shed<S> {
    inner: S,
    permits: Permits,
}

impl<S> Shed<S> {
    /// Wraps `inner`; the first lane of `permits` is used.
    pub const fn new(inner: S, permits: Permits) -> Self {
        Self { inner, permits }
    }
}

impl<S, R> Service<R> for Shed<S>
where
    S: Service<R> + Clone,
    S::Error: From<Overloaded>,
    R: HasPriority + HasDeadline,
{
    type Response = Admitted<S::Response>;
    type Error = S::Error;
    type Future = ResponseFuture<S, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let deadline = request.deadline().map(crate::Deadline::instant);
        let ask = Ask { priority: request.priority(), deadline, ceiling: None, wait_max: None };
        let mut checkout = self.permits.checkout(LANE, ask);
        // Asked at once: a request must not lose its turn for being polled late.
        match checkout.ask(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(permit)) => ResponseFuture::serving(self.inner.call(request), permit),
            Poll::Ready(Err(refusal)) => ResponseFuture::refused(refusal),
            Poll::Pending => {
                // The clone has not been polled ready; the one that has is used up by this call.
                let clone = self.inner.clone();
                let service = std::mem::replace(&mut self.inner, clone);
                let until = self.permits.wait_bound(LANE, deadline);
                let queued = Queued { permits: self.permits.clone(), checkout, until };
                ResponseFuture::waiting(queued, service, request)
            }
        }
    }
}
