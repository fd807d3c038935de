//! Walks over the statements of a text.

use super::analysis::{Analysis, StatementKind};
use super::body::{Before, Body};
use super::effects::{Effect, PinReason};
use super::lane::{LaneFinder, LaneMark, Placement, Strength};
use super::lexer::{Lexer, PlainStrings, Token, TokenKind};
use super::name::Name;
use super::transaction::{Chain, End, TransactionControl};

/// More effects than this in one text pin the backend instead of being listed.
const EFFECTS_MAX: usize = 256;

/// The walk: a lexer with one token of lookahead, and what was found so far.
#[derive(Debug)]
pub(super) struct Analyzer<'a> {
    lexer: Lexer<'a>,
    /// The token that comes next.
    pub(super) current: Token,
    /// Where the token before it ended.
    pub(super) previous_end: usize,
    pub(super) lane: LaneFinder<'a>,
    pub(super) transaction: TransactionControl,
    placement: Placement,
    effects: Vec<Effect<'a>>,
}

/// A place to go back to when a statement turns out not to be executed.
#[derive(Debug, Clone, Copy)]
struct Mark {
    lane: LaneMark,
    placement: Placement,
    effects: usize,
}

/// The longest word that we look for has 12 letters.
pub(super) type WordBuffer = [u8; 16];

impl<'a> Analyzer<'a> {
    pub(super) fn new(text: &'a [u8], strings: PlainStrings) -> Self {
        let mut lexer = Lexer::new(text, strings);
        let current = lexer.next();
        Self {
            lexer,
            current,
            previous_end: 0,
            lane: LaneFinder::new(),
            transaction: TransactionControl::default(),
            placement: Placement::Any,
            effects: Vec::new(),
        }
    }

