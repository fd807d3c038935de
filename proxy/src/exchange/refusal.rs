//! Why an application is refused, and the one place that decides how it is told.
//!
//! The contract: SQLSTATE, `tidegate: <sentence>`, DETAIL as `key=value` pairs, HINT for a human. A refused
//! statement never reached PostgreSQL unless its outcome says otherwise.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use tidegate_layers::shed::Reason;

use super::{Cause, Diagnosis};
use crate::backend::ConnectError;
use crate::sql::Lane;
use crate::upstream::{Lsn, WhyNot};
use crate::wire::{ErrorMessage, Severity, SqlState};

/// What became of the refused or broken statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// PostgreSQL never saw it.
    NotSent,
    /// Nothing of it can be durable.
    RolledBack,
    /// Durable.
    Committed,
    /// Durable on the primary and on no synchronous standby.
    CommittedUnreplicated,
    /// Nobody can tell here.
    Unknown,
}

impl Outcome {
    /// The value of `outcome` in DETAIL, also a label of metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::NotSent => "not_sent",
            Self::RolledBack => "rolled_back",
            Self::Committed => "committed",
            Self::CommittedUnreplicated => "committed_unreplicated",
            Self::Unknown => "unknown",
        }
    }
}

/// What identifies a transaction for those who want to ask the server themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Its id, with the epoch: `SELECT txid_status(...)`.
    pub xid: u64,
    /// A position of the WAL within it.
    pub lsn: Lsn,
    /// The server process that ran it.
    pub process_id: u32,
}

/// Which deadline passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deadline {
    /// Of an exchange in the read lane.
    Read,
    /// Of an exchange in the write lane.
    Write,
    /// Of the whole transaction.
    Transaction,
}

impl Deadline {
    /// The value of `reason`.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Read => "read_timeout",
            Self::Write => "write_timeout",
            Self::Transaction => "transaction_timeout",
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Read => "read timeout",
            Self::Write => "write timeout",
            Self::Transaction => "transaction timeout",
        }
    }
}

/// A statement that took too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimedOut {
    /// Which deadline it was.
    pub deadline: Deadline,
    /// The lane that it ran in.
    pub lane: Lane,
    /// What it waited for.
    pub cause: Cause,
    /// The server processes that held the lock.
    pub blockers: Arc<[u32]>,
}

impl TimedOut {
    /// What DETAIL says of it.
    pub fn detail(&self, upstream: &str) -> String {
        let mut detail = format!(
            "reason={} lane={} upstream={upstream} outcome=rolled_back",
            self.deadline.reason(),
            self.lane.word()
        );
        if self.cause != Cause::Unknown {
            let _ = write!(detail, " cause={}", self.cause);
        }
        for (index, blocker) in self.blockers.iter().enumerate() {
            let _ = write!(detail, "{}{blocker}", if index == 0 { " blocked_by=" } else { "," });
        }
        detail
    }

    /// What the server was told to do: its own words blame the user.
    pub fn message(&self) -> String {
        format!("canceling statement due to {}", self.deadline.words())
    }

    /// What a developer or operator can do.
    pub fn hint(&self) -> &'static str {
        match self.cause {
            Cause::Lock if !self.blockers.is_empty() => {
                "Another session holds the lock: see blocked_by. It is safe to try again."
            }
            _ => {
                "It is safe to try again. Timeouts are set in [timeouts], by rules, or by SET tidegate.write_timeout and the like."
            }
        }
    }
}

