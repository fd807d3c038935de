//! How control connections to one upstream are opened: of logins without an answer there is one.
//!
//! The kernel of a server that is frozen still takes connections. Each that was given up on would wait in its queue: the
//! server would fork for all of them in the moment when it goes on, and until then the queue may be full, which looks
//! like a way that loses packets. So a login without an answer stays at the door, and whoever comes next goes on with it.
//! What its silence means is known to all who come: many have less time than it takes to find out.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex as Lock, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, timeout_at};

use super::control::{CONNECT_TIMEOUT, Connection, ControlError};

/// When a login without an answer is doubted: whoever took the connection in front of a server (a proxy, a middlebox) may
/// have lost it. Doubled with each since the last answer, so that a server stopped for an hour does not find thousands of
/// logins in its queue.
const GIVE_UP: Duration = Duration::from_secs(1);

/// At most 8 s: by then keepalive has found a peer that is gone.
const DOUBLINGS_MAX: u32 = 3;

/// Who has not completed a handshake within this is not there.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_millis(250);

/// How long whoever comes to a login that is known to have no answer listens for one: some round trips.
const LISTEN: Duration = Duration::from_millis(100);

type Answer = Result<Connection, ControlError>;

/// A login under way.
pub(super) struct Attempt {
    pub(super) login: Pin<Box<dyn Future<Output = Answer> + Send>>,
    /// Whether a handshake of the transport has succeeded; the login sets it.
    pub(super) reached: Arc<AtomicBool>,
    /// Whose it is; `None` if it only knocks.
    pub(super) user: Option<String>,
    pub(super) since: Instant,
    /// How often the name had led elsewhere before: see [`Door::moved`].
    pub(super) moves: u64,
}

/// What the silence of a server means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silence {
    /// The kernel of a server that is stopped still completes handshakes.
    Frozen,
    /// That of one that is gone does not.
    Missing,
}

impl Attempt {
    async fn answer_by(&mut self, deadline: Instant) -> Option<Answer> {
        timeout_at(deadline, &mut self.login).await.ok()
    }

    fn is_reached(&self) -> bool {
        self.reached.load(Ordering::Relaxed)
    }

    /// What it means that there is no answer, as far as that can be told; `before` is what was found before.
    fn silence(&self, before: Option<Silence>) -> Option<Silence> {
        match before {
            _ if self.is_reached() => Some(Silence::Frozen),
            before if self.since.elapsed() < HANDSHAKE_TIMEOUT => before,
            _ => Some(Silence::Missing),
        }
    }
}

/// Begins logins.
pub(super) trait Begin: Sync {
    /// Whose it would be now.
    fn user(&self) -> Option<String>;

    /// Begins one, as soon as there is a place for it.
    fn begin(
        &self,
        moves: u64,
        deadline: Instant,
    ) -> impl Future<Output = Result<Attempt, ControlError>> + Send;
}

/// See the module documentation.
#[derive(Default)]
pub(super) struct Door {
    /// The login without an answer. Who has the lock waits for it.
    unanswered: Mutex<Option<Attempt>>,
    /// What was found last, until there is an answer.
    found: Lock<Option<Silence>>,
    /// Logins that were replaced since the last answer.
    replaced: AtomicU32,
    /// How often the name has led elsewhere.
    moves: AtomicU64,
}

/// What came of listening to a login.
enum Heard {
    Answer(Answer),
    /// Nothing, which means this.
    Nothing(Option<Silence>),
}

/// An attempt of one's own; it stays at the door when its owner leaves, unless there is one.
struct Own<'a> {
    door: &'a Door,
    attempt: Option<Attempt>,
}

impl Drop for Own<'_> {
    fn drop(&mut self) {
        let Some(attempt) = self.attempt.take() else { return };
        if let Ok(mut unanswered) = self.door.unanswered.try_lock() {
            unanswered.get_or_insert(attempt);
        }
    }
}

