//! What does nothing but roll back, as far as a savepoint or all of it. It writes nothing that anybody waits for, so it
//! passes a breaker that is open; and when the backend is lost meanwhile it is done, since what is open on a connection
//! that is closed never commits. An application that gets an error for it gives its connection up. To a transaction that
//! has failed, COMMIT does the same.

use tokio::time::Instant;

use super::Session;
use super::conversation::Conversation;
use super::front::Stage;
use super::relay::{Admitted, Told};
use super::sorting::Sorted;
use crate::exchange::facts::Need;
use crate::exchange::refusal::Outcome;
use crate::exchange::{Facts, Owed, Refusal};
use crate::pool::Lease;
use crate::sql::StatementKind;
use crate::wire::frame::{HEADER_LEN, split_cstr};
use crate::wire::frontend::{self as tag, BindNames, Parse, query_text};
use crate::wire::{Header, TransactionStatus};

/// Whether it is a ROLLBACK behind which there is no transaction.
fn ends(facts: &Facts) -> bool {
    facts.statements == 1 && facts.first == StatementKind::Rollback && !facts.chains
}

/// What an exchange has parsed and bound so far.
#[derive(Debug, Default)]
struct Seen<'a> {
    parsed: Option<&'a [u8]>,
    portal: Option<&'a [u8]>,
}

impl Conversation {
    /// Whether it is a single statement that rolls back, as far as a savepoint or everything.
    fn rolls_back(&self, facts: &Facts) -> bool {
        let is_one = match facts.first {
            StatementKind::Rollback | StatementKind::RollbackTo => true,
            _ => self.has_failed() && facts.ends_failed_transaction(),
        };
        is_one && facts.statements == 1
    }

    /// Whether the transaction has failed, and nothing is under way that might end it.
    pub(super) fn has_failed(&self) -> bool {
        self.status == TransactionStatus::Failed && self.ledger.is_empty()
    }

    /// Whether the exchange at the front of `bytes` is there as a whole, and does nothing but roll back.
    pub(super) fn only_rolls_back(&self, bytes: &[u8]) -> bool {
        let mut seen = Seen::default();
        let mut rest = bytes;
        loop {
            let Ok(Some(header)) = Header::read_frontend(rest) else { return false };
            let (Some(body), Some(next)) =
                (rest.get(HEADER_LEN..header.frame_len), rest.get(header.frame_len..))
            else {
                return false;
            };
            let passes = match header.tag {
                tag::QUERY => {
                    return query_text(body).is_ok_and(|text| self.rolls_back(&Facts::of(text)));
                }
                tag::SYNC => return seen.parsed.is_some() || seen.portal.is_some(),
                tag::PARSE => Parse::read(body).is_ok_and(|parse| {
                    seen.parsed = Some(parse.name);
                    self.rolls_back(&Facts::of(parse.text))
                }),
                tag::BIND => BindNames::read(body).is_some_and(|names| {
                    seen.portal = Some(names.portal);
                    seen.parsed == Some(names.statement) || self.is_rollback(names.statement)
                }),
                // One that was bound before may do anything.
                tag::EXECUTE => split_cstr(body).is_some_and(|(portal, _)| seen.portal == Some(portal)),
                tag::DESCRIBE | tag::CLOSE | tag::FLUSH => true,
                _ => false,
            };
            if !passes {
                return false;
            }
            rest = next;
        }
    }

    /// Whether a statement that was prepared before rolls back.
    fn is_rollback(&self, statement: &[u8]) -> bool {
        if statement.is_empty() {
            self.names.unnamed_facts().is_some_and(|facts| self.rolls_back(facts))
        } else {
            self.names.get(statement).is_some_and(|statement| self.rolls_back(&statement.facts))
        }
    }

    /// Whether the exchange that was sent last, and is not answered in full, executes a ROLLBACK and nothing else.
    fn is_ended_by_rollback(&self) -> bool {
        let mut owed = self.ledger.iter().filter(|owed| matches!(owed, Owed::Query | Owed::Execute));
        let is_single = match (owed.next(), owed.next()) {
            (Some(Owed::Query), None) => true,
            (Some(_), None) => !self.tokens.is_completed(),
            (None, _) => self.tokens.is_completed(),
            (Some(_), Some(_)) => false,
        };
        let does_more = self.notes.sent != Need::Neutral || self.notes.commits || self.notes.begins;
        is_single && !does_more && self.last_whole_text().is_some_and(|text| ends(&Facts::of(text)))
    }
}

impl Session {
    /// The exchange at the front may not be sent, unless all that it does is to roll back.
    #[cold]
    pub(super) fn refuse_unless_it_rolls_back(
        &mut self,
        lease: &Lease,
        sorted: Sorted,
        refusal: Refusal,
        began: Instant,
        now: Instant,
    ) -> Admitted {
        if !self.talk.only_rolls_back(self.to_db.unseen()) {
            return Admitted::No(refusal);
        }
        self.begin_rollback(lease, sorted, began, now);
        self.talk.admitted(sorted.looked_at);
        Admitted::Yes
    }

    /// What the server would have answered to a ROLLBACK, if that and nothing else is owed by a backend that is gone.
    pub(super) fn rolled_back_anyway(&self, refusal: &Refusal, told: Told) -> Option<Vec<u8>> {
        let is_known =
            matches!(refusal, Refusal::TimedOut(_) | Refusal::BackendLost { outcome: Outcome::RolledBack });
        // With more behind it, that is what was looked at last.
        let is_last = self.to_db.unseen().is_empty() && self.is_alone_in_flight();
        if told == Told::No && is_known && is_last && self.talk.is_ended_by_rollback() {
            self.answer_of(Some(b"ROLLBACK"))
        } else {
            None
        }
    }

    /// A transaction is over whose backend is gone, and the application hears just that.
    pub(super) fn say_over(&mut self, answer: &[u8]) {
        self.to_app.insert(|out| out.extend_from_slice(answer));
        self.talk.forget_backend();
        self.talk.status = TransactionStatus::Idle;
        self.stage = Stage::Ready;
    }
}
