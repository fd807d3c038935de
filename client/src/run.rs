//! One statement under its bound: sent, watched, cancelled a little before the bound, given up at the bound.

use std::future::{Future, pending, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use tidegate_layers::breaker::{Outcome as Health, Ticket};
use tokio::time::{Instant, timeout_at};
use tokio_postgres::Client;
use tokio_postgres::error::Severity;

use crate::classify::{self, Circumstances, Done};
use crate::config::{SyncWait, Timeouts};
use crate::connection::{Connection, TransactionControl};
use crate::control::BackendState;
use crate::deadline::{Deadline, Scope};
use crate::detail;
use crate::error::{Doing, Error, ErrorKind};
use crate::lanes::LaneBreaker;
use crate::recover::Left;
use crate::retry::Trouble;
use crate::session::Session;
use crate::watch::{STUCK, Watch};
use crate::wire::{Mark, WireState};
use crate::words::{Lane, Outcome};

/// What is kept of a budget to cancel and to learn the outcome: a tenth, at most this.
const MARGIN_MAX: Duration = Duration::from_millis(100);

/// How long the last bytes of an answer may be behind its error.
const SETTLE_MAX: Duration = Duration::from_millis(50);

/// A ROLLBACK that takes longer is left to recovery.
const ROLLBACK_MAX: Duration = Duration::from_millis(500);

/// What is being run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Statement,
    Begin,
    Commit,
    Rollback,
}

impl Step {
    fn doing(self) -> Doing {
        match self {
            Self::Statement => Doing::Running,
            Self::Begin => Doing::Beginning,
            Self::Commit => Doing::Committing,
            Self::Rollback => Doing::RollingBack,
        }
    }

    fn limit(self, lane: Lane, timeouts: &Timeouts) -> Duration {
        match (self, lane) {
            (Self::Commit, _) => timeouts.commit,
            (Self::Rollback, _) => ROLLBACK_MAX,
            (Self::Statement | Self::Begin, Lane::Read) => timeouts.read,
            (Self::Statement | Self::Begin, Lane::Write) => timeouts.write,
        }
    }
}

/// What an operation did not tell.
#[derive(Debug, thiserror::Error)]
#[error("the server reported an error behind the end of the operation")]
struct FailedLate;

/// How it ended, as far as the clock is concerned.
pub(crate) enum Driven<T> {
    Answered(Result<T, tokio_postgres::Error>),
    Late,
}

/// A statement in flight. Dropping it leaves the connection in doubt.
#[must_use = "tell how it ended"]
pub(crate) struct Run<'a> {
    connection: &'a mut Connection,
    step: Step,
    /// Whether it is one statement of ours.
    extent: Extent,
    watch: Watch,
    /// When to cancel.
    soft: Instant,
    /// When to answer.
    hard: Instant,
    bound: Bound,
}

/// Whose bound it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bound {
    /// The lane's.
    Lane,
    /// A caller's, which ends before.
    Caller,
}

/// How much a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// One call of the driver's.
    Call,
    /// Whatever an application does with the driver's client.
    Anything,
}

impl<'a> Run<'a> {
    /// Looks whether it may run at all, and tells the sidecar what it must know.
    pub(crate) async fn begin(connection: &'a mut Connection, step: Step) -> Result<Self, Error> {
        let now = Instant::now();
        let lane = connection.lane();
        let scope = Scope::current();
        let limit = Deadline::after(now, step.limit(lane, &connection.shared().timeouts));
        let bounds = [connection.budget(), scope.deadline];
        let hard = bounds.into_iter().flatten().fold(limit, Deadline::min);
        if hard.expired(now) {
            return Err(Error::too_late(lane, step.doing()));
        }
        let margin = (hard.remaining(now) / 10).min(MARGIN_MAX);
        let soft = hard.instant() - margin;
        let ticket = Self::admit(connection, step, now)?;
        let budget = bounds.into_iter().flatten().reduce(Deadline::min);
        let lost = || Error::new(ErrorKind::ConnectionLost, step.doing(), Outcome::NotSent).in_lane(lane);
        let session = &mut connection.held_mut().ok_or_else(lost)?.session;
        // A cancel that is still under way would hit this statement.
        if session.is_cancelling() && timeout_at(hard.instant(), session.cancelled()).await.is_err() {
            return Err(Error::too_late(lane, step.doing()));
        }
        if session.is_lost() {
            return Err(lost());
        }
        session.asking();
        session.wire().forget();
        let hints =
            session.hints(budget.map(|budget| budget.remaining(now).saturating_sub(margin)), scope.priority);
        for hint in hints.iter().flat_map(|hints| hints.split_terminator(';')) {
            // Polled once it is queued for sending, before the statement; the answer is read and dropped.
            drop(session.client().batch_execute(hint).now_or_never());
        }
        connection.note_unfinished(Some(step));
        let watch = Watch::start(&connection.shared().breakers[lane.index()], ticket, now);
        let (extent, hard) = (Extent::Call, hard.instant());
        let bound = if hard < limit.instant() { Bound::Caller } else { Bound::Lane };
        Ok(Self { connection, step, extent, watch, soft, hard, bound })
    }

