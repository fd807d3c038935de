//! The admin console: a database that does not exist, at which operators ask and command in SQL's clothes.
//!
//! Speaks the protocol itself, simple and extended; needs no backend, no pool and no worker. It lives on the control
//! plane's runtime, and reads what the data path does through snapshots and short locks.

mod averages;
mod census;
mod columns;
mod command;
mod extended;
mod maintenance;
mod settings_table;
mod source;
mod table;
mod tables;
#[cfg(test)]
mod tests;
mod ties;
mod words;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

pub use ties::{Order, Reloaded, Ties};

use self::command::{Command, CommandError};
use self::extended::Prepared;
use self::table::{Column, Row};
use crate::exchange::facts::Reach;
use crate::exchange::{Refusal, refusal};
use crate::io::{Flow, Stream};
use crate::pool::Welcome;
use crate::server::Shared;
use crate::session::registry::{Phase, Registration, Signal};
use crate::wire::frame::HEADER_LEN;
use crate::wire::frontend::{self as tag, query_text};
use crate::wire::{ErrorMessage, Header, Severity, SqlState, TransactionStatus, backend as reply};

/// Names of the database that is the console; the second is what PgBouncer's tools expect.
const NAMES: [&str; 2] = ["tidegate", "pgbouncer"];

/// Longest message that a console takes; no command is a hundredth as long.
const MESSAGE_MAX: usize = 64 * 1024;

/// Answers are sent when an exchange ends, or when there are so many bytes.
const ANSWER_MAX: usize = 64 * 1024;

/// How long an operator's program may take to read an answer.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);

/// Whether a session that asks for this database wants the console.
pub fn is_console(database: &str) -> bool {
    NAMES.contains(&database)
}

/// Name and version.
fn version() -> &'static str {
    concat!("tidegate ", env!("CARGO_PKG_VERSION"))
}

/// What an operator's program is told at login. Values are those of PgBouncer's console.
pub fn welcome() -> Welcome {
    let parameters = [
        ("server_version", concat!(env!("CARGO_PKG_VERSION"), "/tidegate")),
        ("client_encoding", "UTF8"),
        ("server_encoding", "UTF8"),
        ("DateStyle", "ISO"),
        ("TimeZone", "GMT"),
        ("standard_conforming_strings", "on"),
        ("integer_datetimes", "on"),
        ("is_superuser", "on"),
    ];
    let parameters = parameters.map(|(name, value)| (name.into(), value.as_bytes().into())).to_vec();
    Welcome { parameters, reach: Reach::default() }
}

/// A session of the console.
#[derive(Debug)]
pub struct Console {
    stream: Stream,
    flow: Flow,
    registration: Registration,
    shared: Arc<Shared>,
    prepared: Prepared,
    status: TransactionStatus,
    out: Vec<u8>,
}

/// Why a command came to nothing.
#[derive(Debug)]
struct Failure {
    code: SqlState,
    message: String,
    detail: String,
    hint: String,
}

impl Failure {
    fn new(code: SqlState, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code, message: message.into(), detail: String::new(), hint: hint.into() }
    }
}

impl From<CommandError> for Failure {
    fn from(error: CommandError) -> Self {
        Self::new(error.code(), error.to_string(), error.hint())
    }
}

/// What a command came to.
#[derive(Debug, Default)]
struct Outcome {
    /// Message and detail of each.
    notices: Vec<(String, String)>,
    table: Option<(&'static [Column], Vec<Row>)>,
    command_tag: &'static str,
}

impl Outcome {
    fn of(command_tag: &'static str) -> Self {
        Self { command_tag, ..Self::default() }
    }

