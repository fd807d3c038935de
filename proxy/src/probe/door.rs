//! How control connections to one upstream are opened: of logins that the server is silent about there is one.
//!
//! The kernel of a server that is frozen still takes connections. Each that was given up on would wait in its queue: the
//! server would fork for all of them in the moment when it goes on, and until then the queue may be full, which looks
//! like a way that loses packets. So a login without an answer stays at the door, and whoever comes next waits for it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, timeout_at};

use super::control::{CONNECT_TIMEOUT, Connection, ControlError};

/// When a login without an answer is doubted: whoever took the connection in front of a server (a proxy, an address that
/// moved) may have lost it. Doubled with each since the last answer, so that a server stopped for an hour does not find
/// thousands of logins in its queue.
pub(super) const GIVE_UP: Duration = Duration::from_secs(2);

/// At most 8 s: by then keepalive has found a peer that is gone.
pub(super) const DOUBLINGS_MAX: u32 = 2;

/// Who has not completed a handshake within this is not there.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_millis(250);

type Answer = Result<Connection, ControlError>;

/// A login under way.
pub(super) struct Attempt {
    pub(super) login: Pin<Box<dyn Future<Output = Answer> + Send>>,
    /// Whether a handshake of the transport has succeeded; the login sets it.
    pub(super) reached: Arc<AtomicBool>,
    /// Whose it is; `None` if it only knocks.
    pub(super) user: Option<String>,
    pub(super) since: Instant,
}

impl Attempt {
    /// What comes of it until then. `None`: the server is silent.
    async fn answer_by(&mut self, deadline: Instant) -> Option<Answer> {
        match timeout_at(deadline, &mut self.login).await {
            Ok(answer) => Some(answer),
            // The kernel of a server that is stopped still completes handshakes; that of one that is gone does not.
            Err(_) if !self.is_reached() && self.since.elapsed() >= HANDSHAKE_TIMEOUT => {
                Some(Err(ControlError::Unreachable))
            }
            Err(_) => None,
        }
    }

    fn is_reached(&self) -> bool {
        self.reached.load(Ordering::Relaxed)
    }
}

/// Begins logins.
pub(super) trait Begin: Sync {
    /// Whose it would be now.
    fn user(&self) -> Option<String>;

    /// Begins one, as soon as there is a place for it.
    fn begin(&self, deadline: Instant) -> impl Future<Output = Result<Attempt, ControlError>> + Send;
}

/// See the module documentation.
#[derive(Default)]
pub(super) struct Door {
    /// The login that the server is silent about. Who has the lock waits for it.
    unanswered: Mutex<Option<Attempt>>,
    /// Logins that were replaced since the last answer.
    replaced: AtomicU32,
}

/// An attempt of one's own; it stays at the door when its owner leaves, unless there is one.
struct Own<'a> {
    door: &'a Door,
    attempt: Option<Attempt>,
}

impl Drop for Own<'_> {
    fn drop(&mut self) {
        let Some(attempt) = self.attempt.take_if(|attempt| attempt.is_reached()) else { return };
        if let Ok(mut unanswered) = self.door.unanswered.try_lock() {
            unanswered.get_or_insert(attempt);
        }
    }
}

impl Own<'_> {
    async fn answer_by(&mut self, deadline: Instant) -> Option<Answer> {
        let answer = self.attempt.as_mut()?.answer_by(deadline).await;
        if answer.is_some() {
            self.attempt = None;
        }
        answer
    }
}

impl Door {
    /// Opens a connection. After [`CONNECT_TIMEOUT`] it is known whether the server is unreachable (that is the error) or
    /// accepts connections and is silent: then `silent` is called, and the wait goes on until `patience` is over, counted
    /// from the start.
    ///
    /// # Errors
    /// See [`ControlError`].
    ///
    /// # Cancel safety
    /// Cancel safe: the next who asks goes on with the same login.
    pub(super) async fn open(
        &self,
        begin: &impl Begin,
        patience: Duration,
        silent: impl Fn() + Send,
    ) -> Answer {
        let start = Instant::now();
        let (doubt, until) = (start + CONNECT_TIMEOUT, start + patience);
        if !self.is_waited_at() {
            let mut own = Own { door: self, attempt: Some(begin.begin(doubt).await?) };
            if let Some(answer) = own.answer_by(doubt).await {
                return self.answered(answer);
            }
        }
        let mut unanswered = self.queue(doubt, until, &silent).await?;
        let attempt = match self.current(&mut unanswered, begin) {
            Some(attempt) => attempt,
            None => unanswered.insert(begin.begin(until).await?),
        };
        let doubt = doubt.max(attempt.since + CONNECT_TIMEOUT).min(until);
        let mut answer = attempt.answer_by(doubt).await;
        if answer.is_none() {
            silent();
            answer = timeout_at(until, &mut attempt.login).await.ok();
        }
        // Without an answer it stays for the next.
        let answer = answer.ok_or(ControlError::Silent)?;
        *unanswered = None;
        self.answered(answer)
    }

    fn is_waited_at(&self) -> bool {
        self.unanswered.try_lock().map_or(true, |unanswered| unanswered.is_some())
    }

    /// Stands in line behind those who wait already.
    async fn queue(
        &self,
        doubt: Instant,
        until: Instant,
        silent: &impl Fn(),
    ) -> Result<MutexGuard<'_, Option<Attempt>>, ControlError> {
        if let Ok(unanswered) = timeout_at(doubt, self.unanswered.lock()).await {
            return Ok(unanswered);
        }
        silent();
        timeout_at(until, self.unanswered.lock()).await.map_err(|_| ControlError::Silent)
    }

    /// The login that waits here, if there is still something to be hoped for from it.
    fn current<'a>(
        &self,
        unanswered: &'a mut Option<Attempt>,
        begin: &impl Begin,
    ) -> Option<&'a mut Attempt> {
        let hoped_for = GIVE_UP * (1 << self.replaced.load(Ordering::Relaxed).min(DOUBLINGS_MAX));
        let stale = |attempt: &mut Attempt| {
            let given_up = attempt.since.elapsed() >= hoped_for;
            if given_up {
                self.replaced.fetch_add(1, Ordering::Relaxed);
            }
            given_up || attempt.user != begin.user()
        };
        // Closed before there is another: it has a place.
        drop(unanswered.take_if(stale));
        unanswered.as_mut()
    }

    fn answered(&self, answer: Answer) -> Answer {
        if answer.is_ok() {
            self.replaced.store(0, Ordering::Relaxed);
        }
        answer
    }
}
