//! Every operation gets an answer, in time.

use std::time::Duration;

use crate::history::{Lane, Via};
use crate::run::Record;

use super::{Verdict, noise, shown};

pub(super) fn check(record: &Record, read: Duration, write: Duration) -> Verdict {
    let mut verdicts = Vec::new();
    for (lane, name, limit) in [(Lane::Read, "reads", read), (Lane::Write, "writes", write)] {
        let all: Vec<_> = record.operations(lane, Via::Sql).collect();
        if all.is_empty() {
            return Verdict::Undecided(format!("there were no {name}"));
        }
        let open = all.iter().filter(|operation| operation.ended.is_none()).count();
        let latencies: Vec<Duration> = all.iter().filter_map(|operation| operation.latency()).collect();
        let late = latencies.iter().filter(|latency| **latency > limit).count();
        let slowest = latencies.iter().max().copied().unwrap_or_default();
        let figures = format!(
            "{name}: {} asked, {open} never answered, {late} later than {}, slowest {}",
            all.len(),
            shown(limit),
            shown(slowest)
        );
        let machine = noise::least_time(record, &(record.start..record.end));
        verdicts.push(match open {
            0 => noise::judge(slowest, limit, machine, figures),
            _ => Verdict::Refuted(figures),
        });
    }
    noise::worst(&verdicts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::fixture::{ms, record};

    #[test]
    fn silence_and_lateness_are_both_found() {
        // An operation without an end has no latency: it must not drop out of the count.
        let fine = record().ok(Lane::Read, 0, 1).ok(Lane::Write, 0, 900);
        assert!(check(&fine, ms(100), ms(1000)).holds());

        let late = fine.clone().ok(Lane::Write, 10_000, 1_001);
        let silent = fine.with(Lane::Read, 10_000, None, None);

        assert!(matches!(check(&late, ms(100), ms(1000)), Verdict::Refuted(_)));
        assert!(matches!(check(&silent, ms(100), ms(1000)), Verdict::Refuted(_)));
    }
}
