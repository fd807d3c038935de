//! While a session holds a backend: both sockets, driven by the session's one task.
//!
//! Nothing is read from one side while what it said before still waits to be written to the other, so a slow
//! reader slows its writer down instead of filling our memory.

use std::hint::cold_path;
use std::task::{Context, Poll};

use tidegate_layers::shed::Reason;
use tokio::time::Instant;

use super::Session;
use super::conversation::Whose;
use super::inbound::Inbound;
use super::outbound::Outbound;
use super::registry::{Phase, Signal};
use super::routing::Place;
use super::sorting::Sorted;
use super::watch::{Aftermath, Verdict};
use crate::clock;
use crate::exchange::{Refusal, refusal};
use crate::pool::Lease;
use crate::wire::{Header, TransactionStatus, WireError, frontend};

/// Rounds of one poll before other sessions of the worker get their turn.
const ROUNDS: usize = 32;

/// How holding a backend ended.
#[derive(Debug)]
pub enum Relayed {
    /// The backend is idle and nothing is owed: it can go to another session.
    Over,
    /// As `Over`, for a session that keeps its backend: its settings have to be looked after.
    Settle,
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
    /// The next exchange may not be sent. Nothing of it was, and nothing else is owed.
    Refused(Refusal),
    /// What runs has taken too long, and the application is told now.
    Overdue(Fate, Refusal),
    /// The transaction has taken too long, while nothing runs in it.
    TransactionOverdue(Refusal),
    /// Somebody wants the session to end.
    Signalled(Signal),
}

/// What becomes of a backend whose application does not wait for it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It goes on to its end, watched.
    Left,
    /// Its connection is closed with RST.
    GivenUp,
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

