//! The future of a checkout.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::{Lease, Pool, Waiter};
use crate::exchange::Refusal;

/// Resolves to a [`Lease`] or to the reason why there is none. Dropping it leaves the queue at once; a
/// backend that was granted in that very moment goes back to the pool.
#[derive(Debug)]
#[must_use]
pub struct Acquire {
    state: State,
    worker: usize,
}

#[derive(Debug)]
enum State {
    Ready(Lease),
    Refused(Refusal),
    Waiting(Arc<Pool>, Arc<Waiter>),
    Done,
}

impl Acquire {
    pub(super) fn ready(lease: Lease, worker: usize) -> Self {
        Self { state: State::Ready(lease), worker }
    }

    pub(super) fn refused(refusal: Refusal) -> Self {
        Self { state: State::Refused(refusal), worker: 0 }
    }

    pub(super) fn waiting(pool: Arc<Pool>, waiter: Arc<Waiter>, worker: usize) -> Self {
        Self { state: State::Waiting(pool, waiter), worker }
    }

    /// A backend that is registered with another worker's runtime moves here.
    fn move_in(&self, mut lease: Lease) -> Result<Lease, Refusal> {
        if lease.worker == self.worker {
            return Ok(lease);
        }
        match lease.stream.socket_mut().rehome() {
            Ok(()) => {
                lease.worker = self.worker;
                Ok(lease)
            }
            Err(error) => Err(Refusal::NoUpstream {
                cause: Arc::new(error.into()),
                retry_after: std::time::Duration::from_millis(100),
            }),
        }
    }
}

impl Future for Acquire {
    type Output = Result<Lease, Refusal>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let lease = match std::mem::replace(&mut self.state, State::Done) {
            State::Ready(lease) => lease,
            State::Refused(refusal) => return Poll::Ready(Err(refusal)),
            State::Waiting(pool, waiter) => match waiter.poll(cx) {
                Poll::Ready(Ok(backend)) => Lease::new(backend, pool),
                Poll::Ready(Err(refusal)) => return Poll::Ready(Err(refusal)),
                Poll::Pending => {
                    self.state = State::Waiting(pool, waiter);
                    return Poll::Pending;
                }
            },
            State::Done => return Poll::Pending,
        };
        Poll::Ready(self.move_in(lease))
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.state, State::Done) {
            State::Waiting(pool, waiter) => {
                pool.forsake(&waiter);
                if let Some(backend) = waiter.leave() {
                    Lease::new(backend, pool).give_back();
                }
            }
            State::Ready(lease) => lease.give_back(),
            State::Refused(_) | State::Done => {}
        }
    }
}
