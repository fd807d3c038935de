//! The state of the sidecar as one document: what `/status`, the dashboard and `tidegate status` show.
//!
//! A [`Status`] is made from atomics and snapshots ([`Status::collect`]); making one neither awaits anything nor
//! takes a lock of the data path: who hangs there cannot hang who looks. Times are milliseconds, of the Unix epoch where
//! the name ends in `_at_ms`. What a part of the sidecar does not know is absent.
//!
//! What the breakers, the topology, alerts and the watchdog know comes in through `source`; `collect` is
//! the only place that asks them.

pub mod advice;
pub mod board;
pub mod client;
pub mod collect;
pub mod controls;
pub mod history;
pub mod source;
pub mod terminal;
pub mod timeline;

use serde::{Deserialize, Serialize};

/// See the module documentation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Version of the sidecar.
    pub version: String,
    /// Name of its machine.
    pub host: String,
    /// When it was started.
    pub started_at_ms: u64,
    /// When this was collected.
    pub at_ms: u64,
    /// Time since the start.
    pub uptime_ms: u64,
    /// The whole in a word and two sentences.
    pub verdict: Verdict,
    /// It was told to stop, and finishes what runs.
    pub draining: bool,
    /// It was told to let sessions wait.
    pub paused: bool,
    /// What it was told at start or reload, in short.
    pub config: ConfigSummary,
    /// The two classes of work.
    pub lanes: Lanes,
    /// The servers, the primary first.
    pub upstreams: Vec<UpstreamStatus>,
    /// Their pools, by upstream, database and user.
    pub pools: Vec<PoolStatus>,
    /// Applications.
    pub sessions: Sessions,
    /// Refusals by lane and reason since the start.
    pub refusals: Vec<Tally>,
    /// Statements that were refused or broke, by lane and outcome since the start.
    pub outcomes: Vec<Tally>,
    /// What went through since the start, of exchanges that are over.
    pub traffic: Bytes,
    /// The latest decisions, the newest first.
    pub events: Vec<Event>,
    /// What was told to whom.
    pub alerts: Option<Alerts>,
    /// Who watches the threads.
    pub watchdog: Option<Watchdog>,
}

/// Bytes in both directions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bytes {
    /// From applications.
    pub received: u64,
    /// To applications.
    pub sent: u64,
}

/// How urgent something is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Nothing to do.
    #[default]
    Ok,
    /// Worth a look.
    Warning,
    /// Somebody is refused.
    Critical,
}

/// The answer to "is all well, and if not, what now?".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Verdict {
    /// How urgent.
    pub level: Level,
    /// What is the matter.
    pub sentence: String,
    /// What to do next; empty when nothing is to be done.
    pub next: String,
}

/// Both lanes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lanes {
    /// Statements that read.
    pub read: LaneStatus,
    /// Statements that write.
    pub write: LaneStatus,
}

impl Lanes {
    /// Both with their names.
    pub fn each(&self) -> [(&'static str, &LaneStatus); 2] {
        [("read", &self.read), ("write", &self.write)]
    }
}

/// What an application meets in a lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LaneState {
    /// Everything is let through.
    #[default]
    Serving,
    /// Everything is let through; something looks wrong and is being looked into.
    Suspect,
    /// Everything is refused at once.
    Refusing,
    /// Little is let through, more each second.
    Recovering,
}

impl LaneState {
    /// All of them, the values of a label.
    pub const ALL: [Self; 4] = [Self::Serving, Self::Suspect, Self::Refusing, Self::Recovering];

    /// The word that stands in labels and documents.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Suspect => "suspect",
            Self::Refusing => "refusing",
            Self::Recovering => "recovering",
        }
    }
}

/// One lane.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LaneStatus {
    /// What applications meet.
    pub state: LaneState,
    /// The breaker's own word: closed, suspect, open, `half_open`, ramp, `forced_open`, `forced_closed`.
    pub phase: String,
    /// What an operator ordered: auto, open or closed.
    pub order: String,
    /// What is wrong, as far as it is known.
    pub cause: Option<String>,
    /// What was seen of it, for people.
    pub evidence: Option<String>,
    /// Since when the state holds.
    pub since_at_ms: Option<u64>,
    /// State and cause in a sentence.
    pub sentence: String,
    /// What to do next; empty when nothing is to be done.
    pub next: String,
    /// Backends lent to it, those given up on included.
    pub in_flight: Option<u64>,
    /// Sessions that wait for a backend.
    pub queued: Option<u64>,
    /// How long the oldest exchange has run without progress.
    pub oldest_in_flight_ms: Option<u64>,
    /// Refused since the start.
    pub refused_total: u64,
    /// Answered by PostgreSQL since the start.
    pub answered_total: u64,
    /// The last seconds in figures.
    pub rates: Rates,
}

/// The last seconds of a lane in figures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rates {
    /// Exchanges answered per second.
    pub throughput: f64,
    /// Refusals per second.
    pub refusals: f64,
    /// Median service time, in milliseconds.
    pub p50_ms: Option<f64>,
    /// 95th percentile.
    pub p95_ms: Option<f64>,
    /// 99th percentile.
    pub p99_ms: Option<f64>,
    /// 99th percentile of the wait for a backend.
    pub wait_p99_ms: Option<f64>,
}

