//! Statements about the terms of a session (`SET tidegate.…`, SHOW, RESET), answered by us in their turn: they need no
//! backend and cost no round trip.
//!
//! Without a backend they are answered at once. With one they wait in the ledger like everything else that is ours,
//! and take effect when they are answered; so what the server skips after an error has none. One that must fail
//! while the server may be in a transaction is replaced by a message that fails there ([`Conversation::doom`]):
//! the transaction fails as it would with PostgreSQL's own settings, and the application gets our error.

use std::sync::Arc;

use super::Session;
use super::conversation::{Conversation, CopyIn, Fate, Skipping, Whose};
use super::front::Stage;
use super::local_frames::{
    command_tag, error_frame, failed_transaction, put_local_warning, put_row, put_row_description, taken_name,
};
use super::outbound::{Outbound, Step, TEXT_LIMIT};
use crate::backend::Statement;
use crate::exchange::Owed;
use crate::exchange::facts::{Change, Commands, Facts};
use crate::exchange::ledger::Parsed;
use crate::io::Flow;
use crate::sql::terms::{Command, SettingError, Span};
use crate::sql::{commands, may_be_commands};
use crate::wire::frame::{HEADER_LEN, put_cstr, put_frame};
use crate::wire::frontend::{self as tag, BindNames, Parse, Target, query_text};
use crate::wire::{Header, TransactionStatus, backend as reply};

/// A portal that no server has: executing it fails in any state of a transaction.
const NO_PORTAL: &[u8] = b"tidegate_refused_a_setting";

/// Whose a message is.
pub(super) enum Taken {
    /// The server's.
    No,
    /// Nobody knows before all of it is there.
    Wait,
    /// Ours, but whether its transaction has failed is known only when more answers have come.
    Later,
    /// Ours: this is owed for it.
    Owe(Owed),
    /// Ours, and it fails with this error.
    Refuse(Box<[u8]>),
}

/// A portal that we run.
#[derive(Debug)]
pub(super) struct Portal {
    name: Box<[u8]>,
    commands: Commands,
    format: u16,
}

/// Named portals of one session. More of them at once than this, and the oldest is forgotten.
const PORTALS_MAX: usize = 256;

/// The portals of a session that we run. Those of a transaction that is over stay until their name is used again.
#[derive(Debug, Default)]
pub(super) struct Portals(Vec<Portal>);

impl Portals {
    fn get(&self, name: &[u8]) -> Option<&Portal> {
        self.0.iter().find(|portal| *portal.name == *name)
    }

    fn remove(&mut self, name: &[u8]) -> Option<Portal> {
        let at = self.0.iter().position(|portal| *portal.name == *name)?;
        Some(self.0.remove(at))
    }

    fn insert(&mut self, portal: Portal) {
        self.remove(&portal.name);
        if self.0.len() == PORTALS_MAX {
            self.0.remove(0);
        }
        self.0.push(portal);
    }
}

impl Conversation {
    /// Looks whether a message is ours to answer. Costs a look at the first letters of a text, and nothing for other
    /// messages of sessions that never had such a statement.
    #[inline]
    pub(super) fn take_local(&mut self, header: Header, flow: &Flow) -> Taken {
        if self.may_be_local(header, flow) { self.look_for_local(header, flow) } else { Taken::No }
    }

    #[inline]
    fn may_be_local(&self, header: Header, flow: &Flow) -> bool {
        let concerned = match header.tag {
            tag::QUERY => {
                !self.unsynced && may_be_commands(flow.unseen().get(HEADER_LEN..).unwrap_or_default())
            }
            tag::PARSE => match flow.unseen().get(HEADER_LEN..) {
                Some([0, text @ ..]) => may_be_commands(text),
                _ => true,
            },
            tag::SYNC => self.local_since_sync && !self.unsynced,
            tag::BIND | tag::DESCRIBE | tag::EXECUTE | tag::CLOSE => self.names.has_local(),
            _ => false,
        };
        concerned && self.copy_in == CopyIn::No
    }

