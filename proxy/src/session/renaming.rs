//! Messages that name a prepared statement, on their way to the backend: the application's names become ours,
//! and a statement that the backend lacks is prepared on the way.

use std::sync::Arc;

use super::conversation::{Check, Conversation, Fate, Frame, Skipping};
use super::names::UnnamedKind;
use super::notes::{NewPins, PortalKind};
use super::outbound::{Outbound, Step, TEXT_LIMIT, advance};
use crate::backend::connection::UnnamedOwner;
use crate::backend::{Backend, Statement, StatementId};
use crate::exchange::ledger::Parsed;
use crate::exchange::{Facts, Owed};
use crate::io::Flow;
use crate::wire::backend as reply;
use crate::wire::frame::{HEADER_LEN, put_frame};
use crate::wire::frontend::{self as tag, BindNames, Parse, Target};
use crate::wire::{Header, TransactionStatus, WireError};

impl Conversation {
    pub(super) fn parse(
        &mut self,
        header: Header,
        flow: &mut Flow,
        backend: &mut Backend,
    ) -> Result<Step, WireError> {
        let Some(frame) = flow.unseen().get(..header.frame_len) else {
            // Too long to keep: it stays under the application's own name, on this backend.
            if header.frame_len > TEXT_LIMIT && flow.unseen().get(HEADER_LEN) == Some(&0) {
                self.names.set_long_unnamed();
                backend.unnamed = Some(self.names.owner());
                return Ok(self.incomplete(header, flow, Owed::Parse(Parsed::Unnamed)));
            }
            return Ok(self.incomplete(header, flow, Owed::Parse(Parsed::Untracked)));
        };
        let parse = Parse::read(frame.get(HEADER_LEN..).unwrap_or_default())?;
        if parse.name.is_empty() {
            let facts = self.facts_of(parse.text);
            if let Some(name) = facts.sole_deallocate()
                && self.names.get(name).is_some()
            {
                return Ok(self.parse_deallocate(header, flow));
            }
            self.sent(&facts);
            let executes = facts.executes.is_some().then(|| facts.clone());
            self.names.set_unnamed(frame, facts);
            if let Some(facts) = executes {
                self.lend_name(&facts, flow);
            }
            backend.unnamed = Some(self.names.owner());
            self.ledger.owe(Owed::Parse(Parsed::Unnamed));
            return Ok(self.move_on(header, flow, Fate::Pass));
        }
        let name: Box<[u8]> = parse.name.into();
        if self.names.get(&name).is_some() {
            if self.is_in_doubt(&name) {
                return Ok(Step::Stop(Outbound::Blocked));
            }
            return Ok(self.parse_duplicate(header, flow, backend, &name));
        }
        let statement = Statement::intern(parse.definition, || self.facts_of(parse.text));
        if self.check == Check::No && self.may_check() && backend.prepared.touch(statement.id) {
            return Ok(self.ask(&statement, flow));
        }
        self.check = Check::No;
        if !self.names.insert(&name, Arc::clone(&statement)) {
            // Without a name of its own it cannot be bound on another backend; this one knows it.
            self.sent(&Facts::default());
            self.ledger.owe(Owed::Parse(Parsed::Untracked));
            return Ok(self.move_on(header, flow, Fate::Pass));
        }
        let id = statement.id;
        self.bar_unless_first();
        if backend.prepared.touch(id) && self.may_have_failed() {
            // In a failed transaction the server refuses most texts.
            flow.insert(|out| statement.put_parse_as(b"", out));
            backend.unnamed = Some(UnnamedOwner::NOBODY);
            self.ledger.owe(Owed::Parse(Parsed::Again(name, id)));
        } else if backend.prepared.touch(id) {
            self.ledger.owe(Owed::ParseKnown(Parsed::Named(name, id)));
        } else {
            flow.insert(|out| statement.put_parse(out));
            self.ledger.owe(Owed::Parse(Parsed::Named(name, id)));
            self.has_now(id, flow, backend);
        }
        Ok(self.move_on(header, flow, Fate::Skip))
    }

    /// Whether an exchange before this one changes the unnamed statement, unless that fails.
    fn is_unnamed_in_doubt(&self) -> bool {
        self.names.is_unnamed_in_doubt()
            || self.ledger.iter().any(|owed| matches!(owed, Owed::Parse(Parsed::UnnamedAlone)))
    }

