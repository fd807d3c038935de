//! The lane of a statement, where it runs: what its text says, what was learned of it, what the session asks for, and
//! what its transaction did before.
//!
//! From highest to lowest precedence: a write before it in the transaction, `lane=` in a hint, `tidegate.lane`, READ
//! ONLY of the transaction, then the statement itself. COMMIT belongs to the lane of what it commits.

use std::sync::{Arc, LazyLock};

use super::notes::Pins;
use crate::exchange::Facts;
use crate::exchange::facts::{Need, Reach};
use crate::pool::{Learned, Pool};
use crate::sql::terms::LaneChoice;
use crate::sql::{Access, FingerprintKey, Lane, PinReason, PlainStrings, StatementKind, fingerprint};

/// The key of all fingerprints of this process.
static KEY: LazyLock<FingerprintKey> = LazyLock::new(FingerprintKey::random);

/// The fingerprint of a text, for [`Learned`]. One pass over the text.
pub fn fingerprint_of(text: &[u8]) -> u128 {
    fingerprint(text, PlainStrings::Standard, &KEY)
}

/// What a statement's lane depends on, beside the statement.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// Where it would run: which functions of the database are volatile.
    pub pool: &'a Arc<Pool>,
    /// Reads that were found waiting as writes.
    pub learned: &'a Learned,
    /// `tidegate.lane` of the session.
    pub asked: Option<Lane>,
    /// What the session has on its backend.
    pub pins: Pins,
}

impl Surroundings<'_> {
    /// Whether there are temporary tables, and the statement drops them.
    fn drop_tables(&self, facts: &Facts) -> bool {
        self.pins.has(PinReason::TempTable) && facts.discards_temporary()
    }
}

/// What a transaction did so far, as far as lanes go. Over with [`TransactionLane::default`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TransactionLane {
    lane: Option<Lane>,
    access: Option<Access>,
    savepoints: Savepoints,
    reach: Reach,
}

/// What the access of a transaction has to do with its savepoints: one that was set within a savepoint goes with it, by
/// RELEASE as well as by ROLLBACK TO (`CommitSubTransaction` and `AbortSubTransaction` in `src/backend/access/transam/xact.c`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Savepoints {
    /// There was none.
    #[default]
    None,
    /// The access, if any, was set before.
    Within,
    /// The access was set within one.
    AccessWithin,
}

impl TransactionLane {
    /// Behind one statement that reads, anywhere.
    pub const READ: Self =
        Self { lane: Some(Lane::Read), access: None, savepoints: Savepoints::None, reach: Reach::Anywhere };

    /// Which servers may run all of it so far.
    pub fn reach(self) -> Reach {
        self.reach
    }

    /// The lane of its strongest statement so far; `None` before the first that is not neutral.
    pub fn lane(self) -> Option<Lane> {
        self.lane
    }

    /// The lane of its next statement, which is noted. `fingerprint` is asked only when something was learned.
    #[inline]
    pub fn next(
        &mut self,
        facts: &Facts,
        surroundings: Surroundings<'_>,
        fingerprint: impl FnOnce() -> u128,
    ) -> Lane {
        self.follow_access(facts);
        self.reach = self.reach.max(facts.reach);
        let asked = facts.hints.lane.and_then(LaneChoice::lane);
        let lane = self.of(facts, asked.or(surroundings.asked), surroundings, fingerprint);
        // A hint at BEGIN is for the whole transaction.
        if facts.lane != Need::Neutral || asked.is_some() || surroundings.drop_tables(facts) {
            self.lane = self.lane.max(Some(lane));
        }
        lane
    }

    fn follow_access(&mut self, facts: &Facts) {
        if facts.begins || (facts.ends_transaction && !facts.chains) {
            (self.access, self.savepoints) = (None, Savepoints::None);
        }
        if facts.access.is_some() {
            self.access = facts.access;
            if self.savepoints == Savepoints::Within {
                self.savepoints = Savepoints::AccessWithin;
            }
        }
        match facts.first {
            StatementKind::Savepoint if self.savepoints == Savepoints::None => {
                self.savepoints = Savepoints::Within;
            }
            StatementKind::Release | StatementKind::RollbackTo
                if self.savepoints == Savepoints::AccessWithin =>
            {
                (self.access, self.savepoints) = (None, Savepoints::Within);
            }
            // Of a text of several it is not known where its savepoints stand.
            _ if facts.statements > 1 && !facts.begins => {
                (self.access, self.savepoints) = (None, Savepoints::Within);
            }
            _ => {}
        }
    }

    fn of(
        self,
        facts: &Facts,
        asked: Option<Lane>,
        surroundings: Surroundings<'_>,
        fingerprint: impl FnOnce() -> u128,
    ) -> Lane {
        if self.lane == Some(Lane::Write) {
            return Lane::Write;
        }
        if let Some(asked) = asked {
            return asked;
        }
        if surroundings.drop_tables(facts) {
            return Lane::Write;
        }
        if facts.lane == Need::Neutral {
            return self.lane.unwrap_or(Lane::Read);
        }
        // In a text of several the write may stand behind the end, or in front of what forbids it.
        if self.access == Some(Access::ReadOnly) && !facts.ends_transaction && facts.statements == 1 {
            return Lane::Read;
        }
        own(facts, surroundings, fingerprint)
    }
}

