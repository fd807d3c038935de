//! One connection to a PostgreSQL server, and the small conversations that we hold with it ourselves.
//!
//! The traffic of applications does not come through here: the relay drives [`Backend::stream`] directly.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use thiserror::Error;

use super::{CancelTarget, Prepared, Settings};
use crate::guard::SlotId;
use crate::io::{Buffer, Stream};
use crate::wire::{self, ErrorFields, Header, SqlState, TransactionStatus, WireError, backend as tag};

/// Longest answer that we take to a question of our own.
const MAX_REPLY_LEN: usize = 1024 * 1024;

/// A row of a question of our own; `None` is NULL.
pub type Row = Vec<Option<Vec<u8>>>;

/// A logged-in connection. Dropping it closes the socket without a goodbye.
#[derive(Debug)]
pub struct Backend {
    /// The connection itself.
    pub stream: Stream,
    /// Which worker's runtime the socket is registered with.
    pub worker: usize,
    /// What a cancel request needs to know.
    pub cancel_target: Arc<CancelTarget>,
    /// Prepared statements that it has.
    pub prepared: Prepared,
    /// Whose unnamed statement it has.
    pub unnamed: Option<UnnamedOwner>,
    /// Settings that we brought it to, beyond those of its login.
    pub applied: Arc<Settings>,
    /// Parameters that it reported at login.
    pub reported: BTreeMap<Box<str>, Box<[u8]>>,
    /// Whether it can be asked for the token of a transaction.
    pub knows_tokens: bool,
    /// As of the last `ReadyForQuery`.
    pub status: TransactionStatus,
    /// When it is to be closed at its next idle moment; on the clock.
    pub retire_at_ms: u64,
    /// Since when it is idle; on the clock.
    pub idle_since_ms: u64,
    /// The generation of the pool that opened it; see `Pool::reconnect`.
    pub generation: u64,
    /// Where its deadlines are kept; `None` for connections of our own.
    pub slot: Option<SlotId>,
}

/// Identifies the unnamed statement of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UnnamedOwner {
    /// The session.
    pub session: u64,
    /// Counts that session's unnamed statements.
    pub serial: u64,
}

impl UnnamedOwner {
    /// There may be an unnamed statement, and nobody knows whose.
    pub const NOBODY: Self = Self { session: 0, serial: u64::MAX };
}

/// An error that the server reported.
#[derive(Debug, Clone)]
pub struct ServerError {
    /// SQLSTATE.
    pub code: SqlState,
    /// Its message.
    pub message: String,
    /// Whether the connection is over.
    pub fatal: bool,
}

impl ServerError {
    /// Reads the body of an `ErrorResponse`.
    pub fn read(body: &[u8]) -> Self {
        let fields = ErrorFields::read(body);
        Self {
            code: fields.sqlstate().unwrap_or(SqlState::INTERNAL_ERROR),
            message: String::from_utf8_lossy(fields.message).into_owned(),
            fatal: fields.is_fatal(),
        }
    }
}

impl std::fmt::Display for ServerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

