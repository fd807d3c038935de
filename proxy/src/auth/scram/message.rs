//! The syntax of SCRAM messages: `a=value` pairs between commas, and the GS2 header before them.

use base64::prelude::{BASE64_STANDARD, Engine as _};

use super::ScramError;

/// Takes one message apart from left to right, as `read_attr_value` and `read_any_attr` in PostgreSQL's
/// `src/backend/libpq/auth-scram.c` do.
pub(super) struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// Refuses a message that is empty or has a zero byte in it.
    pub(super) fn new(message: &'a [u8]) -> Result<Self, ScramError> {
        if message.is_empty() {
            return Err(ScramError::Malformed("the message is empty"));
        }
        if message.contains(&0) {
            return Err(ScramError::Malformed("a zero byte in the message"));
        }
        Ok(Self { rest: message })
    }

    /// What has not been taken yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next attribute, which must be this one.
    pub(super) fn expect(&mut self, name: u8, what: &'static str) -> Result<&'a [u8], ScramError> {
        match self.rest.first() {
            Some(b'm') if name != b'm' => Err(ScramError::Unsupported("a mandatory extension")),
            Some(&first) if first == name => Ok(self.next()?.1),
            Some(_) | None => Err(ScramError::Malformed(what)),
        }
    }

    /// The next attribute, whatever it is.
    pub(super) fn next(&mut self) -> Result<(u8, &'a [u8]), ScramError> {
        let (pair, rest) = split_at_comma(self.rest);
        match pair {
            [name, b'=', value @ ..] if name.is_ascii_alphabetic() => {
                self.rest = rest;
                Ok((*name, value))
            }
            _ => Err(ScramError::Malformed("expected an attribute")),
        }
    }

    /// One field up to a comma that must be there (the GS2 header has such).
    pub(super) fn field(&mut self) -> Result<&'a [u8], ScramError> {
        if !self.rest.contains(&b',') {
            return Err(ScramError::Malformed("comma expected"));
        }
        let (field, rest) = split_at_comma(self.rest);
        self.rest = rest;
        Ok(field)
    }

    /// Ignores optional extensions up to the end.
    pub(super) fn skip_extensions(&mut self) -> Result<(), ScramError> {
        while !self.rest.is_empty() {
            self.next()?;
        }
        Ok(())
    }

    /// Nothing may follow.
    pub(super) fn end(&self) -> Result<(), ScramError> {
        if self.rest.is_empty() { Ok(()) } else { Err(ScramError::Malformed("text after the end")) }
    }
}

fn split_at_comma(bytes: &[u8]) -> (&[u8], &[u8]) {
    match bytes.iter().position(|&byte| byte == b',') {
        Some(comma) => (&bytes[..comma], &bytes[comma + 1..]),
        None => (bytes, &[]),
    }
}

/// Printable ASCII without a comma: a nonce in RFC 5802.
pub(super) fn check_nonce(nonce: &[u8]) -> Result<&str, ScramError> {
    let printable = |byte: &u8| matches!(byte, 0x21..=0x2b | 0x2d..=0x7e);
    if nonce.is_empty() || !nonce.iter().all(printable) {
        return Err(ScramError::Malformed("the nonce is not printable"));
    }
    str::from_utf8(nonce).map_err(|_| ScramError::Malformed("the nonce is not printable"))
}

/// A proof or a signature: 32 bytes in base64.
pub(super) fn decode_32(value: &[u8], what: &'static str) -> Result<[u8; 32], ScramError> {
    let bytes = BASE64_STANDARD.decode(value).map_err(|_| ScramError::Malformed(what))?;
    bytes.try_into().map_err(|_| ScramError::Malformed(what))
}
