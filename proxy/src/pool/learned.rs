//! Statements that look like reads and were found waiting as writes: a function behind a view, an operator or a
//! default may write, and no text tells.
//!
//! Kept by fingerprint, so that one learns for all literals. Bounded: when there are too many, the older half
//! goes and may be learned again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use arc_swap::ArcSwap;
use hashbrown::HashMap;

/// Statements that are remembered.
const STATEMENTS_MAX: usize = 4096;

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Learned {
    /// Fingerprint to when it was learned, as a count.
    statements: ArcSwap<HashMap<u128, u64, foldhash::fast::RandomState>>,
    any: AtomicBool,
    count: Mutex<u64>,
}

impl Learned {
    /// Notes that the statement with this fingerprint writes. Whether that is news.
    pub fn learn(&self, fingerprint: u128) -> bool {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_write(fingerprint) {
            return false;
        }
        *count += 1;
        let mut statements = HashMap::clone(&self.statements.load());
        if statements.len() >= STATEMENTS_MAX {
            let oldest = count.saturating_sub(STATEMENTS_MAX as u64 / 2);
            statements.retain(|_, learned| *learned >= oldest);
        }
        statements.insert(fingerprint, *count);
        self.statements.store(statements.into());
        self.any.store(true, Ordering::Release);
        true
    }

    /// Whether anything was ever learned: if not, no fingerprint is needed.
    #[inline]
    pub fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }

    /// Whether the statement with this fingerprint is known to write. One load and one hash.
    #[inline]
    pub fn is_write(&self, fingerprint: u128) -> bool {
        !self.is_empty() && self.statements.load().contains_key(&fingerprint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_learned_is_known_and_bounded() {
        // A statement that is forgotten at once waits in the wrong lane again; one per literal must not fill memory.
        let learned = Learned::default();
        assert!(learned.is_empty() && !learned.is_write(7));

        for fingerprint in 0..=STATEMENTS_MAX as u128 {
            learned.learn(fingerprint);
        }

        assert!(learned.is_write(STATEMENTS_MAX as u128));
        assert!(!learned.is_write(0), "the oldest stayed");
        assert!(learned.statements.load().len() <= STATEMENTS_MAX);
    }
}
