//! A lane does not notice what happens to the other.

use std::ops::Range;
use std::time::Duration;

use crate::history::{Lane, Operation, Via};
use crate::run::Record;

use super::{Verdict, noise, percentile, shown};

/// Connections and caches warm up.
const WARM_UP: Duration = Duration::from_secs(1);

/// Fewer say nothing about a 99th percentile.
const ENOUGH: usize = 50;

pub(super) fn check(record: &Record, lane: Lane, factor: f64, floor: Duration) -> Verdict {
    let Some(trouble) = record.trouble() else {
        return Verdict::Undecided("no fault was injected and healed".to_owned());
    };
    compare(record, lane, &trouble, factor, floor, noise::slowdown_with_server)
}

/// The same for reads in the time after the heal.
pub(super) fn after(record: &Record, span: Duration, factor: f64, floor: Duration) -> Verdict {
    let Some(healed) = record.healed() else {
        return Verdict::Undecided("no fault was injected and healed".to_owned());
    };
    // A server that is slow because of what floods it is no excuse.
    compare(record, Lane::Read, &(healed..healed + span), factor, floor, noise::slowdown)
}

fn compare(
    record: &Record,
    lane: Lane,
    trouble: &Range<Duration>,
    factor: f64,
    floor: Duration,
    slowdown: fn(&Record, &Range<Duration>, &Range<Duration>) -> Option<noise::Share>,
) -> Verdict {
    let mut verdicts = Vec::new();
    for (via, name) in [(Via::Sql, "by SQL"), (Via::Http, "by HTTP")] {
        let all: Vec<&Operation> = record.operations(lane, via).collect();
        let calm = record.start + WARM_UP..record.quiet_end;
        let (quiet, stuck) = (during(&all, &calm), during(&all, trouble));
        if quiet.len() < ENOUGH || stuck.len() < ENOUGH {
            if via == Via::Sql {
                return Verdict::Undecided(format!(
                    "{} and {} operations are too few",
                    quiet.len(),
                    stuck.len()
                ));
            }
            continue;
        }
        let failed = stuck.iter().filter(|read| !read.is_ok()).count();
        let (before, within) = (p99(&quiet, trouble.end), p99(&stuck, record.end));
        let limit = before.mul_f64(factor) + floor;
        let counted = format!("{name}: {failed} of {} failed or unanswered", stuck.len());
        let figures = format!(
            "{counted}, p99 {} against {} when quiet (limit {})",
            shown(within),
            shown(before),
            shown(limit)
        );
        let machine = slowdown(record, &calm, trouble);
        verdicts.push(match failed {
            0 => noise::judge(within, limit, machine, figures),
            _ => Verdict::Refuted(figures),
        });
    }
    noise::worst(&verdicts)
}

fn during<'a>(all: &[&'a Operation], range: &Range<Duration>) -> Vec<&'a Operation> {
    all.iter().filter(|operation| range.contains(&operation.intended)).copied().collect()
}

/// An answer that never came has taken at least until the end.
fn p99(all: &[&Operation], end: Duration) -> Duration {
    let latency = |one: &&Operation| one.latency().unwrap_or(end.saturating_sub(one.intended));
    percentile(all.iter().map(latency).collect(), 0.99).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Failure, Outcome};
    use crate::run::fixture::{ms, record};

    fn run(took_in_trouble: u64) -> Record {
        (0..200).fold(record(), |run, number| {
            let at = 2_000 + number * 90;
            run.ok(Lane::Read, at, if at < 10_000 { 8 } else { took_in_trouble })
        })
    }

    #[test]
    fn slow_reads_in_a_stall_are_found() {
        // The quiet p99 is 8 ms: 10 ms and the floor are the limit.
        assert!(check(&run(15), Lane::Read, 1.25, ms(5)).holds());
        assert!(matches!(check(&run(16), Lane::Read, 1.25, ms(5)), Verdict::Refuted(_)));
    }

    #[test]
    fn a_machine_that_slowed_down_enough_to_explain_it_leaves_it_undecided() {
        // Neither a pass nor a fault of the subject's. A machine that explains only a part excuses nothing.
        let verdict = |slower| check(&noise::tests::slow_machine(run(40), slower), Lane::Read, 1.25, ms(5));

        assert!(matches!(verdict(9), Verdict::Undecided(_)));
        assert!(matches!(verdict(8), Verdict::Refuted(_)));
    }

    #[test]
    fn a_server_that_slowed_down_leaves_reads_in_a_stall_undecided_but_not_a_stampede() {
        // Reads past the subject became slower by 16 ms, which explains 25 ms more. After the heal it may be the
        // subject's own backlog that slows the server down.
        let run = noise::tests::slow_server(run(40), 16);
        assert!(matches!(check(&run, Lane::Read, 1.25, ms(5)), Verdict::Undecided(_)));

        let run = (0..100).fold(run, |run, number| run.ok(Lane::Read, 20_001 + number * 40, 40));
        assert!(matches!(after(&run, ms(5_000), 1.25, ms(5)), Verdict::Refuted(_)));
    }

    #[test]
    fn a_backlog_that_floods_the_server_after_the_heal_is_found() {
        // While the fault lasted nobody noticed anything.
        let run = |late| (0..100).fold(run(8), |run, number| run.ok(Lane::Read, 20_001 + number * 40, late));
        let verdict = |late| after(&run(late), ms(5_000), 1.25, ms(5));

        assert!(verdict(15).holds());
        assert!(matches!(verdict(16), Verdict::Refuted(_)));
    }

    #[test]
    fn one_failed_read_is_one_too_many() {
        // A percentile alone would not see it.
        let failure = Outcome::Fail(Failure::local("no"));
        let run = run(8).with(Lane::Read, 15_000, Some(1), Some(failure));

        assert!(matches!(check(&run, Lane::Read, 1.25, ms(5)), Verdict::Refuted(_)));
    }

    #[test]
    fn a_subject_that_answers_no_read_is_refuted() {
        // Reads without an end have no latency to take a percentile of.
        let run = (0..100).fold(run(8), |run, number| run.with(Lane::Read, 11_000 + number, None, None));

        assert!(matches!(check(&run, Lane::Read, 1.25, ms(5)), Verdict::Refuted(_)));
    }
}
