//! Transactions that say how they ended.

use std::fmt;
use std::future::Future;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::IsolationLevel;

use crate::connection::{Connection, TransactionControl};
use crate::deadline;
use crate::error::Error;
use crate::names;
use crate::pool::Pool;
use crate::retry::{self, Retry, Trouble};
use crate::run::Step;
use crate::words::{Lane, Outcome};

/// How a transaction is run.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct TxOptions {
    lane: Lane,
    isolation: Option<IsolationLevel>,
    deferrable: bool,
    retry: Retry,
}

impl TxOptions {
    /// In the write lane.
    pub const fn write() -> Self {
        Self { lane: Lane::Write, isolation: None, deferrable: false, retry: Retry::Never }
    }

    /// In the read lane, and READ ONLY.
    pub const fn read() -> Self {
        Self { lane: Lane::Read, ..Self::write() }
    }

    /// The isolation level; without it the server's default.
    pub const fn isolation(mut self, level: IsolationLevel) -> Self {
        self.isolation = Some(level);
        self
    }

    /// DEFERRABLE: for long serializable reads.
    pub const fn deferrable(mut self) -> Self {
        self.deferrable = true;
        self
    }

    /// Whether it may be done again. Default: never.
    pub const fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    fn begin(self) -> String {
        let mut sql = "BEGIN".to_owned();
        if let Some(level) = self.isolation {
            sql += match level {
                IsolationLevel::ReadUncommitted => " ISOLATION LEVEL READ UNCOMMITTED",
                IsolationLevel::ReadCommitted => " ISOLATION LEVEL READ COMMITTED",
                IsolationLevel::RepeatableRead => " ISOLATION LEVEL REPEATABLE READ",
                // The strictest, should there ever be another.
                _ => " ISOLATION LEVEL SERIALIZABLE",
            };
        }
        if self.lane == Lane::Read {
            sql += " READ ONLY";
        }
        if self.deferrable {
            sql += " DEFERRABLE";
        }
        sql
    }
}

/// How a transaction ended.
#[derive(Debug)]
#[must_use = "only Committed is success"]
pub enum TxOutcome<T, E> {
    /// The server confirmed its COMMIT, or the sidecar found out that it did it.
    Committed(T),
    /// Nothing of it is durable: the application's error, or ours.
    RolledBack(E),
    /// COMMIT was sent, and what became of it is not simply "committed" or "rolled back".
    Unknown {
        /// What the application's code had returned.
        value: T,
        /// [`Error::outcome`] says whether it is wholly unknown, or durable here and not replicated.
        error: Error,
    },
}

impl<T, E: From<Error>> TxOutcome<T, E> {
    /// For `?`, where an unknown outcome is an error like any other. The error still says which.
    ///
    /// # Errors
    /// Anything but [`Committed`](Self::Committed).
    pub fn into_result(self) -> Result<T, E> {
        match self {
            Self::Committed(value) => Ok(value),
            Self::RolledBack(error) => Err(error),
            Self::Unknown { error, .. } => Err(error.into()),
        }
    }
}

/// A transaction that is open. It has all methods of [`Connection`]; COMMIT and ROLLBACK are not for you to send.
///
/// It ends with the code that it was given to: keep it no longer than that, or it is rolled back.
///
/// # Cancel safety
/// Dropped at any point, with the future that runs it, it is rolled back and its locks are freed.
pub struct Transaction {
    /// `None` only while it is dropped.
    connection: Option<Connection>,
    home: Arc<Home>,
}

/// Where the connection of a transaction goes when its user is done.
#[derive(Debug)]
struct Home(Mutex<Whereabouts>);

#[derive(Debug)]
enum Whereabouts {
    Lent,
    Back(Box<Connection>),
    /// Nobody waits for it any more.
    Over,
}

impl Home {
    fn lend(connection: Connection) -> (Transaction, Arc<Self>) {
        let home = Arc::new(Self(Mutex::new(Whereabouts::Lent)));
        (Transaction { connection: Some(connection), home: Arc::clone(&home) }, home)
    }

