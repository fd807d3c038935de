use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep_until};

use super::{Deadline, DeadlineExceeded, error::Progress};

pin_project! {
    /// Response of [`EnforceDeadline`](super::EnforceDeadline).
    ///
    /// # Cancel safety
    /// Dropping it drops the inner future and the timer, nothing else.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = StateProj]
    enum State<F> {
        Unbounded { #[pin] inner: F },
        Bounded { #[pin] inner: F, #[pin] timer: Sleep },
        Expired,
    }
}

impl<F> ResponseFuture<F> {
    pub(super) const fn unbounded(inner: F) -> Self {
        Self { state: State::Unbounded { inner } }
    }

    pub(super) fn bounded(inner: F, deadline: Deadline) -> Self {
        Self { state: State::Bounded { inner, timer: sleep_until(deadline.instant()) } }
    }

    pub(super) const fn expired() -> Self {
        Self { state: State::Expired }
    }
}

impl<F, T, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<T, E>>,
    E: From<DeadlineExceeded>,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Unbounded { inner } => inner.poll(cx),
            StateProj::Expired => Poll::Ready(Err(DeadlineExceeded::new(Progress::NotStarted).into())),
            // The response first: one that is there must not be thrown away for a timer that fired beside it.
            StateProj::Bounded { inner, timer } => match inner.poll(cx) {
                Poll::Ready(result) => Poll::Ready(result),
                Poll::Pending => {
                    timer.poll(cx).map(|()| Err(DeadlineExceeded::new(Progress::Started).into()))
                }
            },
        }
    }
}
