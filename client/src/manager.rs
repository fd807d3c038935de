//! What bb8 needs to keep our connections, and what it keeps to itself.
//!
//! bb8 hands out, takes back and replaces; it opens connections in tasks of its own, so a connect goes on when the
//! caller who caused it has gone, and serves the next one. Three of its habits are undone here: a connect never hangs
//! ([`Connector`]), a connection goes back only when it is provably idle
//! ([`Session::is_reusable`]), and a connect that failed is heard of at once ([`Failures`]).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bb8::{ErrorSink, ManageConnection};
use tokio::sync::{Notify, Semaphore};

use crate::connector::{ConnectError, Connector};
use crate::session::Session;

/// How many connects are made at a time, as in `MongoDB`'s drivers (`maxConnecting`): after an outage a herd of
/// handshakes is what a recovering server needs least.
const CONNECTING_MAX: usize = 2;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Manager {
    connector: Arc<Connector>,
    turns: Semaphore,
}

impl Manager {
    pub(crate) fn new(connector: Arc<Connector>) -> Self {
        Self { connector, turns: Semaphore::new(CONNECTING_MAX) }
    }
}

impl ManageConnection for Manager {
    /// Boxed: it is moved a dozen times between two users, and three hundred bytes each time would show.
    type Connection = Box<Session>;
    type Error = ConnectError;

    async fn connect(&self) -> Result<Box<Session>, ConnectError> {
        // Each turn ends within the connect timeout, so the wait does, too. The semaphore is never closed.
        let _turn = self.turns.acquire().await.map_err(|_| ConnectError::NoHost)?;
        self.connector.connect().await.map(Box::new)
    }

    /// Never called: checks are made under the caller's budget instead.
    async fn is_valid(&self, _: &mut Box<Session>) -> Result<(), ConnectError> {
        Ok(())
    }

    fn has_broken(&self, session: &mut Box<Session>) -> bool {
        session.is_broken()
    }
}

/// Connects that failed, for those who wait for one. Each failure is told to one waiter.
#[derive(Debug, Clone, Default)]
pub(crate) struct Failures(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    untold: Mutex<VecDeque<ConnectError>>,
    waiting: AtomicUsize,
    news: Notify,
}

impl Failures {
    /// The next failure.
    ///
    /// # Cancel safety
    /// Holds nothing.
    pub(crate) async fn next(&self) -> ConnectError {
        let _waiting = Waiting::start(&self.0);
        loop {
            if let Some(error) = self.0.untold().pop_front() {
                return error;
            }
            self.0.news.notified().await;
        }
    }
}

impl Inner {
    fn untold(&self) -> MutexGuard<'_, VecDeque<ConnectError>> {
        self.untold.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ErrorSink<ConnectError> for Failures {
    fn sink(&self, error: ConnectError) {
        tracing::warn!(error = &error as &dyn std::error::Error, "connect failed");
        let mut untold = self.0.untold();
        // A failure that nobody waits for is no news to those who come later.
        if untold.len() < self.0.waiting.load(Ordering::Acquire) {
            untold.push_back(error);
            drop(untold);
            self.0.news.notify_one();
        }
    }

    fn boxed_clone(&self) -> Box<dyn ErrorSink<ConnectError>> {
        Box::new(self.clone())
    }
}

/// Somebody waits.
struct Waiting<'a>(&'a Inner);

impl<'a> Waiting<'a> {
    fn start(inner: &'a Inner) -> Self {
        inner.waiting.fetch_add(1, Ordering::AcqRel);
        Self(inner)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let waiting = self.0.waiting.fetch_sub(1, Ordering::AcqRel) - 1;
        let mut untold = self.0.untold();
        untold.truncate(waiting);
        // The one who leaves may have been told that there is news.
        if !untold.is_empty() {
            self.0.news.notify_one();
        }
    }
}
