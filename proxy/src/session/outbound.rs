//! What the application sends, on its way to the backend.
//!
//! Frames pass untouched, except those that name a prepared statement: the application's names become ours.

use std::hint::cold_path;
use std::sync::Arc;

use super::conversation::{Barrier, Check, Conversation, CopyIn, Fate, Frame, Gate, Skipping};
use super::front::{Assembled, assemble};
use super::names::UnnamedKind;
use super::notes::{NewPins, PortalKind};
use super::relay::Hold;
use super::sorting::FUNCTION_CALL;
use crate::backend::Backend;
use crate::exchange::{Facts, Owed};
use crate::io::Flow;
use crate::sql::PinReason;
use crate::telemetry::metrics;
use crate::wire::backend as reply;
use crate::wire::frame::{HEADER_LEN, put_frame};
use crate::wire::frontend::{self as tag, query_text};
use crate::wire::{Header, WireError};

/// Statement texts up to this length are analysed whole; longer ones pin their backend instead.
pub const TEXT_LIMIT: usize = 256 * 1024;

/// Why an outbound scan stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outbound {
    /// More bytes of the application are needed.
    More,
    /// What is there has to be written first, or answered.
    Blocked,
    /// An exchange is there that has to be admitted.
    Exchange,
    /// The application said goodbye.
    Terminate,
}

/// What to do with the frame at the front.
pub(super) enum Step {
    Next,
    Stop(Outbound),
}

/// Whether it is data of a COPY, which belongs to the exchange before.
#[inline]
fn is_data(header: Header) -> bool {
    matches!(header.tag, tag::COPY_DATA | tag::COPY_DONE | tag::COPY_FAIL)
}

impl Conversation {
    /// Looks at the unseen bytes of `flow`.
    ///
    /// # Errors
    /// The application broke the protocol; its session must end.
    pub fn scan_outbound(&mut self, flow: &mut Flow, backend: &mut Backend) -> Result<Outbound, WireError> {
        loop {
            if self.outbound.left > 0 {
                cold_path();
                self.outbound.left -= advance(flow, self.outbound);
                if self.outbound.left > 0 {
                    return Ok(Outbound::More);
                }
            }
            if self.skipping == Skipping::UntilOurSync {
                cold_path();
                self.send_our_sync(flow);
            }
            if flow.is_full() || self.ledger.is_full() || self.check == Check::Asked {
                cold_path();
                return Ok(Outbound::Blocked);
            }
            let Some(header) = Header::read_frontend(flow.unseen())? else {
                return Ok(Outbound::More);
            };
            if !is_data(header) {
                self.bar_what_follows(header.tag, flow);
                if self.is_barred() {
                    cold_path();
                    return Ok(Outbound::Blocked);
                }
            }
            if self.is_to_be_admitted(header) {
                if header.tag == tag::TERMINATE {
                    return Ok(Outbound::Terminate);
                }
                if self.gate == Gate::Shut {
                    // Half an exchange must not keep the backend that the one before needed, and cannot be judged.
                    if assemble(flow)? == Assembled::Partial {
                        return Ok(Outbound::More);
                    }
                    return Ok(Outbound::Exchange);
                }
                self.gate = Gate::Shut;
                self.between_exchanges = false;
                if let Some(plain) = self.plain.take()
                    && self.send_plain(plain, flow, backend)
                {
                    if flow.unseen().is_empty() {
                        return Ok(Outbound::More);
                    }
                    continue;
                }
            }
            self.is_flushed = header.tag == tag::FLUSH;
            let there = flow.unseen().len();
            let step = self.outbound_frame(header, flow, backend)?;
            let moved = there - flow.unseen().len() + self.outbound.left;
            self.looked_at = self.looked_at.saturating_sub(moved);
            match step {
                Step::Next => {}
                Step::Stop(why) => return Ok(why),
            }
        }
    }

    /// Whether the message at the front begins something that was not looked at yet: an exchange, or the rest of one that
    /// goes on behind a Flush, or was not there as a whole.
    #[inline]
    fn is_to_be_admitted(&self, header: Header) -> bool {
        if is_data(header) {
            false
        } else if self.between_exchanges {
            // There is nothing to flush.
            header.tag != tag::FLUSH
        } else {
            self.looked_at == 0 && self.skipping == Skipping::No
        }
    }

    /// What was looked at may be sent.
    #[inline]
    pub(super) fn admitted(&mut self, looked_at: usize) {
        self.gate = Gate::Open;
        self.looked_at = looked_at;
    }

