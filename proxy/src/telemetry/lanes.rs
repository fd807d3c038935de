//! What each lane did: how long it took, and what was refused or broke, and why.
//!
//! The fast path calls [`served`] once per exchange: one atomic addition. Everything else here is for the
//! exceptions.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::histogram::{Histogram, Snapshot};
use crate::exchange::Refusal;
use crate::sql::Lane;

/// Words of lanes in labels; the third is for what belongs to no lane, such as a login.
pub const LANE_WORDS: [&str; 3] = ["read", "write", "none"];

/// All values of the label `reason`. One that is not listed counts as the last.
pub const REASONS: [&str; 30] = [
    "queue_full",
    "queue_timeout",
    "limit",
    "priority",
    "deadline",
    "breaker_open",
    "no_upstream",
    "paused",
    "login_refused",
    "cancelled",
    "read_timeout",
    "write_timeout",
    "commit_timeout",
    "transaction_timeout",
    "transaction_failed",
    "transaction_lost",
    "commit_unresolved",
    "committed_unreplicated",
    "commit_rolled_back",
    "backend_lost",
    "session_lost",
    "idle_in_transaction",
    "idle_session",
    "drain",
    "killed",
    "max_sessions",
    "protocol",
    "settings",
    "fenced",
    "other",
];

/// All values of the label `outcome`, except `answered`, which is what [`served`] counts. One that is not listed
/// counts as the last.
pub const OUTCOMES: [&str; 5] = ["not_sent", "rolled_back", "committed", "committed_unreplicated", "unknown"];

#[derive(Debug, Default)]
struct Meters {
    service: [Histogram; 2],
    queue_wait: [Histogram; 2],
    refusals: [[AtomicU64; REASONS.len()]; 3],
    outcomes: [[AtomicU64; OUTCOMES.len()]; 2],
}

static METERS: LazyLock<Meters> = LazyLock::new(Meters::default);

/// An exchange was answered by PostgreSQL, this long after its first byte was sent there. Exchanges that run without
/// a pause between them, as in a pipeline, count as one; those that were cancelled by a deadline do not count here.
#[inline]
pub fn served(lane: Lane, took: Duration) {
    METERS.service[lane.index()].record(took);
}

/// A lease was given, after waiting for this long in the queue.
#[inline]
pub fn waited(lane: Lane, took: Duration) {
    METERS.queue_wait[lane.index()].record(took);
}

/// Something was refused; without a lane where there was no statement.
pub fn refused(lane: Option<Lane>, reason: &'static str) {
    count(&METERS.refusals[lane.map_or(2, Lane::index)], &REASONS, reason);
}

/// An application was told this about a statement of a lane.
pub fn told(lane: Lane, refusal: &Refusal) {
    refused(Some(lane), refusal.reason());
    if let Some(outcome) = refusal.outcome() {
        ended(lane, outcome.word());
    }
}

/// This became of a statement that was refused or broke.
pub fn ended(lane: Lane, outcome: &'static str) {
    count(&METERS.outcomes[lane.index()], &OUTCOMES, outcome);
}

fn count(counters: &[AtomicU64], words: &[&str], word: &str) {
    let at = words.iter().position(|known| *known == word).unwrap_or(words.len() - 1);
    if let Some(counter) = counters.get(at) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Service times of a lane since the start.
pub fn service(lane: Lane) -> Snapshot {
    METERS.service[lane.index()].snapshot()
}

/// Waits for a lease since the start.
pub fn queue_wait(lane: Lane) -> Snapshot {
    METERS.queue_wait[lane.index()].snapshot()
}

/// Refusals of a lane since the start.
pub fn refused_total(lane: Lane) -> u64 {
    METERS.refusals[lane.index()].iter().map(|counter| counter.load(Ordering::Relaxed)).sum()
}

/// Refusals by lane and reason since the start, also those that never happened.
pub fn refusals() -> Vec<(&'static str, &'static str, u64)> {
    read(&LANE_WORDS, &REASONS, &METERS.refusals)
}

/// Broken and refused statements by lane and outcome since the start, also those that never happened.
pub fn outcomes() -> Vec<(&'static str, &'static str, u64)> {
    read(&LANE_WORDS, &OUTCOMES, &METERS.outcomes)
}

fn read<const N: usize>(
    lanes: &[&'static str],
    words: &[&'static str; N],
    counters: &[[AtomicU64; N]],
) -> Vec<(&'static str, &'static str, u64)> {
    let mut all = Vec::new();
    for (lane, row) in lanes.iter().zip(counters) {
        all.extend(words.iter().zip(row).map(|(word, count)| (*lane, *word, count.load(Ordering::Relaxed))));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_that_is_not_listed_is_counted_all_the_same() {
        // A refusal that no figure shows looks like success.
        refused(Some(Lane::Write), "a reason of tomorrow");
        refused(Some(Lane::Write), "breaker_open");

        let all = refusals();

        assert!(all.iter().any(|(lane, reason, count)| (*lane, *reason) == ("write", "other") && *count > 0));
        assert!(all.iter().any(|(lane, reason, _)| (*lane, *reason) == ("write", "breaker_open")));
        assert!(refused_total(Lane::Write) >= 2);
    }

    #[test]
    fn the_lanes_are_kept_apart() {
        // Reads that are well would hide writes that are not.
        let before = service(Lane::Read).count();

        served(Lane::Write, Duration::from_millis(3));

        assert!(service(Lane::Write).count() > 0);
        assert_eq!(service(Lane::Read).count(), before);
    }
}
