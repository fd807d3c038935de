//! The backend is gone while a session held it: what the application is told.

use super::front::{Orphan, Stage};
use super::relay::{Hold, Told};
use super::{Flowing, Session};
use crate::exchange::facts::Need;
use crate::exchange::refusal::Outcome;
use crate::exchange::{Owed, Refusal};
use crate::pool::Lease;
use crate::wire::TransactionStatus;

impl Session {
    /// Ends what is owed with an error and lets the session go on, if its state allows that.
    pub(super) async fn backend_gone(&mut self, lease: Lease, told: Told) -> Flowing {
        // Unknown position: the lease resets the connection.
        drop(lease);
        if self.talk.answer_is_torn() {
            // The rest of a message can never come; only the end of the connection is understood now.
            self.app.socket().reset_on_close();
            return Flowing::Ended;
        }
        let refusal = Refusal::BackendLost { outcome: self.outcome() };
        if self.hold() == Hold::Session {
            // What the session had in this backend cannot be brought back.
            self.end_with(&refusal).await;
            return Flowing::Ended;
        }
        self.to_db.drop_passed();
        self.settle_with(&refusal, told);
        Flowing::On
    }

    /// What can be said of the statements that were not answered.
    fn outcome(&self) -> Outcome {
        let notes = &self.talk.notes;
        match (self.talk.status, notes.commits, notes.sent) {
            (TransactionStatus::Idle, _, Need::Write) | (_, true, _) => Outcome::Unknown,
            (
                TransactionStatus::Idle | TransactionStatus::InTransaction | TransactionStatus::Failed,
                _,
                _,
            ) => Outcome::RolledBack,
        }
    }

    /// Answers everything that is owed.
    fn settle_with(&mut self, refusal: &Refusal, told: Told) {
        let in_transaction = self.talk.status != TransactionStatus::Idle && !self.talk.notes.commits;
        self.talk.status = if in_transaction { TransactionStatus::Failed } else { TransactionStatus::Idle };
        let owed_sync = self.talk.owes_sync();
        let mut told = told;
        let mut pending = owed_sync;
        let mut ends = 0;
        let mut owed_any = false;
        while let Some(owed) = self.talk.ledger.settle() {
            owed_any = true;
            if matches!(owed, Owed::Query | Owed::FunctionCall | Owed::Sync | Owed::LocalQuery(_)) {
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
        crate::telemetry::metrics::refused(refusal.reason());
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
