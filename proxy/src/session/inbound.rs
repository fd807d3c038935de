//! What the backend answers, on its way to the application.
//!
//! Bodies pass untouched and unread, but for the few that move the protocol position.

use super::conversation::{Check, Conversation, CopyIn, Fate, Frame, Skipping};
use super::relay::{Hold, Told};
use crate::backend::connection::UnnamedOwner;
use crate::backend::prepared::schema_changed;
use crate::backend::{Backend, StatementId};
use crate::exchange::Owed;
use crate::exchange::ledger::Parsed;
use crate::io::Flow;
use crate::wire::frame::HEADER_LEN;
use crate::wire::{
    ErrorFields, Header, Severity, TransactionStatus, WireError, backend as tag, error_fields,
};

/// Errors and parameters up to this length are read; longer ones pass unread.
const READ_LIMIT: usize = 64 * 1024;

/// Why an inbound scan stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inbound {
    /// More bytes of the server are needed.
    More,
    /// What is there has to be written first.
    Blocked,
    /// The server said that it closes the connection. Its error was passed on if anybody waits for an answer.
    Fatal(Told),
}

/// What became of a frame.
enum Step {
    Pass,
    Skip,
    /// It was replaced.
    Next,
    /// It has to wait, or ends the connection; the scan stops.
    Stop(Inbound),
}

impl Conversation {
    /// Looks at the unseen bytes of `flow`.
    ///
    /// # Errors
    /// The server broke the protocol, or our idea of it is wrong: the backend must be closed.
    pub fn scan_inbound(&mut self, flow: &mut Flow, backend: &mut Backend) -> Result<Inbound, WireError> {
        loop {
            if self.inbound.left > 0 {
                let n = self.inbound.left.min(flow.unseen().len());
                match self.inbound.fate {
                    Fate::Pass => flow.pass(n),
                    Fate::Skip => flow.skip(n),
                }
                self.inbound.left -= n;
                if self.inbound.left > 0 {
                    return Ok(Inbound::More);
                }
            }
            self.give_local_answers(flow);
            if flow.is_full() {
                return Ok(Inbound::Blocked);
            }
            let Some(header) = Header::read_backend(flow.unseen())? else { return Ok(Inbound::More) };
            let fate = match self.inbound_frame(header, flow, backend)? {
                Step::Pass => Fate::Pass,
                Step::Skip => Fate::Skip,
                Step::Next => continue,
                Step::Stop(why) => return Ok(why),
            };
            self.inbound = Frame { left: header.frame_len, fate };
        }
    }

    /// Gives the answers at the front of the ledger that are ours to give.
    #[inline]
    pub fn give_local_answers(&mut self, flow: &mut Flow) {
        if self.ledger.has_ours() {
            self.give_answers_of_ours(flow);
        }
    }

    fn give_answers_of_ours(&mut self, flow: &mut Flow) {
        while let Some(owed) = self.ledger.settle_ours() {
            match owed {
                Owed::ParseKnown(_) => {
                    flow.insert(|out| out.extend_from_slice(&tag::PARSE_COMPLETE_FRAME));
                }
                Owed::CloseKnown(..) => {
                    flow.insert(|out| out.extend_from_slice(&tag::CLOSE_COMPLETE_FRAME));
                }
                Owed::Local(answer) => flow.insert(|out| out.extend_from_slice(&answer)),
                Owed::LocalQuery(answer) => flow.insert(|out| {
                    out.extend_from_slice(&answer);
                    tag::put_ready(out, self.status);
                }),
                _ => {}
            }
        }
    }

