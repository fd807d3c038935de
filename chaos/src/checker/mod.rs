//! Claims, and what a run says about them. Pure: a record in, a verdict out.
//!
//! A verdict never passes for lack of data. Each claim's tests hold a history that must be refuted, so that a
//! checker that has gone blind is noticed.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::history::Lane;
use crate::run::Record;

mod acknowledged_writes;
mod admin;
mod alert;
mod answered;
mod backends;
mod breaker;
mod duplicates;
mod goodput;
mod innocent;
mod journal;
mod late_execution;
mod lock_waiters;
mod noise;
mod outages;
mod overload;
mod recovery;
mod refusals;
mod refused_writes;
mod service;
mod statistics;
mod strays;
mod undisturbed;
mod verdicts;

pub use statistics::percentile;

/// What must hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "claim", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Claim {
    /// Every acknowledged write is in the database.
    AcknowledgedWritesPresent,
    /// No write is there that was told it had failed.
    RefusedWritesAbsent {
        /// Nothing is claimed of a run without such writes: for faults that are drawn.
        #[serde(default)]
        if_any: bool,
    },
    /// What was said of each write is so; see [`verdicts`].
    VerdictsRight {
        /// Nothing is claimed of a run in which every write was acknowledged: for faults that are drawn.
        #[serde(default)]
        if_any: bool,
    },
    /// No write is there twice.
    NoDuplicates,
    /// No write reaches a server of another cluster.
    NoStrays,
    /// No write is executed after its answer.
    NoLateExecution,
    /// Every operation is answered within its deadline, counted from when it was due.
    AnsweredInTime {
        /// Of reads.
        #[serde(with = "humantime_serde")]
        read: Duration,
        /// Of writes.
        #[serde(with = "humantime_serde")]
        write: Duration,
    },
    /// Reads do not fail, and take no longer than when all was quiet.
    ReadsUndisturbed {
        /// How much longer they may take at the 99th percentile.
        factor: f64,
        /// And this much more, for the noise of the machine.
        #[serde(with = "humantime_serde")]
        floor: Duration,
    },
    /// Writes do not fail either, and take no longer.
    WritesUndisturbed {
        /// How much longer they may take at the 99th percentile.
        factor: f64,
        /// And this much more, for the noise of the machine.
        #[serde(with = "humantime_serde")]
        floor: Duration,
    },
    /// Servers never have more backends than the pool and the control connections.
    BackendsBounded {
        /// Control connections.
        control: usize,
    },
    /// Writes are refused soon after the first that got stuck.
    BreakerOpens {
        /// How soon.
        #[serde(with = "humantime_serde")]
        within: Duration,
    },
    /// Refusals come at once and name the cause.
    RefusalsFast {
        /// At the 99th percentile.
        #[serde(with = "humantime_serde")]
        p99: Duration,
        /// What DETAIL must say.
        cause: String,
    },
    /// No write is ever refused because of a breaker.
    BreakerStaysClosed,
    /// Writes that do not touch what is locked notice nothing.
    InnocentWritesUnharmed {
        /// How much longer they may take at the 99th percentile.
        factor: f64,
        /// And this much more, for the noise of the machine.
        #[serde(with = "humantime_serde")]
        floor: Duration,
    },
    /// The first write after a heal is soon, unless something else is broken then.
    WritesRecover {
        /// How soon.
        #[serde(with = "humantime_serde")]
        within: Duration,
    },
    /// However many faults there are, writes are never gone for longer than this.
    OutagesShort {
        /// How long.
        #[serde(with = "humantime_serde")]
        within: Duration,
    },
    /// What was held back does not come back all at once: reads do not notice the heal.
    NoStampede {
        /// For how long after the heal.
        #[serde(with = "humantime_serde")]
        span: Duration,
        /// How much longer reads may take at the 99th percentile.
        factor: f64,
        /// And this much more, for the noise of the machine.
        #[serde(with = "humantime_serde")]
        floor: Duration,
    },
    /// That a breaker opens is on record before anybody is refused.
    JournalAhead,
    /// Each of these faults is a change that is refused, with the reason on record.
    ChangesRefused {
        /// As they are printed.
        changes: Vec<String>,
    },
    /// Soon after the heal all is as before.
    GoodputRecovers {
        /// How soon.
        #[serde(with = "humantime_serde")]
        within: Duration,
        /// Share of the operations due that must be acknowledged.
        share: f64,
    },
    /// The control plane always answers.
    AdminAnswers {
        /// At the 99th percentile.
        #[serde(with = "humantime_serde")]
        within: Duration,
    },
    /// The service's own health page always answers, through the reverse proxy.
    HealthAnswers {
        /// At the 99th percentile.
        #[serde(with = "humantime_serde")]
        within: Duration,
    },
    /// The service answers 503 at once instead of queueing, for as long as writes are refused.
    ServiceRefuses {
        /// Requests that may wait in the reverse proxy.
        queue: u64,
    },
    /// Those that wait for a lock are told by whom, and that nothing was done.
    LockWaitersTold,
    /// Overload costs little of what the pool can serve.
    OverloadServed {
        /// Reads per second that the pool can serve.
        capacity: f64,
        /// Share of them that must be served.
        share: f64,
        /// How long a read may take until it is answered or refused.
        #[serde(with = "humantime_serde")]
        within: Duration,
    },
    /// A webhook is called soon after the fault, and names the cause.
    AlertInTime {
        /// How soon.
        #[serde(with = "humantime_serde")]
        within: Duration,
        /// What it must say; anything when empty.
        #[serde(default)]
        cause: String,
    },
    /// An alert of this name is raised.
    AlertNamed {
        /// Which.
        alert: String,
        /// How soon after the first fault it must have come.
        #[serde(with = "humantime_serde")]
        within: Duration,
    },
}

