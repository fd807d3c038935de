//! The answer: what a text is and does.

use super::analyzer::Analyzer;
use super::effects::Effect;
use super::hints::Hints;
use super::lane::{Placement, Verdict};
use super::lexer::{Lexer, PlainStrings};
use super::token::TokenKind;
use super::transaction::{Access, TransactionControl};

/// What one text, of one or several statements, is and does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Analysis<'a> {
    /// How many statements it has, empty ones not counted.
    pub statements: u32,
    /// The first of them.
    pub first: StatementKind,
    /// The last of them.
    pub last: StatementKind,
    /// The lane of the strongest of them.
    pub verdict: Verdict<'a>,
    /// Where it can run, should it be a read.
    pub placement: Placement,
    /// What it does to the transaction.
    pub transaction: TransactionControl,
    /// What it does to the session, in order.
    pub effects: Vec<Effect<'a>>,
    /// What its comments ask for.
    pub hints: Hints<'a>,
}

impl Analysis<'_> {
    /// Whether the text is one BEGIN or START TRANSACTION and nothing else.
    pub fn is_lone_begin(&self) -> bool {
        self.statements == 1 && self.first == StatementKind::Begin
    }

    /// Whether the transaction that is open behind the text was declared READ ONLY by it.
    pub fn read_only_transaction(&self) -> bool {
        self.transaction.options.access == Some(Access::ReadOnly)
    }
}

/// Analyzes a text, given without the protocol's trailing NUL.
///
/// Never fails and never panics, whatever the bytes. `strings` is the session's `standard_conforming_strings`.
pub fn analyze(text: &[u8], strings: PlainStrings) -> Analysis<'_> {
    Analyzer::new(text, strings).run()
}

/// Whether it matters to a text what a backslash means in a plain string: one of them has a quote behind a backslash, which
/// ends the string or does not.
pub fn has_two_readings(text: &[u8]) -> bool {
    let may_end = |bytes: &[u8]| memchr::memmem::find(bytes, br"\'").is_some();
    if !may_end(text) {
        return false;
    }
    // Up to the first such string both readings are the same.
    let mut lexer = Lexer::new(text, PlainStrings::Standard);
    loop {
        let token = lexer.next();
        match token.kind {
            TokenKind::End => return false,
            // N'...' is one of these.
            TokenKind::PlainString | TokenKind::OtherString if may_end(lexer.text(token)) => return true,
            _ => {}
        }
    }
}

/// The kinds of statement, as far as they differ for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StatementKind {
    /// No statement at all.
    Empty,
    /// BEGIN, START TRANSACTION.
    Begin,
    /// COMMIT, END.
    Commit,
    /// ROLLBACK, ABORT.
    Rollback,
    /// SAVEPOINT.
    Savepoint,
    /// ROLLBACK TO.
    RollbackTo,
    /// RELEASE.
    Release,
    /// PREPARE TRANSACTION.
    PrepareTransaction,
    /// COMMIT PREPARED.
    CommitPrepared,
    /// ROLLBACK PREPARED.
    RollbackPrepared,
    /// SELECT, TABLE, VALUES, with or without WITH.
    Select,
    /// INSERT.
    Insert,
    /// UPDATE.
    Update,
    /// DELETE.
    Delete,
    /// MERGE.
    Merge,
    /// COPY ... FROM.
    CopyFrom,
    /// COPY ... TO.
    CopyTo,
    /// CALL.
    Call,
    /// DO.
    Do,
    /// DECLARE ... CURSOR.
    Declare,
    /// FETCH, MOVE.
    Fetch,
    /// CLOSE.
    Close,
    /// PREPARE name AS.
    Prepare,
    /// EXECUTE.
    Execute,
    /// DEALLOCATE.
    Deallocate,
    /// EXPLAIN.
    Explain,
    /// SET, but for SET TRANSACTION and SET CONSTRAINTS.
    Set,
    /// SET TRANSACTION.
    SetTransaction,
    /// SET CONSTRAINTS.
    SetConstraints,
    /// RESET.
    Reset,
    /// SHOW.
    Show,
    /// DISCARD.
    Discard,
    /// LISTEN.
    Listen,
    /// UNLISTEN.
    Unlisten,
    /// NOTIFY.
    Notify,
    /// LOCK TABLE.
    Lock,
    /// LOAD.
    Load,
    /// CREATE, ALTER, DROP, TRUNCATE, COMMENT, GRANT, REVOKE, SECURITY LABEL, REASSIGN, IMPORT FOREIGN SCHEMA, REFRESH:
    /// the results of prepared statements may change shape.
    Ddl,
    /// VACUUM, ANALYZE, CLUSTER, REINDEX, CHECKPOINT.
    Maintenance,
    /// Anything else.
    Other,
}
