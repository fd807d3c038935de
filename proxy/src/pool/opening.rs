//! How a pool gets backends: as many as its waiters can use, a few at a time, with pauses after failures.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::RngExt as _;
use tidegate_layers::backoff::Backoff;

use super::{Limits, Pool, upstream};
use crate::backend::{Backend, ConnectError, Login};
use crate::exchange::Refusal;
use crate::telemetry::metrics;

/// Pause before a connect is tried again after a failure: full jitter up to this, doubling.
const BACKOFF_BASE: Duration = Duration::from_millis(100);
/// The pause never exceeds this.
const BACKOFF_CAP: Duration = Duration::from_secs(5);

/// What is known of a pool's connects.
#[derive(Debug)]
pub(super) struct Openings {
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

impl Default for Openings {
    fn default() -> Self {
        Self { trouble: None, backoff: Backoff::new(BACKOFF_BASE, BACKOFF_CAP), reported: BTreeMap::new() }
    }
}

impl Pool {
    /// No code under this lock can panic half-way through a change, so a poisoned lock is still sound.
    fn openings(&self) -> MutexGuard<'_, Openings> {
        self.openings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no backend exists, only connects that do not succeed.
    fn has_none(&self) -> bool {
        self.open.load(Ordering::Relaxed) == self.opening.load(Ordering::Relaxed)
    }

    /// Why there is no backend, if connects fail and there is none.
    pub(super) fn trouble(&self) -> Option<Refusal> {
        let openings = self.openings();
        openings.trouble.as_ref().filter(|_| self.has_none()).map(|trouble| trouble.refusal(Instant::now()))
    }

    /// As [`Pool::trouble`], once it has lasted for so long that waiting makes no sense.
    pub(super) fn hopeless(&self) -> Option<Refusal> {
        if !self.has_none() {
            return None;
        }
        let openings = self.openings();
        let trouble = openings.trouble.as_ref().filter(|_| self.has_none())?;
        let now = Instant::now();
        let patience = self.upstream.limits().queue_timeout;
        let lasting = now.duration_since(trouble.since) > patience && now < trouble.retry_at;
        lasting.then(|| trouble.refusal(now))
    }

    /// Starts as many connects as the waiters need and the limits allow. Inside a runtime of a worker, or of
    /// the main thread.
    pub(super) fn open_as_needed(self: &Arc<Self>) {
        let limits = self.upstream.limits();
        // No lock for a pool that is full. Who closes a backend looks here afterwards, and whoever waits was counted under
        // the lock that `wanted` takes: one of the two sees the other.
        if self.open.load(Ordering::Relaxed) >= limits.size {
            return;
        }
        let openings = self.openings();
        while self.backends.wanted() > self.opening.load(Ordering::Relaxed)
            && self.may_open(&openings, &limits)
        {
            if !self.start_opening() {
                return;
            }
        }
    }

    /// As [`Pool::open_as_needed`], for the backends that a pool in use keeps ready.
    pub(super) fn keep_min_idle(self: &Arc<Self>, limits: &Limits) {
        let openings = self.openings();
        let in_use = self.open.load(Ordering::Relaxed) > 0;
        let there = self.backends.idle() + self.opening.load(Ordering::Relaxed);
        if in_use && there < limits.min_idle && openings.trouble.is_none() && self.may_open(&openings, limits)
        {
            self.start_opening();
        }
    }

    fn may_open(&self, openings: &Openings, limits: &Limits) -> bool {
        self.open.load(Ordering::Relaxed) < limits.size
            && openings.trouble.as_ref().is_none_or(|trouble| Instant::now() >= trouble.retry_at)
            && !self.database.is_paused()
    }

    /// Takes a place and opens a backend for it; false when there is no place. Under the lock of `openings`, so
    /// that two threads do not both take the last one.
    fn start_opening(self: &Arc<Self>) -> bool {
        if !self.upstream.reserve(self, self.open.load(Ordering::Relaxed)) {
            return false;
        }
        self.open.fetch_add(1, Ordering::AcqRel);
        self.opening.fetch_add(1, Ordering::AcqRel);
        let generation = self.generation.load(Ordering::Relaxed);
        tokio::spawn(Arc::clone(self).open(generation, upstream::current_worker()));
        true
    }