    #[inline]
    fn inbound_frame(
        &mut self,
        header: Header,
        flow: &mut Flow,
        backend: &mut Backend,
    ) -> Result<Step, WireError> {
        match header.tag {
            tag::PARAMETER_DESCRIPTION if self.is_asking() => Ok(Step::Skip),
            tag::PARAMETER_DESCRIPTION
            | tag::DATA_ROW
            | tag::FUNCTION_CALL_RESPONSE
            | tag::NOTICE_RESPONSE
            | tag::NOTIFICATION_RESPONSE
            | tag::COPY_OUT_RESPONSE
            | tag::COPY_BOTH_RESPONSE
            | crate::wire::frontend::COPY_DATA
            | crate::wire::frontend::COPY_DONE => Ok(Step::Pass),
            tag::READY_FOR_QUERY => self.ready(header, flow, backend),
            tag::COMMAND_COMPLETE => self.command_complete(header, flow, backend),
            tag::EMPTY_QUERY_RESPONSE | tag::PORTAL_SUSPENDED => {
                self.settle_or_query(header, |owed| matches!(owed, Owed::Execute))
            }
            tag::ROW_DESCRIPTION | tag::NO_DATA if self.is_asking() => {
                self.ledger.settle();
                Ok(Step::Skip)
            }
            tag::ROW_DESCRIPTION | tag::NO_DATA => {
                self.settle_or_query(header, |owed| matches!(owed, Owed::Describe(_)))
            }
            tag::BIND_COMPLETE => self.settle(header, |owed| matches!(owed, Owed::Bind(_))),
            tag::PARSE_COMPLETE => match self.ledger.settle() {
                Some(Owed::Parse(Parsed::Named(name, _))) => {
                    if let Some(statement) = self.names.get(&name) {
                        statement.prove();
                    }
                    Ok(Step::Pass)
                }
                Some(Owed::Parse(Parsed::Unnamed)) => {
                    self.names.unnamed_answered();
                    Ok(Step::Pass)
                }
                Some(Owed::Parse(Parsed::Untracked)) => Ok(Step::Pass),
                Some(Owed::InjectedParse(_)) => Ok(Step::Skip),
                _ => Err(WireError::UnexpectedTag(header.tag)),
            },
            tag::CLOSE_COMPLETE => match self.ledger.settle() {
                Some(Owed::Close) => Ok(Step::Pass),
                Some(Owed::CloseUnnamed) => {
                    self.names.unnamed_answered();
                    Ok(Step::Pass)
                }
                Some(Owed::InjectedClose(_)) => Ok(Step::Skip),
                _ => Err(WireError::UnexpectedTag(header.tag)),
            },
            tag::COPY_IN_RESPONSE => {
                let ended = self.ledger.copy_in_started();
                self.copy_in = if ended { CopyIn::Ended } else { CopyIn::Taking };
                Ok(Step::Pass)
            }
            tag::ERROR_RESPONSE => Ok(self.error(header, flow, backend)),
            tag::PARAMETER_STATUS => Ok(self.parameter_status(header, flow, backend)),
            other => Err(WireError::UnexpectedTag(other)),
        }
    }

    /// Whether the server's answer is to a question of ours.
    #[inline]
    fn is_asking(&self) -> bool {
        self.check == Check::Asked && matches!(self.ledger.front(), Some(Owed::Check(_)))
    }

    fn settle(&mut self, header: Header, expected: impl Fn(&Owed) -> bool) -> Result<Step, WireError> {
        match self.ledger.settle() {
            Some(owed) if expected(&owed) => Ok(Step::Pass),
            _ => Err(WireError::UnexpectedTag(header.tag)),
        }
    }

    /// Answers that also come in the middle of a simple query, where they settle nothing.
    #[inline]
    fn settle_or_query(
        &mut self,
        header: Header,
        expected: impl Fn(&Owed) -> bool,
    ) -> Result<Step, WireError> {
        if matches!(self.ledger.front(), Some(Owed::Query)) {
            Ok(Step::Pass)
        } else {
            self.settle(header, expected)
        }
    }

    #[inline]
    fn ready(&mut self, header: Header, flow: &mut Flow, backend: &mut Backend) -> Result<Step, WireError> {
        let Some(&byte) = flow.unseen().get(HEADER_LEN) else { return Ok(Step::Stop(Inbound::More)) };
        let status = TransactionStatus::from_byte(byte).ok_or(WireError::BadBody(header.tag))?;
        match self.ledger.settle() {
            Some(Owed::Query | Owed::FunctionCall | Owed::Sync) => {}
            Some(Owed::CheckSync) => {
                self.check = Check::Done;
                return Ok(Step::Skip);
            }
            _ => return Err(WireError::UnexpectedTag(header.tag)),
        }
        self.status = status;
        self.copy_in = CopyIn::No;
        backend.status = status;
        while matches!(self.ledger.front(), Some(Owed::CopyEnd)) {
            self.ledger.settle();
        }
        if self.ledger.is_empty() {
            self.notes.quiet(status, &mut self.pins);
        }
        Ok(Step::Pass)
    }

    #[inline]
    fn command_complete(
        &mut self,
        header: Header,
        flow: &mut Flow,
        backend: &mut Backend,
    ) -> Result<Step, WireError> {
        if self.notes.watching {
            let Some(frame) = flow.unseen().get(..header.frame_len) else {
                return Ok(wait_for(header, flow));
            };
            match frame.get(HEADER_LEN..).unwrap_or_default() {
                b"DISCARD ALL\0" => self.discarded_all(backend),
                b"DEALLOCATE ALL\0" => {
                    backend.prepared.clear();
                    self.names.clear();
                }
                _ => {}
            }
        }
        self.copy_in = CopyIn::No;
        self.settle_or_query(header, |owed| matches!(owed, Owed::Execute))
    }

    fn parameter_status(&mut self, header: Header, flow: &mut Flow, backend: &mut Backend) -> Step {
        if header.frame_len > READ_LIMIT {
            return Step::Pass;
        }
        let Some(frame) = flow.unseen().get(..header.frame_len) else { return wait_for(header, flow) };
        if let Some((name, value)) = tag::parameter_status(frame.get(HEADER_LEN..).unwrap_or_default()) {
            let name = String::from_utf8_lossy(name).to_ascii_lowercase();
            if !is_servers_own(&name) {
                self.wanted = self.wanted.with([(name.as_str(), Some(value))]);
                backend.applied = backend.applied.with([(name.as_str(), Some(value))]);
            }
        }
        Step::Pass
    }

