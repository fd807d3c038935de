//! Frame headers: one tag byte and a length that counts itself but not the tag.

use thiserror::Error;

/// Bytes of a header: tag and length.
pub const HEADER_LEN: usize = 5;

/// Longest body that PostgreSQL accepts for the messages that may be large (`PQ_LARGE_MESSAGE_LIMIT`,
/// `MaxAllocSize - 1`, in `src/include/libpq/libpq.h`).
const LARGE_MESSAGE_LIMIT: usize = 0x3fff_ffff - 1;

/// The same for all other messages (`PQ_SMALL_MESSAGE_LIMIT`).
const SMALL_MESSAGE_LIMIT: usize = 10_000;

/// Above this, libpq takes only some messages for real (`pqParseInput3` in `fe-protocol3.c`).
const ORDINARY_BACKEND_LIMIT: usize = 30_000;

/// Bytes that are not the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum WireError {
    /// A tag that the peer may not send at this point.
    #[error("unexpected message type 0x{0:02x}")]
    UnexpectedTag(u8),
    /// A length below the minimum or above PostgreSQL's own limit.
    #[error("invalid length {length} in message type 0x{tag:02x}")]
    BadLength {
        /// The message's tag.
        tag: u8,
        /// The length field.
        length: u32,
    },
    /// The body of a message does not have the form that its tag demands.
    #[error("malformed body in message type 0x{0:02x}")]
    BadBody(u8),
    /// A startup packet that is none of the known ones.
    #[error("invalid startup packet: {0}")]
    BadStartup(&'static str),
}

/// A parsed frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Message type.
    pub tag: u8,
    /// Bytes of the whole frame, header included.
    pub frame_len: usize,
}

impl Header {
    /// Reads the header at the start of `bytes`; `None` while fewer than five bytes are there.
    ///
    /// # Errors
    /// [`WireError::BadLength`] for a length below four.
    #[inline]
    pub fn read(bytes: &[u8]) -> Result<Option<Self>, WireError> {
        let Some((&[tag, a, b, c, d], _)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([a, b, c, d]);
        if length < 4 || length > i32::MAX as u32 {
            return Err(WireError::BadLength { tag, length });
        }
        Ok(Some(Self { tag, frame_len: length as usize + 1 }))
    }

    /// As [`Header::read`], with the limits that PostgreSQL sets on what an application may send
    /// (`SocketBackend` in `src/backend/tcop/postgres.c`).
    ///
    /// # Errors
    /// [`WireError::UnexpectedTag`] or [`WireError::BadLength`].
    #[inline]
    pub fn read_frontend(bytes: &[u8]) -> Result<Option<Self>, WireError> {
        use super::frontend as f;
        if let Some(&tag) = bytes.first()
            && !f::is_known(tag)
        {
            return Err(WireError::UnexpectedTag(tag));
        }
        let Some(header) = Self::read(bytes)? else { return Ok(None) };
        let limit = match header.tag {
            f::QUERY | f::PARSE | f::BIND | f::FUNCTION_CALL | f::COPY_DATA => LARGE_MESSAGE_LIMIT,
            _ => SMALL_MESSAGE_LIMIT,
        };
        if header.body_len() > limit {
            let length = u32::try_from(header.frame_len - 1).unwrap_or(u32::MAX);
            return Err(WireError::BadLength { tag: header.tag, length });
        }
        Ok(Some(header))
    }

    /// As [`Header::read`], for what a server sends: a stream that is something else is noticed by its tag or
    /// by a length that no server sends with it, instead of being waited for.
    ///
    /// # Errors
    /// [`WireError::UnexpectedTag`] or [`WireError::BadLength`].
    #[inline]
    pub fn read_backend(bytes: &[u8]) -> Result<Option<Self>, WireError> {
        let Some(header) = Self::read(bytes)? else { return Ok(None) };
        if header.frame_len > ORDINARY_BACKEND_LIMIT && !super::backend::may_be_long(header.tag) {
            let length = u32::try_from(header.frame_len - 1).unwrap_or(u32::MAX);
            return Err(WireError::BadLength { tag: header.tag, length });
        }
        Ok(Some(header))
    }

    /// Bytes after the header.
    #[inline]
    pub fn body_len(self) -> usize {
        self.frame_len - HEADER_LEN
    }
}

/// Appends a frame: the header, then what `body` appends.
pub fn put_frame(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    body(out);
    let length = u32::try_from(out.len() - at).unwrap_or(u32::MAX);
    if let Some(slot) = out.get_mut(at..at + 4) {
        slot.copy_from_slice(&length.to_be_bytes());
    }
}

/// Appends a zero-terminated string. Zero bytes inside are left out: they would end it early.
pub fn put_cstr(out: &mut Vec<u8>, text: &[u8]) {
    out.extend(text.iter().copied().filter(|&b| b != 0));
    out.push(0);
}

/// Splits off the bytes before the first zero byte.
#[inline]
pub fn split_cstr(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(0, bytes)?;
    Some((bytes.get(..end)?, bytes.get(end + 1..)?))
}
