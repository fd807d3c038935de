//! An open loop of reads, writes and health checks.
//!
//! Operations start when they are due, whatever became of those before them (Schroeder, Wierman,
//! Harchol-Balter, *Open Versus Closed*, NSDI 2006): a closed loop would slow down with the subject and
//! hide the very stall that it is to show. Each lane has sessions of its own, as an application's pools do.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep_until, timeout};

use crate::history::{Lane, Recorder, Via};

mod arrivals;
pub mod http;
mod machine;
pub(crate) mod sessions;
mod sql;

pub use arrivals::Arrivals;
pub use sessions::Login;

use sessions::Sessions;

/// How an insert is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WriteStyle {
    /// One statement, by the extended protocol.
    #[default]
    Autocommit,
    /// BEGIN, INSERT, COMMIT.
    Transaction,
    /// The two in turn.
    Mixed,
}

/// How much of what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkloadOptions {
    /// Sessions that read.
    pub readers: usize,
    /// Reads per second, over all of them.
    pub reads_per_second: f64,
    /// Sessions that write.
    pub writers: usize,
    /// Writes per second, over all of them.
    pub writes_per_second: f64,
    /// How a write is sent.
    pub write_style: WriteStyle,
    /// Sessions that update the one row that all of them share.
    pub hot_writers: usize,
    /// Their updates per second, over all of them.
    pub hot_writes_per_second: f64,
    /// How long each read keeps the server busy, in milliseconds (0: an index lookup).
    pub read_ms: u64,
    /// `GET /orders` per second through the service.
    pub http_reads_per_second: f64,
    /// `POST /orders` per second through the service.
    pub http_writes_per_second: f64,
    /// Questions to each health page per second.
    pub checks_per_second: f64,
}

impl Default for WorkloadOptions {
    /// The load that the measurements of poolers in a write stall were made with.
    fn default() -> Self {
        Self {
            readers: 10,
            reads_per_second: 40.0,
            writers: 50,
            writes_per_second: 40.0,
            write_style: WriteStyle::Autocommit,
            hot_writers: 0,
            hot_writes_per_second: 0.0,
            read_ms: 0,
            http_reads_per_second: 10.0,
            http_writes_per_second: 10.0,
            checks_per_second: 5.0,
        }
    }
}

/// More reads for a while, with sessions of their own.
#[derive(Debug, Clone, PartialEq)]
pub struct Burst {
    /// When it begins, counted from the start of the workload.
    pub at: Duration,
    /// How long it lasts.
    pub lasts: Duration,
    /// Reads per second.
    pub reads_per_second: f64,
    /// Sessions that it brings.
    pub sessions: usize,
}

/// Messages and reads per second that measure machine and server: as many as reads usually, so that percentiles can
/// be compared.
const MEASURES_PER_SECOND: f64 = 40.0;

/// Sessions past the subject: one that is late must not hold up the next read.
const DIRECT_SESSIONS: usize = 4;

/// Where the operations go.
#[derive(Debug, Clone)]
pub struct Targets {
    /// The subject, by `PostgreSQL`'s protocol.
    pub sql: Login,
    /// The reverse proxy in front of the service.
    pub http: Option<SocketAddr>,
    /// The subject's control plane.
    pub admin: Option<SocketAddr>,
    /// The primary that the run begins with, past the subject.
    pub direct: Login,
    /// What measures the machine.
    pub mirror: SocketAddr,
}

/// What all operations share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) options: WorkloadOptions,
    pub(crate) targets: Targets,
    readers: Sessions,
    writers: Sessions,
    hot_writers: Sessions,
    direct: Sessions,
    mirrored: machine::Mirrored,
    bursts: Vec<(Burst, Sessions)>,
    keys: AtomicI64,
}

impl Shared {
    /// A key that nobody used.
    fn next_key(&self) -> i64 {
        self.keys.fetch_add(1, Ordering::Relaxed)
    }
}

/// A workload whose sessions are logged in.
#[derive(Debug)]
pub struct Workload {
    shared: Arc<Shared>,
}

/// A workload that runs.
#[derive(Debug)]
pub struct Running {
    lanes: Vec<JoinHandle<JoinSet<()>>>,
}

