//! What sessions see by the way: a word of theirs makes the server asked at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::Notify;

const UNKNOWN: u8 = 0;
const IN_RECOVERY: u8 = 1;
const WRITABLE: u8 = 2;

/// The ear of one server's task. Clones share it. Cheap enough for the data path: what fits what is known costs one load.
#[derive(Debug, Clone, Default)]
pub struct Hints(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    known: AtomicU8,
    wake: Notify,
}

impl Hints {
    /// A session was told `in_hot_standby` (a `ParameterStatus`, PostgreSQL 14 and later): at login, or with the first
    /// `ReadyForQuery` after a promotion.
    #[inline]
    pub fn in_hot_standby(&self, in_recovery: bool) {
        if self.0.known.load(Ordering::Relaxed) != code(Some(in_recovery)) {
            self.trouble();
        }
    }

    /// A session saw something that asks for a look: 25006, a server that shuts down, a connect that failed.
    pub fn trouble(&self) {
        self.0.wake.notify_one();
    }

    /// What fits and wakes nobody.
    pub(super) fn set_known(&self, in_recovery: Option<bool>) {
        self.0.known.store(code(in_recovery), Ordering::Relaxed);
    }

    /// Waits for a hint. One that came since the last wait counts.
    ///
    /// # Cancel safety
    /// Safe: a hint that was not taken stays.
    pub(super) async fn hinted(&self) {
        self.0.wake.notified().await;
    }
}

const fn code(in_recovery: Option<bool>) -> u8 {
    match in_recovery {
        None => UNKNOWN,
        Some(true) => IN_RECOVERY,
        Some(false) => WRITABLE,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    async fn is_woken(hints: &Hints) -> bool {
        timeout(Duration::from_millis(1), hints.hinted()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_contradicts_wakes() {
        // Every login says in_hot_standby: if each woke the prober, a storm of logins would be a storm of probes.
        let hints = Hints::default();
        hints.set_known(Some(true));

        hints.in_hot_standby(true);
        assert!(!is_woken(&hints).await);

        hints.in_hot_standby(false);
        assert!(is_woken(&hints).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hint_before_the_wait_is_not_lost_and_many_are_one() {
        // The task may be asking while the hint comes; it must look again afterwards, once.
        let hints = Hints::default();
        hints.trouble();
        hints.trouble();

        assert!(is_woken(&hints).await);
        assert!(!is_woken(&hints).await);
    }
}
