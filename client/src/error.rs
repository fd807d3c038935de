//! Errors that an application can act on.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use tidegate_layers::{CircuitOpen, Overloaded};
use tokio_postgres::error::SqlState;

use crate::connector::ConnectError;
use crate::detail::Detail;
use crate::words::{Cause, Lane, Outcome};

/// What an error is, as far as an application treats it differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Refused for load, here or by the sidecar: the queue is full, or the wait took too long.
    Overloaded,
    /// Refused at once because the lane is known not to work, here or by the sidecar.
    BreakerOpen,
    /// No connection could be made.
    Connect,
    /// A deadline passed.
    Timeout,
    /// Lost against another transaction (40001, 40P01): do it again.
    Conflict,
    /// The server takes no writes (25006).
    ReadOnly,
    /// The connection broke.
    ConnectionLost,
    /// A COMMIT whose outcome is not simply "committed" or "rolled back".
    CommitUnknown,
    /// The transaction was rolled back before or instead of its COMMIT.
    RolledBack,
    /// Any other error of the server: the statement is wrong, or the data is.
    Database,
    /// The values do not fit the statement, or the rows do not fit the types asked for.
    Conversion,
    /// The configuration is wrong.
    Config,
}

impl ErrorKind {
    /// The word that stands in metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Overloaded => "overloaded",
            Self::BreakerOpen => "breaker_open",
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Conflict => "conflict",
            Self::ReadOnly => "read_only",
            Self::ConnectionLost => "connection_lost",
            Self::CommitUnknown => "commit_unknown",
            Self::RolledBack => "rolled_back",
            Self::Database => "database",
            Self::Conversion => "conversion",
            Self::Config => "config",
        }
    }

    /// Whether the same call may well succeed a little later. Wrong statements stay wrong.
    const fn is_transient(self) -> bool {
        match self {
            Self::Overloaded
            | Self::BreakerOpen
            | Self::Connect
            | Self::Timeout
            | Self::Conflict
            | Self::ReadOnly
            | Self::ConnectionLost
            | Self::CommitUnknown
            | Self::RolledBack => true,
            Self::Database | Self::Conversion | Self::Config => false,
        }
    }
}

/// What was being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doing {
    Configuring,
    Waiting,
    Connecting,
    Running,
    Beginning,
    Committing,
    RollingBack,
}

impl Doing {
    const fn phrase(self) -> &'static str {
        match self {
            Self::Configuring => "configuring the pool",
            Self::Waiting => "waiting for a connection",
            Self::Connecting => "connecting",
            Self::Running => "running a statement",
            Self::Beginning => "beginning a transaction",
            Self::Committing => "committing a transaction",
            Self::RollingBack => "rolling back a transaction",
        }
    }
}

