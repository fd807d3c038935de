//! Curves out of a record; pure.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::checker::percentile;
use crate::history::{Lane, Operation, Via, in_ms};
use crate::run::Record;

/// Width of the bins, in seconds.
const BIN: f64 = 0.5;

/// Wait events that get a curve of their own.
const MOST_EVENTS: usize = 3;

/// One curve: seconds of the run against a value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) colour: &'static str,
    pub(super) points: Vec<(f64, f64)>,
}

impl Series {
    fn new(name: &str, colour: &'static str, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.to_owned(), colour, points }
    }

    /// Its largest value.
    pub(super) fn max(&self) -> f64 {
        self.points.iter().map(|(_, value)| *value).fold(0.0, f64::max)
    }
}

pub(super) const READS: &str = "#1c7ed6";
pub(super) const WRITES: &str = "#e8590c";
const ERRORS: &str = "#c92a2a";
const QUEUE: &str = "#7048e8";
const OTHERS: [&str; 5] = ["#0b7285", "#e8590c", "#7048e8", "#2b8a3e", "#868e96"];

/// Acknowledged and failed operations per second.
pub(super) fn throughput(record: &Record) -> Vec<Series> {
    let rate = |keep: &dyn Fn(&Operation) -> bool| {
        let ended = record.operations.iter().filter(|one| one.lane != Lane::Monitor && keep(one));
        rates(record, ended.filter_map(|one| one.ended))
    };
    let user = |one: &Operation, lane| one.lane == lane && one.via == Via::Sql;
    vec![
        Series::new("reads", READS, rate(&|one| user(one, Lane::Read) && one.is_ok())),
        Series::new("writes", WRITES, rate(&|one| user(one, Lane::Write) && one.is_ok())),
        Series::new(
            "errors",
            ERRORS,
            rate(&|one| one.lane != Lane::Monitor && one.outcome.is_some() && !one.is_ok()),
        ),
    ]
}

/// Twice the largest rate of the quiet phase: the backlog that is served at the end may leave the chart.
pub(super) fn quiet_rate(all: &[Vec<Series>], record: &Record) -> f64 {
    let quiet = seconds(record, record.quiet_end);
    let points = all.iter().flatten().flat_map(|series| &series.points);
    let largest = points.filter(|(second, _)| *second < quiet).map(|(_, value)| *value).fold(1.0, f64::max);
    largest * 2.0
}

/// The 99th percentile of the time to an answer of any kind, in milliseconds. Without an answer: until the end.
pub(super) fn latency(record: &Record) -> Vec<Series> {
    let curve = |lane: Lane| {
        let mut bins: BTreeMap<usize, Vec<Duration>> = BTreeMap::new();
        for one in record.operations(lane, Via::Sql) {
            let latency = one.latency().unwrap_or(record.end.saturating_sub(one.intended));
            bins.entry(bin(record, one.intended)).or_default().push(latency);
        }
        let p99 = |values| percentile(values, 0.99).map(in_ms);
        bins.into_iter().filter_map(|(bin, values)| Some((middle(bin), p99(values)?))).collect()
    };
    vec![Series::new("reads", READS, curve(Lane::Read)), Series::new("writes", WRITES, curve(Lane::Write))]
}

/// Operations without an answer, and requests in the reverse proxy's queue.
pub(super) fn waiting(record: &Record) -> Vec<Series> {
    let curve = |lane: Lane| {
        let all: Vec<&Operation> = record.operations(lane, Via::Sql).collect();
        let at = |time: f64| {
            let open = |one: &&&Operation| {
                let ended = one.ended.map_or(f64::INFINITY, |ended| seconds(record, ended));
                seconds(record, one.intended) <= time && time < ended
            };
            count(all.iter().filter(open).count())
        };
        (0..=bin(record, record.end)).map(|bin| (middle(bin), at(middle(bin)))).collect()
    };
    let mut series = vec![
        Series::new("reads", READS, curve(Lane::Read)),
        Series::new("writes", WRITES, curve(Lane::Write)),
    ];
    if !record.queue.is_empty() {
        let points = record.queue.iter().map(|sample| (seconds(record, sample.at), whole(sample.queued)));
        series.push(Series::new("HTTP queue", QUEUE, points.collect()));
    }
    series
}

