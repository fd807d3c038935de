//! What the last probes found. One task writes it; anybody may read it at any time without waiting.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::time::Instant;

use crate::exchange::Cause;

/// A probe that succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Good {
    /// When its answer came.
    pub at: Instant,
    /// From the sending of the statement to its `ReadyForQuery`, login excluded.
    pub latency: Duration,
}

/// The state of one kind of probe to one upstream.
#[derive(Debug, Default)]
pub struct Pulse {
    last_good: ArcSwapOption<Good>,
    finding: Mutex<Option<Cause>>,
    /// 0 is none.
    pid: AtomicU32,
}

impl Pulse {
    /// The last probe that succeeded.
    pub fn last_good(&self) -> Option<Good> {
        self.last_good.load().as_deref().copied()
    }

    /// What the last probe found wrong; `None` after a good one.
    pub fn finding(&self) -> Option<Cause> {
        *self.finding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Process id of the backend that runs the probe's statement now.
    pub fn outstanding(&self) -> Option<u32> {
        Some(self.pid.load(Ordering::Acquire)).filter(|&pid| pid != 0)
    }

    pub(super) fn found(&self, cause: Option<Cause>) {
        *self.finding.lock().unwrap_or_else(PoisonError::into_inner) = cause;
    }

    /// A login succeeded: whatever kept us out is over.
    pub(super) fn let_in(&self) {
        let mut finding = self.finding.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*finding, Some(Cause::ReadOnly | Cause::InRecovery)) {
            *finding = None;
        }
    }

    pub(super) fn good(&self, latency: Duration) {
        self.last_good.store(Some(Arc::new(Good { at: Instant::now(), latency })));
    }

    /// A statement is sent on that backend; it is outstanding until the guard is dropped.
    pub(super) fn sent(&self, pid: u32) -> Outstanding<'_> {
        self.pid.store(pid, Ordering::Release);
        Outstanding(&self.pid)
    }
}

/// See [`Pulse::sent`].
#[must_use]
pub(super) struct Outstanding<'a>(&'a AtomicU32);

impl Drop for Outstanding<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_ends_what_kept_us_out_and_nothing_else() {
        // A statement that hangs after a thaw would still be called frozen; one on a standby would no longer
        // be called so while it is asked again.
        let pulse = Pulse::default();

        pulse.found(Some(Cause::Frozen));
        pulse.let_in();
        assert_eq!(pulse.finding(), None);
        pulse.found(Some(Cause::InRecovery));
        pulse.let_in();

        assert_eq!(pulse.finding(), Some(Cause::InRecovery));
    }

    #[test]
    fn a_statement_is_outstanding_exactly_as_long_as_its_guard_lives() {
        // A pid that stays behind would have a stranger's backend diagnosed after the number is used again.
        let pulse = Pulse::default();
        assert_eq!(pulse.outstanding(), None);

        let sent = pulse.sent(17);
        assert_eq!(pulse.outstanding(), Some(17));
        drop(sent);

        assert_eq!(pulse.outstanding(), None);
    }
}
