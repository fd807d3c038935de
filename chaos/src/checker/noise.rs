//! What of a slowness is the machine's: messages that pass neither subject nor server, in the same interval.
//!
//! Where these became slower too, by enough to explain the subject, the run cannot tell whose fault it is.
//! That is no pass: such a verdict is undecided.

use std::ops::Range;
use std::time::Duration;

use crate::history::{Lane, Operation, Via};
use crate::run::Record;

use super::{Verdict, percentile, shown};

/// Fewer say nothing about a 99th percentile.
const ENOUGH: usize = 20;

/// A read waits for its turn as often as a message does, and has work to do at each; over HTTP there are twice as many.
/// What is slower by more than this is slow for another reason.
const TURNS: u32 = 3;

/// What the machine answers for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    time: Duration,
    words: &'static str,
}

/// How much the machine itself slowed down from the one interval to the other, at the 99th percentile. `None`:
/// nobody can say.
pub(super) fn slowdown(record: &Record, quiet: &Range<Duration>, trouble: &Range<Duration>) -> Option<Share> {
    let time = p99(record, trouble)?.saturating_sub(p99(record, quiet)?);
    Some(Share { time, words: "longer than when quiet" })
}

/// How long the least of things took in this interval, at the 99th percentile.
pub(super) fn least_time(record: &Record, range: &Range<Duration>) -> Option<Share> {
    p99(record, range).map(|time| Share { time, words: "themselves" })
}

fn p99(record: &Record, range: &Range<Duration>) -> Option<Duration> {
    let all = record.operations(Lane::Monitor, Via::Machine);
    let seen: Vec<&Operation> = all.filter(|message| range.contains(&message.intended)).collect();
    if seen.len() < ENOUGH {
        return None;
    }
    percentile(seen.iter().filter_map(|message| message.latency()).collect(), 0.99)
}

/// The verdict about a time that must not exceed a limit.
pub(super) fn judge(took: Duration, limit: Duration, machine: Option<Share>, figures: String) -> Verdict {
    if took <= limit {
        return Verdict::Holds(figures);
    }
    let Some(Share { time, words }) = machine else { return Verdict::Refuted(figures) };
    let figures = format!("{figures}; messages past subject and servers took {} {words}", shown(time));
    if took.saturating_sub(time * TURNS) <= limit {
        Verdict::Undecided(figures)
    } else {
        Verdict::Refuted(figures)
    }
}

/// One verdict of several about the same claim: the worst.
pub(super) fn worst(verdicts: &[Verdict]) -> Verdict {
    let figures: Vec<&str> = verdicts.iter().map(Verdict::because).collect();
    let figures = figures.join("; ");
    if verdicts.iter().any(|verdict| matches!(verdict, Verdict::Refuted(_))) {
        Verdict::Refuted(figures)
    } else if verdicts.is_empty() || verdicts.iter().any(|verdict| matches!(verdict, Verdict::Undecided(_))) {
        Verdict::Undecided(figures)
    } else {
        Verdict::Holds(figures)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::run::fixture::{ms, record};

    /// Messages of 2 ms, which take longer by `slower` in the trouble.
    pub(in crate::checker) fn slow_machine(run: Record, slower: u64) -> Record {
        (0..180).fold(run, |run, number| {
            let at = 2_000 + number * 100;
            let took = if at < 10_000 { 2 } else { 2 + slower };
            run.ok(Lane::Monitor, at, took).via(Via::Machine)
        })
    }

    #[test]
    fn the_machine_is_measured_in_both_intervals() {
        // What was slow before the trouble began excuses nothing.
        let (quiet, trouble) = (ms(0)..ms(10_000), ms(10_000)..ms(20_000));
        let run = slow_machine(record(), 7);

        assert_eq!(slowdown(&run, &quiet, &trouble).map(|share| share.time), Some(ms(7)));
        assert_eq!(least_time(&run, &trouble).map(|share| share.time), Some(ms(9)));
        assert_eq!(slowdown(&record(), &quiet, &trouble), None);
    }

    #[test]
    fn only_what_the_machine_explains_is_undecided() {
        // 30 ms where 10 are allowed: 20 must be explained, three times 6 are not enough.
        let share = |time| Some(Share { time, words: "" });
        let verdict = |machine| judge(ms(30), ms(10), machine, "30 ms".to_owned());

        assert!(matches!(verdict(share(ms(7))), Verdict::Undecided(_)));
        assert!(matches!(verdict(share(ms(6))), Verdict::Refuted(_)));
        assert!(matches!(verdict(None), Verdict::Refuted(_)));
        assert!(judge(ms(10), ms(10), None, String::new()).holds());
    }
}
