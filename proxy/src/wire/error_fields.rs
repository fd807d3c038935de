//! The fields of `ErrorResponse` and `NoticeResponse`: reading the server's, writing ours.

use super::backend::{ERROR_RESPONSE, NOTICE_RESPONSE};
use super::frame::{put_cstr, put_frame, split_cstr};
use super::sqlstate::SqlState;

/// The fields of a server's error that decide something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ErrorFields<'a> {
    /// Severity, not translated (field V; field S for servers before 9.6).
    pub severity: &'a [u8],
    /// SQLSTATE.
    pub code: &'a [u8],
    /// The message.
    pub message: &'a [u8],
    /// The source routine that reported it. Messages are translated, this is not.
    pub routine: &'a [u8],
}

impl<'a> ErrorFields<'a> {
    /// Reads the body of an `ErrorResponse` or `NoticeResponse`. Missing fields stay empty.
    pub fn read(body: &'a [u8]) -> Self {
        let mut fields = Self::default();
        for (kind, value) in Fields(body) {
            match kind {
                b'V' => fields.severity = value,
                b'S' if fields.severity.is_empty() => fields.severity = value,
                b'C' => fields.code = value,
                b'M' => fields.message = value,
                b'R' => fields.routine = value,
                _ => {}
            }
        }
        fields
    }

    /// Whether the server ends the connection with this error.
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity, b"FATAL" | b"PANIC")
    }

    /// The SQLSTATE, when there is a proper one.
    pub fn sqlstate(&self) -> Option<SqlState> {
        SqlState::read(self.code)
    }
}

/// Iterator over (field type, value).
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&kind, rest) = self.0.split_first()?;
        if kind == 0 {
            return None;
        }
        let (value, rest) = split_cstr(rest)?;
        self.0 = rest;
        Some((kind, value))
    }
}

/// Appends the server's error with its severity turned into `severity`: the session outlives the backend.
pub fn put_with_severity(out: &mut Vec<u8>, body: &[u8], severity: Severity) {
    put_frame(out, ERROR_RESPONSE, |out| {
        for (kind, value) in Fields(body) {
            out.push(kind);
            put_cstr(out, if matches!(kind, b'S' | b'V') { severity.text() } else { value });
        }
        out.push(0);
    });
}

/// Appends the server's error in our words, with a machine-readable detail and a hint; its own detail stays, behind.
pub fn put_with_words(out: &mut Vec<u8>, body: &[u8], message: &str, detail: &str, hint: &str) {
    put_frame(out, ERROR_RESPONSE, |out| {
        let mut own = None;
        for (kind, value) in Fields(body) {
            match kind {
                b'D' => own = Some(value),
                b'H' => {}
                b'M' => {
                    out.push(b'M');
                    put_cstr(out, message.as_bytes());
                }
                kind => {
                    out.push(kind);
                    put_cstr(out, value);
                }
            }
        }
        out.push(b'D');
        out.extend_from_slice(detail.as_bytes());
        if let Some(own) = own {
            out.push(b'\n');
            out.extend_from_slice(own);
        }
        out.push(0);
        out.push(b'H');
        put_cstr(out, hint.as_bytes());
        out.push(0);
    });
}

/// Appends the server's error about a prepared statement under the name that the application gave it.
pub fn put_with_name(out: &mut Vec<u8>, body: &[u8], name: &[u8]) {
    put_frame(out, ERROR_RESPONSE, |out| {
        for (kind, value) in Fields(body) {
            out.push(kind);
            if kind == b'M' {
                put_cstr(out, &quote_instead(value, name));
            } else {
                put_cstr(out, value);
            }
        }
        out.push(0);
    });
}

/// The message with `name` between its first two double quotes.
fn quote_instead(message: &[u8], name: &[u8]) -> Vec<u8> {
    let mut parts = message.splitn(3, |&b| b == b'"');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(before), Some(_), Some(after)) => [before, b"\"", name, b"\"", after].concat(),
        _ => message.to_vec(),
    }
}

/// How bad an error of ours is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Nothing fails.
    Notice,
    /// The statement fails, the session lives.
    Error,
    /// The session ends.
    Fatal,
}

impl Severity {
    /// The word on the wire.
    pub fn text(self) -> &'static [u8] {
        match self {
            Self::Notice => b"NOTICE",
            Self::Error => b"ERROR",
            Self::Fatal => b"FATAL",
        }
    }
}

/// An error of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorMessage<'a> {
    /// Whether the session survives.
    pub severity: Severity,
    /// SQLSTATE.
    pub code: SqlState,
    /// One plain sentence.
    pub message: &'a str,
    /// Machine-readable detail, or empty.
    pub detail: &'a str,
    /// What can be done, or empty.
    pub hint: &'a str,
}

impl ErrorMessage<'_> {
    /// Appends the error as an `ErrorResponse`, a notice as a `NoticeResponse`.
    pub fn put(&self, out: &mut Vec<u8>) {
        let tag = match self.severity {
            Severity::Notice => NOTICE_RESPONSE,
            Severity::Error | Severity::Fatal => ERROR_RESPONSE,
        };
        put_frame(out, tag, |out| {
            let mut field = |kind: u8, value: &[u8]| {
                if !value.is_empty() {
                    out.push(kind);
                    put_cstr(out, value);
                }
            };
            field(b'S', self.severity.text());
            field(b'V', self.severity.text());
            field(b'C', self.code.as_bytes());
            field(b'M', self.message.as_bytes());
            field(b'D', self.detail.as_bytes());
            field(b'H', self.hint.as_bytes());
            out.push(0);
        });
    }
}
