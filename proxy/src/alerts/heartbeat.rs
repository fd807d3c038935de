//! The dead man's switch: a URL that is called while writes really commit, and is silent otherwise. Whoever
//! expects the call pages when it stays away, also when this machine is gone as a whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Inner;
use super::webhook::Http;
use crate::telemetry::metrics;

/// When a write committed last. Read and written without a lock.
#[derive(Debug)]
pub struct LastWrite {
    origin: Instant,
    /// Milliseconds since `origin`, and one more; 0 is never.
    at: AtomicU64,
}

impl Default for LastWrite {
    fn default() -> Self {
        Self { origin: Instant::now(), at: AtomicU64::new(0) }
    }
}

impl LastWrite {
    /// PostgreSQL confirmed a commit just now.
    pub fn committed(&self) {
        self.at.store(crate::clock::millis(self.origin.elapsed()).saturating_add(1), Ordering::Relaxed);
    }

    /// How long ago; `None` when never. By the real clock, not by the one that the sweep moves: that may be stuck.
    pub fn age(&self) -> Option<Duration> {
        let at = self.at.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.origin.elapsed().saturating_sub(Duration::from_millis(at)))
    }
}

/// Whether there is reason to say that all is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pulse {
    /// A write committed within the last period, and all threads work.
    Beats,
    /// No write committed, or a thread is stuck.
    Silent,
}

fn pulse(inner: &Inner, interval: Duration) -> Pulse {
    let recent = inner.last_write.age().is_some_and(|age| age <= interval);
    if recent && inner.watchdog.liveness().is_ok() { Pulse::Beats } else { Pulse::Silent }
}

/// Calls the URL once a period, for ever.
pub(super) async fn run(inner: Arc<Inner>, http: Http) {
    loop {
        let (url, interval) = inner.heartbeat();
        tokio::time::sleep(interval).await;
        let Some(url) = url else { continue };
        match pulse(&inner, interval) {
            Pulse::Silent => metrics::heartbeat("withheld"),
            Pulse::Beats => match http.get(&url).await {
                Ok(()) => metrics::heartbeat("sent"),
                Err(error) => {
                    metrics::heartbeat("failed");
                    let reason = crate::server::describe(&error);
                    tracing::warn!(reason, "heartbeat not sent");
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_ages() {
        // A switch that starts out as "just now" would keep quiet about a sidecar that never wrote.
        let last = LastWrite::default();
        assert_eq!(last.age(), None);

        last.committed();
        let age = last.age().unwrap();

        assert!(age < Duration::from_secs(5), "{age:?}");
        assert!(last.age().unwrap() >= age);
    }
}
