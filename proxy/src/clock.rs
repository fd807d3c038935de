//! A clock that costs one load to read: good to 10 ms, the period of the sweep that moves it. Deadlines in
//! seconds need no better one, and reading the real one at each exchange is not free.

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

/// Brings the clock up to date.
pub fn tick() {
    NOW_MS.store(millis(ORIGIN.elapsed()), Ordering::Relaxed);
}

/// How long ago `then_ms` was.
pub fn since(then_ms: u64) -> Duration {
    Duration::from_millis(now_ms().saturating_sub(then_ms))
}

/// A duration in whole milliseconds.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