/// One server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpstreamStatus {
    /// Its address, as in the configuration.
    pub name: String,
    /// primary, standby, or unknown.
    pub role: String,
    /// Timeline of its WAL.
    pub timeline: Option<u32>,
    /// Position in its WAL, as PostgreSQL writes it.
    pub lsn: Option<String>,
    /// How far a standby is behind, in time.
    pub lag_ms: Option<u64>,
    /// How far a standby is behind, in WAL.
    pub lag_bytes: Option<u64>,
    /// Version of PostgreSQL.
    pub version: Option<String>,
    /// That of its own latest change, counted over all upstreams: a primary elected or lost, a server back or moved.
    /// Its backends of an older one are not used any more.
    pub epoch: u64,
    /// Kept out, since a newer timeline has been seen.
    pub fenced: bool,
    /// Why it cannot be used, in words.
    pub problem: Option<String>,
    /// Its breakers.
    pub breakers: Vec<Breaker>,
    /// How long the last probe of each lane took.
    pub probe_read_ms: Option<f64>,
    /// Of a probe that writes and commits.
    pub probe_write_ms: Option<f64>,
    /// When a write of any kind was last seen to commit.
    pub last_write_at_ms: Option<u64>,
    /// Backends, those being opened included.
    pub backends: u64,
    /// The most there may be.
    pub backends_max: u64,
    /// Backends given up on and not yet known dead.
    pub zombies: u64,
}

/// One breaker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Breaker {
    /// Its lane.
    pub lane: String,
    /// What it does.
    pub phase: String,
    /// Why.
    pub cause: Option<String>,
    /// How often it has opened since the start.
    pub trips: u64,
}

/// One pool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PoolStatus {
    /// The server.
    pub upstream: String,
    /// Database; `other` sums up those beyond the limit of the document.
    pub database: String,
    /// User.
    pub user: String,
    /// Backends that serve nobody.
    pub idle: u64,
    /// Backends that serve a session.
    pub leased: u64,
    /// Backends being opened.
    pub opening: u64,
    /// Sessions that wait.
    pub waiting: u64,
    /// How long the first of them has.
    pub longest_wait_ms: u64,
    /// Leases that ended well since the pool was made.
    pub exchanges: u64,
    /// Leases of each lane, reads first; what was given up on and may still be busy is among them.
    pub in_flight_by_lane: [u64; 2],
    /// Sessions that wait for each lane, reads first.
    pub waiting_by_lane: [u64; 2],
}

/// Applications.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sessions {
    /// Now, logins in progress included.
    pub now: u64,
    /// The most there may be.
    pub max: u64,
}

/// A count by lane and word.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    /// read, write, or none.
    pub lane: String,
    /// The reason or outcome.
    pub word: String,
    /// How many.
    pub total: u64,
}

/// Something that was decided or seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Event {
    /// When.
    pub at_ms: u64,
    /// How urgent.
    pub level: Level,
    /// The kind in a word, as in the journal: breaker, topology, operator, configuration, process, watchdog, journal.
    pub kind: String,
    /// The lane, where it is about one.
    pub lane: Option<String>,
    /// The server, where it is about one.
    pub upstream: Option<String>,
    /// What happened, in a sentence.
    pub what: String,
    /// The cause, where there is one.
    pub cause: Option<String>,
    /// What was seen.
    pub evidence: Option<String>,
}

/// What was told to whom.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Alerts {
    /// Messages that wait to be sent.
    pub pending: u64,
    /// Delivered since the start.
    pub sent_total: u64,
    /// Attempts that failed since the start.
    pub failed_total: u64,
    /// Incidents that are not over.
    pub open: Vec<Incident>,
}

/// An incident that is not over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Incident {
    /// Its id, as in the alert.
    pub id: String,
    /// One sentence.
    pub summary: String,
    /// Since when.
    pub since_at_ms: u64,
}

/// Who watches the threads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Watchdog {
    /// Each thread, and how long it has made no progress.
    pub threads: Vec<Thread>,
}

/// See [`Watchdog`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Thread {
    /// Its name.
    pub name: String,
    /// Time since it was last seen to work.
    pub stalled_ms: u64,
}

/// What the sidecar was told, in short. No secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfigSummary {
    /// Where applications connect.
    pub listen: Vec<String>,
    /// The control plane.
    pub admin: String,
    /// Data workers.
    pub workers: u64,
    /// transaction or session.
    pub pool_mode: String,
    /// Backends per pool.
    pub pool_size: u64,
    /// Of these, for writes.
    pub write_slots: u64,
    /// Bound of the wait for a backend; zero is none.
    pub queue_ms: u64,
    /// Bound of a read.
    pub read_ms: u64,
    /// Bound of a write.
    pub write_ms: u64,
    /// Bound of a COMMIT.
    pub commit_ms: u64,
}
