//! What a statement does to the session, beyond the transaction it runs in.

use super::name::Name;

/// A change of session state that a pooler must know of.
///
/// An effect says what the text asks for. Whether it happened is for the caller to decide: a failed statement
/// changes nothing, and a rolled back transaction takes its settings, cursors and temporary tables with it
/// (but neither advisory locks nor prepared statements).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect<'a> {
    /// `SET name TO value` and its special forms.
    SetParameter {
        /// The parameter, in lower case.
        name: Name<'a>,
        /// For how long.
        scope: Scope,
        /// To what.
        value: Value<'a>,
    },
    /// `RESET name`.
    ResetParameter {
        /// The parameter, in lower case.
        name: Name<'a>,
    },
    /// `RESET ALL`.
    ResetAll,
    /// `SHOW tidegate.name`. No other SHOW is listed: it changes nothing.
    Show {
        /// The parameter, in lower case.
        name: Name<'a>,
    },
    /// `DISCARD ALL`: settings, prepared statements, cursors, LISTEN, advisory locks, plans, temporary tables,
    /// sequences. It is not broken down into other effects.
    DiscardAll,
    /// `DISCARD PLANS | SEQUENCES | TEMP`.
    DiscardOther,
    /// `DEALLOCATE ALL`: protocol-level prepared statements too.
    DeallocateAll,
    /// `DEALLOCATE name`.
    Deallocate {
        /// The prepared statement.
        name: Name<'a>,
    },
    /// A call of `set_config`, anywhere.
    SetConfigCall {
        /// The parameter, in lower case; `None` when it is not a literal.
        name: Option<Name<'a>>,
        /// The new value; `None` when it is not a literal.
        value: Option<Name<'a>>,
        /// For how long; `None` when it is not a literal.
        scope: Option<Scope>,
    },
    /// The session now needs this very backend.
    Pin(PinReason),
    /// This reason is gone.
    Unpin(PinReason),
}

/// How long a setting lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Until the session ends (or the transaction rolls back).
    Session,
    /// Until the transaction ends.
    Transaction,
}

/// The value in a SET.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value<'a> {
    /// `DEFAULT`, or `LOCAL` as a time zone: as RESET.
    Default,
    /// One literal or identifier, unquoted.
    Text(Name<'a>),
    /// Anything else as it stands in the statement: lists, negative numbers, strings with escapes. Valid
    /// behind `SET name TO`, except for an `INTERVAL` as a time zone: that goes behind `SET TIME ZONE`.
    Raw(&'a [u8]),
}

/// Why a session cannot change its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PinReason {
    /// LISTEN; gone by `UNLISTEN *`.
    Listen,
    /// A temporary table, view or sequence, or anything created in `pg_temp`; gone by `DISCARD TEMP`.
    TempTable,
    /// A cursor WITH HOLD; gone by `CLOSE ALL`.
    HoldCursor,
    /// A session-level advisory lock; gone by `pg_advisory_unlock_all()`.
    AdvisoryLock,
    /// A statement prepared by SQL; gone by `DEALLOCATE ALL`.
    Prepare,
    /// A loaded library; never gone.
    Load,
    /// More effects than we list: what the session holds is not known. Never gone.
    Untracked,
}
