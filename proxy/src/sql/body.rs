//! Walks over a statement from some point to its end, whatever its kind, and finds what matters anywhere:
//! function calls, row locks, data-modifying WITH queries, INTO.

use super::analysis::StatementKind;
use super::analyzer::Analyzer;
use super::builtins::{Builtin, lookup, tells};
use super::effects::{Effect, PinReason, Scope};
use super::keywords::{Keyword, keyword};
use super::lane::{FunctionName, Placement, Strength};
use super::name::Name;
use super::token::{Token, TokenKind};

/// What stands before the current token, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    /// Nothing: a query starts here.
    Start,
    /// `(`.
    Open,
    /// `)`.
    Close,
    /// `,`.
    Comma,
    /// `.`.
    Dot,
    /// `::`.
    Cast,
    /// AS.
    As,
    /// INTO.
    Into,
    /// WITH at the start of a query, or RECURSIVE behind it.
    With,
    /// INSERT, UPDATE, DELETE, MERGE as a statement.
    Modify,
    /// ON.
    On,
    /// Any other word.
    Word,
    /// Anything else.
    Other,
}

/// What a walk found that its caller must judge.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Found {
    /// The query was one WITH ... INSERT, UPDATE, DELETE or MERGE.
    pub(super) modifies: Option<StatementKind>,
    /// Something is qualified with `pg_temp`.
    pub(super) temporary_schema: bool,
    /// ON COMMIT DROP.
    pub(super) on_commit_drop: bool,
}

/// The state of a walk.
#[derive(Debug)]
pub(super) struct Body {
    before: Before,
    /// What stood before a qualified name of which we have seen a part.
    before_chain: Before,
    /// The part of a qualified name before the last dot.
    qualifier: Option<Token>,
    /// Open parentheses, and how many of them were open at the start.
    depth: u32,
    depth_at_start: u32,
    /// Bit `n`: at depth `n` we are in the list behind WITH. Deeper than 63 nobody keeps track.
    lists: u64,
    routine: Routine,
    found: Found,
}

/// Where we are with the body of a routine in standard SQL: its semicolons do not end the statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Routine {
    /// Not a CREATE FUNCTION or PROCEDURE.
    None,
    /// BEGIN ATOMIC has not come yet.
    Header,
    /// In the body; so many END are to come.
    Body(u32),
}

impl Body {
    pub(super) fn new(before: Before, depth: u32) -> Self {
        Self {
            before,
            before_chain: before,
            qualifier: None,
            depth,
            depth_at_start: depth,
            lists: 0,
            routine: Routine::None,
            found: Found::default(),
        }
    }

    /// For CREATE FUNCTION and PROCEDURE.
    pub(super) fn with_routine(self) -> Self {
        Self { routine: Routine::Header, ..self }
    }

    /// Goes to the semicolon or end that ends the statement.
    pub(super) fn walk(mut self, text: &mut Analyzer<'_>) -> Found {
        loop {
            match text.current.kind {
                TokenKind::End => return self.found,
                // Within parentheses a semicolon separates the actions of CREATE RULE.
                TokenKind::Semicolon if self.depth == 0 && !matches!(self.routine, Routine::Body(1..)) => {
                    return self.found;
                }
                _ => self.token(text),
            }
        }
    }

    #[inline]
    fn token(&mut self, text: &mut Analyzer<'_>) {
        let token = text.bump();
        self.before = match token.kind {
            TokenKind::Word | TokenKind::QuotedWord | TokenKind::UnicodeWord => self.word(text, token),
            TokenKind::Open => {
                self.open();
                Before::Open
            }
            TokenKind::Close => {
                self.depth = self.depth.saturating_sub(1);
                Before::Close
            }
            TokenKind::Comma => Before::Comma,
            TokenKind::Dot => Before::Dot,
            TokenKind::Cast => Before::Cast,
            _ => Before::Other,
        };
    }

    fn open(&mut self) {
        if self.before == Before::Close {
            // WITH x AS (...) (SELECT ...
            self.lists &= !self.list_bit();
        }
        self.depth = self.depth.saturating_add(1);
        self.lists &= !self.list_bit();
    }

    /// The bit of the current depth.
    fn list_bit(&self) -> u64 {
        1_u64.checked_shl(self.depth).unwrap_or(0)
    }

    fn in_list(&self) -> bool {
        self.lists & self.list_bit() != 0
    }