    fn look_for_local(&mut self, header: Header, flow: &Flow) -> Taken {
        match flow.unseen().get(HEADER_LEN..header.frame_len) {
            Some(body) => self.take_whole(header.tag, body).unwrap_or(Taken::No),
            // The usual way waits for these.
            None if matches!(header.tag, tag::QUERY | tag::PARSE) => Taken::No,
            None if header.frame_len > TEXT_LIMIT => Taken::No,
            None => Taken::Wait,
        }
    }

    /// `None`: it is the server's.
    fn take_whole(&mut self, message: u8, body: &[u8]) -> Option<Taken> {
        match message {
            tag::QUERY => self.take_query(body),
            tag::PARSE => self.take_parse(body),
            tag::BIND => self.take_bind(body),
            tag::DESCRIBE => self.take_describe(body),
            tag::EXECUTE => self.take_execute(body),
            tag::CLOSE => self.take_close(body),
            tag::SYNC => Some(Taken::Owe(Owed::LocalQuery(Box::default()))),
            _ => None,
        }
    }

    fn take_query(&mut self, body: &[u8]) -> Option<Taken> {
        let commands = commands(query_text(body).ok()?)?;
        self.names.clear_unnamed();
        Some(match commands.iter().find_map(|command| self.terms.refusal(command)) {
            Some(error) => Taken::Refuse(self.refused(&error)),
            None => Taken::Owe(Owed::CommandsQuery(commands.into())),
        })
    }

    fn take_parse(&mut self, body: &[u8]) -> Option<Taken> {
        let parse = Parse::read(body).ok()?;
        if !parse.name.is_empty() && self.names.has_local() && self.names.local(parse.name).is_some() {
            // No server has the statement, so none would refuse a second one.
            return Some(self.unfit().unwrap_or_else(|| Taken::Refuse(taken_name(parse.name))));
        }
        // More than one statement, or a name that is taken: PostgreSQL refuses it.
        let commands = commands(parse.text).filter(|commands| commands.len() == 1)?;
        if self.names.get(parse.name).is_some() {
            return None;
        }
        if let Some(taken) = self.unfit() {
            return Some(taken);
        }
        if parse.name.is_empty() {
            self.names.set_local_unnamed(commands.into());
            return Some(Taken::Owe(Owed::Local(reply::PARSE_COMPLETE_FRAME.into())));
        }
        let statement = Statement::intern(parse.definition, || Facts::of(parse.text));
        let id = statement.id;
        if !self.names.insert(parse.name, statement) {
            return None;
        }
        self.names.expect_local();
        Some(Taken::Owe(Owed::ParseKnown(Parsed::Named(parse.name.into(), id))))
    }

    fn take_bind(&mut self, body: &[u8]) -> Option<Taken> {
        let names = BindNames::read(body)?;
        let Some(commands) = self.names.local(names.statement).map(Arc::clone) else {
            // The server's portal takes the place of ours.
            self.names.portals.remove(names.portal);
            return None;
        };
        if let Some(taken) = self.unfit() {
            return Some(taken);
        }
        let format = result_format(body.get(names.len()..).unwrap_or_default());
        self.names.portals.insert(Portal { name: names.portal.into(), commands, format });
        Some(Taken::Owe(Owed::Local(reply::BIND_COMPLETE_FRAME.into())))
    }

    fn take_describe(&mut self, body: &[u8]) -> Option<Taken> {
        let mut answer = Vec::new();
        let (commands, format) = match Target::read(tag::DESCRIBE, body).ok()? {
            Target::Statement(name) => {
                let commands = self.names.local(name)?;
                answer.extend_from_slice(&reply::NO_PARAMETERS_FRAME);
                (commands, 0)
            }
            Target::Portal(name) => {
                let portal = self.names.portals.get(name)?;
                (&portal.commands, portal.format)
            }
        };
        match commands.first() {
            Some(Command::Show(setting)) => put_row_description(&mut answer, *setting, format),
            _ => answer.extend_from_slice(&reply::NO_DATA_FRAME),
        }
        Some(Taken::Owe(Owed::Local(answer.into())))
    }

