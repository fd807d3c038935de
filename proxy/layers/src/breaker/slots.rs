//! What is in flight: one cache line per slot, written by whoever serves it, read by the watchdog.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::latency::micros_of;

/// No call is in flight in this slot.
const IDLE: u64 = 0;

/// One cache line of its own (128 bytes: x86 fetches lines in pairs), so that neighbours do not slow each other.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Slot {
    /// Microseconds since the table was made; [`IDLE`] when free.
    busy_since: AtomicU64,
    progress: AtomicU64,
}

impl Slot {
    /// When its call began, if there is one, and when that last got somewhere.
    fn call(&self) -> Option<(u64, u64)> {
        let busy_since = self.busy_since.load(Ordering::Relaxed);
        (busy_since != IDLE).then(|| (busy_since, busy_since.max(self.progress.load(Ordering::Relaxed))))
    }
}

/// The calls in flight, by slot.
///
/// A slot belongs either to a fixed owner, who calls [`begin`](Self::begin) and [`end`](Self::end) (one relaxed
/// store each), or to whoever [`claim`](Self::claim)s it for one call. Nothing is allocated after the table is
/// made. A slot out of range is ignored: its call is simply not watched.
#[derive(Debug)]
pub struct SlotTable {
    base: Instant,
    slots: Box<[Slot]>,
    /// Where the search for a free slot begins.
    hint: AtomicUsize,
}

/// What a scan found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scan {
    /// Calls in flight.
    pub in_flight: usize,
    /// Calls without progress for at least half of the bound.
    pub suspect: usize,
    /// Calls without progress for at least the bound.
    pub stuck: usize,
    /// The longest time without progress.
    pub oldest: Duration,
}

impl SlotTable {
    /// A table of `len` free slots.
    pub fn new(len: usize) -> Self {
        let slots = std::iter::repeat_with(Slot::default).take(len).collect();
        Self { base: Instant::now(), slots, hint: AtomicUsize::new(0) }
    }

    /// Number of slots.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are no slots at all.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// A call begins in a slot of one's own.
    pub fn begin(&self, slot: usize, now: Instant) {
        if let Some(slot) = self.slots.get(slot) {
            slot.busy_since.store(self.micros(now), Ordering::Relaxed);
        }
    }

    /// The call is getting somewhere (bytes moved): it is not stuck, however long it has taken.
    pub fn progress(&self, slot: usize, now: Instant) {
        if let Some(slot) = self.slots.get(slot) {
            slot.progress.store(self.micros(now), Ordering::Relaxed);
        }
    }

    /// The call has ended.
    pub fn end(&self, slot: usize) {
        if let Some(slot) = self.slots.get(slot) {
            slot.busy_since.store(IDLE, Ordering::Relaxed);
        }
    }

    /// Takes a free slot for one call; end it with [`end`](Self::end). `None` if all are taken. Do not mix with
    /// slots of one's own in the same table.
    pub fn claim(&self, now: Instant) -> Option<usize> {
        let now = self.micros(now);
        let start = self.hint.fetch_add(1, Ordering::Relaxed);
        (0..self.len()).map(|offset| start.wrapping_add(offset) % self.len()).find(|slot| {
            let busy_since = &self.slots[*slot].busy_since;
            busy_since.compare_exchange(IDLE, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        })
    }

    /// How long the call in this slot has been without progress; `None` if there is none.
    pub fn age(&self, slot: usize, now: Instant) -> Option<Duration> {
        let (_, last) = self.slots.get(slot)?.call()?;
        Some(Duration::from_micros(self.micros(now).saturating_sub(last)))
    }

    /// Looks at all slots: one or two relaxed loads each. Calls that began before `since` do not count: they are
    /// of an epoch that is over.
    pub fn scan(&self, since: Instant, now: Instant, stuck_after: Duration) -> Scan {
        let (since, now) = (self.micros(since), self.micros(now));
        self.slots.iter().fold(Scan::default(), |mut scan, slot| {
            if let Some((busy_since, last)) = slot.call()
                && busy_since >= since
            {
                let age = Duration::from_micros(now.saturating_sub(last));
                scan.in_flight += 1;
                scan.suspect += usize::from(age >= stuck_after / 2);
                scan.stuck += usize::from(age >= stuck_after);
                scan.oldest = scan.oldest.max(age);
            }
            scan
        })
    }

    /// Never [`IDLE`], also in the first microsecond.
    fn micros(&self, now: Instant) -> u64 {
        micros_of(now.saturating_duration_since(self.base)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(1);

    #[test]
    fn a_call_is_stuck_from_its_bound_on_until_it_ends() {
        // Counted by completion, as usual, a call that hangs would never be seen.
        let table = SlotTable::new(4);
        let now = table.base;
        table.begin(2, now);

        let stuck = |ms| table.scan(now, now + Duration::from_millis(ms), BOUND).stuck;
        assert_eq!((stuck(999), stuck(1001)), (0, 1));

        table.end(2);
        assert_eq!(table.scan(now, now + BOUND * 2, BOUND), Scan::default());
    }

    #[test]
    fn progress_makes_a_long_call_young_again() {
        // A bulk copy that takes an hour would otherwise trip the breaker of a healthy service.
        let table = SlotTable::new(1);
        let now = table.base;
        table.begin(0, now);
        table.progress(0, now + BOUND * 10);

        let scan = table.scan(now, now + BOUND * 10, BOUND);

        assert_eq!((scan.in_flight, scan.stuck), (1, 0));
        assert_eq!(table.age(0, now + BOUND * 11), Some(BOUND));
        assert_eq!(table.age(1, now), None);
    }

    #[test]
    fn progress_of_the_call_before_does_not_age_the_next() {
        // The slot is reused without a store to `progress`: the older of the two must not count.
        let table = SlotTable::new(1);
        let now = table.base;
        table.progress(0, now);
        table.begin(0, now + BOUND * 10);

        assert_eq!(table.scan(now, now + BOUND * 10, BOUND).stuck, 0);
    }

    #[test]
    fn calls_of_an_older_epoch_are_not_seen() {
        // Zombies of the last outage would hold up, or trip, the breaker that has just recovered.
        let table = SlotTable::new(1);
        let now = table.base;
        table.begin(0, now + BOUND);

        let since = now + BOUND * 2;
        assert_eq!(table.scan(since, now + BOUND * 10, BOUND), Scan::default());
    }

    #[test]
    fn claimed_slots_are_distinct_and_run_out() {
        // Two calls in one slot would hide one of them as soon as the other ends.
        let table = SlotTable::new(3);
        let now = table.base;

        let mut claimed: Vec<_> = std::iter::from_fn(|| table.claim(now)).collect();
        claimed.sort_unstable();

        assert_eq!(claimed, [0, 1, 2]);
        table.end(1);
        assert_eq!(table.claim(now), Some(1));
    }
}
