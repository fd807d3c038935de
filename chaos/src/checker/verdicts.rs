//! What the application was told of each write agrees with what the servers hold.
//!
//! | answer | the write |
//! |---|---|
//! | `CommandComplete` | is there |
//! | `not_sent`, `rolled_back` | is not |
//! | `committed` | is there |
//! | `committed_unreplicated` | was on the server that was primary then; a failover may have lost it since |
//! | `unknown` | may be either |
//!
//! A commit whose answer is neither of these, because the connection to the subject broke, was not reported at all.

use std::collections::HashSet;

use crate::history::{Operation, Outcome};
use crate::run::Record;

use super::{Verdict, some};

/// What an answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Applied,
    AppliedThere,
    NotApplied,
    Unknown,
    Nothing,
}

fn told(write: &Operation) -> Option<Told> {
    let failure = match write.outcome.as_ref()? {
        Outcome::Ok => return Some(Told::Applied),
        Outcome::Fail(failure) | Outcome::Unknown(failure) => failure,
    };
    let code = failure.sqlstate.as_deref();
    Some(match (failure.field("outcome"), code) {
        (Some("committed"), _) => Told::Applied,
        (Some("committed_unreplicated"), _) => Told::AppliedThere,
        (Some("not_sent" | "rolled_back"), _) | (None, Some("40000")) => Told::NotApplied,
        (Some("unknown"), _) => Told::Unknown,
        // Of errors of PostgreSQL's own the workload knows which leave it open.
        _ if matches!(write.outcome, Some(Outcome::Fail(_))) => Told::NotApplied,
        _ => Told::Nothing,
    })
}

pub(super) fn check(record: &Record, if_any: bool) -> Verdict {
    let Some(rows) = &record.rows else {
        return Verdict::Undecided("the database could not be read".to_owned());
    };
    let present: HashSet<i64> = rows.iter().map(|row| row.key).collect();
    let fallen: HashSet<i64> = record.fallen.iter().copied().collect();
    let mut wrong: Vec<(&str, i64)> = Vec::new();
    let mut counts = [0_usize; 5];
    for write in record.writes() {
        let (Some(key), Some(told)) = (write.key, told(write)) else { continue };
        counts[told as usize] += 1;
        let there = present.contains(&key);
        match told {
            Told::Applied if !there => wrong.push(("lost", key)),
            Told::AppliedThere if !there && !fallen.contains(&key) => wrong.push(("not even there", key)),
            Told::NotApplied if there => wrong.push(("applied nevertheless", key)),
            Told::Nothing => wrong.push(("not reported", key)),
            Told::Applied | Told::AppliedThere | Told::NotApplied | Told::Unknown => {}
        }
    }
    let [applied, there, not_applied, unknown, _] = counts;
    if !if_any && !record.writes().any(|write| write.failure().is_some()) {
        return Verdict::Undecided(format!(
            "{applied} writes were acknowledged, and no other answer was given"
        ));
    }
    let figures = format!(
        "{applied} acknowledged, {not_applied} not applied, {there} committed unreplicated, {unknown} unknown"
    );
    if wrong.is_empty() {
        return Verdict::Holds(figures);
    }
    let mut kinds: Vec<&str> = wrong.iter().map(|(why, _)| *why).collect();
    kinds.dedup();
    let shown: Vec<String> = kinds
        .iter()
        .map(|kind| {
            let keys: Vec<i64> = wrong.iter().filter(|(why, _)| why == kind).map(|(_, key)| *key).collect();
            format!("{} {kind}: {}", keys.len(), some(&keys))
        })
        .collect();
    Verdict::Refuted(format!("{figures}; wrong: {}", shown.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Failure, Lane};
    use crate::run::fixture::record;

    fn answered(sqlstate: &str, detail: &str) -> Record {
        let failure = Failure {
            sqlstate: Some(sqlstate.to_owned()),
            detail: Some(detail.to_owned()),
            ..Failure::local("broken")
        };
        record().ok(Lane::Write, 1_000, 1).row(0, 1_000).with(
            Lane::Write,
            11_000,
            Some(1),
            Some(Outcome::Unknown(failure)),
        )
    }

    #[test]
    fn every_wrong_word_about_a_commit_is_found() {
        // Write 1 is there or not; the table of the module, line by line.
        let there = |run: Record| check(&run.row(1, 11_000), false).holds();
        let absent = |run: Record| check(&run, false).holds();
        let rolled_back = || answered("40000", "reason=commit_rolled_back outcome=rolled_back");
        let unknown = || answered("08007", "reason=commit_unresolved outcome=unknown");
        let unreplicated = || answered("08007", "outcome=committed_unreplicated");

        assert!(absent(rolled_back()) && !there(rolled_back()));
        assert!(absent(unknown()) && there(unknown()));
        assert!(there(unreplicated()) && !absent(unreplicated()));
        assert!(there(answered("08007", "outcome=committed")));
        assert!(!absent(answered("08007", "outcome=committed")));
        let mut lost_since = unreplicated();
        lost_since.fallen.push(1);
        assert!(absent(lost_since));
    }

    #[test]
    fn a_commit_that_nobody_reports_is_found() {
        // The application is left with a broken connection.
        let broken = Outcome::Unknown(Failure::local("connection closed"));
        let run = record().ok(Lane::Write, 1_000, 1).row(0, 1_000);
        assert!(matches!(check(&run, false), Verdict::Undecided(_)));
        assert!(check(&run, true).holds());

        let run = run.with(Lane::Write, 11_000, Some(1), Some(broken));

        assert!(matches!(check(&run, false), Verdict::Refuted(text) if text.contains("not reported")));
    }

    #[test]
    fn an_acknowledged_write_that_is_lost_is_found() {
        // By this claim as well: it is the first line of the table.
        let mut run = answered("08007", "outcome=unknown").ok(Lane::Write, 12_000, 1);

        for what in ["t", "hot"] {
            run.operations[2].what = what.to_owned();
            assert!(
                matches!(check(&run, false), Verdict::Refuted(text) if text.contains("lost: 2")),
                "{what}"
            );
        }
    }
}