    /// Whether an exchange before this one gives the name, unless that fails.
    fn is_in_doubt(&self, name: &[u8]) -> bool {
        let mut earlier = self.ledger.backwards().skip_while(|owed| !owed.ends_with_ready());
        earlier.any(|owed| match owed {
            Owed::Parse(Parsed::Named(given, _) | Parsed::Again(given, _))
            | Owed::ParseKnown(Parsed::Named(given, _)) => **given == *name,
            _ => false,
        })
    }

    /// A name is given or taken away. The server skips that if something fails that goes before it in its exchange.
    fn bar_unless_first(&mut self) {
        if !self.ledger.back().is_none_or(Owed::ends_with_ready) {
            self.bar_next();
        }
    }

    /// Whether a question of ours can be put in here: it ends in a Sync of its own, and an error in it must not
    /// touch a transaction.
    fn may_check(&self) -> bool {
        self.ledger.is_empty()
            && self.status == TransactionStatus::Idle
            && self.skipping == Skipping::No
            && !self.unsynced
    }

    /// See [`Check`].
    fn ask(&mut self, statement: &Statement, flow: &mut Flow) -> Step {
        flow.insert(|out| {
            put_frame(out, tag::DESCRIBE, |out| {
                out.push(b'S');
                out.extend_from_slice(&statement.name);
            });
            put_frame(out, tag::SYNC, |_| {});
        });
        self.ledger.owe(Owed::Check(statement.id));
        self.ledger.owe(Owed::CheckSync);
        self.check = Check::Asked;
        Step::Stop(Outbound::Blocked)
    }

    /// A name that is taken: the server itself shall refuse it, which also fails the transaction.
    fn parse_duplicate(
        &mut self,
        header: Header,
        flow: &mut Flow,
        backend: &mut Backend,
        name: &[u8],
    ) -> Step {
        let Some(statement) = self.names.get(name).map(Arc::clone) else { return Step::Next };
        let id = statement.id;
        if !backend.prepared.touch(id) {
            self.inject_parse(&statement, flow, backend);
        }
        flow.insert(|out| statement.put_parse(out));
        self.ledger.owe(Owed::ParseTaken(name.into()));
        self.move_on(header, flow, Fate::Skip)
    }

    /// `DEALLOCATE` of a statement that the server knows under another name, in the extended protocol: we
    /// forget the name, and answer this Parse and what follows it ourselves.
    fn parse_deallocate(&mut self, header: Header, flow: &mut Flow) -> Step {
        let mut name = Vec::new();
        if let Some(frame) = flow.unseen().get(HEADER_LEN..header.frame_len)
            && let Ok(parse) = Parse::read(frame)
            && let Some(sole) = Facts::of(parse.text).sole_deallocate()
        {
            name.extend_from_slice(sole);
        }
        self.names.remove(&name);
        self.names.clear_unnamed();
        self.names.unnamed_kind = UnnamedKind::Deallocate;
        self.ledger.owe(Owed::Local(reply::PARSE_COMPLETE_FRAME.into()));
        self.move_on(header, flow, Fate::Skip)
    }

    /// Prepares a statement on the backend without the application's knowledge.
    pub(super) fn inject_parse(&mut self, statement: &Statement, flow: &mut Flow, backend: &mut Backend) {
        flow.insert(|out| statement.put_parse(out));
        self.ledger.owe(Owed::InjectedParse(Some(statement.id)));
        self.bar_next();
        self.has_now(statement.id, flow, backend);
    }

    /// The backend has the statement now; the one that it has not used for longest goes.
    pub(super) fn has_now(&mut self, id: StatementId, flow: &mut Flow, backend: &mut Backend) {
        if let Some(evicted) = backend.prepared.insert(id, self.prepared_limit) {
            flow.insert(|out| {
                put_frame(out, tag::CLOSE, |out| {
                    out.push(b'S');
                    evicted.put_name(out);
                    out.push(0);
                });
            });
            self.ledger.owe(Owed::InjectedClose(Some(evicted)));
            self.bar_next();
        }
    }

