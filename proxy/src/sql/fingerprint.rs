//! A statement's shape: what stays the same when only its literals change.
//!
//! Two texts have the same fingerprint when they differ in nothing but numbers, strings, parameters, the length of
//! lists of these, comments, whitespace and the case of unquoted words. It is a key for what was learned of a
//! statement, not a proof: use it where a collision costs little.

use std::hash::{BuildHasher, Hasher};

use foldhash::quality::{FixedState, FoldHasher};

use super::lexer::{Lexer, PlainStrings};
use super::token::TokenKind;

/// The secret that keeps fingerprints from being guessed; one per process.
#[derive(Clone)]
pub struct FingerprintKey {
    low: FixedState,
    high: FixedState,
}

impl FingerprintKey {
    /// A key of this process.
    pub fn random() -> Self {
        Self::new(rand::random(), rand::random())
    }

    /// A given key.
    pub fn new(low: u64, high: u64) -> Self {
        // The two halves must differ also when the seeds are equal.
        Self { low: FixedState::with_seed(low), high: FixedState::with_seed(high ^ 0x9e37_79b9_7f4a_7c15) }
    }
}

impl std::fmt::Debug for FingerprintKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FingerprintKey(…)")
    }
}

/// The fingerprint of a text under a key. No allocation, one pass.
pub fn fingerprint(text: &[u8], strings: PlainStrings, key: &FingerprintKey) -> u128 {
    let mut shape = Shape::new(key);
    let mut lexer = Lexer::new(text, strings);
    loop {
        let token = lexer.next();
        match token.kind {
            TokenKind::End => return shape.finish(),
            TokenKind::PlainString
            | TokenKind::EscapeString
            | TokenKind::OtherString
            | TokenKind::DollarString
            | TokenKind::Number
            | TokenKind::Parameter => shape.literal(),
            TokenKind::Comma => shape.comma(),
            TokenKind::Word => shape.word(lexer.text(token)),
            TokenKind::QuotedWord
            | TokenKind::UnicodeWord
            | TokenKind::Operator
            | TokenKind::Cast
            | TokenKind::Open
            | TokenKind::Close
            | TokenKind::Semicolon
            | TokenKind::Dot
            | TokenKind::Other => shape.verbatim(lexer.text(token)),
        }
    }
}

/// Where we are in a list of literals.
#[derive(Clone, Copy, PartialEq, Eq)]
enum List {
    /// Not in one.
    Outside,
    /// Behind a literal.
    Literal,
    /// Behind a literal and a comma that is not written yet.
    Comma,
}

/// The normalised text, hashed in pieces of a fixed size.
struct Shape {
    piece: [u8; 128],
    length: usize,
    list: List,
    low: FoldHasher<'static>,
    high: FoldHasher<'static>,
}

impl Shape {
    fn new(key: &FingerprintKey) -> Self {
        Self {
            piece: [0; 128],
            length: 0,
            list: List::Outside,
            low: key.low.build_hasher(),
            high: key.high.build_hasher(),
        }
    }

    fn literal(&mut self) {
        match self.list {
            List::Outside | List::Literal => self.put(b"? "),
            List::Comma => {}
        }
        self.list = List::Literal;
    }

    fn comma(&mut self) {
        match self.list {
            List::Literal => self.list = List::Comma,
            List::Comma | List::Outside => self.verbatim(b","),
        }
    }

    fn leave_list(&mut self) {
        if self.list == List::Comma {
            self.put(b", ");
        }
        self.list = List::Outside;
    }

    fn verbatim(&mut self, token: &[u8]) {
        self.leave_list();
        self.put(token);
        self.put(b" ");
    }

    fn word(&mut self, word: &[u8]) {
        self.leave_list();
        for &byte in word {
            self.byte(byte.to_ascii_lowercase());
        }
        self.byte(b' ');
    }

    fn put(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.byte(byte);
        }
    }

    #[inline]
    fn byte(&mut self, byte: u8) {
        if self.length == self.piece.len() {
            self.flush();
        }
        if let Some(place) = self.piece.get_mut(self.length) {
            *place = byte;
            self.length += 1;
        }
    }

    fn flush(&mut self) {
        let piece = self.piece.get(..self.length).unwrap_or_default();
        self.low.write(piece);
        self.high.write(piece);
        self.length = 0;
    }

    fn finish(mut self) -> u128 {
        self.leave_list();
        self.flush();
        (u128::from(self.high.finish()) << 64) | u128::from(self.low.finish())
    }
}
