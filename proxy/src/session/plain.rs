//! Exchanges so plain that one look tells all about them: a SELECT that only reads, in a session about which nothing is
//! special. Most are. They are sorted and sent without the questions that others are asked; what is owed for them is
//! the same, and so is everything behind it.

use super::conversation::{Conversation, CopyIn, Skipping, Whose};
use super::names::UnnamedKind;
use super::renaming::rename_bind;
use crate::backend::Backend;
use crate::exchange::Owed;
use crate::exchange::facts::{Need, is_plain_select};
use crate::io::Flow;
use crate::pool::Pool;
use crate::wire::frame::HEADER_LEN;
use crate::wire::frontend::{self as tag, BindNames};
use crate::wire::{Header, TransactionStatus};

/// A plain exchange at the front of what is sent next. All of it is there.
#[derive(Debug, Clone, Copy)]
pub(super) enum Plain {
    /// A simple query.
    Query {
        /// Of its frame.
        len: usize,
    },
    /// Bind of a named statement, Describe of its portal or not, Execute and Sync.
    Bound {
        /// Of the Bind.
        header: Header,
        portal_len: usize,
        names_len: usize,
        describes: bool,
        /// Of all frames.
        len: usize,
    },
}

impl Conversation {
    /// The exchange at the front of `bytes`, if it is plain. Notes what is sent.
    #[inline]
    pub(super) fn recognise(&mut self, bytes: &[u8], pool: &Pool) -> Option<Plain> {
        let nothing_special = self.status == TransactionStatus::Idle
            && self.begin.is_empty()
            && !self.unsynced
            && !self.local_since_sync
            && self.skipping == Skipping::No
            && self.copy_in == CopyIn::No
            && self.names.unnamed_kind == UnnamedKind::Forwarded
            && !self.names.has_local()
            && self.terms.now().lane.is_none()
            && pool.upstream.guard.learned.is_empty();
        match bytes.first() {
            Some(&tag::QUERY) if nothing_special => self.plain_query(bytes),
            Some(&tag::BIND) if nothing_special => self.plain_bind(bytes),
            _ => None,
        }
    }

    fn plain_query(&mut self, bytes: &[u8]) -> Option<Plain> {
        let len = Header::read_frontend(bytes).ok()??.frame_len;
        let (end, text) = bytes.get(HEADER_LEN..len)?.split_last()?;
        if *end != 0 || !is_plain_select(text) {
            return None;
        }
        self.keep_text(text);
        Some(Plain::Query { len })
    }

    fn plain_bind(&mut self, bytes: &[u8]) -> Option<Plain> {
        let header = Header::read_frontend(bytes).ok()??;
        let names = BindNames::read(bytes.get(HEADER_LEN..header.frame_len)?)?;
        let statement = self.names.get(names.statement).filter(|statement| statement.is_plain)?;
        let mut len = header.frame_len;
        let mut describes = false;
        loop {
            let rest = bytes.get(len..)?;
            let next = Header::read_frontend(rest).ok()??;
            match next.tag {
                tag::DESCRIBE if !describes && rest.get(HEADER_LEN) == Some(&b'P') => describes = true,
                tag::EXECUTE => {
                    len += next.frame_len;
                    break;
                }
                _ => return None,
            }
            len += next.frame_len;
        }
        let sync = Header::read_frontend(bytes.get(len..)?).ok()??;
        if sync.tag != tag::SYNC || sync.frame_len != HEADER_LEN {
            return None;
        }
        self.last_sent.set_statement(statement);
        let (portal_len, names_len) = (names.portal.len(), names.len());
        Some(Plain::Bound { header, portal_len, names_len, describes, len: len + HEADER_LEN })
    }

    /// Sends what [`Conversation::recognise`] has recognised; false if it is not that plain for this backend.
    #[inline]
    pub(super) fn send_plain(&mut self, plain: Plain, flow: &mut Flow, backend: &mut Backend) -> bool {
        if self.skipping != Skipping::No {
            return false;
        }
        match plain {
            Plain::Query { len } => {
                backend.unnamed = None;
                self.names.clear_unnamed();
                self.ledger.owe(Owed::Query);
                flow.pass(len);
            }
            Plain::Bound { header, portal_len, names_len, describes, len } => {
                let Some(statement) = self.last_sent.statement() else { return false };
                if !backend.prepared.touch(statement.id) {
                    return false;
                }
                self.ledger.owe(Owed::Bind(Some(statement.id)));
                rename_bind(header, (portal_len, names_len), &statement.name, flow);
                if describes {
                    self.ledger.owe(Owed::Describe(None));
                }
                self.ledger.owe(Owed::Execute);
                self.ledger.owe(Owed::Sync);
                flow.pass(len - HEADER_LEN - names_len);
            }
        }
        self.notes.sent = self.notes.sent.max(Need::Read);
        self.front = Whose::Unknown;
        self.exchange_ends();
        true
    }
}
