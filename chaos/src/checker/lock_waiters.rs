//! Who waits for a lock until the deadline learns who held it.

use crate::history::{Operation, Outcome};
use crate::run::Record;

use super::Verdict;

pub(super) fn check(record: &Record) -> Verdict {
    let Some(trouble) = record.trouble() else {
        return Verdict::Undecided("no fault was injected and healed".to_owned());
    };
    let waiters: Vec<&Operation> = record
        .writes()
        .filter(|write| write.what == "hot" && trouble.contains(&write.intended) && !write.is_ok())
        .collect();
    if waiters.is_empty() {
        return Verdict::Undecided("nobody waited for the lock to no avail".to_owned());
    }
    let cancelled = waiters.iter().filter(|write| is_told(write)).count();
    let refused = waiters.iter().filter(|write| was_refused(write)).count();
    let others: Vec<&&Operation> =
        waiters.iter().filter(|write| !is_told(write) && !was_refused(write)).collect();
    let figures = format!(
        "{} gave up: {cancelled} with 57014 and the blocker, {refused} refused before they were sent, {} otherwise{}",
        waiters.len(),
        others.len(),
        others.first().map(|write| format!(", as {}", words(write))).unwrap_or_default()
    );
    Verdict::when(cancelled > 0 && others.is_empty(), figures)
}

/// Those that never got a backend cannot know what the others wait for.
fn was_refused(write: &Operation) -> bool {
    code(write) == Some("53300")
}

fn words(write: &Operation) -> String {
    match write.failure() {
        Some(failure) => format!("{:?} {:?}", failure.sqlstate, failure.detail),
        None => format!("{:?}", write.outcome),
    }
}

fn code(write: &Operation) -> Option<&str> {
    write.failure()?.sqlstate.as_deref()
}

fn is_told(write: &Operation) -> bool {
    let certain = matches!(write.outcome, Some(Outcome::Fail(_)));
    let detail = write.failure().and_then(|failure| failure.detail.as_deref()).unwrap_or_default();
    certain && code(write) == Some("57014") && detail.contains("block")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Failure, Lane};
    use crate::run::fixture::record;

    fn run(sqlstate: &str, detail: &str) -> Record {
        let failure = Failure {
            sqlstate: Some(sqlstate.to_owned()),
            detail: Some(detail.to_owned()),
            ..Failure::local("canceled")
        };
        let mut run = record().with(Lane::Write, 11_000, Some(5_000), Some(Outcome::Fail(failure)));
        run.operations[0].what = "hot".to_owned();
        run
    }

    #[test]
    fn a_timeout_without_the_blocker_is_found() {
        // PostgreSQL's own 57014 says only that there was one.
        assert!(check(&run("57014", "reason=write_timeout cause=lock blockers=4711")).holds());
        assert!(matches!(check(&run("57014", "")), Verdict::Refuted(_)));
        assert!(matches!(check(&run("08007", "blockers=1")), Verdict::Refuted(_)));
        assert!(matches!(check(&record()), Verdict::Undecided(_)));
    }
}