impl Workload {
    /// Logs the sessions in.
    pub async fn prepare(
        options: WorkloadOptions,
        bursts: Vec<Burst>,
        targets: Targets,
        recorder: Arc<Recorder>,
    ) -> Self {
        let readers = Sessions::new(targets.sql.clone(), options.readers);
        let writers = Sessions::new(targets.sql.clone(), options.writers);
        let hot_writers = Sessions::new(targets.sql.clone(), options.hot_writers);
        let direct = Sessions::new(targets.direct.clone(), DIRECT_SESSIONS);
        for sessions in [&readers, &writers, &hot_writers, &direct] {
            sessions.log_in().await;
        }
        // Those of a burst log in when it comes.
        let with_sessions = |burst: Burst| {
            let sessions = Sessions::new(targets.sql.clone(), burst.sessions);
            (burst, sessions)
        };
        let bursts = bursts.into_iter().map(with_sessions).collect();
        let keys = AtomicI64::new(1);
        let mirrored = machine::Mirrored::new(targets.mirror);
        let shared = Shared {
            recorder,
            options,
            targets,
            readers,
            writers,
            hot_writers,
            direct,
            mirrored,
            bursts,
            keys,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Starts the lanes; the first operation is due now, none after `until`.
    pub fn start(self, seed: u64, until: Duration) -> Running {
        let mut lanes = Lanes { shared: &self.shared, seed, until, tasks: Vec::new() };
        lanes.all();
        Running { lanes: lanes.tasks }
    }
}

impl Running {
    /// Waits for the last operation to be due, then at most `linger` for answers. What has none by then
    /// stays without one.
    pub async fn finish(self, linger: Duration) {
        for lane in self.lanes {
            // A lane that panicked has said so.
            let Ok(mut operations) = lane.await else { continue };
            let answered = async { while operations.join_next().await.is_some() {} };
            if timeout(linger, answered).await.is_err() {
                operations.abort_all();
            }
        }
    }
}

/// Starts one task per lane.
struct Lanes<'a> {
    shared: &'a Arc<Shared>,
    seed: u64,
    until: Duration,
    tasks: Vec<JoinHandle<JoinSet<()>>>,
}

impl Lanes<'_> {
    fn all(&mut self) {
        let options = self.shared.options.clone();
        self.lane(options.reads_per_second, |shared, intended| async move {
            let id = shared.recorder.invoke(Lane::Read, Via::Sql, "items", None, intended);
            sql::read(&shared, &shared.readers, id).await;
        });
        self.lane(options.writes_per_second, |shared, intended| async move {
            let key = shared.next_key();
            let id = shared.recorder.invoke(Lane::Write, Via::Sql, sql::WRITES, Some(key), intended);
            sql::write(&shared, &shared.writers, id, sql::WRITES, key).await;
        });
        self.lane(options.hot_writes_per_second, |shared, intended| async move {
            let key = shared.next_key();
            let id = shared.recorder.invoke(Lane::Write, Via::Sql, sql::HOT, Some(key), intended);
            sql::write(&shared, &shared.hot_writers, id, sql::HOT, key).await;
        });
        for number in 0..self.shared.bursts.len() {
            self.burst(number);
        }
        self.lane(MEASURES_PER_SECOND, |shared, intended| async move {
            let id = shared.recorder.invoke(Lane::Monitor, Via::Machine, "mirror", None, intended);
            shared.recorder.sent(id);
            let outcome = shared.mirrored.exchange(id).await;
            shared.recorder.end(id, outcome);
        });
        self.lane(MEASURES_PER_SECOND, |shared, intended| async move {
            let id = shared.recorder.invoke(Lane::Monitor, Via::Direct, "items", None, intended);
            sql::read(&shared, &shared.direct, id).await;
        });
        if let Some(service) = self.shared.targets.http {
            self.http(service, &options);
        }
        if let Some(admin) = self.shared.targets.admin {
            for path in ["/livez", "/readyz", "/status"] {
                self.check(options.checks_per_second, admin, Via::Admin, path);
            }
        }
    }

    fn burst(&mut self, number: usize) {
        let burst = self.shared.bursts[number].0.clone();
        let from = self.shared.recorder.clock().now() + burst.at;
        let until = from + burst.lasts;
        self.lane_between(burst.reads_per_second, from, until, move |shared, intended| async move {
            let id = shared.recorder.invoke(Lane::Read, Via::Sql, "burst", None, intended);
            sql::read(&shared, &shared.bursts[number].1, id).await;
        });
    }

    fn http(&mut self, service: SocketAddr, options: &WorkloadOptions) {
        self.lane(options.http_reads_per_second, move |shared, intended| async move {
            let id = shared.recorder.invoke(Lane::Read, Via::Http, "/orders", None, intended);
            shared.recorder.sent(id);
            let outcome = http::get(service, "/orders").await;
            shared.recorder.end(id, outcome);
        });
        self.lane(options.http_writes_per_second, move |shared, intended| async move {
            let key = shared.next_key();
            let id = shared.recorder.invoke(Lane::Write, Via::Http, "/orders", Some(key), intended);
            shared.recorder.sent(id);
            let outcome = http::post_order(service, key).await;
            shared.recorder.end(id, outcome);
        });
        self.check(options.checks_per_second, service, Via::Http, "/healthz");
    }

    fn check(&mut self, per_second: f64, target: SocketAddr, via: Via, path: &'static str) {
        self.lane(per_second, move |shared, intended| async move {
            let id = shared.recorder.invoke(Lane::Monitor, via, path, None, intended);
            shared.recorder.sent(id);
            let outcome = http::get(target, path).await;
            shared.recorder.end(id, outcome);
        });
    }

    fn lane<F, Work>(&mut self, per_second: f64, operation: F)
    where
        F: Fn(Arc<Shared>, Duration) -> Work + Send + 'static,
        Work: Future<Output = ()> + Send + 'static,
    {
        let from = self.shared.recorder.clock().now();
        self.lane_between(per_second, from, self.until, operation);
    }

    fn lane_between<F, Work>(&mut self, per_second: f64, from: Duration, until: Duration, operation: F)
    where
        F: Fn(Arc<Shared>, Duration) -> Work + Send + 'static,
        Work: Future<Output = ()> + Send + 'static,
    {
        let number = self.tasks.len() as u64;
        let arrivals = Arrivals::new(per_second, self.seed.wrapping_add(number), from, until);
        let shared = Arc::clone(self.shared);
        self.tasks.push(tokio::spawn(async move {
            let mut operations = JoinSet::new();
            for intended in arrivals {
                sleep_until(shared.recorder.clock().instant(intended)).await;
                while operations.try_join_next().is_some() {}
                operations.spawn(operation(Arc::clone(&shared), intended));
            }
            operations
        }));
    }
}

/// The tables of the workload, for a superuser to create.
pub fn schema() -> &'static str {
    sql::SCHEMA
}
