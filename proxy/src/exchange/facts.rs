//! What a statement's text tells about its effects, in a form that can be kept with a prepared statement.

use std::sync::Arc;

use crate::sql::terms::{Command, Overrides, PREFIX, ResetTag, Setting, Span};
use crate::sql::{
    self, Access, Analysis, Effect, FunctionName, Isolation, Name, PinReason, Placement, PlainStrings, Scope,
    StatementKind, Value, Verdict,
};

/// A function that a text calls, and that is not known by its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Callee {
    /// The schema, when the call names it.
    pub schema: Option<Box<[u8]>>,
    /// The function.
    pub name: Box<[u8]>,
}

impl Callee {
    fn of(function: &FunctionName<'_>) -> Self {
        Self {
            schema: function.schema.as_ref().map(|s| s.as_bytes().into()),
            name: function.name.as_bytes().into(),
        }
    }

    /// Whether a server with any encoding understands the name.
    pub fn can_be_asked(&self) -> bool {
        self.name.is_ascii() && self.schema.as_ref().is_none_or(|schema| schema.is_ascii())
    }
}

/// Statements that we run ourselves.
pub type Commands = Arc<[Command]>;

/// What running a text may do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, not a state")]
pub struct Facts {
    /// The lane that it needs by itself.
    pub lane: Need,
    /// Which servers may run it.
    pub reach: Reach,
    /// It needs to write only if one of these functions is volatile, else to read.
    pub callees: Option<Arc<[Callee]>>,
    /// Whether the transaction that is open behind it may write, when it says so.
    pub access: Option<Access>,
    /// What its comments ask for.
    pub hints: Overrides,
    /// The kind of its first statement.
    pub first: StatementKind,
    /// How many statements it has.
    pub statements: u32,
    /// Whether it may begin a transaction.
    pub begins: bool,
    /// Whether it may make a transaction durable by its own words.
    pub commits: bool,
    /// Whether it may end a transaction, one way or the other.
    pub ends_transaction: bool,
    /// Whether a COMMIT is the last of its statements, and the only one that ends a transaction.
    pub commits_last: bool,
    /// Whether it may roll something back.
    pub rolls_back: bool,
    /// Whether it ends a transaction and begins the next one at once (`AND CHAIN`).
    pub chains: bool,
    /// Whether it may change the columns of a table that others know.
    pub alters_schema: bool,
    /// Whether it may make or change functions.
    pub alters_functions: bool,
    /// The prepared statement that it runs by SQL `EXECUTE`, when it does nothing else.
    pub executes: Option<Box<[u8]>>,
    /// Its statements, when all of them are about settings of ours.
    pub commands: Option<Commands>,
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

/// Which servers may run a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Reach {
    /// Any that answers reads.
    #[default]
    Anywhere,
    /// The primary, or another one while there is none.
    PreferPrimary,
    /// The primary.
    Primary,
}

impl Reach {
    /// Of whatever runs where `default_transaction_isolation` has this value.
    pub fn under(isolation: &[u8]) -> Self {
        let serializable = isolation.eq_ignore_ascii_case(Isolation::Serializable.as_str().as_bytes());
        if serializable { Self::Primary } else { Self::Anywhere }
    }

    fn of(analysis: &sql::Analysis<'_>) -> Self {
        let pins = analysis.effects.iter().any(|effect| matches!(effect, Effect::Pin(_)));
        let begins = analysis.transaction.begins > 0;
        let isolation = analysis.transaction.options.isolation;
        match &analysis.verdict {
            _ if pins || analysis.placement == Placement::Primary => Self::Primary,
            _ if isolation == Some(Isolation::Serializable) => Self::Primary,
            Verdict::Write => Self::Primary,
            Verdict::Depends(_) | Verdict::Neutral | Verdict::Read
                if begins && !analysis.read_only_transaction() =>
            {
                Self::Primary
            }
            Verdict::Neutral if begins => Self::Anywhere,
            // SET, SHOW and the like: what they say of the server should be true of the primary.
            Verdict::Neutral => Self::PreferPrimary,
            Verdict::Depends(_) | Verdict::Read if analysis.placement == Placement::PreferPrimary => {
                Self::PreferPrimary
            }
            // What the lane says of the functions decides.
            Verdict::Depends(_) | Verdict::Read => Self::Anywhere,
        }
    }
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
    /// A setting of ours changes.
    Term(Command),
}

