//! What a statement's text tells about its effects, in a form that can be kept with a prepared statement.

use crate::sql::{self, Effect, PinReason, PlainStrings, Scope, StatementKind, Value, Verdict};

/// What running a text may do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, not a state")]
pub struct Facts {
    /// The lane that it needs by itself.
    pub lane: Need,
    /// The kind of its first statement.
    pub first: StatementKind,
    /// How many statements it has.
    pub statements: u32,
    /// Whether it may make a transaction durable by its own words.
    pub commits: bool,
    /// Whether it may end a transaction, one way or the other.
    pub ends_transaction: bool,
    /// Whether it may roll something back.
    pub rolls_back: bool,
    /// Whether it ends a transaction and begins the next one at once (`AND CHAIN`).
    pub chains: bool,
    /// Whether it may change the columns of a table that others know.
    pub alters_schema: bool,
    /// The prepared statement that it runs by SQL `EXECUTE`, when it does nothing else.
    pub executes: Option<Box<[u8]>>,
    /// What it may change beyond the transaction, in the order of the text.
    pub changes: Vec<Change>,
}

/// What a text asks of the transaction it runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Nothing: transaction control and the like.
    Neutral,
    /// To read.
    Read,
    /// To write, or nobody knows.
    Write,
}

/// A change of session state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A setting may have another value afterwards.
    Set(Box<str>),
    /// A setting goes back to its value at login.
    Reset(Box<str>),
    /// All settings go back.
    ResetAll,
    /// Everything goes back (`DISCARD ALL`).
    DiscardAll,
    /// All prepared statements go.
    DeallocateAll,
    /// One prepared statement goes.
    Deallocate(Box<[u8]>),
    /// State comes into being that cannot move to another backend.
    Pin(PinReason),
    /// That state goes.
    Unpin(PinReason),
}

impl Default for Facts {
    /// What must be assumed of a text that cannot be read.
    fn default() -> Self {
        Self {
            lane: Need::Write,
            first: StatementKind::Other,
            statements: 1,
            commits: true,
            ends_transaction: true,
            rolls_back: true,
            chains: false,
            alters_schema: true,
            executes: None,
            changes: vec![Change::Pin(PinReason::Untracked)],
        }
    }
}

impl Facts {
    const PLAIN_SELECT: Self = Self {
        lane: Need::Read,
        first: StatementKind::Select,
        statements: 1,
        commits: false,
        ends_transaction: false,
        rolls_back: false,
        chains: false,
        alters_schema: false,
        executes: None,
        changes: Vec::new(),
    };

    /// Analyses a text. Allocates only when the text changes session state.
    pub fn of(text: &[u8]) -> Self {
        if is_plain_select(text) {
            return Self::PLAIN_SELECT;
        }
        let analysis = sql::analyze(text, PlainStrings::Standard);
        let lane = match &analysis.verdict {
            Verdict::Neutral => Need::Neutral,
            Verdict::Read => Need::Read,
            Verdict::Depends(_) | Verdict::Write => Need::Write,
        };
        Self {
            lane,
            first: analysis.first,
            statements: analysis.statements,
            commits: analysis.transaction.commits + analysis.transaction.prepares > 0,
            ends_transaction: analysis.transaction.commits
                + analysis.transaction.rollbacks
                + analysis.transaction.prepares
                > 0,
            rolls_back: analysis.transaction.rollbacks > 0
                || [analysis.first, analysis.last].contains(&StatementKind::RollbackTo)
                || analysis.statements > 2,
            chains: analysis.transaction.chains > 0,
            alters_schema: analysis.effects.is_empty()
                && [analysis.first, analysis.last].contains(&StatementKind::Ddl),
            executes: (analysis.first == StatementKind::Execute && analysis.statements == 1)
                .then(|| executed_name(text))
                .flatten(),
            changes: analysis.effects.iter().filter_map(Change::of).collect(),
        }
    }

    /// Whether it ends a failed transaction (`IsTransactionExitStmt` in `src/backend/tcop/postgres.c`).
    pub fn ends_failed_transaction(&self) -> bool {
        matches!(
            self.first,
            StatementKind::Commit | StatementKind::Rollback | StatementKind::PrepareTransaction
        )
    }

    /// The only prepared statement that it deallocates, when it does nothing else.
    pub fn sole_deallocate(&self) -> Option<&[u8]> {
        match (self.statements, &*self.changes) {
            (1, [Change::Deallocate(name)]) => Some(name),
            _ => None,
        }
    }
}

