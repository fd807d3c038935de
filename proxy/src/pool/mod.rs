//! Backends, shared: one pool per (database, user) of an upstream.
//!
//! A backend is idle in its pool, leased to a session, or opening. Leases are handed out first come, first
//! served; a backend that comes back goes straight to whoever waits longest. Everything here is bounded:
//! backends per pool and per upstream, connects at a time, waiters, and the time that each waits.

pub mod acquire;
pub mod lease;
pub mod routes;
pub mod upstream;
mod waiter;
pub mod welcome;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use rand::RngExt as _;
use tidegate_layers::backoff::Backoff;

pub use acquire::Acquire;
pub use lease::Lease;
pub use routes::Routes;
pub use upstream::{PoolKey, Upstream};
pub use waiter::Waiter;
pub use welcome::{Welcome, Welcomes};

use crate::auth::Credential;
use crate::backend::{Backend, ConnectError, Login};
use crate::clock;
use crate::exchange::Refusal;
use crate::telemetry::metrics;
use crate::wire::{Header, backend as tag};

/// Pause before a connect is tried again after a failure: full jitter up to this, doubling.
const BACKOFF_BASE: Duration = Duration::from_millis(100);
/// The pause never exceeds this.
const BACKOFF_CAP: Duration = Duration::from_secs(5);

/// See the module documentation.
#[derive(Debug)]
pub struct Pool {
    /// Whose it is.
    pub key: PoolKey,
    /// The server that its backends are at.
    pub upstream: Arc<Upstream>,
    inner: Mutex<Inner>,
    credential: Mutex<Credential>,
    paused: AtomicBool,
    /// Exchanges that were answered.
    pub exchanges: AtomicU64,
    /// What applications are told at login.
    pub welcomes: Welcomes,
}

#[derive(Debug)]
#[expect(clippy::vec_box, reason = "a backend changes hands at each transaction: only a pointer is moved")]
struct Inner {
    idle: Vec<Box<Backend>>,
    waiters: VecDeque<Arc<Waiter>>,
    /// Backends that exist or are being opened.
    open: usize,
    /// Of these, being opened.
    opening: usize,
    /// Backends of an older generation are closed instead of reused.
    generation: u64,
    trouble: Option<Trouble>,
    backoff: Backoff,
    /// Parameters that the last backend reported at login.
    reported: BTreeMap<Box<str>, Box<[u8]>>,
}

/// Connects fail.
#[derive(Debug, Clone)]
struct Trouble {
    since: Instant,
    retry_at: Instant,
    cause: Arc<ConnectError>,
}

/// What a pool is doing, for people and metrics.
#[derive(Debug, Clone, Copy, Default)]
pub struct PoolState {
    /// Backends that serve nobody.
    pub idle: usize,
    /// Backends that serve a session.
    pub leased: usize,
    /// Backends being opened.
    pub opening: usize,
    /// Sessions that wait.
    pub waiting: usize,
    /// How long the first of them has waited.
    pub longest_wait: Duration,
}

impl Pool {
    fn new(key: PoolKey, upstream: Arc<Upstream>) -> Self {
        Self {
            key,
            upstream,
            inner: Mutex::new(Inner {
                idle: Vec::new(),
                waiters: VecDeque::new(),
                open: 0,
                opening: 0,
                generation: 0,
                trouble: None,
                backoff: Backoff::new(BACKOFF_BASE, BACKOFF_CAP),
                reported: BTreeMap::new(),
            }),
            credential: Mutex::new(Credential::None),
            paused: AtomicBool::new(false),
            exchanges: AtomicU64::new(0),
            welcomes: Welcomes::default(),
        }
    }