    pub(super) fn run(mut self) -> Analysis<'a> {
        let mut statements = 0_u32;
        let (mut first, mut last) = (StatementKind::Empty, StatementKind::Empty);
        loop {
            match self.current.kind {
                TokenKind::End => break,
                TokenKind::Semicolon => {
                    self.bump();
                }
                _ => {
                    last = self.statement();
                    first = if statements == 0 { last } else { first };
                    statements = statements.saturating_add(1);
                }
            }
        }
        Analysis {
            statements,
            first,
            last,
            verdict: self.lane.verdict(),
            placement: self.placement,
            transaction: self.transaction,
            effects: self.effects,
            hints: self.lexer.into_hints(),
        }
    }

    /// Takes the current token.
    #[inline]
    pub(super) fn bump(&mut self) -> Token {
        let token = self.current;
        self.previous_end = token.end;
        self.current = self.lexer.next();
        token
    }

    pub(super) fn text(&self, token: Token) -> &'a [u8] {
        self.lexer.text(token)
    }

    pub(super) fn slice(&self, start: usize, end: usize) -> &'a [u8] {
        self.lexer.slice(start, end)
    }

    /// Whether the current token is this keyword, given in lower case.
    #[inline]
    pub(super) fn at(&self, word: &[u8]) -> bool {
        self.current.kind == TokenKind::Word && self.text(self.current).eq_ignore_ascii_case(word)
    }

    /// Takes the current token if it is this keyword.
    pub(super) fn accept(&mut self, word: &[u8]) -> bool {
        let found = self.at(word);
        if found {
            self.bump();
        }
        found
    }

    /// Whether the statement ends here, seen from outside of any parenthesis.
    pub(super) fn at_end(&self) -> bool {
        matches!(self.current.kind, TokenKind::Semicolon | TokenKind::End)
    }

    /// What an identifier token names.
    pub(super) fn name(&self, token: Token) -> Name<'a> {
        match token.kind {
            TokenKind::Word => Name::folded(self.text(token)),
            TokenKind::QuotedWord => Name::unquoted(self.text(token), b'"'),
            _ => Name::verbatim(self.text(token)),
        }
    }

    /// The content of a plain string. `None` when that takes more than taking the quotes off: a backslash may be an
    /// escape, and a string over several lines has quotes within.
    pub(super) fn literal(&self, token: Token) -> Option<Name<'a>> {
        let text = self.text(token);
        let plain = token.kind == TokenKind::PlainString
            && !text.iter().any(|byte| matches!(byte, b'\\' | b'\n' | b'\r'));
        plain.then(|| Name::unquoted(text, b'\''))
    }

    /// The word in lower case; empty when it is no word, or too long to be one that we know.
    pub(super) fn lower<'b>(&self, token: Token, buffer: &'b mut WordBuffer) -> &'b [u8] {
        let text = self.text(token);
        match buffer.get_mut(..text.len()) {
            Some(place) if token.kind == TokenKind::Word => {
                place.copy_from_slice(text);
                place.make_ascii_lowercase();
                place
            }
            _ => b"",
        }
    }

    pub(super) fn effect(&mut self, effect: Effect<'a>) {
        match self.effects.len() {
            EFFECTS_MAX.. => {}
            length if length == EFFECTS_MAX - 1 => self.effects.push(Effect::Pin(PinReason::Untracked)),
            _ => self.effects.push(effect),
        }
    }

    pub(super) fn needs_primary(&mut self) {
        self.placement = Placement::Primary;
    }

    fn mark(&self) -> Mark {
        Mark { lane: self.lane.mark(), placement: self.placement, effects: self.effects.len() }
    }

    fn rewind(&mut self, mark: Mark) {
        self.lane.rewind(mark.lane);
        self.placement = mark.placement;
        self.effects.truncate(mark.effects);
    }

    /// Passes the rest of the statement, looking for what matters in any of them.
    fn rest(&mut self) {
        Body::new(Before::Word, 0).walk(self);
    }

    fn neutral(&mut self, kind: StatementKind) -> StatementKind {
        self.rest();
        kind
    }

    fn write(&mut self, kind: StatementKind) -> StatementKind {
        self.lane.raise(Strength::Write);
        self.rest();
        kind
    }

    fn statement(&mut self) -> StatementKind {
        if let Some(kind) = self.query(0) {
            return kind;
        }
        let token = self.bump();
        let mut buffer = WordBuffer::default();
        let word = self.lower(token, &mut buffer);
        if let Some(kind) = self.transaction_statement(word).or_else(|| self.session_statement(word)) {
            return kind;
        }
        match word {
            b"explain" => self.explain(),
            b"copy" => self.copy(),
            b"declare" => self.declare(),
            b"create" => self.create(),
            b"execute" => self.write(StatementKind::Execute),
            b"call" => self.write(StatementKind::Call),
            b"do" => self.write(StatementKind::Do),
            b"lock" => self.lock(),
            b"alter" | b"drop" | b"truncate" | b"comment" | b"grant" | b"revoke" | b"security"
            | b"reassign" | b"import" | b"refresh" => self.write(StatementKind::Ddl),
            b"vacuum" | b"analyze" | b"analyse" | b"cluster" | b"reindex" | b"checkpoint" => {
                self.write(StatementKind::Maintenance)
            }
            _ => self.write(StatementKind::Other),
        }
    }

    /// The statements that can stand behind EXPLAIN, PREPARE and COPY too; `depth` parentheses are open.
    fn query(&mut self, depth: u32) -> Option<StatementKind> {
        if self.current.kind == TokenKind::Open {
            return Some(self.select(Before::Start, depth));
        }
        let mut buffer = WordBuffer::default();
        let word = self.lower(self.current, &mut buffer);
        let kind = match word {
            b"select" | b"values" | b"table" => {
                self.bump();
                return Some(self.select(Before::Word, depth));
            }
            b"with" => return Some(self.select(Before::Start, depth)),
            b"insert" => StatementKind::Insert,
            b"update" => StatementKind::Update,
            b"delete" => StatementKind::Delete,
            b"merge" => StatementKind::Merge,
            _ => return None,
        };
        self.bump();
        self.lane.raise(Strength::Write);
        Body::new(Before::Modify, depth).walk(self);
        Some(kind)
    }

    fn select(&mut self, before: Before, depth: u32) -> StatementKind {
        self.lane.raise(Strength::Read);
        let found = Body::new(before, depth).walk(self);
        found.modifies.unwrap_or(StatementKind::Select)
    }

    fn transaction_statement(&mut self, word: &[u8]) -> Option<StatementKind> {
        Some(match word {
            b"begin" | b"start" => {
                let options = self.transaction_options();
                self.transaction.begin(options);
                self.neutral(StatementKind::Begin)
            }
            b"commit" | b"end" => self.commit(),
            b"rollback" | b"abort" => self.rollback(),
            b"savepoint" => self.neutral(StatementKind::Savepoint),
            b"release" => self.neutral(StatementKind::Release),
            b"prepare" => self.prepare(),
            _ => return None,
        })
    }

    fn commit(&mut self) -> StatementKind {
        if self.accept(b"prepared") {
            return self.write(StatementKind::CommitPrepared);
        }
        let chain = self.chain();
        self.transaction.end(End::Commit, chain);
        self.neutral(StatementKind::Commit)
    }

    fn rollback(&mut self) -> StatementKind {
        if self.accept(b"prepared") {
            return self.write(StatementKind::RollbackPrepared);
        }
        let chain = self.chain();
        if self.at(b"to") {
            return self.neutral(StatementKind::RollbackTo);
        }
        self.transaction.end(End::Rollback, chain);
        self.neutral(StatementKind::Rollback)
    }

    /// `[WORK | TRANSACTION] [AND [NO] CHAIN]`
    fn chain(&mut self) -> Chain {
        let _ = self.accept(b"work") || self.accept(b"transaction");
        if self.accept(b"and") && !self.accept(b"no") && self.accept(b"chain") {
            Chain::Yes
        } else {
            Chain::No
        }
    }

    /// PREPARE runs nothing; what it prepares is run by EXECUTE.
    fn prepare(&mut self) -> StatementKind {
        let transaction = self.at(b"transaction");
        if !self.at_end() {
            self.bump();
        }
        if transaction && matches!(self.current.kind, TokenKind::PlainString | TokenKind::EscapeString) {
            self.transaction.end(End::Prepare, Chain::No);
            return self.write(StatementKind::PrepareTransaction);
        }
        self.effect(Effect::Pin(PinReason::Prepare));
        while !self.at_end() && !self.accept(b"as") {
            self.bump();
        }
        let mark = self.mark();
        if self.query(0).is_none() {
            self.rest();
        }
        self.rewind(mark);
        StatementKind::Prepare
    }

    fn session_statement(&mut self, word: &[u8]) -> Option<StatementKind> {
        Some(match word {
            b"set" => self.set(),
            b"reset" => self.reset(),
            b"show" => self.show(),
            b"fetch" | b"move" => self.neutral(StatementKind::Fetch),
            b"close" => {
                self.unpin_if(b"all", PinReason::HoldCursor);
                self.neutral(StatementKind::Close)
            }
            b"deallocate" => self.deallocate(),
            b"discard" => self.discard(),
            b"listen" => self.notification(StatementKind::Listen),
            b"unlisten" => self.notification(StatementKind::Unlisten),
            b"notify" => self.notification(StatementKind::Notify),
            b"load" => {
                self.effect(Effect::Pin(PinReason::Load));
                self.neutral(StatementKind::Load)
            }
            _ => return None,
        })
    }

    fn unpin_if(&mut self, word: &[u8], reason: PinReason) {
        if self.at(word) {
            self.effect(Effect::Unpin(reason));
        }
    }

    fn notification(&mut self, kind: StatementKind) -> StatementKind {
        self.lane.raise(Strength::Read);
        self.needs_primary();
        match kind {
            StatementKind::Listen => self.effect(Effect::Pin(PinReason::Listen)),
            StatementKind::Unlisten if self.text(self.current) == b"*" => {
                self.effect(Effect::Unpin(PinReason::Listen));
            }
            _ => {}
        }
        self.neutral(kind)
    }

    /// `DEALLOCATE [PREPARE] { name | ALL }`
    fn deallocate(&mut self) -> StatementKind {
        let first = self.current;
        let mut target = first;
        if self.accept(b"prepare") && !self.at_end() {
            target = self.current;
        }
        if target.kind == TokenKind::Word && self.text(target).eq_ignore_ascii_case(b"all") {
            self.effect(Effect::DeallocateAll);
            self.effect(Effect::Unpin(PinReason::Prepare));
        } else {
            let name = self.name(target);
            self.effect(Effect::Deallocate { name });
        }
        self.neutral(StatementKind::Deallocate)
    }

    fn discard(&mut self) -> StatementKind {
        if self.at(b"all") {
            self.effect(Effect::DiscardAll);
        } else {
            self.effect(Effect::DiscardOther);
            self.unpin_if(b"temp", PinReason::TempTable);
            self.unpin_if(b"temporary", PinReason::TempTable);
        }
        self.neutral(StatementKind::Discard)
    }

    /// `EXPLAIN [ANALYZE] [VERBOSE] statement` or `EXPLAIN (option [value], ...) statement`
    fn explain(&mut self) -> StatementKind {
        let mark = self.mark();
        let mut executes = false;
        let mut depth = 0;
        if self.current.kind == TokenKind::Open {
            self.bump();
            if self.current.kind == TokenKind::Open || self.at_query() {
                depth = 1;
            } else {
                executes = self.explain_options();
            }
        }
        loop {
            if self.accept(b"analyze") || self.accept(b"analyse") {
                executes = true;
            } else if !self.accept(b"verbose") {
                break;
            }
        }
        self.explained(depth);
        if !executes {
            self.rewind(mark);
        }
        self.lane.raise(Strength::Read);
        StatementKind::Explain
    }

    /// SELECT and the like are reserved, so they cannot be options.
    fn at_query(&self) -> bool {
        self.at(b"select") || self.at(b"with") || self.at(b"values") || self.at(b"table")
    }

    /// Whether the options, up to the closing parenthesis, ask for execution. The last ANALYZE counts.
    fn explain_options(&mut self) -> bool {
        let mut executes = false;
        while !self.at_end() {
            let option = self.bump();
            if option.kind == TokenKind::Close {
                break;
            }
            let text = self.text(option);
            if text.eq_ignore_ascii_case(b"analyze") || text.eq_ignore_ascii_case(b"analyse") {
                let value = self.text(self.current);
                let value = value.strip_prefix(b"'").and_then(|v| v.strip_suffix(b"'")).unwrap_or(value);
                executes = ![&b"off"[..], b"false", b"0"].iter().any(|off| value.eq_ignore_ascii_case(off));
            }
        }
        executes
    }

    fn explained(&mut self, depth: u32) {
        if self.query(depth).is_some() {
            return;
        }
        if self.accept(b"declare") {
            self.declare();
        } else if self.accept(b"create") {
            self.create();
        } else {
            // EXECUTE, REFRESH.
            self.write(StatementKind::Other);
        }
    }

    /// `COPY (query) TO`, `COPY table [(columns)] { FROM | TO }`
    fn copy(&mut self) -> StatementKind {
        if self.current.kind == TokenKind::Open {
            self.bump();
            if self.query(1).is_none() {
                self.write(StatementKind::Other);
            }
            return StatementKind::CopyTo;
        }
        while !self.at_end() {
            if self.accept(b"to") {
                self.lane.raise(Strength::Read);
                return self.neutral(StatementKind::CopyTo);
            }
            if self.accept(b"from") {
                break;
            }
            self.bump();
        }
        self.write(StatementKind::CopyFrom)
    }

    /// `DECLARE name ... CURSOR [WITH HOLD] FOR query`
    fn declare(&mut self) -> StatementKind {
        if !self.at_end() {
            self.bump();
        }
        let mut hold = false;
        while !self.at_end() && !self.accept(b"for") {
            hold |= self.accept(b"with") && self.at(b"hold");
            if !self.at_end() {
                self.bump();
            }
        }
        if hold {
            self.effect(Effect::Pin(PinReason::HoldCursor));
        }
        self.select(Before::Start, 0);
        StatementKind::Declare
    }

    fn create(&mut self) -> StatementKind {
        self.lane.raise(Strength::Write);
        let mut temporary = false;
        loop {
            if self.accept(b"temp") || self.accept(b"temporary") {
                temporary = true;
            } else if !["or", "replace", "local", "global"].iter().any(|word| self.accept(word.as_bytes())) {
                break;
            }
        }
        let mut body = Body::new(Before::Word, 0);
        if self.at(b"function") || self.at(b"procedure") {
            body = body.with_routine();
        }
        let found = body.walk(self);
        if (temporary || found.temporary_schema) && !found.on_commit_drop {
            self.effect(Effect::Pin(PinReason::TempTable));
        }
        StatementKind::Ddl
    }

    /// A write, but for `IN ACCESS SHARE MODE`; see the module `lane`.
    fn lock(&mut self) -> StatementKind {
        let mut strength = Strength::Write;
        while !self.at_end() {
            if self.accept(b"in") && self.accept(b"access") && self.accept(b"share") {
                strength = Strength::Read;
            } else if !self.at_end() {
                self.bump();
            }
        }
        self.lane.raise(strength);
        StatementKind::Lock
    }
}
