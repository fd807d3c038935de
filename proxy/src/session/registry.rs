//! All sessions: who they are, what they are doing, and how to reach them from other threads.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;
use std::time::Instant;

use subtle::ConstantTimeEq;

use crate::backend::CancelTarget;
use crate::backend::cancel::CancelInFlight;
use crate::clock;
use crate::directory::{Directory, NOBODY};
use crate::session::policy::IdleLimits;
use crate::wire::startup::{ProtocolVersion, VERSION_3_2};

/// Bytes of the secret that we give to protocol 3.2; 3.0 has room for four.
const SECRET_LEN: usize = 32;
const SECRET_LEN_3_0: usize = 4;

/// Connections beyond `listen.max_sessions` that are looked at at a time; more are turned away unseen.
const EXTRA_MAX: usize = 4;

/// What other threads may want of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Signal {
    /// Cancel the wait for a backend.
    Cancel = 1,
    /// End at the next moment without a transaction.
    Drain = 2,
    /// End now.
    Kill = 4,
    /// The session has been idle for too long.
    Overdue = 8,
    /// What runs, or the transaction, has taken too long.
    Due = 16,
    /// What runs was seen waiting for something.
    Learn = 32,
}

/// What a session is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Logging in.
    Login = 0,
    /// Nothing.
    Idle = 1,
    /// Waiting for a backend.
    Queued = 2,
    /// Something runs.
    Active = 3,
    /// Nothing, in a transaction.
    IdleInTransaction = 4,
}

impl Phase {
    fn of(byte: u64) -> Self {
        match byte & 0xf {
            1 => Self::Idle,
            2 => Self::Queued,
            3 => Self::Active,
            4 => Self::IdleInTransaction,
            _ => Self::Login,
        }
    }
}

static ENTRIES: Directory<Entry> = Directory::new();

/// One session, as the rest of the process sees it. What every exchange looks at comes first: in memory, too.
#[derive(Debug)]
#[repr(C)]
pub struct Entry {
    signals: AtomicU8,
    /// The process id that the application was given.
    pub process_id: u32,
    /// Milliseconds since `started` and phase, packed.
    phase: AtomicU64,
    /// The number of the backend that serves it now.
    serving: AtomicU64,
    waker: Mutex<Option<Waker>>,
    /// How long it may idle.
    pub idle: Arc<IdleLimits>,
    /// Leads to it; see [`Entry::numbered`].
    pub number: u64,
    secret: Vec<u8>,
    /// Bytes of the secret that the application was given.
    secret_len: AtomicUsize,
    /// Where the application is; `None` for unix sockets.
    pub peer: Option<SocketAddr>,
    /// Since when it is here.
    pub started: Instant,
    /// Who it is, once that is known.
    pub identity: OnceLock<Identity>,
}

/// Who a session is.
#[derive(Debug)]
pub struct Identity {
    /// What it is connected to.
    pub kind: Kind,
    /// User.
    pub user: Box<str>,
    /// Database.
    pub database: Box<str>,
    /// `application_name` at login.
    pub application_name: Box<str>,
    /// Our own end of the connection; `None` for unix sockets.
    pub local: Option<SocketAddr>,
    /// TLS version and cipher suite; empty without TLS.
    pub tls: Box<str>,
}

/// What a session is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// PostgreSQL, through a pool.
    Application,
    /// The admin console.
    Console,
}

impl Entry {
    /// The session with this number, while it is here.
    pub fn numbered(number: u64) -> Option<Arc<Self>> {
        ENTRIES.get(number)
    }

    /// The secret as the protocol version has room for it; from now on only this much of it counts.
    pub fn give_secret(&self, version: ProtocolVersion) -> &[u8] {
        let len = if version >= VERSION_3_2 { SECRET_LEN } else { SECRET_LEN_3_0 };
        self.secret_len.store(len, Ordering::Relaxed);
        self.given_secret()
    }

    fn given_secret(&self) -> &[u8] {
        self.secret.get(..self.secret_len.load(Ordering::Relaxed)).unwrap_or_default()
    }

    /// Process id at PostgreSQL and cancel target of the backend that serves the session now.
    pub fn served_by(&self) -> Option<Arc<CancelTarget>> {
        CancelTarget::numbered(self.serving.load(Ordering::SeqCst))
    }

