//! The extended protocol of the console: commands have no parameters, and a portal runs when it is first executed.

use std::collections::HashMap;

use super::command::{self, Command};
use super::table::{self, Column, Format, Row};
use super::{Console, End, Failure, columns, violation};
use crate::wire::frame::split_cstr;
use crate::wire::frontend::{self as tag, BindNames, Parse, Target};
use crate::wire::{SqlState, WireError, backend as reply};

/// Statements, and portals, that one session may have.
const NAMES_MAX: usize = 256;

/// Portals that may have rows left: each keeps a whole table.
const SUSPENDED_MAX: usize = 4;

/// What the session has prepared.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    /// `None` is the empty statement.
    statements: HashMap<Vec<u8>, Option<Command>>,
    portals: HashMap<Vec<u8>, Portal>,
    /// An error was reported; nothing counts until Sync.
    skipping: bool,
}

#[derive(Debug)]
struct Portal {
    command: Option<Command>,
    formats: Vec<Format>,
    progress: Progress,
}

#[derive(Debug)]
enum Progress {
    Bound,
    /// It has run; these rows are still to be fetched, the next one last.
    Running(Vec<Row>),
    Done,
}

impl Prepared {
    fn suspended(&self) -> usize {
        self.portals.values().filter(|portal| matches!(portal.progress, Progress::Running(_))).count()
    }

    /// Forgets a statement, or all.
    pub(super) fn deallocate(&mut self, name: Option<&str>) {
        match name {
            Some(name) => drop(self.statements.remove(name.as_bytes())),
            None => self.statements.clear(),
        }
    }
}

/// What a step of the extended protocol came to.
type Step = Result<(), Trouble>;

enum Trouble {
    /// The command fails; the rest up to Sync is skipped.
    Failed(Failure),
    /// The session ends.
    Ends(End),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<WireError> for Trouble {
    fn from(error: WireError) -> Self {
        Self::Ends(violation(error.to_string()))
    }
}

impl From<End> for Trouble {
    fn from(end: End) -> Self {
        Self::Ends(end)
    }
}

fn fails(code: SqlState, message: &str) -> Trouble {
    Failure::new(code, message, "").into()
}

impl Console {
    /// Answers one message of the extended protocol.
    pub(super) async fn extended(&mut self, message: u8, body: &[u8]) -> Result<(), End> {
        if message == tag::SYNC {
            self.prepared.skipping = false;
            // Portals live as long as their transaction, and there are none here.
            self.prepared.portals.clear();
            self.say_ready();
            return Ok(());
        }
        if self.prepared.skipping {
            return Ok(());
        }
        let step = match message {
            tag::PARSE => self.parse(body),
            tag::BIND => self.bind(body),
            tag::DESCRIBE => self.describe(body),
            tag::EXECUTE => self.run_portal(body).await,
            tag::CLOSE => self.close(body),
            // Flush, and COPY messages, which PostgreSQL ignores outside of a COPY.
            _ => Ok(()),
        };
        match step {
            Ok(()) => Ok(()),
            Err(Trouble::Ends(end)) => Err(end),
            Err(Trouble::Failed(failure)) => {
                self.say_failed(&failure);
                self.prepared.skipping = true;
                Ok(())
            }
        }
    }

    fn parse(&mut self, body: &[u8]) -> Step {
        let parse = Parse::read(body)?;
        let mut commands = command::parse(&String::from_utf8_lossy(parse.text)).map_err(Failure::from)?;
        let command = commands.pop();
        if !commands.is_empty() {
            let message = "cannot insert multiple commands into a prepared statement";
            return Err(fails(SqlState::SYNTAX_ERROR, message));
        }
        if self.prepared.statements.len() >= NAMES_MAX && !parse.name.is_empty() {
            return Err(fails(SqlState::INSUFFICIENT_RESOURCES, "too many prepared statements"));
        }
        self.prepared.statements.insert(parse.name.to_vec(), command);
        self.out.extend_from_slice(&reply::PARSE_COMPLETE_FRAME);
        Ok(())
    }

    fn bind(&mut self, body: &[u8]) -> Step {
        let names = BindNames::read(body).ok_or(WireError::BadBody(tag::BIND))?;
        let command = self.statement(names.statement)?.clone();
        let formats =
            body.get(names.len()..).and_then(result_formats).ok_or(WireError::BadBody(tag::BIND))?;
        let formats = formats.map_err(|count| {
            let message =
                format!("bind message supplies {count} parameters, but prepared statement requires 0");
            Failure::new(SqlState::PROTOCOL_VIOLATION, message, "")
        })?;
        if self.prepared.portals.len() >= NAMES_MAX && !names.portal.is_empty() {
            return Err(fails(SqlState::INSUFFICIENT_RESOURCES, "too many portals"));
        }
        let portal = Portal { command, formats, progress: Progress::Bound };
        self.prepared.portals.insert(names.portal.to_vec(), portal);
        self.out.extend_from_slice(&reply::BIND_COMPLETE_FRAME);
        Ok(())
    }

