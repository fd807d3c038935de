//! A write that was told it failed is not there.

use std::collections::HashSet;

use crate::history::{Lane, Operation, Outcome, Via};
use crate::run::Record;

use super::{Verdict, some};

pub(super) fn check(record: &Record, if_any: bool) -> Verdict {
    let Some(rows) = &record.rows else {
        return Verdict::Undecided("the database could not be read".to_owned());
    };
    let applied: HashSet<i64> = rows.iter().map(|row| row.key).collect();
    let ordered: HashSet<i64> = record.orders.iter().flatten().copied().collect();
    let mut failed = 0;
    let mut present = Vec::new();
    for (via, there) in [(Via::Sql, &applied), (Via::Http, &ordered)] {
        for key in record.operations(Lane::Write, via).filter(|write| is_failed(write)).filter_map(|w| w.key)
        {
            failed += 1;
            if there.contains(&key) {
                present.push(key);
            }
        }
    }
    if failed == 0 && if_any {
        return Verdict::Holds("no write was told that it failed".to_owned());
    }
    if failed == 0 {
        return Verdict::Undecided("no write was told that it failed".to_owned());
    }
    if present.is_empty() {
        return Verdict::Holds(format!("{failed} failed writes, none of them applied"));
    }
    Verdict::Refuted(format!(
        "{} of {failed} writes were told that they failed, and were applied: {}",
        present.len(),
        some(&present)
    ))
}

fn is_failed(write: &Operation) -> bool {
    matches!(write.outcome, Some(Outcome::Fail(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::fixture::record;

    #[test]
    fn a_refused_write_that_was_applied_is_found() {
        // What PgBouncer's query_timeout does: an error, and a row.
        let run = record().refused(10_000, 1, "outcome=not_sent");
        assert!(check(&run, false).holds());

        let mut applied = run.row(0, 10_500);
        for what in ["t", "hot"] {
            applied.operations[0].what = what.to_owned();
            assert!(matches!(check(&applied, true), Verdict::Refuted(_)), "{what}");
        }
    }

    #[test]
    fn a_run_without_refusals_proves_nothing() {
        // A subject that hangs never lies.
        assert!(matches!(check(&record().ok(Lane::Write, 0, 1), false), Verdict::Undecided(_)));
    }
}
