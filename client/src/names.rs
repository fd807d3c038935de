//! Every metric of the crate: name, unit, labels, meaning. They go to whatever recorder of the `metrics` crate the
//! application has installed *before* it builds the pool. All have the label `pool` ([`Builder::name`](crate::Builder::name)).
//!
//! | metric | type | more labels | meaning |
//! |---|---|---|---|
//! | `tidegate_client_acquires_total` | counter | `lane`, `result` | connections asked for; `result` is `ok` or the kind of the error |
//! | `tidegate_client_acquire_seconds` | histogram | `lane` | from asking to having: waiting, connecting, checking |
//! | `tidegate_client_statements_total` | counter | `lane`, `result` | statements, COMMITs included; `result` as above |
//! | `tidegate_client_statement_seconds` | histogram | `lane` | from sending a statement to its last answer or its deadline |
//! | `tidegate_client_breaker_state` | gauge | `lane` | 0 closed, 1 suspect, 2 open, 3 half-open, 4 ramp, 5 forced open, 6 forced closed |
//! | `tidegate_client_recoveries_total` | counter | `lane`, `end` | connections given up by their user midway; `end` is `reused`, `discarded` or `left` (a zombie that is watched) |
//! | `tidegate_client_zombies` | gauge | `lane` | permits charged for backends that were given up on and may still be busy |
//! | `tidegate_client_transactions_total` | counter | `lane`, `end` | `committed`, `rolled_back` or `unknown` |
//! | `tidegate_client_retries_total` | counter | `lane` | transactions that were done again |
//!
//! Tracing: one `info` event `breaker changed` per change of a breaker (`pool`, `lane`, `from`, `to`, `cause`,
//! `evidence`), `warn` for a connect that failed and for a connection that was discarded, `debug` for the rest. No
//! SQL text, no values, no credentials.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Histogram, counter, gauge, histogram};
use tidegate_layers::breaker::Phase;

use crate::error::Error;
use crate::words::Lane;

/// What is counted with each statement: looked up once, so that the steady state builds no labels.
pub(crate) struct Meters {
    pool: Arc<str>,
    lanes: [LaneMeters; 2],
}

struct LaneMeters {
    acquired: Counter,
    acquire_seconds: Histogram,
    ran: Counter,
    statement_seconds: Histogram,
}

impl Meters {
    pub(crate) fn new(pool: &Arc<str>) -> Self {
        let lanes = Lane::ALL.map(|lane| LaneMeters {
            acquired: acquires(pool, lane, "ok"),
            acquire_seconds: histogram!("tidegate_client_acquire_seconds", "pool" => Arc::clone(pool), "lane" => lane.word()),
            ran: statements(pool, lane, "ok"),
            statement_seconds: histogram!("tidegate_client_statement_seconds", "pool" => Arc::clone(pool), "lane" => lane.word()),
        });
        Self { pool: Arc::clone(pool), lanes }
    }

    pub(crate) fn acquired(&self, lane: Lane, error: Option<&Error>, took: Duration) {
        let meters = &self.lanes[lane.index()];
        match error {
            None => meters.acquired.increment(1),
            Some(error) => acquires(&self.pool, lane, error.kind().word()).increment(1),
        }
        meters.acquire_seconds.record(took);
    }

    pub(crate) fn ran(&self, lane: Lane, error: Option<&Error>, took: Duration) {
        let meters = &self.lanes[lane.index()];
        match error {
            None => meters.ran.increment(1),
            Some(error) => statements(&self.pool, lane, error.kind().word()).increment(1),
        }
        meters.statement_seconds.record(took);
    }
}

impl fmt::Debug for Meters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meters").field("pool", &self.pool).finish_non_exhaustive()
    }
}

fn acquires(pool: &Arc<str>, lane: Lane, result: &'static str) -> Counter {
    counter!("tidegate_client_acquires_total", "pool" => Arc::clone(pool), "lane" => lane.word(), "result" => result)
}

fn statements(pool: &Arc<str>, lane: Lane, result: &'static str) -> Counter {
    counter!("tidegate_client_statements_total", "pool" => Arc::clone(pool), "lane" => lane.word(), "result" => result)
}

pub(crate) fn breaker(pool: &Arc<str>, lane: Lane, phase: Phase) {
    let state = match phase {
        Phase::Closed => 0.0,
        Phase::Suspect => 1.0,
        Phase::Open => 2.0,
        Phase::HalfOpen => 3.0,
        Phase::Ramp { .. } => 4.0,
        Phase::ForcedOpen => 5.0,
        Phase::ForcedClosed => 6.0,
    };
    gauge!("tidegate_client_breaker_state", "pool" => Arc::clone(pool), "lane" => lane.word()).set(state);
}

pub(crate) fn recovered(pool: &Arc<str>, lane: Lane, end: &'static str) {
    counter!("tidegate_client_recoveries_total", "pool" => Arc::clone(pool), "lane" => lane.word(), "end" => end)
        .increment(1);
}

pub(crate) fn zombies(pool: &Arc<str>, lane: Lane, change: f64) {
    gauge!("tidegate_client_zombies", "pool" => Arc::clone(pool), "lane" => lane.word()).increment(change);
}

pub(crate) fn transaction(pool: &Arc<str>, lane: Lane, end: &'static str) {
    counter!("tidegate_client_transactions_total", "pool" => Arc::clone(pool), "lane" => lane.word(), "end" => end)
        .increment(1);
}

pub(crate) fn retried(pool: &Arc<str>, lane: Lane) {
    counter!("tidegate_client_retries_total", "pool" => Arc::clone(pool), "lane" => lane.word()).increment(1);
}
