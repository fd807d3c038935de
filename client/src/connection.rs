//! The guard: a connection, and the right to use it.

use std::fmt;
use std::sync::Arc;

use tidegate_layers::shed::Lease;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Row, SimpleQueryMessage, Statement, ToStatement};

use crate::deadline::Deadline;
use crate::error::Error;
use crate::pool::{Pooled, Shared};
use crate::recover::{self, Left};
use crate::retry::Trouble;
use crate::run::{Run, Step};
use crate::words::Lane;

/// A connection in a lane, until it is dropped.
///
/// Every method bounds its statement by the lane's timeout, by the budget of the pool and by the
/// [`deadline`](crate::deadline) scope in which it is called. A little before that bound the statement is cancelled, so
/// that there is time to learn what became of it; at the bound the caller is answered, whatever the server does.
///
/// Dropping it gives it back if it is *provably* idle: nothing is owed and no transaction is open. Else it is
/// cancelled, rolled back and proven idle behind the caller's back, or discarded together with its socket, its
/// task and (as far as the server lets us) its backend. Its permit stays taken until that is done.
///
/// # Cancel safety
/// Every future of it may be dropped at any time. What was sent may still happen; the connection is then recovered
/// as above when the guard is dropped.
pub struct Connection {
    held: Option<Held>,
    shared: Arc<Shared>,
    lane: Lane,
    budget: Option<Deadline>,
    control: TransactionControl,
    /// What the last statement said of a retry, whatever error the application makes of it.
    trouble: Option<Trouble>,
    /// What was begun and not ended: its future may be dropped at any time.
    unfinished: Option<Step>,
}

/// A connection and its permit. In this order: the permit is free only when the connection is back.
pub(crate) struct Held {
    pub(crate) session: Pooled,
    pub(crate) lease: Lease<()>,
}

/// Who sends COMMIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TransactionControl {
    /// The application may, in any statement.
    Theirs,
    /// We alone do; until then nothing can be durable.
    Ours {
        /// It was declared READ ONLY.
        read_only: bool,
    },
}

type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

impl Connection {
    pub(crate) fn new(
        shared: Arc<Shared>,
        session: Pooled,
        lease: Lease<()>,
        lane: Lane,
        budget: Option<Deadline>,
    ) -> Self {
        let held = Some(Held { session, lease });
        let control = TransactionControl::Theirs;
        Self { held, shared, lane, budget, control, trouble: None, unfinished: None }
    }

    /// The lane it was taken in.
    pub fn lane(&self) -> Lane {
        self.lane
    }

    /// Process id of the backend that serves it; `None` once the connection was given up. Behind a sidecar it is one
    /// of the sidecar's making.
    pub fn backend_pid(&self) -> Option<i32> {
        self.held.as_ref().map(|held| held.session.pid())
    }

