//! The untagged packets that open a connection.

use super::frame::{WireError, put_cstr, split_cstr};

/// Longest startup packet (`MAX_STARTUP_PACKET_LENGTH` in `src/include/libpq/pqcomm.h`).
pub const MAX_STARTUP_LEN: usize = 10_000;

/// Longest secret in a cancel request (protocol 3.2: "up to 256 bytes").
pub const MAX_CANCEL_SECRET_LEN: usize = 256;

/// `NEGOTIATE_REQUEST_CODE` 1234.5678 to 1234.5680 in `src/include/libpq/pqcomm.h`.
const CANCEL_REQUEST: u32 = request_code(5678);
const SSL_REQUEST: u32 = request_code(5679);
const GSSENC_REQUEST: u32 = request_code(5680);

const fn request_code(minor: u32) -> u32 {
    1234 * 0x1_0000 + minor
}

/// Protocol 3.0, the version of PostgreSQL 7.4 to 17.
pub const VERSION_3_0: ProtocolVersion = ProtocolVersion { major: 3, minor: 0 };
/// Protocol 3.2 (PostgreSQL 18): longer cancel keys.
pub const VERSION_3_2: ProtocolVersion = ProtocolVersion { major: 3, minor: 2 };

/// A protocol version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProtocolVersion {
    /// Major version; we speak 3.
    pub major: u16,
    /// Minor version.
    pub minor: u16,
}

impl ProtocolVersion {
    /// The number on the wire.
    pub fn code(self) -> u32 {
        (u32::from(self.major) << 16) | u32::from(self.minor)
    }
}

/// One of the packets that may open a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartupPacket {
    /// May we speak TLS?
    SslRequest,
    /// May we speak GSSAPI encryption?
    GssEncRequest,
    /// Cancel what another session runs.
    Cancel {
        /// The process id that we gave out.
        process_id: u32,
        /// The secret that we gave out with it.
        secret: Vec<u8>,
    },
    /// A session is to start.
    Startup {
        /// What the application speaks.
        version: ProtocolVersion,
        /// Parameters in the order of the packet.
        parameters: Vec<(Vec<u8>, Vec<u8>)>,
    },
}

/// Length of the packet at the start of `bytes`; `None` while its length field is not complete.
///
/// # Errors
/// [`WireError::BadStartup`] for a length that PostgreSQL would refuse too.
pub fn packet_len(bytes: &[u8]) -> Result<Option<usize>, WireError> {
    let Some((length, _)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    if !(8..=MAX_STARTUP_LEN).contains(&length) {
        return Err(WireError::BadStartup("invalid length"));
    }
    Ok(Some(length))
}

impl StartupPacket {
    /// Reads one whole packet, length field included.
    ///
    /// # Errors
    /// [`WireError::BadStartup`].
    pub fn read(packet: &[u8]) -> Result<Self, WireError> {
        let (code, body) = packet
            .get(4..)
            .and_then(|rest| rest.split_first_chunk::<4>())
            .ok_or(WireError::BadStartup("too short"))?;
        match (u32::from_be_bytes(*code), body.len()) {
            (SSL_REQUEST, 0) => Ok(Self::SslRequest),
            (GSSENC_REQUEST, 0) => Ok(Self::GssEncRequest),
            (CANCEL_REQUEST, 5..=260) => read_cancel(body),
            (SSL_REQUEST | GSSENC_REQUEST | CANCEL_REQUEST, _) => {
                Err(WireError::BadStartup("invalid length"))
            }
            (code, _) => read_startup(code, body),
        }
    }
}

fn read_cancel(body: &[u8]) -> Result<StartupPacket, WireError> {
    let (process_id, secret) =
        body.split_first_chunk::<4>().ok_or(WireError::BadStartup("invalid cancel request"))?;
    Ok(StartupPacket::Cancel { process_id: u32::from_be_bytes(*process_id), secret: secret.to_vec() })
}

fn read_startup(code: u32, body: &[u8]) -> Result<StartupPacket, WireError> {
    let [a, b, c, d] = code.to_be_bytes();
    let version = ProtocolVersion { major: u16::from_be_bytes([a, b]), minor: u16::from_be_bytes([c, d]) };
    if version.major != 3 {
        // The rest may have any form.
        return Ok(StartupPacket::Startup { version, parameters: Vec::new() });
    }
    let mut parameters = Vec::new();
    let mut rest = body;
    loop {
        let (name, after) = split_cstr(rest).ok_or(WireError::BadStartup("missing terminator"))?;
        if name.is_empty() {
            return if after.is_empty() {
                Ok(StartupPacket::Startup { version, parameters })
            } else {
                Err(WireError::BadStartup("bytes after the terminator"))
            };
        }
        let (value, after) = split_cstr(after).ok_or(WireError::BadStartup("name without value"))?;
        parameters.push((name.to_vec(), value.to_vec()));
        rest = after;
    }
}

fn put_packet(code: u32, body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = vec![0; 4];
    out.extend_from_slice(&code.to_be_bytes());
    body(&mut out);
    let length = u32::try_from(out.len()).unwrap_or(u32::MAX);
    out.splice(..4, length.to_be_bytes());
    out
}

/// An `SSLRequest`.
pub fn ssl_request() -> Vec<u8> {
    put_packet(SSL_REQUEST, |_| {})
}

/// A `GSSENCRequest`.
pub fn gss_enc_request() -> Vec<u8> {
    put_packet(GSSENC_REQUEST, |_| {})
}

/// A `CancelRequest`.
pub fn cancel_request(process_id: u32, secret: &[u8]) -> Vec<u8> {
    put_packet(CANCEL_REQUEST, |out| {
        out.extend_from_slice(&process_id.to_be_bytes());
        out.extend_from_slice(secret);
    })
}

/// A `StartupMessage`.
pub fn startup_message<'a>(
    version: ProtocolVersion,
    parameters: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Vec<u8> {
    put_packet(version.code(), |out| {
        for (name, value) in parameters {
            put_cstr(out, name.as_bytes());
            put_cstr(out, value.as_bytes());
        }
        out.push(0);
    })
}

/// Appends a `NegotiateProtocolVersion`: the version that the session will have, and the options (`_pq_.…`)
/// that we do not know.
pub fn put_negotiate(out: &mut Vec<u8>, version: ProtocolVersion, unknown_options: &[&[u8]]) {
    super::frame::put_frame(out, super::backend::NEGOTIATE_PROTOCOL_VERSION, |out| {
        out.extend_from_slice(&version.code().to_be_bytes());
        let count = u32::try_from(unknown_options.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&count.to_be_bytes());
        for option in unknown_options {
            put_cstr(out, option);
        }
    });
}
