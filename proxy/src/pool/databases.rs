//! Databases by name: whether they are paused or disabled, and how much traffic each has had. They outlive
//! their pools, which come and go with use and with changes of the primary.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

/// One database, as far as all upstreams have it in common.
#[derive(Debug)]
pub struct Database {
    /// Its name.
    pub name: Box<str>,
    paused: AtomicBool,
    disabled: AtomicBool,
    /// What its sessions did.
    pub traffic: Traffic,
}

impl Database {
    /// Whether no backend is lent to its sessions. Ordered by the lock of the pool that asks.
    #[inline]
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Whether new sessions are refused.
    pub fn is_disabled(&self) -> bool {
        self.disabled.load(Ordering::Relaxed)
    }

    /// Refuses new sessions, or lets them in again.
    pub fn set_disabled(&self, disabled: bool) {
        self.disabled.store(disabled, Ordering::Relaxed);
    }

    fn is_forgettable(self: &Arc<Self>) -> bool {
        let used = Arc::strong_count(self) > LISTS || self.is_paused() || self.is_disabled();
        !used && self.traffic.figures() == Figures::default()
    }
}

/// References to a database that nobody uses: one by name, and one for those who only look.
const LISTS: usize = 2;

/// Counters since the start. Each is touched once per transaction.
#[derive(Debug, Default)]
// One line of the cache for all of them, and none of what every checkout reads.
#[repr(align(64))]
pub struct Traffic {
    transactions: AtomicU64,
    exchanges: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    transaction_ms: AtomicU64,
    exchange_ms: AtomicU64,
    wait_ms: AtomicU64,
}

/// What was counted. Times are in milliseconds of the coarse clock: a single short one may count as nothing or as
/// 50 ms, the sum over many is right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Transactions that ended.
    pub transactions: u64,
    /// Exchanges that PostgreSQL answered.
    pub exchanges: u64,
    /// Bytes from applications.
    pub received: u64,
    /// Bytes from PostgreSQL.
    pub sent: u64,
    /// In transactions, idle in them included.
    pub transaction_ms: u64,
    /// Waiting for PostgreSQL's answers.
    pub exchange_ms: u64,
    /// Waiting for a backend.
    pub wait_ms: u64,
}

impl Traffic {
    /// Adds what a session counted.
    #[inline]
    pub fn add(&self, figures: &Figures) {
        let add = |counter: &AtomicU64, n: u64| {
            // Most are zero most of the time, and looking costs less than adding.
            if n > 0 {
                counter.fetch_add(n, Ordering::Relaxed);
            }
        };
        add(&self.transactions, figures.transactions);
        add(&self.exchanges, figures.exchanges);
        add(&self.received, figures.received);
        add(&self.sent, figures.sent);
        add(&self.transaction_ms, figures.transaction_ms);
        add(&self.exchange_ms, figures.exchange_ms);
        add(&self.wait_ms, figures.wait_ms);
    }

    /// The counters now.
    pub fn figures(&self) -> Figures {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Figures {
            transactions: get(&self.transactions),
            exchanges: get(&self.exchanges),
            received: get(&self.received),
            sent: get(&self.sent),
            transaction_ms: get(&self.transaction_ms),
            exchange_ms: get(&self.exchange_ms),
            wait_ms: get(&self.wait_ms),
        }
    }
}

/// All databases that anybody asked for.
#[derive(Debug, Default)]
pub struct Databases {
    by_name: Mutex<ByName>,
    /// The same, for those who only look: they take no lock that a login may hold.
    listed: ArcSwap<Vec<Arc<Database>>>,
    /// Databases that are asked for from now on are born paused. Changed under the lock.
    all_paused: AtomicBool,
}

type ByName = HashMap<Box<str>, Arc<Database>>;

/// That it is so already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unchanged;

impl Databases {
    fn lock(&self) -> MutexGuard<'_, ByName> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn list(&self, known: &ByName) {
        self.listed.store(Arc::new(known.values().map(Arc::clone).collect()));
    }

    /// The database of this name, made when it is first asked for.
    pub fn get(&self, name: &str) -> Arc<Database> {
        let mut known = self.lock();
        if let Some(database) = known.get(name) {
            return Arc::clone(database);
        }
        let database = Arc::new(Database {
            name: name.into(),
            paused: AtomicBool::new(self.are_paused()),
            disabled: AtomicBool::new(false),
            traffic: Traffic::default(),
        });
        known.insert(name.into(), Arc::clone(&database));
        self.list(&known);
        database
    }

    /// The database of this name, if anybody asked for it before.
    pub fn find(&self, name: &str) -> Option<Arc<Database>> {
        self.lock().get(name).map(Arc::clone)
    }

    /// All of them, by name. Takes no lock.
    pub fn all(&self) -> Vec<Arc<Database>> {
        let mut all = self.listed.load().to_vec();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Whether an operator paused all of them.
    pub fn are_paused(&self) -> bool {
        self.all_paused.load(Ordering::Relaxed)
    }

    /// Pauses one database, or all; pools have to be told afterwards.
    ///
    /// # Errors
    /// When it is paused already.
    pub fn pause(&self, name: Option<&str>) -> Result<(), Unchanged> {
        let Some(name) = name else {
            let known = self.lock();
            let changed = !self.all_paused.swap(true, Ordering::Relaxed);
            known.values().for_each(|database| database.paused.store(true, Ordering::Relaxed));
            return changed.then_some(()).ok_or(Unchanged);
        };
        let was = self.get(name).paused.swap(true, Ordering::Relaxed);
        if was { Err(Unchanged) } else { Ok(()) }
    }

    /// Ends the pause of one database, or of all; pools have to be told afterwards.
    ///
    /// # Errors
    /// When it is not paused.
    pub fn resume(&self, name: Option<&str>) -> Result<(), Unchanged> {
        let known = self.lock();
        let changed = if let Some(name) = name {
            known.get(name).is_some_and(|database| database.paused.swap(false, Ordering::Relaxed))
        } else {
            let mut changed = self.all_paused.swap(false, Ordering::Relaxed);
            for database in known.values() {
                changed |= database.paused.swap(false, Ordering::Relaxed);
            }
            changed
        };
        if changed { Ok(()) } else { Err(Unchanged) }
    }

    /// Forgets databases that have no pool, no traffic, and nothing that an operator said about them: anybody
    /// may ask for a database that does not exist.
    pub(super) fn forget_unused(&self) {
        let mut known = self.lock();
        let before = known.len();
        known.retain(|_, database| !database.is_forgettable());
        if known.len() < before {
            self.list(&known);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_first_asked_for_during_a_pause_of_all_is_born_paused() {
        // A pool made a moment after PAUSE would otherwise open backends while somebody believes there are none.
        let databases = Databases::default();

        databases.pause(None).unwrap();

        assert!(databases.get("late").is_paused());
        databases.resume(None).unwrap();
        assert!(!databases.get("late").is_paused());
        assert_eq!(databases.resume(Some("late")), Err(Unchanged));
    }

    #[test]
    fn only_what_nobody_used_or_touched_is_forgotten() {
        // Names that applications make up must not pile up; counters and pauses must not vanish.
        let databases = Databases::default();
        databases.get("made up");
        databases.get("busy").traffic.add(&Figures { exchanges: 1, ..Figures::default() });
        databases.pause(Some("paused")).unwrap();
        let held = databases.get("held");

        databases.forget_unused();

        let names: Vec<_> = databases.all().iter().map(|database| database.name.to_string()).collect();
        assert_eq!(names, ["busy", "held", "paused"]);
        drop(held);
    }
}