/// See the module documentation.
#[derive(Debug, Clone)]
pub enum Refusal {
    /// Refused for load, while it waited or before.
    Shed {
        /// Its lane.
        lane: Lane,
        /// Why.
        reason: Reason,
        /// How long the load is expected to last.
        retry_after: Duration,
    },
    /// The breaker of its lane is open.
    BreakerOpen {
        /// The lane.
        lane: Lane,
        /// What is wrong, as far as it is known.
        cause: Option<Arc<Diagnosis>>,
        /// When it may be let through, at the earliest.
        retry_after: Duration,
    },
    /// The pool is paused by an operator.
    Paused {
        /// Its lane.
        lane: Lane,
        /// When to try again.
        retry_after: Duration,
    },
    /// A deadline passed, and nothing of it is or can become durable.
    TimedOut(TimedOut),
    /// A deadline passed, or the connection broke, while a commit was under way.
    CommitUnresolved {
        /// Why it was not confirmed.
        cause: Cause,
        /// `Committed` where that is known, and only the rest of the answer is lost.
        outcome: Outcome,
        /// Which transaction it is.
        known: Option<Known>,
    },
    /// A commit broke, and nothing of it is or can become durable.
    CommitRolledBack {
        /// Which transaction it was.
        known: Option<Known>,
    },
    /// Committed on the primary, and on no synchronous standby.
    CommittedUnreplicated,
    /// No server can be reached.
    NoUpstream {
        /// The lane that would have needed it.
        lane: Lane,
        /// What the last attempt met.
        cause: Arc<ConnectError>,
        /// When the next attempt is made.
        retry_after: Duration,
    },
    /// No server may run it now, as far as the servers' roles are known.
    NoServer {
        /// Its lane.
        lane: Lane,
        /// Why there is none.
        why: WhyNot,
        /// When to try again.
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
    /// The connection to PostgreSQL was lost when all that the session had sent was answered, and the session cannot go on
    /// without it.
    SessionLost,
    /// A statement in a transaction whose backend is gone.
    TransactionLost,
    /// Idle inside a transaction for too long.
    IdleInTransaction,
    /// Idle for too long.
    IdleSession,
    /// We are shutting down: the session is idle, or its time to finish is over.
    Drain {
        /// What became of what it was doing.
        outcome: Outcome,
    },
    /// An operator ends the session.
    Killed {
        /// What became of what it was doing.
        outcome: Outcome,
    },
    /// The sessions that we allow are all in use.
    TooManySessions {
        /// The limit.
        limit: usize,
    },
    /// The application broke the protocol.
    Protocol(String),
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
                | Self::SessionLost
                | Self::Drain { .. }
                | Self::Killed { .. }
                | Self::TooManySessions { .. }
                | Self::Protocol(_)
        )
    }

    /// The value of `reason` in DETAIL, also the label of metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Shed { reason, .. } => shed_word(*reason),
            Self::BreakerOpen { .. } => "breaker_open",
            Self::Paused { .. } => "paused",
            Self::TimedOut(timed_out) => timed_out.deadline.reason(),
            Self::CommittedUnreplicated => "committed_unreplicated",
            Self::NoUpstream { .. } | Self::NoServer { .. } => "no_upstream",
            Self::LoginRefused(_) => "login_refused",
            Self::Cancelled => "cancelled",
            Self::CommitUnresolved { .. } | Self::BackendLost { outcome: Outcome::Unknown } => {
                "commit_unresolved"
            }
            Self::CommitRolledBack { .. } => "commit_rolled_back",
            Self::BackendLost { .. } => "backend_lost",
            Self::SessionLost => "session_lost",
            Self::TransactionLost => "transaction_lost",
            Self::IdleInTransaction => "idle_in_transaction",
            Self::IdleSession => "idle_session",
            Self::Drain { .. } => "drain",
            Self::Killed { .. } => "killed",
            Self::TooManySessions { .. } => "max_sessions",
            Self::Protocol(_) => "protocol",
        }
    }

    fn words(&self, upstream: &str) -> Words {
        let severity = if self.is_fatal() { Severity::Fatal } else { Severity::Error };
        let (code, message, hint) = self.contract();
        if let Self::TimedOut(timed_out) = self {
            let message = format!("tidegate: {message}");
            return Words { severity, code, message, detail: timed_out.detail(upstream), hint };
        }
        let mut detail = format!("reason={}", self.reason());
        if let Some(lane) = self.lane() {
            let _ = write!(detail, " lane={}", lane.word());
        }
        let _ = write!(detail, " upstream={upstream}");
        if let Some(cause) = self.cause() {
            let _ = write!(detail, " cause={cause}");
        }
        if let Some(outcome) = self.outcome() {
            let _ = write!(detail, " outcome={}", outcome.word());
        }
        if let Some(after) = self.retry_after() {
            let _ = write!(detail, " retry_after_ms={}", after.as_millis().max(1));
        }
        if let Some(Known { xid, lsn, process_id }) = self.known() {
            let _ = write!(detail, " xid={xid} lsn={lsn} pid={process_id}");
        }
        Words { severity, code, message: format!("tidegate: {message}"), detail, hint }
    }

    fn known(&self) -> Option<Known> {
        match self {
            Self::CommitUnresolved { known, .. } | Self::CommitRolledBack { known } => *known,
            _ => None,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Shed { retry_after, .. }
            | Self::BreakerOpen { retry_after, .. }
            | Self::Paused { retry_after, .. }
            | Self::NoUpstream { retry_after, .. }
            | Self::NoServer { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }

    /// The lane that it is about, where the refusal itself knows it.
    pub fn lane(&self) -> Option<Lane> {
        match self {
            Self::Shed { lane, .. }
            | Self::BreakerOpen { lane, .. }
            | Self::Paused { lane, .. }
            | Self::NoUpstream { lane, .. }
            | Self::NoServer { lane, .. } => Some(*lane),
            Self::TimedOut(timed_out) => Some(timed_out.lane),
            Self::CommitUnresolved { .. } | Self::CommitRolledBack { .. } | Self::CommittedUnreplicated => {
                Some(Lane::Write)
            }
            _ => None,
        }
    }

    fn cause(&self) -> Option<Cause> {
        match self {
            Self::BreakerOpen { cause, .. } => {
                Some(cause.as_ref().map_or(Cause::Unknown, |known| known.cause))
            }
            Self::NoServer { why, .. } => Some(why.cause()),
            Self::NoUpstream { cause, .. } => Some(cause_of(cause)),
            // Whatever it refuses, it is there.
            Self::LoginRefused(_) => Some(Cause::Auth),
            Self::CommitUnresolved { cause, .. } => Some(*cause).filter(|cause| *cause != Cause::Unknown),
            Self::CommittedUnreplicated => Some(Cause::SyncStandby),
            _ => None,
        }
    }

    /// Whether another server may do what this one did not.
    pub fn is_about_server(&self) -> bool {
        matches!(self, Self::Shed { .. } | Self::BreakerOpen { .. } | Self::NoUpstream { .. })
    }

    /// What a breaker says when it refuses.
    pub fn breaker_open(lane: Lane, open: crate::guard::Refused) -> Self {
        Self::BreakerOpen { lane, cause: open.cause, retry_after: open.retry_after }
    }

    /// What became of the statement; `None` where there was none.
    pub fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Shed { .. }
            | Self::BreakerOpen { .. }
            | Self::Paused { .. }
            | Self::NoUpstream { .. }
            | Self::NoServer { .. }
            | Self::LoginRefused(_)
            | Self::Cancelled
            | Self::TooManySessions { .. } => Some(Outcome::NotSent),
            Self::TimedOut(_)
            | Self::TransactionLost
            | Self::IdleInTransaction
            | Self::IdleSession
            | Self::CommitRolledBack { .. } => Some(Outcome::RolledBack),
            Self::CommitUnresolved { outcome, .. }
            | Self::BackendLost { outcome }
            | Self::Drain { outcome }
            | Self::Killed { outcome } => Some(*outcome),
            Self::CommittedUnreplicated => Some(Outcome::CommittedUnreplicated),
            Self::SessionLost | Self::Protocol(_) => None,
        }
    }

    /// Whether it is about something that is committed.
    pub fn is_durable(&self) -> bool {
        matches!(self.outcome(), Some(Outcome::Committed | Outcome::CommittedUnreplicated))
    }

    fn contract(&self) -> (SqlState, String, &'static str) {
        match self {
            Self::Shed { reason, .. } => shed_contract(*reason),
            Self::BreakerOpen { lane, cause, .. } => (
                SqlState::INSUFFICIENT_RESOURCES,
                format!("{}s are not served now: {}", lane.word(), what_is_wrong(cause.as_deref())),
                open_hint(cause.as_deref()),
            ),
            Self::Paused { .. } => (
                SqlState::INSUFFICIENT_RESOURCES,
                "the pool is paused".to_owned(),
                "The statement was not sent; try again after retry_after_ms. An operator has paused this pool and can resume it.",
            ),
            Self::TimedOut(timed_out) => (SqlState::QUERY_CANCELED, timed_out.message(), timed_out.hint()),
            Self::CommitUnresolved { outcome: Outcome::Committed, .. } => (
                SqlState::TRANSACTION_RESOLUTION_UNKNOWN,
                "committed, but the rest of the answer is lost".to_owned(),
                "It is durable. Do not send it again.",
            ),
            Self::CommitRolledBack { .. } => (
                SqlState::TRANSACTION_ROLLBACK,
                "the commit broke, and the transaction is rolled back".to_owned(),
                "Nothing of it is durable. It is safe to try again.",
            ),
            Self::CommitUnresolved { .. } => (
                SqlState::TRANSACTION_RESOLUTION_UNKNOWN,
                "the commit was not confirmed in time".to_owned(),
                "It may be durable, or become so. Retry only what is idempotent.",
            ),
            Self::CommittedUnreplicated => (
                SqlState::TRANSACTION_RESOLUTION_UNKNOWN,
                "committed, but no synchronous standby has confirmed it".to_owned(),
                "It is durable on the primary only and would be lost in a failover. Retry only what is idempotent.",
            ),
            Self::NoUpstream { cause, .. } => {
                (SqlState::INSUFFICIENT_RESOURCES, no_connection(cause), no_connection_hint(cause))
            }
            Self::NoServer { why, .. } => no_server_contract(*why),
            Self::LoginRefused(cause) => (
                login_code(cause),
                format!("PostgreSQL cannot be logged in to: {}", cause.in_full()),
                login_hint(cause),
            ),
            Self::Cancelled => {
                let hint = "The statement was not sent; it waited for a backend.";
                (SqlState::QUERY_CANCELED, "canceling statement due to user request".to_owned(), hint)
            }
            Self::BackendLost { outcome: Outcome::Unknown } => (
                SqlState::TRANSACTION_RESOLUTION_UNKNOWN,
                "the connection to PostgreSQL broke before the outcome was confirmed".to_owned(),
                "The statement may or may not be durable. Retry only what is idempotent.",
            ),
            Self::SessionLost => (
                SqlState::CONNECTION_FAILURE,
                "the connection to PostgreSQL was lost when everything was answered".to_owned(),
                "What was committed is durable; what the session had in its backend is gone. Connect again.",
            ),
            Self::BackendLost { .. } => (
                SqlState::TRANSACTION_ROLLBACK,
                "the connection to PostgreSQL broke, nothing was committed".to_owned(),
                "The transaction is rolled back and can be tried again.",
            ),
            Self::TransactionLost => (
                SqlState::IN_FAILED_SQL_TRANSACTION,
                "current transaction is aborted, commands ignored until end of transaction block".to_owned(),
                "Send ROLLBACK, then try the transaction again.",
            ),
            Self::IdleInTransaction => (
                SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
                "terminating connection due to idle-in-transaction timeout".to_owned(),
                "See timeouts.idle_in_transaction.",
            ),
            Self::IdleSession => (
                SqlState::IDLE_SESSION_TIMEOUT,
                "terminating connection due to idle-session timeout".to_owned(),
                "See timeouts.idle_session.",
            ),
            Self::Drain { .. } => {
                (SqlState::ADMIN_SHUTDOWN, "the sidecar is shutting down".to_owned(), "Connect again.")
            }
            Self::Killed { .. } => (
                SqlState::ADMIN_SHUTDOWN,
                "terminating connection due to administrator command".to_owned(),
                "An operator has ended this session. Connect again.",
            ),
            Self::TooManySessions { limit } => (
                SqlState::TOO_MANY_CONNECTIONS,
                format!("all {limit} sessions are in use"),
                "See listen.max_sessions.",
            ),
            Self::Protocol(what) => (
                SqlState::PROTOCOL_VIOLATION,
                what.clone(),
                "The application, or something between it and here, does not speak PostgreSQL's protocol as it should.",
            ),
        }
    }
}