    /// Opens one backend, within the connect deadline and the upstream's limit of connects at a time.
    async fn open(self: Arc<Self>, generation: u64, worker: usize) {
        let opening = Opening(Some(Arc::clone(&self)));
        let Ok(_place) = self.upstream.connects.acquire().await else { return };
        if !self.is_wanted() {
            return;
        }
        let (lifetime, patience) = {
            let limits = self.upstream.limits();
            (limits.max_lifetime.mul_f64(rand::rng().random_range(0.9..=1.1)), limits.connect_timeout)
        };
        let login = self.login();
        let connector = self.upstream.connector();
        let connect = connector.connect(&login, worker, lifetime);
        let opened = match tokio::time::timeout(patience, connect).await {
            Ok(opened) => opened,
            Err(_) => Err(ConnectError::Timeout),
        };
        match opened {
            Ok(mut backend) => {
                backend.generation = generation;
                if login.replication.is_none() {
                    self.upstream.logins.worked(login);
                }
                backend.slot = self.upstream.guard.slots.take(backend.cancel_target.process_id);
                opening.succeeded(backend);
            }
            Err(error) => opening.failed(error),
        }
    }

    /// How its backends log in.
    pub fn login(&self) -> Login {
        Login {
            user: self.key.user.to_string(),
            database: self.key.database.to_string(),
            replication: self.key.replication.as_deref().map(str::to_owned),
            application_name: None,
            credential: self.credential(),
        }
    }

    /// Whether a connect that is about to start still has a purpose.
    fn is_wanted(&self) -> bool {
        self.backends.wanted() > 0 || self.backends.idle() < self.upstream.limits().min_idle
    }

    fn open_failed(self: &Arc<Self>, error: ConnectError) {
        metrics::get().connects_failed.increment(1);
        let error = Arc::new(error);
        tracing::warn!(
            upstream = %self.upstream.name, database = %self.key.database, user = %self.key.user,
            error = error.in_full(), "cannot open a backend"
        );
        let now = Instant::now();
        let mut openings = self.openings();
        self.opening.fetch_sub(1, Ordering::AcqRel);
        self.closed();
        let pause = openings.backoff.next(&mut rand::rng());
        let since = openings.trouble.as_ref().map_or(now, |trouble| trouble.since);
        openings.trouble = Some(Trouble { since, retry_at: now + pause, cause: Arc::clone(&error) });
        drop(openings);
        if !error.is_permanent() {
            self.upstream.trouble();
        }
        if error.is_permanent() {
            self.refuse_newcomers();
        }
        let pool = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            pool.open_as_needed();
        });
    }

    fn opened(self: &Arc<Self>, backend: Backend) {
        metrics::get().connects.increment(1);
        let mut openings = self.openings();
        self.opening.fetch_sub(1, Ordering::AcqRel);
        openings.trouble = None;
        openings.backoff.reset();
        if let Some(value) = backend.reported.get("in_hot_standby") {
            self.upstream.hinted(&**value == b"on");
        }
        if openings.reported != backend.reported {
            openings.reported = backend.reported.clone();
            self.welcomes.clear();
        }
        drop(openings);
        self.take_in(Box::new(backend));
        self.open_as_needed();
    }

    /// A new backend is there for whoever waits.
    fn take_in(self: &Arc<Self>, mut backend: Box<Backend>) {
        if backend.generation != self.generation.load(Ordering::Relaxed) || self.owes_place() {
            return self.retire(backend);
        }
        backend.idle_since_ms = crate::clock::now_ms();
        self.backends.put(backend);
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
            pool.opening.fetch_sub(1, Ordering::AcqRel);
            pool.closed();
        }
    }
}