    /// `None`: the user keeps it beyond its time. Its end will roll it back.
    fn take(&self) -> Option<Connection> {
        match mem::replace(&mut *self.lock(), Whereabouts::Over) {
            Whereabouts::Back(connection) => Some(*connection),
            Whereabouts::Lent | Whereabouts::Over => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Whereabouts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        let mut home = self.home.lock();
        if let (Whereabouts::Lent, Some(connection)) = (&*home, self.connection.take()) {
            *home = Whereabouts::Back(Box::new(connection));
        }
    }
}

impl Deref for Transaction {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().unwrap_or_else(|| unreachable!("only a drop takes it"))
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut Connection {
        self.connection.as_mut().unwrap_or_else(|| unreachable!("only a drop takes it"))
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").field("connection", &self.connection).finish_non_exhaustive()
    }
}

impl Pool {
    /// Runs `code` in a transaction: commits when it returns `Ok`, rolls back when it returns `Err`.
    ///
    /// ```no_run
    /// # async fn f(pool: tidegate_client::Pool) -> Result<(), tidegate_client::Error> {
    /// use tidegate_client::{Error, TxOptions, TxOutcome};
    ///
    /// let outcome: TxOutcome<u64, Error> = pool
    ///     .transaction(TxOptions::write(), async |mut tx| {
    ///         tx.execute("UPDATE account SET balance = balance - $1 WHERE id = $2", &[&10_i64, &1_i64]).await?;
    ///         tx.execute("UPDATE account SET balance = balance + $1 WHERE id = $2", &[&10_i64, &2_i64]).await
    ///     })
    ///     .await;
    /// match outcome {
    ///     TxOutcome::Committed(_) => println!("done"),
    ///     TxOutcome::RolledBack(error) => println!("not done, try again: {}", error.is_safe_to_retry()),
    ///     TxOutcome::Unknown { error, .. } => println!("look before you try again: {error}"),
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Cancel safety
    /// Dropped before COMMIT was sent, it is rolled back. Dropped later, what became of it is unknown.
    pub async fn transaction<T, E, F>(
        &self,
        options: TxOptions,
        mut code: impl FnMut(Transaction) -> F,
    ) -> TxOutcome<T, E>
    where
        E: From<Error>,
        F: Future<Output = Result<T, E>>,
    {
        let shared = self.shared();
        shared.retries.deposit();
        let mut delays = retry::delays();
        let mut attempt = 1;
        loop {
            let (outcome, trouble) = self.attempt(options, &mut code).await;
            names::transaction(&shared.name, options.lane, end_of(&outcome));
            let again = matches!(outcome, TxOutcome::RolledBack(_)) && attempt < options.retry.attempts();
            let Some(trouble) = trouble.filter(|trouble| again && trouble.safe) else { return outcome };
            let delay = delays.next(&mut rand::rng()).max(trouble.retry_after.unwrap_or_default());
            let in_time = deadline::current().is_none_or(|end| !end.expired(Instant::now() + delay));
            if !in_time || !shared.retries.withdraw() {
                return outcome;
            }
            sleep(delay).await;
            names::retried(&shared.name, options.lane);
            attempt += 1;
        }
    }

    async fn attempt<T, E, F>(
        &self,
        options: TxOptions,
        code: &mut impl FnMut(Transaction) -> F,
    ) -> (TxOutcome<T, E>, Option<Trouble>)
    where
        E: From<Error>,
        F: Future<Output = Result<T, E>>,
    {
        let connection = match self.begin(options).await {
            Ok(connection) => connection,
            Err(error) => {
                let trouble = Trouble::of(&error);
                return (TxOutcome::RolledBack(error.into()), Some(trouble));
            }
        };
        let (transaction, home) = Home::lend(connection);
        match (code(transaction).await, home.take()) {
            (Ok(value), Some(connection)) => commit(connection, value).await,
            (Ok(_), None) => (TxOutcome::RolledBack(Error::rolled_back(options.lane).into()), None),
            (Err(error), Some(connection)) => {
                let trouble = connection.trouble();
                roll_back(connection).await;
                (TxOutcome::RolledBack(error), trouble)
            }
            (Err(error), None) => (TxOutcome::RolledBack(error), None),
        }
    }

    async fn begin(&self, options: TxOptions) -> Result<Connection, Error> {
        let mut connection = self.acquire(options.lane).await?;
        connection.set_control(TransactionControl::Ours { read_only: options.lane == Lane::Read });
        connection.step(Step::Begin, &options.begin()).await?;
        Ok(connection)
    }
}

async fn commit<T, E: From<Error>>(
    mut connection: Connection,
    value: T,
) -> (TxOutcome<T, E>, Option<Trouble>) {
    // COMMIT of a failed transaction would only roll it back.
    if !is_open(&connection).await {
        let error = Error::rolled_back(connection.lane());
        roll_back(connection).await;
        return (TxOutcome::RolledBack(error.into()), None);
    }
    match connection.step(Step::Commit, "COMMIT").await {
        Ok(()) => (TxOutcome::Committed(value), None),
        Err(error) if error.outcome().is_safe_to_retry() => {
            let trouble = Trouble::of(&error);
            roll_back(connection).await;
            (TxOutcome::RolledBack(error.into()), Some(trouble))
        }
        Err(error) if error.outcome() == Outcome::Committed => (TxOutcome::Committed(value), None),
        Err(error) => (TxOutcome::Unknown { value, error }, None),
    }
}

/// Whether it can still commit. The end of the last answer may be a moment behind.
async fn is_open(connection: &Connection) -> bool {
    const BEHIND: Duration = Duration::from_millis(50);
    let Some(held) = connection.held() else { return false };
    let wire = held.session.wire();
    timeout(BEHIND, wire.settle()).await.is_ok() && wire.is_in_transaction()
}

/// What cannot be rolled back in time is left to recovery.
async fn roll_back(mut connection: Connection) {
    let needed = connection.held().is_some_and(|held| {
        !held.session.is_idle() && !held.session.is_lost() && held.session.wire().is_settled()
    });
    if needed && let Err(error) = connection.step(Step::Rollback, "ROLLBACK").await {
        tracing::debug!(error = &error as &dyn std::error::Error, "rollback left to recovery");
    }
}

fn end_of<T, E>(outcome: &TxOutcome<T, E>) -> &'static str {
    match outcome {
        TxOutcome::Committed(_) => "committed",
        TxOutcome::RolledBack(_) => "rolled_back",
        TxOutcome::Unknown { .. } => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_one_begin() {
        // A level that got lost would run at READ COMMITTED without anybody noticing.
        let options = TxOptions::read().isolation(IsolationLevel::Serializable).deferrable();

        assert_eq!(options.begin(), "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE");
        assert_eq!(TxOptions::write().begin(), "BEGIN");
    }
}
