//! What texts do that were analysed before. An application that does not prepare its statements sends the same ones again
//! and again, most often with other numbers in them: what a text does does not depend on those, so texts are kept by
//! their shape.
//!
//! One small table per thread. A shape is kept when it comes for the second time in its place of the table, so that
//! texts which never repeat cost a look and a hash, and no memory.

use std::cell::RefCell;
use std::hash::BuildHasher;

use super::facts::Facts;

/// Places of the table.
const PLACES: usize = 128;
/// Longer texts are analysed each time.
const TEXT_MAX: usize = 2048;

/// One shape.
#[derive(Debug, Default)]
struct Place {
    hash: u64,
    kept: Option<(Box<[u8]>, Facts)>,
}

#[derive(Debug, Default)]
struct Table {
    hasher: foldhash::fast::RandomState,
    /// Empty until there is something to remember.
    places: Vec<Place>,
    /// An allocation to use again.
    spare: Vec<u8>,
}

/// The shape of a text of which nothing is remembered, and its hash.
#[derive(Debug)]
struct Unknown {
    shape: Vec<u8>,
    hash: u64,
}

impl Table {
    fn look_up(&mut self, text: &[u8]) -> Result<Facts, Unknown> {
        let mut shape = std::mem::take(&mut self.spare);
        put_shape(text, &mut shape);
        let hash = self.hasher.hash_one(&*shape);
        let kept = self.places.get(place_of(hash)).and_then(|place| place.kept.as_ref());
        match kept.filter(|(kept, _)| **kept == *shape) {
            Some((_, facts)) => {
                let facts = facts.clone();
                self.spare = shape;
                Ok(facts)
            }
            None => Err(Unknown { shape, hash }),
        }
    }

    fn remember(&mut self, unknown: &Unknown, facts: &Facts) {
        if self.places.is_empty() {
            self.places.resize_with(PLACES, Place::default);
        }
        let Some(place) = self.places.get_mut(place_of(unknown.hash)) else { return };
        if place.hash == unknown.hash {
            place.kept = Some((unknown.shape.as_slice().into(), facts.clone()));
        }
        place.hash = unknown.hash;
    }
}

fn place_of(hash: u64) -> usize {
    usize::try_from(hash % PLACES as u64).unwrap_or(0)
}

thread_local! {
    static TABLE: RefCell<Table> = RefCell::default();
}

/// What a text does: remembered, or found out by `analyse`.
pub(super) fn facts(text: &[u8], analyse: impl FnOnce() -> Facts) -> Facts {
    if text.len() > TEXT_MAX {
        return analyse();
    }
    let unknown = match TABLE.with_borrow_mut(|table| table.look_up(text)) {
        Ok(facts) => return facts,
        Err(unknown) => unknown,
    };
    let facts = analyse();
    TABLE.with_borrow_mut(|table| {
        // Settings are of one session, and have numbers for values.
        if facts.changes.is_empty() && facts.commands.is_none() && facts.executes.is_none() {
            table.remember(&unknown, &facts);
        }
        table.spare = unknown.shape;
    });
    facts
}

/// What a byte is for the shape of a text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Other,
    Digit,
    /// Part of a word, as digits are that follow it. `$` is: it begins a parameter.
    Word,
    Quote,
    DoubleQuote,
    /// May begin something with rules of its own: a comment, an escape.
    Special,
}

const CLASSES: [Class; 256] = {
    let mut classes = [Class::Other; 256];
    let mut byte = 0_u8;
    loop {
        classes[byte as usize] = match byte {
            b'0'..=b'9' => Class::Digit,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | b'$' | 0x80.. => Class::Word,
            b'\'' => Class::Quote,
            b'"' => Class::DoubleQuote,
            b'-' | b'/' | b'\\' => Class::Special,
            _ => Class::Other,
        };
        if byte == u8::MAX {
            break;
        }
        byte += 1;
    }
    classes
};

#[inline]
fn class(text: &[u8], at: usize) -> Class {
    text.get(at).map_or(Class::Other, |&byte| CLASSES[usize::from(byte)])
}

/// Where in a text a byte is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    Nothing,
    Literal,
    /// An identifier in double quotes, whose digits matter.
    Identifier,
}

/// A text without its numbers. Two texts of the same shape differ in the digits of numbers and of literals only. Of what has
/// comments, escapes or dollar quotes the shape is the text itself: where its quotes begin and end takes a lexer.
fn put_shape(text: &[u8], out: &mut Vec<u8>) {
    out.clear();
    if !put_without_numbers(text, out) {
        out.clear();
        out.extend_from_slice(text);
    }
}

