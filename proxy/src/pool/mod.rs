//! Backends, shared: one pool per (database, user) of an upstream.
//!
//! A backend is idle in its pool, leased to a session, or opening. Who gets one, who waits and who is refused is
//! the business of a [`Handoff`] with one lane for reads and one for writes; what opens and closes backends is in
//! `opening`. Everything here is bounded: backends per lane, pool and upstream, connects at a time, waiters, and the
//! time that each waits.

pub mod acquire;
pub mod databases;
pub mod functions;
pub mod hold;
pub mod learned;
pub mod lease;
mod opening;
pub mod routes;
pub mod upstream;
pub mod welcome;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tidegate_layers::breaker::Phase;
use tidegate_layers::shed::{Ask, Handoff, LaneConfig, Overloaded, QueueConfig, Reason};
use tokio::time::Instant;

pub use acquire::Acquire;
pub use databases::{Database, Databases};
pub use functions::Functions;
pub use learned::Learned;
pub use lease::Lease;
pub use routes::Routes;
pub use upstream::{Limits, PoolKey, Upstream};
pub use welcome::{Welcome, Welcomes};

use self::opening::Openings;
use crate::auth::Credential;
use crate::backend::{Backend, CancelTarget};
use crate::clock;
use crate::exchange::Refusal;
use crate::sql::Lane;
use crate::telemetry::metrics;
use crate::wire::{Header, backend as tag};

/// An idle backend is looked at by the sweep when nobody has used it for this long.
const UNUSED: Duration = Duration::from_millis(250);

/// See the module documentation.
#[derive(Debug)]
pub struct Pool {
    /// Whose it is.
    pub key: PoolKey,
    /// The server that its backends are at.
    pub upstream: Arc<Upstream>,
    backends: Handoff<Box<Backend>>,
    openings: Mutex<Openings>,
    /// Backends that exist, are being opened, or were given up on and may still be there.
    open: AtomicUsize,
    /// Of these, being opened.
    opening: AtomicUsize,
    /// Of these, given up on.
    buried_alive: AtomicUsize,
    /// Backends of an older generation are closed instead of reused.
    generation: AtomicU64,
    credential: Mutex<Credential>,
    /// Its database, shared with the pools of other users and upstreams.
    pub database: Arc<Database>,
    /// Exchanges that were answered.
    pub exchanges: AtomicU64,
    /// What applications are told at login.
    pub welcomes: Welcomes,
    /// Which functions of the database are volatile.
    pub functions: Arc<Functions>,
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
    /// Backends that were given up on and may still be there.
    pub zombies: usize,
    /// Sessions that wait.
    pub waiting: usize,
    /// How long the first of them has waited.
    pub longest_wait: Duration,
    /// What each lane is doing, in the order of [`Lane::ALL`].
    pub lanes: [LaneState; Lane::ALL.len()],
}

/// What a lane of a pool is doing.
#[derive(Debug, Clone, Copy, Default)]
pub struct LaneState {
    /// Permits in use, by sessions and by zombies.
    pub in_flight: usize,
    /// How many may be in use now.
    pub limit: usize,
    /// Sessions that wait.
    pub waiting: usize,
}

/// The lanes of a pool with these limits.
fn lanes(limits: &Limits) -> [LaneConfig; Lane::ALL.len()] {
    let queue = QueueConfig {
        queue_max: limits.queue_max,
        wait_max: limits.queue_timeout,
        codel: limits.codel,
        ..QueueConfig::default()
    };
    Lane::ALL.map(|lane| LaneConfig { ceiling: limits.ceiling(lane), queue })
}

