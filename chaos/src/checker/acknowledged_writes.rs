//! No acknowledged write is lost.

use std::collections::HashSet;

use crate::history::{Lane, Via};
use crate::run::Record;

use super::{Verdict, some};

pub(super) fn check(record: &Record) -> Verdict {
    let Some(rows) = &record.rows else {
        return Verdict::Undecided("the database could not be read".to_owned());
    };
    let applied: HashSet<i64> = rows.iter().map(|row| row.key).collect();
    let ordered: HashSet<i64> = record.orders.iter().flatten().copied().collect();
    let mut acknowledged = 0;
    let mut lost = Vec::new();
    for (via, present) in [(Via::Sql, &applied), (Via::Http, &ordered)] {
        for key in
            record.operations(Lane::Write, via).filter(|write| write.is_ok()).filter_map(|write| write.key)
        {
            acknowledged += 1;
            if !present.contains(&key) {
                lost.push(key);
            }
        }
    }
    if acknowledged == 0 {
        return Verdict::Undecided("no write was acknowledged".to_owned());
    }
    if lost.is_empty() {
        return Verdict::Holds(format!("{acknowledged} acknowledged writes, all present"));
    }
    Verdict::Refuted(format!(
        "{} of {acknowledged} acknowledged writes are lost: {}",
        lost.len(),
        some(&lost)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::fixture::record;

    #[test]
    fn a_lost_write_is_found() {
        // Key 1 was acknowledged and is not there.
        let run = record().ok(Lane::Write, 0, 1).ok(Lane::Write, 10, 1).row(0, 1);

        assert!(matches!(check(&run), Verdict::Refuted(text) if text.contains("1 of 2")));
        assert!(check(&run.clone().row(1, 11)).holds());
        // The row that all share is overwritten, the key of who had it is not.
        let mut shared = run;
        shared.operations[1].what = "hot".to_owned();
        assert!(matches!(check(&shared), Verdict::Refuted(_)));
    }

    #[test]
    fn without_writes_or_rows_nothing_is_proven() {
        // An empty table agrees with an empty history.
        let mut run = record();
        assert!(matches!(check(&run), Verdict::Undecided(_)));

        run = run.ok(Lane::Write, 0, 1);
        run.rows = None;

        assert!(matches!(check(&run), Verdict::Undecided(_)));
    }
}