    fn notice(mut self, message: impl Into<String>) -> Self {
        self.notices.push((message.into(), String::new()));
        self
    }
}

/// Why a session ends.
enum End {
    /// The operator's program left, or cannot be reached.
    Left,
    /// It is told why.
    Told(Refusal),
}

impl From<std::io::Error> for End {
    fn from(_: std::io::Error) -> Self {
        Self::Left
    }
}

impl Console {
    /// A session whose login is over; `flow` holds what was read already.
    pub fn new(stream: Stream, flow: Flow, registration: Registration, shared: Arc<Shared>) -> Self {
        Self {
            stream,
            flow,
            registration,
            shared,
            prepared: Prepared::default(),
            status: TransactionStatus::Idle,
            out: Vec::new(),
        }
    }

    /// Moves the session to the control plane and runs it there to its end.
    pub fn start(self) {
        if let Some(runtime) = self.shared.ties.runtime().cloned() {
            runtime.spawn(self.run());
        }
    }

    /// Runs the session to its end, on the calling thread's runtime.
    ///
    /// # Cancel safety
    /// Dropping it closes the connection, and ends a pause that is not complete.
    async fn run(mut self) {
        if self.stream.socket_mut().rehome().is_err() {
            return;
        }
        poll_fn(|cx| {
            self.registration.entry.attend(cx.waker());
            Poll::Ready(())
        })
        .await;
        if let Err(End::Told(refusal)) = self.converse().await {
            refusal.put_fatal("-", &mut self.out);
            // It may be gone already.
            let _ = self.flush().await;
        }
        let _ = tokio::time::timeout(WRITE_DEADLINE, self.stream.shutdown()).await;
    }

    async fn converse(&mut self) -> Result<(), End> {
        loop {
            self.registration.entry.enter(Phase::Idle);
            let header = self.next_message().await?;
            self.registration.entry.enter(Phase::Active);
            let body = self.flow.unseen().get(HEADER_LEN..header.frame_len).unwrap_or_default().to_vec();
            self.flow.skip(header.frame_len);
            match header.tag {
                tag::TERMINATE => return Ok(()),
                tag::QUERY => {
                    let text = query_text(&body).map_err(|error| violation(error.to_string()))?;
                    self.simple_query(&String::from_utf8_lossy(text)).await?;
                }
                tag::FUNCTION_CALL => {
                    self.say_failed(&CommandError::Sql.into());
                    self.say_ready();
                }
                message => self.extended(message, &body).await?,
            }
            let ends = matches!(header.tag, tag::QUERY | tag::FUNCTION_CALL | tag::SYNC | tag::FLUSH);
            if ends || self.out.len() > ANSWER_MAX {
                self.flush().await?;
                self.flow.shrink();
            }
        }
    }

