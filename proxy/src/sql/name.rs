//! Names and literals of a statement, as PostgreSQL would read them.

use std::borrow::Cow;
use std::fmt;

/// An identifier or the content of a literal, in the session's client encoding.
///
/// Unquoted identifiers are folded to lower case (ASCII only, as PostgreSQL does in every multi-byte
/// encoding); nothing is cut to 63 bytes. Borrowed from the statement where the bytes are the same.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Name<'a>(Cow<'a, [u8]>);

impl<'a> Name<'a> {
    /// The bytes as they are.
    pub fn verbatim(bytes: &'a [u8]) -> Self {
        Self(Cow::Borrowed(bytes))
    }

    /// The bytes with ASCII letters in lower case.
    pub fn folded(bytes: &'a [u8]) -> Self {
        if bytes.iter().any(u8::is_ascii_uppercase) {
            Self(Cow::Owned(bytes.to_ascii_lowercase()))
        } else {
            Self(Cow::Borrowed(bytes))
        }
    }

    /// The content of a quoted token; `quoted` includes the quotes, doubled quotes become one.
    pub(super) fn unquoted(quoted: &'a [u8], quote: u8) -> Self {
        let inner = quoted.strip_prefix(&[quote]).unwrap_or(quoted);
        let inner = inner.strip_suffix(&[quote]).unwrap_or(inner);
        if !inner.contains(&quote) {
            return Self(Cow::Borrowed(inner));
        }
        let mut after_quote = false;
        let keep = |byte: &u8| {
            after_quote = *byte == quote && !after_quote;
            !after_quote
        };
        Self(Cow::Owned(inner.iter().copied().filter(keep).collect()))
    }

    pub(super) fn owned(bytes: Vec<u8>) -> Self {
        Self(Cow::Owned(bytes))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As text, when it is UTF-8.
    pub fn to_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// Cut loose from the statement.
    pub fn into_owned(self) -> Name<'static> {
        Name(Cow::Owned(self.0.into_owned()))
    }
}

impl PartialEq<str> for Name<'_> {
    fn eq(&self, other: &str) -> bool {
        *self.0 == *other.as_bytes()
    }
}

impl PartialEq<&str> for Name<'_> {
    fn eq(&self, other: &&str) -> bool {
        *self == **other
    }
}

impl fmt::Debug for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&String::from_utf8_lossy(&self.0), f)
    }
}
