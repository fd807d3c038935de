//! Statements that wait for locks of others: by text and values, while they do and a little longer.
//!
//! A storm on one row is no fault of the server and trips no breaker, but it would fill the write lane with
//! statements that only wait. So while some wait, more of the same are let in only as long as a quarter of the lane
//! stays free: that is for those that can do something. Statements that want the same row with other values beside it
//! are not known for the same.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::clock;

/// Kinds that are remembered; with more than this at the same time the storm is not about a row.
const KINDS_MAX: usize = 64;
/// How long after it was last seen waiting; it is looked at every 100 ms.
const COOLS_AFTER_MS: u64 = 500;

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Hot {
    /// Hash, and until when on the clock.
    kinds: Mutex<Vec<(u64, u64)>>,
    len: AtomicUsize,
}

impl Hot {
    fn lock(&self) -> MutexGuard<'_, Vec<(u64, u64)>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether any kind is hot: if not, no hash is needed.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len.load(Ordering::Relaxed) == 0
    }

    /// One of this kind is seen waiting for a lock.
    pub fn mark(&self, kind: u64) {
        let now = clock::now_ms();
        let mut kinds = self.lock();
        kinds.retain(|(hot, until)| *until > now && *hot != kind);
        if kinds.len() < KINDS_MAX {
            kinds.push((kind, now + COOLS_AFTER_MS));
        }
        self.len.store(kinds.len(), Ordering::Relaxed);
    }

    /// Whether one of this kind was seen waiting lately.
    pub fn contains(&self, kind: u64) -> bool {
        let now = clock::now_ms();
        let mut kinds = self.lock();
        kinds.retain(|(_, until)| *until > now);
        self.len.store(kinds.len(), Ordering::Relaxed);
        kinds.iter().any(|(hot, _)| *hot == kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_hot_from_when_it_was_seen() {
        // Marked for ever, a statement that waited once would be second to all others for good.
        let hot = Hot::default();
        assert!(hot.is_empty() && !hot.contains(1));

        hot.mark(1);
        assert!(!hot.is_empty() && hot.contains(1) && !hot.contains(2));

        hot.lock().iter_mut().for_each(|(_, until)| *until = 0);
        assert!(!hot.contains(1));
        assert!(hot.is_empty());
    }
}