impl Pool {
    fn new(key: PoolKey, upstream: Arc<Upstream>) -> Self {
        let backends = Handoff::new(lanes(&upstream.limits()));
        let pool = Self {
            database: upstream.databases.get(&key.database),
            functions: upstream.functions.of(&key.database),
            key,
            upstream,
            backends,
            openings: Mutex::default(),
            open: AtomicUsize::new(0),
            opening: AtomicUsize::new(0),
            buried_alive: AtomicUsize::new(0),
            generation: AtomicU64::new(0),
            credential: Mutex::new(Credential::None),
            exchanges: AtomicU64::new(0),
            welcomes: Welcomes::default(),
        };
        pool.obey_all();
        pool
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

    /// A backend in this lane; `worker` is the thread that will use it.
    pub fn acquire(self: &Arc<Self>, lane: Lane, ask: Ask, worker: usize) -> Acquire {
        match self.acquire_at_once(lane, &ask, clock::now(), worker) {
            Ok(lease) => Acquire::ready(lease),
            Err(Overloaded { reason: Reason::Limit, .. }) => self.enqueue(lane, ask, worker),
            Err(refusal) => Acquire::refused(self.refusal(lane, refusal)),
        }
    }

    /// As [`Pool::acquire`], one that is idle.
    ///
    /// # Errors
    /// There is none, or none for whoever asks.
    #[inline]
    pub(crate) fn acquire_at_once(
        self: &Arc<Self>,
        lane: Lane,
        ask: &Ask,
        now: Instant,
        worker: usize,
    ) -> Result<Lease, Overloaded> {
        loop {
            let mut lease =
                self.backends.try_checkout_by(lane.index(), ask, now, |backend| backend.worker == worker)?;
            if lease.generation != self.generation.load(Ordering::Relaxed) {
                if let Some(backend) = lease.discard() {
                    self.retire(backend);
                }
            } else if is_fresh(&mut lease) && lease.move_to(worker).is_ok() {
                return Ok(Lease::new(lease, Arc::clone(self)));
            } else {
                drop(lease.discard());
                self.upstream.trouble();
                self.lost();
            }
        }
    }

    #[cold]
    fn enqueue(self: &Arc<Self>, lane: Lane, ask: Ask, worker: usize) -> Acquire {
        if let Some(trouble) = self.hopeless() {
            return Acquire::refused(trouble);
        }
        Acquire::waiting(self.backends.checkout(lane.index(), ask), Arc::clone(self), lane, worker)
    }

    /// What an application is told that the queue refused.
    fn refusal(&self, lane: Lane, refused: Overloaded) -> Refusal {
        if let Some(trouble) = self.trouble() {
            return trouble;
        }
        if self.database.is_paused() {
            return Refusal::Paused { lane, retry_after: refused.retry_after };
        }
        match self.upstream.guard.admit(lane, Instant::now()) {
            Err(open) => Refusal::breaker_open(lane, open),
            Ok(()) => Refusal::Shed { lane, reason: refused.reason, retry_after: refused.retry_after },
        }
    }

    /// Puts a phase of a lane's breaker into effect.
    pub fn obey(&self, lane: Lane, phase: Phase) {
        let paused = self.database.is_paused();
        let ceiling = self.upstream.limits().ceiling(lane);
        let ramp = if paused { Some(0) } else { phase.ramp_limit(ceiling) };
        self.backends.set_ramp(lane.index(), ramp);
    }

    /// Refuses everybody who waits in a lane.
    pub fn flush(&self, lane: Lane) {
        self.backends.flush(lane.index());
    }

    /// Takes new limits over.
    pub(super) fn configure(&self, limits: &Limits) {
        for (index, config) in lanes(limits).into_iter().enumerate() {
            self.backends.configure(index, config);
        }
    }

    /// A backend that is ready for anybody comes back.
    #[inline]
    fn put_back(self: &Arc<Self>, mut lease: tidegate_layers::shed::Lease<Box<Backend>>) {
        let now = clock::now_ms();
        let stale = lease.generation != self.generation.load(Ordering::Relaxed) || now >= lease.retire_at_ms;
        if stale || self.owes_place() {
            if let Some(backend) = lease.discard() {
                self.retire(backend);
            }
            return;
        }
        lease.idle_since_ms = now;
        drop(lease);
    }

    /// Whether this pool has more than it may, or can spare one for another pool that has none at all.
    #[inline]
    fn owes_place(&self) -> bool {
        let open = self.open.load(Ordering::Relaxed);
        open > self.upstream.size() || self.upstream.is_starved() && (open > 1 || !self.is_awaited())
    }

    fn is_awaited(&self) -> bool {
        Lane::ALL
            .into_iter()
            .any(|lane| self.backends.stats(lane.index()).is_some_and(|stats| stats.waiting > 0))
    }

    #[cold]
    fn retire(self: &Arc<Self>, backend: Box<Backend>) {
        self.closed();
        // Others first: this pool would take the place back at once.
        self.upstream.feed_starved();
        self.open_as_needed();
        tokio::spawn(backend.terminate());
    }

    /// A backend is gone.
    fn lost(self: &Arc<Self>) {
        metrics::get().backends_lost.increment(1);
        self.closed();
        self.upstream.feed_starved();
        self.open_as_needed();
    }

    /// A backend was given up on; it keeps its place for now.
    fn given_up(&self) {
        metrics::get().backends_lost.increment(1);
        self.buried_alive.fetch_add(1, Ordering::Relaxed);
    }

    /// One that was given up on is gone.
    pub(crate) fn buried(self: &Arc<Self>) {
        self.buried_alive.fetch_sub(1, Ordering::Relaxed);
        self.closed();
        // From the control thread, which must not open backends on its runtime.
        self.upstream.on_worker(Arc::clone(self), |pool| {
            pool.upstream.feed_starved();
            pool.open_as_needed();
        });
    }

    fn closed(&self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
        self.upstream.gave_back();
    }

    /// Refuses the waiters whose time is over, and says whether others wait. Cheap while nobody does.
    pub fn sweep_waiters(&self, now: Instant) -> bool {
        self.backends.sweep(now)
    }

    /// Closes idle backends that are old, stale or dead, and keeps `min_idle`. Called every 250 ms, inside a
    /// runtime.
    pub fn sweep_idle(self: &Arc<Self>) {
        let limits = self.upstream.limits();
        let generation = self.generation.load(Ordering::Relaxed);
        let mut left = self.backends.idle();
        let mut surplus = self.open.load(Ordering::Relaxed).saturating_sub(limits.size);
        let gone = self.backends.take_idle(|backend| {
            let unused = clock::since(backend.idle_since_ms) > limits.idle_timeout && left > limits.min_idle;
            let old = clock::now_ms() >= backend.retire_at_ms || backend.generation != generation;
            let goes = unused || old || surplus > 0;
            if goes {
                left -= 1;
                surplus = surplus.saturating_sub(1);
            }
            goes
        });
        for backend in gone {
            self.closed();
            tokio::spawn(backend.terminate());
        }
        self.drop_dead();
        self.keep_min_idle(&limits);
        self.open_as_needed();
    }

    /// Finds backends that ended while they were idle.
    fn drop_dead(self: &Arc<Self>) {
        let mut dead = 0;
        // Those in constant use are looked at when they are used.
        for mut backend in self.backends.take_idle(|backend| clock::since(backend.idle_since_ms) >= UNUSED) {
            if is_fresh(&mut backend) {
                self.backends.put(backend);
            } else {
                dead += 1;
            }
        }
        if dead > 0 {
            self.upstream.trouble();
        }
        for _ in 0..dead {
            self.lost();
        }
    }

    /// Closes one backend that was idle for at least `idle` to make room for another pool; whether there was
    /// one.
    fn evict(&self, idle: Duration) -> bool {
        let mut found = false;
        let evicted = self.backends.take_idle(|backend| {
            let take = !found && clock::since(backend.idle_since_ms) >= idle;
            found |= take;
            take
        });
        for backend in evicted {
            self.closed();
            tokio::spawn(backend.terminate());
        }
        found
    }

    /// Every backend of now is closed at its next idle moment, idle ones at the next sweep.
    pub fn reconnect(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// As [`Pool::reconnect`], and idle backends are closed at once; a pause takes effect. To be called inside a
    /// runtime.
    pub fn close_backends(self: &Arc<Self>) {
        self.reconnect();
        self.obey_all();
        for backend in self.backends.take_idle(|_| true) {
            self.closed();
            tokio::spawn(backend.terminate());
        }
    }

    /// Goes on after a pause. To be called inside a runtime.
    pub fn resume(self: &Arc<Self>) {
        self.obey_all();
        self.open_as_needed();
    }

    /// Puts the phases of both breakers, and a pause, into effect. From any thread.
    pub fn obey_all(&self) {
        for lane in Lane::ALL {
            self.obey(lane, self.upstream.guard.phase(lane));
        }
    }

    /// The backends that serve nobody, each with the time on the clock since when.
    pub fn idle_backends(&self) -> Vec<(Arc<CancelTarget>, u64)> {
        let mut idle = Vec::new();
        self.backends.for_each_idle(|backend| {
            idle.push((Arc::clone(&backend.cancel_target), backend.idle_since_ms));
        });
        idle
    }

    /// What the pool is doing.
    pub fn state(&self) -> PoolState {
        let now = Instant::now();
        let stats = Lane::ALL.map(|lane| self.backends.stats(lane.index()));
        let idle = self.backends.idle();
        let opening = self.opening.load(Ordering::Relaxed);
        let zombies = self.buried_alive.load(Ordering::Relaxed);
        let open = self.open.load(Ordering::Relaxed);
        let first = stats.iter().flatten().filter_map(|stats| stats.waiting_since).min();
        PoolState {
            idle,
            leased: open.saturating_sub(idle + opening + zombies),
            opening,
            zombies,
            waiting: stats.iter().flatten().map(|stats| stats.waiting).sum(),
            longest_wait: first.map_or(Duration::ZERO, |since| now.saturating_duration_since(since)),
            lanes: stats.map(|stats| {
                stats.map_or_else(LaneState::default, |stats| LaneState {
                    in_flight: stats.in_flight,
                    limit: stats.limit,
                    waiting: stats.waiting,
                })
            }),
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