/// What went wrong, what became of the statement, and whether to try again.
///
/// `Display` says what was being done, [`source`](StdError::source) says why. Neither has SQL text or values of ours
/// in it; the server's own messages may quote values (a key violation does).
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    doing: Doing,
    outcome: Outcome,
    lane: Option<Lane>,
    cause: Option<Cause>,
    reason: Option<Box<str>>,
    upstream: Option<Box<str>>,
    retry_after: Option<Duration>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, doing: Doing, outcome: Outcome) -> Self {
        Self(Box::new(Inner {
            kind,
            doing,
            outcome,
            lane: None,
            cause: None,
            reason: None,
            upstream: None,
            retry_after: None,
            source: None,
        }))
    }

    /// What it is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What is known of the statement, or of the transaction it was part of.
    pub fn outcome(&self) -> Outcome {
        self.0.outcome
    }

    /// Whether doing it again cannot do it twice, and may help: nothing has happened
    /// ([`Outcome::is_safe_to_retry`]), and the trouble is of a kind that passes.
    pub fn is_safe_to_retry(&self) -> bool {
        self.0.outcome.is_safe_to_retry() && self.0.kind.is_transient()
    }

    /// When to try again at the earliest, where somebody knows.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The lane it happened in; `None` before one was chosen.
    pub fn lane(&self) -> Option<Lane> {
        self.0.lane
    }

    /// Why the lane does not work, as far as it is known.
    ///
    /// (Not [`StdError::cause`], which is deprecated; that is [`source`](StdError::source).)
    pub fn cause(&self) -> Option<Cause> {
        self.0.cause
    }

    /// Why it was refused, in the sidecar's words: `queue_full`, `queue_timeout`, `deadline`, `breaker_open` …
    pub fn reason(&self) -> Option<&str> {
        self.0.reason.as_deref()
    }

    /// Which server it was about, where a sidecar says so.
    pub fn upstream(&self) -> Option<&str> {
        self.0.upstream.as_deref()
    }

    /// The server's (or the sidecar's) SQLSTATE.
    pub fn sqlstate(&self) -> Option<&SqlState> {
        self.database_error().map(tokio_postgres::error::DbError::code)
    }

    /// The server's (or the sidecar's) error message with all its fields.
    pub fn database_error(&self) -> Option<&tokio_postgres::error::DbError> {
        let source = self.0.source.as_ref()?;
        let login = || match source.downcast_ref::<ConnectError>() {
            Some(ConnectError::Login(error)) => Some(error),
            Some(_) | None => None,
        };
        source.downcast_ref::<tokio_postgres::Error>().or_else(login)?.as_db_error()
    }

    /// A value of the sidecar's DETAIL that has no method of its own here, such as `xid`, `lsn` and `pid` of a COMMIT
    /// whose outcome is unknown.
    pub fn detail(&self, key: &str) -> Option<&str> {
        let text = self.reason().and(self.database_error())?.detail()?;
        text.split_ascii_whitespace()
            .filter_map(|pair| pair.split_once('='))
            .find(|(it, _)| *it == key)
            .map(|(_, it)| it)
    }

    pub(crate) fn in_lane(mut self, lane: Lane) -> Self {
        self.0.lane.get_or_insert(lane);
        self
    }

    pub(crate) fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    pub(crate) fn caused_by(mut self, cause: Option<Cause>) -> Self {
        self.0.cause = cause.or(self.0.cause);
        self
    }

    pub(crate) fn for_reason(mut self, reason: &str) -> Self {
        self.0.reason = Some(reason.into());
        self
    }

    pub(crate) fn retry_in(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after);
        self
    }

    pub(crate) fn of_outcome(mut self, outcome: Outcome) -> Self {
        self.0.outcome = outcome;
        self
    }

    /// What a sidecar says counts for more than what we conclude.
    pub(crate) fn told(mut self, detail: Detail) -> Self {
        let inner = &mut *self.0;
        inner.reason = detail.reason;
        inner.upstream = detail.upstream;
        inner.lane = detail.lane.or(inner.lane);
        inner.cause = detail.cause.or(inner.cause);
        inner.outcome = detail.outcome.unwrap_or(inner.outcome);
        inner.retry_after = detail.retry_after.or(inner.retry_after);
        self
    }

    pub(crate) fn config(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(ErrorKind::Config, Doing::Configuring, Outcome::NotSent).because(source)
    }

    /// Refused for load before anything was done.
    pub(crate) fn overloaded(lane: Lane, refusal: Overloaded) -> Self {
        Self::new(ErrorKind::Overloaded, Doing::Waiting, Outcome::NotSent)
            .in_lane(lane)
            .for_reason(refusal.reason.name())
            .retry_in(refusal.retry_after)
            .because(refusal)
    }

    /// Refused because the lane is known not to work.
    pub(crate) fn open(lane: Lane, refusal: CircuitOpen<Cause>) -> Self {
        Self::new(ErrorKind::BreakerOpen, Doing::Waiting, Outcome::NotSent)
            .in_lane(lane)
            .for_reason("breaker_open")
            .caused_by(refusal.cause)
            .retry_in(refusal.retry_after)
            .because(refusal)
    }

    /// The transaction was rolled back instead of its COMMIT.
    pub(crate) fn rolled_back(lane: Lane) -> Self {
        Self::new(ErrorKind::RolledBack, Doing::Committing, Outcome::RolledBack).in_lane(lane)
    }

    /// The budget ended before anything was sent.
    pub(crate) fn too_late(lane: Lane, doing: Doing) -> Self {
        Self::new(ErrorKind::Timeout, doing, Outcome::NotSent).in_lane(lane).for_reason("deadline")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, doing, outcome, lane, .. } = &*self.0;
        write!(f, "{} failed ({}", doing.phrase(), kind.word())?;
        if let Some(lane) = lane {
            write!(f, ", lane {lane}")?;
        }
        write!(f, ", outcome {outcome})")
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, doing, outcome, lane, cause, reason, upstream, retry_after, source } = &*self.0;
        f.debug_struct("Error")
            .field("kind", kind)
            .field("doing", doing)
            .field("outcome", outcome)
            .field("lane", lane)
            .field("cause", cause)
            .field("reason", reason)
            .field("upstream", upstream)
            .field("retry_after", retry_after)
            .field("source", source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|source| &**source as &(dyn StdError + 'static))
    }
}
