//! What is wrong with a server, in words that errors, metrics, the journal, pages and the dashboard share.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a lane of a server does not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Not known, or not known yet.
    #[default]
    Unknown,
    /// Commits wait for a synchronous standby (wait event `SyncRep`).
    SyncStandby,
    /// Writing or flushing WAL or data does not end (wait events `WALWrite`, `WALSync` and others of class `IO`).
    Storage,
    /// Statements wait for locks of others.
    Lock,
    /// A primary that refuses writes (`default_transaction_read_only`).
    ReadOnly,
    /// A standby where a primary should be.
    InRecovery,
    /// It accepts connections and says nothing.
    Frozen,
    /// No connection can be made, or its packets get lost.
    Unreachable,
    /// It does not let us in.
    Auth,
    /// It has no room for more connections.
    Overload,
    /// Ordered by an operator.
    Forced,
}

impl Cause {
    /// All of them, the values of a label.
    pub const ALL: [Self; 11] = [
        Self::Unknown,
        Self::SyncStandby,
        Self::Storage,
        Self::Lock,
        Self::ReadOnly,
        Self::InRecovery,
        Self::Frozen,
        Self::Unreachable,
        Self::Auth,
        Self::Overload,
        Self::Forced,
    ];

    /// Whether it stops whatever a server is asked, and not one kind of it.
    pub const fn is_of_server(self) -> bool {
        matches!(self, Self::Frozen | Self::Unreachable | Self::Auth | Self::Overload)
    }

    /// The word that stands in DETAIL, labels and files.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::SyncStandby => "sync_standby",
            Self::Storage => "storage",
            Self::Lock => "lock",
            Self::ReadOnly => "read_only",
            Self::InRecovery => "in_recovery",
            Self::Frozen => "frozen",
            Self::Unreachable => "unreachable",
            Self::Auth => "auth",
            Self::Overload => "overload",
            Self::Forced => "forced",
        }
    }

    /// What it means, for people.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Unknown => "the cause is not known",
            Self::SyncStandby => "commits wait for a synchronous standby",
            Self::Storage => "the server's storage does not finish writing",
            Self::Lock => "statements wait for a lock",
            Self::ReadOnly => "the server is read-only",
            Self::InRecovery => "the server is a standby",
            Self::Frozen => "the server accepts connections and does not answer",
            Self::Unreachable => "the server cannot be reached",
            Self::Auth => "the server does not let us in",
            Self::Overload => "the server has no room for more connections",
            Self::Forced => "an operator ordered it",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A cause and what was seen of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Diagnosis {
    /// The class.
    pub cause: Cause,
    /// One sentence for people: which standbys are missing, who holds the lock. Empty when there is no more to say.
    pub evidence: Box<str>,
}

impl Diagnosis {
    /// A cause without more to say.
    pub fn of(cause: Cause) -> Self {
        Self { cause, evidence: Box::default() }
    }
}