    /// Whether the transaction has failed, as far as is known, or may have by what is not answered yet.
    fn may_have_failed(&self) -> bool {
        self.status == TransactionStatus::Failed || (!self.is_outside() && self.ledger.ready_owed() > 0)
    }

    pub(super) fn bind(
        &mut self,
        header: Header,
        flow: &mut Flow,
        backend: &mut Backend,
    ) -> Result<Step, WireError> {
        let there = header.frame_len.min(flow.unseen().len());
        let body = flow.unseen().get(HEADER_LEN..there).unwrap_or_default();
        let Some(names) = BindNames::read(body) else {
            return names_missing(header, flow, there);
        };
        let portal = PortalKind::of(Some(body));
        if names.statement.is_empty() {
            if self.names.unnamed_kind == UnnamedKind::Deallocate {
                self.ledger.owe(Owed::Local(reply::BIND_COMPLETE_FRAME.into()));
                return Ok(self.move_on(header, flow, Fate::Skip));
            }
            if self.is_unnamed_in_doubt() {
                return Ok(Step::Stop(Outbound::Blocked));
            }
            self.use_unnamed(flow, backend);
            let changes = self.names.unnamed_facts().map(|facts| &*facts.changes);
            self.notes.binds(portal, changes.unwrap_or_default());
            self.ledger.owe(Owed::Bind(None));
            return Ok(self.move_on(header, flow, Fate::Pass));
        }
        let Some(statement) = self.names.get(names.statement) else {
            self.sent_unknown();
            self.notes.binds(portal, &[]);
            self.ledger.owe(Owed::Bind(None));
            return Ok(self.move_on(header, flow, Fate::Pass));
        };
        let id = statement.id;
        let lens = (names.portal.len(), names.len());
        self.tokens.sent(&statement.facts);
        let NewPins(reason) = self.notes.sent(&statement.facts, &mut self.pins);
        self.notes.binds(portal, &statement.facts.changes);
        if backend.prepared.touch(id) {
            rename_bind(header, lens, &statement.name, flow);
        } else {
            let statement = Arc::clone(statement);
            self.inject_parse(&statement, flow, backend);
            rename_bind(header, lens, &statement.name, flow);
        }
        self.note_sent(reason);
        self.ledger.owe(Owed::Bind(Some(id)));
        self.outbound = Frame { left: header.body_len() - lens.1, fate: Fate::Pass };
        self.outbound.left -= advance(flow, self.outbound);
        Ok(Step::Next)
    }

    /// A statement name that the server has to judge: it may have been made by SQL PREPARE.
    fn sent_unknown(&mut self) {
        self.notes.sent = crate::exchange::facts::Need::Write;
        self.notes.commits = true;
        self.tokens.sent_unknown();
    }

    /// Makes sure that the backend's unnamed statement is this session's.
    fn use_unnamed(&mut self, flow: &mut Flow, backend: &mut Backend) {
        if let Some(facts) = self.names.unnamed_facts() {
            self.tokens.sent(facts);
            let NewPins(reason) = self.notes.sent(facts, &mut self.pins);
            self.note_sent(reason);
        }
        if backend.unnamed == Some(self.names.owner()) {
            return;
        }
        if self.names.unnamed().is_empty() {
            return self.disown_unnamed(flow, backend);
        }
        flow.insert(|out| out.extend_from_slice(self.names.unnamed()));
        self.ledger.owe(Owed::InjectedParse(None));
        self.bar_next();
        backend.unnamed = Some(self.names.owner());
    }

    /// The session has no unnamed statement: it must not meet somebody else's.
    fn disown_unnamed(&mut self, flow: &mut Flow, backend: &mut Backend) {
        if backend.unnamed.is_none() {
            return;
        }
        flow.insert(|out| put_frame(out, tag::CLOSE, |out| out.extend_from_slice(b"S\0")));
        self.ledger.owe(Owed::InjectedClose(None));
        self.bar_next();
        backend.unnamed = None;
    }

