//! What a session did, counted without atomics and added to its database's figures once per transaction.

use super::Session;
use super::registry::Phase;
use crate::clock;
use crate::pool::databases::Figures;

/// What is not added yet.
#[derive(Debug, Default)]
pub(super) struct Account {
    figures: Figures,
    /// When the phase began; on the clock.
    since_ms: u64,
    /// Answers that were added.
    counted: u64,
}

impl Session {
    /// The session has left a phase for the one that it is in now.
    #[inline]
    pub(super) fn account_for(&mut self, left: Phase) {
        let now = clock::now_ms();
        let spent = now.saturating_sub(std::mem::replace(&mut self.account.since_ms, now));
        let figures = &mut self.account.figures;
        match left {
            Phase::Login | Phase::Idle => return,
            Phase::Queued => {
                figures.wait_ms += spent;
                return;
            }
            Phase::Active => {
                figures.exchange_ms += spent;
                figures.transaction_ms += spent;
            }
            Phase::IdleInTransaction => figures.transaction_ms += spent,
        }
        if self.phase == Phase::Idle {
            figures.transactions += 1;
            self.add_account();
        }
    }

    /// Adds what was counted to the figures of the database.
    #[inline]
    pub(super) fn settle_account(&mut self) {
        // Most transactions were added when they ended.
        let anything = self.to_db.filled | self.to_app.filled | (self.talk.answers - self.account.counted);
        if anything > 0 {
            self.add_account();
        }
    }

    fn add_account(&mut self) {
        let mut figures = std::mem::take(&mut self.account.figures);
        let counted = std::mem::replace(&mut self.account.counted, self.talk.answers);
        figures.exchanges = self.talk.answers - counted;
        figures.received = std::mem::take(&mut self.to_db.filled);
        figures.sent = std::mem::take(&mut self.to_app.filled);
        self.pool.database.traffic.add(&figures);
    }
}
