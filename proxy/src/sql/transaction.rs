//! What a text does to the transaction.

/// Transaction control found in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TransactionControl {
    /// How many BEGIN and START TRANSACTION.
    pub begins: u32,
    /// How many COMMIT and END.
    pub commits: u32,
    /// How many ROLLBACK and ABORT, those back to a savepoint not counted.
    pub rollbacks: u32,
    /// How many of the commits and rollbacks begin a new transaction at once (AND CHAIN).
    pub chains: u32,
    /// How many PREPARE TRANSACTION.
    pub prepares: u32,
    /// The options of the transaction that is open behind the text, as far as the text sets them.
    pub options: TransactionOptions,
}

/// Options of BEGIN, START TRANSACTION and SET TRANSACTION; `None` where the text does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TransactionOptions {
    /// `ISOLATION LEVEL`.
    pub isolation: Option<Isolation>,
    /// `READ ONLY` or `READ WRITE`.
    pub access: Option<Access>,
    /// `DEFERRABLE` or `NOT DEFERRABLE`.
    pub deferral: Option<Deferral>,
}

/// Isolation levels, in PostgreSQL's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// As `ReadCommitted` in PostgreSQL.
    ReadUncommitted,
    /// The default.
    ReadCommitted,
    /// One snapshot.
    RepeatableRead,
    /// Refused by standbys.
    Serializable,
}

impl Isolation {
    /// As in `SET transaction_isolation`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReadUncommitted => "read uncommitted",
            Self::ReadCommitted => "read committed",
            Self::RepeatableRead => "repeatable read",
            Self::Serializable => "serializable",
        }
    }
}

/// Whether a transaction may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Writes are refused by the server (temporary tables excepted).
    ReadOnly,
    /// The default.
    ReadWrite,
}

/// Whether a serializable read only transaction may wait for a safe snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deferral {
    /// It may.
    Deferrable,
    /// The default.
    NotDeferrable,
}

impl TransactionControl {
    pub(super) fn begin(&mut self, options: TransactionOptions) {
        self.begins = self.begins.saturating_add(1);
        self.options = options;
    }

    /// SET TRANSACTION: only what it names changes.
    pub(super) fn set(&mut self, options: TransactionOptions) {
        let before = self.options;
        self.options = TransactionOptions {
            isolation: options.isolation.or(before.isolation),
            access: options.access.or(before.access),
            deferral: options.deferral.or(before.deferral),
        };
    }

    /// The end of a transaction. A chained one has the options of the one before.
    pub(super) fn end(&mut self, how: End, chain: Chain) {
        let count = match how {
            End::Commit => &mut self.commits,
            End::Rollback => &mut self.rollbacks,
            End::Prepare => &mut self.prepares,
        };
        *count = count.saturating_add(1);
        match chain {
            Chain::Yes => self.chains = self.chains.saturating_add(1),
            Chain::No => self.options = TransactionOptions::default(),
        }
    }
}

/// How a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Commit,
    Rollback,
    Prepare,
}

/// Whether another one follows at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chain {
    Yes,
    No,
}
