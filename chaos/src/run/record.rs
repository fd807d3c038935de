//! Everything that a run saw: what checkers judge and reports show.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::history::{Lane, Operation, Via};
use crate::observe::journal::Decision;
use crate::observe::{Alert, QueueSample, ServerSample};

/// What ran, so that it can run again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Name of the scenario.
    pub scenario: String,
    /// What it is about.
    pub summary: String,
    /// What was between application and servers.
    pub subject: String,
    /// What that says of its version.
    pub subject_version: String,
    /// Version of `PostgreSQL`.
    pub postgres: String,
    /// Version of the harness.
    pub harness: String,
    /// Seed of the run.
    pub seed: u64,
    /// Seconds of the UNIX epoch at its start.
    pub started_at: u64,
    /// Shorter phases than the scenario says.
    pub quick: bool,
    /// Backends that the subject was told to hold at most.
    pub pool: usize,
}

/// When a fault was in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FaultWindow {
    /// What.
    pub label: String,
    /// Whether a primary was paused: what is in its socket buffers runs when it goes on, whatever anybody does.
    #[serde(default)]
    pub frozen: bool,
    /// When its injection began.
    #[serde(rename = "from_ms", with = "crate::history::milliseconds")]
    pub from: Duration,
    /// When it was healed. `None`: it was not.
    #[serde(rename = "until_ms", with = "crate::history::optional_milliseconds")]
    pub until: Option<Duration>,
}

/// One applied write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// What was inserted.
    pub key: i64,
    /// When the server committed it.
    #[serde(rename = "applied_ms", with = "crate::history::milliseconds")]
    pub applied: Duration,
}

/// The whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What ran.
    pub header: Header,
    /// When the load began.
    #[serde(rename = "start_ms", with = "crate::history::milliseconds")]
    pub start: Duration,
    /// End of the quiet phase.
    #[serde(rename = "quiet_end_ms", with = "crate::history::milliseconds")]
    pub quiet_end: Duration,
    /// When the last operation was due.
    #[serde(rename = "end_ms", with = "crate::history::milliseconds")]
    pub end: Duration,
    /// What was broken when.
    pub faults: Vec<FaultWindow>,
    /// What was asked and answered.
    pub operations: Vec<Operation>,
    /// What the database holds in the end. `None`: it could not be read.
    pub rows: Option<Vec<Row>>,
    /// Keys of the orders that it holds. `None`: there was no service.
    pub orders: Option<Vec<i64>>,
    /// Keys that a former primary held when it was rewound or replaced: some of them may be nowhere else.
    #[serde(default)]
    pub fallen: Vec<i64>,
    /// Decisions of the sidecar's.
    #[serde(default)]
    pub journal: Vec<Decision>,
    /// Writes that reached a server of another cluster. `None`: there was none.
    pub strays: Option<u64>,
    /// Looks at the servers.
    pub servers: Vec<ServerSample>,
    /// Looks at the reverse proxy.
    pub queue: Vec<QueueSample>,
    /// What the webhook got.
    pub alerts: Vec<Alert>,
    /// What went wrong with the run itself.
    pub troubles: Vec<String>,
}

impl Record {
    /// Operations of one lane and way, in the order of their invocation.
    pub fn operations(&self, lane: Lane, via: Via) -> impl Iterator<Item = &Operation> {
        self.operations.iter().filter(move |operation| operation.lane == lane && operation.via == via)
    }

    /// Writes that took the short way, in the same order.
    pub fn writes(&self) -> impl Iterator<Item = &Operation> {
        self.operations(Lane::Write, Via::Sql)
    }

    /// When the first fault began.
    pub fn first_fault(&self) -> Option<Duration> {
        self.faults.iter().map(|fault| fault.from).min()
    }

    /// When the last fault was healed; `None` if there was none, or one that never was.
    pub fn healed(&self) -> Option<Duration> {
        let ends: Option<Vec<Duration>> = self.faults.iter().map(|fault| fault.until).collect();
        ends?.into_iter().max()
    }

    /// From the first fault to the last heal.
    pub fn trouble(&self) -> Option<std::ops::Range<Duration>> {
        Some(self.first_fault()?..self.healed()?)
    }
}

#[cfg(test)]
pub(crate) mod fixture {
    use super::*;
    use crate::history::{Failure, Outcome};

    pub(crate) const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A run of thirty seconds with one fault from 10 s to 20 s, and nothing in it yet.
    pub(crate) fn record() -> Record {
        let header = Header {
            scenario: "made-up".to_owned(),
            summary: String::new(),
            subject: "nothing".to_owned(),
            subject_version: String::new(),
            postgres: String::new(),
            harness: String::new(),
            seed: 0,
            started_at: 0,
            quick: false,
            pool: 20,
        };
        let fault = FaultWindow {
            label: "fault".to_owned(),
            frozen: false,
            from: ms(10_000),
            until: Some(ms(20_000)),
        };
        Record {
            header,
            start: Duration::ZERO,
            quiet_end: ms(10_000),
            end: ms(30_000),
            faults: vec![fault],
            operations: Vec::new(),
            rows: Some(Vec::new()),
            orders: None,
            fallen: Vec::new(),
            journal: Vec::new(),
            strays: None,
            servers: Vec::new(),
            queue: Vec::new(),
            alerts: Vec::new(),
            troubles: Vec::new(),
        }
    }

    impl Record {
        /// Adds an operation that starts when it is due.
        pub(crate) fn with(
            mut self,
            lane: Lane,
            at: u64,
            took: Option<u64>,
            outcome: Option<Outcome>,
        ) -> Self {
            let id = self.operations.len() as u64;
            let key = (lane == Lane::Write).then(|| i64::try_from(id).unwrap());
            let ended = took.map(|took| ms(at + took));
            self.operations.push(Operation {
                id,
                lane,
                via: Via::Sql,
                what: "t".to_owned(),
                key,
                intended: ms(at),
                sent: Some(ms(at)),
                ended,
                outcome,
            });
            self
        }

        pub(crate) fn ok(self, lane: Lane, at: u64, took: u64) -> Self {
            self.with(lane, at, Some(took), Some(Outcome::Ok))
        }

        pub(crate) fn refused(self, at: u64, took: u64, detail: &str) -> Self {
            let failure = Failure {
                sqlstate: Some("53000".to_owned()),
                detail: Some(detail.to_owned()),
                ..Failure::local("refused")
            };
            self.with(Lane::Write, at, Some(took), Some(Outcome::Fail(failure)))
        }

        pub(crate) fn via(mut self, via: Via) -> Self {
            if let Some(last) = self.operations.last_mut() {
                last.via = via;
            }
            self
        }

        pub(crate) fn row(mut self, key: i64, applied: u64) -> Self {
            self.rows.as_mut().unwrap().push(Row { key, applied: ms(applied) });
            self
        }
    }
}
