//! A lone BEGIN is answered by us and sent together with the first statement: which lane the transaction needs, and
//! on which server, is known only then, and no backend waits for an application that thinks.

use super::Session;
use super::front::Stage;
use super::registry::Phase;
use super::relay::Hold;
use crate::exchange::facts::Need;
use crate::exchange::{Facts, Owed};
use crate::pool::Lease;
use crate::sql::StatementKind;
use crate::wire::frame::HEADER_LEN;
use crate::wire::frontend::query_text;
use crate::wire::{Header, TransactionStatus, backend as reply};

/// A text that is longer is not looked at.
const TEXT_MAX: usize = 128;

/// Looks at the first letters only.
fn may_begin(text: &[u8]) -> bool {
    match text {
        [b'B' | b'b', ..] | [b'S' | b's', b'T' | b't', ..] => true,
        [first, ..] => first.is_ascii_whitespace() || *first == b',',
        [] => false,
    }
}

/// The tag with which PostgreSQL answers a BEGIN that cannot fail, on any server and whatever follows. READ WRITE
/// and SERIALIZABLE are refused by standbys, so they are not among them.
fn answer_to(text: &[u8]) -> Option<&'static [u8]> {
    let text = text.strip_suffix(b";").unwrap_or(text);
    let mut words = text.split(|byte| byte.is_ascii_whitespace() || *byte == b',').filter(|w| !w.is_empty());
    let is =
        |word: Option<&[u8]>, name: &str| word.is_some_and(|word| word.eq_ignore_ascii_case(name.as_bytes()));
    let first = words.next();
    let mut next = words.next();
    let answer: &[u8] = if is(first, "BEGIN") {
        if is(next, "WORK") || is(next, "TRANSACTION") {
            next = words.next();
        }
        b"BEGIN"
    } else if is(first, "START") && is(next, "TRANSACTION") {
        next = words.next();
        b"START TRANSACTION"
    } else {
        return None;
    };
    while next.is_some() {
        let second = words.next();
        let known = if is(next, "READ") {
            is(second, "ONLY")
        } else if is(next, "ISOLATION") && is(second, "LEVEL") {
            let (first, second) = (words.next(), words.next());
            is(first, "READ") && is(second, "COMMITTED") || is(first, "REPEATABLE") && is(second, "READ")
        } else {
            false
        };
        if !known {
            return None;
        }
        next = words.next();
    }
    Some(answer)
}

impl Session {
    /// Answers a simple query that begins a transaction, or ends one that has only begun; whether it was one.
    pub(super) fn answer_transaction(&mut self, header: Header) -> bool {
        if header.frame_len > HEADER_LEN + TEXT_MAX || self.talk.keeps() != Hold::Transaction {
            return false;
        }
        let Some(frame) = self.to_db.unseen().get(..header.frame_len) else { return false };
        if self.talk.status == TransactionStatus::Idle
            && !may_begin(frame.get(HEADER_LEN..).unwrap_or_default())
        {
            return false;
        }
        let Ok(text) = query_text(frame.get(HEADER_LEN..).unwrap_or_default()) else { return false };
        match self.talk.status {
            TransactionStatus::Idle => match answer_to(text) {
                Some(answer) => {
                    let facts = Facts::of(text);
                    self.talk.begin.extend_from_slice(frame);
                    self.begun(&facts, answer);
                }
                None => return false,
            },
            TransactionStatus::InTransaction if !self.talk.begin.is_empty() => {
                let facts = Facts::of(text);
                let ends = facts.statements == 1 && !facts.chains && facts.lane == Need::Neutral;
                let answer: &[u8] = match facts.first {
                    StatementKind::Commit if ends => b"COMMIT",
                    StatementKind::Rollback if ends => b"ROLLBACK",
                    _ => return false,
                };
                self.ended(answer);
            }
            TransactionStatus::InTransaction | TransactionStatus::Failed => return false,
        }
        self.talk.drop_request(header, &mut self.to_db);
        true
    }

    fn begun(&mut self, facts: &Facts, answer: &[u8]) {
        self.watch.begin_transaction();
        self.talk.begin_transaction(facts, &self.pool);
        self.enter(Phase::IdleInTransaction);
        self.say_done(answer);
    }

    fn ended(&mut self, answer: &[u8]) {
        self.talk.begin.clear();
        self.talk.status = TransactionStatus::Idle;
        if answer == b"COMMIT" {
            self.talk.terms.commit();
        } else {
            self.talk.terms.roll_back();
        }
        self.enter(Phase::Idle);
        self.say_done(answer);
    }

    fn say_done(&mut self, answer: &[u8]) {
        self.to_app.insert(|out| reply::put_command_complete(out, answer));
        self.say_ready();
    }

    /// The transaction has a backend now: what began it goes first.
    #[inline]
    pub(super) fn send_begin(&mut self, lease: &mut Lease) {
        if self.talk.begin.is_empty() {
            return;
        }
        let begin = std::mem::take(&mut self.talk.begin);
        self.to_db.insert(|out| out.extend_from_slice(&begin));
        self.talk.ledger.owe(Owed::InjectedBegin);
        lease.unnamed = None;
        // The allocation is for the next one.
        self.talk.begin = begin;
        self.talk.begin.clear();
    }

    /// A transaction that has only begun fails, as any other at its first error.
    pub(super) fn fail_begun(&mut self) {
        if self.talk.begin.is_empty() {
            return;
        }
        self.talk.begin.clear();
        self.talk.status = TransactionStatus::Failed;
        debug_assert!(matches!(self.stage, Stage::Ready), "only a session without a backend has begun");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_begin_that_cannot_fail_is_answered() {
        // Behind a BEGIN that PostgreSQL then refuses, the first statement would run and commit by itself.
        for text in [
            "BEGIN",
            "begin;",
            "BEGIN WORK",
            "Begin Transaction",
            "BEGIN ISOLATION LEVEL READ COMMITTED",
            "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;",
            "BEGIN READ ONLY",
        ] {
            assert_eq!(answer_to(text.as_bytes()), Some(&b"BEGIN"[..]), "{text}");
        }
        assert_eq!(answer_to(b"START TRANSACTION"), Some(&b"START TRANSACTION"[..]));
        for text in [
            "",
            "BEGIN; SELECT 1",
            "BEGIN READ WRITE",
            "BEGIN ISOLATION LEVEL SERIALIZABLE",
            "BEGIN ISOLATION LEVEL",
            "BEGIN DEFERRABLE",
            "BEGIN READ",
            "BEGIN /* x */",
            "START",
            "COMMIT",
            "BEGIN WORK TRANSACTION",
        ] {
            assert_eq!(answer_to(text.as_bytes()), None, "{text}");
        }
    }
}
