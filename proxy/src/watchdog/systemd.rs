//! What systemd is told when it is our supervisor (`sd_notify(3)`); nothing happens when it is not.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// We serve.
pub fn ready() {
    tell(NotifyState::Ready);
}

/// We end.
pub fn stopping() {
    tell(NotifyState::Stopping);
}

fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(error = &error as &dyn std::error::Error, "systemd cannot be told");
    }
}

/// `WATCHDOG=1`, as often as systemd wants it.
#[derive(Debug)]
pub(super) struct Keepalive {
    interval: Duration,
    last: Option<Instant>,
}

impl Keepalive {
    /// `None` when nobody expects it (`WATCHDOG_USEC`, `WATCHDOG_PID`).
    pub(super) fn from_environment() -> Option<Self> {
        // sd_watchdog_enabled(3): "every half of the time".
        let interval = sd_notify::watchdog_enabled()? / 2;
        Some(Self { interval, last: None })
    }

    /// To be called in each round in which everything makes progress.
    pub(super) fn alive(&mut self, now: Instant) {
        let due = self.last.is_none_or(|last| now.duration_since(last) >= self.interval);
        if due {
            self.last = Some(now);
            tell(NotifyState::Watchdog);
        }
    }
}
