//! How long what a session runs may take, and what happens when it has taken that long.

use std::sync::Arc;
use std::time::Duration;

use tidegate_layers::breaker::Outcome as Health;
use tidegate_layers::shed::{Ask, Priority as Importance, Reason};
use tokio::time::Instant;

use super::Session;
use super::conversation::{Ailment, TimingOut};
use super::registry::{Entry, Signal};
use super::sorting::{Kind, Sorted};
use super::terms::Terms;
use crate::clock;
use crate::config::SyncWait;
use crate::exchange::refusal::{self, Deadline, Refusal, TimedOut};
use crate::exchange::{Cause, Owed};
use crate::guard::{LOOK_WITHIN, Look, Running, Wait};
use crate::pool::Lease;
use crate::sql::{Lane, Priority};
use crate::telemetry::lanes;
use crate::wire::TransactionStatus;

/// From the cancel to giving up. Together with [`LOOK_WITHIN`] and the period of the sweep less than the 500 ms in
/// which an application is answered after its deadline.
const CANCEL_WITHIN: Duration = Duration::from_millis(300);

/// How long what ends or fails a transaction may take that passed a breaker: nobody waits longer for a server that hangs
/// as a whole, and it is done when its connection is closed.
const ROLLBACK_WITHIN: Duration = Duration::from_secs(1);

/// How often whoever waits for a lane looks whether that makes sense.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// See the module documentation. What every exchange looks at comes first: in memory, too.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Watch {
    run: Option<Run>,
    /// When the first byte came of what is sent next.
    began: Option<Instant>,
    /// When the transaction began, on the clock.
    transaction: Option<u64>,
    /// Answers of the server when progress was noted last.
    answers: u64,
    /// Its errors when what runs began.
    errors: u64,
    /// The lane of what was asked for last.
    lane: Lane,
    overdue: Overdue,
    /// Whether a cancel of ours may still be on its way to the backend.
    cancel: Cancel,
    /// What the next exchange waits for.
    waiting: Option<Box<Waiting>>,
}

/// Exchanges that run without a pause between them.
#[derive(Debug, Clone, Copy)]
struct Run {
    running: Running,
    kind: Kind,
    deadline: Deadline,
    /// On the clock; [`NEVER`] when it has no deadline.
    due_ms: u64,
    bounds: Bounds,
}

/// What bounds something that runs; in milliseconds, [`NEVER`] where nothing does.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    lane: Lane,
    /// From its first byte, or its last progress.
    each: u64,
    /// When its transaction is due, on the clock.
    whole: u64,
}

impl Bounds {
    #[inline]
    fn new(terms: &Terms, lane: Lane, kind: Kind, transaction: Option<u64>) -> Self {
        Self {
            lane,
            each: bound(terms, lane, kind).map_or(NEVER, clock::millis),
            whole: whole(terms, transaction),
        }
    }

    /// When it is due, and by which deadline; on the clock.
    #[inline]
    fn due(self, began_ms: u64) -> (Deadline, u64) {
        let deadline = match self.lane {
            Lane::Read => Deadline::Read,
            Lane::Write => Deadline::Write,
        };
        let due = began_ms.saturating_add(self.each);
        if self.whole < due { (Deadline::Transaction, self.whole) } else { (deadline, due) }
    }
}

/// The next exchange of a transaction waits for room in its lane.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    lane: Lane,
    since: Instant,
    until: Instant,
    /// Why it is refused then.
    reason: Reason,
}

/// No deadline.
const NEVER: u64 = u64::MAX;

/// A cancel of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cancel {
    None,
    Sent,
}

/// What a cancel of ours leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aftermath {
    /// Nothing: more can be sent.
    None,
    /// It might hit what would be sent now.
    Pending,
    /// It might hit at any time.
    Doomed,
}

/// How far a timeout is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Overdue {
    No,
    /// What the backend waits for is being looked up.
    Looking,
    /// It was told to cancel.
    Cancelling,
}

