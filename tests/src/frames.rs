//! Builders of message sequences, for both ends.

use bytes::{BufMut, BytesMut};
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;

/// Protocol 3.0.
const VERSION_3_0: u32 = 3 << 16;
/// "1234" and "5678" to "5680" in the place of a version (`src/include/libpq/pqcomm.h`).
const CANCEL_REQUEST: u32 = (1234 << 16) + 5678;
const SSL_REQUEST: u32 = (1234 << 16) + 5679;
const GSS_ENC_REQUEST: u32 = (1234 << 16) + 5680;

/// Messages of an application, in order.
#[derive(Debug, Clone, Default)]
pub struct Frames(BytesMut);

impl AsRef<[u8]> for Frames {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Frames {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn with(mut self, write: impl FnOnce(&mut BytesMut)) -> Self {
        write(&mut self.0);
        self
    }

    /// `StartupMessage` of protocol 3.0.
    #[must_use]
    pub fn startup(self, parameters: &[(&str, &str)]) -> Self {
        self.startup_of_version(VERSION_3_0, parameters)
    }

    /// `StartupMessage` of any version: `(major << 16) | minor`.
    #[must_use]
    pub fn startup_of_version(self, version: u32, parameters: &[(&str, &str)]) -> Self {
        let mut body = BytesMut::new();
        body.put_u32(version);
        for (name, value) in parameters {
            put_string(&mut body, name);
            put_string(&mut body, value);
        }
        body.put_u8(0);
        self.untagged(&body)
    }

    /// `SSLRequest`.
    #[must_use]
    pub fn ssl_request(self) -> Self {
        self.untagged(&SSL_REQUEST.to_be_bytes())
    }

    /// `GSSENCRequest`.
    #[must_use]
    pub fn gss_enc_request(self) -> Self {
        self.untagged(&GSS_ENC_REQUEST.to_be_bytes())
    }

    /// `CancelRequest`. The secret has 4 bytes in protocol 3.0, up to 256 in 3.2.
    #[must_use]
    pub fn cancel_request(self, pid: u32, secret: &[u8]) -> Self {
        let mut body = BytesMut::new();
        body.put_u32(CANCEL_REQUEST);
        body.put_u32(pid);
        body.put_slice(secret);
        self.untagged(&body)
    }

    fn untagged(self, body: &[u8]) -> Self {
        self.with(|buffer| {
            put_length(buffer, body);
            buffer.put_slice(body);
        })
    }

    /// Any message.
    #[must_use]
    pub fn message(self, tag: u8, body: &[u8]) -> Self {
        self.with(|buffer| put_message(buffer, tag, body))
    }

    /// Bytes as they are.
    #[must_use]
    pub fn raw(self, bytes: &[u8]) -> Self {
        self.with(|buffer| buffer.put_slice(bytes))
    }

    /// Query.
    #[must_use]
    pub fn query(self, sql: &str) -> Self {
        self.with(|buffer| frontend::query(sql, buffer).expect("a query without zero bytes"))
    }

    /// Parse. `types` are object ids; empty leaves them to the server.
    #[must_use]
    pub fn parse(self, statement: &str, sql: &str, types: &[u32]) -> Self {
        self.with(|buffer| {
            frontend::parse(statement, sql, types.iter().copied(), buffer).expect("a statement");
        })
    }

    /// Bind, with parameters and results in text.
    #[must_use]
    pub fn bind(self, portal: &str, statement: &str, parameters: &[Option<&str>]) -> Self {
        self.with(|buffer| {
            let parameters = parameters.iter().copied();
            let write = |parameter: Option<&str>, buffer: &mut BytesMut| {
                buffer.put_slice(parameter.unwrap_or_default().as_bytes());
                Ok(if parameter.is_none() { IsNull::Yes } else { IsNull::No })
            };
            let bound = frontend::bind(portal, statement, [], parameters, write, [], buffer);
            assert!(bound.is_ok(), "parameters that can be bound");
        })
    }

    /// Describe of a prepared statement.
    #[must_use]
    pub fn describe_statement(self, statement: &str) -> Self {
        self.with(|buffer| frontend::describe(b'S', statement, buffer).expect("a name"))
    }

    /// Describe of a portal.
    #[must_use]
    pub fn describe_portal(self, portal: &str) -> Self {
        self.with(|buffer| frontend::describe(b'P', portal, buffer).expect("a name"))
    }

    /// Execute. 0 rows means all.
    #[must_use]
    pub fn execute(self, portal: &str, rows_max: i32) -> Self {
        self.with(|buffer| frontend::execute(portal, rows_max, buffer).expect("a name"))
    }

    /// Close of a prepared statement.
    #[must_use]
    pub fn close_statement(self, statement: &str) -> Self {
        self.with(|buffer| frontend::close(b'S', statement, buffer).expect("a name"))
    }

    /// Close of a portal.
    #[must_use]
    pub fn close_portal(self, portal: &str) -> Self {
        self.with(|buffer| frontend::close(b'P', portal, buffer).expect("a name"))
    }

    /// Sync.
    #[must_use]
    pub fn sync(self) -> Self {
        self.message(b'S', &[])
    }

    /// Flush.
    #[must_use]
    pub fn flush(self) -> Self {
        self.message(b'H', &[])
    }

