//! A bare login: enough of the protocol to know that a subject is ready, and to hold idle sessions.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::postgres::USER;

/// A login that takes longer than this has failed.
const LOGIN_WITHIN: Duration = Duration::from_secs(10);
/// Bound of one message during login; a server's messages are far smaller.
const MESSAGE_LEN_MAX: u32 = 16 * 1024;
/// Protocol 3.0 ("Message Formats" in the `PostgreSQL` documentation).
const PROTOCOL_3_0: u32 = 196_608;

/// Opens a session to 127.0.0.1 and waits until it is idle. Only for servers that ask for no proof.
pub fn log_in(port: u16) -> io::Result<TcpStream> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, LOGIN_WITHIN)?;
    stream.set_read_timeout(Some(LOGIN_WITHIN))?;
    stream.set_nodelay(true)?;
    stream.write_all(&startup_message())?;
    loop {
        match read_message(&mut stream)? {
            (b'Z', _) => return Ok(stream),
            (b'E', _) => return Err(io::Error::new(io::ErrorKind::PermissionDenied, "login refused")),
            (b'R', body) if body != [0, 0, 0, 0] => {
                return Err(io::Error::new(io::ErrorKind::Unsupported, "the server asks for a proof"));
            }
            // AuthenticationOk, ParameterStatus, BackendKeyData, NoticeResponse.
            (_, _) => {}
        }
    }
}

/// `StartupMessage` for [`USER`] and the database of that name.
fn startup_message() -> Vec<u8> {
    let parameters = format!("user\0{USER}\0database\0{USER}\0\0");
    // The length counts itself and the version, four bytes each.
    let len = u32::try_from(parameters.len() + 8).unwrap_or(u32::MAX);
    [&len.to_be_bytes()[..], &PROTOCOL_3_0.to_be_bytes(), parameters.as_bytes()].concat()
}

fn read_message(stream: &mut TcpStream) -> io::Result<(u8, Vec<u8>)> {
    let mut header = [0; 5];
    stream.read_exact(&mut header)?;
    let [tag, len @ ..] = header;
    let len = u32::from_be_bytes(len);
    if !(4..=MESSAGE_LEN_MAX).contains(&len) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message length out of bounds"));
    }
    let mut body = vec![0; len as usize - 4];
    stream.read_exact(&mut body)?;
    Ok((tag, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_startup_message_states_its_own_length() {
        // A server waits for as many bytes as the length says, so a wrong one would hang every login.
        let message = startup_message();

        let stated = u32::from_be_bytes(message[..4].try_into().unwrap()) as usize;

        assert_eq!(stated, message.len());
    }
}
