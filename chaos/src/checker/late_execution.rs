//! Nothing is executed after the application was answered.

use std::collections::HashMap;
use std::time::Duration;

use crate::history::{Lane, Operation, Outcome, Via};
use crate::run::Record;

use super::{Verdict, some};

/// The clocks are one, but the answer travels.
const SLACK: Duration = Duration::from_millis(50);

pub(super) fn check(record: &Record) -> Verdict {
    let Some(rows) = &record.rows else {
        return Verdict::Undecided("the database could not be read".to_owned());
    };
    let writes = record.operations(Lane::Write, Via::Sql);
    let (excused, held): (Vec<&Operation>, Vec<&Operation>) =
        writes.partition(|write| is_beyond_reach(record, write));
    let answered: HashMap<i64, Duration> =
        held.iter().filter_map(|write| Some((write.key?, write.ended?))).collect();
    if rows.is_empty() {
        return Verdict::Undecided("nothing was written".to_owned());
    }
    let mut late = Vec::new();
    let mut worst = Duration::ZERO;
    for row in rows {
        let Some(ended) = answered.get(&row.key) else { continue };
        if row.applied > *ended + SLACK {
            late.push(row.key);
            worst = worst.max(row.applied.saturating_sub(*ended));
        }
    }
    if late.is_empty() {
        let excused = match excused.len() {
            0 => String::new(),
            count => format!("; {count} unknown ones that a paused primary had are left out"),
        };
        return Verdict::Holds(format!("{} writes, none after its answer{excused}", rows.len()));
    }
    let evidence = format!("{} writes were executed after their answer", late.len());
    Verdict::Refuted(format!("{evidence}, up to {} later: {}", super::shown(worst), some(&late)))
}

/// What a paused primary has in its socket buffers runs when it goes on; all that can be done is to say that the
/// outcome is unknown.
fn is_beyond_reach(record: &Record, write: &Operation) -> bool {
    let during = |ended: Duration| {
        let frozen = record.faults.iter().filter(|fault| fault.frozen);
        frozen.into_iter().any(|fault| {
            let until = fault.until.unwrap_or(record.end);
            ended >= fault.from && write.sent.is_some_and(|sent| sent <= until)
        })
    };
    matches!(write.outcome, Some(Outcome::Unknown(_))) && write.ended.is_some_and(during)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Failure;
    use crate::run::fixture::record;

    #[test]
    fn only_what_a_paused_server_had_and_was_called_unknown_is_excused() {
        // A write that is called failed and runs when the server goes on is as bad as ever.
        let late = |outcome: Outcome| {
            let mut run = record().with(Lane::Write, 12_000, Some(5_000), Some(outcome)).row(0, 20_100);
            run.faults[0].frozen = true;
            run
        };
        let told = Failure::local("no answer");

        assert!(check(&late(Outcome::Unknown(told.clone()))).holds());
        assert!(matches!(check(&late(Outcome::Fail(told.clone()))), Verdict::Refuted(_)));
        let mut awake = late(Outcome::Unknown(told));
        awake.faults[0].frozen = false;
        assert!(matches!(check(&awake), Verdict::Refuted(_)));
    }

    #[test]
    fn a_write_that_runs_when_the_network_heals_is_found() {
        // What a graceful close during a blackhole does: the error first, the row 13 s later.
        let run = record().refused(10_000, 500, "outcome=unknown").row(0, 10_100);
        assert!(check(&run).holds());

        let run = record().refused(10_000, 500, "outcome=unknown").row(0, 20_400);

        assert!(matches!(check(&run), Verdict::Refuted(text) if text.contains("9.90 s")));
    }
}