    #[inline]
    fn word(&mut self, text: &mut Analyzer<'_>, token: Token) -> Before {
        let next = text.current.kind;
        if self.before != Before::Dot {
            self.before_chain = self.before;
            self.qualifier = None;
        }
        if next == TokenKind::Dot {
            self.qualifier = Some(token);
            self.found.temporary_schema |= is_temporary_schema(text, token);
            return Before::Word;
        }
        if token.kind == TokenKind::Word
            && self.before != Before::Dot
            && let Some(keyword) = keyword(text.text(token))
            && let Some(before) = self.keyword(text, keyword)
        {
            return before;
        }
        if next == TokenKind::Open {
            return self.call(text, token);
        }
        if tells(text.text(token)) {
            text.needs(Placement::PreferPrimary);
        }
        Before::Word
    }

    /// What a keyword does; `None` when it is an ordinary word here.
    fn keyword(&mut self, text: &mut Analyzer<'_>, keyword: Keyword) -> Option<Before> {
        match keyword {
            Keyword::As => Some(Before::As),
            Keyword::On => Some(Before::On),
            Keyword::Into => {
                self.into(text);
                Some(Before::Into)
            }
            Keyword::With if matches!(self.before, Before::Start | Before::Open) => {
                self.lists |= self.list_bit();
                Some(Before::With)
            }
            Keyword::Recursive if self.before == Before::With => Some(Before::With),
            Keyword::For => {
                if ["update", "share", "no", "key"].iter().any(|word| text.at(word.as_bytes())) {
                    text.lane.raise(Strength::Write);
                }
                Some(Before::Word)
            }
            Keyword::Commit => {
                self.found.on_commit_drop |= self.before == Before::On && text.at(b"drop");
                None
            }
            Keyword::Query => {
                self.lists &= !self.list_bit();
                Some(Before::Word)
            }
            Keyword::Modify(kind) => self.modify(text, kind),
            Keyword::Begin | Keyword::Case | Keyword::End => {
                self.routine(text, keyword);
                None
            }
            Keyword::To => {
                // COPY (query) TO
                if self.depth < self.depth_at_start {
                    text.copy_to();
                }
                None
            }
            Keyword::With | Keyword::Recursive => None,
        }
    }

    /// SELECT ... INTO; the INTO of INSERT and MERGE names what is written anyway.
    fn into(&mut self, text: &mut Analyzer<'_>) {
        if self.before == Before::Modify {
            return;
        }
        text.lane.raise(Strength::Write);
        let temporary = ["temp", "temporary", "local", "global"].iter().any(|word| text.at(word.as_bytes()));
        if temporary || is_temporary_schema(text, text.current) {
            text.effect(Effect::Pin(PinReason::TempTable));
        }
    }

    /// INSERT, UPDATE, DELETE and MERGE are not reserved: only where a statement can start, and followed by what
    /// must follow, they are more than a name.
    fn modify(&mut self, text: &mut Analyzer<'_>, kind: StatementKind) -> Option<Before> {
        let can_start = self.in_list() || matches!(self.before, Before::Open | Before::Close);
        let follows = match kind {
            StatementKind::Insert | StatementKind::Merge => text.at(b"into"),
            StatementKind::Delete => text.at(b"from"),
            _ => {
                matches!(text.current.kind, TokenKind::Word | TokenKind::QuotedWord | TokenKind::UnicodeWord)
            }
        };
        if !can_start || !follows {
            return None;
        }
        text.lane.raise(Strength::Write);
        self.lists &= !self.list_bit();
        if self.depth == self.depth_at_start {
            self.found.modifies.get_or_insert(kind);
        }
        Some(Before::Modify)
    }

    /// Counts BEGIN ATOMIC and CASE against END.
    fn routine(&mut self, text: &Analyzer<'_>, keyword: Keyword) {
        self.routine = match (self.routine, keyword) {
            (Routine::Header, Keyword::Begin) if text.at(b"atomic") => Routine::Body(1),
            (Routine::Body(open), Keyword::Case) => Routine::Body(open.saturating_add(1)),
            (Routine::Body(open), Keyword::End) => Routine::Body(open.saturating_sub(1)),
            (state, _) => state,
        };
    }