    /// A transaction that is open is never refused: finishing it frees its locks.
    fn admit(connection: &Connection, step: Step, now: Instant) -> Result<Option<Ticket>, Error> {
        let lane = connection.lane();
        let open = || connection.held().is_some_and(|held| !held.session.is_idle());
        match connection.shared().breakers[lane.index()].admit(now) {
            Ok(ticket) => Ok(Some(ticket)),
            Err(_) if step == Step::Commit || step == Step::Rollback || open() => Ok(None),
            Err(refusal) => Err(Error::open(lane, refusal)),
        }
    }

    pub(crate) fn client(&self) -> &Client {
        // `begin` has seen it, and only `end` takes it away.
        self.session().map_or_else(|| unreachable!("a run holds its connection"), Session::client)
    }

    fn session(&self) -> Option<&Session> {
        self.connection.held().map(|held| &**held.session)
    }

    /// Waits for the answer up to the bound.
    pub(crate) async fn drive<T, F>(&self, answer: F) -> Driven<T>
    where
        F: Future<Output = Result<T, tokio_postgres::Error>>,
    {
        let mut answer = pin!(answer);
        let mut moved = self.moves();
        // Whatever takes its time but gets somewhere is not stuck. Polled it may be for many a reason.
        let mut watched = pin!(poll_fn(|cx| {
            let answer = answer.as_mut().poll(cx);
            if answer.is_pending() {
                let before = std::mem::replace(&mut moved, self.moves());
                if before != moved {
                    self.watch.progress(self.breaker(self.connection.lane()));
                }
            }
            answer
        }));
        let in_time = poll_fn(|cx| match watched.as_mut().poll(cx) {
            Poll::Ready(result) => Poll::Ready(Some(result)),
            Poll::Pending => self.poll_soft(cx).map(|()| None),
        });
        if let Some(result) = in_time.await {
            return Driven::Answered(result);
        }
        // Boxed: hardly ever needed, and its size would be that of every statement.
        let interrupt = Box::pin(async {
            if self.should_cancel().await
                && let Some(session) = self.session()
            {
                session.start_cancel();
            }
            pending::<()>().await;
        });
        tokio::select! {
            biased;
            result = timeout_at(self.hard, watched) => result.map_or(Driven::Late, Driven::Answered),
            () = interrupt => Driven::Late,
        }
    }

    /// As [`drive`](Self::drive), for an operation that need not wait for all that it has begun: that is waited for
    /// as well. A COPY is not done before its commit, and a connection with requests in its queue is not idle.
    pub(crate) async fn drive_all<T>(
        &mut self,
        operation: impl AsyncFnOnce(&Client) -> Result<T, tokio_postgres::Error>,
    ) -> Driven<T> {
        self.extent = Extent::Anything;
        let (client, wire) = (self.client(), self.wire());
        self.drive(async {
            let result = operation(client).await;
            let errors = wire.errors();
            // Answers come in order: when this one is answered, everything before it is.
            let Err(error) = client.batch_execute("").await else {
                if wire.errors() != errors {
                    wire.mark(Mark::FailedLate);
                }
                return result;
            };
            // A cancel that hits this one is an answer, too.
            let is_over =
                error.as_db_error().is_none_or(|answer| answer.parsed_severity() != Some(Severity::Error));
            if is_over {
                return result.and(Err(error));
            }
            if wire.errors() != errors.wrapping_add(1) {
                wire.mark(Mark::FailedLate);
            }
            result
        })
        .await
    }

    fn wire(&self) -> &Arc<WireState> {
        // As in `client`.
        self.session().map_or_else(|| unreachable!("a run holds its connection"), Session::wire)
    }

    fn moves(&self) -> u32 {
        self.session().map_or(0, |session| session.wire().moves())
    }