/// Backends of the server that had most of them, by what they wait for.
pub(super) fn waits(record: &Record) -> Vec<Series> {
    let busiest = record.servers.iter().max_by_key(|sample| sample.backends().unwrap_or(0));
    let Some(node) = busiest.map(|sample| sample.node.clone()) else { return Vec::new() };
    let looks = || record.servers.iter().filter(|sample| sample.node == node);
    let mut totals: BTreeMap<String, u64> = BTreeMap::new();
    for wait in looks().flat_map(|sample| sample.waits.iter().flatten()) {
        *totals.entry(event_name(wait)).or_default() += u64::from(wait.backends);
    }
    let mut events: Vec<(String, u64)> = totals.into_iter().collect();
    events.sort_by_key(|(_, total)| std::cmp::Reverse(*total));
    let curve = |event: &str| {
        looks()
            .filter_map(|sample| {
                let waits = sample.waits.as_ref()?.iter().filter(|wait| event_name(wait) == event);
                let backends: u32 = waits.map(|wait| wait.backends).sum();
                Some((seconds(record, sample.at), f64::from(backends)))
            })
            .collect()
    };
    let top = events.iter().take(MOST_EVENTS).zip(OTHERS);
    top.map(|((event, _), colour)| Series::new(event, colour, curve(event))).collect()
}

/// `idle` is no wait; writes and reads that wait for the same are told apart.
fn event_name(wait: &crate::observe::Waits) -> String {
    let lane = match wait.lane {
        Lane::Write => "write",
        Lane::Read | Lane::Monitor => "read",
    };
    if wait.event == "Client/ClientRead" { "idle".to_owned() } else { format!("{lane}: {}", wait.event) }
}

fn rates(record: &Record, times: impl Iterator<Item = Duration>) -> Vec<(f64, f64)> {
    // The last bin is not a whole one.
    let mut counts = vec![0; bin(record, record.end)];
    for time in times.filter(|time| *time >= record.start) {
        if let Some(count) = counts.get_mut(bin(record, time)) {
            *count += 1;
        }
    }
    counts.into_iter().enumerate().map(|(bin, number)| (middle(bin), count(number) / BIN)).collect()
}

/// Seconds since the load began.
pub(super) fn seconds(record: &Record, at: Duration) -> f64 {
    at.as_secs_f64() - record.start.as_secs_f64()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a run has fewer than 2^32 bins")]
fn bin(record: &Record, at: Duration) -> usize {
    (seconds(record, at).max(0.0) / BIN) as usize
}

fn middle(bin: usize) -> f64 {
    (count(bin) + 0.5) * BIN
}

#[expect(clippy::cast_precision_loss, reason = "counts of one run")]
fn count(number: usize) -> f64 {
    number as f64
}

#[expect(clippy::cast_precision_loss, reason = "counts of one run")]
fn whole(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::fixture::record;

    #[test]
    fn an_operation_without_an_answer_waits_until_the_end() {
        // A stall would otherwise look like silence.
        let run = record().with(Lane::Write, 12_000, None, None).ok(Lane::Write, 1_000, 3_000);

        let writes = waiting(&run).remove(1);

        let at = |time: f64| writes.points.iter().find(|(second, _)| (second - time).abs() < 0.01).unwrap().1;
        assert!((at(2.25) - 1.0).abs() < f64::EPSILON);
        assert!(at(8.25).abs() < f64::EPSILON);
        assert!((at(29.25) - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn rates_are_per_second_whatever_the_bin() {
        // Ten in half a second are twenty per second.
        let run = (0..10).fold(record(), |run, number| run.ok(Lane::Read, 5_000 + number * 10, 1));

        let reads = throughput(&run).remove(0);

        assert!((reads.max() - 20.0).abs() < f64::EPSILON, "{reads:?}");
    }
}
