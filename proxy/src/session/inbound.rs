//! What the backend answers, on its way to the application.
//!
//! Bodies pass untouched and unread, but for the few that move the protocol position.

use std::hint::cold_path;
use std::sync::Arc;

use super::conversation::{
    Ailment, Barrier, Check, Conversation, CopyIn, Fate, Frame, Replicated, Skipping, TimingOut,
};
use super::relay::{Hold, Told};
use super::terms::Fate as TransactionFate;
use crate::backend::connection::UnnamedOwner;
use crate::backend::prepared::schema_changed;
use crate::backend::{Backend, StatementId};
use crate::exchange::facts::Need;
use crate::exchange::ledger::Parsed;
use crate::exchange::refusal::Outcome;
use crate::exchange::{Owed, Refusal};
use crate::io::Flow;
use crate::sql::Lane;
use crate::telemetry::lanes;
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
pub(super) enum Step {
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
                cold_path();
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
                cold_path();
                return Ok(Inbound::Blocked);
            }
            self.pass_ordinary(flow, backend);
            let Some(header) = Header::read_backend(flow.unseen())? else { return Ok(Inbound::More) };
            cold_path();
            let fate = match self.inbound_frame(header, flow, backend)? {
                Step::Pass => Fate::Pass,
                Step::Skip => Fate::Skip,
                Step::Next => continue,
                Step::Stop(why) => return Ok(why),
            };
            self.inbound = Frame { left: header.frame_len, fate };
        }
    }

    /// Lets whole messages pass of which nothing is to be known but what they settle. Stops at the first of
    /// another kind, and at what is no message: what was settled before that has to pass.
    fn pass_ordinary(&mut self, flow: &mut Flow, backend: &mut Backend) {
        let tags_matter = self.notes.watching
            || self.terms.is_provisional()
            || self.timing_out.is_some()
            || self.hides_a_failure();
        if self.ledger.has_ours() || self.check != Check::No || tags_matter {
            cold_path();
            return;
        }
        let mut rest = flow.unseen();
        let there = rest.len();
        let mut settled = 0;
        while let Ok(Some(header)) = Header::read_backend(rest)
            && let Some(next) = rest.get(header.frame_len..)
            && let Some(owed) = self.ledger.get(settled)
        {
            match (header.tag, owed) {
                (tag::DATA_ROW, Owed::Query | Owed::Execute)
                | (tag::ROW_DESCRIPTION | tag::NO_DATA, Owed::Query) => {}
                (tag::ROW_DESCRIPTION | tag::NO_DATA, Owed::Describe(_) | Owed::DescribePortal)
                | (tag::PARSE_COMPLETE, Owed::Parse(Parsed::UnnamedAlone))
                | (tag::BIND_COMPLETE, Owed::Bind(_)) => settled += 1,
                (tag::PARSE_COMPLETE, Owed::Parse(Parsed::Unnamed)) => {
                    self.names.unnamed_answered();
                    settled += 1;
                }
                (tag::COMMAND_COMPLETE, Owed::Query | Owed::Execute) => {
                    settled += usize::from(matches!(owed, Owed::Execute));
                    self.note_tag(rest.get(HEADER_LEN..header.frame_len).unwrap_or_default());
                    self.copy_in = CopyIn::No;
                    self.tokens.completed();
                }
                (tag::READY_FOR_QUERY, Owed::Query | Owed::FunctionCall | Owed::Sync)
                    if self.replication == Replicated::AsConfigured =>
                {
                    let status = rest.get(HEADER_LEN).and_then(|&byte| TransactionStatus::from_byte(byte));
                    let Some(status) = status else { break };
                    self.ledger.settle_first(settled + 1);
                    settled = 0;
                    self.answers += 1;
                    self.becomes(status, backend);
                }
                _ => break,
            }
            rest = next;
        }
        self.ledger.settle_first(settled);
        let passed = there - rest.len();
        flow.pass(passed);
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
                Owed::LocalQuery(answer) => {
                    flow.insert(|out| {
                        out.extend_from_slice(&answer);
                        tag::put_ready(out, self.status);
                    });
                    self.end_local();
                }
                Owed::Commands(commands) => flow.insert(|out| self.run_portal(&commands, out)),
                Owed::CommandsQuery(commands) => flow.insert(|out| self.run_query(&commands, out)),
                _ => {}
            }
        }
    }

    // On its own: most messages are ordinary and never come here.
    #[inline(never)]
    fn inbound_frame(
        &mut self,
        header: Header,
        flow: &mut Flow,
        backend: &mut Backend,
    ) -> Result<Step, WireError> {
        if let Some(step) = self.token_frame(header, flow, backend) {
            return step;
        }
        match header.tag {
            tag::PARAMETER_DESCRIPTION if self.is_asking() => Ok(Step::Skip),
            tag::PARAMETER_DESCRIPTION
            | tag::DATA_ROW
            | tag::FUNCTION_CALL_RESPONSE
            | tag::NOTIFICATION_RESPONSE
            | tag::COPY_BOTH_RESPONSE
            | crate::wire::frontend::COPY_DATA
            | crate::wire::frontend::COPY_DONE => Ok(Step::Pass),
            tag::NOTICE_RESPONSE => Ok(self.notice(header, flow)),
            tag::COPY_OUT_RESPONSE => {
                self.copy_in = CopyIn::Giving;
                Ok(Step::Pass)
            }
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
                self.settle_or_query(header, |owed| matches!(owed, Owed::Describe(_) | Owed::DescribePortal))
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
                Some(Owed::Parse(Parsed::UnnamedAlone | Parsed::Again(..) | Parsed::Untracked)) => {
                    Ok(Step::Pass)
                }
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
                if self.barrier == Barrier::Here && matches!(self.ledger.front(), Some(Owed::Execute)) {
                    // The Sync that was its end is ignored.
                    self.barrier = Barrier::AtItsEnd;
                }
                if self.ledger.ready_owed() == 0 {
                    self.exchange_goes_on();
                }
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
            Some(Owed::InjectedBegin) => {
                self.answers += 1;
                backend.status = status;
                return Ok(Step::Skip);
            }
            Some(Owed::TokenSync) => return Ok(self.token_ready(status, backend)),
            Some(Owed::CheckSync) => {
                self.check = Check::Done;
                return Ok(Step::Skip);
            }
            _ => return Err(WireError::UnexpectedTag(header.tag)),
        }
        self.answered(flow);
        self.becomes(status, backend);
        Ok(Step::Pass)
    }

    /// The status of the transaction after an exchange of the application.
    #[inline]
    fn becomes(&mut self, status: TransactionStatus, backend: &mut Backend) {
        self.tokens.answered(status);
        self.status = status;
        self.copy_in = CopyIn::No;
        backend.status = status;
        if status == TransactionStatus::Idle {
            self.terms.end_transaction();
            self.wanted_before = None;
        }
        while matches!(self.ledger.front(), Some(Owed::CopyEnd)) {
            self.ledger.settle();
        }
        if self.ledger.is_empty() {
            self.barrier = Barrier::None;
            self.notes.quiet(status, &mut self.pins);
        }
    }

    /// An exchange is answered. What was committed after a cancel of ours, without the standbys that it was to
    /// wait for, is not reported as a success.
    #[inline]
    fn answered(&mut self, flow: &mut Flow) {
        self.answers += 1;
        if self.timing_out.is_some() || self.replication == Replicated::No {
            let was_ours = self.timing_out.take().is_some();
            let replication = std::mem::replace(&mut self.replication, Replicated::AsConfigured);
            if was_ours && replication == Replicated::No {
                let upstream = Arc::clone(&self.upstream);
                flow.insert(|out| Refusal::CommittedUnreplicated.put(&upstream, out));
                lanes::told(Lane::Write, &Refusal::CommittedUnreplicated);
            }
        }
    }

    /// A notice: one of them says that a commit is not replicated. By its routine: the text is translated.
    fn notice(&mut self, header: Header, flow: &mut Flow) -> Step {
        if header.frame_len > READ_LIMIT {
            return Step::Pass;
        }
        let Some(frame) = flow.unseen().get(..header.frame_len) else { return wait_for(header, flow) };
        let fields = ErrorFields::read(frame.get(HEADER_LEN..).unwrap_or_default());
        if fields.routine == b"SyncRepWaitForLSN" {
            self.replication = Replicated::No;
        }
        Step::Pass
    }

    #[inline]
    fn command_complete(
        &mut self,
        header: Header,
        flow: &mut Flow,
        backend: &mut Backend,
    ) -> Result<Step, WireError> {
        if flow.unseen().len() < header.frame_len && header.frame_len <= READ_LIMIT {
            // With half of it in the application's hands nothing could be said of a commit that breaks here.
            return Ok(wait_for(header, flow));
        }
        if matches!(self.ledger.front(), Some(Owed::InjectedBegin)) {
            return Ok(Step::Skip);
        }
        if self.hides_a_failure() {
            return self.complete_failed(header, flow);
        }
        if self.notes.watching || self.terms.is_provisional() {
            let Some(frame) = flow.unseen().get(..header.frame_len) else {
                return Ok(wait_for(header, flow));
            };
            match frame.get(HEADER_LEN..).unwrap_or_default() {
                b"DISCARD ALL\0" => self.discarded_all(backend),
                b"DEALLOCATE ALL\0" => {
                    backend.prepared.clear();
                    self.names.clear();
                }
                b"COMMIT\0" => self.terms.transaction_is(TransactionFate::Committed),
                b"ROLLBACK\0" => self.terms.transaction_is(TransactionFate::RolledBack),
                _ => {}
            }
        }
        self.note_tag(flow.unseen().get(HEADER_LEN..header.frame_len).unwrap_or_default());
        self.copy_in = CopyIn::No;
        if self.timing_out.is_some() && self.replication == Replicated::No {
            // The error that comes instead stands before ReadyForQuery.
            self.settle_or_query(header, |owed| matches!(owed, Owed::Execute))?;
            return Ok(Step::Skip);
        }
        self.tokens.completed();
        self.settle_or_query(header, |owed| matches!(owed, Owed::Execute))
    }

    /// A statement of the application ended with this command tag.
    #[inline]
    fn note_tag(&mut self, command_tag: &[u8]) {
        // The lane is that of what was sent last.
        if self.transaction.lane() != Some(Lane::Write) && self.notes.sent != Need::Write {
            return;
        }
        match command_tag {
            // Of a savepoint, perhaps: what came before that may still be there, but is not known to be.
            b"ROLLBACK\0" => self.has_changed = false,
            command_tag => self.has_changed |= tag::says_changed(command_tag),
        }
    }

    /// A statement ended in a transaction that a question of ours had failed: only ROLLBACK and COMMIT can.
    #[cold]
    fn complete_failed(&mut self, header: Header, flow: &mut Flow) -> Result<Step, WireError> {
        let Some(frame) = flow.unseen().get(..header.frame_len) else { return Ok(wait_for(header, flow)) };
        if frame.get(HEADER_LEN..) != Some(b"ROLLBACK\0") {
            return self.settle_or_query(header, |owed| matches!(owed, Owed::Execute));
        }
        self.terms.transaction_is(TransactionFate::RolledBack);
        self.settle_or_query(header, |owed| matches!(owed, Owed::Execute))?;
        let Some(failure) = self.rolled_back() else { return Ok(Step::Pass) };
        flow.replace(header.frame_len, |out, _| out.extend_from_slice(&failure));
        Ok(Step::Next)
    }

    fn parameter_status(&mut self, header: Header, flow: &mut Flow, backend: &mut Backend) -> Step {
        if header.frame_len > READ_LIMIT {
            return Step::Pass;
        }
        let Some(frame) = flow.unseen().get(..header.frame_len) else { return wait_for(header, flow) };
        if let Some((name, value)) = tag::parameter_status(frame.get(HEADER_LEN..).unwrap_or_default()) {
            let name = String::from_utf8_lossy(name).to_ascii_lowercase();
            if name == "in_hot_standby" {
                self.in_hot_standby = Some(value == b"on");
            }
            if name == "application_name" {
                self.terms.renamed(value);
            }
            if !is_servers_own(&name) {
                self.wanted_before.get_or_insert_with(|| Arc::clone(&self.wanted));
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
        if matches!(self.ledger.front(), Some(Owed::InjectedBegin)) && !fields.is_fatal() {
            // It was answered already, and what comes behind it must not run outside of a transaction.
            flow.skip(header.frame_len);
            return Step::Stop(Inbound::Fatal(Told::No));
        }
        if fields.is_fatal() && !self.ledger.owes_the_application() {
            flow.skip(header.frame_len);
            return Step::Stop(Inbound::Fatal(Told::No));
        }
        if fields.is_fatal() && self.are_no_answer(&fields) {
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
        if self.token_failed(frame, &fields, backend) {
            return Step::Skip;
        }
        if self.ignores_too_much() {
            flow.skip(header.frame_len);
            return Step::Stop(Inbound::Fatal(Told::No));
        }
        if self.is_asking() {
            if let Some(Owed::Check(id)) = self.ledger.settle() {
                Self::learn_from(Some(id), &fields, backend);
            }
            return Step::Skip;
        }
        let (mut taken, mut refused) = (None, None);
        match self.ledger.front() {
            Some(Owed::ParseTaken(name)) => taken = Some(name.clone()),
            Some(Owed::Refused(error)) => refused = Some(error.clone()),
            _ => {}
        }
        self.ailment = self.ailment.max(ailment(fields.code));
        let cancelled = fields.code == b"57014";
        let failure = self.take_failure(&fields);
        self.failed(backend, &fields);
        if cancelled && let Some(why) = self.timing_out.take() {
            self.say_timed_out(*why, header, flow);
            return Step::Next;
        }
        if let Some(error) = refused.or(failure) {
            flow.replace(header.frame_len, |out, _| out.extend_from_slice(&error));
            return Step::Next;
        }
        let Some(name) = taken else { return Step::Pass };
        flow.replace(header.frame_len, |out, frame| {
            let body = frame.get(HEADER_LEN..).unwrap_or_default();
            error_fields::put_with_name(out, body, &name);
        });
        Step::Next
    }

    /// The error at the front is the answer to our cancel. What it ended may have committed before: that stays.
    fn say_timed_out(&self, why: TimingOut, header: Header, flow: &mut Flow) {
        let TimingOut { detail, timed_out } = why;
        let lane = timed_out.lane;
        if self.notes.commits_midway {
            let (cause, outcome) = (timed_out.cause, Outcome::Unknown);
            let refusal = Refusal::CommitUnresolved { cause, outcome, known: None };
            flow.replace(header.frame_len, |out, _| refusal.put(&self.upstream, out));
            lanes::told(lane, &refusal);
        } else {
            flow.replace(header.frame_len, |out, frame| {
                let body = frame.get(HEADER_LEN..).unwrap_or_default();
                let (message, hint) = (timed_out.message(), timed_out.hint());
                error_fields::put_with_words(out, body, &format!("tidegate: {message}"), &detail, hint);
            });
            lanes::told(lane, &Refusal::TimedOut(timed_out));
        }
    }

    /// A statement failed: in a pipeline the server ignores everything up to the next Sync.
    pub(super) fn failed(&mut self, backend: &mut Backend, fields: &ErrorFields<'_>) {
        self.notes.failed = true;
        self.errors += 1;
        self.terms.transaction_is(TransactionFate::RolledBack);
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
            if owed.ends_skipping() {
                break;
            }
            ignored.extend(self.ledger.settle());
        }
        if self.ledger.is_empty() {
            let is_ours = matches!(ignored.as_slice(), [.., Owed::TokenFirst, Owed::Query]);
            self.skipping = if is_ours { Skipping::UntilOurSync } else { Skipping::UntilSync };
        }
        let unnamed_failed =
            matches!(ignored.first(), Some(Owed::Parse(Parsed::Unnamed | Parsed::UnnamedAlone)));
        // Backwards, as every undoing.
        for owed in ignored.iter().rev() {
            self.ignored(owed, backend);
        }
        if unnamed_failed {
            // A Parse that fails takes the old unnamed statement away before it looks at the new one.
            self.names.unnamed_failed();
        }
    }

    /// The server did not do what this entry stands for.
    fn ignored(&mut self, owed: &Owed, backend: &mut Backend) {
        self.names.undo(owed);
        match *owed {
            Owed::Parse(Parsed::Named(_, id)) | Owed::InjectedParse(Some(id)) | Owed::TokenParse(id) => {
                backend.prepared.remove(id);
            }
            Owed::Parse(Parsed::Unnamed) | Owed::CloseUnnamed => {
                self.names.unnamed_ignored();
                backend.unnamed = Some(UnnamedOwner::NOBODY);
            }
            Owed::Token | Owed::TokenFirst | Owed::TokenApart => self.token_ignored(),
            Owed::InjectedClose(Some(id)) => drop(backend.prepared.insert(id, usize::MAX)),
            Owed::Parse(Parsed::UnnamedAlone | Parsed::Again(..))
            | Owed::InjectedParse(None)
            | Owed::InjectedClose(None) => {
                backend.unnamed = Some(UnnamedOwner::NOBODY);
            }
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

/// What an error says about the server rather than about the statement.
fn ailment(code: &[u8]) -> Ailment {
    match code {
        b"25006" => Ailment::ReadOnly,
        b"57P01" | b"57P02" | b"57P03" | b"53300" => Ailment::Failing,
        code if code.starts_with(b"08") || code.starts_with(b"58") => Ailment::Failing,
        _ => Ailment::None,
    }
}

fn owed_statement(owed: &Owed) -> Option<StatementId> {
    match owed {
        Owed::Bind(id) | Owed::Describe(id) => *id,
        _ => None,
    }
}

/// Waits for a frame that has to be read as a whole.
pub(super) fn wait_for(header: Header, flow: &mut Flow) -> Step {
    flow.want(header.frame_len);
    Step::Stop(Inbound::More)
}

/// Reported parameters that belong to the server, not to the session. An operator makes a whole server read-only, also
/// while sessions are there; one that does so for itself by SET is asked for it afterwards, as for what is not reported.
fn is_servers_own(name: &str) -> bool {
    matches!(
        name,
        "in_hot_standby"
            | "default_transaction_read_only"
            | "is_superuser"
            | "server_version"
            | "server_encoding"
            | "integer_datetimes"
    )
}
