//! What of a slowness is not the subject's: messages that pass neither subject nor server, and reads that pass the
//! subject, in the same interval.
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

/// What was measured besides the subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gauge {
    /// Messages that pass neither subject nor server.
    Machine,
    /// Reads that the server answered past the subject.
    Server,
}

impl Gauge {
    fn via(self) -> Via {
        match self {
            Self::Machine => Via::Machine,
            Self::Server => Via::Direct,
        }
    }

    /// How many times its slowness a read through the subject can suffer. It waits for its turn as often as a message
    /// does, and has work to do at each, or twice as often as a read past the subject; over HTTP even more often.
    /// What is slower by more than this is slow for another reason.
    fn turns(self) -> u32 {
        match self {
            Self::Machine => 3,
            Self::Server => 2,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Machine => "messages past subject and servers",
            Self::Server => "reads past the subject",
        }
    }
}

/// What somebody else than the subject answers for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    gauge: Gauge,
    time: Duration,
    words: &'static str,
}

impl Share {
    /// How much of an operation's time it explains.
    fn explains(&self) -> Duration {
        self.time * self.gauge.turns()
    }
}

/// How much the machine itself slowed down from the one interval to the other, at the 99th percentile. `None`:
/// nobody can say.
pub(super) fn slowdown(record: &Record, quiet: &Range<Duration>, trouble: &Range<Duration>) -> Option<Share> {
    slower(record, Gauge::Machine, quiet, trouble)
}

/// How much machine or server slowed down, whichever explains more. For claims about what the subject does to its
/// applications; what it does to the server by too much work must not excuse it.
pub(super) fn slowdown_with_server(
    record: &Record,
    quiet: &Range<Duration>,
    trouble: &Range<Duration>,
) -> Option<Share> {
    let shares = [Gauge::Machine, Gauge::Server].map(|gauge| slower(record, gauge, quiet, trouble));
    shares.into_iter().flatten().max_by_key(Share::explains)
}

fn slower(
    record: &Record,
    gauge: Gauge,
    quiet: &Range<Duration>,
    trouble: &Range<Duration>,
) -> Option<Share> {
    let time = p99(record, gauge, trouble)?.saturating_sub(p99(record, gauge, quiet)?);
    Some(Share { gauge, time, words: "longer than when quiet" })
}

/// How long the least of things took in this interval, at the 99th percentile.
pub(super) fn least_time(record: &Record, range: &Range<Duration>) -> Option<Share> {
    let gauge = Gauge::Machine;
    p99(record, gauge, range).map(|time| Share { gauge, time, words: "themselves" })
}

fn p99(record: &Record, gauge: Gauge, range: &Range<Duration>) -> Option<Duration> {
    let all = record.operations(Lane::Monitor, gauge.via());
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
    let Some(share) = machine else { return Verdict::Refuted(figures) };
    let figures = format!("{figures}; {} took {} {}", share.gauge.name(), shown(share.time), share.words);
    if took.saturating_sub(share.explains()) <= limit {
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
        slow(run, Via::Machine, slower)
    }

    /// Reads past the subject that do the same.
    pub(in crate::checker) fn slow_server(run: Record, slower: u64) -> Record {
        slow(run, Via::Direct, slower)
    }

    fn slow(run: Record, via: Via, slower: u64) -> Record {
        (0..180).fold(run, |run, number| {
            let at = 2_000 + number * 100;
            let took = if at < 10_000 { 2 } else { 2 + slower };
            run.ok(Lane::Monitor, at, took).via(via)
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
    fn what_explains_more_is_named() {
        // A message that is 3 ms slower explains 9 ms, a read past the subject that is 5 ms slower 10.
        let run = slow_server(slow_machine(record(), 3), 5);
        let (quiet, trouble) = (ms(0)..ms(10_000), ms(10_000)..ms(20_000));

        let both = slowdown_with_server(&run, &quiet, &trouble).unwrap();

        assert_eq!((both.gauge, both.explains()), (Gauge::Server, ms(10)));
        let machine = slowdown(&run, &quiet, &trouble).unwrap();
        assert_eq!((machine.gauge, machine.explains()), (Gauge::Machine, ms(9)));
    }

    #[test]
    fn only_what_the_machine_explains_is_undecided() {
        // 30 ms where 10 are allowed: 20 must be explained, three times 6 are not enough.
        let share = |time| Some(Share { gauge: Gauge::Machine, time, words: "" });
        let verdict = |machine| judge(ms(30), ms(10), machine, "30 ms".to_owned());

        assert!(matches!(verdict(share(ms(7))), Verdict::Undecided(_)));
        assert!(matches!(verdict(share(ms(6))), Verdict::Refuted(_)));
        assert!(matches!(verdict(None), Verdict::Refuted(_)));
        assert!(judge(ms(10), ms(10), None, String::new()).holds());
    }
}
