//! Connections that have not sent a whole request yet, so that one of them can make room for a new one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::AbortHandle;

/// See the module documentation. In the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Silent(Mutex<Seats>);

#[derive(Debug, Default)]
struct Seats {
    last: u64,
    taken: BTreeMap<u64, AbortHandle>,
}

impl Silent {
    /// Runs a connection, which is silent until its seat is left or dropped.
    pub(super) fn spawn<F>(self: &Arc<Self>, connection: impl FnOnce(Seat) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let number = {
            let mut seats = self.lock();
            seats.last += 1;
            seats.last
        };
        let task = tokio::spawn(connection(Seat { among: Arc::clone(self), number }));
        // It has not begun: the runtime of the control plane has one thread, which is this.
        self.lock().taken.insert(number, task.abort_handle());
    }

    /// Closes the connection that came first.
    pub(super) fn close_oldest(&self) {
        let oldest = self.lock().taken.pop_first();
        if let Some((_, task)) = oldest {
            task.abort();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a connection among the silent ones.
#[derive(Debug)]
pub(super) struct Seat {
    among: Arc<Silent>,
    number: u64,
}

impl Seat {
    /// The connection has said what it wants.
    pub(super) fn leave(&self) {
        self.among.lock().taken.remove(&self.number);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
    }
}
