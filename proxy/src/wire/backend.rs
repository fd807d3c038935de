//! What a server sends, and the messages that we send in a server's place.

use super::frame::{put_cstr, put_frame};
use super::transaction_status::TransactionStatus;

/// Authentication request, and `AuthenticationOk`.
pub const AUTHENTICATION: u8 = b'R';
/// The key for cancel requests.
pub const BACKEND_KEY_DATA: u8 = b'K';
/// A Bind is done.
pub const BIND_COMPLETE: u8 = b'2';
/// A Close is done.
pub const CLOSE_COMPLETE: u8 = b'3';
/// A statement ran to its end.
pub const COMMAND_COMPLETE: u8 = b'C';
/// Both directions carry COPY data now (replication).
pub const COPY_BOTH_RESPONSE: u8 = b'W';
/// The server waits for COPY data.
pub const COPY_IN_RESPONSE: u8 = b'G';
/// COPY data follows.
pub const COPY_OUT_RESPONSE: u8 = b'H';
/// A row.
pub const DATA_ROW: u8 = b'D';
/// There was no statement in the query.
pub const EMPTY_QUERY_RESPONSE: u8 = b'I';
/// An error.
pub const ERROR_RESPONSE: u8 = b'E';
/// The result of a `FunctionCall`.
pub const FUNCTION_CALL_RESPONSE: u8 = b'V';
/// The server speaks an older minor version, or does not know an option.
pub const NEGOTIATE_PROTOCOL_VERSION: u8 = b'v';
/// Describe: no rows will come.
pub const NO_DATA: u8 = b'n';
/// A notice.
pub const NOTICE_RESPONSE: u8 = b'N';
/// A NOTIFY of some session.
pub const NOTIFICATION_RESPONSE: u8 = b'A';
/// Describe: the types of the parameters.
pub const PARAMETER_DESCRIPTION: u8 = b't';
/// The value of a reported parameter.
pub const PARAMETER_STATUS: u8 = b'S';
/// A Parse is done.
pub const PARSE_COMPLETE: u8 = b'1';
/// Execute reached its row limit.
pub const PORTAL_SUSPENDED: u8 = b's';
/// The server waits for the next exchange.
pub const READY_FOR_QUERY: u8 = b'Z';
/// The columns of rows to come.
pub const ROW_DESCRIPTION: u8 = b'T';

/// Whether a server sends this message with long bodies (`VALID_LONG_MESSAGE_TYPE` in libpq's
/// `fe-protocol3.c`, and the parameters of a statement, of which there may be 65,535).
#[inline]
pub fn may_be_long(tag: u8) -> bool {
    matches!(
        tag,
        DATA_ROW
            | ROW_DESCRIPTION
            | ERROR_RESPONSE
            | NOTICE_RESPONSE
            | NOTIFICATION_RESPONSE
            | FUNCTION_CALL_RESPONSE
            | PARAMETER_DESCRIPTION
            | PARAMETER_STATUS
            | super::frontend::COPY_DATA
    )
}

/// A whole `ParseComplete`.
pub const PARSE_COMPLETE_FRAME: [u8; 5] = [PARSE_COMPLETE, 0, 0, 0, 4];
/// A whole `BindComplete`.
pub const BIND_COMPLETE_FRAME: [u8; 5] = [BIND_COMPLETE, 0, 0, 0, 4];
/// A whole `CloseComplete`.
pub const CLOSE_COMPLETE_FRAME: [u8; 5] = [CLOSE_COMPLETE, 0, 0, 0, 4];
/// A whole `NoData`.
pub const NO_DATA_FRAME: [u8; 5] = [NO_DATA, 0, 0, 0, 4];
/// A whole `ParameterDescription` without parameters.
pub const NO_PARAMETERS_FRAME: [u8; 7] = [PARAMETER_DESCRIPTION, 0, 0, 0, 6, 0, 0];

/// Authentication request codes (`src/include/libpq/protocol.h`).
pub mod auth {
    /// Authentication is done.
    pub const OK: u32 = 0;
    /// The password in clear text.
    pub const CLEARTEXT: u32 = 3;
    /// The password hashed with a salt.
    pub const MD5: u32 = 5;
    /// SASL starts; a list of mechanisms follows.
    pub const SASL: u32 = 10;
    /// SASL goes on.
    pub const SASL_CONTINUE: u32 = 11;
    /// SASL's last word.
    pub const SASL_FINAL: u32 = 12;
}

/// Appends a `ReadyForQuery`.
pub fn put_ready(out: &mut Vec<u8>, status: TransactionStatus) {
    out.extend_from_slice(&[READY_FOR_QUERY, 0, 0, 0, 5, status.byte()]);
}

/// Appends an authentication message.
pub fn put_authentication(out: &mut Vec<u8>, code: u32, body: &[u8]) {
    put_frame(out, AUTHENTICATION, |out| {
        out.extend_from_slice(&code.to_be_bytes());
        out.extend_from_slice(body);
    });
}

/// Appends a `ParameterStatus`.
pub fn put_parameter_status(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    put_frame(out, PARAMETER_STATUS, |out| {
        put_cstr(out, name);
        put_cstr(out, value);
    });
}

/// Appends a `BackendKeyData`.
pub fn put_key(out: &mut Vec<u8>, process_id: u32, secret: &[u8]) {
    put_frame(out, BACKEND_KEY_DATA, |out| {
        out.extend_from_slice(&process_id.to_be_bytes());
        out.extend_from_slice(secret);
    });
}

/// Whether a command tag (`src/include/tcop/cmdtaglist.h`), given with its NUL, says that rows or objects were changed. What a
/// SELECT, a CALL or a DO block does is not to be seen there.
pub fn says_changed(command_tag: &[u8]) -> bool {
    const ROWS: [&[u8]; 5] = [b"INSERT ", b"UPDATE ", b"DELETE ", b"MERGE ", b"COPY "];
    const OBJECTS: [&[u8]; 4] = [b"CREATE ", b"ALTER ", b"DROP ", b"TRUNCATE "];
    let is_one_of = |words: &[&[u8]]| words.iter().any(|word| command_tag.starts_with(word));
    is_one_of(&ROWS) && !command_tag.ends_with(b" 0\0") || is_one_of(&OBJECTS)
}

/// Appends a `CommandComplete`.
pub fn put_command_complete(out: &mut Vec<u8>, command_tag: &[u8]) {
    put_frame(out, COMMAND_COMPLETE, |out| put_cstr(out, command_tag));
}

/// Splits the body of a `ParameterStatus` into name and value.
pub fn parameter_status(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name, rest) = super::frame::split_cstr(body)?;
    let (value, _) = super::frame::split_cstr(rest)?;
    Some((name, value))
}

/// Reads the columns of a `DataRow`; `None` stands for NULL.
pub fn data_row(body: &[u8]) -> Option<Vec<Option<&[u8]>>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut columns = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk::<4>()?;
        if let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) {
            columns.push(Some(after.get(..length)?));
            rest = after.get(length..)?;
        } else {
            columns.push(None);
            rest = after;
        }
    }
    Some(columns)
}