impl Default for Facts {
    /// What must be assumed of a text that cannot be read.
    fn default() -> Self {
        Self {
            lane: Need::Write,
            reach: Reach::Primary,
            callees: None,
            access: None,
            hints: Overrides::default(),
            alters_functions: true,
            first: StatementKind::Other,
            statements: 1,
            begins: true,
            commits: true,
            ends_transaction: true,
            commits_last: false,
            rolls_back: true,
            chains: false,
            alters_schema: true,
            executes: None,
            commands: None,
            changes: vec![Change::Pin(PinReason::Untracked)],
        }
    }
}

impl Facts {
    /// Those of a text for which [`is_plain_select`] holds.
    pub(crate) const PLAIN_SELECT: Self = Self {
        lane: Need::Read,
        reach: Reach::Anywhere,
        callees: None,
        access: None,
        hints: Overrides::NONE,
        alters_functions: false,
        first: StatementKind::Select,
        statements: 1,
        begins: false,
        commits: false,
        ends_transaction: false,
        commits_last: false,
        rolls_back: false,
        chains: false,
        alters_schema: false,
        executes: None,
        commands: None,
        changes: Vec::new(),
    };

    /// Analyses a text. Allocates only when the text changes session state, or when this thread has not seen its like
    /// lately.
    pub fn of(text: &[u8]) -> Self {
        if is_plain_select(text) {
            return Self::PLAIN_SELECT;
        }
        super::remembered::facts(text, || Self::analysed(text))
    }

    pub(super) fn analysed(text: &[u8]) -> Self {
        if let Some(commands) = sql::commands(text) {
            return Self::of_commands(commands);
        }
        let facts = Self::read(text, PlainStrings::Standard);
        if sql::has_two_readings(text) {
            facts.no_less_than(Self::read(text, PlainStrings::Backslashes))
        } else {
            facts
        }
    }

    fn read(text: &[u8], strings: PlainStrings) -> Self {
        let analysis = sql::analyze(text, strings);
        let lane = match &analysis.verdict {
            Verdict::Neutral => Need::Neutral,
            Verdict::Read => Need::Read,
            Verdict::Depends(_) | Verdict::Write => Need::Write,
        };
        let callees = match &analysis.verdict {
            Verdict::Depends(functions) => Some(functions.iter().map(Callee::of).collect()),
            Verdict::Neutral | Verdict::Read | Verdict::Write => None,
        };
        Self {
            lane,
            reach: Reach::of(&analysis),
            callees,
            access: analysis.transaction.options.access,
            hints: analysis.hints.terms,
            alters_functions: alters_functions(&analysis, text),
            first: analysis.first,
            statements: analysis.statements,
            begins: analysis.transaction.begins > 0,
            commits: analysis.transaction.commits + analysis.transaction.prepares > 0,
            ends_transaction: analysis.transaction.commits
                + analysis.transaction.rollbacks
                + analysis.transaction.prepares
                > 0,
            commits_last: analysis.last == StatementKind::Commit
                && analysis.transaction.commits == 1
                && analysis.transaction.rollbacks + analysis.transaction.prepares == 0,
            rolls_back: analysis.transaction.rollbacks > 0
                || [analysis.first, analysis.last].contains(&StatementKind::RollbackTo)
                || analysis.statements > 2,
            chains: analysis.transaction.chains > 0,
            alters_schema: analysis.effects.is_empty()
                && [analysis.first, analysis.last].contains(&StatementKind::Ddl),
            executes: (analysis.first == StatementKind::Execute && analysis.statements == 1)
                .then(|| executed_name(text))
                .flatten(),
            commands: None,
            changes: analysis.effects.iter().filter_map(Change::of).collect(),
        }
    }

