//! The future of a checkout.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tidegate_layers::shed::{Ask, Checkout};
use tokio::time::Instant;

use super::{Lease, Pool};
use crate::backend::Backend;
use crate::exchange::Refusal;
use crate::sql::Lane;

/// Resolves to a [`Lease`] or to the reason why there is none. Dropping it leaves the queue at once; a
/// backend that was granted in that very moment goes to whoever is next.
#[derive(Debug)]
#[must_use]
pub struct Acquire(State);

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
    ask: Ask,
    /// When it has waited for as long as it may, its deadline aside.
    until: Instant,
    worker: usize,
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
        Self(State::Ready(lease))
    }

    /// Of a checkout that was refused before it began.
    pub fn refused(refusal: Refusal) -> Self {
        Self(State::Refused(refusal))
    }

    pub(super) fn waiting(pool: Arc<Pool>, lane: Lane, ask: Ask, worker: usize) -> Self {
        let wait_max = ask.wait_max.unwrap_or_else(|| pool.upstream.limits().queue_timeout);
        let until = Instant::now() + wait_max;
        let checkout = pool.backends.checkout(lane.index(), ask);
        Self(State::Waiting(Wait { checkout, pool, lane, ask, until, worker, counted: Counted::No }))
    }
}

impl Wait {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Lease, Refusal>> {
        loop {
            match Pin::new(&mut self.checkout).poll(cx) {
                Poll::Ready(Ok(granted)) => match self.pool.vet(granted, self.worker) {
                    Some(lease) => return Poll::Ready(Ok(lease)),
                    // Each turn takes a backend out of the pool, so this ends.
                    None => self.ask_again(),
                },
                Poll::Ready(Err(refused)) => {
                    return Poll::Ready(Err(self.pool.refusal(self.lane, refused)));
                }
                Poll::Pending => {
                    if self.counted == Counted::No {
                        self.counted = Counted::Yes;
                        self.pool.open_as_needed();
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// What was granted was unfit: waits on, not longer than it would have waited anyway.
    #[cold]
    fn ask_again(&mut self) {
        self.ask.wait_max = Some(self.until.saturating_duration_since(Instant::now()));
        self.checkout = self.pool.backends.checkout(self.lane.index(), self.ask);
        self.counted = Counted::No;
    }
}

impl Future for Acquire {
    type Output = Result<Lease, Refusal>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match std::mem::replace(&mut self.0, State::Done) {
            State::Ready(lease) => Poll::Ready(Ok(lease)),
            State::Refused(refusal) => Poll::Ready(Err(refusal)),
            State::Waiting(mut wait) => {
                let polled = wait.poll(cx);
                if polled.is_pending() {
                    self.0 = State::Waiting(wait);
                }
                polled
            }
            State::Done => Poll::Pending,
        }
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        if let State::Ready(lease) = std::mem::replace(&mut self.0, State::Done) {
            lease.give_back();
        }
    }
}