impl Change {
    fn of(effect: &Effect<'_>) -> Option<Self> {
        let known = |name: &[u8], change: fn(Box<str>) -> Self| match std::str::from_utf8(name) {
            Ok(name) if is_transaction_local(name) => None,
            Ok(name) => Some(change(name.to_ascii_lowercase().into())),
            Err(_) => Some(Self::Pin(PinReason::Untracked)),
        };
        match effect {
            Effect::SetParameter { scope: Scope::Transaction, .. }
            | Effect::SetConfigCall { scope: Some(Scope::Transaction), .. }
            | Effect::Show { .. }
            | Effect::DiscardOther => None,
            Effect::SetParameter { name, scope: Scope::Session, value: Value::Default } => {
                known(name.as_bytes(), Self::Reset)
            }
            Effect::SetParameter { name, scope: Scope::Session, .. }
            | Effect::SetConfigCall { name: Some(name), .. } => known(name.as_bytes(), Self::Set),
            Effect::SetConfigCall { name: None, .. } => Some(Self::Pin(PinReason::Untracked)),
            Effect::ResetParameter { name } => known(name.as_bytes(), Self::Reset),
            Effect::ResetAll => Some(Self::ResetAll),
            Effect::DiscardAll => Some(Self::DiscardAll),
            Effect::DeallocateAll => Some(Self::DeallocateAll),
            Effect::Deallocate { name } => Some(Self::Deallocate(name.as_bytes().into())),
            Effect::Pin(reason) => Some(Self::Pin(*reason)),
            Effect::Unpin(reason) => Some(Self::Unpin(*reason)),
        }
    }
}

/// Whether a text is a SELECT so plain that one look at each byte proves it: no call, no quote, no comment, no
/// second statement, and no word that begins as INTO or FOR do. Most texts of most applications are.
fn is_plain_select(text: &[u8]) -> bool {
    let Some((start, rest)) = text.split_first_chunk::<7>() else { return false };
    if !start.eq_ignore_ascii_case(b"SELECT ") {
        return false;
    }
    let rest = rest.strip_suffix(b";").unwrap_or(rest);
    let mut before = [b' ', b' '];
    rest.iter().all(|&byte| {
        let starts_word = !(before[0].is_ascii_alphanumeric() || before[0] == b'_');
        let suspicious =
            starts_word && matches!([before[1] | 0x20, byte | 0x20], [b'i', b'n'] | [b'f', b'o']);
        before = [before[1], byte];
        !suspicious
            && (byte.is_ascii_alphanumeric()
                || matches!(byte, b' ' | b',' | b'.' | b'=' | b'*' | b'_' | b'<' | b'>' | b'+' | b'\n'))
    })
}

/// The name behind a leading `EXECUTE`, as the server reads it.
fn executed_name(text: &[u8]) -> Option<Box<[u8]>> {
    let text = text.trim_ascii_start();
    let rest = text.get(b"EXECUTE".len()..)?.trim_ascii_start();
    if let Some(quoted) = rest.strip_prefix(b"\"") {
        return Some(quoted.split(|&b| b == b'"').next()?.into());
    }
    let end = rest.iter().position(|&b| !b.is_ascii_alphanumeric() && b != b'_' && b < 0x80);
    Some(rest.get(..end.unwrap_or(rest.len()))?.to_ascii_lowercase().into())
}

/// Settings that PostgreSQL itself forgets at the end of the transaction, or that have no value to read.
fn is_transaction_local(name: &str) -> bool {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    is("transaction_isolation") || is("transaction_read_only") || is("transaction_deferrable") || is("seed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_selects_are_told_from_those_that_are_not() {
        // A wrong "plain" would hide a write or a change of session state.
        for text in [
            "SELECT 1",
            "select a.b, c from t where d = 5;",
            "SELECT abalance FROM pgbench_accounts WHERE aid = 7;",
        ] {
            assert!(is_plain_select(text.as_bytes()), "{text}");
        }
        for text in [
            "SELECT nextval('s')",
            "SELECT a INTO t FROM u",
            "SELECT a FROM t FOR UPDATE",
            "SELECT a FROM t\nfor share",
            "SELECT 1; SET x = 1",
            "SELECT 1 /* x */",
            "SELECT $$x$$",
            "SELECT\tnextval",
            "WITH x AS (DELETE FROM t) SELECT 1",
        ] {
            assert!(!is_plain_select(text.as_bytes()), "{text}");
        }
    }

    proptest! {
        #[test]
        fn the_short_cut_finds_what_the_analysis_finds(words in proptest::collection::vec(
            "(select|from|where|into|for|update|share|temp|a|b_c|1|,|=|\\*|;|set|x\\.y|INTO|For|in|foo|intro| |\n)", 0..12)) {
            // Everything that the short cut takes must be a read without effects for the real analysis too.
            let text = format!("SELECT {}", words.join(" "));
            if is_plain_select(text.as_bytes()) {
                let analysis = sql::analyze(text.as_bytes(), PlainStrings::Standard);
                prop_assert!(matches!(analysis.verdict, Verdict::Read), "{text:?}: {:?}", analysis.verdict);
                prop_assert!(analysis.effects.is_empty() && analysis.statements == 1, "{text:?}");
                prop_assert_eq!(analysis.first, StatementKind::Select);
            }
        }
    }
}
