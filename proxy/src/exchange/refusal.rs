//! Why an application is refused, and the one place that decides how it is told.
//!
//! The contract: SQLSTATE, `tidegate: <sentence>`, DETAIL as `key=value` pairs, HINT for a human. A refused
//! statement never reached PostgreSQL unless its outcome says otherwise.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::ConnectError;
use crate::wire::{ErrorMessage, Severity, SqlState};

/// What became of the refused or broken statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// PostgreSQL never saw it.
    NotSent,
    /// Nothing of it can be durable.
    RolledBack,
    /// Nobody can tell here.
    Unknown,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::NotSent => "not_sent",
            Self::RolledBack => "rolled_back",
            Self::Unknown => "unknown",
        }
    }
}

/// See the module documentation.
#[derive(Debug, Clone)]
pub enum Refusal {
    /// Too many are waiting already.
    QueueFull {
        /// How many wait.
        waiting: usize,
    },
    /// Waited for a backend as long as configured.
    QueueTimeout {
        /// How long.
        waited: Duration,
    },
    /// No server can be reached.
    NoUpstream {
        /// What the last attempt met.
        cause: Arc<ConnectError>,
        /// When the next attempt is made.
        retry_after: Duration,
    },
    /// The server refuses this user or database.
    LoginRefused(Arc<ConnectError>),
    /// The application cancelled while it waited.
    Cancelled,
    /// The connection to PostgreSQL broke while a statement ran.
    BackendLost {
        /// What can be said of the statement.
        outcome: Outcome,
    },
    /// A statement in a transaction whose backend is gone.
    TransactionLost,
    /// Idle inside a transaction for too long.
    IdleInTransaction,
    /// Idle for too long.
    IdleSession,
    /// We are shutting down.
    Drain,
    /// An administrator ended the session.
    Killed,
    /// The sessions that we allow are all in use.
    TooManySessions {
        /// The limit.
        limit: usize,
    },
    /// The application broke the protocol.
    Protocol(String),
    /// More prepared statements than a session may have.
    TooManyStatements {
        /// The limit.
        limit: usize,
    },
}

/// The words of a refusal.
struct Words {
    severity: Severity,
    code: SqlState,
    message: String,
    detail: String,
    hint: &'static str,
}

impl Refusal {
    /// Appends the refusal as an `ErrorResponse`; `upstream` names the server that it is about.
    pub fn put(&self, upstream: &str, out: &mut Vec<u8>) {
        let words = self.words(upstream);
        ErrorMessage {
            severity: words.severity,
            code: words.code,
            message: &words.message,
            detail: &words.detail,
            hint: words.hint,
        }
        .put(out);
    }

    /// As [`Refusal::put`], always ending the session: there is none yet during login.
    pub fn put_fatal(&self, upstream: &str, out: &mut Vec<u8>) {
        let words = self.words(upstream);
        ErrorMessage {
            severity: Severity::Fatal,
            code: words.code,
            message: &words.message,
            detail: &words.detail,
            hint: words.hint,
        }
        .put(out);
    }

