//! Which lane a text belongs to.
//!
//! A statement is in the write lane when it may assign a transaction id or wait for WAL. The strongest
//! statement of a text decides, and what we do not know is a write. Decisions that are not obvious:
//!
//! - `txid_current()` and `pg_current_xact_id()` do not wait for WAL, but they assign a transaction id, and fail
//!   on a standby: writes. NOTIFY, LISTEN and `pg_notify()` wait for nothing either (a NOTIFY takes its
//!   transaction id at commit and writes no WAL): reads, for the primary only.
//! - LOCK TABLE is a write: its ACCESS EXCLUSIVE mode is logged, most modes are refused by standbys, and who
//!   takes a lock is about to write. `IN ACCESS SHARE MODE` is a read: that is how `pg_dump` starts.
//! - Statements that keep whatever lane their transaction is in are [`Verdict::Neutral`]: BEGIN, SAVEPOINT, SET,
//!   SHOW, FETCH and so on, and COMMIT, of which only the caller knows whether there was a write.
//!   Outside of a transaction they are reads. So is a DISCARD, unless its session has temporary tables: that is for
//!   [`crate::session::lanes`] to know.
//! - EXECUTE is a write, as what was prepared is not known here; PREPARE itself is neutral.
//!
//! # What it cannot see
//! Volatile functions behind views, operators, casts, column notation (`row.function`), defaults, or an
//! overload of a built-in's name. Such a statement is taken for a read until it is seen waiting as a write.
//! A name without schema is taken for the built-in of that name: `pg_catalog` is searched first unless
//! `search_path` puts it elsewhere.

use serde::{Deserialize, Serialize};

use super::name::Name;

/// The two classes of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// Assigns no transaction id, waits for no WAL.
    Read,
    /// May do either.
    Write,
}

impl Lane {
    /// Both, in the order of [`Lane::index`].
    pub const ALL: [Self; 2] = [Self::Read, Self::Write];

    /// Position in [`Lane::ALL`].
    #[inline]
    pub const fn index(self) -> usize {
        match self {
            Self::Read => 0,
            Self::Write => 1,
        }
    }

    /// The word in errors, labels and hints.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }

    /// Reads `read` or `write`, in any case.
    pub fn parse(text: &[u8]) -> Option<Self> {
        if text.eq_ignore_ascii_case(b"read") {
            Some(Self::Read)
        } else if text.eq_ignore_ascii_case(b"write") {
            Some(Self::Write)
        } else {
            None
        }
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// The lane of a text, as far as the text tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// The lane of the transaction it runs in; a read outside of one.
    Neutral,
    /// A read.
    Read,
    /// A read unless one of these functions is volatile (`pg_proc.provolatile = 'v'`). A name that `pg_proc`
    /// does not have is no function but a column list or a type.
    Depends(Vec<FunctionName<'a>>),
    /// A write.
    Write,
}

/// A function called by a statement.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FunctionName<'a> {
    /// The schema, when the call names it.
    pub schema: Option<Name<'a>>,
    /// The function.
    pub name: Name<'a>,
}

/// Which upstreams can run a text that is a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Placement {
    /// A standby as well as the primary.
    #[default]
    Any,
    /// The primary, or a standby while there is none: it asks what the server is or does, and whoever asks means the
    /// one that takes writes.
    PreferPrimary,
    /// Only the primary: a standby would refuse it, or it is about what only the primary has, such as advisory locks
    /// and the processes of sessions that write.
    Primary,
}

/// A verdict in the making.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Strength {
    Neutral,
    Read,
    Write,
}

/// More unknown functions than this are a write, to keep the list bounded.
const FUNCTIONS_MAX: usize = 32;

/// Collects the verdict over the statements of a text.
#[derive(Debug)]
pub(super) struct LaneFinder<'a> {
    strength: Strength,
    functions: Vec<FunctionName<'a>>,
}

/// A place to go back to.
#[derive(Debug, Clone, Copy)]
pub(super) struct LaneMark(Strength, usize);

impl<'a> LaneFinder<'a> {
    pub(super) fn new() -> Self {
        Self { strength: Strength::Neutral, functions: Vec::new() }
    }

    pub(super) fn raise(&mut self, strength: Strength) {
        self.strength = self.strength.max(strength);
    }

    /// Whether nothing else can change the verdict.
    pub(super) fn is_write(&self) -> bool {
        self.strength == Strength::Write
    }

    /// Notes a call of a function that is not a known built-in.
    pub(super) fn depends(&mut self, function: FunctionName<'a>) {
        if self.functions.contains(&function) {
            return;
        }
        if self.functions.len() == FUNCTIONS_MAX {
            self.strength = Strength::Write;
        } else {
            self.functions.push(function);
        }
    }

    pub(super) fn mark(&self) -> LaneMark {
        LaneMark(self.strength, self.functions.len())
    }

    /// Forgets what was found since the mark.
    pub(super) fn rewind(&mut self, mark: LaneMark) {
        self.strength = mark.0;
        self.functions.truncate(mark.1);
    }

    pub(super) fn verdict(self) -> Verdict<'a> {
        match self.strength {
            Strength::Write => Verdict::Write,
            Strength::Neutral | Strength::Read if !self.functions.is_empty() => {
                Verdict::Depends(self.functions)
            }
            Strength::Read => Verdict::Read,
            Strength::Neutral => Verdict::Neutral,
        }
    }
}
