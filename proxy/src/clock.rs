//! Clocks that cost a load to read: reading the real one several times for each exchange is not free.
//!
//! [`now_ms`] is good to 50 ms, the longest period of the sweep that moves it, and to a turn of a worker, which moves it
//! too. That is enough for deadlines in seconds.
//! [`now`] is the real time as of the worker's last look at its sockets: what happens in between has come with that
//! look.

use std::cell::Cell;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
static NOW_MS: AtomicU64 = AtomicU64::new(0);

/// Milliseconds since the process started, as of the last tick.
#[inline]
pub fn now_ms() -> u64 {
    NOW_MS.load(Ordering::Relaxed)
}

/// The time of a worker's turn, and the coarse time when it was read.
#[derive(Debug, Clone, Copy)]
enum Turn {
    /// Not a worker's thread: time is always read.
    None,
    /// Not read in this turn.
    Unread,
    Read {
        at: tokio::time::Instant,
        /// The same on the clock.
        at_ms: u64,
        /// What the coarse clock said.
        coarse_ms: u64,
    },
}

thread_local! {
    static TURN: Cell<Turn> = const { Cell::new(Turn::None) };
}

/// A worker has looked at its sockets.
pub fn begin_turn() {
    TURN.set(Turn::Unread);
}

/// The time as of this turn of the worker; on other threads, of now. A turn that takes longer than a tick of the
/// coarse clock reads it again.
#[inline]
pub fn now() -> tokio::time::Instant {
    match TURN.get() {
        Turn::Read { at, coarse_ms, .. } if coarse_ms == now_ms() => at,
        turn => read(turn),
    }
}

fn read(turn: Turn) -> tokio::time::Instant {
    let at = tokio::time::Instant::now();
    if !matches!(turn, Turn::None) {
        let at_ms = since_origin(at);
        move_to(at_ms);
        TURN.set(Turn::Read { at, at_ms, coarse_ms: now_ms() });
    }
    at
}

/// Brings the clock up to date.
pub fn tick() {
    move_to(millis(ORIGIN.elapsed()));
}

/// Whoever comes late with an earlier time changes nothing.
fn move_to(now_ms: u64) {
    if now_ms > NOW_MS.load(Ordering::Relaxed) {
        NOW_MS.fetch_max(now_ms, Ordering::Relaxed);
    }
}

/// A point in time on this clock.
#[inline]
pub fn at_ms(instant: tokio::time::Instant) -> u64 {
    match TURN.get() {
        Turn::Read { at, at_ms, .. } if at == instant => at_ms,
        _ => since_origin(instant),
    }
}

fn since_origin(instant: tokio::time::Instant) -> u64 {
    millis(instant.into_std().saturating_duration_since(*ORIGIN))
}

/// How long ago `then_ms` was.
pub fn since(then_ms: u64) -> Duration {
    Duration::from_millis(now_ms().saturating_sub(then_ms))
}

/// A duration in whole milliseconds.
#[inline]
pub fn millis(duration: Duration) -> u64 {
    // Without the 128 bits of `Duration::as_millis`.
    duration.as_secs().saturating_mul(1000).saturating_add(u64::from(duration.subsec_millis()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_stands_still_within_a_turn_of_a_worker_only() {
        // Reading it each time is what the turn is to save; a thread that has no turns would stop the time for good.
        let next = |before| {
            while tokio::time::Instant::now() == before {}
            now()
        };
        let before = now();
        assert_ne!(next(before), before);

        begin_turn();
        let turn = now();
        let ticked = now_ms();
        assert!(
            next(turn) == turn || now_ms() != ticked,
            "nothing but a tick of the coarse clock ends a turn"
        );
        begin_turn();
        assert_ne!(next(turn), turn);
    }
}