impl Door {
    /// Opens a connection. After [`CONNECT_TIMEOUT`], or at once if that was found before, it is known whether the server is
    /// missing (that is the error) or accepts connections and is silent: then `silent` is called, and the wait goes
    /// on until `patience` is over, counted from the start.
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
        let until = start + patience;
        if !self.is_waited_at() {
            let doubt = start + CONNECT_TIMEOUT;
            let mut own = Own { door: self, attempt: Some(begin.begin(self.moves(), doubt).await?) };
            if let Some(answer) = self.alone(&mut own, doubt).await {
                return answer;
            }
        }
        let mut unanswered = self.queue(start, until, &silent).await?;
        loop {
            let (attempt, is_ours) = match self.current(&mut unanswered, begin) {
                Some(attempt) => (attempt, false),
                None => (unanswered.insert(begin.begin(self.moves(), until).await?), true),
            };
            match self.listen(attempt, start, until, &silent).await {
                Heard::Answer(answer) => {
                    let is_news = attempt.moves == self.moves() && (is_ours || answer.is_ok());
                    *unanswered = None;
                    if is_news || Instant::now() >= until {
                        return self.answered(answer);
                    }
                }
                Heard::Nothing(Some(Silence::Frozen)) if Instant::now() < until => {}
                // It stays for the next.
                Heard::Nothing(silence) => return Err(silence.map_or(ControlError::Busy, Into::into)),
            }
        }
    }

    /// Its name leads elsewhere: what was begun before is not about the server that is there now.
    pub(super) fn moved(&self) {
        self.moves.fetch_add(1, Ordering::Relaxed);
    }

    fn moves(&self) -> u64 {
        self.moves.load(Ordering::Relaxed)
    }

    /// Listens to a login for as long as there is something to be hoped for from it.
    async fn listen(
        &self,
        attempt: &mut Attempt,
        start: Instant,
        until: Instant,
        silent: &impl Fn(),
    ) -> Heard {
        let its_time = if self.found().is_some() { HANDSHAKE_TIMEOUT } else { CONNECT_TIMEOUT };
        let doubt = (start + LISTEN).max(attempt.since + its_time);
        if let Some(answer) = attempt.answer_by(doubt.min(until)).await {
            return Heard::Answer(answer);
        }
        let silence = self.find(attempt);
        if silence != Some(Silence::Frozen) {
            return Heard::Nothing(silence);
        }
        silent();
        match attempt.answer_by(until.min(attempt.since + self.hope())).await {
            Some(answer) => Heard::Answer(answer),
            None => Heard::Nothing(self.find(attempt)),
        }
    }

    fn found(&self) -> Option<Silence> {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it means that there is no answer yet.
    fn find(&self, attempt: &Attempt) -> Option<Silence> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        *found = attempt.silence(*found);
        *found
    }

    /// How long a login is hoped for.
    fn hope(&self) -> Duration {
        GIVE_UP * (1 << self.replaced.load(Ordering::Relaxed).min(DOUBLINGS_MAX))
    }

    fn is_waited_at(&self) -> bool {
        self.unanswered.try_lock().map_or(true, |unanswered| unanswered.is_some())
    }

    /// Waits beside others, as long as nothing is known of the server. `None`: it is silent.
    async fn alone(&self, own: &mut Own<'_>, doubt: Instant) -> Option<Answer> {
        let attempt = own.attempt.as_mut()?;
        if let Some(answer) = attempt.answer_by(doubt).await {
            own.attempt = None;
            return Some(self.answered(answer));
        }
        (self.find(attempt) == Some(Silence::Missing)).then_some(Err(ControlError::Missing))
    }

    /// Stands in line behind those who wait already.
    async fn queue(
        &self,
        start: Instant,
        until: Instant,
        silent: &impl Fn(),
    ) -> Result<MutexGuard<'_, Option<Attempt>>, ControlError> {
        let doubt = start + if self.found().is_some() { LISTEN } else { CONNECT_TIMEOUT };
        if let Ok(unanswered) = timeout_at(doubt.min(until), self.unanswered.lock()).await {
            return Ok(unanswered);
        }
        match self.found() {
            Some(Silence::Missing) => return Err(ControlError::Missing),
            Some(Silence::Frozen) => silent(),
            None => {}
        }
        timeout_at(until, self.unanswered.lock()).await.map_err(|_| match self.found() {
            Some(silence) => silence.into(),
            None => ControlError::Busy,
        })
    }

    /// The login that waits here, if there is still something to be hoped for from it.
    fn current<'a>(
        &self,
        unanswered: &'a mut Option<Attempt>,
        begin: &impl Begin,
    ) -> Option<&'a mut Attempt> {
        let stale = |attempt: &mut Attempt| {
            let age = attempt.since.elapsed();
            let given_up = age >= self.hope();
            // One that arrived nowhere stands in no queue, and its name may lead elsewhere by now.
            let is_nowhere = age >= CONNECT_TIMEOUT && !attempt.is_reached();
            if given_up && !is_nowhere {
                self.replaced.fetch_add(1, Ordering::Relaxed);
            }
            given_up || is_nowhere || attempt.user != begin.user() || attempt.moves != self.moves()
        };
        // Closed before there is another: it has a place.
        drop(unanswered.take_if(stale));
        unanswered.as_mut()
    }

    fn answered(&self, answer: Answer) -> Answer {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if answer.is_ok() {
            self.replaced.store(0, Ordering::Relaxed);
        }
        answer
    }
}

impl From<Silence> for ControlError {
    fn from(silence: Silence) -> Self {
        match silence {
            Silence::Frozen => Self::Silent,
            Silence::Missing => Self::Missing,
        }
    }
}
