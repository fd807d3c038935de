//! When to probe, and what the probes say. Pure: time is an argument.

use std::time::Duration;

use tokio::time::Instant;

use super::event::{ProbeOutcome, Session};

/// What the last probes say. A good one vetoes every trip but those by proof and by order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Asked, not yet answered.
    Pending,
    Good,
    Bad,
    /// Probes cannot tell.
    Unknown,
    /// No probe could be sent.
    Unasked,
}

/// The schedule of the probes and their verdict.
#[derive(Debug)]
pub(super) struct Probes {
    verdict: Verdict,
    /// Since the last that did not fail.
    failed: u32,
    last_failure: ProbeOutcome,
    next: Instant,
    last: Option<Instant>,
    session: Session,
}

impl Probes {
    /// The first is due at once.
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            verdict: Verdict::Unknown,
            failed: 0,
            last_failure: ProbeOutcome::Failed,
            next: now,
            last: None,
            session: Session::Fresh,
        }
    }

    /// Whether it is time. If so, the next time is a cadence from now.
    pub(super) fn due(&mut self, cadence: Duration, now: Instant) -> bool {
        let due = now >= self.next;
        if due {
            self.next = now + cadence;
        }
        due
    }

    /// A probe is started. Kept and fresh sessions take turns.
    pub(super) const fn start(&mut self, now: Instant) -> Session {
        self.last = Some(now);
        let session = self.session;
        self.session = match session {
            Session::Kept => Session::Fresh,
            Session::Fresh => Session::Kept,
        };
        session
    }

    /// The next is due then, whatever the cadence says.
    pub(super) const fn hurry(&mut self, at: Instant) {
        self.next = at;
    }

    /// The next is due by then.
    pub(super) fn no_later_than(&mut self, at: Instant) {
        self.next = self.next.min(at);
    }

    /// Something looks wrong: what was answered before does not count, and the next is due at once, though not
    /// sooner than `pause` after the last: a suspicion may come and go on every tick.
    pub(super) fn ask_again(&mut self, pause: Duration, now: Instant) {
        self.verdict = Verdict::Pending;
        self.next = self.last.map_or(now, |last| now.max(last + pause));
    }

    pub(super) const fn answered(&mut self, outcome: ProbeOutcome) {
        self.verdict = match outcome {
            ProbeOutcome::Ok => Verdict::Good,
            ProbeOutcome::Inconclusive | ProbeOutcome::Unwanted => Verdict::Unknown,
            ProbeOutcome::Unasked => Verdict::Unasked,
            ProbeOutcome::Timeout | ProbeOutcome::Failed => {
                self.failed += 1;
                self.last_failure = outcome;
                self.verdict = Verdict::Bad;
                return;
            }
        };
        self.failed = 0;
    }

    pub(super) const fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The last failure, if at least `least` failed in a row.
    pub(super) fn failures(&self, least: u32) -> Option<ProbeOutcome> {
        (self.failed >= least).then_some(self.last_failure)
    }
}