/// Whether an exchange may be sent.
pub(super) enum Admitted {
    Yes,
    /// Something has to happen before.
    NotYet,
    No(Refusal),
    /// Not on this backend: a cancel may hit it at any time.
    Never,
    /// Not on this backend: its server is not what it was.
    Void,
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
        if !self.talk.ledger.is_empty()
            && let Some(end) = self.pass_answer(cx, lease)
        {
            return Poll::Ready(end);
        }
        self.poll_both_ways(cx, lease)
    }

    /// Passes on what the server has answered, once. Whether that ends anything.
    #[inline]
    fn pass_answer(&mut self, cx: &mut Context<'_>, lease: &mut Lease) -> Option<Relayed> {
        if self.to_app.is_pending() {
            // First what was answered before.
            return None;
        }
        if let Some(Ok(0) | Err(_)) = self.to_app.fill_now(&mut lease.stream) {
            return Some(Relayed::BackendGone { told: Told::No });
        }
        if !self.to_app.unseen().is_empty()
            && let Some(end) = self.look_inbound(lease)
        {
            return Some(end);
        }
        if self.to_app.is_pending()
            && matches!(self.to_app.poll_write_to(cx, &mut self.app), Poll::Ready(Err(_)))
        {
            return Some(Relayed::AppGone);
        }
        self.quiet_end()
    }

    // On its own: a compiler that finds loops in one function prepares for all of them whenever it is called.
    #[inline(never)]
    fn poll_both_ways(&mut self, cx: &mut Context<'_>, lease: &mut Lease) -> Poll<Relayed> {
        for _ in 0..ROUNDS {
            let outbound = self.carry_outbound(cx, lease);
            if let Side::Ended(end) = outbound {
                cold_path();
                return Poll::Ready(end);
            }
            let inbound = self.carry_inbound(cx, lease);
            if let Side::Ended(end) = inbound {
                cold_path();
                return Poll::Ready(end);
            }
            if let Some(end) = self.quiet_end() {
                return Poll::Ready(end);
            }
            if matches!((outbound, inbound), (Side::Waits, Side::Waits)) {
                break;
            }
        }
        if self.registration.entry.has_any() {
            cold_path();
            if let Some(end) = self.pressing_signal(lease) {
                return Poll::Ready(end);
            }
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
            cold_path();
            // Without the end of its COPY, or without Sync, the server would wait for ever.
            let waits = self.talk.is_copying_in() || self.talk.owes_sync();
            return (waits || self.talk.ledger.is_empty()).then_some(Relayed::Terminated);
        }
        match (self.talk.is_over() && self.to_app.unseen().is_empty(), self.talk.keeps()) {
            (true, Hold::Transaction) => Some(Relayed::Over),
            (true, Hold::Session) if self.talk.notes.has_settings() => Some(Relayed::Settle),
            (true, Hold::Session) | (false, _) => None,
        }
    }

    /// From the application to the backend.
    #[inline]
    fn carry_outbound(&mut self, cx: &mut Context<'_>, lease: &mut Lease) -> Side {
        loop {
            if self.to_db.is_pending() {
                match self.to_db.poll_write_to(cx, &mut lease.stream) {
                    Poll::Ready(Ok(())) if self.talk.is_copying_in() => self.note_progress(lease),
                    Poll::Ready(Ok(())) => {}
                    // What the server said last is still to be read, and says more than this error.
                    Poll::Ready(Err(_)) => {
                        cold_path();
                        self.to_db.drop_passed();
                    }
                    Poll::Pending => return Side::Waits,
                }
            }
            if self.terminating {
                return Side::Waits;
            }
            match self.talk.scan_outbound(&mut self.to_db, lease) {
                Ok(Outbound::More) => {}
                Ok(Outbound::Exchange) => match self.admit_next(cx, lease) {
                    Admitted::Yes => continue,
                    Admitted::NotYet if self.to_db.is_pending() => continue,
                    Admitted::NotYet => return Side::Waits,
                    Admitted::Void => return Side::Ended(Relayed::BackendGone { told: Told::No }),
                    Admitted::Never => {
                        // What ran was answered although it was late, and the cancel may come yet.
                        let failed = self.talk.status == TransactionStatus::Failed;
                        let told = if failed { Told::Yes } else { Told::No };
                        return Side::Ended(Relayed::BackendGone { told });
                    }
                    Admitted::No(refusal) => return Side::Ended(Relayed::Refused(refusal)),
                },
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
            match self.ear.poll_listen(cx, &mut self.app, &mut self.to_db) {
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
        // All of it may have been ours to answer.
        if self.watch.is_running() && self.talk.is_answered() {
            self.end_exchange(lease);
        }
        self.note_phase();
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
            let over = self.talk.is_over() && self.to_app.unseen().is_empty();
            if over && self.talk.keeps() == Hold::Transaction {
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
                if let Some(in_recovery) = self.talk.in_hot_standby.take() {
                    self.pool.upstream.hinted(in_recovery);
                }
                if self.watch.is_running() {
                    if self.talk.is_answered() {
                        self.end_exchange(lease);
                    } else {
                        self.note_progress(lease);
                    }
                }
                self.note_phase();
                None
            }
            Ok(Inbound::Fatal(told)) => {
                cold_path();
                Some(Relayed::BackendGone { told })
            }
            Err(violation) => {
                cold_path();
                Some(Relayed::BackendViolation(violation))
            }
        }
    }

    /// Keeps what other threads see of the session up to date.
    #[inline]
    fn note_phase(&mut self) {
        let phase = match (self.talk.waits_for_nothing(), self.talk.status) {
            (false, _) => Phase::Active,
            (true, _) if self.talk.owes_sync() => Phase::IdleInTransaction,
            (true, TransactionStatus::Idle) => Phase::Idle,
            (true, TransactionStatus::InTransaction | TransactionStatus::Failed) => Phase::IdleInTransaction,
        };
        self.enter(phase);
    }

    /// Whether the exchange at the front may be sent: its lane must have room and its breaker be closed.
    fn admit_next(&mut self, cx: &mut Context<'_>, lease: &mut Lease) -> Admitted {
        match self.watch.aftermath(lease) {
            Aftermath::None => {}
            Aftermath::Pending => return Admitted::NotYet,
            Aftermath::Doomed => return Admitted::Never,
        }
        if !self.talk.between_exchanges {
            return self.admit_rest(cx, lease);
        }
        let now = clock::now();
        self.talk.terms.refresh();
        let sorted = self.look_at_next();
        match self.place(lease, sorted.reach()) {
            Place::Here => {}
            // What was sent before has to be answered first; then the backend is given back.
            Place::Elsewhere => return Admitted::NotYet,
            Place::Lost if !self.talk.ledger.is_empty() => return Admitted::NotYet,
            Place::Lost if self.talk.keeps() == Hold::Session => return Admitted::Void,
            Place::Lost => {
                return Admitted::No(Refusal::BackendLost { outcome: refusal::Outcome::RolledBack });
            }
        }
        if let Some(refusal) = self.forbids(sorted.lane) {
            return if self.talk.ledger.is_empty() {
                self.refuse_unless_it_rolls_back(lease, sorted, refusal, now, now)
            } else {
                Admitted::NotYet
            };
        }
        // The wait for the lane counts.
        let began = self.watch.waiting_since().unwrap_or(now);
        if let Err(refusal) = self.enter_lane(cx, lease, sorted, now) {
            // What was sent before has to be answered first.
            return match refusal {
                Some(refusal) if self.talk.ledger.is_empty() => {
                    self.refuse_unless_it_rolls_back(lease, sorted, refusal, began, now)
                }
                Some(_) | None => Admitted::NotYet,
            };
        }
        match self.begin_exchange(lease, sorted, began, now) {
            Ok(()) => self.talk.admitted(sorted.looked_at),
            Err(_) if !self.talk.ledger.is_empty() => return Admitted::NotYet,
            Err(refusal) => return self.refuse_unless_it_rolls_back(lease, sorted, refusal, began, now),
        }
        Admitted::Yes
    }

    fn look_at_next(&mut self) -> Sorted {
        self.talk.front = Whose::Unknown;
        self.talk.look_ahead(self.to_db.unseen(), &self.pool);
        self.talk.sort(self.to_db.unseen(), &self.pool)
    }

    /// Whether the rest of an exchange may be sent, of which a part was sent before all of it was there. That part is under
    /// way, so the rest is not refused but made to fail.
    #[cold]
    fn admit_rest(&mut self, cx: &mut Context<'_>, lease: &mut Lease) -> Admitted {
        let now = clock::now();
        let are_answers_coming = self.talk.is_flushed && !self.talk.ledger.is_empty();
        let sorted = self.look_at_next();
        // What runs is more than this.
        self.talk.last_sent.flushed = true;
        let admitted = match self.enter_lane_at_once(cx, lease, sorted, now) {
            Poll::Pending if are_answers_coming => return Admitted::NotYet,
            Poll::Pending => Err(self.no_room(sorted.lane, Reason::Limit)),
            Poll::Ready(Err(refusal)) => Err(refusal),
            // What ends it, and no more: that runs already.
            Poll::Ready(Ok(())) if sorted.is_empty() && self.watch.is_running() => Ok(()),
            Poll::Ready(Ok(())) => self.begin_exchange(lease, sorted, now, now),
        };
        match admitted {
            // The gate stays shut: it is for the next exchange.
            Ok(()) => self.talk.looked_at = sorted.looked_at,
            Err(refusal) => self.fail_rest(sorted, &refusal),
        }
        Admitted::Yes
    }

    /// Charges the lease to a higher lane, if that has room.
    fn enter_lane_at_once(
        &self,
        cx: &mut Context<'_>,
        lease: &mut Lease,
        sorted: Sorted,
        now: Instant,
    ) -> Poll<Result<(), Refusal>> {
        let lane = sorted.lane;
        if let Some(refusal) = self.forbids(lane) {
            return Poll::Ready(Err(refusal));
        }
        if sorted.is_empty() || lane <= lease.lane() {
            return Poll::Ready(Ok(()));
        }
        if let Err(open) = self.pool.upstream.guard.admit(lane, now) {
            return Poll::Ready(Err(Refusal::breaker_open(lane, open)));
        }
        let moved = lease.poll_move(lane, cx);
        if moved.is_pending() {
            lease.stay();
        }
        moved
    }

    /// What comes next in an exchange fails, in the application's eyes by this refusal.
    fn fail_rest(&mut self, sorted: Sorted, refusal: &Refusal) {
        let Ok(Some(header)) = Header::read_frontend(self.to_db.unseen()) else { return };
        self.count(refusal);
        let mut error = Vec::new();
        refusal.put(&self.pool.upstream.name, &mut error);
        if header.tag == frontend::SYNC {
            // It is what the server waits for then.
            self.talk.looked_at = sorted.looked_at;
            self.talk.put_failing(error.into(), &mut self.to_db);
            return;
        }
        self.talk.looked_at = sorted.looked_at.saturating_sub(header.frame_len);
        self.talk.doom(header, error.into(), &mut self.to_db);
    }

    /// Charges the lease to the lane. `Err(None)`: there is no room yet.
    fn enter_lane(
        &mut self,
        cx: &mut Context<'_>,
        lease: &mut Lease,
        sorted: Sorted,
        now: Instant,
    ) -> Result<(), Option<Refusal>> {
        let lane = sorted.lane;
        if let Err(open) = self.pool.upstream.guard.admit(lane, now) {
            lease.stay();
            return Err(Some(Refusal::breaker_open(lane, open)));
        }
        // What was sent before stays charged to its lane until it is answered.
        let is_free = self.talk.is_outside() && self.talk.is_answered();
        if lane == lease.lane() || (lane < lease.lane() && !is_free) {
            return Ok(());
        }
        match lease.poll_move(lane, cx) {
            Poll::Ready(moved) => {
                self.watch.stop_waiting();
                moved.map_err(Some)
            }
            Poll::Pending if !self.talk.ledger.is_empty() => {
                // The deadline of what runs is the one to be kept. Its answer brings us back here.
                lease.stay();
                Err(None)
            }
            Poll::Pending => Err(self.wait_for_lane(lease, sorted, now).err()),
        }
    }

    /// What ends the session's or the exchange's stay now, if anything does.
    fn pressing_signal(&mut self, lease: &mut Lease) -> Option<Relayed> {
        if self.registration.entry.has(Signal::Due) {
            self.registration.entry.clear(Signal::Due);
            if let Some(end) = self.due(lease) {
                return Some(end);
            }
        }
        if self.registration.entry.has(Signal::Learn) {
            self.registration.entry.clear(Signal::Learn);
            self.learn(lease.cancel_target.process_id);
        }
        self.ending_signal().map(Relayed::Signalled)
    }

    /// The deadline of what runs, or waits to, has passed.
    fn due(&mut self, lease: &mut Lease) -> Option<Relayed> {
        match self.overdue(lease) {
            Verdict::Patience => None,
            Verdict::Cancel => {
                self.watch.cancel(lease, &self.registration.entry);
                None
            }
            Verdict::Leave(refusal) => Some(Relayed::Overdue(Fate::Left, refusal)),
            Verdict::GiveUp(refusal) => Some(Relayed::Overdue(Fate::GivenUp, refusal)),
            Verdict::Refuse(refusal) => Some(Relayed::Refused(refusal)),
            Verdict::EndTransaction(refusal) => Some(Relayed::TransactionOverdue(refusal)),
        }
    }

    /// The signal that ends the session now, if there is one.
    fn ending_signal(&mut self) -> Option<Signal> {
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
        let is_amid = !self.talk.is_over() || !self.to_db.unseen().is_empty();
        (entry.has(Signal::Drain) && !is_amid).then_some(Signal::Drain)
    }
}