    fn take_execute(&mut self, body: &[u8]) -> Option<Taken> {
        let end = body.iter().position(|&byte| byte == 0)?;
        let commands = Arc::clone(&self.names.portals.get(body.get(..end)?)?.commands);
        if let Some(taken) = self.unfit() {
            return Some(taken);
        }
        Some(match commands.iter().find_map(|command| self.terms.refusal(command)) {
            Some(error) => Taken::Refuse(self.refused(&error)),
            None => Taken::Owe(Owed::Commands(commands)),
        })
    }

    fn take_close(&mut self, body: &[u8]) -> Option<Taken> {
        match Target::read(tag::CLOSE, body).ok()? {
            Target::Portal(name) => drop(self.names.portals.remove(name)?),
            Target::Statement(b"") => {
                self.names.local(b"")?;
                self.names.clear_unnamed();
            }
            Target::Statement(name) => {
                self.names.local(name)?;
                let statement = self.names.remove(name)?;
                return Some(Taken::Owe(Owed::CloseKnown(name.into(), statement)));
            }
        }
        Some(Taken::Owe(Owed::Local(reply::CLOSE_COMPLETE_FRAME.into())))
    }

    /// Why a message of the extended protocol is not answered here and now: its transaction has failed, or may
    /// have. A simple query knows when its turn comes; here the server must skip the rest of the pipeline.
    fn unfit(&self) -> Option<Taken> {
        if !self.is_outside() && self.ledger.ready_owed() > 0 {
            return Some(Taken::Later);
        }
        (self.status == TransactionStatus::Failed).then(|| Taken::Refuse(failed_transaction()))
    }

    fn refused(&self, error: &SettingError) -> Box<[u8]> {
        if self.status == TransactionStatus::Failed { failed_transaction() } else { error_frame(error) }
    }

    /// As [`Conversation::take_local`], with a backend. `None`: the message is the server's.
    #[inline]
    pub(super) fn local_step(&mut self, header: Header, flow: &mut Flow) -> Option<Step> {
        let whose = std::mem::replace(&mut self.front, Whose::Unknown);
        if whose == Whose::Servers || !self.may_be_local(header, flow) {
            return None;
        }
        self.look_for_step(header, flow)
    }

    fn look_for_step(&mut self, header: Header, flow: &mut Flow) -> Option<Step> {
        match self.look_for_local(header, flow) {
            Taken::No => None,
            Taken::Wait => {
                flow.want(header.frame_len);
                Some(Step::Stop(Outbound::More))
            }
            Taken::Later => Some(Step::Stop(Outbound::Blocked)),
            Taken::Owe(owed) => {
                self.owe_local(header, owed);
                Some(self.move_on(header, flow, Fate::Skip))
            }
            Taken::Refuse(error) => Some(self.doom(header, error, flow)),
        }
    }

    fn owe_local(&mut self, header: Header, owed: Owed) {
        self.ledger.owe(owed);
        if matches!(header.tag, tag::QUERY | tag::SYNC) {
            self.local_since_sync = false;
            self.skipping = Skipping::No;
            self.exchange_ends();
        } else {
            self.local_since_sync = true;
        }
    }

    /// Sends something that fails, and notes what the application is told instead.
    pub(super) fn put_failing(&mut self, error: Box<[u8]>, flow: &mut Flow) {
        flow.insert(|out| {
            put_frame(out, tag::EXECUTE, |out| {
                put_cstr(out, NO_PORTAL);
                out.extend_from_slice(&[0; 4]);
            });
        });
        self.ledger.owe(Owed::Refused(error));
        self.unsynced = true;
    }

    /// As [`Conversation::put_failing`], in the place of a message.
    pub(super) fn doom(&mut self, header: Header, error: Box<[u8]>, flow: &mut Flow) -> Step {
        self.put_failing(error, flow);
        // These have no Sync of the application's behind them.
        if matches!(header.tag, tag::QUERY | tag::FUNCTION_CALL) {
            flow.insert(|out| put_frame(out, tag::SYNC, |_| {}));
            self.ledger.owe(Owed::Sync);
            self.local_since_sync = false;
            self.exchange_ends();
        }
        self.move_on(header, flow, Fate::Skip)
    }

