//! What the breaker sees of a statement, from its start to its end.

use std::time::Duration;

use tidegate_layers::breaker::{Outcome as Health, Ticket};
use tokio::time::Instant;

use crate::lanes::LaneBreaker;

/// A call that takes longer is slow; one that is dropped then was stuck, not abandoned.
pub(crate) const STUCK: Duration = Duration::from_secs(1);

/// See the [module](self).
pub(crate) struct Watch {
    started: Instant,
    /// `None`: it runs in a transaction that was open when the lane closed.
    ticket: Option<Ticket>,
    /// `None`: there was no free slot, and it is not watched.
    slot: Option<usize>,
}

impl Watch {
    pub(crate) fn start(breaker: &LaneBreaker, ticket: Option<Ticket>, now: Instant) -> Self {
        Self { started: now, ticket, slot: breaker.handle().slots().claim(now) }
    }

    pub(crate) fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }

    pub(crate) fn progress(&self, breaker: &LaneBreaker) {
        if let Some(slot) = self.slot {
            breaker.handle().slots().progress(slot, Instant::now());
        }
    }

    pub(crate) fn end(&mut self, breaker: &LaneBreaker, health: Health, now: Instant) {
        if let Some(ticket) = self.ticket.take() {
            let slow = health == Health::Ok && self.elapsed(now) >= STUCK;
            breaker.complete(ticket, if slow { Health::Slow } else { health }, now);
        }
        if let Some(slot) = self.slot.take() {
            breaker.handle().slots().end(slot);
        }
    }

    pub(crate) const fn is_over(&self) -> bool {
        self.ticket.is_none() && self.slot.is_none()
    }
}