fn no_server_contract(why: WhyNot) -> (SqlState, String, &'static str) {
    let hint = match why {
        WhyNot::Late => {
            "The statement was not sent; try again after retry_after_ms. Look at pg_stat_replication on the primary, or raise read.max_lag."
        }
        WhyNot::NoPrimary { .. }
        | WhyNot::Unproven { .. }
        | WhyNot::SplitBrain
        | WhyNot::NoStandby
        | WhyNot::NotCaughtUp => {
            "The statement was not sent; try again after retry_after_ms. Who is the primary is found out all the time; the journal says what was decided."
        }
    };
    (SqlState::INSUFFICIENT_RESOURCES, why.to_string(), hint)
}

fn no_connection(cause: &ConnectError) -> String {
    match cause {
        ConnectError::Unsettled => {
            "the statement was not sent: PostgreSQL does not answer, or the connection to it broke".to_owned()
        }
        cause => format!("no connection to PostgreSQL: {}", cause.in_full()),
    }
}

fn no_connection_hint(cause: &ConnectError) -> &'static str {
    match cause {
        ConnectError::Unsettled => {
            "Try again after retry_after_ms. The settings of this session had to be sent to a backend first, and were not confirmed in time. If it goes on the breaker opens, and errors name the cause."
        }
        ConnectError::Handshake(_) => {
            "The statement was not sent; try again after retry_after_ms. Check cluster.tls, and ssl and the log of the server."
        }
        ConnectError::Server(error) if error.code == SqlState::TOO_MANY_CONNECTIONS => {
            "The statement was not sent; try again after retry_after_ms. Compare max_connections of the server with pool.max_per_upstream of all sidecars."
        }
        _ => {
            "The statement was not sent; try again after retry_after_ms. Check that the server runs and is reachable from here."
        }
    }
}

