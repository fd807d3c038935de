//! Wakers collected under a lock and woken after it.
//!
//! Waking runs code of the caller's: a waker's last reference may drop a task, and the task a lease of ours.

use std::task::Waker;

/// The usual case, one waiter per released item, allocates nothing.
#[derive(Debug, Default)]
#[must_use = "someone waits to be woken"]
pub(super) struct WakeList {
    first: Option<Waker>,
    rest: Vec<Waker>,
}

impl WakeList {
    pub(super) fn push(&mut self, waker: Waker) {
        if self.first.is_none() {
            self.first = Some(waker);
        } else {
            self.rest.push(waker);
        }
    }

    /// Wakes them all. No lock may be held.
    pub(super) fn wake(self) {
        for waker in self.first.into_iter().chain(self.rest) {
            waker.wake();
        }
    }
}
