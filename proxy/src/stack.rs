//! The layers between a session and a backend, outermost first.
//!
//! The unit of admission is a lease: from the first exchange of a transaction until the server says that it is
//! idle again. The stack is called once per lease; the bytes of the exchange do not come through here.

use std::sync::Arc;
use std::task::{Context, Poll};

use tower::Service;

use crate::exchange::Refusal;
use crate::pool::{Acquire, Lease, Pool, Waiter};

/// A request for a backend.
#[derive(Debug, Clone, Copy)]
pub struct Checkout<'a> {
    /// The pool that was routed to.
    pub pool: &'a Arc<Pool>,
    /// The session's place in queues.
    pub waiter: &'a Arc<Waiter>,
    /// The worker that will use the backend.
    pub worker: usize,
}

/// What a session calls.
pub type Stack = PoolService;

/// Puts the layers together.
pub fn build() -> Stack {
    // Innermost: takes an idle backend, or queues for one.
    PoolService(())
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
        checkout.pool.acquire(checkout.waiter, checkout.worker)
    }
}
