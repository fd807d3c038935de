//! While a session holds a backend: both sockets, driven by the session's one task.
//!
//! Nothing is read from one side while what it said before still waits to be written to the other, so a slow
//! reader slows its writer down instead of filling our memory.

use std::task::{Context, Poll};

use super::Session;
use super::inbound::Inbound;
use super::outbound::Outbound;
use super::registry::{Phase, Signal};
use crate::pool::Lease;
use crate::wire::{TransactionStatus, WireError};

/// Rounds of one poll before other sessions of the worker get their turn.
const ROUNDS: usize = 32;

/// How holding a backend ended.
#[derive(Debug)]
pub enum Relayed {
    /// The backend is idle and nothing is owed: it can go to another session.
    Over,
    /// The application said goodbye and everything that it had sent before is done.
    Terminated,
    /// The application is gone.
    AppGone,
    /// The application broke the protocol.
    AppViolation(WireError),
    /// The connection to PostgreSQL is gone. `told` if PostgreSQL's own error was passed on.
    BackendGone {
        /// Whether the application was told why.
        told: Told,
    },
    /// PostgreSQL broke the protocol.
    BackendViolation(WireError),
    /// Somebody wants the session to end.
    Signalled(Signal),
}

/// Whether an error was passed on already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// The server's own words were.
    Yes,
    /// Nothing was said.
    No,
}

/// Whether the session keeps the backend when nothing is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// For a transaction.
    Transaction,
    /// For good.
    Session,
}

/// Why a side stopped.
enum Side {
    /// Nothing can move until a socket is ready.
    Waits,
    /// The other side has to move first.
    Blocked,
    Ended(Relayed),
}

impl Session {
    /// Carries bytes until the backend is free or something ends. Wakes by the sockets and by signals.
    #[inline]
    pub(super) fn poll_relay(&mut self, cx: &mut Context<'_>, lease: &mut Lease) -> Poll<Relayed> {
        // Whoever waits for an answer is most likely woken by it; when it is the last, nothing else matters.
        if !self.talk.ledger.is_empty() {
            if let Side::Ended(end) = self.carry_inbound(cx, lease) {
                return Poll::Ready(end);
            }
            if let Some(end) = self.quiet_end() {
                return Poll::Ready(end);
            }
        }
        for _ in 0..ROUNDS {
            let outbound = self.carry_outbound(cx, lease);
            if let Side::Ended(end) = outbound {
                return Poll::Ready(end);
            }
            let inbound = self.carry_inbound(cx, lease);
            if let Side::Ended(end) = inbound {
                return Poll::Ready(end);
            }
            if let Some(end) = self.quiet_end() {
                return Poll::Ready(end);
            }
            if matches!((outbound, inbound), (Side::Waits, Side::Waits)) {
                break;
            }
        }
        if self.registration.entry.has_any()
            && let Some(signal) = self.pressing_signal()
        {
            return Poll::Ready(Relayed::Signalled(signal));
        }
        Poll::Pending
    }

    /// Whether holding the backend is over, after what was just carried.
    #[inline]
    fn quiet_end(&mut self) -> Option<Relayed> {
        if self.to_db.is_pending() {
            return None;
        }
        if self.terminating {
            return self.talk.ledger.is_empty().then_some(Relayed::Terminated);
        }
        match (self.talk.is_over(), self.hold()) {
            (true, Hold::Transaction) => Some(Relayed::Over),
            (true, Hold::Session) | (false, _) => None,
        }
    }

    /// From the application to the backend.
    #[inline]
    fn carry_outbound(&mut self, cx: &mut Context<'_>, lease: &mut Lease) -> Side {
        loop {
            if self.to_db.is_pending() {
                match self.to_db.poll_write_to(cx, &mut lease.stream) {
                    Poll::Ready(Ok(())) => {}
                    // What the server said last is still to be read, and says more than this error.
                    Poll::Ready(Err(_)) => self.to_db.drop_passed(),
                    Poll::Pending => return Side::Waits,
                }
            }
            if self.terminating {
                return Side::Waits;
            }
            match self.talk.scan_outbound(&mut self.to_db, lease) {
                Ok(Outbound::More) => {}
                Ok(Outbound::Blocked) if self.to_db.is_pending() => continue,
                Ok(Outbound::Blocked) => return Side::Blocked,
                Ok(Outbound::Terminate) => {
                    self.terminating = true;
                    continue;
                }
                Err(violation) => return Side::Ended(Relayed::AppViolation(violation)),
            }
            self.note_phase();
            if self.to_db.is_pending() {
                continue;
            }
            match self.to_db.poll_fill(cx, &mut self.app) {
                Poll::Ready(Ok(0) | Err(_)) => return Side::Ended(Relayed::AppGone),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => return Side::Waits,
            }
        }
    }

    /// From the backend to the application. Blocked stands for "something came, and there may be more".
    #[inline]
    fn carry_inbound(&mut self, cx: &mut Context<'_>, lease: &mut Lease) -> Side {
        self.talk.give_local_answers(&mut self.to_app);
        let mut side = Side::Waits;
        loop {
            if self.to_app.is_pending() {
                match self.to_app.poll_write_to(cx, &mut self.app) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Side::Ended(Relayed::AppGone),
                    Poll::Pending => return Side::Waits,
                }
            }
            if !self.to_app.unseen().is_empty() {
                if let Some(end) = self.look_inbound(lease) {
                    return Side::Ended(end);
                }
                if self.to_app.is_pending() {
                    continue;
                }
            }
            if self.talk.is_over() {
                return side;
            }
            match self.to_app.poll_fill(cx, &mut lease.stream) {
                Poll::Ready(Ok(0) | Err(_)) => {
                    return Side::Ended(Relayed::BackendGone { told: Told::No });
                }
                Poll::Ready(Ok(_)) => side = Side::Blocked,
                Poll::Pending => return side,
            }
        }
    }

    fn look_inbound(&mut self, lease: &mut Lease) -> Option<Relayed> {
        match self.talk.scan_inbound(&mut self.to_app, lease) {
            Ok(Inbound::More | Inbound::Blocked) => {
                self.note_phase();
                None
            }
            Ok(Inbound::Fatal(told)) => Some(Relayed::BackendGone { told }),
            Err(violation) => Some(Relayed::BackendViolation(violation)),
        }
    }

    /// Keeps what other threads see of the session up to date.
    #[inline]
    fn note_phase(&mut self) {
        let phase = match (self.talk.ledger.is_empty(), self.talk.status) {
            (false, _) => Phase::Active,
            (true, TransactionStatus::Idle) => Phase::Idle,
            (true, TransactionStatus::InTransaction | TransactionStatus::Failed) => Phase::IdleInTransaction,
        };
        if phase != self.phase {
            self.phase = phase;
            self.registration.entry.enter(phase);
        }
    }

    /// The signal that ends the session now, if there is one.
    fn pressing_signal(&mut self) -> Option<Signal> {
        let entry = &self.registration.entry;
        // Here a cancel goes to the backend, not to us.
        entry.clear(Signal::Cancel);
        if entry.has(Signal::Kill) {
            return Some(Signal::Kill);
        }
        if entry.has(Signal::Overdue) {
            entry.clear(Signal::Overdue);
            return matches!(self.phase, Phase::Idle | Phase::IdleInTransaction).then_some(Signal::Overdue);
        }
        (entry.has(Signal::Drain) && self.talk.is_over()).then_some(Signal::Drain)
    }
}
