//! What sessions see by the way: a word of theirs makes the server asked at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::Notify;

const IN_RECOVERY: u8 = 1;
const WRITABLE: u8 = 2;

/// What a server may say of itself without being asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// Whatever it says is news.
    Nothing,
    /// That it is in recovery.
    InRecovery,
    /// That it is not.
    Writable,
    /// Both: nothing follows from it.
    Either,
}

impl Expected {
    const fn bits(self) -> u8 {
        match self {
            Self::Nothing => 0,
            Self::InRecovery => IN_RECOVERY,
            Self::Writable => WRITABLE,
            Self::Either => IN_RECOVERY | WRITABLE,
        }
    }
}

/// The ear of one server's task. Clones share it. Cheap enough for the data path: what fits what is known costs one load.
#[derive(Debug, Clone, Default)]
pub struct Hints(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    expected: AtomicU8,
    wake: Notify,
}

impl Hints {
    /// A session was told `in_hot_standby` (a `ParameterStatus`, PostgreSQL 14 and later): at login, or with the first
    /// `ReadyForQuery` after a promotion.
    #[inline]
    pub fn in_hot_standby(&self, in_recovery: bool) {
        let said = if in_recovery { IN_RECOVERY } else { WRITABLE };
        if self.0.expected.load(Ordering::Relaxed) & said == 0 {
            self.trouble();
        }
    }

    /// A session saw something that asks for a look: 25006, a server that shuts down, a connect that failed.
    pub fn trouble(&self) {
        self.0.wake.notify_one();
    }

    /// What fits and wakes nobody.
    pub(super) fn expect(&self, expected: Expected) {
        self.0.expected.store(expected.bits(), Ordering::Relaxed);
    }

    /// Waits for a hint. One that came since the last wait counts.
    ///
    /// # Cancel safety
    /// Safe: a hint that was not taken stays.
    pub(super) async fn hinted(&self) {
        self.0.wake.notified().await;
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
        for (expected, wake) in [
            (Expected::Nothing, [true, true]),
            (Expected::InRecovery, [false, true]),
            (Expected::Writable, [true, false]),
            (Expected::Either, [false, false]),
        ] {
            hints.expect(expected);
            for (said, wakes) in [true, false].into_iter().zip(wake) {
                hints.in_hot_standby(said);
                assert_eq!(is_woken(&hints).await, wakes, "{expected:?} {said}");
            }
        }
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