/// What becomes of an exchange that is overdue.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It is waited for a little longer.
    Patience,
    /// It is cancelled; the server's answer is waited for.
    Cancel,
    /// The application is told now. The backend goes on.
    Leave(Refusal),
    /// The application is told now. The connection is closed.
    GiveUp(Refusal),
    /// It was not sent yet, and will not be.
    Refuse(Refusal),
    /// The transaction has taken too long, while nothing runs in it.
    EndTransaction(Refusal),
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            began: None,
            run: None,
            lane: Lane::Read,
            transaction: None,
            overdue: Overdue::No,
            cancel: Cancel::None,
            waiting: None,
            answers: 0,
            errors: 0,
        }
    }
}

impl Watch {
    /// A transaction begins that has no backend yet.
    pub(super) fn begin_transaction(&mut self) {
        self.transaction = Some(clock::at_ms(Instant::now()));
        self.began = None;
    }

    /// Bytes came of what is sent next.
    #[inline]
    pub(super) fn arrived(&mut self) {
        if self.began.is_none() {
            self.began = Some(clock::now());
        }
    }

    /// What came is answered, and nothing of the next exchange is there.
    #[inline]
    pub(super) fn nothing_came(&mut self) {
        self.began = None;
    }

    /// When the first byte came of what is sent next, which is what comes after it from now on.
    #[inline]
    pub(super) fn take_began(&mut self, now: Instant) -> Instant {
        self.began.take().unwrap_or(now)
    }

    /// Cancels what runs; the session is woken when that is done.
    pub(super) fn cancel(&mut self, lease: &Lease, entry: &Arc<Entry>) {
        self.cancel = Cancel::Sent;
        let cancel = lease.cancel_target.announce();
        let entry = Arc::clone(entry);
        crate::telemetry::metrics::get().cancels_sent.increment(1);
        tokio::spawn(async move {
            if let Err(error) = cancel.send().await {
                tracing::debug!(error = &error as &dyn std::error::Error, "cancel request not delivered");
            }
            entry.signal(Signal::Due);
        });
    }

    /// Whether a cancel of ours may hit what is sent next.
    #[inline]
    pub(super) fn aftermath(&mut self, lease: &Lease) -> Aftermath {
        match self.cancel {
            Cancel::None => Aftermath::None,
            Cancel::Sent if self.run.is_some() || lease.cancel_target.is_being_cancelled() => {
                Aftermath::Pending
            }
            Cancel::Sent if lease.cancel_target.is_doomed() => Aftermath::Doomed,
            Cancel::Sent => {
                self.cancel = Cancel::None;
                Aftermath::None
            }
        }
    }

    /// Since when the next exchange has waited for its lane.
    #[inline]
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        self.waiting.as_ref().map(|waiting| waiting.since)
    }

    /// The lane is there, or is not waited for any more.
    pub(super) fn stop_waiting(&mut self) {
        self.waiting = None;
    }

    /// The lane of what was asked for last.
    pub(super) fn lane(&self) -> Lane {
        self.lane
    }

    /// What is asked for next, in this lane.
    pub(super) fn asks(&mut self, lane: Lane) {
        self.lane = lane;
    }

    /// The session has another backend, or none.
    pub(super) fn forget_backend(&mut self) {
        self.cancel = Cancel::None;
        self.waiting = None;
        self.overdue = Overdue::No;
        self.run = None;
    }

    /// Something of each of its lines of the cache.
    #[inline]
    pub(super) fn glance(&self) -> u64 {
        self.answers ^ self.transaction.unwrap_or_default() ^ u64::from(self.run.is_some())
    }

    /// Whether anything runs.
    pub(super) fn is_running(&self) -> bool {
        self.run.is_some()
    }
}