    /// Whether a sidecar answers at the other end.
    pub fn has_sidecar(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.session.has_sidecar())
    }

    /// As [`tokio_postgres::Client::query`].
    ///
    /// # Errors
    /// See [`ErrorKind`](crate::ErrorKind).
    pub async fn query<S>(&mut self, statement: &S, params: Params<'_>) -> Result<Vec<Row>, Error>
    where
        S: ?Sized + ToStatement + Sync,
    {
        let run = Run::begin(self, Step::Statement).await?;
        let driven = run.drive(run.client().query(statement, params)).await;
        run.end(driven).await
    }

    /// As [`tokio_postgres::Client::query_one`].
    ///
    /// # Errors
    /// See [`ErrorKind`](crate::ErrorKind); other than one row is a [`Conversion`](crate::ErrorKind::Conversion).
    pub async fn query_one<S>(&mut self, statement: &S, params: Params<'_>) -> Result<Row, Error>
    where
        S: ?Sized + ToStatement + Sync,
    {
        let run = Run::begin(self, Step::Statement).await?;
        let driven = run.drive(run.client().query_one(statement, params)).await;
        run.end(driven).await
    }

    /// As [`tokio_postgres::Client::query_opt`].
    ///
    /// # Errors
    /// As [`query_one`](Self::query_one), but no row is none.
    pub async fn query_opt<S>(&mut self, statement: &S, params: Params<'_>) -> Result<Option<Row>, Error>
    where
        S: ?Sized + ToStatement + Sync,
    {
        let run = Run::begin(self, Step::Statement).await?;
        let driven = run.drive(run.client().query_opt(statement, params)).await;
        run.end(driven).await
    }

    /// As [`tokio_postgres::Client::query_typed`]: one round trip, without a named statement.
    ///
    /// # Errors
    /// See [`ErrorKind`](crate::ErrorKind).
    pub async fn query_typed(
        &mut self,
        statement: &str,
        params: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, Error> {
        let run = Run::begin(self, Step::Statement).await?;
        let driven = run.drive(run.client().query_typed(statement, params)).await;
        run.end(driven).await
    }

    /// As [`tokio_postgres::Client::execute`].
    ///
    /// # Errors
    /// See [`ErrorKind`](crate::ErrorKind).
    pub async fn execute<S>(&mut self, statement: &S, params: Params<'_>) -> Result<u64, Error>
    where
        S: ?Sized + ToStatement + Sync,
    {
        let run = Run::begin(self, Step::Statement).await?;
        let driven = run.drive(run.client().execute(statement, params)).await;
        run.end(driven).await
    }

    /// As [`tokio_postgres::Client::simple_query`].
    ///
    /// # Errors
    /// See [`ErrorKind`](crate::ErrorKind).
    pub async fn simple_query(&mut self, sql: &str) -> Result<Vec<SimpleQueryMessage>, Error> {
        let run = Run::begin(self, Step::Statement).await?;
        let driven = run.drive(run.client().simple_query(sql)).await;
        run.end(driven).await
    }

    /// As [`tokio_postgres::Client::batch_execute`].
    ///
    /// # Errors
    /// See [`ErrorKind`](crate::ErrorKind).
    pub async fn batch_execute(&mut self, sql: &str) -> Result<(), Error> {
        let run = Run::begin(self, Step::Statement).await?;
        let driven = run.drive(run.client().batch_execute(sql)).await;
        run.end(driven).await
    }

    /// As [`tokio_postgres::Client::prepare`]. The statement belongs to this connection.
    ///
    /// # Errors
    /// See [`ErrorKind`](crate::ErrorKind).
    pub async fn prepare(&mut self, sql: &str) -> Result<Statement, Error> {
        let run = Run::begin(self, Step::Statement).await?;
        let driven = run.drive(run.client().prepare(sql)).await;
        run.end(driven).await
    }

    /// Lends out the driver's client for what has no method here (COPY, row streams, pipelines), as one statement:
    /// the bound, the breaker and the proof of idleness are those of the whole. It is over when all that it has begun is
    /// answered, commits included (one round trip more): what it returns must read nothing any more. An error that the
    /// operation has not seen is an error of the whole, and outside of a transaction an error leaves the outcome unknown
    /// if something was committed before it.
    ///
    /// ```no_run
    /// # async fn f(pool: tidegate_client::Pool) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut connection = pool.read().await?;
    /// let (a, b) = connection
    ///     .with_client(async |client| {
    ///         tokio::try_join!(client.query("SELECT 1", &[]), client.query("SELECT 2", &[]))
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// See [`ErrorKind`](crate::ErrorKind).
    pub async fn with_client<T>(
        &mut self,
        operation: impl AsyncFnOnce(&tokio_postgres::Client) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, Error> {
        let mut run = Run::begin(self, Step::Statement).await?;
        let driven = run.drive_all(operation).await;
        run.end(driven).await
    }

    /// One command of transaction control.
    pub(crate) async fn step(&mut self, step: Step, sql: &str) -> Result<(), Error> {
        let run = Run::begin(self, step).await?;
        let driven = run.drive(run.client().batch_execute(sql)).await;
        run.end(driven).await
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn held(&self) -> Option<&Held> {
        self.held.as_ref()
    }

    pub(crate) fn held_mut(&mut self) -> Option<&mut Held> {
        self.held.as_mut()
    }

    pub(crate) fn budget(&self) -> Option<Deadline> {
        self.budget
    }

    pub(crate) fn control(&self) -> TransactionControl {
        self.control
    }

    /// We alone send COMMIT.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self.control, TransactionControl::Ours { .. })
    }

    pub(crate) fn note_unfinished(&mut self, step: Option<Step>) {
        self.unfinished = step;
    }

    pub(crate) fn trouble(&self) -> Option<Trouble> {
        self.trouble
    }

    pub(crate) fn note_trouble(&mut self, trouble: Option<Trouble>) {
        self.trouble = trouble;
    }

    pub(crate) fn set_control(&mut self, control: TransactionControl) {
        self.control = control;
    }

    /// The caller has been, or is about to be, answered; what is left goes on behind its back.
    pub(crate) fn give_up(&mut self, left: Left) {
        if let Some(held) = self.held.take() {
            recover::start(&self.shared, held, self.lane, left);
        }
    }

    /// What cannot simply go back.
    #[cold]
    fn part_with(&self, held: Held) {
        let settled = held.session.wire().is_idle();
        // Lost with nothing owed: its backend has nothing to do but to end.
        if settled && (held.session.is_idle() || held.session.is_lost()) {
            // The stock may replace it, which needs a runtime; this may be any thread.
            let _runtime = self.shared.runtime.enter();
            drop(held);
        } else {
            let left = if self.unfinished == Some(Step::Commit) { Left::Commit } else { Left::Statement };
            recover::start(&self.shared, held, self.lane, left);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let Some(mut held) = self.held.take() else { return };
        if held.session.vouch() {
            let Held { session, lease } = held;
            drop(self.shared.warm.keep(session));
            drop(lease);
        } else {
            self.part_with(held);
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("lane", &self.lane)
            .field("backend_pid", &self.backend_pid())
            .finish_non_exhaustive()
    }
}
