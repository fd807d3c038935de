//! One PostgreSQL server and its pools.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tidegate_layers::breaker::{BreakerConfig, Phase};
use tidegate_layers::shed::{CodelConfig, LimitConfig};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::functions::FunctionsByDatabase;
use super::opening::WritePace;
use super::{Databases, Pool};
use crate::backend::Connector;
use crate::config::{Config, PoolMode, SyncWait, Timeouts, write_slots};
use crate::discovery::Hints;
use crate::guard::{self, Access, Guard, Logins, Watcher};
use crate::probe::control::CONNECTIONS_MAX;
use crate::sql::Lane;
use crate::upstream::topology::{Health, Role};
use crate::upstream::{Observation, UpstreamView};

/// Connects to one server at a time. More only makes a server that comes back slower (`MongoDB` drivers'
/// `maxConnecting` has the same default).
const CONNECTS_AT_A_TIME: usize = 2;

/// Pools that wait for another pool's backend to be closed, at most.
const STARVED_MAX: usize = 1024;

/// An idle backend is spared for another pool that has some of its own only after this long.
const SPARE_AFTER: Duration = Duration::from_secs(1);

/// A write that has run for so long without progress may be the beginning of a stall. Most take a few milliseconds; and it
/// is in the first hundred of a stall that the backends go which happen to be idle, one with each write. Where all writes
/// take longer, a pool merely has two backends more. In two seconds a breaker has opened, or the write is just a long one,
/// and has the backend that it needs.
const SLOW_WRITE: Range<Duration> = Duration::from_millis(30)..Duration::from_secs(2);

/// Slots for deadlines beyond what the limit allows, so that a reload can raise it: as far as there are slots.
const SPARE_SLOTS: usize = 4;
/// Slots at least.
const SLOTS_MIN: usize = 256;

/// What a pool is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PoolKey {
    /// Database.
    pub database: Box<str>,
    /// User.
    pub user: Box<str>,
    /// Value of the startup parameter `replication`; such backends serve one session only.
    pub replication: Option<Box<str>>,
}

/// The limits that pools obey, replaced as a whole on reload.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Backends per pool.
    pub size: usize,
    /// Backends kept per pool in use.
    pub min_idle: usize,
    /// Backends of all pools.
    pub max_per_upstream: usize,
    /// Sessions that may wait per pool.
    pub queue_max: usize,
    /// How long each may wait.
    pub queue_timeout: Duration,
    /// How long a connect may take.
    pub connect_timeout: Duration,
    /// When an idle backend is closed.
    pub idle_timeout: Duration,
    /// When any backend is closed.
    pub max_lifetime: Duration,
    /// Prepared statements per backend.
    pub prepared_statements: usize,
    /// The part of `size` that the write lane may hold.
    pub write_share: f64,
    /// When waiting becomes overload.
    pub codel: CodelConfig,
    /// How the lanes follow what the server has shown to bear.
    pub limit: LimitConfig,
    /// How long what runs may take.
    pub timeouts: Timeouts,
    /// What becomes of a backend whose commit waits for a standby after its deadline.
    pub sync_wait: SyncWait,
    /// How long the outcome of a commit that broke is looked for; `None`: it is not.
    pub resolve_within: Option<Duration>,
    /// When a lane is taken for stuck.
    pub breaker: BreakerConfig,
}

/// A session that keeps its backend for good says nothing about load by how long others wait for one: there only
/// `timeouts.queue` counts.
fn codel(config: &Config) -> CodelConfig {
    match config.pool.mode {
        PoolMode::Transaction => {
            CodelConfig { target: config.shed.codel_target, interval: config.shed.codel_interval }
        }
        PoolMode::Session => {
            let target = config.shed.codel_target.max(config.timeouts.queue);
            CodelConfig { target, interval: config.shed.codel_interval.max(target) }
        }
    }
}

/// Sessions that keep their backends are no measure of load, and a limit on them would grow again only as they end: what
/// is lost in a second would keep newcomers out for hours.
fn limit(config: &Config) -> LimitConfig {
    let transactions = LimitConfig::default();
    match config.pool.mode {
        PoolMode::Transaction => transactions,
        PoolMode::Session => LimitConfig { cut: 1.0, ..transactions },
    }
}