    /// What takes names and pins away takes none that come behind it in its own exchange: those wait until it is answered.
    #[inline]
    fn bar_what_follows(&mut self, next: u8, flow: &mut Flow) {
        if self.barrier == Barrier::AtItsEnd
            && self.notes.watching
            && matches!(self.ledger.back(), Some(Owed::Execute))
            && !matches!(next, tag::SYNC | tag::FLUSH | tag::TERMINATE)
        {
            flow.insert(|out| put_frame(out, tag::FLUSH, |_| {}));
            self.barrier = Barrier::Here;
        }
    }

    /// See [`Barrier`].
    #[inline]
    fn is_barred(&mut self) -> bool {
        if self.barrier == Barrier::Here && self.ledger.is_empty() {
            self.barrier = Barrier::None;
        }
        self.barrier == Barrier::Here
    }

    /// An exchange is complete.
    #[inline]
    pub(super) fn exchange_ends(&mut self) {
        self.unsynced = false;
        self.between_exchanges = true;
        self.tokens.exchange_ends();
        self.names.exchange_ends();
        if self.barrier == Barrier::AtItsEnd || self.settles_behind() {
            self.barrier = Barrier::Here;
        }
    }

    /// See [`Barrier`].
    pub(super) fn bar_next(&mut self) {
        if self.barrier == Barrier::None {
            self.barrier = Barrier::AtItsEnd;
        }
    }

    /// Whether this exchange, once answered, has set what has to be read back: with another one under way the backend could
    /// be lost before, and what was reported as set with it. Sessions that keep their backend end with it.
    #[inline]
    fn settles_behind(&self) -> bool {
        self.notes.has_settings()
            && self.keeps() == Hold::Transaction
            && (self.is_outside() || self.notes.ends_transaction)
    }

    /// The Sync that was to end the exchange is ignored, because a COPY began: another one has to.
    pub(super) fn exchange_goes_on(&mut self) {
        self.unsynced = true;
        self.between_exchanges = false;
    }

    #[inline]
    fn outbound_frame(
        &mut self,
        header: Header,
        flow: &mut Flow,
        backend: &mut Backend,
    ) -> Result<Step, WireError> {
        if self.skipping == Skipping::UntilSync && !matches!(header.tag, tag::SYNC | tag::TERMINATE) {
            return Ok(self.move_on(header, flow, Fate::Skip));
        }
        if let Some(step) = self.local_step(header, flow) {
            return Ok(step);
        }
        self.unsynced |= matches!(header.tag, tag::BIND | tag::DESCRIBE | tag::EXECUTE | tag::CLOSE);
        match header.tag {
            tag::QUERY => return self.query(header, flow, backend),
            tag::PARSE => {
                let step = self.parse(header, flow, backend);
                // While it waits for a question of ours, nothing of it is sent.
                self.unsynced |= self.check != Check::Asked;
                return step;
            }
            tag::BIND => return self.bind(header, flow, backend),
            tag::DESCRIBE | tag::CLOSE => return self.target(header, flow, backend),
            tag::EXECUTE
                if self.names.unnamed_kind == UnnamedKind::Deallocate
                    && flow.unseen().get(HEADER_LEN) == Some(&0) =>
            {
                self.names.unnamed_kind = UnnamedKind::Forwarded;
                let mut answer = Vec::new();
                reply::put_command_complete(&mut answer, b"DEALLOCATE");
                self.ledger.owe(Owed::Local(answer.into()));
                return Ok(self.move_on(header, flow, Fate::Skip));
            }
            tag::EXECUTE => {
                self.tokens.executes();
                self.notes.executes(PortalKind::of(flow.unseen().get(HEADER_LEN..)));
                self.ledger.owe(Owed::Execute);
            }
            // The server ignores it while it takes COPY data.
            tag::SYNC if self.copy_in == CopyIn::Taking => {}
            tag::SYNC => {
                self.ask_before_sync(flow, backend);
                self.skipping = Skipping::No;
                self.local_since_sync = false;
                self.ledger.owe(Owed::Sync);
                self.exchange_ends();
            }
            tag::FUNCTION_CALL => {
                let _ = self.notes.sent(&Facts::of(FUNCTION_CALL), &mut self.pins);
                self.tokens.sent_unknown();
                self.ledger.owe(Owed::FunctionCall);
                self.exchange_ends();
            }
            tag::COPY_DONE | tag::COPY_FAIL => {
                if self.copy_in == CopyIn::Taking {
                    self.copy_in = CopyIn::Ended;
                }
                self.ledger.owe(Owed::CopyEnd);
            }
            tag::FLUSH => self.last_sent.flushed = true,
            tag::TERMINATE => return Ok(Step::Stop(Outbound::Terminate)),
            _ => {}
        }
        Ok(self.move_on(header, flow, Fate::Pass))
    }

