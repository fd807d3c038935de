//! The words that errors, metrics and the sidecar's DETAIL share.

use std::fmt;

/// The class of work that has its own permits, deadline and breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Statements that write nothing.
    Read,
    /// Statements that may assign a transaction id or wait for WAL.
    Write,
}

impl Lane {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Read, Self::Write];

    /// The word that stands in DETAIL and labels.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }

    /// Its place where there is one thing per lane.
    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Read => 0,
            Self::Write => 1,
        }
    }

    pub(crate) fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|lane| lane.word() == word)
    }
}

/// What is known of a statement or transaction that was refused or broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// `PostgreSQL` never saw it.
    NotSent,
    /// Nothing of it can be durable.
    RolledBack,
    /// It is durable and visible.
    Committed,
    /// It is durable on the primary, but the synchronous standby may lack it: a failover may lose it.
    CommittedUnreplicated,
    /// Nobody can tell from here: look before you try again, or make it idempotent.
    Unknown,
}

impl Outcome {
    /// The word that stands in DETAIL and labels.
    pub const fn word(self) -> &'static str {
        match self {
            Self::NotSent => "not_sent",
            Self::RolledBack => "rolled_back",
            Self::Committed => "committed",
            Self::CommittedUnreplicated => "committed_unreplicated",
            Self::Unknown => "unknown",
        }
    }

    pub(crate) fn of_word(word: &str) -> Option<Self> {
        let all =
            [Self::NotSent, Self::RolledBack, Self::Committed, Self::CommittedUnreplicated, Self::Unknown];
        all.into_iter().find(|outcome| outcome.word() == word)
    }

    /// Whether nothing has happened, so that doing it again cannot do it twice.
    pub const fn is_safe_to_retry(self) -> bool {
        match self {
            Self::NotSent | Self::RolledBack => true,
            Self::Committed | Self::CommittedUnreplicated | Self::Unknown => false,
        }
    }
}

/// Why a lane does not work. The vocabulary is the sidecar's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
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
    /// It has no room for more.
    Overload,
    /// Ordered by an operator.
    Forced,
}

impl Cause {
    const ALL: [Self; 11] = [
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

    /// The word that stands in DETAIL and labels.
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

    /// A word of a newer sidecar that we do not know is an unknown cause.
    pub(crate) fn of_word(word: &str) -> Self {
        Self::ALL.into_iter().find(|cause| cause.word() == word).unwrap_or_default()
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