    /// Names the task to wake for signals. Once, from within the task.
    pub fn attend(&self, waker: &Waker) {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker.clone());
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.signals.fetch_or(signal as u8, Ordering::Release);
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Whether there is this signal. It stays until [`Entry::clear`].
    #[inline]
    pub fn has(&self, signal: Signal) -> bool {
        self.signals.load(Ordering::Acquire) & signal as u8 != 0
    }

    /// Whether there is any signal.
    #[inline]
    pub fn has_any(&self) -> bool {
        self.signals.load(Ordering::Acquire) != 0
    }

    /// Takes a signal back.
    pub fn clear(&self, signal: Signal) {
        self.signals.fetch_and(!(signal as u8), Ordering::AcqRel);
    }

    /// Notes what the session does from now on.
    #[inline]
    pub fn enter(&self, phase: Phase) {
        self.phase.store((clock::now_ms() << 4) | phase as u64, Ordering::Relaxed);
    }

    /// What the session does, and since when in milliseconds of the clock.
    pub fn phase(&self) -> (Phase, u64) {
        let packed = self.phase.load(Ordering::Relaxed);
        (Phase::of(packed), packed >> 4)
    }

    /// Names the backend that serves the session from now on.
    #[inline]
    pub fn serve(&self, target: &CancelTarget) {
        self.serving.store(target.number, Ordering::Release);
    }

    /// No backend serves the session any more. Whether a cancel threatens the one that did is to be asked after
    /// this; see [`CancelTarget::is_threatened`].
    #[inline]
    pub fn let_go(&self) {
        self.serving.store(NOBODY, Ordering::SeqCst);
    }

    /// Cancels what the session runs. The threat to the backend is announced before a last look whether it still
    /// serves the session, and the session asks for threats after it let go, so a cancel can never hit another
    /// session.
    ///
    /// Yields what is still to be done: sending it. An application believes that its cancel is over when its
    /// connection ends, so that has to wait for this.
    fn cancel(&self) -> Option<CancelInFlight> {
        while let Some(target) = self.served_by() {
            if self.phase().0 == Phase::IdleInTransaction {
                // While the application waits for nothing there is nothing to cancel but questions of ours.
                return None;
            }
            let cancel = target.announce();
            if self.serving.load(Ordering::SeqCst) == target.number {
                return Some(cancel);
            }
        }
        if self.phase().0 == Phase::Queued {
            self.signal(Signal::Cancel);
        }
        None
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        ENTRIES.leave(self.number);
    }
}

/// All sessions of the process.
#[derive(Debug, Default)]
pub struct Registry {
    sessions: Mutex<HashMap<u32, Arc<Entry>>>,
    next: AtomicU32,
    open: AtomicUsize,
    /// Connections beyond the limit that are looked at, and the console that was found that way.
    extra: AtomicUsize,
    extra_console: AtomicBool,
}

/// The right to be a session; dropping it takes the session out of the registry.
#[derive(Debug)]
#[must_use]
pub struct Registration {
    registry: Arc<Registry>,
    place: Place,
    /// The session.
    pub entry: Arc<Entry>,
}