/// How long an exchange may take.
fn bound(terms: &Terms, lane: Lane, kind: Kind) -> Option<Duration> {
    let timeout = match (lane, kind) {
        (Lane::Read, _) => terms.timeouts.read,
        (Lane::Write, Kind::Commit) => terms.timeouts.commit,
        (Lane::Write, Kind::Statement | Kind::Autocommit) => terms.timeouts.write,
        (Lane::Write, Kind::Unread) => longer(terms.timeouts.write, terms.timeouts.commit),
    };
    match (terms.deadline, timeout.is_zero()) {
        (Some(deadline), true) => Some(deadline),
        (Some(deadline), false) => Some(timeout.min(deadline)),
        (None, true) => None,
        (None, false) => Some(timeout),
    }
}

/// The longer of two timeouts, of which zero has no end.
fn longer(one: Duration, other: Duration) -> Duration {
    if one.is_zero() || other.is_zero() { Duration::ZERO } else { one.max(other) }
}

/// When the transaction as a whole is due, on the clock.
fn whole(terms: &Terms, transaction: Option<u64>) -> u64 {
    let timeout = terms.timeouts.transaction;
    match transaction {
        Some(since) if !timeout.is_zero() => since.saturating_add(clock::millis(timeout)),
        Some(_) | None => NEVER,
    }
}

/// The priority in the words of the queue.
const fn priority(priority: Priority) -> Importance {
    match priority {
        Priority::Sheddable => Importance::Sheddable,
        Priority::SheddablePlus => Importance::SheddablePlus,
        Priority::Critical => Importance::Critical,
        Priority::CriticalPlus => Importance::CriticalPlus,
    }
}

/// Whether a smaller limit would have helped: the server worked on it all the time. Waits for locks, standbys or
/// storage end no sooner for fewer statements.
fn is_load(look: Option<&Look>) -> bool {
    look.is_some_and(|look| look.wait == Wait::Other)
}

/// What a wait stands for.
fn cause(wait: Wait) -> Cause {
    match wait {
        Wait::SyncRep => Cause::SyncStandby,
        Wait::Storage | Wait::DataFile => Cause::Storage,
        Wait::Lock => Cause::Lock,
        Wait::Idle | Wait::Other | Wait::Hidden => Cause::Unknown,
    }
}

fn timed_out(run: Run, look: Option<&Look>) -> TimedOut {
    TimedOut {
        deadline: run.deadline,
        lane: run.running.lane,
        cause: look.map_or(Cause::Unknown, |look| cause(look.wait)),
        blockers: look.map_or_else(|| Arc::from([]), |look| Arc::from(&*look.blocked_by)),
    }
}

/// The session is woken at this time.
#[inline]
fn arm(lease: &Lease, due_ms: u64) {
    if let Some(slot) = &lease.slot {
        match due_ms {
            NEVER => slot.disarm(),
            due_ms => slot.arm(due_ms),
        }
    }
}

impl Session {
    /// What the queue has to know of an exchange that waits for a backend.
    pub(super) fn ask(&self, sorted: Sorted, began: Instant) -> Ask {
        let terms = self.talk.terms.applied();
        let bound = bound(terms, sorted.lane, sorted.kind(self.talk.status));
        let deadline = bound.map(|bound| began + bound);
        let ceiling = if sorted.lane == Lane::Write { self.write_ceiling(terms) } else { None };
        Ask { priority: priority(terms.priority), deadline, ceiling, wait_max: Some(terms.timeouts.queue) }
    }

