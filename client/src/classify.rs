//! From the driver's errors to ours: what became of the statement, and what that means.

use tokio_postgres::error::{DbError, SqlState};

use crate::detail::Detail;
use crate::error::{Doing, Error, ErrorKind};
use crate::run::Step;
use crate::words::{Lane, Outcome};

/// What has to be known besides the error itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Circumstances {
    pub(crate) lane: Lane,
    pub(crate) step: Step,
    pub(crate) doing: Doing,
    /// We alone send COMMIT.
    pub(crate) ours: bool,
    /// The server said that a commit is durable but not replicated.
    pub(crate) unreplicated: bool,
    pub(crate) done: Done,
}

/// What can be said of a statement whose answer never came.
///
/// Before its COMMIT is sent nothing of a transaction can be durable. A lone write is its own COMMIT. In the read lane
/// there is nothing to become durable.
pub(crate) fn outcome_of_silence(lane: Lane, step: Step, ours: bool) -> Outcome {
    match (step, lane) {
        (Step::Commit, _) => Outcome::Unknown,
        (Step::Begin | Step::Rollback, _) | (_, Lane::Read) => Outcome::RolledBack,
        (Step::Statement, Lane::Write) if ours => Outcome::RolledBack,
        (Step::Statement, Lane::Write) => Outcome::Unknown,
    }
}

/// What an error leaves of an outcome when the call that it ends may have done more than what it undoes.
pub(crate) fn outcome_in_part(outcome: Outcome, done: Done) -> Outcome {
    match (done, outcome) {
        // What was refused was not the first.
        (Done::Something, Outcome::NotSent) | (Done::Something | Done::Perhaps, Outcome::RolledBack) => {
            Outcome::Unknown
        }
        (
            Done::Nothing | Done::Perhaps | Done::Something,
            Outcome::NotSent
            | Outcome::RolledBack
            | Outcome::Committed
            | Outcome::CommittedUnreplicated
            | Outcome::Unknown,
        ) => outcome,
    }
}

/// What may be durable of a call besides the statement that was answered last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    /// It was one statement, or is a transaction that is open still.
    Nothing,
    /// A command may have committed midway.
    Perhaps,
    /// A part was committed.
    Something,
}

pub(crate) fn error(error: tokio_postgres::Error, circumstances: Circumstances) -> Error {
    let Circumstances { lane, doing, .. } = circumstances;
    let (kind, outcome) = match error.as_db_error() {
        Some(answer) => of_answer(answer, circumstances),
        None => of_driver(&error, circumstances),
    };
    let detail = error.as_db_error().and_then(DbError::detail).and_then(Detail::parse);
    let kind = match detail.as_ref().and_then(|detail| detail.outcome) {
        // It broke, but who sits nearer knows that nothing has happened.
        Some(told) if told.is_safe_to_retry() && kind == ErrorKind::CommitUnknown => ErrorKind::RolledBack,
        Some(_) | None => kind,
    };
    let classified = Error::new(kind, doing, outcome).in_lane(lane).because(error);
    let classified = match detail {
        Some(detail) => classified.told(detail),
        None => classified,
    };
    let outcome = outcome_in_part(classified.outcome(), circumstances.done);
    classified.of_outcome(outcome)
}

/// No answer of the server: the connection broke, or values do not fit.
fn of_driver(error: &tokio_postgres::Error, circumstances: Circumstances) -> (ErrorKind, Outcome) {
    let Circumstances { lane, step, ours, unreplicated, .. } = circumstances;
    let silence = outcome_of_silence(lane, step, ours);
    let outcome = if unreplicated { Outcome::CommittedUnreplicated } else { silence };
    if !error.is_closed() {
        // The statement may have run before its rows did not fit.
        return (ErrorKind::Conversion, outcome);
    }
    match step {
        Step::Commit => (ErrorKind::CommitUnknown, outcome),
        Step::Statement | Step::Begin | Step::Rollback => (ErrorKind::ConnectionLost, outcome),
    }
}

