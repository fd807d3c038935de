//! Messages as they came, and what tests ask about them.

use std::collections::BTreeMap;

use bytes::Bytes;

/// One message: its tag and its body without the length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// First byte.
    pub tag: u8,
    /// What follows the length.
    pub body: Bytes,
}

/// Fields of an `ErrorResponse` or `NoticeResponse`, by their letters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Problem(pub BTreeMap<char, String>);

/// Everything that answered one Query or Sync, up to and with `ReadyForQuery`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reply(pub Vec<Message>);

impl Message {
    /// The whole message, as on the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.body.len() + 4).expect("a body that fits into a message");
        let mut bytes = vec![self.tag];
        bytes.extend(length.to_be_bytes());
        bytes.extend(&self.body);
        bytes
    }

    /// Fields of an `ErrorResponse` or `NoticeResponse`.
    pub fn problem(&self) -> Option<Problem> {
        if !matches!(self.tag, b'E' | b'N') {
            return None;
        }
        let fields = self.body.split(|byte| *byte == 0).filter(|field| !field.is_empty());
        let pairs = fields.map(|field| (char::from(field[0]), text(&field[1..])));
        Some(Problem(pairs.collect()))
    }

    /// Columns of a `DataRow`, as text.
    pub fn columns(&self) -> Option<Vec<Option<String>>> {
        if self.tag != b'D' {
            return None;
        }
        let (count, mut rest) = self.body.split_first_chunk::<2>()?;
        let mut columns = Vec::new();
        for _ in 0..u16::from_be_bytes(*count) {
            let (length, tail) = rest.split_first_chunk::<4>()?;
            // -1 is NULL.
            let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
                columns.push(None);
                rest = tail;
                continue;
            };
            let (value, tail) = tail.split_at_checked(length)?;
            columns.push(Some(text(value)));
            rest = tail;
        }
        Some(columns)
    }

    /// The zero-terminated strings of the body: `CommandComplete` has one, `ParameterStatus` two.
    pub fn strings(&self) -> Vec<String> {
        let body = self.body.strip_suffix(&[0]).unwrap_or(&self.body);
        body.split(|byte| *byte == 0).map(text).collect()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Problem {
    /// A field by its letter; empty when absent.
    pub fn field(&self, letter: char) -> &str {
        self.0.get(&letter).map_or("", String::as_str)
    }

    /// SQLSTATE.
    pub fn code(&self) -> &str {
        self.field('C')
    }

    /// Severity, not localised: ERROR, FATAL, WARNING.
    pub fn severity(&self) -> &str {
        self.field('V')
    }

    /// Primary message.
    pub fn message(&self) -> &str {
        self.field('M')
    }

    /// DETAIL.
    pub fn detail(&self) -> &str {
        self.field('D')
    }

    /// HINT.
    pub fn hint(&self) -> &str {
        self.field('H')
    }

    /// The value of `key=value` in DETAIL.
    pub fn detail_of(&self, key: &str) -> Option<&str> {
        self.detail().split_whitespace().find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
    }
}

impl Reply {
    /// Tags in order, such as "TDCZ".
    pub fn tags(&self) -> String {
        self.0.iter().map(|message| char::from(message.tag)).collect()
    }

    /// All rows, as text.
    pub fn rows(&self) -> Vec<Vec<Option<String>>> {
        self.0.iter().filter_map(Message::columns).collect()
    }

    /// The first column of the first row.
    pub fn value(&self) -> Option<String> {
        self.rows().into_iter().next()?.into_iter().next()?
    }

    /// Command tags: "INSERT 0 1".
    pub fn commands(&self) -> Vec<String> {
        let complete = self.0.iter().filter(|message| message.tag == b'C');
        complete.filter_map(|message| message.strings().into_iter().next()).collect()
    }

    /// The first error.
    pub fn error(&self) -> Option<Problem> {
        self.0.iter().find(|message| message.tag == b'E')?.problem()
    }

    /// SQLSTATE of the first error; empty when there was none.
    pub fn error_code(&self) -> String {
        self.error().map(|error| error.code().to_owned()).unwrap_or_default()
    }

    /// Transaction status of the `ReadyForQuery` at the end: 'I', 'T', 'E'.
    pub fn status(&self) -> Option<char> {
        let last = self.0.last().filter(|message| message.tag == b'Z')?;
        last.body.first().map(|byte| char::from(*byte))
    }
}
