//! Which upstream serves: replaced as a whole, noticed by sessions at their next checkout.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use super::Upstream;

/// See the module documentation.
#[derive(Debug)]
pub struct Routes {
    upstreams: ArcSwap<Vec<Arc<Upstream>>>,
    primary: ArcSwap<Upstream>,
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
            epoch: AtomicU64::new(0),
        }
    }

    /// Replaces all upstreams; sessions change over at their next checkout.
    pub fn replace(&self, primary: Arc<Upstream>, others: impl IntoIterator<Item = Arc<Upstream>>) {
        let mut upstreams = vec![Arc::clone(&primary)];
        upstreams.extend(others);
        self.upstreams.store(Arc::new(upstreams));
        self.primary.store(primary);
        self.epoch.fetch_add(1, Ordering::Release);
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
