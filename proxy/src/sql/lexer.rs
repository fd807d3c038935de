//! PostgreSQL's lexical rules, on bytes.
//!
//! Source: `src/backend/parser/scan.l`. Whitespace and comments are skipped; the hints in comments are kept
//! (see [`Hints`]). Nothing is decoded, folded or allocated here: a token is a kind and a span.
//!
//! Where PostgreSQL would report an error the lexer goes on in some way: such a text is refused as a whole
//! before any of it runs, so what we make of it does not matter, only that it ends.

use super::hints::Hints;
use super::token::{Token, TokenKind};

/// What a backslash means in a plain `'...'` string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PlainStrings {
    /// Itself: `standard_conforming_strings = on`, the default since PostgreSQL 9.1.
    #[default]
    Standard,
    /// An escape, as in `E'...'`: `standard_conforming_strings = off`.
    Backslashes,
}

/// Splits a text into tokens, one pass, front to back.
#[derive(Debug)]
pub(super) struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    strings: PlainStrings,
    hints: Hints<'a>,
}

const SPACE: u8 = 1;
const WORD_START: u8 = 2;
const WORD: u8 = 4;
const DIGIT: u8 = 8;
const OPERATOR: u8 = 16;

/// The classes of each byte. Bytes from 0x80 are identifier characters, as in scan.l's `ident_start`.
static CLASSES: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut byte = 0_u8;
    loop {
        table[byte as usize] = match byte {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => SPACE,
            b'0'..=b'9' => DIGIT | WORD,
            b'$' => WORD,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80..=0xff => WORD_START | WORD,
            b'~' | b'!' | b'@' | b'#' | b'^' | b'&' | b'|' | b'`' | b'?' | b'+' | b'-' | b'*' | b'/'
            | b'%' | b'<' | b'>' | b'=' => OPERATOR,
            _ => 0,
        };
        if byte == u8::MAX {
            return table;
        }
        byte += 1;
    }
}