/// The table of SQLSTATEs. An ERROR ends its statement without a trace (what came before it in the same call is the
/// matter of [`outcome_in_part`]); a FATAL may come in the middle of a commit.
fn of_answer(answer: &DbError, circumstances: Circumstances) -> (ErrorKind, Outcome) {
    let Circumstances { lane, step, ours, unreplicated, .. } = circumstances;
    let silence = outcome_of_silence(lane, step, ours);
    let silence = if unreplicated { Outcome::CommittedUnreplicated } else { silence };
    let told = answer.detail().and_then(Detail::parse).is_some();
    let code = answer.code();
    match code.code() {
        // Statement or lock timeouts of the server's, our cancel, the sidecar's deadline.
        "57014" | "55P03" => (ErrorKind::Timeout, Outcome::RolledBack),
        "40001" | "40P01" => (ErrorKind::Conflict, Outcome::RolledBack),
        "25006" => (ErrorKind::ReadOnly, Outcome::RolledBack),
        "25P02" | "40000" | "40002" => (ErrorKind::RolledBack, Outcome::RolledBack),
        "08007" | "40003" => (ErrorKind::CommitUnknown, silence.max_doubt()),
        "53300" if told => (ErrorKind::Overloaded, Outcome::NotSent),
        "53000" if told => (ErrorKind::BreakerOpen, Outcome::NotSent),
        // The session was idle: nothing of it can be durable.
        "25P03" | "57P05" => (ErrorKind::ConnectionLost, Outcome::RolledBack),
        // Terminated where interrupts are allowed, which is never between a commit record and its acknowledgement
        // (`src/backend/tcop/postgres.c`, `ProcessInterrupts`).
        "57P01" if answer.routine() == Some("ProcessInterrupts") && !unreplicated => {
            (ErrorKind::ConnectionLost, Outcome::RolledBack)
        }
        code if code.starts_with("57P") || code.starts_with("08") => match step {
            Step::Commit => (ErrorKind::CommitUnknown, silence),
            Step::Statement | Step::Begin | Step::Rollback => (ErrorKind::ConnectionLost, silence),
        },
        _ => (ErrorKind::Database, Outcome::RolledBack),
    }
}

impl Outcome {
    /// 08007 means that the server's side could not find out either.
    const fn max_doubt(self) -> Self {
        match self {
            Self::CommittedUnreplicated => Self::CommittedUnreplicated,
            Self::NotSent | Self::RolledBack | Self::Committed | Self::Unknown => Self::Unknown,
        }
    }
}

/// Whether an error of the server's own is a sign of its bad health: out of resources (53), trouble of the operating
/// system (58), internal (XX).
pub(crate) fn is_server_trouble(error: &Error) -> bool {
    let trouble = |code: &SqlState| ["53", "58", "XX"].iter().any(|class| code.code().starts_with(class));
    error.sqlstate().is_some_and(trouble)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_unknown_only_where_something_may_be_durable() {
        // "Rolled back" for a lone write would be a lie; "unknown" for a read would forbid a harmless retry.
        let outcome = outcome_of_silence;

        assert_eq!(outcome(Lane::Write, Step::Statement, false), Outcome::Unknown);
        assert_eq!(outcome(Lane::Write, Step::Statement, true), Outcome::RolledBack);
        assert_eq!(outcome(Lane::Write, Step::Commit, true), Outcome::Unknown);
        assert_eq!(outcome(Lane::Read, Step::Commit, true), Outcome::Unknown);
        assert_eq!(outcome(Lane::Read, Step::Statement, false), Outcome::RolledBack);
    }

    #[test]
    fn an_error_says_nothing_of_what_was_committed_before_it() {
        // "Rolled back" for a call of which a part is durable does that part twice.
        let outcome = outcome_in_part;

        assert_eq!(outcome(Outcome::RolledBack, Done::Nothing), Outcome::RolledBack);
        assert_eq!(outcome(Outcome::RolledBack, Done::Something), Outcome::Unknown);
        assert_eq!(outcome(Outcome::NotSent, Done::Something), Outcome::Unknown);
        assert_eq!(outcome(Outcome::RolledBack, Done::Perhaps), Outcome::Unknown);
        // Refused as a whole, it did not even start.
        assert_eq!(outcome(Outcome::NotSent, Done::Perhaps), Outcome::NotSent);
        assert_eq!(outcome(Outcome::Committed, Done::Something), Outcome::Committed);
    }
}