    /// What a Describe brings while the unnamed statement is a `DEALLOCATE` of ours.
    fn describe_deallocate(&self, tag: u8, target: Target<'_>) -> Option<Box<[u8]>> {
        match (tag, target, self.names.unnamed_kind) {
            (tag::DESCRIBE, Target::Statement(b""), UnnamedKind::Deallocate) => {
                Some([&reply::NO_PARAMETERS_FRAME[..], &reply::NO_DATA_FRAME].concat().into())
            }
            (tag::DESCRIBE, Target::Portal(b""), UnnamedKind::Deallocate) => {
                Some(reply::NO_DATA_FRAME.into())
            }
            _ => None,
        }
    }

    /// Describe and Close.
    pub(super) fn target(
        &mut self,
        header: Header,
        flow: &mut Flow,
        backend: &mut Backend,
    ) -> Result<Step, WireError> {
        let Some(frame) = flow.unseen().get(..header.frame_len) else {
            flow.want(header.frame_len);
            return Ok(Step::Stop(Outbound::More));
        };
        let target = Target::read(header.tag, frame.get(HEADER_LEN..).unwrap_or_default())?;
        if let Some(answer) = self.describe_deallocate(header.tag, target) {
            self.ledger.owe(Owed::Local(answer));
            return Ok(self.move_on(header, flow, Fate::Skip));
        }
        let owed = |id| if header.tag == tag::DESCRIBE { Owed::Describe(id) } else { Owed::Close };
        match target {
            Target::Statement(b"") if header.tag == tag::DESCRIBE => {
                if self.is_unnamed_in_doubt() {
                    return Ok(Step::Stop(Outbound::Blocked));
                }
                self.use_unnamed(flow, backend);
            }
            Target::Statement(b"") => {
                self.names.close_unnamed();
                backend.unnamed = None;
                self.ledger.owe(Owed::CloseUnnamed);
                return Ok(self.move_on(header, flow, Fate::Pass));
            }
            Target::Statement(name) if header.tag == tag::CLOSE => {
                let name: Box<[u8]> = name.into();
                if let Some(statement) = self.names.remove(&name)
                    && !self.names.take_back(&name)
                {
                    self.bar_unless_first();
                    self.ledger.owe(Owed::CloseKnown(name, statement));
                    return Ok(self.move_on(header, flow, Fate::Skip));
                }
            }
            Target::Statement(name) => {
                if let Some(statement) = self.names.get(name) {
                    let statement = Arc::clone(statement);
                    let id = statement.id;
                    if !backend.prepared.touch(id) {
                        self.inject_parse(&statement, flow, backend);
                    }
                    flow.insert(|out| {
                        put_frame(out, tag::DESCRIBE, |out| {
                            out.push(b'S');
                            id.put_name(out);
                            out.push(0);
                        });
                    });
                    self.ledger.owe(owed(Some(id)));
                    return Ok(self.move_on(header, flow, Fate::Skip));
                }
            }
            Target::Portal(_) if header.tag == tag::DESCRIBE => {
                self.ledger.owe(Owed::DescribePortal);
                return Ok(self.move_on(header, flow, Fate::Pass));
            }
            Target::Portal(_) => {}
        }
        self.ledger.owe(owed(None));
        Ok(self.move_on(header, flow, Fate::Pass))
    }
}

/// A Bind whose names are not there yet, or are longer than any name.
fn names_missing(header: Header, flow: &mut Flow, there: usize) -> Result<Step, WireError> {
    if there == header.frame_len || there > TEXT_LIMIT {
        return Err(WireError::BadBody(header.tag));
    }
    flow.want(header.frame_len.min(2 * TEXT_LIMIT));
    Ok(Step::Stop(Outbound::More))
}

/// Replaces header and names of a Bind; the parameters behind them pass.
#[inline]
pub(super) fn rename_bind(
    header: Header,
    (portal_len, names_len): (usize, usize),
    name: &[u8],
    flow: &mut Flow,
) {
    flow.replace(HEADER_LEN + names_len, |out, bytes| {
        let at = out.len();
        out.extend_from_slice(&[tag::BIND, 0, 0, 0, 0]);
        out.extend_from_slice(bytes.get(HEADER_LEN..=HEADER_LEN + portal_len).unwrap_or(&[0]));
        out.extend_from_slice(name);
        let length = out.len() - at - 1 + header.body_len() - names_len;
        let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
        if let Some(field) = out.get_mut(at + 1..at + HEADER_LEN) {
            field.copy_from_slice(&length);
        }
    });
}