/// Every name that a claim can have.
pub const NAMES: &[&str] = &[
    "acknowledged-writes-present",
    "refused-writes-absent",
    "verdicts-right",
    "no-duplicates",
    "no-strays",
    "no-late-execution",
    "answered-in-time",
    "reads-undisturbed",
    "writes-undisturbed",
    "backends-bounded",
    "breaker-opens",
    "refusals-fast",
    "breaker-stays-closed",
    "innocent-writes-unharmed",
    "writes-recover",
    "outages-short",
    "no-stampede",
    "journal-ahead",
    "changes-refused",
    "goodput-recovers",
    "admin-answers",
    "health-answers",
    "service-refuses",
    "lock-waiters-told",
    "overload-served",
    "alert-in-time",
    "alert-named",
];

impl Claim {
    /// Name as in scenario files.
    pub fn name(&self) -> &'static str {
        match self {
            Self::AcknowledgedWritesPresent => "acknowledged-writes-present",
            Self::RefusedWritesAbsent { .. } => "refused-writes-absent",
            Self::VerdictsRight { .. } => "verdicts-right",
            Self::NoDuplicates => "no-duplicates",
            Self::NoStrays => "no-strays",
            Self::NoLateExecution => "no-late-execution",
            Self::AnsweredInTime { .. } => "answered-in-time",
            Self::ReadsUndisturbed { .. } => "reads-undisturbed",
            Self::WritesUndisturbed { .. } => "writes-undisturbed",
            Self::BackendsBounded { .. } => "backends-bounded",
            Self::BreakerOpens { .. } => "breaker-opens",
            Self::RefusalsFast { .. } => "refusals-fast",
            Self::BreakerStaysClosed => "breaker-stays-closed",
            Self::InnocentWritesUnharmed { .. } => "innocent-writes-unharmed",
            Self::WritesRecover { .. } => "writes-recover",
            Self::OutagesShort { .. } => "outages-short",
            Self::NoStampede { .. } => "no-stampede",
            Self::JournalAhead => "journal-ahead",
            Self::ChangesRefused { .. } => "changes-refused",
            Self::GoodputRecovers { .. } => "goodput-recovers",
            Self::AdminAnswers { .. } => "admin-answers",
            Self::HealthAnswers { .. } => "health-answers",
            Self::ServiceRefuses { .. } => "service-refuses",
            Self::LockWaitersTold => "lock-waiters-told",
            Self::OverloadServed { .. } => "overload-served",
            Self::AlertInTime { .. } => "alert-in-time",
            Self::AlertNamed { .. } => "alert-named",
        }
    }

    /// What the run says about it.
    pub fn check(&self, record: &Record) -> Verdict {
        match self {
            Self::AcknowledgedWritesPresent => acknowledged_writes::check(record),
            Self::RefusedWritesAbsent { if_any } => refused_writes::check(record, *if_any),
            Self::VerdictsRight { if_any } => verdicts::check(record, *if_any),
            Self::NoDuplicates => duplicates::check(record),
            Self::NoStrays => strays::check(record),
            Self::NoLateExecution => late_execution::check(record),
            Self::AnsweredInTime { read, write } => answered::check(record, *read, *write),
            Self::ReadsUndisturbed { factor, floor } => {
                undisturbed::check(record, Lane::Read, *factor, *floor)
            }
            Self::WritesUndisturbed { factor, floor } => {
                undisturbed::check(record, Lane::Write, *factor, *floor)
            }
            Self::BackendsBounded { control } => backends::check(record, *control),
            Self::BreakerOpens { within } => breaker::opens(record, *within),
            Self::RefusalsFast { p99, cause } => refusals::check(record, *p99, cause),
            Self::BreakerStaysClosed => breaker::stays_closed(record),
            Self::InnocentWritesUnharmed { factor, floor } => innocent::check(record, *factor, *floor),
            Self::WritesRecover { within } => recovery::check(record, *within),
            Self::OutagesShort { within } => outages::check(record, *within),
            Self::NoStampede { span, factor, floor } => undisturbed::after(record, *span, *factor, *floor),
            Self::JournalAhead => journal::ahead(record),
            Self::ChangesRefused { changes } => journal::changes_refused(record, changes),
            Self::GoodputRecovers { within, share } => goodput::check(record, *within, *share),
            Self::AdminAnswers { within } => admin::control_plane(record, *within),
            Self::HealthAnswers { within } => admin::service(record, *within),
            Self::ServiceRefuses { queue } => service::check(record, *queue),
            Self::LockWaitersTold => lock_waiters::check(record),
            Self::OverloadServed { capacity, share, within } => {
                overload::check(record, *capacity, *share, *within)
            }
            Self::AlertInTime { within, cause } => alert::check(record, *within, cause),
            Self::AlertNamed { alert, within } => alert::named(record, alert, *within),
        }
    }
}

