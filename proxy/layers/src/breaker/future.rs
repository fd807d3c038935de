use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tokio::time::Instant;

use super::error::CircuitOpen;
use super::handle::{Handle, Ticket};
use super::tally::Outcome;
use super::{Classify, SLOW};

pin_project! {
    /// Response of [`Breaker`](super::Breaker).
    ///
    /// # Cancel safety
    /// Dropping it drops the inner future. A call dropped after it was stuck counts as failed, one dropped before
    /// as nothing.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, C, K> {
        #[pin]
        state: State<F, C, K>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = StateProj]
    enum State<F, C, K> {
        Admitted { #[pin] inner: F, call: Call<C>, classify: K },
        Refused { refusal: Option<CircuitOpen<C>> },
    }
}

impl<F, C, K> ResponseFuture<F, C, K> {
    pub(super) const fn admitted(inner: F, call: Call<C>, classify: K) -> Self {
        Self { state: State::Admitted { inner, call, classify } }
    }

    pub(super) const fn refused(refusal: CircuitOpen<C>) -> Self {
        Self { state: State::Refused { refusal: Some(refusal) } }
    }
}

impl<F, C, K, T, E> Future for ResponseFuture<F, C, K>
where
    F: Future<Output = Result<T, E>>,
    E: From<CircuitOpen<C>>,
    K: Classify<T, E>,
    C: Clone,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Refused { refusal } => match refusal.take() {
                Some(refusal) => Poll::Ready(Err(refusal.into())),
                None => Poll::Pending,
            },
            StateProj::Admitted { inner, call, classify } => {
                let result = ready!(inner.poll(cx));
                call.end(classify.classify(result.as_ref()));
                Poll::Ready(result)
            }
        }
    }
}

/// A call that the watchdog sees.
pub(super) struct Call<C> {
    handle: Handle<C>,
    /// `None` once it has been told how the call ended.
    ticket: Option<Ticket>,
    /// `None`: there was no free slot, and the call is not watched.
    slot: Option<usize>,
}

impl<C> Call<C> {
    pub(super) fn begin(handle: Handle<C>, ticket: Ticket) -> Self {
        let slot = handle.table().claim(ticket.started());
        Self { handle, ticket: Some(ticket), slot }
    }

    fn end(&mut self, outcome: Outcome) {
        if let Some(ticket) = self.ticket.take() {
            let now = Instant::now();
            let elapsed = now.saturating_duration_since(ticket.started());
            let slow = outcome == Outcome::Ok && elapsed >= SLOW;
            self.handle.finish(ticket, elapsed, if slow { Outcome::Slow } else { outcome }, now);
        }
        if let Some(slot) = self.slot.take() {
            self.handle.table().end(slot);
        }
    }
}

impl<C> Drop for Call<C> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let stuck = Instant::now().saturating_duration_since(ticket.started()) >= SLOW;
        self.end(if stuck { Outcome::Failed } else { Outcome::Ignored });
    }
}

impl<C> fmt::Debug for Call<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("ticket", &self.ticket).field("slot", &self.slot).finish_non_exhaustive()
    }
}
