//! Walks over the statements of a text.

use super::analysis::{Analysis, StatementKind};
use super::body::{Before, Body};
use super::effects::{Effect, PinReason};
use super::lane::{LaneFinder, LaneMark, Placement, Strength};
use super::lexer::{Lexer, PlainStrings};
use super::name::Name;
use super::token::{Token, TokenKind};
use super::transaction::TransactionControl;

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
pub(super) struct Mark {
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

    pub(super) fn needs(&mut self, placement: Placement) {
        self.placement = self.placement.max(placement);
    }

    pub(super) fn mark(&self) -> Mark {
        Mark { lane: self.lane.mark(), placement: self.placement, effects: self.effects.len() }
    }

    pub(super) fn rewind(&mut self, mark: Mark) {
        self.lane.rewind(mark.lane);
        self.placement = mark.placement;
        self.effects.truncate(mark.effects);
    }

    /// Passes the rest of the statement, looking for what matters in any of them.
    pub(super) fn rest(&mut self) {
        Body::new(Before::Word, 0).walk(self);
    }

    pub(super) fn neutral(&mut self, kind: StatementKind) -> StatementKind {
        self.rest();
        kind
    }

    pub(super) fn write(&mut self, kind: StatementKind) -> StatementKind {
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
    pub(super) fn query(&mut self, depth: u32) -> Option<StatementKind> {
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

    pub(super) fn select(&mut self, before: Before, depth: u32) -> StatementKind {
        self.lane.raise(Strength::Read);
        let found = Body::new(before, depth).walk(self);
        found.modifies.unwrap_or(StatementKind::Select)
    }
}