/// Whether the text has a shape of its own.
fn put_without_numbers(text: &[u8], out: &mut Vec<u8>) -> bool {
    let mut within = Within::Nothing;
    // What was not copied yet.
    let mut begin = 0;
    let mut at = 0;
    while at < text.len() {
        match (class(text, at), within) {
            (Class::Other, _)
            | (Class::Quote | Class::Digit, Within::Identifier)
            | (Class::DoubleQuote, Within::Literal) => at += 1,
            (Class::Word, _) => {
                if text[at] == b'$' && within == Within::Nothing && class(text, at + 1) != Class::Digit {
                    return false;
                }
                at += 1;
                while matches!(class(text, at), Class::Word | Class::Digit) {
                    at += 1;
                }
            }
            (Class::Digit, _) => {
                let digits = at;
                while class(text, at) == Class::Digit {
                    at += 1;
                }
                if class(text, at) != Class::Word {
                    out.extend_from_slice(text.get(begin..digits).unwrap_or_default());
                    out.push(b'0');
                    begin = at;
                }
            }
            (Class::Quote, Within::Nothing) => (within, at) = (Within::Literal, at + 1),
            (Class::DoubleQuote, Within::Nothing) => (within, at) = (Within::Identifier, at + 1),
            (Class::Quote, Within::Literal) | (Class::DoubleQuote, Within::Identifier) => {
                (within, at) = (Within::Nothing, at + 1);
            }
            (Class::Special, _) => {
                let begins_comment = matches!(text.get(at..at + 2), Some(b"--" | b"/*"));
                if text[at] == b'\\' || (begins_comment && within == Within::Nothing) {
                    return false;
                }
                at += 1;
            }
        }
    }
    out.extend_from_slice(text.get(begin..).unwrap_or_default());
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::facts::Need;

    fn is_kept(text: &[u8]) -> bool {
        TABLE.with_borrow_mut(|table| table.look_up(text)).is_ok()
    }

    fn shaped(text: &str) -> String {
        let mut out = Vec::new();
        put_shape(text.as_bytes(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_text_is_kept_when_it_comes_again() {
        // Keeping every text would allocate for those that never repeat; keeping none, for those that do.
        let text = b"SELECT a_function_of_ours($$x$$)";

        let first = Facts::of(text);
        assert!(!is_kept(text));
        let second = Facts::of(text);
        assert!(is_kept(text));

        assert_eq!((first.lane, &first), (Need::Write, &second));
        assert_eq!(Facts::of(text), first);
        assert!(!is_kept(b"SELECT a_function_of_ours($$y$$)"));
    }

    #[test]
    fn texts_that_differ_in_numbers_have_one_shape() {
        // Without it each UPDATE of a row by its number would be analysed anew.
        for (text, shape) in [
            ("UPDATE t SET a = a + -17 WHERE id=4711", "UPDATE t SET a = a + -0 WHERE id=0"),
            (
                "INSERT INTO t VALUES (1, '2026-11-28 10:00', 2.5)",
                "INSERT INTO t VALUES (0, '0-0-0 0:0', 0.0)",
            ),
            (r#"UPDATE "t 1" SET "c2" = 3"#, r#"UPDATE "t 1" SET "c2" = 0"#),
            (
                "UPDATE t SET a = 'it''s 5' WHERE b = $1 AND c = 7",
                "UPDATE t SET a = 'it''s 0' WHERE b = $1 AND c = 0",
            ),
        ] {
            assert_eq!(shaped(text), shape);
        }
    }

    #[test]
    fn what_is_no_number_stays_in_the_shape() {
        // Two functions, two lanes; a comment may be a hint; where quotes end decides what is a statement.
        for text in [
            "SELECT f1(t2.c3), $1, $12 FROM t2",
            "SELECT \"1\"(), \"f 2\"(), \"a'3\"() FROM \"x\"\"4\"",
            "SELECT 0x1F, 1e5, 1_000, 12ab",
            "/*tidegate:deadline=5s*/ DELETE FROM t WHERE a = 1",
            "DELETE FROM t WHERE a = 1 -- 2",
            r"INSERT INTO t VALUES (E'\'5', 6)",
            "DO $$ BEGIN PERFORM 1; END $$",
            "DO $a1$ BEGIN PERFORM 1; END $a1$",
        ] {
            assert_eq!(shaped(text), text);
        }
    }

    #[test]
    fn a_setting_is_never_taken_for_one_with_another_value() {
        // They differ in a number, and the number is what they are about.
        for _ in 0..3 {
            assert_ne!(
                Facts::of(b"SET tidegate.write_timeout = 1000"),
                Facts::of(b"SET tidegate.write_timeout = 2000")
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn texts_of_one_shape_do_the_same(
            pieces in proptest::collection::vec(PIECES, 1..12),
            numbers in proptest::collection::vec((0_u32..3000, 0_u32..3000), 12),
        ) {
            // A quote that the shape sees and the lexer does not would give one text the facts of another.
            let text = |which: fn(&(u32, u32)) -> u32| -> String {
                let numbers = numbers.iter().map(which);
                pieces.iter().zip(numbers).map(|(piece, number)| piece.replace('#', &number.to_string())).collect()
            };
            let (one, other) = (text(|pair| pair.0), text(|pair| pair.1));
            let (of_one, of_other) = (Facts::analysed(one.as_bytes()), Facts::analysed(other.as_bytes()));
            let is_kept = of_one.changes.is_empty() && of_one.commands.is_none() && of_one.executes.is_none();
            if shaped(&one) == shaped(&other) && is_kept {
                proptest::prop_assert_eq!(of_one, of_other, "{} and {}", one, other);
            }
        }
    }

    /// What texts are made of, `#` being a number.
    const PIECES: &str = "SELECT |UPDATE t SET a=|DELETE FROM t|INSERT INTO t |VALUES \\(|WITH x AS \\(|\\)|#| # |'#'|'|\"|\"#\"|\
        --#\n|--|/\\*#\\*/|/\\*|\\*/|\\\\|\\$#|\\$\\$|\\$a#\\$|E'|f#\\(|random\\(\\)|\"f#\"\\(|; |COMMIT|BEGIN|ROLLBACK TO s#|FOR UPDATE|\
        #e#|0x#|#_#|é#|,|-|/|INTO |LIMIT #|EXPLAIN ANALYZE |CALL p#\\(#\\)|/\\*tidegate:lane=read\\*/";
}