    /// An exchange goes to the backend. `began` is when its first byte came, `now` when it was admitted.
    ///
    /// # Errors
    /// The breaker opened meanwhile.
    pub(super) fn begin_exchange(
        &mut self,
        lease: &Lease,
        sorted: Sorted,
        began: Instant,
        now: Instant,
    ) -> Result<(), Refusal> {
        if self.pool.key.replication.is_some() {
            // A stream of WAL has no end, and is no exchange.
            return Ok(());
        }
        let status = self.talk.status;
        let lane = sorted.lane;
        self.watch.asks(lane);
        let began_ms = clock::at_ms(began);
        if self.talk.is_outside() && !self.talk.unsynced || self.watch.transaction.is_none() {
            self.watch.transaction = Some(began_ms);
        }
        let mut kind = sorted.kind(status);
        let guard = &self.pool.upstream.guard;
        if self.watch.run.is_none() {
            self.watch.errors = self.talk.errors;
        }
        let slot = lease.slot.as_ref();
        let running = match self.watch.run {
            Some(run) => guard.upgrade(slot, run.running, lane, now),
            None => guard.begin(slot, lane, now),
        };
        let running = running.map_err(|open| Refusal::breaker_open(lane, open))?;
        if let Some(run) = self.watch.run {
            kind = kind.max(run.kind);
        }
        self.talk.transaction = sorted.transaction;
        let bounds = Bounds::new(self.talk.terms.applied(), lane, kind, self.watch.transaction);
        let own = bounds.due(began_ms);
        let (deadline, due_ms) = match self.watch.run {
            // Until that is answered its deadline is the one that counts.
            Some(before) if before.due_ms < own.1 => (before.deadline, before.due_ms),
            Some(_) | None => own,
        };
        self.watch.run = Some(Run { running, kind, deadline, due_ms, bounds });
        arm(lease, due_ms);
        Ok(())
    }

    /// As [`Session::begin_exchange`], for what was refused and is sent for all that, when nothing runs: it rolls back, or
    /// makes its transaction fail. It stays in the lane that its backend is charged to.
    pub(super) fn begin_rollback(&mut self, lease: &Lease, sorted: Sorted, began: Instant, now: Instant) {
        let (lane, kind) = (lease.lane(), Kind::Statement);
        self.watch.asks(lane);
        self.watch.errors = self.talk.errors;
        self.talk.transaction = sorted.transaction;
        let running = self.pool.upstream.guard.begin_anyway(lease.slot.as_ref(), lane, now);
        let mut bounds = Bounds::new(self.talk.terms.applied(), lane, kind, self.watch.transaction);
        bounds.each = bounds.each.min(clock::millis(ROLLBACK_WITHIN));
        let (deadline, due_ms) = bounds.due(clock::at_ms(began));
        self.watch.run = Some(Run { running, kind, deadline, due_ms, bounds });
        arm(lease, due_ms);
    }

    /// What the answers say about the server.
    fn health(&mut self) -> Health {
        match self.talk.take_ailment() {
            Ailment::None => Health::Ok,
            Ailment::ReadOnly => {
                // It may be the transaction that is read-only: the server is asked.
                self.pool.upstream.guard.doubt();
                self.pool.upstream.trouble();
                Health::Ok
            }
            Ailment::Failing => Health::Failed,
        }
    }

    /// Nothing is owed any more: what ran has ended.
    #[inline]
    pub(super) fn end_exchange(&mut self, lease: &mut Lease) {
        let Some(run) = self.watch.run.take() else { return };
        let now = clock::now();
        let was_served = self.talk.answers != self.watch.answers;
        self.watch.answers = self.talk.answers;
        let health = match self.watch.overdue {
            Overdue::No => self.health(),
            Overdue::Looking | Overdue::Cancelling => Health::Failed,
        };
        if health == Health::Ok && was_served {
            lease.fared_well();
        }
        let proves = match run.running.lane {
            Lane::Read => true,
            Lane::Write => health == Health::Ok && self.note_commit(run.kind, now),
        };
        let told = match health {
            Health::Ok if !was_served => Health::Ignored,
            Health::Ok if !proves => Health::Answered,
            health => health,
        };
        let took = self.pool.upstream.guard.end(lease.slot.as_ref(), run.running, told, now);
        if was_served && self.watch.overdue != Overdue::Cancelling {
            lanes::served(run.running.lane, took);
        }
        self.watch.overdue = Overdue::No;
        if self.talk.status == TransactionStatus::Idle {
            self.watch.transaction = None;
            self.talk.has_changed = false;
        }
        // A transaction has a deadline of its own, also while nothing runs in it; one that has failed is over.
        let open = self.watch.transaction.filter(|_| self.talk.status == TransactionStatus::InTransaction);
        arm(lease, whole(self.talk.terms.now(), open));
    }

