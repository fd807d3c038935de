//! What an exchange that is about to be sent asks for: its lane, its terms, and whether it ends in a commit.

use std::hash::BuildHasher as _;
use std::sync::{Arc, LazyLock};

use super::conversation::Conversation;
use super::lanes::{Surroundings, TransactionLane, fingerprint_of};
use super::notes::Pins;
use super::terms::SessionTerms;
use crate::backend::Statement;
use crate::exchange::Facts;
use crate::exchange::facts::{Number, Reach, is_plain_select};
use crate::pool::Pool;
use crate::sql::{Lane, StatementKind};
use crate::wire::frame::HEADER_LEN;
use crate::wire::frontend::{self as tag, BindNames, Parse, query_text};
use crate::wire::{Header, TransactionStatus};

/// Texts up to this length are kept while they run.
const KEPT_TEXT: usize = 2048;

/// Room for a text that an idle session may keep.
const KEPT_CAPACITY: usize = 256;

/// What an exchange asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sorted {
    /// The lane of its strongest statement, in its transaction.
    pub(super) lane: Lane,
    /// The transaction behind it.
    pub(super) transaction: TransactionLane,
    commits: Commits,
    /// Whether it begins with BEGIN.
    begins: bool,
    statements: Statements,
    /// How many bytes of it were looked at; the rest of a message that is not there as a whole is counted.
    pub(super) looked_at: usize,
    /// What the session has on its backend.
    pins: Pins,
}

/// How many statements were looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Statements {
    None,
    Some,
}

/// Whether an exchange commits by its own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Commits {
    No,
    /// Nobody has read all of them.
    Unread,
    Yes,
}

/// What a running exchange may be doing when its deadline passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A statement whose effects end with its transaction, or a read: it can be cancelled.
    Statement,
    /// A write outside of a transaction: it runs, and then commits by itself.
    Autocommit,
    /// What was not read: it may be a write as well as a COMMIT, or both.
    Unread,
    /// A COMMIT.
    Commit,
}

/// The text that was sent last, in case that it must be known again: a read that turns out to write, a write that
/// waits for a lock.
#[derive(Debug, Default)]
pub(super) struct LastSent {
    kind: Kept,
    /// Whether more of its exchange came behind a Flush, which nobody looked at.
    pub(super) flushed: bool,
    /// What is known of the text in the buffer beside, whether or not it was sent last.
    likeness: Likeness,
    /// The statement, or one from before: the next one is most likely the same.
    statement: Option<Arc<Statement>>,
}

/// What texts are like that are sent one after the other.
#[derive(Debug, Clone, Copy, Default)]
enum Likeness {
    #[default]
    Unknown,
    Plain,
    /// And they differ in this number of the last.
    PlainBut(Number),
}

/// Where the text is that was sent last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Kept {
    #[default]
    Nowhere,
    /// In the buffer beside.
    Text,
    Statement,
}

impl LastSent {
    pub(super) fn set_statement(&mut self, statement: &Arc<Statement>) {
        self.kind = Kept::Statement;
        if !self.statement.as_ref().is_some_and(|known| Arc::ptr_eq(known, statement)) {
            self.statement = Some(Arc::clone(statement));
        }
    }

    pub(super) fn statement(&self) -> Option<&Arc<Statement>> {
        self.statement.as_ref().filter(|_| self.kind == Kept::Statement)
    }
}

impl Sorted {
    /// A plain exchange; see [`super::plain`].
    const PLAIN: Self = Self {
        lane: Lane::Read,
        transaction: TransactionLane::READ,
        commits: Commits::No,
        begins: false,
        statements: Statements::Some,
        looked_at: 0,
        pins: Pins::NONE,
    };

    /// What it is, under this transaction status.
    pub(super) fn kind(self, status: TransactionStatus) -> Kind {
        match (self.lane, self.commits, status) {
            (Lane::Write, Commits::Yes, _) => Kind::Commit,
            (Lane::Write, Commits::Unread, _) => Kind::Unread,
            (Lane::Write, Commits::No, TransactionStatus::Idle) if !self.begins => Kind::Autocommit,
            (Lane::Read | Lane::Write, ..) => Kind::Statement,
        }
    }

    /// Whether it is known to commit by its own words.
    pub(super) fn commits(self) -> bool {
        self.commits == Commits::Yes
    }

    /// Whether it has no statement.
    pub(super) fn is_empty(self) -> bool {
        self.statements == Statements::None
    }

    /// Which servers may run it, and what its transaction did before.
    pub(super) fn reach(self) -> Reach {
        if self.lane == Lane::Write { Reach::Primary } else { self.transaction.reach() }
    }

    /// Nothing is known of it: the careful guess.
    fn is_unknown(mut self) -> Self {
        self.lane = Lane::Write;
        self.commits = self.commits.max(Commits::Unread);
        self.statements = Statements::Some;
        self
    }
}

/// What a call by the protocol is like, as a text.
pub(super) const FUNCTION_CALL: &[u8] = b"CALL";

/// Long enough for the values that choose rows; what is longer differs by what it stores.
const HASHED_MAX: usize = 512;

