//! One PostgreSQL server and its pools.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;

use super::Pool;
use crate::backend::Connector;
use crate::config::Config;

/// Connects to one server at a time. More only makes a server that comes back slower (`MongoDB` drivers'
/// `maxConnecting` has the same default).
const CONNECTS_AT_A_TIME: usize = 2;

/// Pools that wait for another pool's backend to be closed, at most.
const STARVED_MAX: usize = 1024;

/// An idle backend is spared for another pool that has some of its own only after this long.
const SPARE_AFTER: Duration = Duration::from_secs(1);

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
#[derive(Debug, Clone, Copy)]
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
        }
    }
}

/// See the module documentation.
#[derive(Debug)]
pub struct Upstream {
    /// Its address, as in the configuration; goes into DETAIL of errors.
    pub name: String,
    pub(super) connects: Semaphore,
    connector: ArcSwap<Connector>,
    limits: ArcSwap<Limits>,
    /// `limits.size`, to be read at each give-back.
    size: AtomicUsize,
    open: AtomicUsize,
    pools: Mutex<HashMap<PoolKey, Arc<Pool>>>,
    starved: Mutex<VecDeque<Weak<Pool>>>,
    starved_len: AtomicUsize,
}

impl Upstream {
    /// A server without pools yet.
    pub fn new(connector: Connector, limits: Limits) -> Self {
        Self {
            name: connector.address.to_string(),
            connects: Semaphore::new(CONNECTS_AT_A_TIME),
            connector: ArcSwap::from_pointee(connector),
            limits: ArcSwap::from_pointee(limits),
            size: AtomicUsize::new(limits.size),
            open: AtomicUsize::new(0),
            pools: Mutex::new(HashMap::new()),
            starved: Mutex::new(VecDeque::new()),
            starved_len: AtomicUsize::new(0),
        }
    }

    /// Takes a new configuration over.
    pub fn reload(&self, connector: Connector, limits: Limits) {
        self.connector.store(Arc::new(connector));
        self.size.store(limits.size, Ordering::Relaxed);
        self.limits.store(Arc::new(limits));
    }

    /// How to connect.
    pub fn connector(&self) -> Arc<Connector> {
        self.connector.load_full()
    }

    /// The limits in force.
    #[inline]
    pub fn limits(&self) -> Limits {
        **self.limits.load()
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
        pool
    }

    /// All pools.
    pub fn pools(&self) -> Vec<Arc<Pool>> {
        self.lock_pools().values().map(Arc::clone).collect()
    }

    /// Forgets pools that nobody uses.
    pub fn drop_unused_pools(&self) {
        self.lock_pools().retain(|_, pool| {
            let state = pool.state();
            Arc::strong_count(pool) > 1 || state.idle + state.leased + state.opening + state.waiting > 0
        });
    }

    /// Backends that exist or are being opened.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Takes a place for one more backend of `pool`, which has `open` already. When there is none, one is
    /// made soon, if possible: a backend that is idle in another pool is closed. A pool without any backend
    /// is remembered until it gets one, and the others give way.
    pub(super) fn reserve(self: &Arc<Self>, pool: &Arc<Pool>, open: usize) -> bool {
        let max = self.limits().max_per_upstream;
        let take = |open: usize| (open < max).then_some(open + 1);
        if self.open.fetch_update(Ordering::AcqRel, Ordering::Relaxed, take).is_ok() {
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

    fn remember_starved(&self, change: impl FnOnce(&mut VecDeque<Weak<Pool>>)) {
        let mut starved = self.starved.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut starved);
        self.starved_len.store(starved.len(), Ordering::Release);
    }

    /// Closes a backend that was idle for so long in some other pool, if there is one.
    fn make_room(&self, pool: &Arc<Pool>, idle: Duration) {
        if self.pools().iter().any(|other| !Arc::ptr_eq(other, pool) && other.evict(idle)) {
            pool.open_as_needed(&mut pool.lock());
        }
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
            pool.open_as_needed(&mut pool.lock());
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
