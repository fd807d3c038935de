//! The words that matter wherever they stand in a statement.

use super::analysis::StatementKind;

/// The words that change the state of a walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keyword {
    As,
    Into,
    On,
    With,
    Recursive,
    For,
    Commit,
    Query,
    Modify(StatementKind),
    Begin,
    Case,
    End,
    To,
}

/// Finds a keyword, in any case.
#[inline]
pub(super) fn keyword(word: &[u8]) -> Option<Keyword> {
    let first = word.first()? | 0x20;
    let (name, keyword): (&[u8], _) = match (word.len(), first) {
        (2, b'a') => (b"as", Keyword::As),
        (2, b'o') => (b"on", Keyword::On),
        (2, b't') => (b"to", Keyword::To),
        (3, b'f') => (b"for", Keyword::For),
        (3, b'e') => (b"end", Keyword::End),
        (4, b'i') => (b"into", Keyword::Into),
        (4, b'w') => (b"with", Keyword::With),
        (4, b'c') => (b"case", Keyword::Case),
        (5, b'b') => (b"begin", Keyword::Begin),
        (5, b't') => (b"table", Keyword::Query),
        (5, b'm') => (b"merge", Keyword::Modify(StatementKind::Merge)),
        (6, b's') => (b"select", Keyword::Query),
        (6, b'v') => (b"values", Keyword::Query),
        (6, b'c') => (b"commit", Keyword::Commit),
        (6, b'i') => (b"insert", Keyword::Modify(StatementKind::Insert)),
        (6, b'u') => (b"update", Keyword::Modify(StatementKind::Update)),
        (6, b'd') => (b"delete", Keyword::Modify(StatementKind::Delete)),
        (9, b'r') => (b"recursive", Keyword::Recursive),
        _ => return None,
    };
    word.eq_ignore_ascii_case(name).then_some(keyword)
}