    /// Waits for a whole message at the front of the flow, or for a signal.
    async fn next_message(&mut self) -> Result<Header, End> {
        poll_fn(|cx| {
            loop {
                let header = match Header::read_frontend(self.flow.unseen()) {
                    Ok(header) => header,
                    Err(error) => return Poll::Ready(Err(violation(error.to_string()))),
                };
                match header {
                    Some(header) if header.frame_len > MESSAGE_MAX => {
                        return Poll::Ready(Err(violation(
                            "message too long for the admin console".to_owned(),
                        )));
                    }
                    Some(header) if self.flow.unseen().len() >= header.frame_len => {
                        return Poll::Ready(Ok(header));
                    }
                    Some(header) => self.flow.want(header.frame_len),
                    None => {}
                }
                if let Some(refusal) = self.signalled() {
                    return Poll::Ready(Err(End::Told(refusal)));
                }
                match self.flow.poll_fill(cx, &mut self.stream) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(End::Left)),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }

    fn signalled(&self) -> Option<Refusal> {
        let entry = &self.registration.entry;
        entry.clear(Signal::Cancel);
        let reasons = [
            (Signal::Drain, Refusal::Drain { outcome: refusal::Outcome::NotSent }),
            (Signal::Kill, Refusal::Killed { outcome: refusal::Outcome::NotSent }),
            (Signal::Overdue, Refusal::IdleSession),
        ];
        reasons.into_iter().find(|(signal, _)| entry.has(*signal)).map(|(_, refusal)| refusal)
    }

    /// All statements of a text; the first that fails ends it, and a text that is wrong anywhere does nothing.
    async fn simple_query(&mut self, text: &str) -> Result<(), End> {
        match command::parse(text) {
            Err(error) => self.say_failed(&error.into()),
            Ok(commands) if commands.is_empty() => {
                self.out.extend_from_slice(&[reply::EMPTY_QUERY_RESPONSE, 0, 0, 0, 4]);
            }
            Ok(commands) => {
                for command in &commands {
                    match self.execute(command).await? {
                        Ok(outcome) => self.say_all(&outcome),
                        Err(failure) => {
                            self.say_failed(&failure);
                            break;
                        }
                    }
                    if self.out.len() > ANSWER_MAX {
                        self.flush().await?;
                    }
                }
            }
        }
        self.say_ready();
        Ok(())
    }

    async fn execute(&mut self, command: &Command) -> Result<Result<Outcome, Failure>, End> {
        // A text may have thousands of them, and health is told by the same thread.
        tokio::task::yield_now().await;
        Ok(match command {
            Command::Show(show) => Ok(Outcome {
                table: Some((columns::of(*show), tables::rows(*show, &self.shared))),
                ..Outcome::of("SHOW")
            }),
            Command::Help => {
                Ok(Outcome { notices: vec![("Console usage".to_owned(), help())], ..Outcome::of("SHOW") })
            }
            Command::Deallocate(name) => {
                self.prepared.deallocate(name.as_deref());
                Ok(Outcome::of("DEALLOCATE"))
            }
            Command::Begin => {
                self.status = TransactionStatus::InTransaction;
                Ok(Outcome::of("BEGIN"))
            }
            Command::End(command_tag) => {
                self.status = TransactionStatus::Idle;
                Ok(Outcome::of(command_tag))
            }
            Command::Nothing(command_tag) => Ok(Outcome::of(command_tag)),
            command => self.maintain(command).await?,
        })
    }

    fn say_all(&mut self, outcome: &Outcome) {
        self.say_notices(outcome);
        if let Some((columns, rows)) = &outcome.table {
            table::put_columns(&mut self.out, columns, &[]);
            for row in rows {
                table::put_row(&mut self.out, columns, row, &[]);
            }
        }
        reply::put_command_complete(&mut self.out, outcome.command_tag.as_bytes());
    }

    fn say_notices(&mut self, outcome: &Outcome) {
        for (message, detail) in &outcome.notices {
            let (severity, code) = (Severity::Notice, SqlState::SUCCESSFUL_COMPLETION);
            ErrorMessage { severity, code, message, detail, hint: "" }.put(&mut self.out);
        }
    }

    fn say_failed(&mut self, failure: &Failure) {
        ErrorMessage {
            severity: Severity::Error,
            code: failure.code,
            message: &format!("tidegate: {}", failure.message),
            detail: &failure.detail,
            hint: &failure.hint,
        }
        .put(&mut self.out);
    }

    fn say_ready(&mut self) {
        reply::put_ready(&mut self.out, self.status);
    }

    async fn flush(&mut self) -> std::io::Result<()> {
        let out = std::mem::take(&mut self.out);
        tokio::time::timeout(WRITE_DEADLINE, self.stream.write_all(&out)).await?
    }
}

fn violation(what: String) -> End {
    End::Told(Refusal::Protocol(what))
}

fn help() -> String {
    let shows: Vec<_> = command::SHOWS.iter().map(|(name, _)| *name).collect();
    format!(
        "\n\tSHOW HELP|{}\n\tRELOAD\n\tPAUSE [<db>]\n\tRESUME [<db>]\n\tDISABLE <db>\n\tENABLE <db>\n\
         \tRECONNECT [<db>]\n\tKILL <db>\n\tSHUTDOWN",
        shows.join("|")
    )
}
