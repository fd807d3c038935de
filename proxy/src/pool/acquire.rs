//! The future of a checkout.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tidegate_layers::shed::{Ask, Checkout};
use tokio::time::Instant;

use super::{Lease, Pool};
use crate::backend::Backend;
use crate::clock;
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
        let until = clock::now() + wait_max;
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
        if let State::Waiting(wait) = &mut self.0 {
            let acquired = ready!(wait.poll(cx));
            self.0 = State::Done;
            return Poll::Ready(acquired);
        }
        match std::mem::replace(&mut self.0, State::Done) {
            State::Ready(lease) => Poll::Ready(Ok(lease)),
            State::Refused(refusal) => Poll::Ready(Err(refusal)),
            State::Waiting(_) | State::Done => Poll::Pending,
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::{pool, put};
    use super::*;

    const ANYWHERE: usize = 0;

    /// A checkout that waits, in a pool that has nothing.
    fn wait(pool: &Arc<Pool>, ask: Ask) -> Acquire {
        let mut acquire = pool.acquire(Lane::Read, ask, ANYWHERE);
        assert!(look(&mut acquire).is_pending());
        acquire
    }

    fn look(acquire: &mut Acquire) -> Poll<Result<Lease, Refusal>> {
        Pin::new(acquire).poll(&mut Context::from_waker(std::task::Waker::noop()))
    }

    #[tokio::test]
    async fn whoever_waits_gets_no_backend_that_was_given_up_in_between() {
        // The server may be one that must not be written to any more: the statement would be its own damage.
        let pool = pool();
        let mut acquire = wait(&pool, Ask::default());
        let _server = put(&pool, 1);
        assert_eq!(pool.state().idle, 0, "it is granted, and nobody has looked yet");

        pool.reconnect();

        assert!(look(&mut acquire).is_pending());
        assert_eq!(pool.state().waiting, 1, "the wait goes on");
    }

    #[tokio::test]
    async fn whoever_has_to_wait_again_waits_no_longer_in_all() {
        // To ask again is to join a queue, where the time would begin anew.
        let pool = pool();
        let wait_max = Duration::from_secs(1);
        let begun = Instant::now();
        let mut acquire = wait(&pool, Ask { wait_max: Some(wait_max), ..Ask::default() });
        tokio::time::sleep_until(begun + wait_max * 3 / 4).await;
        let _server = put(&pool, 1);
        pool.reconnect();
        assert!(look(&mut acquire).is_pending());

        tokio::time::sleep_until(begun + wait_max * 5 / 4).await;
        pool.sweep_waiters(Instant::now());

        assert!(matches!(look(&mut acquire), Poll::Ready(Err(_))));
    }
}
