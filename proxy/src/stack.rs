//! The layers between a session and a backend, outermost first.
//!
//! The unit of admission is a lease: from the first exchange of a transaction until the server says that it is
//! idle again. The stack is called once per lease; the bytes of the exchange do not come through here.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tidegate_layers::shed::Ask;
use tokio::time::Instant;
use tower::{Layer, Service, ServiceBuilder};

use crate::exchange::Refusal;
use crate::pool::{Acquire, Lease, Pool};
use crate::sql::Lane;

/// A request for a backend.
#[derive(Debug, Clone, Copy)]
pub struct Checkout<'a> {
    /// The pool that was routed to.
    pub pool: &'a Arc<Pool>,
    /// The lane of the strongest statement of the exchange.
    pub lane: Lane,
    /// Priority and deadline.
    pub ask: Ask,
    /// When the exchange is admitted.
    pub now: Instant,
    /// The worker that will use the backend.
    pub worker: usize,
}

/// What a session calls.
pub type Stack = Admit<PoolService>;

/// Puts the layers together. A session goes by [`Stack::at_once`] and [`Stack::queue`] where it can, which do what the layers
/// do without their futures: whoever adds one adds it there.
pub fn build() -> Stack {
    ServiceBuilder::new()
        // Before any queue: what a stuck server cannot serve must cost neither a place nor a wait.
        .layer(AdmitLayer)
        // Innermost: priority, CoDel queue, limit and the idle backends are one hand-over under one lock, so
        // that a backend never passes by whoever waits for it.
        .service(PoolService(()))
}

/// Refuses while the breaker of the lane is open.
#[derive(Debug, Clone, Copy)]
pub struct AdmitLayer;

impl<S> Layer<S> for AdmitLayer {
    type Service = Admit<S>;

    fn layer(&self, inner: S) -> Admit<S> {
        Admit { inner }
    }
}

/// See [`AdmitLayer`]. The exchanges of the lease report to the breaker one by one; this is only its door.
#[derive(Debug, Clone)]
pub struct Admit<S> {
    inner: S,
}

impl Stack {
    /// What a call would resolve to at once, without the future. `None`: the call may have to wait, or says why
    /// there is nothing.
    #[inline]
    pub fn at_once(&self, checkout: Checkout<'_>) -> Option<Lease> {
        checkout.pool.upstream.guard.admit(checkout.lane, checkout.now).ok()?;
        checkout.pool.acquire_at_once(checkout.lane, &checkout.ask, checkout.now, checkout.worker).ok()
    }

    /// What a call gives once [`Stack::at_once`] has found nothing: a wait, or why there is none.
    #[inline]
    pub fn queue(&self, checkout: Checkout<'_>) -> Admitting<Acquire> {
        Admitting::door(checkout, |Checkout { pool, lane, ask, worker, .. }| pool.enqueue(lane, ask, worker))
    }
}

impl<'a, S> Service<Checkout<'a>> for Admit<S>
where
    S: Service<Checkout<'a>, Response = Lease, Error = Refusal>,
    S::Future: Unpin,
{
    type Response = Lease;
    type Error = Refusal;
    type Future = Admitting<S::Future>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, checkout: Checkout<'a>) -> Self::Future {
        Admitting::door(checkout, |checkout| self.inner.call(checkout))
    }
}

/// The future of [`Admit`].
#[derive(Debug)]
#[must_use]
pub struct Admitting<F>(State<F>);

#[derive(Debug)]
enum State<F> {
    Admitted(F),
    /// `None` once it was said.
    Refused(Option<Refusal>),
}

impl<F> Admitting<F> {
    /// Calls what is behind the door, unless the breaker is open.
    #[inline]
    fn door<'a>(checkout: Checkout<'a>, inner: impl FnOnce(Checkout<'a>) -> F) -> Self {
        match checkout.pool.upstream.guard.admit(checkout.lane, checkout.now) {
            Ok(()) => Self(State::Admitted(inner(checkout))),
            Err(open) => Self(State::Refused(Some(Refusal::breaker_open(checkout.lane, open)))),
        }
    }
}

impl<F: Future<Output = Result<Lease, Refusal>> + Unpin> Future for Admitting<F> {
    type Output = Result<Lease, Refusal>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            State::Admitted(inner) => Pin::new(inner).poll(cx),
            State::Refused(refusal) => {
                refusal.take().map_or(Poll::Pending, |refusal| Poll::Ready(Err(refusal)))
            }
        }
    }
}

/// The innermost service: the pools themselves. Always ready; whoever has to wait waits in the call, so that
/// an idle session parks no permit.
#[derive(Debug, Clone)]
pub struct PoolService(());

impl<'a> Service<Checkout<'a>> for PoolService {
    type Response = Lease;
    type Error = Refusal;
    type Future = Acquire;

    #[inline]
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, checkout: Checkout<'a>) -> Acquire {
        checkout.pool.acquire(checkout.lane, checkout.ask, checkout.worker)
    }
}