    /// What must be assumed of a text that has two readings, of which the server follows one: the lane is the stronger one
    /// of both, and what either commits is committed. For the rest it is taken at this one, that of PostgreSQL's default.
    fn no_less_than(self, other: Self) -> Self {
        let callees = match (self.lane, self.callees, other.lane, other.callees) {
            (Need::Write, None, ..) | (_, _, Need::Write, None) => None,
            (_, Some(these), _, Some(those)) => Some(these.iter().chain(&*those).cloned().collect()),
            (_, these, _, those) => these.or(those),
        };
        Self {
            lane: self.lane.max(other.lane),
            callees,
            reach: self.reach.max(other.reach),
            commits: self.commits || other.commits,
            ..self
        }
    }

    /// Should the server get it after all, it counts for us too.
    fn of_commands(commands: Vec<Command>) -> Self {
        Self {
            lane: Need::Neutral,
            first: StatementKind::Set,
            statements: u32::try_from(commands.len()).unwrap_or(u32::MAX),
            changes: commands.iter().cloned().map(Change::Term).collect(),
            commands: Some(commands.into()),
            ..Self::PLAIN_SELECT
        }
    }

    /// Whether it is a single statement that reads, on any server, and does nothing else.
    pub fn is_plain(&self) -> bool {
        let Self { statements, lane, reach, callees, access, hints, .. } = self;
        let only_reads = *lane == Need::Read && *reach == Reach::Anywhere && callees.is_none();
        let as_it_stands = access.is_none() && hints.is_empty() && self.executes.is_none();
        let does_more = self.begins
            || self.commits
            || self.ends_transaction
            || self.rolls_back
            || self.chains
            || self.alters_schema
            || self.alters_functions;
        let changes = self.commands.is_some() || !self.changes.is_empty();
        *statements == 1 && only_reads && as_it_stands && !does_more && !changes
    }

    /// Whether it ends a failed transaction (`IsTransactionExitStmt` in `src/backend/tcop/postgres.c`).
    pub fn ends_failed_transaction(&self) -> bool {
        matches!(
            self.first,
            StatementKind::Commit | StatementKind::Rollback | StatementKind::PrepareTransaction
        )
    }

    /// Whether it may commit something and then go on: an error of it says nothing of what it has done before. Procedures and
    /// DO blocks can do that `outside` of a transaction.
    pub fn may_commit_midway(&self, outside: bool) -> bool {
        if self.statements > 1 {
            self.commits && !self.commits_last
        } else {
            outside && matches!(self.first, StatementKind::Call | StatementKind::Do)
        }
    }