static HASHER: LazyLock<foldhash::fast::RandomState> = LazyLock::new(foldhash::fast::RandomState::default);

#[inline]
fn hash(bytes: &[u8]) -> u64 {
    HASHER.hash_one(bytes.get(..HASHED_MAX).unwrap_or(bytes))
}

/// The statements that an exchange parses itself.
#[derive(Debug, Default)]
struct Parsed<'a> {
    unnamed: bool,
    named: Vec<&'a [u8]>,
}

impl<'a> Parsed<'a> {
    fn insert(&mut self, name: &'a [u8]) {
        if name.is_empty() {
            self.unnamed = true;
        } else {
            self.named.push(name);
        }
    }
}

impl Conversation {
    /// Nothing is known of what is sent next.
    #[inline]
    pub(super) fn forget_sorted(&mut self) {
        self.forget_ahead();
        self.terms.forget_hints();
        self.last_sent.kind = Kept::Nowhere;
        self.last_sent.flushed = false;
        self.sent_values = 0;
    }

    /// Looks at the first exchange in `bytes`, as far as it is there, after [`Conversation::look_ahead`]. What it finds
    /// out about the first text is kept for when that text is sent.
    #[inline]
    pub(super) fn sort(&mut self, bytes: &[u8], pool: &Arc<Pool>) -> Sorted {
        match &self.plain {
            Some(plain) => Sorted { looked_at: plain.len(), ..Sorted::PLAIN },
            None => self.sort_at_length(bytes, pool),
        }
    }

    fn sort_at_length(&mut self, bytes: &[u8], pool: &Arc<Pool>) -> Sorted {
        let is_new = self.is_outside() && !self.unsynced;
        let mut sorted = Sorted {
            lane: Lane::Read,
            transaction: if is_new { TransactionLane::default() } else { self.transaction },
            commits: Commits::No,
            begins: false,
            statements: Statements::None,
            looked_at: 0,
            pins: self.pins,
        };
        sorted.lane = sorted.transaction.lane().unwrap_or(Lane::Read);
        let mut parsed = Parsed::default();
        let mut rest = bytes;
        loop {
            let Ok(Some(header)) = Header::read_frontend(rest) else { return sorted };
            let there = rest.len().min(header.frame_len);
            sorted.looked_at += header.frame_len;
            let whole = there == header.frame_len;
            let body = rest.get(HEADER_LEN..there).unwrap_or_default();
            match header.tag {
                tag::QUERY | tag::PARSE if !whole => return sorted.is_unknown(),
                tag::QUERY => {
                    self.sort_text(query_text(body).unwrap_or_default(), pool, &mut sorted);
                    return sorted;
                }
                tag::PARSE => match Parse::read(body) {
                    Ok(parse) => {
                        self.sort_text(parse.text, pool, &mut sorted);
                        parsed.insert(parse.name);
                    }
                    Err(_) => return sorted.is_unknown(),
                },
                tag::BIND => match BindNames::read(body) {
                    Some(names) => {
                        if !self.sort_bind(names.statement, &parsed, pool, &mut sorted) {
                            return sorted.is_unknown();
                        }
                        // Only writes are asked for it.
                        if sorted.lane == Lane::Write {
                            self.sent_values ^= hash(body.get(names.len()..).unwrap_or_default());
                        }
                    }
                    None => return sorted.is_unknown(),
                },
                tag::FUNCTION_CALL => {
                    // It cannot end a transaction; else it is known by a number only.
                    add(&mut self.terms, &Facts::of(FUNCTION_CALL), pool, &mut sorted, || {
                        fingerprint_of(FUNCTION_CALL)
                    });
                    return sorted;
                }
                tag::SYNC | tag::FLUSH | tag::TERMINATE => return sorted,
                _ => {}
            }
            rest = rest.get(there..).unwrap_or_default();
        }
    }

    /// A transaction begins with a statement of these facts, which is not sent yet.
    pub(super) fn begin_transaction(&mut self, facts: &Facts, pool: &Arc<Pool>) {
        self.status = TransactionStatus::InTransaction;
        self.names.clear_unnamed();
        self.transaction = TransactionLane::default();
        let learned = &pool.upstream.guard.learned;
        let surroundings = Surroundings { pool, learned, asked: self.terms.now().lane, pins: self.pins };
        let _ = self.transaction.next(facts, surroundings, || 0);
    }

    fn sort_text(&mut self, text: &[u8], pool: &Arc<Pool>, sorted: &mut Sorted) {
        let facts = Facts::of(text);
        add(&mut self.terms, &facts, pool, sorted, || fingerprint_of(text));
        self.keep_text(text);
        if self.ahead_of.is_none() {
            self.ahead_of = Some(HASHER.hash_one(text));
            self.ahead = facts;
        }
    }

    /// This is sent, unless something longer is.
    #[inline]
    pub(super) fn keep_text(&mut self, text: &[u8]) {
        if text.len() <= KEPT_TEXT {
            self.sent_text.clear();
            self.sent_text.extend_from_slice(text);
            self.last_sent.kind = Kept::Text;
            self.last_sent.likeness = Likeness::Unknown;
        }
    }