    /// No code under this lock can panic half-way through a change, so a poisoned lock is still sound.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What new backends log in with.
    pub fn credential(&self) -> Credential {
        self.credential.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What new backends log in with from now on.
    pub fn set_credential(&self, credential: Credential) {
        if !matches!(credential, Credential::None) {
            *self.credential.lock().unwrap_or_else(PoisonError::into_inner) = credential;
        }
    }

    /// A backend for the session that `waiter` belongs to; `worker` is the thread that will use it.
    #[inline]
    pub fn acquire(self: &Arc<Self>, waiter: &Arc<Waiter>, worker: usize) -> Acquire {
        let mut inner = self.lock();
        if inner.waiters.is_empty() && !self.paused.load(Ordering::Relaxed) {
            while let Some(mut backend) = inner.take_idle(worker) {
                if is_fresh(&mut backend) {
                    drop(inner);
                    return Acquire::ready(Lease::new(backend, Arc::clone(self)), worker);
                }
                self.closed(&mut inner);
                metrics::get().backends_lost.increment(1);
            }
        }
        self.enqueue(inner, waiter, worker)
    }

    #[cold]
    fn enqueue(
        self: &Arc<Self>,
        mut inner: MutexGuard<'_, Inner>,
        waiter: &Arc<Waiter>,
        worker: usize,
    ) -> Acquire {
        let limits = self.upstream.limits();
        if inner.waiters.len() >= limits.queue_max {
            return Acquire::refused(Refusal::QueueFull { waiting: inner.waiters.len() });
        }
        let now = Instant::now();
        if let Some(trouble) = &inner.trouble
            && inner.open == inner.opening
            && now.duration_since(trouble.since) > limits.queue_timeout
            && now < trouble.retry_at
        {
            return Acquire::refused(trouble.refusal(now));
        }
        waiter.enqueue(now + limits.queue_timeout);
        inner.waiters.push_back(Arc::clone(waiter));
        self.open_as_needed(&mut inner);
        drop(inner);
        Acquire::waiting(Arc::clone(self), Arc::clone(waiter), worker)
    }

    /// Takes a waiter out that no longer waits.
    fn forsake(&self, waiter: &Arc<Waiter>) {
        self.lock().waiters.retain(|other| !Arc::ptr_eq(other, waiter));
    }

    /// A backend that is ready for anybody comes back.
    #[inline]
    fn put_back(self: &Arc<Self>, mut backend: Box<Backend>) {
        let now = clock::now_ms();
        let mut inner = self.lock();
        if backend.generation != inner.generation || now >= backend.retire_at_ms || self.owes_place(&inner) {
            self.retire(inner, backend);
            return;
        }
        if !self.paused.load(Ordering::Relaxed) {
            while let Some(waiter) = inner.waiters.pop_front() {
                match waiter.grant(backend) {
                    Ok(()) => return,
                    // It stopped waiting a moment ago.
                    Err(back) => backend = back,
                }
            }
        }
        backend.idle_since_ms = now;
        inner.idle.push(backend);
    }

    /// Whether this pool has more than it may, or can spare one for another pool that has none at all.
    #[inline]
    fn owes_place(&self, inner: &Inner) -> bool {
        inner.open > self.upstream.size()
            || self.upstream.is_starved() && (inner.open > 1 || inner.waiters.is_empty())
    }

    #[cold]
    #[expect(clippy::boxed_local, reason = "it comes in a box and the task needs it whole")]
    fn retire(self: &Arc<Self>, mut inner: MutexGuard<'_, Inner>, backend: Box<Backend>) {
        self.closed(&mut inner);
        drop(inner);
        // Others first: this pool would take the place back at once.
        self.upstream.feed_starved();
        self.open_as_needed(&mut self.lock());
        tokio::spawn(backend.terminate());
    }

    /// A leased backend is gone.
    fn lost(self: &Arc<Self>) {
        metrics::get().backends_lost.increment(1);
        self.closed(&mut self.lock());
        self.upstream.feed_starved();
        self.open_as_needed(&mut self.lock());
    }

    fn closed(&self, inner: &mut Inner) {
        inner.open = inner.open.saturating_sub(1);
        self.upstream.gave_back();
    }

    /// Starts as many connects as the waiters need and the limits allow.
    fn open_as_needed(self: &Arc<Self>, inner: &mut Inner) {
        let limits = self.upstream.limits();
        let now = Instant::now();
        while inner.waiters.len() > inner.opening
            && inner.open < limits.size
            && inner.trouble.as_ref().is_none_or(|trouble| now >= trouble.retry_at)
            && !self.paused.load(Ordering::Relaxed)
        {
            if !self.upstream.reserve(self, inner.open) {
                return;
            }
            inner.open += 1;
            inner.opening += 1;
            tokio::spawn(Arc::clone(self).open(inner.generation, upstream::current_worker()));
        }
    }

    /// Opens one backend, within the connect deadline and the upstream's limit of connects at a time.
    async fn open(self: Arc<Self>, generation: u64, worker: usize) {
        let opening = Opening(Some(Arc::clone(&self)));
        let Ok(_place) = self.upstream.connects.acquire().await else { return };
        if !self.is_wanted() {
            return;
        }
        let limits = self.upstream.limits();
        let login = Login {
            user: self.key.user.to_string(),
            database: self.key.database.to_string(),
            replication: self.key.replication.as_deref().map(str::to_owned),
            credential: self.credential(),
        };
        let connector = self.upstream.connector();
        let lifetime = limits.max_lifetime.mul_f64(rand::rng().random_range(0.9..=1.1));
        let connect = connector.connect(&login, worker, lifetime);
        let opened = match tokio::time::timeout(limits.connect_timeout, connect).await {
            Ok(opened) => opened,
            Err(_) => Err(ConnectError::Timeout),
        };
        match opened {
            Ok(mut backend) => {
                backend.generation = generation;
                opening.succeeded(backend);
            }
            Err(error) => opening.failed(error),
        }
    }

    /// Whether a connect that is about to start still has a purpose.
    fn is_wanted(&self) -> bool {
        let inner = self.lock();
        !inner.waiters.is_empty() || inner.idle.len() < self.upstream.limits().min_idle
    }

    fn open_failed(self: &Arc<Self>, error: ConnectError) {
        metrics::get().connects_failed.increment(1);
        let error = Arc::new(error);
        tracing::warn!(
            upstream = %self.upstream.name, database = %self.key.database, user = %self.key.user,
            error = &*error as &dyn std::error::Error, "cannot open a backend"
        );
        let now = Instant::now();
        let mut inner = self.lock();
        inner.opening = inner.opening.saturating_sub(1);
        self.closed(&mut inner);
        let pause = inner.backoff.next(&mut rand::rng());
        let since = inner.trouble.as_ref().map_or(now, |trouble| trouble.since);
        inner.trouble = Some(Trouble { since, retry_at: now + pause, cause: Arc::clone(&error) });
        if error.is_permanent() {
            for waiter in inner.waiters.drain(..) {
                waiter.refuse(Refusal::LoginRefused(Arc::clone(&error)));
            }
        }
        drop(inner);
        let pool = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            pool.open_as_needed(&mut pool.lock());
        });
    }

    fn opened(self: &Arc<Self>, backend: Backend) {
        metrics::get().connects.increment(1);
        let mut inner = self.lock();
        inner.opening = inner.opening.saturating_sub(1);
        inner.trouble = None;
        inner.backoff.reset();
        if inner.reported != backend.reported {
            inner.reported = backend.reported.clone();
            self.welcomes.clear();
        }
        drop(inner);
        self.put_back(Box::new(backend));
        self.open_as_needed(&mut self.lock());
    }

    /// Refuses the waiters whose time is over. Called often; cheap while nobody waits.
    pub fn sweep_waiters(&self, now: Instant) {
        let mut inner = self.lock();
        while let Some(first) = inner.waiters.front()
            && first.deadline() <= now
        {
            let refusal = match &inner.trouble {
                Some(trouble) if inner.open == inner.opening => trouble.refusal(now),
                _ => Refusal::QueueTimeout { waited: self.upstream.limits().queue_timeout },
            };
            if let Some(waiter) = inner.waiters.pop_front() {
                waiter.refuse(refusal);
            }
        }
    }

    /// Closes idle backends that are old, stale or dead, and keeps `min_idle`. Called every 250 ms, inside a
    /// runtime.
    pub fn sweep_idle(self: &Arc<Self>) {
        let limits = self.upstream.limits();
        let mut gone = Vec::new();
        let mut inner = self.lock();
        let generation = inner.generation;
        let mut keep = Vec::with_capacity(inner.idle.len());
        let mut left = inner.idle.len();
        for mut backend in std::mem::take(&mut inner.idle) {
            let unused = clock::since(backend.idle_since_ms) > limits.idle_timeout;
            let surplus = unused && left > limits.min_idle;
            if surplus
                || clock::now_ms() >= backend.retire_at_ms
                || backend.generation != generation
                || inner.open - gone.len() > limits.size
            {
                left -= 1;
                gone.push(backend);
            } else if is_fresh(&mut backend) {
                keep.push(backend);
            } else {
                left -= 1;
                self.closed(&mut inner);
                metrics::get().backends_lost.increment(1);
            }
        }
        inner.idle = keep;
        for _ in &gone {
            self.closed(&mut inner);
        }
        let in_use = inner.open > 0 || !inner.waiters.is_empty();
        let missing = in_use && inner.idle.len() + inner.opening < limits.min_idle;
        if missing
            && inner.open < limits.size
            && inner.trouble.is_none()
            && self.upstream.reserve(self, inner.open)
        {
            inner.open += 1;
            inner.opening += 1;
            tokio::spawn(Arc::clone(self).open(generation, upstream::current_worker()));
        }
        self.open_as_needed(&mut inner);
        drop(inner);
        for backend in gone {
            tokio::spawn(backend.terminate());
        }
    }

    /// Closes one backend that was idle for at least `idle` to make room for another pool; whether there was
    /// one.
    fn evict(&self, idle: Duration) -> bool {
        let mut inner = self.lock();
        if inner.idle.first().is_none_or(|first| clock::since(first.idle_since_ms) < idle) {
            return false;
        }
        let backend = inner.idle.remove(0);
        self.closed(&mut inner);
        drop(inner);
        tokio::spawn(backend.terminate());
        true
    }

    /// Every backend of now is closed at its next idle moment, idle ones at the next sweep.
    pub fn reconnect(&self) {
        self.lock().generation += 1;
    }

    /// What the pool is doing.
    pub fn state(&self) -> PoolState {
        let inner = self.lock();
        let leased = inner.open.saturating_sub(inner.idle.len() + inner.opening);
        let longest_wait = inner.waiters.front().map_or(Duration::ZERO, |first| first.waited());
        PoolState {
            idle: inner.idle.len(),
            leased,
            opening: inner.opening,
            waiting: inner.waiters.len(),
            longest_wait,
        }
    }
}