    /// Whether it drops temporary tables, if there are any. Their rows in the catalog are deleted: that is a write.
    pub fn discards_temporary(&self) -> bool {
        self.changes
            .iter()
            .any(|change| matches!(change, Change::DiscardAll | Change::Unpin(PinReason::TempTable)))
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
            Effect::SetParameter { name, scope, value } if is_ours(name) => term(name, *scope, value),
            Effect::ResetParameter { name } if is_ours(name) => term(name, Scope::Session, &Value::Default),
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

/// Whether a text has DDL in it that may be about functions. What is found too much only costs a lookup.
fn alters_functions(analysis: &Analysis<'_>, text: &[u8]) -> bool {
    const WORDS: [&[u8]; 6] = [b"function", b"procedure", b"routine", b"aggregate", b"extension", b"schema"];
    let ddl = [analysis.first, analysis.last].contains(&StatementKind::Ddl)
        || (analysis.statements > 2 && analysis.verdict == Verdict::Write);
    ddl && WORDS.iter().any(|word| text.windows(word.len()).any(|at| at.eq_ignore_ascii_case(word)))
}

fn is_ours(name: &Name<'_>) -> bool {
    name.as_bytes().starts_with(PREFIX.as_bytes())
}

/// A SET or RESET of ours among other statements; one that is in error is none.
fn term(name: &Name<'_>, scope: Scope, value: &Value<'_>) -> Option<Change> {
    let setting = Setting::parse(name.as_bytes())?;
    let span = match scope {
        Scope::Session => Span::Session,
        Scope::Transaction => Span::Transaction,
    };
    let command = match value {
        Value::Default => Command::Reset(setting, span, ResetTag::Set),
        Value::Text(text) => Command::Set(setting.read(text.as_bytes()).ok()?, span),
        Value::Raw(_) => return None,
    };
    Some(Change::Term(command))
}

/// Whether a text is a SELECT so plain that one look at each byte proves it: no call, no quote, no comment, no
/// second statement, and no word that begins as INTO, FOR or names of PostgreSQL's own do. Most texts of most
/// applications are.
pub(crate) fn is_plain_select(text: &[u8]) -> bool {
    let Some((start, rest)) = text.split_first_chunk::<7>() else { return false };
    if !start.eq_ignore_ascii_case(b"SELECT ") {
        return false;
    }
    let rest = rest.strip_suffix(b";").unwrap_or(rest);
    // Eight at a time: a branch for each byte would cost more than to look at it.
    let (blocks, tail) = rest.as_chunks::<8>();
    blocks.iter().all(|block| are_plain(block))
        && are_plain(tail)
        && !has_word(rest, b'i', b'n')
        && !has_word(rest, b'f', b'o')
        && only_parameters(rest)
        && !has_system_name(rest)
}

#[inline]
fn are_plain(bytes: &[u8]) -> bool {
    let is_plain = |byte: &u8| PLAIN.get(usize::from(*byte)).is_some_and(|plain| *plain);
    bytes.iter().fold(true, |all, byte| all & is_plain(byte))
}

/// Bytes of which no call, quote, comment or second statement can be made.
static PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "below 256")]
        let b = byte as u8;
        plain[byte] = b.is_ascii_alphanumeric()
            || matches!(b, b' ' | b',' | b'.' | b'=' | b'*' | b'_' | b'<' | b'>' | b'+' | b'\n' | b'$');
        byte += 1;
    }
    plain
};

/// Whether a word begins with these two letters (given in lower case). One may stand right behind a number: up to
/// PostgreSQL 14 `LIMIT 1FOR UPDATE` is valid.
fn has_word(text: &[u8], first: u8, second: u8) -> bool {
    memchr::memchr2_iter(first, first.to_ascii_uppercase(), text).any(|at| {
        let before = at.checked_sub(1).and_then(|before| text.get(before));
        let starts_word = before.is_none_or(|byte| !byte.is_ascii_alphabetic() && *byte != b'_');
        starts_word && text.get(at + 1).is_some_and(|byte| byte.eq_ignore_ascii_case(&second))
    })
}

/// A number in a text: as many digits from there on as there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Number {
    at: usize,
    end: usize,
}

impl Number {
    /// The one that is all in which a text differs from a known one; `None` if they differ otherwise. Both are plain then,
    /// or neither: digits belong to the same words, parameters or numbers, however many of them there are.
    pub(crate) fn differing(known: &[u8], text: &[u8]) -> Option<Self> {
        let same = common_prefix(known, text);
        let (before, behind) = known.split_at_checked(same)?;
        let at = same - digits(before.iter().rev());
        Self { at, end: same + digits(behind.iter()) }.replaced(known, text)
    }

    /// The number in its place in a text that is the same otherwise; `None` if it is not.
    #[inline]
    pub(crate) fn replaced(self, known: &[u8], text: &[u8]) -> Option<Self> {
        let Self { at, end: known_end } = self;
        let end = at + digits(text.get(at..)?.iter());
        let are_numbers = known_end > at && end > at;
        let is_same =
            are_numbers && known.get(..at) == text.get(..at) && known.get(known_end..) == text.get(end..);
        is_same.then_some(Self { at, end })
    }
}

#[inline]
fn digits<'a>(bytes: impl Iterator<Item = &'a u8>) -> usize {
    bytes.take_while(|byte| byte.is_ascii_digit()).count()
}