/// Why a conversation of ours failed. The connection's position is unknown after all but `Server`.
#[derive(Debug, Error)]
pub enum BackendError {
    /// The socket failed or ended.
    #[error("connection to PostgreSQL lost")]
    Lost(#[source] io::Error),
    /// The server sent what it may not send here.
    #[error("PostgreSQL broke the protocol")]
    Protocol(#[from] WireError),
    /// The server answered with an error; the connection is usable.
    #[error("PostgreSQL refused: {0}")]
    Server(ServerError),
    /// The answer is longer than a question of ours can have.
    #[error("answer too long")]
    TooLong,
}

impl From<io::Error> for BackendError {
    fn from(error: io::Error) -> Self {
        Self::Lost(error)
    }
}

impl Backend {
    /// Registers its socket with the runtime of the calling worker, which is this one.
    ///
    /// # Errors
    /// When that fails; the socket is closed then.
    #[inline]
    pub fn move_to(&mut self, worker: usize) -> io::Result<()> {
        if self.worker != worker {
            self.stream.socket_mut().rehome()?;
            self.worker = worker;
        }
        Ok(())
    }

    /// Runs a simple query of our own and returns its rows.
    ///
    /// # Errors
    /// [`BackendError::Server`] when the query failed (the connection is usable), else the connection is over.
    ///
    /// # Cancel safety
    /// Not cancel safe: discard the backend when this is dropped midway.
    pub async fn query(&mut self, sql: &[u8]) -> Result<Vec<Row>, BackendError> {
        self.query_for(sql, &mut Vec::new()).await
    }

    /// As [`Backend::query`], for a session that may listen: notifications that come meanwhile are appended to `heard`, as
    /// whole frames.
    ///
    /// # Errors
    /// As [`Backend::query`].
    ///
    /// # Cancel safety
    /// Not cancel safe.
    pub async fn query_for(&mut self, sql: &[u8], heard: &mut Vec<u8>) -> Result<Vec<Row>, BackendError> {
        let mut request = Vec::with_capacity(sql.len() + 6);
        wire::frame::put_frame(&mut request, wire::frontend::QUERY, |out| wire::frame::put_cstr(out, sql));
        self.converse(&request, heard).await
    }

    /// Runs a query of our own with text parameters and returns its rows.
    ///
    /// # Errors
    /// As [`Backend::query`].
    ///
    /// # Cancel safety
    /// Not cancel safe.
    pub async fn query_with(&mut self, sql: &str, parameters: &[&str]) -> Result<Vec<Row>, BackendError> {
        use wire::frame::{put_cstr, put_frame};
        use wire::frontend as f;
        let mut request = Vec::new();
        put_frame(&mut request, f::PARSE, |out| {
            out.push(0);
            put_cstr(out, sql.as_bytes());
            out.extend_from_slice(&[0, 0]);
        });
        put_frame(&mut request, f::BIND, |out| {
            let count = u16::try_from(parameters.len()).unwrap_or(u16::MAX).to_be_bytes();
            out.extend_from_slice(&[0, 0, 0, 0]);
            out.extend_from_slice(&count);
            for parameter in parameters {
                let length = u32::try_from(parameter.len()).unwrap_or(u32::MAX);
                out.extend_from_slice(&length.to_be_bytes());
                out.extend_from_slice(parameter.as_bytes());
            }
            out.extend_from_slice(&[0, 0]);
        });
        put_frame(&mut request, f::EXECUTE, |out| out.extend_from_slice(&[0, 0, 0, 0, 0]));
        put_frame(&mut request, f::SYNC, |_| {});
        self.unnamed = None;
        self.converse(&request, &mut Vec::new()).await
    }

    /// Sends `request`, which must end in exactly one `ReadyForQuery`, and collects the rows.
    async fn converse(&mut self, request: &[u8], heard: &mut Vec<u8>) -> Result<Vec<Row>, BackendError> {
        self.stream.write_all(request).await?;
        self.collect(heard).await
    }

    /// Reads until the next `ReadyForQuery` and returns the rows, or the error, that came before it. Appends notifications
    /// to `heard`.
    async fn collect(&mut self, heard: &mut Vec<u8>) -> Result<Vec<Row>, BackendError> {
        let mut rows = Vec::new();
        let mut failure = None;
        let mut input = Buffer::lend();
        let mut budget = MAX_REPLY_LEN;
        loop {
            let (tag, body_len) = self.whole_frame(&mut input).await?;
            budget = budget.checked_sub(body_len).ok_or(BackendError::TooLong)?;
            let body = input.unread().get(5..5 + body_len).unwrap_or_default();
            match tag {
                tag::READY_FOR_QUERY => {
                    self.status = body
                        .first()
                        .and_then(|&b| TransactionStatus::from_byte(b))
                        .ok_or(WireError::BadBody(tag))?;
                    return match failure {
                        Some(error) => Err(BackendError::Server(error)),
                        None => Ok(rows),
                    };
                }
                tag::ERROR_RESPONSE => {
                    let error = ServerError::read(body);
                    if error.fatal {
                        return Err(BackendError::Lost(io::Error::other(error.to_string())));
                    }
                    failure = Some(error);
                }
                tag::DATA_ROW => {
                    let columns = tag::data_row(body).ok_or(WireError::BadBody(tag))?;
                    rows.push(columns.into_iter().map(|c| c.map(<[u8]>::to_vec)).collect());
                }
                tag::NOTIFICATION_RESPONSE => {
                    heard.extend_from_slice(input.unread().get(..5 + body_len).unwrap_or_default());
                }
                tag::PARAMETER_STATUS
                | tag::NOTICE_RESPONSE
                | tag::ROW_DESCRIPTION
                | tag::COMMAND_COMPLETE
                | tag::EMPTY_QUERY_RESPONSE
                | tag::PARSE_COMPLETE
                | tag::BIND_COMPLETE
                | tag::CLOSE_COMPLETE
                | tag::NO_DATA => {}
                other => return Err(WireError::UnexpectedTag(other).into()),
            }
            input.consume(5 + body_len);
        }
    }

    /// Reads until `ready` more `ReadyForQuery` have come, whatever else comes, without keeping it.
    ///
    /// # Cancel safety
    /// Not cancel safe.
    pub async fn drain(&mut self, mut scan: DrainScan, mut ready: usize) -> Result<(), BackendError> {
        let mut input = Buffer::lend();
        while ready > 0 {
            if self.stream.fill(&mut input).await? == 0 {
                return Err(BackendError::Lost(io::ErrorKind::UnexpectedEof.into()));
            }
            while let Some(status) = scan.next_ready(&mut input)? {
                self.status = status;
                ready = ready.saturating_sub(1);
            }
        }
        if input.is_empty() { Ok(()) } else { Err(WireError::UnexpectedTag(0).into()) }
    }

    /// Waits until a whole frame is at the front of `input`; returns its tag and body length.
    async fn whole_frame(&mut self, input: &mut Buffer) -> Result<(u8, usize), BackendError> {
        loop {
            if let Some(header) = Header::read(input.unread())? {
                if header.frame_len > MAX_REPLY_LEN {
                    return Err(BackendError::TooLong);
                }
                input.reserve(header.frame_len);
                if input.unread().len() >= header.frame_len {
                    return Ok((header.tag, header.body_len()));
                }
            }
            if self.stream.fill(input).await? == 0 {
                return Err(BackendError::Lost(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Whether the server has closed the connection, as far as is known. What it said before is lost.
    pub fn is_closed(&mut self) -> bool {
        const READS_MAX: usize = 64;
        let mut space = [0; 1024];
        let mut receive = || self.stream.socket_mut().try_receive(&mut space);
        // Of a server that goes on sending the end is not waited for.
        (0..READS_MAX).map_while(|_| receive()).any(|received| !matches!(received, Ok(1..)))
    }

    /// Closes with RST: what the server has not received is never executed.
    pub fn reset(self) {
        self.stream.socket().reset_on_close();
    }

    /// Says goodbye. For idle connections only.
    pub async fn terminate(mut self) {
        let goodbye = [wire::frontend::TERMINATE, 0, 0, 0, 4];
        if self.stream.write_all(&goodbye).await.is_ok() {
            self.stream.shutdown().await;
        }
    }
}

/// Looks for `ReadyForQuery` in bytes that may start in the middle of a frame.
#[derive(Debug, Clone, Copy, Default)]
pub struct DrainScan {
    /// Bytes of the current frame that are still to come.
    pub body_left: usize,
}

impl DrainScan {
    fn next_ready(&mut self, input: &mut Buffer) -> Result<Option<TransactionStatus>, WireError> {
        loop {
            let skip = self.body_left.min(input.unread().len());
            input.consume(skip);
            self.body_left -= skip;
            if self.body_left > 0 {
                return Ok(None);
            }
            let Some(header) = Header::read(input.unread())? else { return Ok(None) };
            if header.tag != tag::READY_FOR_QUERY {
                self.body_left = header.frame_len;
                continue;
            }
            let Some(&byte) = input.unread().get(5) else { return Ok(None) };
            input.consume(header.frame_len);
            return TransactionStatus::from_byte(byte).map(Some).ok_or(WireError::BadBody(header.tag));
        }
    }
}