impl Trouble {
    fn refusal(&self, now: Instant) -> Refusal {
        let retry_after = self.retry_at.saturating_duration_since(now).max(BACKOFF_BASE);
        if self.cause.is_permanent() {
            return Refusal::LoginRefused(Arc::clone(&self.cause));
        }
        Refusal::NoUpstream { cause: Arc::clone(&self.cause), retry_after }
    }
}

impl Inner {
    /// The idle backend that was used last and needs no move to this worker, else the one used last.
    #[inline]
    fn take_idle(&mut self, worker: usize) -> Option<Box<Backend>> {
        match self.idle.last() {
            Some(last) if last.worker == worker => self.idle.pop(),
            Some(_) => match self.idle.iter().rposition(|backend| backend.worker == worker) {
                Some(index) => Some(self.idle.remove(index)),
                None => self.idle.pop(),
            },
            None => None,
        }
    }
}

/// Whether an idle backend is still there. What it said in the meantime must be harmless.
#[inline]
fn is_fresh(backend: &mut Backend) -> bool {
    let mut input = None;
    match backend.stream.fill_now(&mut input) {
        Poll::Pending => true,
        Poll::Ready(Ok(1..)) => input.is_some_and(|input| is_harmless(input.unread())),
        Poll::Ready(_) => false,
    }
}

/// Whether these are whole messages that a server may send at any time and that change nothing.
fn is_harmless(mut bytes: &[u8]) -> bool {
    while let Ok(Some(header)) = Header::read(bytes) {
        let harmless = matches!(header.tag, tag::PARAMETER_STATUS | tag::NOTICE_RESPONSE);
        match bytes.get(header.frame_len..) {
            Some(rest) if harmless => bytes = rest,
            _ => return false,
        }
    }
    bytes.is_empty()
}

/// The place of a backend that is being opened; dropping it gives the place back.
struct Opening(Option<Arc<Pool>>);

impl Opening {
    fn succeeded(mut self, backend: Backend) {
        if let Some(pool) = self.0.take() {
            pool.opened(backend);
        }
    }

    fn failed(mut self, error: ConnectError) {
        if let Some(pool) = self.0.take() {
            pool.open_failed(error);
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(pool) = self.0.take() {
            let mut inner = pool.lock();
            inner.opening = inner.opening.saturating_sub(1);
            pool.closed(&mut inner);
        }
    }
}
