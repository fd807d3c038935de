use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::ask::Ask;
use super::error::Overloaded;
use super::handoff::{Found, Handoff, Lane, Start};
use super::lease::Lease;

/// Waits for a [`Lease`]; see [`Handoff::checkout`].
///
/// Ends by itself only when somebody sweeps the [`Handoff`]; the deadline of the request bounds it then.
///
/// # Cancel safety
/// Dropping it leaves the queue at once. An item that had been handed to it already goes to the next waiter.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Checkout<T> {
    handoff: Handoff<T>,
    lane: Lane,
    state: CheckoutState,
}

#[derive(Debug)]
enum CheckoutState {
    Unasked(Ask),
    Waiting { place: usize },
    Done,
}

impl<T> Checkout<T> {
    pub(super) const fn new(handoff: Handoff<T>, lane: Lane, ask: Ask) -> Self {
        Self { handoff, lane, state: CheckoutState::Unasked(ask) }
    }

    /// Polls without a pin: nothing in it is pinned.
    pub(super) fn ask(&mut self, cx: &mut Context<'_>) -> Poll<Result<Lease<T>, Overloaded>> {
        match &self.state {
            CheckoutState::Unasked(ask) => match self.handoff.start(self.lane, ask, cx.waker()) {
                Start::Granted(item) => self.done(Ok(item)),
                Start::Refused(refusal) => self.done(Err(refusal)),
                Start::Waiting(place) => {
                    self.state = CheckoutState::Waiting { place };
                    Poll::Pending
                }
            },
            CheckoutState::Waiting { place } => match self.handoff.find(*place, cx.waker()) {
                Found::Granted(item) => self.done(Ok(item)),
                Found::Refused(refusal) => self.done(Err(refusal)),
                // Only a lease moves.
                Found::Moved | Found::Nothing => Poll::Pending,
            },
            CheckoutState::Done => Poll::Pending,
        }
    }

    fn done(&mut self, result: Result<T, Overloaded>) -> Poll<Result<Lease<T>, Overloaded>> {
        self.state = CheckoutState::Done;
        Poll::Ready(result.map(|item| Lease::new(self.handoff.clone(), self.lane, item)))
    }
}

// Nothing in it is pinned.
impl<T> Unpin for Checkout<T> {}

impl<T> Future for Checkout<T> {
    type Output = Result<Lease<T>, Overloaded>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.get_mut().ask(cx)
    }
}

impl<T> Drop for Checkout<T> {
    fn drop(&mut self) {
        if let CheckoutState::Waiting { place } = self.state {
            self.handoff.abandon(self.lane, place);
        }
    }
}