#[inline]
fn is(byte: u8, class: u8) -> bool {
    CLASSES[byte as usize] & class != 0
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a [u8], strings: PlainStrings) -> Self {
        Self { text, at: 0, strings, hints: Hints::default() }
    }

    /// The bytes of a span; empty when it does not lie in the text.
    #[inline]
    pub(super) fn slice(&self, start: usize, end: usize) -> &'a [u8] {
        self.text.get(start..end).unwrap_or_default()
    }

    /// The bytes of a token, quotes included.
    #[inline]
    pub(super) fn text(&self, token: Token) -> &'a [u8] {
        self.slice(token.start, token.end)
    }

    /// The hints in the comments passed so far.
    pub(super) fn into_hints(self) -> Hints<'a> {
        self.hints
    }

    #[inline]
    fn peek(&self, ahead: usize) -> u8 {
        // NUL cannot be part of a statement, so it also stands for the end.
        self.text.get(self.at + ahead).copied().unwrap_or(0)
    }

    #[inline]
    fn skip_while(&mut self, class: u8) {
        while self.text.get(self.at).is_some_and(|&byte| is(byte, class)) {
            self.at += 1;
        }
    }

    /// The next token.
    #[inline]
    pub(super) fn next(&mut self) -> Token {
        self.skip_space();
        let start = self.at;
        let kind = match self.text.get(start) {
            Some(&byte) => self.token(byte),
            None => TokenKind::End,
        };
        Token { kind, start, end: self.at }
    }

    #[inline]
    fn skip_space(&mut self) {
        loop {
            self.skip_while(SPACE);
            match (self.peek(0), self.peek(1)) {
                (b'-', b'-') => self.skip_line(),
                (b'/', b'*') => self.skip_comment(),
                _ => return,
            }
        }
    }

    fn skip_line(&mut self) {
        let rest = self.text.get(self.at..).unwrap_or_default();
        self.at += memchr::memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
    }

    /// Skips a block comment with the comments nested in it.
    fn skip_comment(&mut self) {
        let start = self.at;
        let mut depth = 0_usize;
        while let Some(rest) = self.text.get(self.at..) {
            let Some(found) = memchr::memchr2(b'*', b'/', rest) else {
                self.at = self.text.len();
                return;
            };
            self.at += found;
            match (self.peek(0), self.peek(1)) {
                (b'/', b'*') => (depth, self.at) = (depth + 1, self.at + 2),
                (b'*', b'/') => (depth, self.at) = (depth - 1, self.at + 2),
                _ => self.at += 1,
            }
            if depth == 0 {
                let comment = self.slice(start + 2, self.at - 2);
                self.hints.comment(comment);
                return;
            }
        }
    }

    #[inline]
    fn token(&mut self, byte: u8) -> TokenKind {
        if is(byte, WORD_START) {
            return self.word(byte);
        }
        if is(byte, DIGIT) || (byte == b'.' && is(self.peek(1), DIGIT)) {
            return self.number(byte);
        }
        if is(byte, OPERATOR) {
            return self.operator();
        }
        match byte {
            b'\'' => {
                let escapes = self.strings == PlainStrings::Backslashes;
                self.quoted(1, b'\'', escapes);
                TokenKind::PlainString
            }
            b'"' => {
                self.quoted(1, b'"', false);
                TokenKind::QuotedWord
            }
            b'$' => self.dollar(),
            _ => self.punctuation(byte),
        }
    }

    fn punctuation(&mut self, byte: u8) -> TokenKind {
        self.at += 1;
        match byte {
            b'(' => TokenKind::Open,
            b')' => TokenKind::Close,
            b',' => TokenKind::Comma,
            b';' => TokenKind::Semicolon,
            b'.' => TokenKind::Dot,
            b':' if self.peek(0) == b':' => {
                self.at += 1;
                TokenKind::Cast
            }
            _ => TokenKind::Other,
        }
    }

    /// A word, or a string or quoted identifier with a prefix.
    #[inline]
    fn word(&mut self, byte: u8) -> TokenKind {
        match (byte | 0x20, self.peek(1), self.peek(2)) {
            (b'e', b'\'', _) => {
                self.quoted(2, b'\'', true);
                TokenKind::EscapeString
            }
            (b'b' | b'x', b'\'', _) => {
                self.quoted(2, b'\'', false);
                TokenKind::OtherString
            }
            // N'...' is a keyword followed by a plain string.
            (b'n', b'\'', _) => {
                self.quoted(2, b'\'', self.strings == PlainStrings::Backslashes);
                TokenKind::OtherString
            }
            (b'u', b'&', b'\'') => {
                self.quoted(3, b'\'', false);
                TokenKind::OtherString
            }
            (b'u', b'&', b'"') => {
                self.quoted(3, b'"', false);
                TokenKind::UnicodeWord
            }
            _ => {
                self.skip_while(WORD);
                TokenKind::Word
            }
        }
    }

    /// Passes a quoted token whose content starts `prefix` bytes on; a string may go on in further lines.
    fn quoted(&mut self, prefix: usize, quote: u8, backslashes: bool) {
        self.at += prefix;
        loop {
            self.close_quote(quote, backslashes);
            if quote != b'\'' || !self.continues() {
                return;
            }
        }
    }

    /// Passes the closing quote. A doubled quote does not close.
    fn close_quote(&mut self, quote: u8, backslashes: bool) {
        while let Some(rest) = self.text.get(self.at..) {
            let found =
                if backslashes { memchr::memchr2(quote, b'\\', rest) } else { memchr::memchr(quote, rest) };
            let Some(found) = found else {
                self.at = self.text.len();
                return;
            };
            self.at += found;
            if self.peek(0) == b'\\' || self.peek(1) == quote {
                self.at = self.text.len().min(self.at + 2);
            } else {
                self.at += 1;
                return;
            }
        }
    }

    /// Strings that only whitespace with a newline separates are one string, and the later parts follow the
    /// rules of the first (scan.l, `quotecontinue`): `E'a' \n 'it\'s'` is one token.
    fn continues(&mut self) -> bool {
        let end = self.at;
        let mut newline = false;
        loop {
            match (self.peek(0), self.peek(1)) {
                (b'\'', _) if newline => {
                    self.at += 1;
                    return true;
                }
                (b'-', b'-') => self.skip_line(),
                (byte, _) if is(byte, SPACE) => {
                    newline |= matches!(byte, b'\n' | b'\r');
                    self.at += 1;
                }
                _ => {
                    self.at = end;
                    return false;
                }
            }
        }
    }

    /// `$1`, `$tag$...$tag$` or a stray dollar.
    fn dollar(&mut self) -> TokenKind {
        let start = self.at;
        self.at += 1;
        if is(self.peek(0), DIGIT) {
            self.skip_while(DIGIT);
            return TokenKind::Parameter;
        }
        if is(self.peek(0), WORD_START) {
            // A tag has no dollar in it.
            while self.peek(0) != b'$' && is(self.peek(0), WORD) {
                self.at += 1;
            }
        }
        if self.peek(0) != b'$' {
            self.at = start + 1;
            return TokenKind::Other;
        }
        self.at += 1;
        let tag = self.slice(start, self.at);
        let rest = self.text.get(self.at..).unwrap_or_default();
        self.at = match memchr::memmem::find(rest, tag) {
            Some(found) => self.at + found + tag.len(),
            None => self.text.len(),
        };
        TokenKind::DollarString
    }

    /// As short as any version reads it: up to PostgreSQL 14 `LIMIT 1FOR UPDATE` is valid.
    #[inline]
    fn number(&mut self, byte: u8) -> TokenKind {
        let radix = self.peek(1) | 0x20;
        if byte == b'0' && matches!(radix, b'x' | b'o' | b'b') && self.peek(2).is_ascii_hexdigit() {
            self.at += 2;
            self.digits(u8::is_ascii_hexdigit);
            return TokenKind::Number;
        }
        self.digits(u8::is_ascii_digit);
        if self.peek(0) == b'.' {
            self.at += 1;
            self.digits(u8::is_ascii_digit);
        }
        if self.peek(0) | 0x20 == b'e' {
            let sign = usize::from(matches!(self.peek(1), b'+' | b'-'));
            if self.peek(1 + sign).is_ascii_digit() {
                self.at += 1 + sign;
                self.digits(u8::is_ascii_digit);
            }
        }
        TokenKind::Number
    }

    /// Digits, with single underscores between them (PostgreSQL 16).
    #[inline]
    fn digits(&mut self, is_digit: impl Fn(&u8) -> bool) {
        loop {
            if is_digit(&self.peek(0)) {
                self.at += 1;
            } else if self.peek(0) == b'_' && is_digit(&self.peek(1)) {
                self.at += 2;
            } else {
                return;
            }
        }
    }

    /// A run of operator characters: a comment ends it, and it ends in `+` or `-` only when it has one of
    /// the characters that no SQL operator has (scan.l, `operator`), so that `=-1` is `=` and `-1`.
    fn operator(&mut self) -> TokenKind {
        let start = self.at;
        let mut special = false;
        loop {
            match (self.peek(0), self.peek(1)) {
                (b'-', b'-') | (b'/', b'*') => break,
                (byte, _) if is(byte, OPERATOR) => {
                    special |=
                        matches!(byte, b'~' | b'!' | b'@' | b'#' | b'^' | b'&' | b'|' | b'`' | b'?' | b'%');
                    self.at += 1;
                }
                _ => break,
            }
        }
        while !special && self.at > start + 1 && matches!(self.text.get(self.at - 1), Some(b'+' | b'-')) {
            self.at -= 1;
        }
        TokenKind::Operator
    }
}
