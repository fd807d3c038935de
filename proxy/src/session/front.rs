//! A session without a backend: waiting for the next exchange, and answering what needs no backend.

use std::task::{Context, Poll};

use super::Session;
use super::outbound::TEXT_LIMIT;
use super::plain::Ahead;
use super::registry::Signal;
use crate::backend::Statement;
use crate::exchange::Refusal;
use crate::exchange::facts::Facts;
use crate::exchange::refusal::Outcome;
use crate::io::Flow;
use crate::io::buffer::BUFFER_LEN;
use crate::sql::StatementKind;
use crate::wire::frame::HEADER_LEN;
use crate::wire::frontend::{self as tag, Parse, query_text};
use crate::wire::{Header, TransactionStatus, WireError, backend as reply};

/// A whole Sync.
const SYNC_FRAME: [u8; HEADER_LEN] = [tag::SYNC, 0, 0, 0, 4];

/// What the session expects of the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// An exchange.
    Ready,
    /// The rest of an exchange that was refused, up to its Sync.
    Refusing,
    /// The end of a transaction whose backend is gone.
    Orphaned(Orphan),
}

/// How far a transaction without a backend is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Orphan {
    /// The application does not know yet. Its next statement fails, even a COMMIT: answering that with a
    /// mere `ROLLBACK` tag would be overlooked.
    Untold,
    /// It knows, and has to send ROLLBACK.
    Told,
    /// As `Told`, and everything up to the next Sync is ignored.
    Skipping,
    /// The ROLLBACK is parsed and not executed yet.
    Leaving,
}

/// Whether something has happened since the last poll, most likely that bytes came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Woken {
    No,
    Yes,
}

/// What the wait for an exchange brought.
pub(super) enum Next {
    Exchange,
    Ended,
    Refused(Refusal),
}

/// Whether this statement ends a transaction without a backend. An application that does not know of the loss
/// gets an error even for its COMMIT; a chained transaction cannot be had without a backend.
fn leaves(facts: &Facts, orphan: Orphan) -> bool {
    let ends = match orphan {
        Orphan::Untold => facts.first == StatementKind::Rollback,
        Orphan::Told | Orphan::Skipping | Orphan::Leaving => facts.ends_failed_transaction(),
    };
    ends && facts.statements == 1 && !facts.chains
}

/// Whether the server answers after this message, whatever follows.
fn ends_exchange(message: u8) -> bool {
    matches!(message, tag::QUERY | tag::FUNCTION_CALL | tag::SYNC | tag::FLUSH | tag::TERMINATE)
}

/// Whether the bytes that are there make an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Assembled {
    Whole,
    Partial,
    Terminate,
}

/// Whether a whole exchange is there, or so much of one that waiting for the rest makes no sense.
pub(super) fn assemble(flow: &mut Flow) -> Result<Assembled, WireError> {
    if flow.unseen().ends_with(&SYNC_FRAME) {
        // Almost certainly the end of a pipeline. Should it be data that looks like one, a backend is taken a
        // moment too early, and the rest of the message follows as any large message does.
        return Ok(Assembled::Whole);
    }
    let mut offset = 0;
    loop {
        let unseen = flow.unseen();
        let rest = unseen.get(offset..).unwrap_or_default();
        let (needed, ends) = match Header::read_frontend(rest)? {
            None => (HEADER_LEN, false),
            Some(header) => (header.frame_len, ends_exchange(header.tag)),
        };
        match (rest.len() >= needed, ends) {
            (true, true) => return Ok(Assembled::Whole),
            (true, false) => {
                offset += needed;
                continue;
            }
            (false, _) => {}
        }
        if offset + needed > TEXT_LIMIT || (offset > 0 && unseen.len() >= BUFFER_LEN) {
            return Ok(Assembled::Whole);
        }
        flow.want(offset + needed);
        return Ok(Assembled::Partial);
    }
}