    /// Deals with the whole frame, as far as it is there, and with the rest when it comes.
    #[inline]
    pub(super) fn move_on(&mut self, header: Header, flow: &mut Flow, fate: Fate) -> Step {
        self.outbound = Frame { left: header.frame_len, fate };
        self.outbound.left -= advance(flow, self.outbound);
        Step::Next
    }

    fn query(&mut self, header: Header, flow: &mut Flow, backend: &mut Backend) -> Result<Step, WireError> {
        let Some(frame) = flow.unseen().get(..header.frame_len) else {
            if header.frame_len > TEXT_LIMIT {
                self.exchange_ends();
                backend.unnamed = None;
                self.names.clear_unnamed();
            }
            return Ok(self.incomplete(header, flow, Owed::Query));
        };
        let facts = self.facts_of(query_text(frame.get(HEADER_LEN..).unwrap_or_default())?);
        // A simple query takes the unnamed statement away.
        backend.unnamed = None;
        self.names.clear_unnamed();
        if let Some(name) = facts.sole_deallocate()
            && self.names.remove(name).is_some()
            && !self.names.take_back(name)
        {
            let mut answer = Vec::new();
            reply::put_command_complete(&mut answer, b"DEALLOCATE");
            self.ledger.owe(Owed::LocalQuery(answer.into()));
            let step = self.move_on(header, flow, Fate::Skip);
            self.exchange_ends();
            return Ok(step);
        }
        self.lend_name(&facts, flow);
        self.sent(&facts);
        self.notes.runs(&facts);
        self.ask_before_query(flow, backend);
        self.ledger.owe(Owed::Query);
        let step = self.move_on(header, flow, Fate::Pass);
        self.ask_behind_query(flow, backend);
        self.tokens.executes();
        self.exchange_ends();
        Ok(step)
    }

    /// SQL that executes a statement of the protocol knows it by the application's name: the backend gets it
    /// under that name too, and stays with the session.
    pub(super) fn lend_name(&mut self, facts: &Facts, flow: &mut Flow) {
        let Some(name) = &facts.executes else { return };
        let Some(statement) = self.names.get(name).map(Arc::clone) else { return };
        if statement.facts.commands.is_some() {
            // No server runs it.
            return;
        }
        if !self.names.lend(name) {
            return;
        }
        flow.insert(|out| statement.put_parse_as(name, out));
        self.ledger.owe(Owed::InjectedParse(None));
        if self.pins.insert(PinReason::Prepare) {
            metrics::pinned(PinReason::Prepare);
        }
    }

    /// A frame that should be looked at as a whole and is not there yet, or never will be in one piece.
    pub(super) fn incomplete(&mut self, header: Header, flow: &mut Flow, owed: Owed) -> Step {
        if header.frame_len <= TEXT_LIMIT {
            flow.want(header.frame_len);
            return Step::Stop(Outbound::More);
        }
        // Of several statements one may be a COMMIT; and what is one may be a DO that commits and goes on.
        self.notes.commits_midway |= matches!(owed, Owed::Query) || self.is_outside();
        self.sent(&Facts::default());
        self.ledger.owe(owed);
        self.move_on(header, flow, Fate::Pass)
    }

    pub(super) fn sent(&mut self, facts: &Facts) {
        self.tokens.sent(facts);
        self.notes.commits_midway |= facts.may_commit_midway(self.is_outside());
        let NewPins(reason) = self.notes.sent(facts, &mut self.pins);
        self.note_sent(reason);
        if !facts.changes.is_empty() {
            self.note_terms(facts);
        }
    }

    /// After every `Notes::sent`.
    pub(super) fn note_sent(&mut self, pinned: Option<PinReason>) {
        if let Some(reason) = pinned {
            metrics::pinned(reason);
        }
        if std::mem::take(&mut self.notes.resets_terms) {
            self.terms.reset_all();
        }
        if self.notes.watching {
            self.bar_next();
        }
    }
}

/// Lets what is there of the current frame pass, or leaves it out; returns how much that was.
#[inline]
pub(super) fn advance(flow: &mut Flow, frame: Frame) -> usize {
    let n = frame.left.min(flow.unseen().len());
    match frame.fate {
        Fate::Pass => flow.pass(n),
        Fate::Skip => flow.skip(n),
    }
    n
}
