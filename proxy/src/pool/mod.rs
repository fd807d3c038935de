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
    /// Its number, which no other pool ever has.
    number: u64,
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
    /// How many backends are to be ready whatever `min_idle` says.
    spare: AtomicUsize,
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
        limit: limits.limit,
        ..QueueConfig::default()
    };
    Lane::ALL.map(|lane| LaneConfig { ceiling: limits.ceiling(lane), queue })
}

impl Pool {
    fn new(key: PoolKey, upstream: Arc<Upstream>) -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let backends = Handoff::with_clock(lanes(&upstream.limits()), clock::now);
        let pool = Self {
            database: upstream.databases.get(&key.database),
            functions: upstream.functions.of(&key.database),
            key,
            number: LAST.fetch_add(1, Ordering::Relaxed) + 1,
            upstream,
            backends,
            openings: Mutex::default(),
            open: AtomicUsize::new(0),
            opening: AtomicUsize::new(0),
            buried_alive: AtomicUsize::new(0),
            spare: AtomicUsize::new(0),
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
            let granted =
                self.backends.try_checkout_by(lane.index(), ask, now, |backend| backend.worker == worker)?;
            if let Some(lease) = self.vet(granted, worker) {
                return Ok(lease);
            }
        }
    }

    /// A backend as it was granted, ready for this worker. `None`: it was unfit, and is closed.
    #[inline]
    fn vet(
        self: &Arc<Self>,
        mut granted: tidegate_layers::shed::Lease<Box<Backend>>,
        worker: usize,
    ) -> Option<Lease> {
        if granted.generation != self.generation.load(Ordering::Relaxed) {
            if let Some(backend) = granted.discard() {
                self.retire(backend);
            }
        } else if is_fresh(&mut granted) && granted.move_to(worker).is_ok() {
            return Some(Lease::new(granted, Arc::clone(self)));
        } else {
            drop(granted.discard());
            self.upstream.trouble();
            self.lost();
        }
        None
    }

    /// As [`Pool::acquire`], for whoever was given none at once: a wait, or why there is none.
    #[cold]
    pub(crate) fn enqueue(self: &Arc<Self>, lane: Lane, ask: Ask, worker: usize) -> Acquire {
        if let Some(trouble) = self.hopeless(lane) {
            return Acquire::refused(trouble);
        }
        Acquire::waiting(Arc::clone(self), lane, ask, worker)
    }

    /// What an application is told that the queue refused.
    fn refusal(&self, lane: Lane, refused: Overloaded) -> Refusal {
        if let Some(trouble) = self.trouble(lane) {
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

    /// Refuses everybody who waits for a backend, which transactions that are to change lanes do not.
    pub(super) fn refuse_newcomers(&self) {
        for lane in Lane::ALL {
            self.backends.flush_queue(lane.index());
        }
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

    /// Whether this pool or all together have more than they may, or it can spare one for another pool that has none at
    /// all.
    #[inline]
    fn owes_place(&self) -> bool {
        let open = self.open.load(Ordering::Relaxed);
        open > self.upstream.size()
            || self.upstream.surplus() > 0
            || self.upstream.is_starved() && (open > 1 || !self.is_awaited())
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

    /// Closes idle backends that are old, stale or dead, and keeps some ready. Called every 250 ms, inside a
    /// runtime.
    pub fn sweep_idle(self: &Arc<Self>) {
        let limits = self.upstream.limits();
        let generation = self.generation.load(Ordering::Relaxed);
        let ready = self.ready(&limits);
        let mut left = self.backends.idle();
        let of_pool = self.open.load(Ordering::Relaxed).saturating_sub(limits.size);
        let mut surplus = of_pool.max(self.upstream.surplus());
        let gone = self.backends.take_idle(|backend| {
            let unused = clock::since(backend.idle_since_ms) > limits.idle_timeout && left > ready;
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
        self.keep_ready(&limits);
        self.open_as_needed();
    }

    /// Finds backends that ended while they were idle.
    fn drop_dead(self: &Arc<Self>) {
        // Those in constant use are looked at when they are used.
        let mut looked_at = self.backends.take_idle(|backend| clock::since(backend.idle_since_ms) >= UNUSED);
        let taken = looked_at.len();
        looked_at.retain_mut(|backend| is_fresh(backend));
        let dead = taken - looked_at.len();
        // To look is not to use: as the last used they would be the next to be used, and none would ever get old.
        self.backends.put_unused(looked_at);
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

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use tidegate_tests::wait_until;
    use tokio::net::UnixStream;

    use super::*;
    use crate::auth::scram::KeyCache;
    use crate::backend::cancel::Peer;
    use crate::backend::{Connector, Prepared, Settings};
    use crate::config::{Config, Password, PoolMode, Sources, SslMode, UpstreamAddress};
    use crate::io::{Socket, Stream};
    use crate::wire::TransactionStatus;

    const SOON: Duration = Duration::from_secs(10);
    const ANYWHERE: usize = 0;

    /// A pool of a server that is not there.
    pub(crate) fn pool() -> Arc<Pool> {
        pool_within(|_| {})
    }

    /// The same with other limits.
    pub(super) fn pool_within(change: impl FnOnce(&mut Limits)) -> Arc<Pool> {
        let mut limits = Limits::of(&config());
        change(&mut limits);
        let key = PoolKey { database: "d".into(), user: "u".into(), replication: None };
        Upstream::new(connector(), &limits, &Arc::default(), &Arc::default()).pool(key)
    }

    /// The defaults.
    pub(super) fn config() -> Config {
        let upstreams = vec![Password::new("127.0.0.1:1".to_owned())];
        Config::load(&Sources { upstreams, ..Sources::default() }).unwrap()
    }

    fn connector() -> Connector {
        let address = UpstreamAddress::Tcp { host: "127.0.0.1".to_owned(), port: 1 };
        let keys = Arc::new(KeyCache::new(1).unwrap());
        Connector { address, ssl_mode: SslMode::Disable, tls: None, keys }
    }

    /// Takes a new number of backends per upstream over.
    fn reload(pool: &Pool, max_per_upstream: usize) {
        let limits = Limits { max_per_upstream, ..Limits::clone(&pool.upstream.limits()) };
        pool.upstream.reload(connector(), &limits);
    }

    /// Puts a backend into the pool that was idle since the process started; gives the server's end of it.
    pub(super) fn put(pool: &Arc<Pool>, process_id: u32) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(pool.upstream.reserve(pool, pool.open.fetch_add(1, Ordering::Relaxed)));
        pool.backends.put(Box::new(Backend {
            stream: Stream::Plain(Socket::Unix(ours)),
            worker: ANYWHERE,
            cancel_target: CancelTarget::new(Peer::Unix("/nowhere".into()), None, process_id, Vec::new()),
            prepared: Prepared::default(),
            unnamed: None,
            applied: Settings::none(),
            reported: BTreeMap::new(),
            knows_tokens: false,
            status: TransactionStatus::Idle,
            retire_at_ms: u64::MAX,
            idle_since_ms: 0,
            generation: pool.generation.load(Ordering::Relaxed),
            slot: None,
        }));
        theirs
    }

    /// Lends a backend for a moment; gives its process id.
    fn use_one(pool: &Arc<Pool>) -> u32 {
        let lease = pool.acquire_at_once(Lane::Read, &Ask::default(), clock::now(), ANYWHERE).unwrap();
        let process_id = lease.cancel_target.process_id;
        lease.give_back();
        process_id
    }

    fn idle(pool: &Pool) -> Vec<u32> {
        pool.idle_backends().iter().map(|(target, _)| target.process_id).collect()
    }

    #[tokio::test]
    async fn a_look_at_idle_backends_leaves_them_in_the_order_of_their_use() {
        // Each of many idle ones would be used in turn, none of them for long enough idle to be closed.
        let pool = pool();
        let [_first, second, _third, _last] = [1, 2, 3, 4].map(|process_id| put(&pool, process_id));
        let unused = || {
            clock::tick();
            clock::since(0) >= UNUSED
        };
        wait_until(SOON, "the idle backends are to be looked at", unused).await;
        assert_eq!(use_one(&pool), 4);

        pool.sweep_idle();
        assert_eq!(idle(&pool), [1, 2, 3, 4]);
        drop(second);
        let swept = || {
            pool.sweep_idle();
            pool.state().idle == 3
        };
        wait_until(SOON, "the dead backend is gone", swept).await;

        assert_eq!(idle(&pool), [1, 3, 4]);
        assert_eq!((use_one(&pool), pool.state().leased), (4, 0));
    }

    #[tokio::test]
    async fn a_lowered_limit_of_all_backends_closes_those_that_are_too_many_and_no_others() {
        // What the server has to spare was given to somebody else; and what is closed beyond that is only opened again.
        let pool = pool();
        let other = pool.upstream.pool(PoolKey { database: "other".into(), ..pool.key.clone() });
        let _servers = [&pool, &other].map(|pool| [1, 2, 3].map(|process_id| put(pool, process_id)));
        let lease = pool.acquire_at_once(Lane::Read, &Ask::default(), clock::now(), ANYWHERE).unwrap();

        // Three of these are for our own questions.
        reload(&pool, 6);
        lease.give_back();
        assert_eq!(pool.upstream.open(), 5);
        for pool in [&pool, &other, &pool, &other] {
            pool.sweep_idle();
        }
        use_one(&other);

        assert_eq!(pool.upstream.open(), 3);
    }

    #[tokio::test]
    async fn an_overload_lowers_the_limit_of_transactions_and_not_that_of_sessions() {
        // It grows again as those end that were let in: in session mode that is when the application is restarted.
        for (mode, expected) in [(PoolMode::Transaction, 14), (PoolMode::Session, 20)] {
            let mut config = config();
            config.pool.mode = mode;
            let pool = pool_within(|limits| *limits = Limits::of(&config));
            let _server = put(&pool, 1);
            let mut lease =
                pool.acquire_at_once(Lane::Read, &Ask::default(), clock::now(), ANYWHERE).unwrap();

            lease.fared_badly(Instant::now());

            assert_eq!(pool.state().lanes[Lane::Read.index()].limit, expected, "{mode:?}");
        }
    }

    #[tokio::test]
    async fn a_reload_makes_no_place_for_backends_without_deadlines() {
        // What they run could hang for ever, and the breaker would not see it.
        let pool = pool();

        reload(&pool, 100_000);

        let places = (0..100_000).take_while(|_| pool.upstream.take_place()).count();
        let slots: Vec<_> = (0..places).map(|_| pool.upstream.guard.slots.take(1, pool.number)).collect();
        assert!(places > 200, "{places} is no more than before");
        assert!(slots.iter().all(Option::is_some), "{places} places");
    }
}
