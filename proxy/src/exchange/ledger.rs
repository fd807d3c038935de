//! What is owed to the application: one entry per message that it sent and that gets an answer.
//!
//! Answers come in the order of the messages, so the front of the ledger tells what the server's next
//! message belongs to. Entries that we answer ourselves wait in line like the others.

use std::collections::VecDeque;
use std::sync::Arc;

use super::facts::Commands;
use crate::backend::{Statement, StatementId};

/// One owed answer.
#[derive(Debug)]
pub enum Owed {
    /// A simple query: everything up to `ReadyForQuery`.
    Query,
    /// A fast-path call: result and `ReadyForQuery`.
    FunctionCall,
    /// `ReadyForQuery` of a Sync.
    Sync,
    /// `ParseComplete` of a statement of the application.
    Parse(Parsed),
    /// `ParseComplete` of a statement that the backend has already: ours to give.
    ParseKnown(Parsed),
    /// `ParseComplete` of a Parse that we put in: not for the application.
    InjectedParse(Option<StatementId>),
    /// `BindComplete`, and the statement that is bound.
    Bind(Option<StatementId>),
    /// What a Describe of a statement brings.
    Describe(Option<StatementId>),
    /// What a Describe of a portal brings.
    DescribePortal,
    /// Rows and the end of an Execute.
    Execute,
    /// `CloseComplete`.
    Close,
    /// `CloseComplete` of the unnamed statement.
    CloseUnnamed,
    /// What a Describe of ours brings, which asks whether the plan of a statement still fits its tables.
    Check(StatementId),
    /// `ReadyForQuery` of the Sync behind it.
    CheckSync,
    /// `CloseComplete` of a Close that we put in: not for the application. `None` is the unnamed statement.
    InjectedClose(Option<StatementId>),
    /// `CloseComplete` of a name that only we know: ours to give. If the server ignores the pipeline up to
    /// here, the name lives on.
    CloseKnown(Box<[u8]>, Arc<Statement>),
    /// A Parse that the server refuses, because the application's name (given here) is taken.
    ParseTaken(Box<[u8]>),
    /// An answer that is all ours.
    Local(Box<[u8]>),
    /// As `Local`, with a `ReadyForQuery` behind it.
    LocalQuery(Box<[u8]>),
    /// An Execute of statements that we run when their turn has come.
    Commands(Commands),
    /// A simple query of such statements.
    CommandsQuery(Commands),
    /// The server's error for something that we sent to make it fail; the application gets this one instead.
    Refused(Box<[u8]>),
    /// `CommandComplete` and `ReadyForQuery` of a BEGIN that was answered already.
    InjectedBegin,
    /// The answer to our question for a [`Token`](crate::outcome::Token), within an exchange of the application.
    Token,
    /// The same, in front of a simple query.
    TokenFirst,
    /// The same, in an exchange of its own. First `ParseComplete`, where the backend lacked the statement.
    TokenParse(StatementId),
    /// Then the answer.
    TokenApart,
    /// Then `ReadyForQuery`.
    TokenSync,
    /// No answer: marks where the application ended a COPY.
    CopyEnd,
}

/// A Parse of the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// The unnamed statement.
    Unnamed,
    /// The same, when nothing else was owed: the server does not ignore it, and nothing is kept of the one before.
    UnnamedAlone,
    /// A statement that stays under the application's own name, on a backend that is pinned for it.
    Untracked,
    /// A statement with a name, and what backends call it.
    Named(Box<[u8]>, StatementId),
    /// The same, where the backend has it already: the server is asked for its opinion, by the unnamed statement.
    Again(Box<[u8]>, StatementId),
}

/// More owed answers than this, and nothing more is read from the application until some have come.
/// PostgreSQL sends when 8 KiB of answers (`PQ_SEND_BUFFER_SIZE`) are ready, long before.
const LIMIT: usize = 16 * 1024;

/// Capacity that an idle session may keep.
const KEPT_CAPACITY: usize = 32;

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Ledger {
    owed: VecDeque<Owed>,
    /// Entries that need nothing of the server, so that looking for them costs one comparison.
    ours: usize,
}

impl Owed {
    /// Whether the server sends nothing for it.
    #[inline]
    fn is_ours(&self) -> bool {
        matches!(
            self,
            Self::ParseKnown(_)
                | Self::CloseKnown(..)
                | Self::Local(_)
                | Self::LocalQuery(_)
                | Self::Commands(_)
                | Self::CommandsQuery(_)
                | Self::CopyEnd
        )
    }

    /// Whether it is about a token: nothing that the application waits for.
    #[inline]
    pub fn is_token(&self) -> bool {
        matches!(
            self,
            Self::Token | Self::TokenFirst | Self::TokenParse(_) | Self::TokenApart | Self::TokenSync
        )
    }

    /// Whether the server goes on here after an error in the extended protocol.
    #[inline]
    pub fn ends_skipping(&self) -> bool {
        matches!(self, Self::Sync | Self::TokenSync)
    }