    fn statement(&self, name: &[u8]) -> Result<&Option<Command>, Trouble> {
        let found = self.prepared.statements.get(name);
        found.ok_or_else(|| fails(SqlState::UNDEFINED_STATEMENT, "prepared statement does not exist"))
    }

    fn describe(&mut self, body: &[u8]) -> Step {
        let (columns, formats) = match Target::read(tag::DESCRIBE, body)? {
            Target::Statement(name) => {
                let columns = columns_of(self.statement(name)?.as_ref());
                self.out.extend_from_slice(&reply::NO_PARAMETERS_FRAME);
                (columns, Vec::new())
            }
            Target::Portal(name) => {
                let portal = self.prepared.portals.get(name);
                let portal = portal.ok_or_else(no_portal)?;
                (columns_of(portal.command.as_ref()), portal.formats.clone())
            }
        };
        match columns {
            Some(columns) => table::put_columns(&mut self.out, columns, &formats),
            None => self.out.extend_from_slice(&reply::NO_DATA_FRAME),
        }
        Ok(())
    }

    async fn run_portal(&mut self, body: &[u8]) -> Step {
        let bad = WireError::BadBody(tag::EXECUTE);
        let (name, rest) = split_cstr(body).ok_or(bad)?;
        let rows_max = i32::from_be_bytes(rest.try_into().map_err(|_| bad)?);
        let mut portal = self.prepared.portals.remove(name).ok_or_else(no_portal)?;
        let Some(command) = portal.command.clone() else {
            self.out.extend_from_slice(&[reply::EMPTY_QUERY_RESPONSE, 0, 0, 0, 4]);
            self.prepared.portals.insert(name.to_vec(), portal);
            return Ok(());
        };
        // Zero is all, and so is what is negative (`exec_execute_message` in `src/backend/tcop/postgres.c`).
        let max = usize::try_from(rows_max).ok().filter(|max| *max > 0);
        if max.is_some() && self.prepared.suspended() >= SUSPENDED_MAX {
            return Err(fails(SqlState::INSUFFICIENT_RESOURCES, "too many portals have rows left"));
        }
        let mut rows = match std::mem::replace(&mut portal.progress, Progress::Done) {
            Progress::Running(rows) => rows,
            Progress::Done => Vec::new(),
            Progress::Bound => {
                let outcome = self.execute(&command).await??;
                self.say_notices(&outcome);
                let Some((_, mut rows)) = outcome.table else {
                    reply::put_command_complete(&mut self.out, outcome.command_tag.as_bytes());
                    self.prepared.portals.insert(name.to_vec(), portal);
                    return Ok(());
                };
                rows.reverse();
                rows
            }
        };
        let columns = columns_of(Some(&command)).unwrap_or_default();
        let kept = rows.len().saturating_sub(max.unwrap_or(usize::MAX));
        for row in rows.drain(kept..).rev() {
            table::put_row(&mut self.out, columns, &row, &portal.formats);
        }
        if rows.is_empty() {
            reply::put_command_complete(&mut self.out, b"SHOW");
        } else {
            self.out.extend_from_slice(&[reply::PORTAL_SUSPENDED, 0, 0, 0, 4]);
            portal.progress = Progress::Running(rows);
        }
        self.prepared.portals.insert(name.to_vec(), portal);
        Ok(())
    }

    fn close(&mut self, body: &[u8]) -> Step {
        match Target::read(tag::CLOSE, body)? {
            Target::Statement(name) => drop(self.prepared.statements.remove(name)),
            Target::Portal(name) => drop(self.prepared.portals.remove(name)),
        }
        self.out.extend_from_slice(&reply::CLOSE_COMPLETE_FRAME);
        Ok(())
    }
}

fn no_portal() -> Trouble {
    fails(SqlState::UNDEFINED_CURSOR, "portal does not exist")
}

/// The columns of what a command yields; `None` when it yields no rows.
fn columns_of(command: Option<&Command>) -> Option<&'static [Column]> {
    match command {
        Some(Command::Show(show)) => Some(columns::of(*show)),
        _ => None,
    }
}

/// The formats at the end of a Bind, behind its names; the count of parameters when there are some. `None`: malformed.
fn result_formats(rest: &[u8]) -> Option<Result<Vec<Format>, u16>> {
    let (formats, rest) = rest.split_first_chunk::<2>()?;
    let rest = rest.get(usize::from(u16::from_be_bytes(*formats)) * 2..)?;
    let (parameters, rest) = rest.split_first_chunk::<2>()?;
    let parameters = u16::from_be_bytes(*parameters);
    if parameters > 0 {
        return Some(Err(parameters));
    }
    let (count, codes) = rest.split_first_chunk::<2>()?;
    if codes.len() != usize::from(u16::from_be_bytes(*count)) * 2 {
        return None;
    }
    let (codes, _) = codes.as_chunks::<2>();
    codes.iter().map(|code| Format::of(u16::from_be_bytes(*code))).collect::<Option<_>>().map(Ok)
}
