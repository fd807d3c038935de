//! The backend is gone while a session held it: what the application is told.

use std::sync::Arc;

use tokio::time::Instant;

use super::conversation::{Gate, LastWords, Replicated, Skipping};
use super::front::{Orphan, Stage};
use super::local_frames::failed_transaction;
use super::relay::{Fate, Hold, Told};
use super::{Flowing, Session, recover};
use crate::exchange::Refusal;
use crate::exchange::refusal::Outcome;
use crate::guard::LeftAlone;
use crate::pool::Lease;
use crate::telemetry::lanes;
use crate::wire::{Header, TransactionStatus, frontend};

impl Session {
    /// Ends what is owed with an error and lets the session go on, if its state allows that.
    pub(super) async fn backend_gone(&mut self, lease: Lease, told: Told) -> Flowing {
        // Unknown position: the lease resets the connection.
        drop(lease);
        let outcome = match self.talk.last_words {
            LastWords::BeforeTheCommit => Outcome::RolledBack,
            LastWords::LeaveItOpen => self.talk.outcome(),
        };
        match (self.talk.replication, told) {
            (Replicated::No, _) => self.without_backend(Refusal::CommittedUnreplicated, told).await,
            (Replicated::AsConfigured, Told::No) if outcome == Outcome::Unknown => self.settle_broken().await,
            (Replicated::AsConfigured, _) => {
                self.without_backend(Refusal::BackendLost { outcome }, told).await
            }
        }
    }

    /// What ran has taken too long.
    pub(super) async fn end_overdue(&mut self, lease: Lease, fate: Fate, refusal: Refusal) -> Flowing {
        let plan = self.plan();
        match fate {
            Fate::Left if plan.is_single() => {
                let left = LeftAlone::new(Arc::clone(&self.pool));
                tokio::spawn(async move {
                    recover::see_off(lease, plan).await;
                    drop(left);
                });
            }
            // What was sent behind it must not run.
            Fate::Left | Fate::GivenUp => lease.give_up(),
        }
        match (fate, refusal) {
            (Fate::GivenUp, Refusal::CommitUnresolved { cause, .. }) => self.settle_overdue(cause).await,
            (_, refusal) => self.without_backend(refusal, Told::No).await,
        }
    }

    /// A transaction has taken too long while nothing ran in it: its next statement fails.
    pub(super) async fn end_transaction(&mut self, lease: Lease, refusal: Refusal) -> Flowing {
        if self.talk.keeps() == Hold::Session {
            self.leave(lease);
            self.end_with(&refusal).await;
            return Flowing::Ended;
        }
        self.leave(lease);
        self.talk.forget_backend();
        self.talk.status = TransactionStatus::Failed;
        self.untold = Some(refusal);
        self.stage = Stage::Orphaned(Orphan::Untold);
        Flowing::On
    }

    /// The next exchange of a transaction may not be sent: the transaction is over.
    pub(super) fn refuse_in_transaction(&mut self, lease: Lease, refusal: &Refusal) -> Flowing {
        self.talk.look_ahead(self.to_db.unseen(), &self.pool);
        let commits = self.talk.sort(self.to_db.unseen(), &self.pool).commits();
        let rolls_back = self.talk.only_rolls_back(self.to_db.unseen());
        let had_failed = self.talk.has_failed();
        self.leave(lease);
        self.talk.forget_backend();
        if had_failed {
            // Of which the application was told: the server would not have done the exchange either.
            self.stage = Stage::Orphaned(Orphan::Told);
            return Flowing::On;
        }
        // A COMMIT that fails ends its transaction, too.
        self.talk.status = if commits { TransactionStatus::Idle } else { TransactionStatus::Failed };
        if rolls_back {
            // That is done by leaving.
            self.untold = Some(refusal.clone());
            self.stage = Stage::Orphaned(Orphan::Untold);
        } else {
            self.refuse(refusal);
        }
        Flowing::On
    }