    /// Whether a statement with a name is there, or is not, depending on whether the server gets to it.
    pub fn changes_statements(&self) -> bool {
        matches!(
            self,
            Self::Parse(Parsed::Named(..) | Parsed::Again(..) | Parsed::Untracked)
                | Self::ParseTaken(_)
                | Self::InjectedParse(Some(_))
                | Self::InjectedClose(Some(_))
                | Self::Close
                | Self::TokenParse(_)
        )
    }

    /// Whether its answer ends in `ReadyForQuery`, whoever gives it.
    pub fn ends_with_ready(&self) -> bool {
        matches!(
            self,
            Self::Query | Self::FunctionCall | Self::Sync | Self::LocalQuery(_) | Self::CommandsQuery(_)
        )
    }
}

impl Ledger {
    /// Notes an answer that is owed behind all others.
    #[inline]
    pub fn owe(&mut self, owed: Owed) {
        self.ours += usize::from(owed.is_ours());
        self.owed.push_back(owed);
    }

    /// What the next answer is for.
    #[inline]
    pub fn front(&self) -> Option<&Owed> {
        self.owed.front()
    }

    /// What the answer after `ahead` others is for.
    #[inline]
    pub fn get(&self, ahead: usize) -> Option<&Owed> {
        self.owed.get(ahead)
    }

    /// What was noted last.
    #[inline]
    pub fn back(&self) -> Option<&Owed> {
        self.owed.back()
    }

    /// The front answer was given.
    #[inline]
    pub fn settle(&mut self) -> Option<Owed> {
        let owed = self.owed.pop_front()?;
        self.begin_anew_if_empty();
        self.ours -= usize::from(owed.is_ours());
        Some(owed)
    }

    /// At the front: the same memory each time, not all of it in turns.
    #[inline]
    fn begin_anew_if_empty(&mut self) {
        if self.owed.is_empty() {
            self.owed.clear();
        }
    }

    /// The first `count` answers were given. None of them is ours.
    #[inline]
    pub fn settle_first(&mut self, count: usize) {
        debug_assert!(!self.owed.iter().take(count).any(Owed::is_ours), "ours is given in its turn");
        if count > 1 && count == self.owed.len() {
            self.owed.clear();
            return;
        }
        for _ in 0..count {
            self.owed.pop_front();
        }
        self.begin_anew_if_empty();
    }

    /// Whether there is anything for [`Ledger::settle_ours`], now or later.
    #[inline]
    pub fn has_ours(&self) -> bool {
        self.ours > 0
    }

    /// As [`Ledger::settle`], if the front is ours to answer.
    #[inline]
    pub fn settle_ours(&mut self) -> Option<Owed> {
        if self.ours > 0 && self.owed.front().is_some_and(Owed::is_ours) { self.settle() } else { None }
    }

    /// Whether the application waits for something.
    #[inline(never)]
    pub fn owes_the_application(&self) -> bool {
        !self.owed.iter().all(Owed::is_token)
    }

    /// What is owed, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Owed> {
        self.owed.iter()
    }

    /// The same from the back.
    pub fn backwards(&self) -> impl Iterator<Item = &Owed> {
        self.owed.iter().rev()
    }

    /// Whether nothing is owed.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.owed.is_empty()
    }

    /// Whether to stop taking messages.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.owed.len() >= LIMIT
    }

    /// How many `ReadyForQuery` of the server are owed.
    pub fn ready_owed(&self) -> usize {
        self.owed
            .iter()
            .filter(|owed| {
                matches!(
                    owed,
                    Owed::Query
                        | Owed::FunctionCall
                        | Owed::Sync
                        | Owed::CheckSync
                        | Owed::InjectedBegin
                        | Owed::TokenSync
                )
            })
            .count()
    }

    /// The server started to take COPY data for the message at the front: every Sync that it was sent before
    /// the end of that data is ignored ("COPY Operations" in the protocol's documentation).
    ///
    /// Returns whether the application has sent that end already.
    pub fn copy_in_started(&mut self) -> bool {
        let end = self.owed.iter().position(|owed| matches!(owed, Owed::CopyEnd)).unwrap_or(self.owed.len());
        let mut index = 0;
        self.owed.retain(|owed| {
            index += 1;
            index > end || !matches!(owed, Owed::Sync)
        });
        end < index
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.owed.clear();
        self.ours = 0;
    }

    /// Gives memory back that a quiet session does not need.
    pub fn shrink(&mut self) {
        if self.owed.is_empty() && self.owed.capacity() > KEPT_CAPACITY {
            self.owed = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sync_before_the_end_of_copy_data_is_not_answered() {
        // libpq sends Sync behind Execute before it knows that a COPY starts; counting it would make us wait
        // for a ReadyForQuery that never comes.
        let mut ledger = Ledger::default();
        for owed in [Owed::Execute, Owed::Sync, Owed::CopyEnd, Owed::Sync] {
            ledger.owe(owed);
        }

        assert!(ledger.copy_in_started());

        assert!(matches!(ledger.owed.make_contiguous(), [Owed::Execute, Owed::CopyEnd, Owed::Sync]));
        assert_eq!(ledger.ready_owed(), 1);
    }
}