    /// A write was answered. Whether it shows that writes come to their ends: only what changes something and commits has
    /// to wait for what they wait for.
    fn note_commit(&mut self, kind: Kind, now: Instant) -> bool {
        if kind == Kind::Statement || self.talk.errors != self.watch.errors {
            return false;
        }
        self.places.wrote(now);
        if self.talk.has_changed {
            self.pool.upstream.guard.wrote();
        }
        self.talk.has_changed
    }

    /// What runs ends without an answer of the server.
    pub(super) fn break_exchange(&mut self, lease: &Lease, health: Health) {
        if let Some(run) = self.watch.run.take() {
            self.pool.upstream.guard.end(lease.slot.as_ref(), run.running, health, Instant::now());
        }
        self.watch.forget_backend();
        if let Some(slot) = &lease.slot {
            slot.disarm();
        }
    }

    /// Answers came, or rows, or data of a COPY: a pipeline that moves is not stuck.
    pub(super) fn note_progress(&mut self, lease: &Lease) {
        let answers = self.talk.answers;
        let copies = self.talk.is_copying();
        if answers == self.watch.answers && !copies {
            return;
        }
        let now = clock::now();
        let Some(run) = &mut self.watch.run else {
            self.watch.answers = answers;
            return;
        };
        self.pool.upstream.guard.progress(lease.slot.as_ref(), &run.running, now);
        if (answers != self.watch.answers || copies) && self.watch.overdue == Overdue::No {
            let now_ms = clock::at_ms(now);
            let (deadline, due_ms) = run.bounds.due(now_ms);
            (run.deadline, run.due_ms) = (deadline, due_ms);
            arm(lease, due_ms);
        }
        self.watch.answers = answers;
    }

    /// The deadline has passed, or the time for a step of what follows.
    pub(super) fn overdue(&mut self, lease: &mut Lease) -> Verdict {
        let now = Instant::now();
        if let Some(waiting) = self.watch.waiting.as_deref().copied() {
            return self.wait_on(lease, waiting, now).map_or_else(Verdict::Refuse, |()| Verdict::Patience);
        }
        let Some(run) = self.watch.run else { return self.transaction_overdue(lease, now) };
        if run.due_ms > clock::at_ms(now) {
            // It was about the exchange before.
            arm(lease, run.due_ms);
            return Verdict::Patience;
        }
        let look = self.pool.upstream.guard.look(lease.cancel_target.process_id, run.running.since);
        let kind = self.kind_overdue(run, look.as_ref());
        match (self.watch.overdue, kind) {
            (Overdue::No, Kind::Statement) => {
                if is_load(look.as_ref()) {
                    lease.fared_badly(now);
                }
                self.cancel_overdue(lease, now)
            }
            (Overdue::No, Kind::Autocommit | Kind::Unread | Kind::Commit) => {
                if is_load(look.as_ref()) {
                    lease.fared_badly(now);
                }
                if let Some(look) = &look {
                    return self.decide(lease, kind, Some(look), now);
                }
                self.pool.upstream.guard.ask_for_look(lease.cancel_target.process_id);
                self.watch.overdue = Overdue::Looking;
                self.extend(lease, now + LOOK_WITHIN);
                Verdict::Patience
            }
            (Overdue::Looking, kind) => self.decide(lease, kind, look.as_ref(), now),
            (Overdue::Cancelling, Kind::Statement) => {
                Verdict::GiveUp(Refusal::TimedOut(timed_out(run, look.as_ref())))
            }
            (Overdue::Cancelling, Kind::Autocommit | Kind::Unread | Kind::Commit) => {
                let cause = look.as_ref().map_or(Cause::Unknown, |look| cause(look.wait));
                Verdict::GiveUp(self.unresolved(cause))
            }
        }
    }

