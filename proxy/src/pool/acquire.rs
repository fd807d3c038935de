//! The future of a checkout.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tidegate_layers::shed::Checkout;

use super::{Lease, Pool};
use crate::backend::Backend;
use crate::exchange::Refusal;
use crate::sql::Lane;

/// Resolves to a [`Lease`] or to the reason why there is none. Dropping it leaves the queue at once; a
/// backend that was granted in that very moment goes to whoever is next.
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
    Waiting(Wait),
    Done,
}

#[derive(Debug)]
struct Wait {
    checkout: Checkout<Box<Backend>>,
    pool: Arc<Pool>,
    lane: Lane,
    /// Whether it has been in the queue when the pool looked whether it needs more backends.
    counted: Counted,
}

#[derive(Debug, PartialEq, Eq)]
enum Counted {
    No,
    Yes,
}

impl Acquire {
    pub(super) fn ready(lease: Lease) -> Self {
        let worker = lease.worker;
        Self { state: State::Ready(lease), worker }
    }

    /// Of a checkout that was refused before it began.
    pub fn refused(refusal: Refusal) -> Self {
        Self { state: State::Refused(refusal), worker: 0 }
    }

    pub(super) fn waiting(
        checkout: Checkout<Box<Backend>>,
        pool: Arc<Pool>,
        lane: Lane,
        worker: usize,
    ) -> Self {
        Self { state: State::Waiting(Wait { checkout, pool, lane, counted: Counted::No }), worker }
    }

    /// A backend that is registered with another worker's runtime moves here.
    fn move_in(&self, mut lease: Lease) -> Result<Lease, Refusal> {
        match lease.move_to(self.worker) {
            Ok(()) => Ok(lease),
            Err(error) => Err(Refusal::NoUpstream {
                cause: Arc::new(error.into()),
                retry_after: std::time::Duration::from_millis(100),
            }),
        }
    }
}

impl Wait {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Lease, Refusal>> {
        match Pin::new(&mut self.checkout).poll(cx) {
            Poll::Ready(Ok(lease)) => Poll::Ready(Ok(Lease::new(lease, Arc::clone(&self.pool)))),
            Poll::Ready(Err(refused)) => Poll::Ready(Err(self.pool.refusal(self.lane, refused))),
            Poll::Pending => {
                if self.counted == Counted::No {
                    self.counted = Counted::Yes;
                    self.pool.open_as_needed();
                }
                Poll::Pending
            }
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
            State::Waiting(mut wait) => match wait.poll(cx) {
                Poll::Ready(Ok(lease)) => lease,
                Poll::Ready(Err(refusal)) => return Poll::Ready(Err(refusal)),
                Poll::Pending => {
                    self.state = State::Waiting(wait);
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
        if let State::Ready(lease) = std::mem::replace(&mut self.state, State::Done) {
            lease.give_back();
        }
    }
}