    /// The turn of statements of the simple protocol has come.
    pub(super) fn run_query(&mut self, commands: &Commands, out: &mut Vec<u8>) {
        if self.status == TransactionStatus::Failed {
            out.extend_from_slice(&failed_transaction());
        } else {
            for command in commands.iter() {
                if let Command::Show(setting) = command {
                    put_row_description(out, *setting, 0);
                }
                self.run_command(command, out);
            }
        }
        reply::put_ready(out, self.status);
        self.end_local();
    }

    /// The turn of an Execute has come.
    pub(super) fn run_portal(&mut self, commands: &Commands, out: &mut Vec<u8>) {
        for command in commands.iter() {
            self.run_command(command, out);
        }
    }

    fn run_command(&mut self, command: &Command, out: &mut Vec<u8>) {
        let local =
            matches!(command, Command::Set(_, Span::Transaction) | Command::Reset(_, Span::Transaction, _));
        if local && self.is_outside() {
            put_local_warning(out);
        }
        if let Some(value) = self.terms.run(command) {
            put_row(out, &value);
        }
        reply::put_command_complete(out, command_tag(command));
    }

    /// An exchange of ours is over; outside of a transaction its changes stay.
    pub(super) fn end_local(&mut self) {
        if self.status == TransactionStatus::Idle {
            self.terms.end_transaction();
        }
        // As behind an answer of the server: what was sent before is history.
        if self.ledger.is_empty() {
            self.notes.quiet(self.status, &mut self.pins);
        }
    }

    /// Statements about our settings in a text that goes to the server as a whole count for us too.
    pub(super) fn note_terms(&mut self, facts: &Facts) {
        for change in &facts.changes {
            match change {
                Change::Term(command) if self.terms.refusal(command).is_none() => {
                    self.terms.run(command);
                }
                _ => {}
            }
        }
    }
}

impl Session {
    /// Answers a message about the terms of the session without a backend; whether it was one.
    pub(super) fn answer_local(&mut self, header: Header) -> bool {
        let taken = self.talk.take_local(header, &self.to_db);
        self.talk.front = if matches!(taken, Taken::No) { Whose::Servers } else { Whose::Unknown };
        match taken {
            Taken::No | Taken::Wait | Taken::Later => return false,
            Taken::Owe(owed) => {
                self.talk.owe_local(header, owed);
                self.talk.give_local_answers(&mut self.to_app);
            }
            Taken::Refuse(error) => {
                self.to_app.insert(|out| out.extend_from_slice(&error));
                self.forget_local();
                self.fail_begun();
                if header.tag == tag::QUERY {
                    self.say_ready();
                    self.stage = self.after_refusal();
                } else {
                    self.stage = Stage::Refusing;
                }
            }
        }
        self.talk.drop_request(header, &mut self.to_db);
        true
    }

    /// The rest of a pipeline is refused: what was set in it is undone.
    pub(super) fn forget_local(&mut self) {
        self.talk.terms.roll_back();
        self.talk.local_since_sync = false;
    }
}

/// The format that a Bind asks for its first result column; `rest` is what follows the names.
fn result_format(rest: &[u8]) -> u16 {
    let read = || {
        let (count, rest) = rest.split_first_chunk::<2>()?;
        let rest = rest.get(2 * usize::from(u16::from_be_bytes(*count))..)?;
        let (parameters, mut rest) = rest.split_first_chunk::<2>()?;
        for _ in 0..u16::from_be_bytes(*parameters) {
            let (length, after) = rest.split_first_chunk::<4>()?;
            rest = after.get(usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0)..)?;
        }
        rest.get(2..)?.first_chunk::<2>().map(|format| u16::from_be_bytes(*format))
    };
    read().unwrap_or(0)
}