    fn poll_soft(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.session().map_or(Poll::Ready(()), |session| session.poll_until(self.soft, cx))
    }

    /// A COMMIT is never cancelled: that would make it visible without being replicated, or do nothing.
    async fn should_cancel(&self) -> bool {
        let shared = self.connection.shared();
        let Some(session) = self.session() else { return false };
        if self.step == Step::Commit || shared.cancels_are_futile(self.connection.lane()) {
            return false;
        }
        let may_wait_for_standby = self.connection.lane() == Lane::Write && !self.connection.is_ours();
        if !may_wait_for_standby || shared.sync_wait == SyncWait::Cancel {
            return true;
        }
        // A sidecar has a bound of its own, and sees what its backend waits for.
        !session.has_sidecar()
            && shared.control.backend(session.place(), session.pid()).await != BackendState::WaitsForStandby
    }

    /// Takes the answer, or gives the connection up.
    pub(crate) async fn end<T>(mut self, driven: Driven<T>) -> Result<T, Error> {
        // Read once: this is on the way of every statement.
        let now = Instant::now();
        let result = match driven {
            Driven::Answered(Ok(value)) => self.succeeded(value, now),
            Driven::Answered(Err(error)) => Err(self.failed(error).await),
            Driven::Late => Err(self.late(now)),
        };
        self.connection.note_unfinished(None);
        let health = result.as_ref().map_or_else(|error| self.health(error, now), |_| self.success());
        let meters = &self.connection.shared().meters;
        meters.ran(self.connection.lane(), result.as_ref().err(), self.watch.elapsed(now));
        let breaker = &self.connection.shared().breakers[self.connection.lane().index()];
        self.watch.end(breaker, health, now);
        // A caller in a hurry says nothing about the load.
        let hurried = self.bound == Bound::Caller
            && result.as_ref().is_err_and(|error| error.kind() == ErrorKind::Timeout);
        if !hurried {
            self.tell_limit(health, now);
        }
        self.connection.note_trouble(result.as_ref().err().map(Trouble::of));
        result
    }

    fn succeeded<T>(&mut self, value: T, now: Instant) -> Result<T, Error> {
        let (lane, step) = (self.connection.lane(), self.step);
        let Some(held) = self.connection.held_mut() else { return Ok(value) };
        held.session.answered();
        held.session.touch(now);
        match step {
            Step::Rollback => held.session.forget_hints(),
            Step::Commit => held.session.keep_hints(),
            Step::Statement | Step::Begin => {}
        }
        let wire = held.session.wire();
        // Success that came with this warning is not what the application asked for.
        if wire.has(Mark::Unreplicated) {
            let error = Error::new(ErrorKind::CommitUnknown, step.doing(), Outcome::CommittedUnreplicated);
            return Err(error.in_lane(lane).for_reason("committed_unreplicated"));
        }
        if wire.has(Mark::FailedLate) {
            let outcome = classify::outcome_in_part(Outcome::RolledBack, self.done());
            return Err(Error::new(ErrorKind::Database, step.doing(), outcome)
                .in_lane(lane)
                .because(FailedLate));
        }
        match (step, &wire.command()) {
            (Step::Commit, b"COMM") | (Step::Begin | Step::Statement | Step::Rollback, _) => Ok(value),
            // What was behind the last statement has failed: this is how the server says so.
            (Step::Commit, b"ROLL") => Err(Error::rolled_back(lane)),
            (Step::Commit, _) => {
                Err(Error::new(ErrorKind::CommitUnknown, step.doing(), Outcome::Unknown).in_lane(lane))
            }
        }
    }

    /// What may be durable of it besides what an error undoes.
    fn done(&self) -> Done {
        let connection = &*self.connection;
        let Some(session) = self.session() else { return Done::Nothing };
        if connection.lane() == Lane::Read || connection.is_ours() {
            return Done::Nothing;
        }
        let wire = session.wire();
        let exchanges = self.extent == Extent::Anything && (wire.has(Mark::Ended) || !wire.is_settled());
        if exchanges || wire.has(Mark::Committed) {
            Done::Something
        } else if wire.has(Mark::MayCommit) {
            Done::Perhaps
        } else {
            Done::Nothing
        }
    }

