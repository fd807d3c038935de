//! Waiting for a condition, under a deadline. Tests never just sleep.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

/// How long fixtures wait for what should take milliseconds. Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks.
const STEP: Duration = Duration::from_millis(5);

/// Waits until the condition holds; panics with `what` when it does not within `limit`.
pub async fn wait_until(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    wait_for(limit, what, async || holds().then_some(())).await;
}

/// Waits until the look gives something; panics with `what` when it does not within `limit`.
pub async fn wait_for<T>(limit: Duration, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = look().await {
            return value;
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        sleep(STEP).await;
    }
}

/// The future's value; panics with `what` when it takes longer than `limit`.
pub async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    match timeout(limit, future).await {
        Ok(value) => value,
        Err(late) => panic!("not within {limit:?} ({late}): {what}"),
    }
}