impl Limits {
    /// From the configuration.
    pub fn of(config: &Config) -> Self {
        Self {
            size: config.pool.size,
            min_idle: config.pool.min_idle,
            max_per_upstream: config.pool.max_per_upstream,
            queue_max: config.shed.queue_max,
            queue_timeout: config.timeouts.queue,
            connect_timeout: config.timeouts.connect,
            idle_timeout: config.pool.idle_timeout,
            max_lifetime: config.pool.max_lifetime,
            prepared_statements: config.pool.prepared_statements,
            write_share: config.pool.write_share,
            codel: codel(config),
            limit: limit(config),
            timeouts: config.timeouts,
            sync_wait: config.commit.sync_wait,
            resolve_within: config.commit.resolve.then_some(config.commit.resolve_within),
            breaker: guard::breaker_config(&config.breaker),
        }
    }

    /// How many backends all pools may have: some connections are for our own questions.
    fn for_pools(&self) -> usize {
        self.max_per_upstream - CONNECTIONS_MAX.min(self.max_per_upstream / 2)
    }

    /// How many backends of a pool a lane may hold: writes their share, at least one, and reads all.
    pub fn ceiling(&self, lane: Lane) -> usize {
        match lane {
            Lane::Read => self.size,
            Lane::Write => write_slots(self.size, self.write_share),
        }
    }

    /// How many transactions may wait for a lane that hangs: each holds a backend meanwhile, and half of what that lane
    /// may not have is for others.
    fn patient(&self, lane: Lane) -> usize {
        self.size.saturating_sub(self.ceiling(lane)) / 2
    }
}

/// See the module documentation.
#[derive(Debug)]
pub struct Upstream {
    /// Its address, as in the configuration; goes into DETAIL of errors.
    pub name: Arc<str>,
    /// All databases, shared with the other upstreams.
    pub(super) databases: Arc<Databases>,
    /// What keeps its trouble away from applications.
    pub guard: Guard,
    pub(super) connects: Semaphore,
    /// What watches the guard.
    watchers: Mutex<Watchers>,
    /// A worker's runtime, for what other threads start.
    worker: OnceLock<Handle>,
    connector: Arc<ArcSwap<Connector>>,
    /// Who asks our own questions, of all upstreams.
    pub logins: Arc<Logins>,
    limits: ArcSwap<Limits>,
    /// `limits.size`, to be read at each give-back.
    size: AtomicUsize,
    /// Backends of all pools: `limits.for_pools()`, as far as there are slots for their deadlines.
    places: AtomicUsize,
    /// Whether there is a `limits.resolve_within`, to be read at each checkout.
    resolves: AtomicBool,
    open: AtomicUsize,
    leased: AtomicUsize,
    /// Where sessions say what they saw, once somebody listens.
    hints: ArcSwapOption<Hints>,
    /// Who it said it is, where nobody decides by that.
    seen: ArcSwapOption<Observation>,
    /// It was the primary, or is fenced: what was opened before must not be used any more.
    void: AtomicBool,
    pools: Mutex<HashMap<PoolKey, Arc<Pool>>>,
    /// The same for those who only look: they take no lock that a session may hold.
    listed: ArcSwap<Vec<Arc<Pool>>>,
    pub(super) functions: FunctionsByDatabase,
    starved: Mutex<VecDeque<Weak<Pool>>>,
    starved_len: AtomicUsize,
}

/// References to a pool that nobody uses: one by key, and one for those who only look.
const LISTS: usize = 2;

/// Tasks that wait for the control thread, and those that run. They end with it: a breaker's never does by itself.
#[derive(Default)]
struct Watchers {
    waiting: Vec<Watcher>,
    running: JoinSet<()>,
}

impl std::fmt::Debug for Watchers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (waiting, running) = (self.waiting.len(), self.running.len());
        f.debug_struct("Watchers").field("waiting", &waiting).field("running", &running).finish()
    }
}