/// What to look at when a login was refused, by what it was refused for.
fn login_hint(cause: &ConnectError) -> &'static str {
    match cause {
        ConnectError::TlsUnsupported => {
            "Set ssl = on at the server, or lower cluster.tls (sslmode of --upstream)."
        }
        ConnectError::Tls(_) | ConnectError::Handshake(_) => {
            "Check cluster.tls and the files that cluster.tls_ca, tls_cert and tls_key name, and the certificate of the server."
        }
        ConnectError::Server(error) if error.code == SqlState::INVALID_CATALOG_NAME => {
            "Check the database name that the application connects with."
        }
        ConnectError::Server(error) if error.code == SqlState::INSUFFICIENT_PRIVILEGE => {
            "The user may not connect to this database: see GRANT CONNECT ON DATABASE."
        }
        _ => "Check the user's secret in the userlist or auth_query, the database name, and pg_hba.conf.",
    }
}

/// The SQLSTATE of a login that the server refused: its own where it gave one.
fn login_code(cause: &ConnectError) -> SqlState {
    match cause {
        ConnectError::Server(error) => error.code,
        _ => SqlState::INVALID_AUTHORIZATION,
    }
}

fn cause_of(error: &ConnectError) -> Cause {
    match error {
        ConnectError::Timeout => Cause::Frozen,
        // Broken or silent.
        ConnectError::Unsettled => Cause::Unknown,
        ConnectError::NoCredential(_)
        | ConnectError::Scram(_)
        | ConnectError::Tls(_)
        | ConnectError::TlsUnsupported
        | ConnectError::Handshake(_) => Cause::Auth,
        ConnectError::Server(error) if error.code == SqlState::TOO_MANY_CONNECTIONS => Cause::Overload,
        ConnectError::Server(error) if &error.code.class() == b"28" => Cause::Auth,
        _ => Cause::Unreachable,
    }
}