    fn error(&mut self, header: Header, flow: &mut Flow, backend: &mut Backend) -> Step {
        if header.frame_len > READ_LIMIT {
            self.failed(backend, &ErrorFields::default());
            return Step::Pass;
        }
        let Some(frame) = flow.unseen().get(..header.frame_len) else { return wait_for(header, flow) };
        let body = frame.get(HEADER_LEN..).unwrap_or_default();
        let fields = ErrorFields::read(body);
        if fields.is_fatal() && self.ledger.is_empty() {
            flow.skip(header.frame_len);
            return Step::Stop(Inbound::Fatal(Told::No));
        }
        if fields.is_fatal() {
            // A session that lives on has met an error; one that cannot has met its end.
            let severity = match self.keeps() {
                Hold::Transaction => Severity::Error,
                Hold::Session => Severity::Fatal,
            };
            flow.replace(header.frame_len, |out, frame| {
                let body = frame.get(HEADER_LEN..).unwrap_or_default();
                error_fields::put_with_severity(out, body, severity);
            });
            return Step::Stop(Inbound::Fatal(Told::Yes));
        }
        if self.is_asking() {
            if let Some(Owed::Check(id)) = self.ledger.settle() {
                Self::learn_from(Some(id), &fields, backend);
            }
            return Step::Skip;
        }
        let taken = match self.ledger.front() {
            Some(Owed::ParseTaken(name)) => Some(name.clone()),
            _ => None,
        };
        self.failed(backend, &fields);
        let Some(name) = taken else { return Step::Pass };
        flow.replace(header.frame_len, |out, frame| {
            let body = frame.get(HEADER_LEN..).unwrap_or_default();
            error_fields::put_with_name(out, body, &name);
        });
        Step::Next
    }

    /// A statement failed: in a pipeline the server ignores everything up to the next Sync.
    fn failed(&mut self, backend: &mut Backend, fields: &ErrorFields<'_>) {
        self.notes.failed = true;
        self.copy_in = CopyIn::No;
        if let Some(owed) = self.ledger.front() {
            Self::learn_from(owed_statement(owed), fields, backend);
        }
        match self.ledger.front() {
            None | Some(Owed::Query | Owed::FunctionCall) => return,
            Some(_) => {}
        }
        let mut ignored = Vec::new();
        while let Some(owed) = self.ledger.front() {
            if matches!(owed, Owed::Sync) {
                break;
            }
            ignored.extend(self.ledger.settle());
        }
        if self.ledger.is_empty() {
            self.skipping = Skipping::UntilSync;
        }
        let unnamed_failed = matches!(ignored.first(), Some(Owed::Parse(Parsed::Unnamed)));
        // Backwards, as every undoing.
        for owed in ignored.into_iter().rev() {
            self.ignored(owed, backend);
        }
        if unnamed_failed {
            // A Parse that fails takes the old unnamed statement away before it looks at the new one.
            self.names.clear_unnamed();
        }
    }

    /// The server did not do what this entry stands for.
    fn ignored(&mut self, owed: Owed, backend: &mut Backend) {
        match owed {
            Owed::Parse(Parsed::Named(name, id)) => {
                self.names.remove(&name);
                backend.prepared.remove(id);
            }
            Owed::ParseKnown(Parsed::Named(name, _)) => {
                self.names.remove(&name);
            }
            Owed::Parse(Parsed::Unnamed) | Owed::CloseUnnamed => {
                self.names.unnamed_ignored();
                backend.unnamed = Some(UnnamedOwner::NOBODY);
            }
            Owed::InjectedParse(Some(id)) => backend.prepared.remove(id),
            Owed::InjectedClose(Some(id)) => drop(backend.prepared.insert(id, usize::MAX)),
            Owed::InjectedParse(None) | Owed::InjectedClose(None) => {
                backend.unnamed = Some(UnnamedOwner::NOBODY);
            }
            Owed::CloseKnown(name, statement) => drop(self.names.insert(&name, statement)),
            _ => {}
        }
    }

    /// Errors that tell that the backend's prepared statements are not what we believe.
    fn learn_from(id: Option<StatementId>, fields: &ErrorFields<'_>, backend: &mut Backend) {
        let Some(id) = id else { return };
        match fields.code {
            // "cached plan must not change result type": DDL changed the table since it was prepared.
            b"0A000" if fields.routine == b"RevalidateCachedQuery" => schema_changed(),
            // "prepared statement does not exist": something that we did not see took it away.
            b"26000" => backend.prepared.remove(id),
            _ => {}
        }
    }
}

fn owed_statement(owed: &Owed) -> Option<StatementId> {
    match owed {
        Owed::Bind(id) | Owed::Describe(id) => *id,
        _ => None,
    }
}

/// Waits for a frame that has to be read as a whole.
fn wait_for(header: Header, flow: &mut Flow) -> Step {
    flow.want(header.frame_len);
    Step::Stop(Inbound::More)
}

/// Reported parameters that belong to the server, not to the session.
fn is_servers_own(name: &str) -> bool {
    matches!(
        name,
        "in_hot_standby" | "is_superuser" | "server_version" | "server_encoding" | "integer_datetimes"
    )
}