    /// What was sent may be more than what was there when it was admitted, or do more than its text says.
    fn kind_overdue(&self, run: Run, look: Option<&Look>) -> Kind {
        let writes = run.running.lane == Lane::Write;
        let commits = || {
            writes && self.talk.outcome() == refusal::Outcome::Unknown
                || self.talk.is_outside() && look.is_some_and(Look::waits_as_a_write)
        };
        match run.kind {
            // Nothing commits by itself before the end of a COPY's data.
            Kind::Autocommit | Kind::Statement if self.talk.is_copying_in() => Kind::Statement,
            Kind::Statement if commits() => Kind::Autocommit,
            kind => kind,
        }
    }

    /// How many of its lane may be in flight for a write to be let in, where that is less than for all others.
    fn write_ceiling(&self, terms: &Terms) -> Option<usize> {
        let upstream = &self.pool.upstream;
        let hot = &upstream.guard.hot;
        let is_hot = !hot.is_empty() && self.talk.sent_exactly().is_some_and(|kind| hot.contains(kind));
        if !is_hot && terms.write_share.is_none() {
            return None;
        }
        let limits = upstream.limits();
        let share = terms.write_share.map(|share| (limits.size * usize::from(share) / 100).max(1));
        let ceiling = limits.ceiling(Lane::Write);
        let cool = is_hot.then(|| (ceiling - ceiling.div_ceil(4)).max(1));
        share.into_iter().chain(cool).min()
    }

    /// Whether the application waits for one statement only; a question of ours may stand behind it.
    fn runs_a_single_statement(&self) -> bool {
        let owed = || self.talk.ledger.iter().filter(|owed| !owed.is_token());
        owed().filter(|owed| matches!(owed, Owed::Query | Owed::Execute)).count() == 1
            && owed().filter(|owed| owed.ends_with_ready()).count() == 1
            && owed().last().is_some_and(Owed::ends_with_ready)
    }

    /// What runs was seen waiting: a read as only writes do, so from now on its like is a write; or a write for a
    /// lock, so its like goes last. Of several it is not known which.
    pub(super) fn learn(&mut self, process_id: u32) {
        let Some(run) = self.watch.run.filter(|_| self.runs_a_single_statement()) else { return };
        let guard = &self.pool.upstream.guard;
        let Some(look) = guard.look(process_id, run.running.since) else { return };
        match (run.running.lane, look.wait) {
            // In a transaction it may have been another that wrote.
            (Lane::Read, Wait::Storage | Wait::DataFile) if !self.talk.is_outside() => {}
            (Lane::Read, _) if look.waits_as_a_write() => {
                let is_new = self.talk.sent_fingerprint().is_some_and(|kind| guard.learned.learn(kind));
                crate::telemetry::metrics::get().reads_learned.increment(is_new.into());
            }
            (Lane::Write, Wait::Lock) => {
                if let Some(kind) = self.talk.sent_exactly() {
                    guard.hot.mark(kind);
                }
            }
            (Lane::Read | Lane::Write, _) => {}
        }
    }

    /// The next exchange of a transaction waits for room in its lane, as long as the queue or its deadline allows. It is
    /// not shed: what its transaction did would be lost.
    ///
    /// # Errors
    /// The lane hangs, and as many transactions wait for it as the others can spare backends.
    pub(super) fn wait_for_lane(
        &mut self,
        lease: &mut Lease,
        sorted: Sorted,
        now: Instant,
    ) -> Result<(), Refusal> {
        let lane = sorted.lane;
        if self.watch.waiting.as_ref().is_some_and(|waiting| waiting.lane == lane) {
            return Ok(());
        }
        let terms = self.talk.terms.applied();
        let (queue, bound) = (terms.timeouts.queue, bound(terms, lane, sorted.kind(self.talk.status)));
        let (within, reason) = match bound {
            Some(bound) if bound < queue => (bound, Reason::Deadline),
            Some(_) | None => (queue, Reason::QueueTimeout),
        };
        let waiting = Waiting { lane, since: now, until: now + within, reason };
        self.watch.waiting = Some(Box::new(waiting));
        self.wait_on(lease, waiting, now)
    }