/// The value of `reason` for a refusal by load.
fn shed_word(reason: Reason) -> &'static str {
    match reason {
        // A queue is emptied when its breaker opens; whoever finds it closed again can simply try again.
        Reason::Flushed => Reason::QueueTimeout.name(),
        reason => reason.name(),
    }
}

fn shed_contract(reason: Reason) -> (SqlState, String, &'static str) {
    let (message, hint) = match reason {
        Reason::QueueFull => (
            "too many statements wait for a backend",
            "The statement was not sent; try again after retry_after_ms. Raise pool.size if the database has room.",
        ),
        Reason::QueueTimeout | Reason::Flushed => (
            "no backend became free in time",
            "The statement was not sent; try again. Look for long transactions, or raise pool.size or timeouts.queue.",
        ),
        Reason::Limit => (
            "no backend is free and none may be waited for",
            "The statement was not sent; try again after retry_after_ms.",
        ),
        Reason::Priority => (
            "more important work comes first",
            "The statement was not sent; try again after retry_after_ms. See tidegate.priority.",
        ),
        Reason::Deadline => {
            ("the deadline is too near to be met", "The statement was not sent. See tidegate.deadline_ms.")
        }
    };
    (SqlState::TOO_MANY_CONNECTIONS, message.to_owned(), hint)
}