/// The lane of a statement by itself.
fn own(facts: &Facts, surroundings: Surroundings<'_>, fingerprint: impl FnOnce() -> u128) -> Lane {
    let lane = match (&facts.callees, facts.lane) {
        (Some(callees), _) => surroundings.pool.functions.lane(callees, surroundings.pool),
        (None, Need::Write) => Lane::Write,
        (None, Need::Neutral | Need::Read) => Lane::Read,
    };
    let learned = surroundings.learned;
    if lane == Lane::Read && !learned.is_empty() && learned.is_write(fingerprint()) {
        Lane::Write
    } else {
        lane
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::tests::pool;

    fn lanes(texts: &[&str], asked: Option<Lane>) -> Vec<Lane> {
        lanes_with(Pins::default(), texts, asked)
    }

    fn lanes_with(pins: Pins, texts: &[&str], asked: Option<Lane>) -> Vec<Lane> {
        let (pool, learned) = (pool(), Learned::default());
        learned.learn(fingerprint_of(b"SELECT * FROM a_view_that_writes WHERE x = 1"));
        let surroundings = Surroundings { pool: &pool, learned: &learned, asked, pins };
        let mut transaction = TransactionLane::default();
        let next = |text: &&str| {
            transaction.next(&Facts::of(text.as_bytes()), surroundings, || fingerprint_of(text.as_bytes()))
        };
        texts.iter().map(next).collect()
    }

    #[tokio::test]
    async fn the_transaction_decides_with_the_statement() {
        // A read in the place of a write escapes the bound of its lane; a write in the place of a read starves.
        use Lane::{Read, Write};
        let rows: [(&[&str], &[Lane]); 20] = [
            (&["SELECT 1"], &[Read]),
            (&["INSERT INTO t VALUES (1)"], &[Write]),
            (&["BEGIN", "SELECT 1", "COMMIT"], &[Read, Read, Read]),
            (
                &["BEGIN", "SELECT 1", "DELETE FROM t", "SELECT 1", "COMMIT"],
                &[Read, Read, Write, Write, Write],
            ),
            (&["SELECT unknown_function()"], &[Write]),
            (&["BEGIN READ ONLY", "SELECT unknown_function()", "COMMIT"], &[Read, Read, Read]),
            (&["BEGIN; SET TRANSACTION READ ONLY", "SELECT unknown_function()"], &[Read, Read]),
            (
                &["BEGIN READ ONLY", "SET TRANSACTION READ WRITE", "SELECT unknown_function()"],
                &[Read, Read, Write],
            ),
            (&["BEGIN READ ONLY", "COMMIT; INSERT INTO t VALUES (1)"], &[Read, Write]),
            (&["BEGIN; INSERT INTO t VALUES (1); SET TRANSACTION READ ONLY", "COMMIT"], &[Write, Write]),
            (
                &[
                    "BEGIN",
                    "SAVEPOINT s",
                    "SET TRANSACTION READ ONLY",
                    "SELECT f()",
                    "RELEASE s",
                    "SELECT f()",
                ],
                &[Read, Read, Read, Read, Read, Write],
            ),
            (
                &["BEGIN", "SAVEPOINT s", "SET TRANSACTION READ ONLY", "ROLLBACK TO s", "DELETE FROM t"],
                &[Read, Read, Read, Read, Write],
            ),
            (
                &["BEGIN READ ONLY", "SAVEPOINT s", "RELEASE s", "SELECT unknown_function()"],
                &[Read, Read, Read, Read],
            ),
            (
                &["BEGIN", "SAVEPOINT s", "SET TRANSACTION READ ONLY", "SELECT 1; RELEASE s", "SELECT f()"],
                &[Read, Read, Read, Read, Write],
            ),
            (&["BEGIN READ ONLY", "COMMIT", "SELECT f()"], &[Read, Read, Write]),
            (&["SELECT /*tidegate:lane=read*/ unknown_function()"], &[Read]),
            (&["/*tidegate:lane=write*/ SELECT 1"], &[Write]),
            (&["/*tidegate:lane=write*/ BEGIN", "SELECT 1", "COMMIT"], &[Write, Write, Write]),
            (&["BEGIN", "DELETE FROM t", "/*tidegate:lane=read*/ SELECT 1"], &[Read, Write, Write]),
            (&["SELECT * FROM a_view_that_writes WHERE x = 2"], &[Write]),
        ];
        for (texts, wanted) in rows {
            assert_eq!(lanes(texts, None), wanted, "{texts:?}");
        }
        assert_eq!(lanes(&["BEGIN", "SELECT 1"], Some(Write)), [Write, Write]);
        assert_eq!(lanes(&["SELECT unknown_function()"], Some(Read)), [Read]);
        assert_eq!(lanes(&["SELECT /*tidegate:lane=write*/ 1"], Some(Read)), [Write]);
    }

    #[tokio::test]
    async fn a_discard_that_drops_temporary_tables_is_a_write_and_no_other_is() {
        // A pool that sends DISCARD ALL with each connection that it hands out would get nothing but errors while
        // writes are refused; one that drops tables waits for the standby that is gone, until its deadline.
        use Lane::{Read, Write};
        let mut with_tables = Pins::default();
        let _ = with_tables.insert(PinReason::TempTable);
        let mut listens = Pins::default();
        let _ = listens.insert(PinReason::Listen);

        for text in ["DISCARD ALL", "discard temp", "DISCARD TEMPORARY; SELECT 1"] {
            assert_eq!(lanes_with(with_tables, &[text], None), [Write], "{text}");
            assert_eq!(lanes_with(listens, &[text], None), [Read], "{text}");
            assert_eq!(lanes(&[text], None), [Read], "{text}");
        }
        assert_eq!(lanes_with(with_tables, &["DISCARD PLANS"], None), [Read]);
        let transaction = ["BEGIN", "SELECT 1", "DISCARD TEMP", "SELECT 1", "COMMIT"];
        assert_eq!(lanes_with(with_tables, &transaction, None), [Read, Read, Write, Write, Write]);
    }
}
