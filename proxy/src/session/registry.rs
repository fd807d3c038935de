//! All sessions: who they are, what they are doing, and how to reach them from other threads.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;
use std::time::Instant;

use subtle::ConstantTimeEq;

use crate::backend::CancelTarget;
use crate::backend::cancel::CancelInFlight;
use crate::clock;
use crate::wire::startup::{ProtocolVersion, VERSION_3_2};

/// Bytes of the secret that we give to protocol 3.2; 3.0 has room for four.
const SECRET_LEN: usize = 32;
const SECRET_LEN_3_0: usize = 4;

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
    /// The deadline of the phase has passed.
    Overdue = 8,
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

/// One session, as the rest of the process sees it.
#[derive(Debug)]
pub struct Entry {
    /// The process id that the application was given.
    pub process_id: u32,
    secret: Vec<u8>,
    /// Bytes of the secret that the application was given.
    secret_len: AtomicUsize,
    /// Where the application is; `None` for unix sockets.
    pub peer: Option<SocketAddr>,
    /// Since when it is here.
    pub started: Instant,
    /// Who it is, once that is known.
    pub identity: OnceLock<Identity>,
    signals: AtomicU8,
    /// Milliseconds since `started` and phase, packed.
    phase: AtomicU64,
    waker: Mutex<Option<Waker>>,
    serving: Mutex<Option<Arc<CancelTarget>>>,
}

/// Who a session is.
#[derive(Debug)]
pub struct Identity {
    /// User.
    pub user: Box<str>,
    /// Database.
    pub database: Box<str>,
    /// `application_name` at login.
    pub application_name: Box<str>,
}

impl Entry {
    /// The secret as the protocol version has room for it; from now on only this much of it counts.
    pub fn give_secret(&self, version: ProtocolVersion) -> &[u8] {
        let len = if version >= VERSION_3_2 { SECRET_LEN } else { SECRET_LEN_3_0 };
        self.secret_len.store(len, Ordering::Relaxed);
        self.given_secret()
    }

    fn given_secret(&self) -> &[u8] {
        self.secret.get(..self.secret_len.load(Ordering::Relaxed)).unwrap_or_default()
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

    /// Names the backend that serves the session from now on, or none.
    #[inline]
    pub fn serve(&self, target: Option<Arc<CancelTarget>>) {
        *self.serving.lock().unwrap_or_else(PoisonError::into_inner) = target;
    }

    /// Cancels what the session runs. The threat to the backend is announced under the same lock that the
    /// session takes before it lets go of the backend, so it can never hit another session.
    ///
    /// Yields what is still to be done: sending it. An application believes that its cancel is over when its
    /// connection ends, so that has to wait for this.
    fn cancel(&self) -> Option<CancelInFlight> {
        let serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(target) = &*serving {
            return Some(target.announce());
        }
        drop(serving);
        if self.phase().0 == Phase::Queued {
            self.signal(Signal::Cancel);
        }
        None
    }
}

/// All sessions of the process.
#[derive(Debug, Default)]
pub struct Registry {
    sessions: Mutex<HashMap<u32, Arc<Entry>>>,
    next: AtomicU32,
    open: AtomicUsize,
}

/// The right to be a session; dropping it takes the session out of the registry.
#[derive(Debug)]
#[must_use]
pub struct Registration {
    registry: Arc<Registry>,
    /// The session.
    pub entry: Arc<Entry>,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Arc<Entry>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a session; `None` when `max` sessions are here already.
    pub fn register(self: &Arc<Self>, peer: Option<SocketAddr>, max: usize) -> Option<Registration> {
        let take = |open: usize| (open < max).then_some(open + 1);
        self.open.fetch_update(Ordering::AcqRel, Ordering::Relaxed, take).ok()?;
        let mut secret = vec![0; SECRET_LEN];
        rand::Rng::fill_bytes(&mut rand::rng(), &mut secret);
        let mut sessions = self.lock();
        let process_id = self.free_process_id(&sessions);
        let entry = Arc::new(Entry {
            process_id,
            secret,
            secret_len: AtomicUsize::new(SECRET_LEN),
            peer,
            started: Instant::now(),
            identity: OnceLock::new(),
            signals: AtomicU8::new(0),
            phase: AtomicU64::new(0),
            waker: Mutex::new(None),
            serving: Mutex::new(None),
        });
        sessions.insert(process_id, Arc::clone(&entry));
        Some(Registration { registry: Arc::clone(self), entry })
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

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.lock().remove(&self.entry.process_id);
        self.registry.open.fetch_sub(1, Ordering::AcqRel);
    }
}