impl Session {
    /// Waits until an exchange is there that needs a backend: nobody should hold a backend for a message of
    /// which half has come.
    pub(super) fn poll_exchange(&mut self, cx: &mut Context<'_>, woken: Woken) -> Poll<Next> {
        if woken == Woken::Yes && !self.registration.entry.has_any() && !self.to_app.is_full() {
            match self.ear.listen_now(&mut self.app, &mut self.to_db) {
                Some(Ok(0) | Err(_)) => return Poll::Ready(Next::Ended),
                Some(Ok(_)) => self.watch.arrived(),
                None => {}
            }
        }
        loop {
            match self.assemble() {
                Ok(Assembled::Whole) => return Poll::Ready(Next::Exchange),
                Ok(Assembled::Partial) => {
                    if self.to_db.unseen().is_empty() {
                        self.watch.nothing_came();
                    }
                }
                Ok(Assembled::Terminate) => return Poll::Ready(Next::Ended),
                Err(violation) => {
                    return Poll::Ready(Next::Refused(Refusal::Protocol(violation.to_string())));
                }
            }
            if self.to_app.is_pending()
                && matches!(self.to_app.poll_write_to(cx, &mut self.app), Poll::Ready(Err(_)))
            {
                return Poll::Ready(Next::Ended);
            }
            if self.registration.entry.has_any()
                && let Some(refusal) = self.idle_signal()
            {
                return Poll::Ready(Next::Refused(refusal));
            }
            // An application that does not read its answers is not listened to either.
            if self.to_app.is_full() {
                return Poll::Pending;
            }
            match self.ear.poll_listen(cx, &mut self.app, &mut self.to_db) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Next::Ended),
                Poll::Ready(Ok(_)) => self.watch.arrived(),
                Poll::Pending => {
                    self.rest();
                    return Poll::Pending;
                }
            }
        }
    }

    /// An idle session keeps little memory.
    #[inline]
    fn rest(&mut self) {
        if self.to_db.is_empty() {
            self.to_db.shrink();
            self.to_app.shrink();
            self.talk.shrink();
        }
    }

    fn idle_signal(&mut self) -> Option<Refusal> {
        let entry = &self.registration.entry;
        entry.clear(Signal::Cancel);
        // What has begun may finish: a transaction that waits for its first statement, an exchange of which a part is there.
        let is_amid = !self.talk.begin.is_empty() || !self.to_db.unseen().is_empty();
        [Signal::Kill, Signal::Drain, Signal::Overdue]
            .into_iter()
            .find(|signal| entry.has(*signal) && !(*signal == Signal::Drain && is_amid))
            .map(|signal| self.signalled(signal))
    }

    /// Looks at what has come. Answers what needs no backend, and leaves the rest for the relay.
    fn assemble(&mut self) -> Result<Assembled, WireError> {
        loop {
            self.talk.drop_torn_request(&mut self.to_db);
            let Some(header) = Header::read_frontend(self.to_db.unseen())? else {
                return Ok(Assembled::Partial);
            };
            if self.stage == Stage::Ready {
                self.talk.terms.refresh();
                if self.talk.look_ahead(self.to_db.unseen(), &self.pool) == Ahead::Plain {
                    return Ok(Assembled::Whole);
                }
            }
            match (self.stage, header.tag) {
                (_, tag::TERMINATE) => return Ok(Assembled::Terminate),
                (Stage::Refusing, tag::SYNC) => {
                    self.stage = self.after_refusal();
                    self.say_ready();
                }
                // Data of a COPY that is over, and Flush with nothing to flush: PostgreSQL ignores them too.
                (Stage::Ready, tag::COPY_DATA | tag::COPY_DONE | tag::COPY_FAIL | tag::FLUSH)
                | (Stage::Refusing, _) => {}
                (Stage::Orphaned(orphan), _) => {
                    if self.to_db.unseen().len() < header.frame_len && header.frame_len <= TEXT_LIMIT {
                        self.to_db.want(header.frame_len);
                        return Ok(Assembled::Partial);
                    }
                    self.answer_orphan(orphan, header);
                }
                (Stage::Ready, tag::QUERY) if self.answer_transaction(header) => continue,
                (Stage::Ready, tag::QUERY) if self.answer_clearing(header) => continue,
                (Stage::Ready, _) if self.answer_local(header) => continue,
                (Stage::Ready, tag::PARSE) if self.answer_known_parse(header) => continue,
                (Stage::Ready, message) if ends_exchange(message) && self.has(header) => {
                    return Ok(Assembled::Whole);
                }
                (Stage::Ready, _) => return assemble(&mut self.to_db),
            }
            self.talk.drop_request(header, &mut self.to_db);
        }
    }

    /// Whether all of the message at the front is there.
    fn has(&self, header: Header) -> bool {
        self.to_db.unseen().len() >= header.frame_len
    }

    /// Answers a Parse with nothing but its Sync behind it, when PostgreSQL has accepted the same statement
    /// before: nothing runs, so no backend is needed, and nobody has to wait for one.
    fn answer_known_parse(&mut self, header: Header) -> bool {
        let unseen = self.to_db.unseen();
        let sync = unseen.get(header.frame_len..header.frame_len + HEADER_LEN);
        let Some(body) = unseen.get(HEADER_LEN..header.frame_len).filter(|_| sync == Some(&SYNC_FRAME))
        else {
            return false;
        };
        let Ok(parse) = Parse::read(body) else { return false };
        if parse.name.is_empty() || self.talk.names.get(parse.name).is_some() {
            return false;
        }
        let Some(statement) = Statement::proven(parse.definition) else { return false };
        if !self.talk.names.insert(parse.name, statement) {
            return false;
        }
        self.to_app.insert(|out| out.extend_from_slice(&reply::PARSE_COMPLETE_FRAME));
        self.say_ready();
        self.to_db.skip(header.frame_len + HEADER_LEN);
        true
    }

    /// Answers the exchange at the front with a refusal; the session goes on.
    pub(super) fn refuse(&mut self, refusal: &Refusal) {
        self.fail_begun();
        self.count(refusal);
        self.say_refused(refusal);
        self.refuse_rest();
    }

    fn refuse_rest(&mut self) {
        self.forget_local();
        let Ok(Some(header)) = Header::read_frontend(self.to_db.unseen()) else { return };
        match header.tag {
            tag::QUERY | tag::FUNCTION_CALL | tag::SYNC => {
                self.say_ready();
                self.stage = self.after_refusal();
            }
            _ => self.stage = Stage::Refusing,
        }
        self.talk.drop_request(header, &mut self.to_db);
    }

    /// Counts what the application is told about a statement.
    pub(super) fn count(&self, refusal: &Refusal) {
        crate::telemetry::lanes::told(refusal.lane().unwrap_or(self.watch.lane()), refusal);
    }

    pub(super) fn say_refused(&mut self, refusal: &Refusal) {
        let upstream = &self.pool.upstream.name;
        self.to_app.insert(|out| refusal.put(upstream, out));
    }

    pub(super) fn say_ready(&mut self) {
        let status = self.talk.status;
        self.to_app.insert(|out| reply::put_ready(out, status));
    }

    pub(super) fn after_refusal(&self) -> Stage {
        match self.talk.status {
            TransactionStatus::Idle => Stage::Ready,
            TransactionStatus::InTransaction | TransactionStatus::Failed => Stage::Orphaned(Orphan::Told),
        }
    }

    /// Answers a message in a transaction whose backend is gone as PostgreSQL answers in a failed one.
    fn answer_orphan(&mut self, orphan: Orphan, header: Header) {
        let body = self.to_db.unseen().get(HEADER_LEN..header.frame_len).unwrap_or_default();
        match (header.tag, orphan) {
            (tag::SYNC, _) => {
                self.stage = match orphan {
                    Orphan::Skipping => self.after_refusal(),
                    Orphan::Untold | Orphan::Told | Orphan::Leaving => self.stage,
                };
                self.say_ready();
            }
            (tag::QUERY, Orphan::Untold | Orphan::Told | Orphan::Leaving) => {
                let facts = Facts::of(query_text(body).unwrap_or_default());
                self.orphan_statement(orphan, &facts);
                self.say_ready();
            }
            (tag::FUNCTION_CALL, Orphan::Untold | Orphan::Told | Orphan::Leaving) => {
                self.orphan_fails(orphan);
                self.say_ready();
            }
            (tag::PARSE, Orphan::Untold | Orphan::Told | Orphan::Leaving) => {
                let facts = Parse::read(body).map(|parse| Facts::of(parse.text)).unwrap_or_default();
                match (leaves(&facts, orphan), Parse::read(body)) {
                    (true, Ok(parse)) => {
                        if !parse.name.is_empty() {
                            let statement = Statement::intern(parse.definition, || facts.clone());
                            self.talk.names.insert(parse.name, statement);
                        }
                        self.stage = Stage::Orphaned(Orphan::Leaving);
                        self.to_app.insert(|out| out.extend_from_slice(&reply::PARSE_COMPLETE_FRAME));
                    }
                    _ => self.orphan_skips(orphan, &facts),
                }
            }
            (tag::BIND, Orphan::Leaving) => {
                self.to_app.insert(|out| out.extend_from_slice(&reply::BIND_COMPLETE_FRAME));
            }
            (tag::DESCRIBE, Orphan::Leaving) => {
                if body.first() == Some(&b'S') {
                    self.to_app.insert(|out| out.extend_from_slice(&reply::NO_PARAMETERS_FRAME));
                }
                self.to_app.insert(|out| out.extend_from_slice(&reply::NO_DATA_FRAME));
            }
            (tag::EXECUTE, Orphan::Leaving) => {
                self.end_orphan();
                // What stands behind it is an exchange like any other, and a Sync alone is ours to answer.
                self.talk.local_since_sync = true;
                self.stage = Stage::Ready;
            }
            (tag::CLOSE, Orphan::Untold | Orphan::Told | Orphan::Leaving) => {
                self.to_app.insert(|out| out.extend_from_slice(&reply::CLOSE_COMPLETE_FRAME));
            }
            (tag::BIND | tag::DESCRIBE | tag::EXECUTE, Orphan::Untold | Orphan::Told) => {
                self.bind_orphan(orphan, header.tag);
            }
            _ => {}
        }
    }

    /// A Bind of a prepared statement: it may be a prepared ROLLBACK.
    fn bind_orphan(&mut self, orphan: Orphan, message: u8) {
        let body = self.to_db.unseen().get(HEADER_LEN..).unwrap_or_default();
        let named = (message == tag::BIND).then(|| tag::BindNames::read(body)).flatten();
        let facts = named.and_then(|names| self.talk.names.get(names.statement)).map(|s| s.facts.clone());
        match facts {
            Some(facts) if leaves(&facts, orphan) => {
                self.stage = Stage::Orphaned(Orphan::Leaving);
                self.to_app.insert(|out| out.extend_from_slice(&reply::BIND_COMPLETE_FRAME));
            }
            facts => self.orphan_skips(orphan, &facts.unwrap_or_default()),
        }
    }

    /// One simple query in a transaction without a backend.
    fn orphan_statement(&mut self, orphan: Orphan, facts: &Facts) {
        let leaves = facts.statements == 1 && facts.ends_failed_transaction() && !facts.chains;
        match (leaves, orphan, facts.first) {
            (true, Orphan::Untold, StatementKind::Commit | StatementKind::PrepareTransaction) => {
                let refusal = self.untold();
                self.count(&refusal);
                self.say_refused(&refusal);
                self.talk.status = TransactionStatus::Idle;
                self.stage = Stage::Ready;
            }
            (true, _, _) => {
                self.end_orphan();
                self.stage = Stage::Ready;
            }
            (false, _, _) => self.orphan_fails(orphan),
        }
    }

    /// Why a transaction is over whose application does not know yet.
    fn untold(&mut self) -> Refusal {
        self.untold.take().unwrap_or(Refusal::BackendLost { outcome: Outcome::RolledBack })
    }

    fn end_orphan(&mut self) {
        self.to_app.insert(|out| reply::put_command_complete(out, b"ROLLBACK"));
        self.talk.status = TransactionStatus::Idle;
    }

    fn orphan_fails(&mut self, orphan: Orphan) {
        let refusal = match orphan {
            Orphan::Untold => self.untold(),
            Orphan::Told | Orphan::Skipping | Orphan::Leaving => Refusal::TransactionLost,
        };
        self.count(&refusal);
        self.say_refused(&refusal);
        self.stage = Stage::Orphaned(Orphan::Told);
    }

    /// As [`Session::orphan_fails`] in the extended protocol, where the rest of the pipeline is ignored.
    fn orphan_skips(&mut self, orphan: Orphan, facts: &Facts) {
        self.orphan_fails(orphan);
        self.stage = Stage::Orphaned(Orphan::Skipping);
        if orphan == Orphan::Untold && facts.first == StatementKind::Commit {
            self.talk.status = TransactionStatus::Idle;
        }
    }
}
