//! Reads and writes by `PostgreSQL`'s protocol, and what their errors mean.

use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error};

use crate::history::{Failure, Outcome};

use super::sessions::{ConnectError, Sessions};
use super::{Shared, WriteStyle};

/// Table of inserts. It has no unique key: an insert that is applied twice must show.
pub(super) const WRITES: &str = "writes";

/// Table with the one row that all writers share.
pub(super) const HOT: &str = "hot";

/// `applied_at` is the clock of the server's machine, which is ours, at the time of execution; the server keeps when it
/// committed.
pub(super) const SCHEMA: &str = "
CREATE TABLE items (id int PRIMARY KEY, payload text NOT NULL);
INSERT INTO items SELECT n, repeat('x', 200) FROM generate_series(1, 1000) n;
CREATE TABLE writes (key bigint NOT NULL, applied_at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE TABLE hot (id int PRIMARY KEY, key bigint NOT NULL);
INSERT INTO hot VALUES (1, 0);
";

const INSERT: &str = "INSERT INTO writes (key) VALUES ($1)";
/// Its key is on record like any other, as soon as the row could be had.
const UPDATE: &str = "WITH had AS (UPDATE hot SET key = $1 WHERE id = 1 RETURNING key) INSERT INTO writes (key) SELECT key FROM had";

/// What of a write had been sent when it broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// Nothing that could commit.
    Nothing,
    /// Something that commits by itself, or COMMIT.
    Commit,
}

pub(super) async fn read(shared: &Shared, sessions: &Sessions, id: u64) {
    let Some(mut session) = sessions.take().await else { return };
    shared.recorder.sent(id);
    let outcome = match session.client().await {
        Ok(client) => read_one(client, shared.options.read_ms, id).await,
        Err(error) => not_connected(error),
    };
    shared.recorder.end(id, outcome);
}

async fn read_one(client: &Client, busy_ms: u64, id: u64) -> Outcome {
    let result = if busy_ms == 0 {
        let item = i32::try_from(id % 1000).unwrap_or(0) + 1;
        client.query_typed("SELECT payload FROM items WHERE id = $1", &[(&item, Type::INT4)]).await
    } else {
        let seconds = std::time::Duration::from_millis(busy_ms).as_secs_f64();
        client.query_typed("SELECT pg_sleep($1)", &[(&seconds, Type::FLOAT8)]).await
    };
    result.map_or_else(|error| outcome_of(&error, Sent::Nothing), |_| Outcome::Ok)
}

pub(super) async fn write(shared: &Shared, sessions: &Sessions, id: u64, table: &str, key: i64) {
    let Some(mut session) = sessions.take().await else { return };
    shared.recorder.sent(id);
    let statement = if table == HOT { UPDATE } else { INSERT };
    let in_transaction = match shared.options.write_style {
        WriteStyle::Autocommit => false,
        WriteStyle::Transaction => true,
        WriteStyle::Mixed => key % 2 == 0,
    };
    let (outcome, clean) = match session.client().await {
        Err(error) => (not_connected(error), true),
        Ok(client) if in_transaction => transaction(client, statement, key).await,
        Ok(client) => (autocommit(client, statement, key).await, true),
    };
    if !clean {
        session.discard();
    }
    shared.recorder.end(id, outcome);
}

async fn autocommit(client: &Client, statement: &str, key: i64) -> Outcome {
    let result = client.execute_typed(statement, &[(&key as &(dyn ToSql + Sync), Type::INT8)]).await;
    result.map_or_else(|error| outcome_of(&error, Sent::Commit), |_| Outcome::Ok)
}

/// Also says whether the session can be used again.
async fn transaction(client: &Client, statement: &str, key: i64) -> (Outcome, bool) {
    if let Err(error) = client.batch_execute("BEGIN").await {
        return (outcome_of(&error, Sent::Nothing), !client.is_closed());
    }
    let inserted = client.execute_typed(statement, &[(&key as &(dyn ToSql + Sync), Type::INT8)]).await;
    if let Err(error) = inserted {
        let clean = client.batch_execute("ROLLBACK").await.is_ok();
        return (outcome_of(&error, Sent::Nothing), clean);
    }
    match client.batch_execute("COMMIT").await {
        Ok(()) => (Outcome::Ok, true),
        Err(error) => (outcome_of(&error, Sent::Commit), false),
    }
}

fn not_connected(error: ConnectError) -> Outcome {
    match error {
        ConnectError::Late => Outcome::Fail(Failure::local("no connection in time")),
        ConnectError::Refused(error) => Outcome::Fail(failure_of(&error)),
    }
}

/// As an application must read it: what is not certain is unknown.
fn outcome_of(error: &Error, sent: Sent) -> Outcome {
    let failure = failure_of(error);
    let certain = match (sent, failure.field("outcome"), error.code()) {
        (Sent::Nothing, ..) | (Sent::Commit, Some("not_sent" | "rolled_back"), _) => true,
        (Sent::Commit, Some(_), _) | (Sent::Commit, None, None) => false,
        (Sent::Commit, None, Some(code)) => says_not_applied(code),
    };
    if certain { Outcome::Fail(failure) } else { Outcome::Unknown(failure) }
}

/// Errors after which `PostgreSQL` guarantees that nothing was committed: those that a statement raises
/// before its commit. Classes 08, 57P0x, 58 and XX may come after it.
fn says_not_applied(code: &SqlState) -> bool {
    const CLASSES: [&str; 11] = ["22", "23", "25", "28", "3D", "40", "42", "53", "54", "55", "0A"];
    let code = code.code();
    code == "57014" || code == "57P03" || CLASSES.iter().any(|class| code.starts_with(class))
}

fn failure_of(error: &Error) -> Failure {
    let Some(told) = error.as_db_error() else {
        let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
        return Failure::local(format!("{error}{}", cause.unwrap_or_default()));
    };
    Failure {
        sqlstate: Some(told.code().code().to_owned()),
        status: None,
        message: told.message().to_owned(),
        detail: told.detail().map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shutdown_leaves_a_commit_unknown_and_a_cancel_does_not() {
        // 57P01 reaches a session that waits for its standby after it committed; 57014 never does.
        assert!(!says_not_applied(&SqlState::ADMIN_SHUTDOWN));
        assert!(!says_not_applied(&SqlState::TRANSACTION_RESOLUTION_UNKNOWN));
        assert!(says_not_applied(&SqlState::QUERY_CANCELED));
        assert!(says_not_applied(&SqlState::READ_ONLY_SQL_TRANSACTION));
    }
}