/// What a run says about a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", content = "because", rename_all = "kebab-case")]
pub enum Verdict {
    /// It was put to the test and held; with figures.
    Holds(String),
    /// It did not; with evidence.
    Refuted(String),
    /// The run cannot say; and why.
    Undecided(String),
}

impl Verdict {
    /// Whether it held.
    pub fn holds(&self) -> bool {
        matches!(self, Self::Holds(_))
    }

    /// Figures, evidence or reason.
    pub fn because(&self) -> &str {
        match self {
            Self::Holds(text) | Self::Refuted(text) | Self::Undecided(text) => text,
        }
    }

    /// Refuted unless the condition holds, with the same figures either way.
    fn when(holds: bool, figures: String) -> Self {
        if holds { Self::Holds(figures) } else { Self::Refuted(figures) }
    }
}

/// Times for people: as exact as a limit that was just missed needs.
fn shown(duration: Duration) -> String {
    let ms = crate::history::in_ms(duration);
    if ms < 10.0 {
        format!("{ms:.1} ms")
    } else if ms < 1000.0 {
        format!("{ms:.0} ms")
    } else {
        format!("{:.2} s", ms / 1e3)
    }
}

/// The first few of many, for evidence.
fn some(keys: &[i64]) -> String {
    let shown: Vec<String> = keys.iter().take(5).map(ToString::to_string).collect();
    let more = if keys.len() > shown.len() { ", …" } else { "" };
    format!("{}{more}", shown.join(", "))
}