    /// Goes on waiting, until it is time to look again.
    fn wait_on(&mut self, lease: &mut Lease, waiting: Waiting, now: Instant) -> Result<(), Refusal> {
        let Waiting { lane, until, reason, .. } = waiting;
        let reason = if now >= until {
            reason
        } else if self.pool.upstream.is_waited_for_in_vain(lane, lease.moves_before(), now) {
            Reason::Limit
        } else {
            arm(lease, clock::at_ms(until.min(now + LOOK_AGAIN)));
            return Ok(());
        };
        lease.stay();
        self.watch.stop_waiting();
        Err(self.no_room(lane, reason))
    }

    /// A lane is full, and its room is not waited for, or has been for long enough.
    pub(super) fn no_room(&self, lane: Lane, reason: Reason) -> Refusal {
        let retry_after = self.pool.upstream.limits().codel.target;
        Refusal::Shed { lane, reason, retry_after }
    }

    fn transaction_overdue(&mut self, lease: &Lease, now: Instant) -> Verdict {
        match whole(self.talk.terms.now(), self.watch.transaction) {
            due_ms if due_ms <= clock::at_ms(now) && self.talk.status == TransactionStatus::InTransaction => {
                Verdict::EndTransaction(Refusal::TimedOut(TimedOut {
                    deadline: Deadline::Transaction,
                    lane: lease.lane(),
                    cause: Cause::Unknown,
                    blockers: Arc::from([]),
                }))
            }
            due_ms => {
                arm(lease, due_ms);
                Verdict::Patience
            }
        }
    }

    /// What to do with something that may be committing.
    fn decide(&mut self, lease: &Lease, kind: Kind, look: Option<&Look>, now: Instant) -> Verdict {
        let leave = self.pool.upstream.limits().sync_wait == SyncWait::Leave;
        match (look.map(|look| look.wait), kind) {
            // A cancel would make the commit visible though no standby has it.
            (Some(Wait::SyncRep), _) if leave => Verdict::Leave(self.unresolved(Cause::SyncStandby)),
            // A cancel does not end the write, but the wait for a standby that may follow.
            (Some(Wait::Storage), _) => Verdict::Leave(self.unresolved(Cause::Storage)),
            (Some(Wait::Hidden) | None, Kind::Commit) => Verdict::GiveUp(self.unresolved(Cause::Unknown)),
            // A data file is waited for before the commit: what is cancelled then is rolled back.
            (
                Some(Wait::SyncRep | Wait::DataFile | Wait::Lock | Wait::Other | Wait::Idle | Wait::Hidden)
                | None,
                _,
            ) => self.cancel_overdue(lease, now),
        }
    }

    /// A commit that nobody has confirmed in time.
    fn unresolved(&self, cause: Cause) -> Refusal {
        Refusal::CommitUnresolved { cause, outcome: refusal::Outcome::Unknown, known: self.known() }
    }

    fn cancel_overdue(&mut self, lease: &Lease, now: Instant) -> Verdict {
        if let Some(run) = self.watch.run {
            let look = self.pool.upstream.guard.look(lease.cancel_target.process_id, run.running.since);
            let timed_out = timed_out(run, look.as_ref());
            let detail = timed_out.detail(&self.pool.upstream.name);
            self.talk.timing_out = Some(Box::new(TimingOut { detail, timed_out }));
        }
        // Whoever did not have to look has more time.
        let looked = self.watch.overdue == Overdue::Looking;
        self.watch.overdue = Overdue::Cancelling;
        let patience = if looked { CANCEL_WITHIN } else { CANCEL_WITHIN + LOOK_WITHIN };
        self.extend(lease, now + patience);
        Verdict::Cancel
    }

    fn extend(&mut self, lease: &Lease, due: Instant) {
        if let Some(run) = &mut self.watch.run {
            run.due_ms = clock::at_ms(due);
        }
        arm(lease, clock::at_ms(due));
    }
}