    /// The next exchange of a transaction may not be sent, on a backend that holds more of the session than that, such as
    /// temporary tables: it stays. What is sent instead makes the transaction fail, and waits for nothing.
    pub(super) fn refuse_in_kept_transaction(&mut self, lease: &Lease, refusal: &Refusal) {
        let Ok(Some(header)) = Header::read_frontend(self.to_db.unseen()) else { return };
        self.talk.look_ahead(self.to_db.unseen(), &self.pool);
        let sorted = self.talk.sort(self.to_db.unseen(), &self.pool);
        let now = Instant::now();
        self.begin_rollback(lease, sorted, now, now);
        // In a Sync there is nothing to be refused.
        if header.tag == frontend::SYNC || self.talk.only_rolls_back(self.to_db.unseen()) {
            self.talk.admitted(sorted.looked_at);
            return;
        }
        let error = if self.talk.status == TransactionStatus::Failed {
            // In the server's words, which would not stop at that if the text goes on behind a ROLLBACK.
            failed_transaction()
        } else {
            self.count(refusal);
            let mut error = Vec::new();
            refusal.put(&self.pool.upstream.name, &mut error);
            error.into()
        };
        self.talk.between_exchanges = false;
        self.talk.looked_at = sorted.looked_at.saturating_sub(header.frame_len);
        self.talk.doom(header, error, &mut self.to_db);
    }

    /// The next exchange may not be sent, outside of a transaction and on a backend that stays.
    pub(super) fn refuse_next(&mut self, refusal: &Refusal) {
        self.count(refusal);
        self.say_refused(refusal);
        // It is not sent, nor anything in its place.
        self.talk.plain = None;
        let Ok(Some(header)) = Header::read_frontend(self.to_db.unseen()) else { return };
        if matches!(header.tag, frontend::QUERY | frontend::FUNCTION_CALL) {
            self.say_ready();
            self.talk.drop_request(header, &mut self.to_db);
        } else {
            // Its Sync is ours to answer: the server may be stuck.
            self.talk.skipping = Skipping::UntilSync;
            self.talk.local_since_sync = true;
            self.talk.gate = Gate::Open;
        }
    }

    /// Ends what is owed and goes on without the backend.
    pub(super) async fn without_backend(&mut self, refusal: Refusal, told: Told) -> Flowing {
        self.to_app.drop_unseen();
        if self.talk.answer_is_torn() {
            // The rest of a message can never come; only the end of the connection is understood now.
            self.app.socket().reset_on_close();
            return Flowing::Ended;
        }
        if self.talk.keeps() == Hold::Session || (refusal.is_durable() && self.talk.notes.has_settings()) {
            // What the session had in this backend, or has set there, cannot be brought back.
            match told {
                Told::Yes => self.last_words().await,
                Told::No => self.end_with(&refusal).await,
            }
            return Flowing::Ended;
        }
        self.to_db.drop_passed();
        match self.rolled_back_anyway(&refusal, told) {
            Some(answer) => {
                lanes::ended(self.watch.lane(), Outcome::RolledBack.word());
                self.say_over(&answer);
            }
            None => self.settle_with(&refusal, told),
        }
        Flowing::On
    }

    /// Answers everything that is owed.
    fn settle_with(&mut self, refusal: &Refusal, told: Told) {
        let in_transaction = self.talk.status != TransactionStatus::Idle && !self.talk.notes.ends_transaction;
        self.talk.status = if in_transaction { TransactionStatus::Failed } else { TransactionStatus::Idle };
        let owed_sync = self.talk.owes_sync();
        self.talk.undo_names();
        let mut told = told;
        let mut pending = owed_sync;
        let mut ends = 0;
        let mut owed_any = false;
        while let Some(owed) = self.talk.ledger.settle() {
            owed_any = true;
            if owed.ends_with_ready() {
                if told == Told::No {
                    self.say_refused(refusal);
                }
                self.say_ready();
                told = Told::No;
                ends += 1;
            }
        }
        if !owed_any {
            pending = owed_sync;
        }
        if pending && told == Told::No {
            self.say_refused(refusal);
        }
        self.count(refusal);
        self.talk.forget_backend();
        let knows = ends > 0 || pending || told == Told::Yes;
        self.stage = match (in_transaction, pending, knows) {
            (_, true, _) => Stage::Refusing,
            (true, false, true) => Stage::Orphaned(Orphan::Told),
            (true, false, false) => Stage::Orphaned(Orphan::Untold),
            (false, false, _) => Stage::Ready,
        };
    }
}
