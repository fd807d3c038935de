//! Which upstream serves: replaced as a whole, noticed by sessions at their next checkout.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use super::Upstream;

/// See the module documentation.
#[derive(Debug)]
pub struct Routes {
    upstreams: ArcSwap<Vec<Arc<Upstream>>>,
    primary: ArcSwap<Upstream>,
    /// Upstreams that are configured no more and still have backends.
    retired: Mutex<Vec<Arc<Upstream>>>,
    epoch: AtomicU64,
}

impl Routes {
    /// The first upstream is the primary.
    pub fn new(primary: Arc<Upstream>, others: impl IntoIterator<Item = Arc<Upstream>>) -> Self {
        let mut upstreams = vec![Arc::clone(&primary)];
        upstreams.extend(others);
        Self {
            upstreams: ArcSwap::from_pointee(upstreams),
            primary: ArcSwap::from(primary),
            retired: Mutex::default(),
            epoch: AtomicU64::new(0),
        }
    }

    /// Replaces all upstreams; sessions change over at their next checkout.
    pub fn replace(&self, primary: Arc<Upstream>, others: impl IntoIterator<Item = Arc<Upstream>>) {
        let mut upstreams = vec![Arc::clone(&primary)];
        upstreams.extend(others);
        let old = self.upstreams.swap(Arc::new(upstreams));
        self.primary.store(primary);
        self.epoch.fetch_add(1, Ordering::Release);
        let current = self.upstreams.load();
        let gone = old.iter().filter(|old| !current.iter().any(|new| Arc::ptr_eq(old, new)));
        self.lock_retired().extend(gone.map(Arc::clone));
    }

    fn lock_retired(&self) -> MutexGuard<'_, Vec<Arc<Upstream>>> {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Upstreams that still need looking after: all that are configured, and those that were.
    pub fn tended(&self) -> Vec<Arc<Upstream>> {
        let mut all = self.upstreams.load().to_vec();
        all.extend(self.lock_retired().iter().map(Arc::clone));
        all
    }

    /// Closes what retired upstreams have idle, and forgets those that have nothing.
    pub fn wind_down(&self) {
        self.lock_retired().retain(|upstream| {
            for pool in upstream.pools() {
                pool.reconnect();
                pool.sweep_idle();
            }
            upstream.open() > 0
        });
    }

    /// Counts changes.
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The upstream that takes everything.
    pub fn primary(&self) -> Arc<Upstream> {
        self.primary.load_full()
    }

    /// All upstreams, the primary first.
    pub fn upstreams(&self) -> Arc<Vec<Arc<Upstream>>> {
        self.upstreams.load_full()
    }
}