    async fn failed(&mut self, error: tokio_postgres::Error) -> Error {
        let until = self.hard.min(Instant::now() + SETTLE_MAX);
        let circumstances = Circumstances {
            lane: self.connection.lane(),
            step: self.step,
            doing: self.step.doing(),
            ours: self.connection.is_ours(),
            unreplicated: self.session().is_some_and(|session| session.wire().has(Mark::Unreplicated)),
            done: self.done(),
        };
        if let Some(held) = self.connection.held_mut() {
            if error.is_closed() {
                held.session.doom();
            } else if timeout_at(until, held.session.wire().settle()).await.is_ok() {
                held.session.answered();
            }
        }
        let error = classify::error(error, circumstances);
        self.react(&error);
        error
    }

    /// What an error says beyond its own statement.
    fn react(&mut self, error: &Error) {
        let lane = error.lane().unwrap_or(self.connection.lane());
        let refuses = error.reason().is_some_and(detail::refuses_lane);
        if let (true, Some(after)) = (refuses, error.retry_after()) {
            self.breaker(lane).pause(after, error.cause());
        }
        let asked_for = self.connection.control() == TransactionControl::Ours { read_only: true };
        if error.kind() == ErrorKind::ReadOnly && lane == Lane::Write && !asked_for {
            // The next connection goes to whoever is the primary now.
            if let Some(held) = self.connection.held_mut() {
                let sidecar = held.session.has_sidecar();
                held.session.doom();
                if !sidecar {
                    self.breaker(lane).report(crate::Cause::ReadOnly);
                }
            }
        }
    }

    fn late(&mut self, now: Instant) -> Error {
        let lane = self.connection.lane();
        let outcome = classify::outcome_of_silence(lane, self.step, self.connection.is_ours());
        let kind = if self.step == Step::Commit { ErrorKind::CommitUnknown } else { ErrorKind::Timeout };
        if self.bound == Bound::Lane
            && let Some(held) = self.connection.held_mut()
        {
            held.lease.fared_badly(now);
        }
        self.connection.give_up(match (self.step, lane) {
            (Step::Commit, _) => Left::Commit,
            (Step::Statement, Lane::Write) if !self.connection.is_ours() => Left::LateWrite,
            (Step::Statement | Step::Begin | Step::Rollback, _) => Left::Statement,
        });
        let cause = self.breaker(lane).handle().cause();
        Error::new(kind, self.step.doing(), outcome)
            .in_lane(lane)
            .caused_by(cause)
            .for_reason(if lane == Lane::Read { "read_timeout" } else { "write_timeout" })
    }

    /// Where writes wait for something, what needs no commit is answered all the same: it proves nothing.
    fn success(&self) -> Health {
        let commits = match (self.connection.lane(), self.step) {
            (Lane::Read, _) | (Lane::Write, Step::Commit) => true,
            (Lane::Write, Step::Statement) => {
                self.session().is_some_and(|session| session.wire().has(Mark::Ended))
            }
            (Lane::Write, Step::Begin | Step::Rollback) => false,
        };
        if commits { Health::Ok } else { Health::Answered }
    }

    fn health(&self, error: &Error, now: Instant) -> Health {
        let answered = match self.connection.lane() {
            Lane::Read => Health::Ok,
            Lane::Write => Health::Answered,
        };
        // A sidecar that refuses does its work.
        let told = error.upstream().is_some();
        match error.kind() {
            ErrorKind::Timeout if now < self.soft => answered,
            _ if told => answered,
            ErrorKind::Timeout
            | ErrorKind::ConnectionLost
            | ErrorKind::CommitUnknown
            | ErrorKind::ReadOnly
            | ErrorKind::Connect => Health::Failed,
            ErrorKind::Database if classify::is_server_trouble(error) => Health::Failed,
            ErrorKind::Overloaded
            | ErrorKind::BreakerOpen
            | ErrorKind::Conflict
            | ErrorKind::RolledBack
            | ErrorKind::Database
            | ErrorKind::Conversion
            | ErrorKind::Config => answered,
        }
    }

    fn tell_limit(&mut self, health: Health, now: Instant) {
        if let Some(held) = self.connection.held_mut() {
            match health {
                Health::Ok => held.lease.fared_well(),
                Health::Failed => held.lease.fared_badly(now),
                Health::Slow | Health::Answered | Health::Ignored => {}
            }
        }
    }

    fn breaker(&self, lane: Lane) -> &LaneBreaker {
        &self.connection.shared().breakers[lane.index()]
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        if self.watch.is_over() {
            return;
        }
        let now = Instant::now();
        let stuck = self.watch.elapsed(now) >= STUCK;
        let breaker = &self.connection.shared().breakers[self.connection.lane().index()];
        self.watch.end(breaker, if stuck { Health::Failed } else { Health::Ignored }, now);
    }
}
