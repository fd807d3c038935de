//! What an application may send after login, and the few bodies that we read.

use super::frame::{WireError, split_cstr};

/// Bind a portal.
pub const BIND: u8 = b'B';
/// Close a statement or portal.
pub const CLOSE: u8 = b'C';
/// A piece of COPY data (both directions).
pub const COPY_DATA: u8 = b'd';
/// The end of COPY data (both directions).
pub const COPY_DONE: u8 = b'c';
/// The application gives a COPY up.
pub const COPY_FAIL: u8 = b'f';
/// Describe a statement or portal.
pub const DESCRIBE: u8 = b'D';
/// Run a portal.
pub const EXECUTE: u8 = b'E';
/// Send what is ready.
pub const FLUSH: u8 = b'H';
/// The fast-path function call.
pub const FUNCTION_CALL: u8 = b'F';
/// Prepare a statement.
pub const PARSE: u8 = b'P';
/// An answer to an authentication request.
pub const PASSWORD: u8 = b'p';
/// A simple query.
pub const QUERY: u8 = b'Q';
/// The end of a pipeline.
pub const SYNC: u8 = b'S';
/// Goodbye.
pub const TERMINATE: u8 = b'X';

/// Whether an application may send this tag after login.
#[inline]
pub fn is_known(tag: u8) -> bool {
    matches!(
        tag,
        BIND | CLOSE
            | COPY_DATA
            | COPY_DONE
            | COPY_FAIL
            | DESCRIBE
            | EXECUTE
            | FLUSH
            | FUNCTION_CALL
            | PARSE
            | QUERY
            | SYNC
            | TERMINATE
    )
}

/// What a Describe or Close names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// A prepared statement.
    Statement(&'a [u8]),
    /// A portal.
    Portal(&'a [u8]),
}

impl<'a> Target<'a> {
    /// Reads the body of a Describe or Close.
    ///
    /// # Errors
    /// [`WireError::BadBody`] with `tag`.
    pub fn read(tag: u8, body: &'a [u8]) -> Result<Self, WireError> {
        let (&kind, rest) = body.split_first().ok_or(WireError::BadBody(tag))?;
        let (name, rest) = split_cstr(rest).ok_or(WireError::BadBody(tag))?;
        match (kind, rest) {
            (b'S', []) => Ok(Self::Statement(name)),
            (b'P', []) => Ok(Self::Portal(name)),
            _ => Err(WireError::BadBody(tag)),
        }
    }
}

/// The body of a Parse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parse<'a> {
    /// Statement name; empty for the unnamed statement.
    pub name: &'a [u8],
    /// Statement text without its final zero byte.
    pub text: &'a [u8],
    /// Everything after the name: text, zero byte, parameter types.
    pub definition: &'a [u8],
}

impl<'a> Parse<'a> {
    /// Reads the body of a Parse.
    ///
    /// # Errors
    /// [`WireError::BadBody`].
    pub fn read(body: &'a [u8]) -> Result<Self, WireError> {
        let bad = WireError::BadBody(PARSE);
        let (name, definition) = split_cstr(body).ok_or(bad)?;
        let (text, types) = split_cstr(definition).ok_or(bad)?;
        let (count, types) = types.split_first_chunk::<2>().ok_or(bad)?;
        if types.len() != usize::from(u16::from_be_bytes(*count)) * 4 {
            return Err(bad);
        }
        Ok(Self { name, text, definition })
    }
}

/// The two names at the start of a Bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BindNames<'a> {
    /// Portal to make.
    pub portal: &'a [u8],
    /// Statement that it runs.
    pub statement: &'a [u8],
}

impl<'a> BindNames<'a> {
    /// Reads the names from the bytes of a body that are there so far; `None` when they end too early.
    #[inline]
    pub fn read(body: &'a [u8]) -> Option<Self> {
        // Names are short: looking byte by byte is faster than starting a vector search twice.
        let split = |bytes: &'a [u8]| {
            let end = bytes.iter().position(|&b| b == 0)?;
            Some((bytes.get(..end)?, bytes.get(end + 1..)?))
        };
        let (portal, rest) = split(body)?;
        let (statement, _) = split(rest)?;
        Some(Self { portal, statement })
    }

    /// Bytes that the two names take, zero bytes included.
    #[inline]
    pub fn len(self) -> usize {
        self.portal.len() + self.statement.len() + 2
    }

    /// Never: the two zero bytes are always there.
    pub fn is_empty(self) -> bool {
        false
    }
}

/// The text of a Query.
///
/// # Errors
/// [`WireError::BadBody`] when it does not end with its first zero byte.
pub fn query_text(body: &[u8]) -> Result<&[u8], WireError> {
    match split_cstr(body) {
        Some((text, [])) => Ok(text),
        _ => Err(WireError::BadBody(QUERY)),
    }
}
