//! A COMMIT whose answer did not come: what became of it is found out, and told in PostgreSQL's own words where that is
//! possible.

use tokio::time::Instant;

use super::conversation::{Conversation, LastWords};
use super::relay::Hold;
use super::{Flowing, Session};
use crate::exchange::facts::Need;
use crate::exchange::refusal::{Known, Outcome};
use crate::exchange::{Cause, Owed, Refusal};
use crate::outcome::resolver::Case;
use crate::outcome::{Token, Verdict};
use crate::sql::Lane;
use crate::telemetry::lanes;
use crate::wire::{ErrorFields, TransactionStatus, backend as reply};

impl From<Token> for Known {
    fn from(token: Token) -> Self {
        Self { xid: token.xid, lsn: token.lsn, process_id: token.process_id }
    }
}

impl Conversation {
    /// What can be said of the statements that were not answered.
    pub(super) fn outcome(&self) -> Outcome {
        let notes = &self.notes;
        let autocommit = self.status == TransactionStatus::Idle || notes.ends_transaction;
        // It may write although its text does not say so: by a hint, by order, or because its like was seen to.
        let is_hidden_write = self.status == TransactionStatus::Idle
            && notes.sent == Need::Read
            && self.transaction.lane() == Some(Lane::Write);
        if notes.commits || is_hidden_write || (autocommit && notes.sent == Need::Write) {
            Outcome::Unknown
        } else {
            Outcome::RolledBack
        }
    }

    /// Whether the server's last words are no answer, because a commit is under way. They may tell what became of it: a
    /// process that is told to end (`ProcessInterrupts` in `src/backend/tcop/postgres.c`) looks for such orders before a
    /// commit begins, and not again before the commit is answered: by its `CommandComplete`, unless it is the Sync that commits.
    pub(super) fn are_no_answer(&mut self, last_words: &ErrorFields<'_>) -> bool {
        if self.keeps() == Hold::Session || self.outcome() != Outcome::Unknown {
            return false;
        }
        let is_answered = self.tokens.is_completed()
            || self.tokens.commits_by_words()
                && !self.ledger.iter().any(|owed| matches!(owed, Owed::Query | Owed::Execute));
        if last_words.routine == b"ProcessInterrupts" && self.tokens.is_single() && !is_answered {
            self.last_words = LastWords::BeforeTheCommit;
        }
        true
    }
}

impl Session {
    /// What identifies the transaction that is committing, as far as it is known.
    pub(super) fn known(&self) -> Option<Known> {
        self.talk.tokens.token.map(Known::from)
    }

    /// The backend is gone in the middle of a commit.
    pub(super) async fn settle_broken(&mut self) -> Flowing {
        let within = self.pool.upstream.limits().resolve_within;
        let until = within.map(|within| Instant::now() + within);
        self.settle_commit(Cause::Unknown, until).await
    }

    /// A commit took too long, and its connection is closed. Behind a breaker that is open there is nobody to ask, unless
    /// another server has taken over.
    pub(super) async fn settle_overdue(&mut self, cause: Cause) -> Flowing {
        let origin = &self.pool.upstream;
        let answers = self.routes.heir(origin).is_some_and(|heir| heir.guard.phase(Lane::Write).admits());
        let within = origin.limits().resolve_within.filter(|_| answers);
        let until = within.map(|within| Instant::now() + within);
        self.settle_commit(cause, until).await
    }

    async fn settle_commit(&mut self, cause: Cause, until: Option<Instant>) -> Flowing {
        let known = self.known();
        let verdict = match (self.talk.tokens.decisive().filter(|_| self.is_alone_in_flight()), until) {
            (Some(token), Some(until)) => self.find_out(token, until).await,
            (None, _) | (_, None) => Verdict::Unknown,
        };
        let refusal = match verdict {
            Verdict::Committed => match self.answer_of(self.talk.tokens.commits().then_some(b"COMMIT")) {
                Some(answer) => return self.succeed(&answer).await,
                None => Refusal::CommitUnresolved { cause, outcome: Outcome::Committed, known },
            },
            Verdict::Unreplicated => Refusal::CommittedUnreplicated,
            Verdict::RolledBack => Refusal::CommitRolledBack { known },
            Verdict::Unknown => Refusal::CommitUnresolved { cause, outcome: Outcome::Unknown, known },
        };
        self.without_backend(refusal, super::relay::Told::No).await
    }

    async fn find_out(&self, token: Token, until: Instant) -> Verdict {
        let begun = Instant::now();
        let case = Case { token, origin: self.pool.upstream.clone(), until };
        let verdict = self.routes.resolver.resolve(case, &self.routes).await;
        let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(
            upstream = %self.pool.upstream.name, xid = token.xid, lsn = %token.lsn, verdict = verdict.word(), took_ms,
            "a commit broke"
        );
        verdict
    }

    /// Whether a single exchange runs, so that the transaction of the token is the one that it commits.
    pub(super) fn is_alone_in_flight(&self) -> bool {
        self.talk.ledger.iter().filter(|owed| owed.ends_with_ready()).count() == 1
            && self.talk.ledger.iter().last().is_some_and(Owed::ends_with_ready)
    }

    /// What the server would have answered to what is owed, if that ends a transaction and nothing else, with this tag;
    /// `None` where only it knows.
    pub(super) fn answer_of(&self, end: Option<&[u8]>) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        for owed in self.talk.ledger.iter() {
            match (owed, end) {
                (Owed::Query, Some(tag)) => {
                    if !self.talk.tokens.is_completed() {
                        reply::put_command_complete(&mut out, tag);
                    }
                    reply::put_ready(&mut out, TransactionStatus::Idle);
                }
                (Owed::Sync, _) => reply::put_ready(&mut out, TransactionStatus::Idle),
                (Owed::Execute, Some(tag)) => reply::put_command_complete(&mut out, tag),
                (Owed::Parse(_) | Owed::ParseKnown(_), _) => {
                    out.extend_from_slice(&reply::PARSE_COMPLETE_FRAME);
                }
                (Owed::Bind(_), _) => out.extend_from_slice(&reply::BIND_COMPLETE_FRAME),
                (Owed::DescribePortal, Some(_)) => out.extend_from_slice(&reply::NO_DATA_FRAME),
                (Owed::Close | Owed::CloseKnown(..) | Owed::CloseUnnamed, _) => {
                    out.extend_from_slice(&reply::CLOSE_COMPLETE_FRAME);
                }
                (Owed::InjectedParse(_) | Owed::InjectedClose(_), _) => {}
                (owed, _) if owed.is_token() => {}
                _ => return None,
            }
        }
        Some(out)
    }

    /// The transaction is committed, and the application hears just that.
    async fn succeed(&mut self, answer: &[u8]) -> Flowing {
        lanes::ended(Lane::Write, Outcome::Committed.word());
        self.places.wrote(Instant::now());
        self.to_app.drop_unseen();
        if self.talk.answer_is_torn() {
            self.app.socket().reset_on_close();
            return Flowing::Ended;
        }
        self.to_db.drop_passed();
        let goes_on = self.talk.keeps() == Hold::Transaction && !self.talk.notes.has_settings();
        self.talk.terms.commit();
        self.say_over(answer);
        if !goes_on {
            // What the session had in this backend, or has set there, cannot be brought back.
            self.end_with(&Refusal::SessionLost).await;
            return Flowing::Ended;
        }
        Flowing::On
    }
}
