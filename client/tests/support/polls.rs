//! Dropping futures systematically.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;

/// Whether the future came to its end within so many polls.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Yes,
    No,
}

/// Polls when it is woken, up to `polls` times, then drops.
pub(crate) async fn poll_then_drop<F: Future>(polls: usize, future: F) -> Ended {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(Ended::No);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(_) => Poll::Ready(Ended::Yes),
            Poll::Pending if left == 0 => Poll::Ready(Ended::No),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
