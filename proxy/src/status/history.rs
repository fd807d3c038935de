//! The last ten minutes, a sample a second: what the plots show at once when somebody opens the page.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::Status;

/// Ten minutes.
pub const SAMPLES: usize = 600;

/// One second of both lanes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// When it ended.
    pub at_ms: u64,
    /// Sessions.
    pub sessions: u64,
    /// The read lane.
    pub read: Point,
    /// The write lane.
    pub write: Point,
}

/// One second of a lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// What applications met at its end.
    pub state: super::LaneState,
    /// Exchanges answered.
    pub throughput: f64,
    /// Refusals.
    pub refusals: f64,
    /// Median service time in milliseconds; absent in a second without an answer.
    pub p50_ms: Option<f64>,
    /// 95th percentile.
    pub p95_ms: Option<f64>,
    /// 99th percentile.
    pub p99_ms: Option<f64>,
    /// Backends lent to it, those given up on included.
    pub in_flight: Option<u64>,
    /// Sessions that wait for a backend.
    pub queued: Option<u64>,
}

impl Sample {
    /// From a document, with the figures of the last second in place of those of the last seconds.
    pub fn of(status: &Status, second: [super::Rates; 2]) -> Self {
        let point = |lane: &super::LaneStatus, rates: super::Rates| Point {
            state: lane.state,
            throughput: rates.throughput,
            refusals: rates.refusals,
            p50_ms: rates.p50_ms,
            p95_ms: rates.p95_ms,
            p99_ms: rates.p99_ms,
            in_flight: lane.in_flight,
            queued: lane.queued,
        };
        Self {
            at_ms: status.at_ms,
            sessions: status.sessions.now,
            read: point(&status.lanes.read, second[0]),
            write: point(&status.lanes.write, second[1]),
        }
    }
}

/// See the module documentation. The oldest sample goes first.
#[derive(Debug, Default)]
pub struct History(VecDeque<Sample>);

impl History {
    /// Adds a sample.
    pub fn push(&mut self, sample: Sample) {
        if self.0.len() == SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    /// All of them, the oldest first.
    pub fn to_vec(&self) -> Vec<Sample> {
        self.0.iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_forgets_what_is_older_than_ten_minutes() {
        // A sidecar runs for months; its memory must not show it.
        let mut history = History::default();
        for at_ms in 0..2000 {
            history.push(Sample { at_ms, ..Sample::default() });
        }

        let kept = history.to_vec();

        assert_eq!(kept.len(), SAMPLES);
        assert_eq!((kept[0].at_ms, kept[SAMPLES - 1].at_ms), (1400, 1999));
    }
}
