//! One slot per backend: when what it runs is due, and who is to be woken then.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock;
use crate::directory::NOBODY;
use crate::session::registry::{Entry, Signal};

/// Nothing is due.
const NEVER: u64 = 0;

/// A slot has a cache line of its own: its neighbours belong to other workers.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Slot {
    /// Milliseconds of the clock; [`NEVER`] while nothing is due.
    due_ms: AtomicU64,
    /// When what runs began, on the clock; [`NEVER`] while nothing does.
    began_ms: AtomicU64,
    /// The server process.
    process_id: AtomicU32,
    /// The number of its pool.
    pool: AtomicU64,
    /// The number of the session that it serves.
    session: AtomicU64,
}

impl Slot {
    fn signal(&self, signal: Signal) {
        if let Some(session) = Entry::numbered(self.session.load(Ordering::Relaxed)) {
            session.signal(signal);
        }
    }
}

/// See the module documentation.
#[derive(Debug)]
pub struct Slots {
    slots: Box<[Slot]>,
    free: Mutex<Vec<usize>>,
    /// Slots beyond this one were never used.
    used: AtomicUsize,
}

/// The right to a slot; dropping it frees the slot.
#[derive(Debug)]
pub struct SlotId {
    slots: Arc<Slots>,
    index: usize,
}

impl Slots {
    /// This many free slots.
    pub fn new(len: usize) -> Self {
        let slots = std::iter::repeat_with(Slot::default).take(len).collect();
        Self { slots, free: Mutex::new((0..len).rev().collect()), used: AtomicUsize::new(0) }
    }

    /// How many backends can have one.
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// A slot for a new backend of the pool with this number. `None`: others have them all, and this one would have no
    /// deadlines.
    pub fn take(self: &Arc<Self>, process_id: u32, pool: u64) -> Option<SlotId> {
        let index = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        self.used.fetch_max(index + 1, Ordering::AcqRel);
        let id = SlotId { slots: Arc::clone(self), index };
        id.slot().process_id.store(process_id, Ordering::Relaxed);
        id.slot().pool.store(pool, Ordering::Relaxed);
        Some(id)
    }

    /// The server processes whose exchange has run for so long.
    pub fn running_longer_than(&self, time: Duration) -> Vec<u32> {
        let running = self.running_for(time, Instant::now());
        running.map(|(_, slot)| slot.process_id.load(Ordering::Relaxed)).collect()
    }

    /// The pools whose exchange in one of the `chosen` slots has run for so long.
    pub fn pools_running_longer_than(
        &self,
        time: Duration,
        now: Instant,
        chosen: impl Fn(usize) -> bool,
    ) -> Vec<u64> {
        let running = self.running_for(time, now).filter(|(index, _)| chosen(*index));
        running.map(|(_, slot)| slot.pool.load(Ordering::Relaxed)).collect()
    }

    fn running_for(&self, time: Duration, now: Instant) -> impl Iterator<Item = (usize, &Slot)> {
        let before = clock::at_ms(now).saturating_sub(clock::millis(time));
        let used = self.slots.iter().take(self.used.load(Ordering::Acquire));
        used.enumerate().filter(move |(_, slot)| {
            let began = slot.began_ms.load(Ordering::Relaxed);
            began != NEVER && began <= before
        })
    }

    /// Sends a signal to the sessions whose exchange runs on one of these server processes.
    pub fn signal(&self, signal: Signal, chosen: impl Fn(u32) -> bool) {
        for slot in self.slots.iter().take(self.used.load(Ordering::Acquire)) {
            let runs = slot.began_ms.load(Ordering::Relaxed) != NEVER;
            if runs && chosen(slot.process_id.load(Ordering::Relaxed)) {
                slot.signal(signal);
            }
        }
    }

    /// Wakes the sessions whose exchange is due, and says when the next one is. Costs a load per slot in use.
    pub fn sweep(&self, now_ms: u64) -> Option<u64> {
        let mut next = None;
        for slot in self.slots.iter().take(self.used.load(Ordering::Acquire)) {
            let due = slot.due_ms.load(Ordering::Relaxed);
            if due == NEVER {
                continue;
            }
            if due > now_ms {
                next = Some(next.map_or(due, |next: u64| next.min(due)));
            } else if slot.due_ms.compare_exchange(due, NEVER, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                slot.signal(Signal::Due);
            }
        }
        next
    }
}

impl SlotId {
    fn slot(&self) -> &Slot {
        // The index was given out by `take`.
        self.slots.slots.get(self.index).unwrap_or_else(|| unreachable!("slots are never removed"))
    }

    /// Its number among the slots of the upstream.
    #[inline]
    pub fn index(&self) -> usize {
        self.index
    }

    /// Who is woken from now on.
    #[inline]
    pub fn serve(&self, session: &Entry) {
        self.slot().session.store(session.number, Ordering::Relaxed);
    }

    /// Nobody is.
    #[inline]
    pub fn let_go(&self) {
        self.slot().session.store(NOBODY, Ordering::Relaxed);
    }

    /// An exchange begins.
    #[inline]
    pub fn begin(&self, now: Instant) {
        self.slot().began_ms.store(clock::at_ms(now).max(1), Ordering::Relaxed);
    }

    /// It ended.
    #[inline]
    pub fn end(&self) {
        self.slot().began_ms.store(NEVER, Ordering::Relaxed);
    }

    /// The session is woken at this time of the clock.
    #[inline]
    pub fn arm(&self, due_ms: u64) {
        self.slot().due_ms.store(due_ms.max(1), Ordering::Release);
    }

    /// Nothing is due any more.
    #[inline]
    pub fn disarm(&self) {
        self.slot().due_ms.store(NEVER, Ordering::Release);
    }
}

impl Drop for SlotId {
    fn drop(&mut self) {
        self.disarm();
        self.end();
        self.let_go();
        self.slot().process_id.store(0, Ordering::Relaxed);
        self.slots.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_run_out_and_come_back() {
        // A slot that is given twice would wake the wrong session; one that is lost, none.
        let slots = Arc::new(Slots::new(2));
        let (first, second) = (slots.take(1, 0).unwrap(), slots.take(2, 0).unwrap());
        assert_ne!(first.index(), second.index());
        assert!(slots.take(3, 0).is_none());

        let freed = first.index();
        drop(first);

        assert_eq!(slots.take(3, 0).map(|slot| slot.index()), Some(freed));
    }

    #[test]
    fn what_is_due_is_reported_once() {
        // Twice would be taken for the deadline of the next exchange.
        let slots = Arc::new(Slots::new(1));
        let slot = slots.take(1, 0).unwrap();
        let registry = Arc::new(crate::session::registry::Registry::default());
        let registration = registry.register(None, 1).unwrap();
        let entry = Arc::clone(&registration.entry);
        slot.serve(&entry);
        slot.arm(100);

        assert_eq!(slots.sweep(99), Some(100));
        assert!(!entry.has(Signal::Due));
        assert_eq!(slots.sweep(100), None);
        assert!(entry.has(Signal::Due));
        entry.clear(Signal::Due);
        assert_eq!(slots.sweep(101), None);
        assert!(!entry.has(Signal::Due));
    }
}
