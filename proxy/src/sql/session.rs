//! Statements about the transaction and the session.

use super::analysis::StatementKind;
use super::analyzer::Analyzer;
use super::effects::{Effect, PinReason};
use super::lane::{Placement, Strength};
use super::token::TokenKind;
use super::transaction::{Chain, End};

impl Analyzer<'_> {
    pub(super) fn transaction_statement(&mut self, word: &[u8]) -> Option<StatementKind> {
        Some(match word {
            b"begin" | b"start" => {
                let options = self.transaction_options();
                self.transaction.begin(options);
                self.neutral(StatementKind::Begin)
            }
            b"commit" | b"end" => self.commit(),
            b"rollback" | b"abort" => self.rollback(),
            b"savepoint" => self.neutral(StatementKind::Savepoint),
            b"release" => self.neutral(StatementKind::Release),
            b"prepare" => self.prepare(),
            _ => return None,
        })
    }

    fn commit(&mut self) -> StatementKind {
        if self.accept(b"prepared") {
            return self.write(StatementKind::CommitPrepared);
        }
        let chain = self.chain();
        self.transaction.end(End::Commit, chain);
        self.neutral(StatementKind::Commit)
    }

    fn rollback(&mut self) -> StatementKind {
        if self.accept(b"prepared") {
            return self.write(StatementKind::RollbackPrepared);
        }
        let chain = self.chain();
        if self.at(b"to") {
            return self.neutral(StatementKind::RollbackTo);
        }
        self.transaction.end(End::Rollback, chain);
        self.neutral(StatementKind::Rollback)
    }

    /// `[WORK | TRANSACTION] [AND [NO] CHAIN]`
    fn chain(&mut self) -> Chain {
        let _ = self.accept(b"work") || self.accept(b"transaction");
        if self.accept(b"and") && !self.accept(b"no") && self.accept(b"chain") {
            Chain::Yes
        } else {
            Chain::No
        }
    }

    /// PREPARE runs nothing; what it prepares is run by EXECUTE.
    fn prepare(&mut self) -> StatementKind {
        let transaction = self.at(b"transaction");
        if !self.at_end() {
            self.bump();
        }
        if transaction && self.current.kind.is_string() {
            self.transaction.end(End::Prepare, Chain::No);
            return self.write(StatementKind::PrepareTransaction);
        }
        self.effect(Effect::Pin(PinReason::Prepare));
        while !self.at_end() && !self.accept(b"as") {
            self.bump();
        }
        let mark = self.mark();
        if self.query(0).is_none() {
            self.rest();
        }
        self.rewind(mark);
        StatementKind::Prepare
    }

    pub(super) fn session_statement(&mut self, word: &[u8]) -> Option<StatementKind> {
        Some(match word {
            b"set" => self.set(),
            b"reset" => self.reset(),
            b"show" => self.show(),
            b"fetch" | b"move" => self.neutral(StatementKind::Fetch),
            b"close" => {
                self.unpin_if(b"all", PinReason::HoldCursor);
                self.neutral(StatementKind::Close)
            }
            b"deallocate" => self.deallocate(),
            b"discard" => self.discard(),
            b"listen" => self.notification(StatementKind::Listen),
            b"unlisten" => self.notification(StatementKind::Unlisten),
            b"notify" => self.notification(StatementKind::Notify),
            b"load" => {
                self.effect(Effect::Pin(PinReason::Load));
                self.neutral(StatementKind::Load)
            }
            _ => return None,
        })
    }

    fn unpin_if(&mut self, word: &[u8], reason: PinReason) {
        if self.at(word) {
            self.effect(Effect::Unpin(reason));
        }
    }

    fn notification(&mut self, kind: StatementKind) -> StatementKind {
        self.lane.raise(Strength::Read);
        self.needs(Placement::Primary);
        match kind {
            StatementKind::Listen => self.effect(Effect::Pin(PinReason::Listen)),
            StatementKind::Unlisten if self.text(self.current) == b"*" => {
                self.effect(Effect::Unpin(PinReason::Listen));
            }
            _ => {}
        }
        self.neutral(kind)
    }

    /// `DEALLOCATE [PREPARE] { name | ALL }`
    fn deallocate(&mut self) -> StatementKind {
        let first = self.current;
        let mut target = first;
        if self.accept(b"prepare") && !self.at_end() {
            target = self.current;
        }
        if target.kind == TokenKind::Word && self.text(target).eq_ignore_ascii_case(b"all") {
            self.effect(Effect::DeallocateAll);
            self.effect(Effect::Unpin(PinReason::Prepare));
        } else {
            let name = self.name(target);
            self.effect(Effect::Deallocate { name });
        }
        self.neutral(StatementKind::Deallocate)
    }

    fn discard(&mut self) -> StatementKind {
        if self.at(b"all") {
            self.effect(Effect::DiscardAll);
        } else {
            self.effect(Effect::DiscardOther);
            self.unpin_if(b"temp", PinReason::TempTable);
            self.unpin_if(b"temporary", PinReason::TempTable);
        }
        self.neutral(StatementKind::Discard)
    }
}