    /// Whether the session ends with it.
    pub fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::IdleInTransaction
                | Self::IdleSession
                | Self::Drain
                | Self::Killed
                | Self::TooManySessions { .. }
                | Self::Protocol(_)
        )
    }

    /// The value of `reason` in DETAIL, also the label of metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::QueueFull { .. } => "queue_full",
            Self::QueueTimeout { .. } => "queue_timeout",
            Self::NoUpstream { .. } => "no_upstream",
            Self::LoginRefused(_) => "login_refused",
            Self::Cancelled => "cancelled",
            Self::BackendLost { outcome: Outcome::Unknown } => "commit_unresolved",
            Self::BackendLost { .. } => "backend_lost",
            Self::TransactionLost => "transaction_lost",
            Self::IdleInTransaction => "idle_in_transaction",
            Self::IdleSession => "idle_session",
            Self::Drain => "drain",
            Self::Killed => "killed",
            Self::TooManySessions { .. } => "max_sessions",
            Self::Protocol(_) => "protocol",
            Self::TooManyStatements { .. } => "prepared_statements",
        }
    }

    fn words(&self, upstream: &str) -> Words {
        let severity = if self.is_fatal() { Severity::Fatal } else { Severity::Error };
        let (code, message, outcome, hint) = self.contract();
        let mut detail = format!("reason={} upstream={upstream}", self.reason());
        if let Self::NoUpstream { cause, .. } = self {
            let _ = write!(detail, " cause={}", cause_word(cause));
        }
        if let Some(outcome) = outcome {
            let _ = write!(detail, " outcome={}", outcome.word());
        }
        if let Some(after) = self.retry_after() {
            let _ = write!(detail, " retry_after_ms={}", after.as_millis().max(1));
        }
        Words { severity, code, message: format!("tidegate: {message}"), detail, hint }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::QueueFull { .. } => Some(Duration::from_millis(100)),
            Self::QueueTimeout { waited } => Some(*waited),
            Self::NoUpstream { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }

    fn contract(&self) -> (SqlState, String, Option<Outcome>, &'static str) {
        use Outcome::{NotSent, RolledBack, Unknown};
        match self {
            Self::QueueFull { waiting } => (
                SqlState::TOO_MANY_CONNECTIONS,
                format!("too many statements wait for a backend ({waiting})"),
                Some(NotSent),
                "The statement was not sent; try again after retry_after_ms. Raise pool.size if the database has room.",
            ),
            Self::QueueTimeout { waited } => (
                SqlState::TOO_MANY_CONNECTIONS,
                format!("no backend became free within {} ms", waited.as_millis()),
                Some(NotSent),
                "The statement was not sent; try again. Look for long transactions, or raise pool.size or timeouts.queue.",
            ),
            Self::NoUpstream { cause, .. } => (
                SqlState::INSUFFICIENT_RESOURCES,
                format!("no connection to PostgreSQL: {cause}"),
                Some(NotSent),
                "The statement was not sent; try again after retry_after_ms. Check that the server runs and is reachable from here.",
            ),
            Self::LoginRefused(cause) => (
                login_code(cause),
                format!("PostgreSQL cannot be logged in to: {cause}"),
                Some(NotSent),
                "Check the database name, the user's secret in the userlist or auth_query, and pg_hba.conf.",
            ),
            Self::Cancelled => (
                SqlState::QUERY_CANCELED,
                "canceling statement due to user request".to_owned(),
                Some(NotSent),
                "",
            ),
            Self::BackendLost { outcome: Unknown } => (
                SqlState::TRANSACTION_RESOLUTION_UNKNOWN,
                "the connection to PostgreSQL broke before the outcome was confirmed".to_owned(),
                Some(Unknown),
                "The statement may or may not be durable. Retry only what is idempotent.",
            ),
            Self::BackendLost { outcome } => (
                SqlState::TRANSACTION_ROLLBACK,
                "the connection to PostgreSQL broke, nothing was committed".to_owned(),
                Some(*outcome),
                "The transaction is rolled back and can be tried again.",
            ),
            Self::TransactionLost => (
                SqlState::IN_FAILED_SQL_TRANSACTION,
                "current transaction is aborted, commands ignored until end of transaction block".to_owned(),
                Some(RolledBack),
                "Send ROLLBACK, then try the transaction again.",
            ),
            Self::IdleInTransaction => (
                SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
                "terminating connection due to idle-in-transaction timeout".to_owned(),
                Some(RolledBack),
                "See timeouts.idle_in_transaction.",
            ),
            Self::IdleSession => (
                SqlState::IDLE_SESSION_TIMEOUT,
                "terminating connection due to idle-session timeout".to_owned(),
                None,
                "See timeouts.idle_session.",
            ),
            Self::Drain => {
                (SqlState::ADMIN_SHUTDOWN, "the sidecar is shutting down".to_owned(), None, "Connect again.")
            }
            Self::Killed => (
                SqlState::ADMIN_SHUTDOWN,
                "terminating connection due to administrator command".to_owned(),
                None,
                "",
            ),
            Self::TooManySessions { limit } => (
                SqlState::TOO_MANY_CONNECTIONS,
                format!("all {limit} sessions are in use"),
                Some(NotSent),
                "See listen.max_sessions.",
            ),
            Self::Protocol(what) => (SqlState::PROTOCOL_VIOLATION, what.clone(), None, ""),
            Self::TooManyStatements { limit } => (
                SqlState::CONFIGURATION_LIMIT_EXCEEDED,
                format!("the session has {limit} prepared statements already"),
                Some(NotSent),
                "Close prepared statements that are no longer used.",
            ),
        }
    }
}

/// The SQLSTATE of a login that the server refused: its own where it gave one.
fn login_code(cause: &ConnectError) -> SqlState {
    match cause {
        ConnectError::Server(error) => error.code,
        _ => SqlState::INVALID_AUTHORIZATION,
    }
}

fn cause_word(cause: &ConnectError) -> &'static str {
    match cause {
        ConnectError::Timeout => "frozen",
        ConnectError::NoCredential(_) | ConnectError::Scram(_) => "auth",
        ConnectError::Server(error) if error.code == SqlState::TOO_MANY_CONNECTIONS => "overload",
        ConnectError::Server(error) if &error.code.class() == b"28" => "auth",
        _ => "unreachable",
    }
}
