//! All is as before, soon.

use std::time::Duration;

use crate::history::{Lane, Operation, Via};
use crate::run::Record;

use super::statistics::share;
use super::{Verdict, shown};

/// An answer that takes longer is of no use to anybody.
const USEFUL: Duration = Duration::from_secs(1);

/// Fewer say nothing about a share.
const ENOUGH: usize = 20;

pub(super) fn check(record: &Record, within: Duration, wanted: f64) -> Verdict {
    let Some(healed) = record.healed() else {
        return Verdict::Undecided("no fault was injected and healed".to_owned());
    };
    let mut figures = Vec::new();
    let mut holds = true;
    for (lane, name) in [(Lane::Read, "reads"), (Lane::Write, "writes")] {
        let due: Vec<&Operation> = record
            .operations(lane, Via::Sql)
            .filter(|operation| operation.intended >= healed + within)
            .collect();
        let good = due.iter().filter(|operation| is_good(operation)).count();
        let Some(share) = share(good, due.len()).filter(|_| due.len() >= ENOUGH) else {
            return Verdict::Undecided(format!("{} {name} from then on are too few", due.len()));
        };
        holds &= share >= wanted;
        figures.push(format!("{name} {:.1} %", share * 100.0));
    }
    let since = format!("from {} after the heal on: ", shown(within));
    Verdict::when(holds, since + &figures.join(", "))
}

fn is_good(operation: &Operation) -> bool {
    operation.is_ok() && operation.latency().is_some_and(|latency| latency <= USEFUL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::fixture::{ms, record};

    fn run(slow: u64) -> Record {
        (0..100).fold(record(), |run, number| {
            let at = 27_000 + number * 20;
            run.ok(Lane::Read, at, 1).ok(Lane::Write, at, if number < slow { 1_500 } else { 2 })
        })
    }

    #[test]
    fn a_backlog_that_is_still_being_served_is_found() {
        // Late acknowledgements are throughput, not goodput.
        assert!(check(&run(5), ms(6_000), 0.95).holds());
        assert!(matches!(check(&run(6), ms(6_000), 0.95), Verdict::Refuted(_)));
    }
}
