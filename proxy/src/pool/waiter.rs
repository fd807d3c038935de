//! A session's place in the queue for a backend. Made once per session and used for every wait.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::exchange::Refusal;

/// See the module documentation.
#[derive(Debug)]
pub struct Waiter(Mutex<Wait>);

#[derive(Debug)]
struct Wait {
    state: State,
    since: Instant,
    deadline: Instant,
}

#[derive(Debug)]
enum State {
    /// In no queue.
    Away,
    Waiting(Option<Waker>),
    Granted(Box<Backend>),
    Refused(Refusal),
}

impl Default for Waiter {
    fn default() -> Self {
        let now = Instant::now();
        Self(Mutex::new(Wait { state: State::Away, since: now, deadline: now }))
    }
}

impl Waiter {
    fn lock(&self) -> MutexGuard<'_, Wait> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn enqueue(&self, deadline: Instant) {
        *self.lock() = Wait { state: State::Waiting(None), since: Instant::now(), deadline };
    }

    pub(super) fn deadline(&self) -> Instant {
        self.lock().deadline
    }

    pub(super) fn waited(&self) -> Duration {
        self.lock().since.elapsed()
    }

    /// Hands a backend over; gives it back when nobody waits here any more.
    pub(super) fn grant(&self, backend: Box<Backend>) -> Result<(), Box<Backend>> {
        self.answer(State::Granted(backend)).map_err(|state| match state {
            State::Granted(backend) => backend,
            State::Away | State::Waiting(_) | State::Refused(_) => unreachable!("only a grant comes back"),
        })
    }

    pub(super) fn refuse(&self, refusal: Refusal) {
        // Whoever does not wait any more needs no refusal.
        let _ = self.answer(State::Refused(refusal));
    }

    fn answer(&self, answer: State) -> Result<(), State> {
        let mut wait = self.lock();
        let State::Waiting(waker) = &mut wait.state else { return Err(answer) };
        let waker = waker.take();
        wait.state = answer;
        drop(wait);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// Whether there is an answer.
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<Result<Box<Backend>, Refusal>> {
        let mut wait = self.lock();
        match std::mem::replace(&mut wait.state, State::Away) {
            State::Granted(backend) => Poll::Ready(Ok(backend)),
            State::Refused(refusal) => Poll::Ready(Err(refusal)),
            State::Away => Poll::Pending,
            State::Waiting(waker) => {
                let waker = waker.filter(|waker| waker.will_wake(cx.waker()));
                wait.state = State::Waiting(Some(waker.unwrap_or_else(|| cx.waker().clone())));
                Poll::Pending
            }
        }
    }

    /// Stops waiting; a backend that was granted in the meantime comes back.
    pub(super) fn leave(&self) -> Option<Box<Backend>> {
        match std::mem::replace(&mut self.lock().state, State::Away) {
            State::Granted(backend) => Some(backend),
            State::Away | State::Waiting(_) | State::Refused(_) => None,
        }
    }
}