    /// Whether this is a plain SELECT. If it is, it is sent next: see [`Conversation::keep_text`].
    #[inline]
    pub(super) fn keep_plain(&mut self, text: &[u8]) -> bool {
        let Some(likeness) = self.likeness_of(text) else { return false };
        self.keep_text(text);
        if self.last_sent.kind == Kept::Text {
            self.last_sent.likeness = likeness;
        }
        true
    }

    /// How a plain text is like the one before, as most are; `None` if it is not plain.
    #[inline]
    fn likeness_of(&self, text: &[u8]) -> Option<Likeness> {
        let known = &*self.sent_text;
        if let Likeness::PlainBut(number) = self.last_sent.likeness
            && let Some(number) = number.replaced(known, text)
        {
            return Some(Likeness::PlainBut(number));
        }
        self.other_likeness_of(text)
    }

    fn other_likeness_of(&self, text: &[u8]) -> Option<Likeness> {
        let known = &*self.sent_text;
        let like = match self.last_sent.likeness {
            Likeness::Unknown => None,
            Likeness::Plain | Likeness::PlainBut(_) if *known == *text => Some(Likeness::Plain),
            Likeness::Plain | Likeness::PlainBut(_) => Number::differing(known, text).map(Likeness::PlainBut),
        };
        like.or_else(|| is_plain_select(text).then_some(Likeness::Plain))
    }

    /// Gives back what a quiet session does not need of what it sent.
    pub(super) fn shrink_sent(&mut self) {
        if self.sent_text.capacity() > KEPT_CAPACITY {
            self.sent_text = Vec::new();
            self.last_sent.kind = Kept::Nowhere;
            self.last_sent.likeness = Likeness::Unknown;
        }
        if self.last_sent.statement.as_ref().is_some_and(|statement| Arc::strong_count(statement) == 1) {
            self.last_sent = LastSent::default();
        }
    }

    /// Whether it is known what is bound.
    fn sort_bind(&mut self, name: &[u8], parsed: &Parsed<'_>, pool: &Arc<Pool>, sorted: &mut Sorted) -> bool {
        if name.is_empty() {
            // Of a Parse in this exchange, which has been looked at, or of one before it.
            return match (parsed.unnamed, self.names.unnamed_facts()) {
                (true, _) => true,
                (false, Some(facts)) => {
                    add(&mut self.terms, facts, pool, sorted, || fingerprint_of(self.names.unnamed_text()));
                    true
                }
                (false, None) => false,
            };
        }
        match self.names.get(name) {
            Some(statement) => {
                add(&mut self.terms, &statement.facts, pool, sorted, || fingerprint_of(statement.text()));
                self.last_sent.set_statement(statement);
                true
            }
            // Of a Parse in this exchange, or of one that is not known here.
            None => parsed.named.contains(&name),
        }
    }

    /// What is known already of the text that is sent now, or is to be found out.
    pub(super) fn facts_of(&mut self, text: &[u8]) -> Facts {
        if self.ahead_of.is_some_and(|of| of == HASHER.hash_one(text)) {
            self.ahead_of = None;
            return std::mem::replace(&mut self.ahead, Facts::PLAIN_SELECT);
        }
        Facts::of(text)
    }

    /// What was found out is about nothing that comes.
    #[inline]
    pub(super) fn forget_ahead(&mut self) {
        if self.ahead_of.take().is_some() {
            self.ahead = Facts::PLAIN_SELECT;
        }
    }

    /// What runs, or is about to, with its values: the same for statements that want the same rows.
    pub(super) fn sent_exactly(&self) -> Option<u64> {
        Some(hash(self.last_text()?) ^ self.sent_values)
    }

    /// The fingerprint of what runs, or is about to.
    pub(super) fn sent_fingerprint(&self) -> Option<u128> {
        self.last_text().map(fingerprint_of)
    }

    /// The text of what runs, if its exchange was looked at as a whole.
    pub(super) fn last_whole_text(&self) -> Option<&[u8]> {
        self.last_text().filter(|_| !self.last_sent.flushed)
    }

    fn last_text(&self) -> Option<&[u8]> {
        match self.last_sent.kind {
            Kept::Nowhere => None,
            Kept::Text => Some(&self.sent_text),
            Kept::Statement => self.last_sent.statement().map(|statement| statement.text()),
        }
    }
}

/// A statement of these facts is part of an exchange.
#[inline]
fn add(
    terms: &mut SessionTerms,
    facts: &Facts,
    pool: &Arc<Pool>,
    sorted: &mut Sorted,
    fingerprint: impl FnOnce() -> u128,
) {
    if sorted.statements == Statements::None {
        sorted.statements = Statements::Some;
        sorted.begins = facts.first == StatementKind::Begin;
    }
    let learned = &pool.upstream.guard.learned;
    let surroundings = Surroundings { pool, learned, asked: terms.now().lane, pins: sorted.pins };
    let lane = sorted.transaction.next(facts, surroundings, fingerprint);
    sorted.lane = sorted.lane.max(lane);
    if facts.commits {
        sorted.commits = Commits::Yes;
    }
    terms.hint(&facts.hints);
}