fn open_hint(diagnosis: Option<&Diagnosis>) -> &'static str {
    match diagnosis.map(|known| known.cause) {
        Some(Cause::Forced) => {
            "The statement was not sent; try again after retry_after_ms. An operator has ordered this and can take it back: POST /lanes/{read|write}/auto."
        }
        _ => {
            "The statement was not sent; try again after retry_after_ms. Traffic returns by itself when probes succeed."
        }
    }
}

/// One sentence for people.
fn what_is_wrong(diagnosis: Option<&Diagnosis>) -> String {
    let Some(diagnosis) = diagnosis else { return "the cause is being looked for".to_owned() };
    if !diagnosis.evidence.is_empty() {
        return diagnosis.evidence.to_string();
    }
    diagnosis.cause.sentence().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::ServerError;

    fn server(code: SqlState) -> ConnectError {
        ConnectError::Server(ServerError { code, message: "no".to_owned(), fatal: true })
    }

    #[test]
    fn the_hint_of_a_refused_login_is_about_what_it_was_refused_for() {
        // Seen: a server without TLS, and advice to check the password.
        for (error, right, wrong) in [
            (ConnectError::TlsUnsupported, "cluster.tls", "secret"),
            (ConnectError::Handshake(std::io::ErrorKind::InvalidData.into()), "cluster.tls_ca", "secret"),
            (server(SqlState::INVALID_CATALOG_NAME), "database name", "secret"),
            (server(SqlState::INSUFFICIENT_PRIVILEGE), "GRANT CONNECT", "secret"),
            (server(SqlState::INVALID_PASSWORD), "secret in the userlist", "cluster.tls"),
            (server(SqlState::INVALID_AUTHORIZATION), "pg_hba.conf", "cluster.tls"),
            (ConnectError::NoCredential("a proof"), "secret in the userlist", "cluster.tls"),
        ] {
            let words = Refusal::LoginRefused(Arc::new(error)).words("db:5432");

            assert!(words.hint.contains(right) && !words.hint.contains(wrong), "{}", words.hint);
            assert!(words.detail.contains("cause=auth"), "{}", words.detail);
        }
    }

    #[test]
    fn who_has_no_connection_is_told_so_in_words_of_its_own_world() {
        // Seen as the first error of a stall: "the settings of the session could not be brought to it".
        let of = |cause| {
            let cause = Arc::new(cause);
            Refusal::NoUpstream { lane: Lane::Read, cause, retry_after: Duration::from_secs(1) }.words("db")
        };

        let silent = of(ConnectError::Unsettled);
        let full = of(server(SqlState::TOO_MANY_CONNECTIONS));

        assert_eq!(
            silent.message,
            "tidegate: the statement was not sent: PostgreSQL does not answer, or the connection to it broke"
        );
        assert!(silent.detail.contains("outcome=not_sent"), "{}", silent.detail);
        assert!(full.hint.contains("max_connections"), "{}", full.hint);
    }
}
