//! Things by number, for threads that know only the number. What changes with every exchange, such as which backend
//! serves which session, is then one store, and only whoever wants to know pays for looking it up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The number of nothing.
pub const NOBODY: u64 = 0;

/// See the module documentation.
#[derive(Debug)]
pub struct Directory<T> {
    numbered: Mutex<BTreeMap<u64, Weak<T>>>,
    last: AtomicU64,
}

impl<T> Directory<T> {
    /// Without anything in it.
    pub const fn new() -> Self {
        Self { numbered: Mutex::new(BTreeMap::new()), last: AtomicU64::new(NOBODY) }
    }

    /// Enters what `make` makes of its number, which is never used again.
    pub fn enter(&self, make: impl FnOnce(u64) -> T) -> Arc<T> {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let entered = Arc::new(make(number));
        self.lock().insert(number, Arc::downgrade(&entered));
        entered
    }

    /// What has this number, while it exists.
    pub fn get(&self, number: u64) -> Option<Arc<T>> {
        if number == NOBODY {
            return None;
        }
        self.lock().get(&number).and_then(Weak::upgrade)
    }

    /// It exists no more.
    pub fn leave(&self, number: u64) {
        self.lock().remove(&number);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Weak<T>>> {
        self.numbered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Default for Directory<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_leads_to_one_thing_for_as_long_as_it_exists() {
        // A number that is used again would cancel somebody else's statement.
        let directory = Directory::new();
        let first = directory.enter(|number| number);
        let second = directory.enter(|number| number);

        assert_eq!(directory.get(*first).as_deref(), Some(&*first));
        assert_eq!(directory.get(NOBODY), None);
        let number = *first;
        drop(first);
        assert_eq!(directory.get(number), None);
        directory.leave(number);
        assert_ne!(*directory.enter(|number| number), number);
        assert_eq!(directory.get(*second).as_deref(), Some(&*second));
    }
}