    /// Parse, Bind, Describe, Execute of the unnamed statement, without Sync.
    #[must_use]
    pub fn unnamed(self, sql: &str, parameters: &[Option<&str>]) -> Self {
        self.parse("", sql, &[]).bind("", "", parameters).describe_portal("").execute("", 0)
    }

    /// `CopyData`.
    #[must_use]
    pub fn copy_data(self, data: &[u8]) -> Self {
        self.message(b'd', data)
    }

    /// `CopyDone`.
    #[must_use]
    pub fn copy_done(self) -> Self {
        self.message(b'c', &[])
    }

    /// `CopyFail`.
    #[must_use]
    pub fn copy_fail(self, why: &str) -> Self {
        self.with(|buffer| frontend::copy_fail(why, buffer).expect("a reason"))
    }

    /// `PasswordMessage`, also as SASL's first and further responses.
    #[must_use]
    pub fn password(self, body: &[u8]) -> Self {
        self.message(b'p', body)
    }

    /// Terminate.
    #[must_use]
    pub fn terminate(self) -> Self {
        self.message(b'X', &[])
    }
}

/// Messages of a server, in order.
#[derive(Debug, Clone, Default)]
pub struct Replies(BytesMut);

impl AsRef<[u8]> for Replies {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Replies {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Any message.
    #[must_use]
    pub fn message(mut self, tag: u8, body: &[u8]) -> Self {
        put_message(&mut self.0, tag, body);
        self
    }

    /// Bytes as they are.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.put_slice(bytes);
        self
    }

    /// `AuthenticationOk`.
    #[must_use]
    pub fn authentication_ok(self) -> Self {
        self.message(b'R', &0_u32.to_be_bytes())
    }

    /// `ParameterStatus`.
    #[must_use]
    pub fn parameter(self, name: &str, value: &str) -> Self {
        self.strings(b'S', &[name, value])
    }

    /// `BackendKeyData`.
    #[must_use]
    pub fn key(self, pid: u32, secret: &[u8]) -> Self {
        let mut body = pid.to_be_bytes().to_vec();
        body.extend(secret);
        self.message(b'K', &body)
    }

    /// `ReadyForQuery`: 'I', 'T', 'E'.
    #[must_use]
    pub fn ready(self, status: char) -> Self {
        self.message(b'Z', &[u8::try_from(status).expect("an ASCII letter")])
    }

    /// `RowDescription` of text columns.
    #[must_use]
    pub fn row_description(self, names: &[&str]) -> Self {
        const TEXT: u32 = 25;
        let mut body = BytesMut::new();
        body.put_u16(u16::try_from(names.len()).expect("few columns"));
        for name in names {
            put_string(&mut body, name);
            // No table and column; type text, of variable size, without modifier, in text format.
            body.put_u32(0);
            body.put_u16(0);
            body.put_u32(TEXT);
            body.put_i16(-1);
            body.put_i32(-1);
            body.put_u16(0);
        }
        self.message(b'T', &body)
    }

    /// `DataRow`.
    #[must_use]
    pub fn data_row(self, values: &[Option<&str>]) -> Self {
        let mut body = BytesMut::new();
        body.put_u16(u16::try_from(values.len()).expect("few columns"));
        for value in values {
            match value {
                None => body.put_i32(-1),
                Some(text) => {
                    body.put_u32(u32::try_from(text.len()).expect("a short text"));
                    body.put_slice(text.as_bytes());
                }
            }
        }
        self.message(b'D', &body)
    }

    /// `CommandComplete`.
    #[must_use]
    pub fn complete(self, command: &str) -> Self {
        self.strings(b'C', &[command])
    }

    /// `ErrorResponse` with severity, SQLSTATE and message.
    #[must_use]
    pub fn error(self, severity: &str, code: &str, message: &str) -> Self {
        self.problem(b'E', &[('S', severity), ('V', severity), ('C', code), ('M', message)])
    }

    /// `ErrorResponse` (`E`) or `NoticeResponse` (`N`) with these fields.
    #[must_use]
    pub fn problem(self, tag: u8, fields: &[(char, &str)]) -> Self {
        let mut body = BytesMut::new();
        for (letter, text) in fields {
            body.put_u8(u8::try_from(*letter).expect("an ASCII letter"));
            put_string(&mut body, text);
        }
        body.put_u8(0);
        self.message(tag, &body)
    }

    /// One row of one text column, its `CommandComplete`, and `ReadyForQuery` outside of a transaction.
    #[must_use]
    pub fn one_value(self, value: &str) -> Self {
        self.row_description(&["value"]).data_row(&[Some(value)]).complete("SELECT 1").ready('I')
    }

    fn strings(self, tag: u8, strings: &[&str]) -> Self {
        let mut body = BytesMut::new();
        for text in strings {
            put_string(&mut body, text);
        }
        self.message(tag, &body)
    }
}

fn put_string(buffer: &mut BytesMut, text: &str) {
    buffer.put_slice(text.as_bytes());
    buffer.put_u8(0);
}

fn put_length(buffer: &mut BytesMut, body: &[u8]) {
    buffer.put_u32(u32::try_from(body.len() + 4).expect("a body that fits into a message"));
}

fn put_message(buffer: &mut BytesMut, tag: u8, body: &[u8]) {
    buffer.put_u8(tag);
    put_length(buffer, body);
    buffer.put_slice(body);
}