#[inline]
fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    let blocks =
        a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0).take_while(|(a, b)| a == b).count() * 8;
    let (a, b) = (a.get(blocks..).unwrap_or_default(), b.get(blocks..).unwrap_or_default());
    blocks + a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Whether there may be a name of PostgreSQL's own (`pg_...`) in it: some are about the server that is asked.
fn has_system_name(text: &[u8]) -> bool {
    memchr::memchr_iter(b'_', text).any(|at| {
        let before = at.checked_sub(2).and_then(|start| text.get(start..at));
        before.is_some_and(|word| word.eq_ignore_ascii_case(b"pg"))
    })
}

/// Whether every dollar sign is a parameter (`$1`), and none begins a quote.
fn only_parameters(text: &[u8]) -> bool {
    memchr::memchr_iter(b'$', text).all(|at| text.get(at + 1).is_some_and(u8::is_ascii_digit))
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
    fn what_either_reading_of_a_backslash_writes_is_a_write() {
        // A session that has set `standard_conforming_strings = off` would have its write let through as a read: what calls
        // the function in one reading is a string in the other.
        let lane = |text: &str| {
            let facts = Facts::of(text.as_bytes());
            let callees = facts.callees.iter().flat_map(|callees| callees.iter()).count();
            (facts.lane, callees, facts.commits)
        };

        for text in [
            r"SELECT '\'', nextval('s') --'",
            r"SELECT N'\'', nextval('s') --'",
            r"SELECT 1 WHERE a = '\'';DELETE FROM t --'",
            r"SELECT '\', nextval(''s'')'",
            r"SELECT f('\'', nextval('s')) --')",
        ] {
            assert_eq!(lane(text), (Need::Write, 0, false), "{text}");
        }
        assert_eq!(lane(r"SELECT f('\'', g('s')) --')"), (Need::Write, 3, false));
        assert_eq!(lane(r"SELECT '\''; COMMIT; SELECT ' --'"), (Need::Read, 0, true));
        // It costs nobody else anything.
        for text in
            [r"SELECT 'C:\', 'C:\dir'", r"SELECT E'it\'s', 'a'", r"SELECT 'a\b', $$\'$$", r"SELECT B'\'"]
        {
            assert_eq!(lane(text), (Need::Read, 0, false), "{text}");
        }
    }

    #[test]
    fn only_one_read_and_nothing_else_is_plain() {
        // What is plain is sent as a read without another look: a write among it would escape the bound of its lane,
        // and what changes the session would go unnoticed.
        let is_plain = |text: &str| Facts::of(text.as_bytes()).is_plain();
        for text in ["SELECT 1", "SELECT a FROM t WHERE b = $1", "SELECT lower(a) FROM t", "SELECT 'x'"] {
            assert!(is_plain(text), "{text}");
        }
        for text in [
            "",
            "SELECT 1; SELECT 2",
            "SELECT unknown_function()",
            "SELECT a FROM t FOR UPDATE",
            "SELECT a INTO b FROM t",
            "/*tidegate:priority=sheddable*/ SELECT 1",
            "SELECT set_config('a.b', 'c', false)",
            "SELECT pg_advisory_lock(1)",
            "UPDATE t SET a = 1",
            "BEGIN",
            "COMMIT",
            "SET a.b = 'c'",
            "SET tidegate.deadline_ms = 1",
            "SHOW a.b",
            "EXECUTE a",
            "DEALLOCATE a",
            "LISTEN a",
        ] {
            assert!(!is_plain(text), "{text}");
        }
    }

    #[test]
    fn texts_that_differ_in_a_number_are_recognised() {
        // Each text with another number in it would be looked at as if it were new.
        let rows = [
            ("SELECT a FROM t WHERE b = 12;", "SELECT a FROM t WHERE b = 7;", true),
            ("SELECT a FROM t WHERE b = 12;", "SELECT a FROM t WHERE b = 123;", true),
            ("SELECT a FROM t WHERE b = 12", "SELECT a FROM t WHERE b = 1", true),
            ("SELECT a FROM t WHERE b = 12", "SELECT a FROM t WHERE b = 12 FOR UPDATE", false),
            ("SELECT a FROM t WHERE b = 12", "SELECT a FROM t WHERE b = c", false),
            ("SELECT a FROM t WHERE b = $1", "SELECT a FROM t WHERE b = $", false),
            ("SELECT 1into", "SELECT into", false),
            ("", "SELECT 1", false),
        ];
        for (known, text, wanted) in rows {
            let number = Number::differing(known.as_bytes(), text.as_bytes());
            assert_eq!(number.is_some(), wanted, "{known} {text}");
            let Some(number) = number else { continue };
            let back = number.replaced(text.as_bytes(), known.as_bytes());
            let again = back.and_then(|number| number.replaced(known.as_bytes(), text.as_bytes()));
            assert_eq!(again, Some(number), "put back and replaced again: {known} {text}");
        }
    }

    #[test]
    fn plain_selects_are_told_from_those_that_are_not() {
        // A wrong "plain" would hide a write or a change of session state.
        for text in [
            "SELECT 1",
            "select a.b, c from t where d = 5;",
            "SELECT abalance FROM pgbench_accounts WHERE aid = 7;",
            "SELECT abalance FROM pgbench_accounts WHERE aid = $1;",
        ] {
            assert!(is_plain_select(text.as_bytes()), "{text}");
        }
        for text in [
            "SELECT nextval('s')",
            "SELECT a INTO t FROM u",
            "SELECT a FROM t FOR UPDATE",
            "SELECT a FROM t\nfor share",
            "SELECT a FROM t LIMIT 1FOR UPDATE",
            "SELECT 1into t FROM u",
            "SELECT $1INTO t",
            "SELECT 1; SET x = 1",
            "SELECT 1 /* x */",
            "SELECT $$x$$",
            "SELECT pid FROM pg_stat_activity",
            "SELECT\tnextval",
            "WITH x AS (DELETE FROM t) SELECT 1",
        ] {
            assert!(!is_plain_select(text.as_bytes()), "{text}");
        }
    }

    proptest! {
        #[test]
        fn another_number_leaves_a_text_as_plain_as_it_was(
            before in "[ a-z0-9$,;'(.]{0,24}", numbers in ("[0-9]{0,3}", "[0-9]{0,3}"), after in "[ a-z0-9$,;'(.]{0,12}",
        ) {
            // A text would be sent as a read because of another one that is no model for it: `$1` and `$`, `1into` and
            // `into`.
            let text = |number: &str| format!("SELECT {before}{number}{after}");
            let (known, text) = (text(&numbers.0), text(&numbers.1));
            if Number::differing(known.as_bytes(), text.as_bytes()).is_some() {
                prop_assert_eq!(
                    is_plain_select(known.as_bytes()), is_plain_select(text.as_bytes()), "{:?} {:?}", known, text
                );
            }
        }

        #[test]
        fn the_short_cut_finds_what_the_analysis_finds(words in proptest::collection::vec(
            "(select|from|where|into|for|update|share|temp|a|b_c|1|\\$1|\\$|\\$\\$|,|=|\\*|;|set|x\\.y|INTO|For|in|foo|intro| |\n)", 0..12)) {
            // Everything that the short cut takes must be a read without effects for the real analysis too.
            for text in ["", " "].map(|between| format!("SELECT {}", words.join(between))) {
                if !is_plain_select(text.as_bytes()) {
                    continue;
                }
                let analysis = sql::analyze(text.as_bytes(), PlainStrings::Standard);
                prop_assert!(matches!(analysis.verdict, Verdict::Read), "{text:?}: {:?}", analysis.verdict);
                prop_assert!(analysis.effects.is_empty() && analysis.statements == 1, "{text:?}");
                prop_assert_eq!(analysis.first, StatementKind::Select);
            }
        }
    }
}