impl Upstream {
    /// A server without pools yet. Nothing watches its guard before [`Upstream::watch`].
    pub fn new(
        connector: Connector,
        limits: &Limits,
        databases: &Arc<Databases>,
        logins: &Arc<Logins>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| {
            let slots = limits.max_per_upstream.saturating_mul(SPARE_SLOTS).max(SLOTS_MIN);
            let name = connector.address.to_string().into();
            let connector = Arc::new(ArcSwap::from_pointee(connector));
            let logins = Arc::clone(logins);
            let access = Access { connector: Arc::clone(&connector), logins: Arc::clone(&logins) };
            let (guard, watchers) = Guard::new(&limits.breaker, slots, access, this);
            Self {
                name,
                databases: Arc::clone(databases),
                guard,
                connects: Semaphore::new(CONNECTS_AT_A_TIME),
                watchers: Mutex::new(Watchers { waiting: watchers, running: JoinSet::new() }),
                worker: OnceLock::new(),
                connector,
                logins,
                limits: ArcSwap::from_pointee(limits.clone()),
                size: AtomicUsize::new(limits.size),
                places: AtomicUsize::new(limits.for_pools()),
                resolves: AtomicBool::new(limits.resolve_within.is_some()),
                open: AtomicUsize::new(0),
                leased: AtomicUsize::new(0),
                hints: ArcSwapOption::empty(),
                seen: ArcSwapOption::empty(),
                void: AtomicBool::new(false),
                pools: Mutex::new(HashMap::new()),
                listed: ArcSwap::default(),
                functions: FunctionsByDatabase::default(),
                starved: Mutex::new(VecDeque::new()),
                starved_len: AtomicUsize::new(0),
            }
        })
    }

    /// Starts what watches the guard: on the control thread, so that nothing on the data path can hold it up.
    /// `worker` is where connects are made on its behalf.
    pub fn watch(&self, control: &Handle, worker: &Handle) {
        // The first one stays.
        let _ = self.worker.set(worker.clone());
        let Watchers { waiting, running } = &mut *self.lock_watchers();
        for watcher in waiting.drain(..) {
            running.spawn_on(watcher, control);
        }
    }

    fn lock_watchers(&self) -> MutexGuard<'_, Watchers> {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is configured no more, and has no backends: it is asked nothing from now on, and goes with the last session
    /// that it served.
    pub(super) fn retire(&self) {
        *self.lock_watchers() = Watchers::default();
        self.guard.hang_up();
        let mut pools = self.lock_pools();
        pools.clear();
        self.list(&pools);
    }

    /// Runs something about a pool on a worker, from any thread.
    pub(super) fn on_worker(&self, pool: Arc<Pool>, run: impl FnOnce(&Arc<Pool>) + Send + 'static) {
        match self.worker.get() {
            Some(worker) => drop(worker.spawn(async move { run(&pool) })),
            None => run(&pool),
        }
    }

    /// Takes a new configuration over.
    pub fn reload(&self, connector: Connector, limits: &Limits) {
        self.connector.store(Arc::new(connector));
        self.size.store(limits.size, Ordering::Relaxed);
        self.places.store(self.places_within(limits), Ordering::Relaxed);
        self.resolves.store(limits.resolve_within.is_some(), Ordering::Relaxed);
        self.limits.store(Arc::new(limits.clone()));
        self.guard.configure(&limits.breaker);
        for pool in self.pools() {
            pool.configure(limits);
        }
    }

    /// It is configured no more: nothing is kept ready there.
    pub(super) fn keep_nothing_ready(&self) {
        let limits = Limits { min_idle: 0, ..Limits::clone(&self.limits()) };
        self.limits.store(Arc::new(limits));
    }

    /// How many of the backends that are asked for there are slots for.
    fn places_within(&self, limits: &Limits) -> usize {
        let (asked, slots) = (limits.for_pools(), self.guard.slots.capacity());
        if asked > slots {
            tracing::warn!(
                upstream = %self.name, asked, at_most = slots,
                "pool.max_per_upstream asks for more backends than there can be without a restart"
            );
        }
        asked.min(slots)
    }

    /// A new primary: of its writes few are let in from now on. Its breaker hears of it, and lets in more, a moment later;
    /// those who waited for it come before that.
    pub(super) fn begin_ramp(&self) {
        let breaker = self.guard.breaker(Lane::Write);
        let is_ordered = matches!(breaker.phase(), Phase::ForcedOpen | Phase::ForcedClosed);
        if breaker.renew() && !is_ordered {
            for pool in self.pools() {
                pool.obey(Lane::Write, Phase::Ramp { step: 0 });
            }
        }
    }

    /// Before what is known now is in force: connections of an older epoch are not used any more.
    pub(super) fn enter_epoch(&self, before: Option<&UpstreamView>, now: &UpstreamView) {
        let fenced = now.fenced.is_some();
        self.void.store(fenced || now.role.is_none() && now.epoch.0 > 0, Ordering::Release);
        // What was opened before anything was known is of the first primary's first epoch.
        let first = |before: &UpstreamView| {
            before.epoch.0 == 0 && before.role.is_none() && now.role == Some(Role::Primary)
        };
        let risen = |before: &UpstreamView| now.epoch > before.epoch && !first(before);
        if before.is_some_and(|before| risen(before) || fenced && before.fenced.is_none()) {
            self.guard.control.moved();
            for pool in self.pools() {
                pool.reconnect();
                self.on_worker(pool, Pool::close_backends);
            }
        }
    }

    /// After what is known now is in force: whoever waits here in vain looks elsewhere.
    pub(super) fn send_away(&self, before: Option<&UpstreamView>, now: &UpstreamView) {
        let known = now.health != Health::Unknown;
        let lost = now.fenced.is_some() || known && (!now.health.is_usable() || now.role.is_none());
        let was_primary = before.is_some_and(|before| before.role == Some(Role::Primary));
        let no_writes = lost || was_primary && now.role != Some(Role::Primary);
        for pool in self.pools() {
            if lost {
                pool.flush(Lane::Read);
            }
            if no_writes {
                pool.flush(Lane::Write);
            }
        }
    }

    /// See [`Lease::is_void`](super::Lease::is_void).
    #[inline]
    pub(super) fn is_void(&self) -> bool {
        self.void.load(Ordering::Acquire)
    }

    /// From now on what sessions see is told there.
    pub fn tell(&self, hints: Hints) {
        if self.hints.load().is_none() {
            self.hints.store(Some(Arc::new(hints)));
        }
    }

    /// Something failed that asks for a look at the server.
    pub fn trouble(&self) {
        if let Some(hints) = &*self.hints.load() {
            hints.trouble();
        }
    }

    /// The server said whether it is a hot standby.
    pub fn hinted(&self, in_recovery: bool) {
        if let Some(hints) = &*self.hints.load() {
            hints.in_hot_standby(in_recovery);
        }
    }

    /// Backends that serve sessions.
    #[inline]
    pub fn leased(&self) -> usize {
        self.leased.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn lent(&self) {
        self.leased.fetch_add(1, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn returned(&self) {
        self.leased.fetch_sub(1, Ordering::Relaxed);
    }

    /// How to connect.
    pub fn connector(&self) -> Arc<Connector> {
        self.connector.load_full()
    }

    /// The limits in force.
    #[inline]
    pub fn limits(&self) -> arc_swap::Guard<Arc<Limits>> {
        self.limits.load()
    }

    /// Whether a lane hangs, and so many wait for it with their backend in hand that one more would take it from those
    /// who could use it. `before`: how many go there first.
    pub fn is_waited_for_in_vain(&self, lane: Lane, before: usize, now: Instant) -> bool {
        let limits = self.limits();
        before >= limits.patient(lane) && self.guard.hangs(lane, &limits.breaker, now)
    }

    fn lock_pools(&self) -> MutexGuard<'_, HashMap<PoolKey, Arc<Pool>>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pool for a key, made when it is first asked for.
    pub fn pool(self: &Arc<Self>, key: PoolKey) -> Arc<Pool> {
        let mut pools = self.lock_pools();
        if let Some(pool) = pools.get(&key) {
            return Arc::clone(pool);
        }
        let pool = Arc::new(Pool::new(key.clone(), Arc::clone(self)));
        pools.insert(key, Arc::clone(&pool));
        self.list(&pools);
        pool
    }

    fn list(&self, pools: &HashMap<PoolKey, Arc<Pool>>) {
        self.listed.store(Arc::new(pools.values().map(Arc::clone).collect()));
    }

    /// All pools. Takes no lock.
    pub fn pools(&self) -> Vec<Arc<Pool>> {
        self.listed.load().to_vec()
    }

    /// Forgets pools that nobody uses.
    pub fn drop_unused_pools(&self) {
        let mut pools = self.lock_pools();
        let before = pools.len();
        pools.retain(|_, pool| {
            let state = pool.state();
            Arc::strong_count(pool) > LISTS || state.idle + state.leased + state.opening + state.waiting > 0
        });
        if pools.len() < before {
            self.list(&pools);
        }
        drop(pools);
        self.databases.forget_unused();
    }

    /// It said who it is.
    pub(crate) fn see(&self, said: Observation) {
        self.seen.store(Some(Arc::new(said)));
    }

    /// Who it said last that it is, if it is alone; of others the topology knows.
    pub fn seen(&self) -> Option<Observation> {
        self.seen.load().as_deref().copied()
    }

    /// Backends that exist or are being opened.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Takes a place for one more backend of `pool`, which has `open` already. When there is none, one is
    /// made soon, if possible: a backend that is idle in another pool is closed. A pool without any backend
    /// is remembered until it gets one, and the others give way.
    pub(super) fn reserve(self: &Arc<Self>, pool: &Arc<Pool>, open: usize) -> bool {
        if self.take_place() {
            self.remember_starved(|starved| starved.retain(|p| p.as_ptr() != Arc::as_ptr(pool)));
            return true;
        }
        let idle = if open == 0 { Duration::ZERO } else { SPARE_AFTER };
        if open == 0 {
            self.remember_starved(|starved| {
                if starved.len() < STARVED_MAX && !starved.iter().any(|p| p.as_ptr() == Arc::as_ptr(pool)) {
                    starved.push_back(Arc::downgrade(pool));
                }
            });
        }
        // Not here: the caller holds its pool's lock, and two pools may look at each other.
        let (upstream, pool) = (Arc::clone(self), Arc::clone(pool));
        tokio::spawn(async move { upstream.make_room(&pool, idle) });
        false
    }

    /// Takes a place if there is a free one.
    pub(super) fn take_place(&self) -> bool {
        let max = self.places.load(Ordering::Relaxed);
        let take = |open: usize| (open < max).then_some(open + 1);
        self.open.fetch_update(Ordering::AcqRel, Ordering::Relaxed, take).is_ok()
    }

    /// How many backends of all pools are more than there may be since the limit was lowered.
    #[inline]
    pub(super) fn surplus(&self) -> usize {
        self.open().saturating_sub(self.places.load(Ordering::Relaxed))
    }

    fn remember_starved(&self, change: impl FnOnce(&mut VecDeque<Weak<Pool>>)) {
        let mut starved = self.starved.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut starved);
        self.starved_len.store(starved.len(), Ordering::Release);
    }

    /// Closes a backend that was idle for so long in some other pool, if there is one.
    fn make_room(&self, pool: &Arc<Pool>, idle: Duration) {
        if self.pools().iter().any(|other| !Arc::ptr_eq(other, pool) && other.evict(idle)) {
            pool.open_as_needed();
        }
    }

    /// Has the pools whose writes are slow keep spare backends ready for reads; whether there are any such pools. Called
    /// with every sweep, inside a runtime.
    pub fn keep_spares(&self, now: Instant) -> bool {
        let help = self.guard.spares_help() && !self.is_void();
        let slow = if help { self.guard.pools_with_slow_writes(&SLOW_WRITE, now) } else { Vec::new() };
        let mut any = false;
        for pool in self.pools() {
            // A walsender serves one session, and is silent for as long as nobody writes.
            let is_slow = slow.contains(&pool.number) && pool.key.replication.is_none();
            pool.prepare_for(if is_slow { WritePace::Slow } else { WritePace::Steady });
            any |= is_slow;
        }
        any
    }

    /// Whether it is found out what became of commits that broke.
    #[inline]
    pub fn resolves(&self) -> bool {
        self.resolves.load(Ordering::Relaxed)
    }

    /// Backends per pool.
    #[inline]
    pub(super) fn size(&self) -> usize {
        self.size.load(Ordering::Relaxed)
    }

    /// Whether a pool waits for a place.
    #[inline]
    pub(super) fn is_starved(&self) -> bool {
        self.starved_len.load(Ordering::Acquire) > 0
    }

    /// A place is free.
    pub(super) fn gave_back(&self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
    }

    /// Lets the pool that waits longest for a place try again.
    pub(super) fn feed_starved(&self) {
        if !self.is_starved() {
            return;
        }
        let mut next = None;
        self.remember_starved(|starved| next = starved.pop_front());
        if let Some(pool) = next.and_then(|pool| pool.upgrade()) {
            pool.open_as_needed();
        }
    }
}

thread_local! {
    static WORKER: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Tells the calling thread which worker it is.
pub fn enter_worker(index: usize) {
    WORKER.set(index);
}

/// Which worker the calling thread is; `usize::MAX` for a thread that is none.
pub fn current_worker() -> usize {
    WORKER.get()
}