    /// A name before a parenthesis.
    fn call(&mut self, text: &mut Analyzer<'_>, token: Token) -> Before {
        let is_column_list = match self.before_chain {
            // Column lists of aliases and INSERT, and the precision of types.
            Before::As | Before::Into | Before::Modify | Before::Cast => true,
            // WITH name (columns) AS
            Before::Comma | Before::With => self.in_list(),
            // OVER and FILTER follow a call, and are functions elsewhere.
            Before::Close => {
                self.qualifier.is_none()
                    && token.kind == TokenKind::Word
                    && [&b"over"[..], b"filter"]
                        .iter()
                        .any(|word| text.text(token).eq_ignore_ascii_case(word))
            }
            _ => false,
        };
        if is_column_list {
            return Before::Word;
        }
        match self.builtin(text, token) {
            Some(Builtin::Syntax | Builtin::Reads) => {}
            Some(Builtin::ReadsPrimary) => text.needs(Placement::Primary),
            Some(Builtin::Tells) => text.needs(Placement::PreferPrimary),
            Some(Builtin::Writes) => text.lane.raise(Strength::Write),
            Some(Builtin::SetConfig) => return self.set_config(text),
            Some(Builtin::SessionLock) => {
                text.needs(Placement::Primary);
                text.effect(Effect::Pin(PinReason::AdvisoryLock));
            }
            Some(Builtin::UnlockAll) => {
                text.needs(Placement::Primary);
                text.effect(Effect::Unpin(PinReason::AdvisoryLock));
            }
            None => self.unknown(text, token),
        }
        Before::Word
    }

    fn builtin(&self, text: &Analyzer<'_>, token: Token) -> Option<Builtin> {
        let quoted = |kind| if kind == Builtin::Syntax { None } else { Some(kind) };
        match (self.qualifier, token.kind) {
            (None, TokenKind::Word) => lookup(text.text(token)),
            (None, TokenKind::QuotedWord) => exact(&text.name(token)).and_then(quoted),
            (None, _) => None,
            (Some(schema), _) => {
                let schema = text.name(schema);
                if schema == "pg_catalog" {
                    exact(&text.name(token)).and_then(quoted)
                } else {
                    // The helpers of the information schema are immutable or stable.
                    (schema == "information_schema").then_some(Builtin::Reads)
                }
            }
        }
    }

    fn unknown(&self, text: &mut Analyzer<'_>, token: Token) {
        let undecoded = |token: Token| token.kind == TokenKind::UnicodeWord;
        if undecoded(token) || self.qualifier.is_some_and(undecoded) {
            text.lane.raise(Strength::Write);
        }
        if !text.lane.is_write() {
            let schema = self.qualifier.map(|schema| text.name(schema));
            let name = text.name(token);
            text.lane.depends(FunctionName { schema, name });
        }
    }

    /// Reads the arguments as far as they are single tokens; the rest is left to the walk.
    fn set_config(&mut self, text: &mut Analyzer<'_>) -> Before {
        text.bump();
        self.open();
        let name = argument(text);
        let value = if name.is_some() { argument(text) } else { None };
        let scope = match value {
            Some(_) if text.at(b"true") => Some(Scope::Transaction),
            Some(_) if text.at(b"false") => Some(Scope::Session),
            _ => None,
        };
        text.effect(Effect::SetConfigCall {
            name: name.flatten().map(|name| Name::owned(name.as_bytes().to_ascii_lowercase())),
            value: value.flatten(),
            scope,
        });
        Before::Other
    }
}

/// One argument and the comma behind it. `None`: not a single token, or not all of it. `Some(None)`: not a literal.
#[expect(clippy::option_option, reason = "the inner one is the literal, the outer one whether to go on")]
fn argument<'a>(text: &mut Analyzer<'a>) -> Option<Option<Name<'a>>> {
    let literal = match text.current.kind {
        TokenKind::PlainString => text.literal(text.current),
        TokenKind::Parameter | TokenKind::Number | TokenKind::EscapeString => None,
        _ => return None,
    };
    text.bump();
    if text.current.kind == TokenKind::Cast {
        text.bump();
        if !text.accept(b"text") {
            return None;
        }
    }
    if text.current.kind != TokenKind::Comma {
        return None;
    }
    text.bump();
    Some(literal)
}

/// `lookup` ignores the case; a quoted name does not.
fn exact(name: &Name<'_>) -> Option<Builtin> {
    if name.as_bytes().iter().any(u8::is_ascii_uppercase) { None } else { lookup(name.as_bytes()) }
}

/// `pg_temp` or `pg_temp_3`.
fn is_temporary_schema(text: &Analyzer<'_>, token: Token) -> bool {
    let bare = text.text(token);
    let bare = bare.strip_prefix(b"\"").unwrap_or(bare);
    bare.get(..7).is_some_and(|start| start.eq_ignore_ascii_case(b"pg_temp"))
}