/// Which place a session takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// One of those that are configured.
    Ordinary,
    /// One beyond the limit, until it is known whom it is for.
    Extra,
    /// The one beyond the limit that is kept for the admin console.
    Console,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Arc<Entry>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a session; `None` when `max` sessions are here already.
    pub fn register(self: &Arc<Self>, peer: Option<SocketAddr>, max: usize) -> Option<Registration> {
        take_one(&self.open, max).then(|| self.enter(peer, Place::Ordinary))
    }

    /// Enters one beyond the limit, to see whether it is for the admin console; `None` when enough of them are
    /// being looked at.
    pub fn register_extra(self: &Arc<Self>, peer: Option<SocketAddr>) -> Option<Registration> {
        take_one(&self.extra, EXTRA_MAX).then(|| self.enter(peer, Place::Extra))
    }

    fn enter(self: &Arc<Self>, peer: Option<SocketAddr>, place: Place) -> Registration {
        let mut secret = vec![0; SECRET_LEN];
        rand::Rng::fill_bytes(&mut rand::rng(), &mut secret);
        let mut sessions = self.lock();
        let process_id = self.free_process_id(&sessions);
        let entry = ENTRIES.enter(|number| Entry {
            number,
            process_id,
            secret,
            secret_len: AtomicUsize::new(SECRET_LEN),
            peer,
            started: Instant::now(),
            identity: OnceLock::new(),
            idle: Arc::default(),
            signals: AtomicU8::new(0),
            phase: AtomicU64::new(0),
            waker: Mutex::new(None),
            serving: AtomicU64::new(NOBODY),
        });
        sessions.insert(process_id, Arc::clone(&entry));
        Registration { registry: Arc::clone(self), place, entry }
    }

    /// A positive number that no session has: drivers read it as a signed 32-bit integer.
    fn free_process_id(&self, sessions: &HashMap<u32, Arc<Entry>>) -> u32 {
        loop {
            let id = self.next.fetch_add(1, Ordering::Relaxed) & 0x7fff_ffff;
            if id != 0 && !sessions.contains_key(&id) {
                return id;
            }
        }
    }

    /// Cancels what a session runs, if the secret is right. Nobody learns whether it was.
    ///
    /// # Cancel safety
    /// Dropping it gives the cancel up; the backend is not used for others then.
    pub async fn cancel(&self, process_id: u32, secret: &[u8]) {
        let entry = self.lock().get(&process_id).map(Arc::clone);
        if let Some(entry) = entry
            && bool::from(entry.given_secret().ct_eq(secret))
            && let Some(cancel) = entry.cancel()
            && let Err(error) = cancel.send().await
        {
            tracing::debug!(error = &error as &dyn std::error::Error, "cancel request not delivered");
        }
    }

    /// All sessions.
    pub fn all(&self) -> Vec<Arc<Entry>> {
        self.lock().values().map(Arc::clone).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.open.load(Ordering::Relaxed)
            + self.extra.load(Ordering::Relaxed)
            + usize::from(self.extra_console.load(Ordering::Relaxed))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sends a signal to all sessions.
    pub fn signal_all(&self, signal: Signal) {
        for entry in self.all() {
            entry.signal(signal);
        }
    }
}

/// Takes one of `max` places.
fn take_one(taken: &AtomicUsize, max: usize) -> bool {
    let take = |taken: usize| (taken < max).then_some(taken + 1);
    taken.fetch_update(Ordering::AcqRel, Ordering::Relaxed, take).is_ok()
}

impl Registration {
    /// Whether it is there only to be looked at.
    pub fn is_extra(&self) -> bool {
        self.place == Place::Extra
    }

    /// Keeps its place for the admin console; false when it was beyond the limit and the one place for that is
    /// taken.
    #[must_use]
    pub fn claim_console(&mut self) -> bool {
        if self.place != Place::Extra {
            return true;
        }
        if self.registry.extra_console.swap(true, Ordering::AcqRel) {
            return false;
        }
        self.place = Place::Console;
        self.registry.extra.fetch_sub(1, Ordering::AcqRel);
        true
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.lock().remove(&self.entry.process_id);
        match self.place {
            Place::Ordinary => drop(self.registry.open.fetch_sub(1, Ordering::AcqRel)),
            Place::Extra => drop(self.registry.extra.fetch_sub(1, Ordering::AcqRel)),
            Place::Console => self.registry.extra_console.store(false, Ordering::Release),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_limit_a_few_are_looked_at_and_one_console_stays() {
        // Without a bound, connections beyond the limit would be a second limit that nobody configured; without the
        // place for a console, nobody could look at who holds all the others.
        let registry = Arc::new(Registry::default());
        let _full = registry.register(None, 1).unwrap();
        assert!(registry.register(None, 1).is_none());

        let mut extra: Vec<_> = (0..EXTRA_MAX).filter_map(|_| registry.register_extra(None)).collect();
        assert!(registry.register_extra(None).is_none());
        assert!(extra.iter().all(Registration::is_extra));
        let mut console = extra.pop().unwrap();
        assert!(console.claim_console() && !console.is_extra());
        let mut second = extra.pop().unwrap();
        assert!(!second.claim_console(), "there is one such place");
        assert!(registry.register_extra(None).is_some(), "the console takes no place for looking");

        drop(console);
        assert!(second.claim_console());
        drop((second, extra));
        assert_eq!(registry.len(), 1);
    }
}
