//! Exchanges so plain that one look tells all about them: a SELECT that only reads, in a session about which nothing is
//! special. Most are. They are sorted and sent without the questions that others are asked; what is owed for them is
//! the same, and so is everything behind it.

use super::conversation::{Conversation, CopyIn, Skipping, Whose};
use super::names::UnnamedKind;
use super::renaming::rename_bind;
use crate::backend::Backend;
use crate::exchange::facts::Need;
use crate::exchange::ledger::Parsed;
use crate::exchange::{Facts, Owed};
use crate::io::Flow;
use crate::pool::Pool;
use crate::wire::Header;
use crate::wire::frame::HEADER_LEN;
use crate::wire::frontend::{self as tag, BindNames, Parse};

/// A plain exchange at the front of what is sent next. All of it is there.
#[derive(Debug, Clone, Copy)]
pub(super) enum Plain {
    /// A simple query.
    Query {
        /// Of its frame.
        len: usize,
    },
    /// Parse of the unnamed statement, Bind of it, Describe of its portal or not, Execute and Sync.
    Parsed {
        /// Of the Parse.
        parse_len: usize,
        describes: bool,
        /// Of all frames.
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

impl Plain {
    /// Of all frames.
    pub(super) const fn len(&self) -> usize {
        match self {
            Self::Query { len } | Self::Parsed { len, .. } | Self::Bound { len, .. } => *len,
        }
    }
}

/// What the exchange at the front looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ahead {
    /// All of it is there, and plain.
    Plain,
    /// It has to be looked at closely.
    Anything,
}

impl Conversation {
    /// A first look at what is sent next.
    #[inline]
    pub(super) fn look_ahead(&mut self, bytes: &[u8], pool: &Pool) -> Ahead {
        self.forget_sorted();
        self.plain = self.recognise(bytes, pool);
        if self.plain.is_some() { Ahead::Plain } else { Ahead::Anything }
    }

    /// The exchange at the front of `bytes`, if it is plain. Notes what is sent.
    #[inline]
    fn recognise(&mut self, bytes: &[u8], pool: &Pool) -> Option<Plain> {
        let nothing_special = self.is_outside()
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
            Some(&tag::PARSE) if nothing_special => self.plain_parse(bytes),
            _ => None,
        }
    }

    fn plain_query(&mut self, bytes: &[u8]) -> Option<Plain> {
        let len = Header::read_frontend(bytes).ok()??.frame_len;
        let (end, text) = bytes.get(HEADER_LEN..len)?.split_last()?;
        (*end == 0 && self.keep_plain(text)).then_some(Plain::Query { len })
    }

    fn plain_parse(&mut self, bytes: &[u8]) -> Option<Plain> {
        let parse_len = Header::read_frontend(bytes).ok()??.frame_len;
        let bind = Header::read_frontend(bytes.get(parse_len..)?).ok()??;
        let bound_len = parse_len + bind.frame_len;
        let names = BindNames::read(bytes.get(parse_len + HEADER_LEN..bound_len)?)?;
        if bind.tag != tag::BIND || !names.statement.is_empty() {
            return None;
        }
        let (describes, len) = plain_rest(bytes, bound_len)?;
        let parse = Parse::read(bytes.get(HEADER_LEN..parse_len)?).ok()?;
        (parse.name.is_empty() && self.keep_plain(parse.text)).then_some(Plain::Parsed {
            parse_len,
            describes,
            len,
        })
    }

    fn plain_bind(&mut self, bytes: &[u8]) -> Option<Plain> {
        let header = Header::read_frontend(bytes).ok()??;
        let names = BindNames::read(bytes.get(HEADER_LEN..header.frame_len)?)?;
        let statement = self.names.get(names.statement).filter(|statement| statement.is_plain)?;
        let (describes, len) = plain_rest(bytes, header.frame_len)?;
        self.last_sent.set_statement(statement);
        let (portal_len, names_len) = (names.portal.len(), names.len());
        Some(Plain::Bound { header, portal_len, names_len, describes, len })
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
            Plain::Parsed { parse_len, describes, len } => {
                let parse = flow.unseen().get(..parse_len).unwrap_or_default();
                let parsed = if self.ledger.is_empty() {
                    self.names.set_unnamed_plain(parse);
                    Parsed::UnnamedAlone
                } else {
                    self.names.set_unnamed(parse, Facts::PLAIN_SELECT);
                    Parsed::Unnamed
                };
                backend.unnamed = Some(self.names.owner());
                self.ledger.owe(Owed::Parse(parsed));
                self.ledger.owe(Owed::Bind(None));
                self.owe_rows(describes);
                flow.pass(len);
            }
            Plain::Bound { header, portal_len, names_len, describes, len } => {
                let Some(statement) = self.last_sent.statement() else { return false };
                if !backend.prepared.touch(statement.id) {
                    return false;
                }
                self.ledger.owe(Owed::Bind(Some(statement.id)));
                rename_bind(header, (portal_len, names_len), &statement.name, flow);
                self.owe_rows(describes);
                flow.pass(len - HEADER_LEN - names_len);
            }
        }
        self.notes.sent = self.notes.sent.max(Need::Read);
        self.front = Whose::Unknown;
        self.exchange_ends();
        true
    }

    fn owe_rows(&mut self, describes: bool) {
        if describes {
            self.ledger.owe(Owed::Describe(None));
        }
        self.ledger.owe(Owed::Execute);
        self.ledger.owe(Owed::Sync);
    }
}

/// Whether nothing but Describe of a portal or not, Execute and Sync follows the first `len` bytes, and how long all of it
/// is.
fn plain_rest(bytes: &[u8], mut len: usize) -> Option<(bool, usize)> {
    let mut describes = false;
    loop {
        let rest = bytes.get(len..)?;
        let next = Header::read_frontend(rest).ok()??;
        len += next.frame_len;
        match next.tag {
            tag::DESCRIBE if !describes && rest.get(HEADER_LEN) == Some(&b'P') => describes = true,
            tag::EXECUTE => break,
            _ => return None,
        }
    }
    let sync = Header::read_frontend(bytes.get(len..)?).ok()??;
    (sync.tag == tag::SYNC && sync.frame_len == HEADER_LEN).then_some((describes, len + HEADER_LEN))
}
