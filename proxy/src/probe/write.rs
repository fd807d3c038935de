//! Proves that writes work, by a commit that needs no table and no grant.

use std::sync::Arc;

use tidegate_layers::breaker::{Probe, ProbeOutcome, Session};

use super::Control;
use super::pulse::Pulse;
use super::runner::{Question, Runner, Verdict};
use crate::backend::connection::Row;
use crate::exchange::Cause;

/// One probe in this many is longer than an Ethernet frame, in both directions: a path may lose exactly those
/// packets (RFC 2923, black holes of path MTU discovery).
const PADDED_EVERY: u64 = 8;

/// With what surrounds it more than the 1,460 bytes of a full segment.
const PADDING_LEN: usize = 1500;

/// A transactional logical message gets a transaction id and writes WAL, so its commit flushes and waits for
/// synchronous standbys as any other (`LogLogicalMessage` in `message.c`, `RecordTransactionCommit` in
/// `xact.c`). `pg_current_xact_id()` alone would do neither. On a read-only primary the message would succeed
/// as well, hence the guard. A role or database that is read-only by its own settings says nothing of the
/// server.
const STATEMENT: &str = "CASE \
    WHEN pg_catalog.pg_is_in_recovery() THEN 'in_recovery' \
    WHEN pg_catalog.current_setting('transaction_read_only') = 'on' THEN \
        (SELECT CASE WHEN source IN ('user', 'database', 'database user') \
                THEN 'read_only_role' ELSE 'read_only' END \
           FROM pg_catalog.pg_settings WHERE name = 'default_transaction_read_only') \
    ELSE pg_catalog.pg_logical_emit_message(true, 'tidegate', '')::text END";

const QUESTION: Question = Question { sql, judge };

fn sql(asked: u64) -> String {
    if asked % PADDED_EVERY == PADDED_EVERY - 1 {
        format!("SELECT {STATEMENT}, '{}'", "x".repeat(PADDING_LEN))
    } else {
        format!("SELECT {STATEMENT}")
    }
}

fn judge(rows: &[Row]) -> Verdict {
    let Some(Some(Some(answer))) = rows.first().map(|row| row.first()) else {
        return Verdict { outcome: ProbeOutcome::Failed, cause: None };
    };
    match answer.as_slice() {
        b"in_recovery" => Verdict::failed(Cause::InRecovery),
        b"read_only" => Verdict::failed(Cause::ReadOnly),
        b"read_only_role" => Verdict { outcome: ProbeOutcome::Inconclusive, cause: None },
        _ => Verdict::GOOD,
    }
}

/// A synthetic write.
///
/// It commits under the settings of the role that it logs in as, `synchronous_commit` among them. It is blind
/// to locks of applications. There is never more than one outstanding statement, however often it is asked and
/// dropped; an outstanding one that completes is a good write. A fresh session takes the place of the kept one.
#[derive(Debug, Clone)]
pub struct WriteProbe(Arc<Runner>);

impl WriteProbe {
    /// Nothing is opened before the first probe.
    pub fn new(control: Arc<Control>) -> Self {
        Self(Arc::new(Runner::new(control, QUESTION)))
    }

    /// What it last found, and what is outstanding.
    pub fn pulse(&self) -> &Arc<Pulse> {
        self.0.pulse()
    }

    /// Closes its connection, whatever is under way there.
    pub fn hang_up(&self) {
        self.0.hang_up();
    }
}

impl Probe for WriteProbe {
    async fn probe(&self, session: Session) -> ProbeOutcome {
        self.0.probe(session).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(answer: &str) -> Vec<Row> {
        vec![vec![Some(answer.as_bytes().to_vec())]]
    }

    #[test]
    fn only_a_position_in_the_wal_is_a_good_write() {
        // A standby and a read-only primary answer as fast as a healthy one; taking that for a write would
        // keep the breaker closed.
        assert_eq!(judge(&row("0/16B3748")), Verdict::GOOD);
        assert_eq!(judge(&row("in_recovery")), Verdict::failed(Cause::InRecovery));
        assert_eq!(judge(&row("read_only")), Verdict::failed(Cause::ReadOnly));
        assert_eq!(judge(&[]).outcome, ProbeOutcome::Failed);
        assert_eq!(judge(&[vec![None]]).outcome, ProbeOutcome::Failed);
    }

    #[test]
    fn a_role_that_may_not_write_says_nothing_of_the_server() {
        // A reporting role that logs in first would have everybody's writes refused.
        let verdict = judge(&row("read_only_role"));

        assert_eq!(verdict, Verdict { outcome: ProbeOutcome::Inconclusive, cause: None });
    }

    #[test]
    fn one_statement_in_eight_fills_more_than_a_frame() {
        // Without it a path that loses full packets looks healthy; with more of them each probe costs more.
        let long = (0..16).filter(|&asked| sql(asked).len() > 1460).count();

        assert_eq!(long, 2);
        assert!(sql(0).len() < 1000);
    }
}
