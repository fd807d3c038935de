//! The texts of commands, taken apart: statements at semicolons, words at blanks. Quotes and comments are
//! PostgreSQL's; everything else is not SQL and is not treated as such.

/// A part of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Word {
    /// As written: a keyword or a name.
    Bare(String),
    /// Between double or single quotes, without them.
    Quoted(String),
    /// Anything else.
    Sign(char),
}

impl Word {
    /// Whether it is this keyword, which is written in capitals here.
    pub(super) fn is(&self, keyword: &str) -> bool {
        matches!(self, Self::Bare(word) if word.eq_ignore_ascii_case(keyword))
    }

    /// The name that it is.
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Self::Bare(name) | Self::Quoted(name) => Some(name),
            Self::Sign(_) => None,
        }
    }
}

/// A quote or comment without an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unterminated;

/// Splits a text into statements of words; empty statements are left out.
pub(super) fn split(text: &str) -> Result<Vec<Vec<Word>>, Unterminated> {
    let mut statements = vec![Vec::new()];
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        rest = match first {
            ';' => {
                statements.push(Vec::new());
                after(rest, first)
            }
            '\'' | '"' => {
                let (quoted, left) = quoted(after(rest, first), first)?;
                push(&mut statements, Word::Quoted(quoted));
                left
            }
            '-' if rest.starts_with("--") => {
                rest.find('\n').and_then(|end| rest.get(end..)).unwrap_or_default()
            }
            '/' if rest.starts_with("/*") => skip_comment(rest)?,
            _ if first.is_whitespace() => after(rest, first),
            _ if is_bare(first) && first != '-' => {
                let (word, left) = rest.split_at(bare_len(rest));
                push(&mut statements, Word::Bare(word.to_owned()));
                left
            }
            _ => {
                push(&mut statements, Word::Sign(first));
                after(rest, first)
            }
        };
    }
    statements.retain(|statement| !statement.is_empty());
    Ok(statements)
}

/// Keywords, and names of databases that need no quotes: dashes are common in those.
fn is_bare(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '.' | '$' | '-')
}

fn bare_len(text: &str) -> usize {
    let end = text.find(|c| !is_bare(c)).unwrap_or(text.len());
    // Two dashes begin a comment anywhere.
    text.find("--").map_or(end, |comment| end.min(comment))
}

fn after(text: &str, first: char) -> &str {
    text.get(first.len_utf8()..).unwrap_or_default()
}

fn push(statements: &mut [Vec<Word>], word: Word) {
    if let Some(statement) = statements.last_mut() {
        statement.push(word);
    }
}

/// The text up to the closing quote, with doubled quotes made single, and what is behind it.
fn quoted(mut rest: &str, quote: char) -> Result<(String, &str), Unterminated> {
    let mut text = String::new();
    loop {
        let (part, left) = rest.split_once(quote).ok_or(Unterminated)?;
        text.push_str(part);
        match left.strip_prefix(quote) {
            Some(left) => {
                text.push(quote);
                rest = left;
            }
            None => return Ok((text, left)),
        }
    }
}

/// Comments nest, as the SQL standard wants.
fn skip_comment(text: &str) -> Result<&str, Unterminated> {
    let (mut depth, mut rest) = (0_usize, text);
    loop {
        if let Some(inside) = rest.strip_prefix("/*") {
            depth += 1;
            rest = inside;
        } else if let Some(outside) = rest.strip_prefix("*/") {
            depth -= 1;
            rest = outside;
            if depth == 0 {
                return Ok(rest);
            }
        } else {
            let first = rest.chars().next().ok_or(Unterminated)?;
            rest = after(rest, first);
        }
    }
}
