use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tower_service::Service;

use super::error::Overloaded;
use super::{AdmitPermit, Admitted, Checkout, Permits, Queued};

/// When to look again, should the queue not have refused a waiter whose time is over.
const RETRY: Duration = Duration::from_millis(10);

pin_project! {
    /// Response of [`Shed`](super::Shed).
    ///
    /// # Cancel safety
    /// Dropping it while it waits leaves the queue at once; dropping it later drops the inner future and frees
    /// the permit.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, R>
    where
        S: Service<R>,
    {
        #[pin]
        state: State<S, S::Future, R>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, F, R> {
        Waiting { waiting: Option<Waiting<S, R>>, #[pin] timer: Sleep, permits: Permits },
        Serving { #[pin] inner: F, permit: Option<AdmitPermit> },
        Refused { refusal: Overloaded },
    }
}

/// What is needed once the permit is there.
struct Waiting<S, R> {
    checkout: Checkout<()>,
    service: S,
    request: R,
}

impl<S, R> ResponseFuture<S, R>
where
    S: Service<R>,
{
    pub(super) const fn refused(refusal: Overloaded) -> Self {
        Self { state: State::Refused { refusal } }
    }

    pub(super) const fn serving(inner: S::Future, permit: AdmitPermit) -> Self {
        Self { state: State::Serving { inner, permit: Some(permit) } }
    }

    pub(super) fn waiting(queued: Queued, service: S, request: R) -> Self {
        let Queued { permits, checkout, until } = queued;
        let waiting = Some(Waiting { checkout, service, request });
        Self { state: State::Waiting { waiting, timer: sleep_until(until), permits } }
    }
}

impl<S, R> Future for ResponseFuture<S, R>
where
    S: Service<R>,
    S::Error: From<Overloaded>,
{
    type Output = Result<Admitted<S::Response>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                StateProj::Refused { refusal } => return Poll::Ready(Err((*refusal).into())),
                StateProj::Serving { inner, permit } => {
                    let response = ready!(inner.poll(cx));
                    let Some(permit) = permit.take() else { return Poll::Pending };
                    return Poll::Ready(response.map(|response| Admitted { response, permit }));
                }
                StateProj::Waiting { waiting, mut timer, permits } => {
                    let Some(parts) = waiting else { return Poll::Pending };
                    while timer.as_mut().poll(cx).is_ready() {
                        // Whoever is late is refused by the queue, so that there is one place which decides.
                        let now = Instant::now();
                        permits.sweep(now);
                        timer.as_mut().reset(now + RETRY);
                    }
                    let result = ready!(Pin::new(&mut parts.checkout).poll(cx));
                    let Some(Waiting { mut service, request, .. }) = waiting.take() else {
                        return Poll::Pending;
                    };
                    match result {
                        Ok(permit) => {
                            let inner = service.call(request);
                            state.set(State::Serving { inner, permit: Some(permit) });
                        }
                        Err(refusal) => state.set(State::Refused { refusal }),
                    }
                }
            }
        }
    }
}
