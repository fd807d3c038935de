//! One run: servers, subject, load, faults, and the record of it all.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::task::spawn_blocking;

use crate::cluster::{self, Programs};
use crate::history::{Recorder, RunClock};
use crate::observe::journal::JournalWatch;
use crate::observe::queue::QueueSampler;
use crate::observe::server::{OWN_NAME, ServerSampler};
use crate::scenario::Scenario;
use crate::subject::Kind;
use crate::workload::{Login, Targets, Workload};

mod edge;
mod faults;
mod progress;
mod record;
mod rig;
mod setup;
mod truth;

pub use record::{FaultWindow, Header, Record, Row};
pub(crate) use rig::Fallen;
pub use rig::{DATABASE, Rig, RunPrograms, Service, USER};

#[cfg(test)]
pub(crate) use record::fixture;

/// Why there is no record.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Servers or programs could not be set up, or told something.
    #[error("cannot set up the run")]
    SetUp(#[from] cluster::Error),
    /// A file could not be written, or a socket opened.
    #[error("cannot keep the record")]
    Io(#[from] std::io::Error),
    /// A task of ours ended early.
    #[error("a part of the harness failed")]
    Task(#[from] tokio::task::JoinError),
}

/// What to run.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The scenario, its phases as they are to be.
    pub scenario: Scenario,
    /// What stands between application and servers.
    pub subject: Kind,
    /// Seed of everything that is drawn.
    pub seed: u64,
    /// Whether the phases were shortened.
    pub quick: bool,
    /// `PostgreSQL`.
    pub postgres: Programs,
    /// The other programs.
    pub programs: RunPrograms,
}

/// Runs a scenario, and keeps history and logs in `out`.
///
/// # Cancel safety
///
/// When dropped, faults are healed, and processes and folders removed, except for those of a call that just
/// runs on another thread: they end with it.
pub async fn run(options: RunOptions, out: &Path) -> Result<Record, Error> {
    std::fs::create_dir_all(out)?;
    let clock = RunClock::start();
    let rig = Arc::new(setup::rig(&options, clock).await?);
    let recorder = Arc::new(Recorder::create(clock, Some(&out.join("history.jsonl")))?);
    let scenario = &options.scenario;
    let samplers: Vec<ServerSampler> =
        rig.cluster.nodes().map(|node| ServerSampler::start(node.name(), node.port(), clock)).collect();
    let journal = rig.subject.state_dir().map(|state| JournalWatch::start(state, clock));
    let queue = rig.edge.as_ref().map(|edge| QueueSampler::start(&edge.stats(), clock));
    let load = scenario.workload.clone();
    let workload = Workload::prepare(load, scenario.bursts(), targets(&rig), Arc::clone(&recorder)).await;
    let start = clock.now();
    let quiet_end = start + scenario.phases.quiet;
    let end = quiet_end + scenario.faults_end() + scenario.phases.after;
    let workload = workload.start(options.seed, end);
    let progress = progress::start(Arc::clone(&recorder), end);

    let (faults, mut troubles) = faults::play(&rig, scenario, clock, quiet_end).await;

    workload.finish(scenario.phases.linger).await;
    drop(progress);
    let truth = {
        let rig = Arc::clone(&rig);
        spawn_blocking(move || truth::read(&rig, clock)).await?
    };
    troubles.extend(truth.trouble);
    rig.keep_logs(out)?;
    let record = Record {
        header: header(&options, &rig),
        start,
        quiet_end,
        end,
        faults,
        operations: recorder.take()?,
        rows: truth.rows,
        orders: truth.orders,
        fallen: rig.fallen.keys(),
        journal: journal.map(|watch| watch.decisions()).unwrap_or_default(),
        strays: truth.strays,
        servers: samplers.iter().flat_map(ServerSampler::samples).collect(),
        queue: queue.map(|sampler| sampler.samples()).unwrap_or_default(),
        alerts: rig.webhook.alerts(),
        troubles,
    };
    // Stopping servers blocks.
    spawn_blocking(move || drop(rig)).await?;
    Ok(record)
}

fn targets(rig: &Rig) -> Targets {
    Targets {
        sql: login(rig.subject.address(), "orders"),
        direct: login((Ipv4Addr::LOCALHOST, rig.cluster.primary().port()).into(), OWN_NAME),
        mirror: rig.mirror.address(),
        http: rig.edge.as_ref().map(edge::Edge::address),
        admin: rig.subject.admin(),
    }
}

fn login(address: SocketAddr, name: &'static str) -> Login {
    Login { address, user: USER.to_owned(), database: DATABASE.to_owned(), name }
}

fn header(options: &RunOptions, rig: &Rig) -> Header {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Header {
        scenario: options.scenario.name.clone(),
        summary: options.scenario.summary.clone(),
        subject: options.subject.to_string(),
        subject_version: rig.subject.version().to_owned(),
        postgres: options.postgres.full_version().to_owned(),
        harness: env!("CARGO_PKG_VERSION").to_owned(),
        seed: options.seed,
        started_at: since.as_secs(),
        quick: options.quick,
        pool: options.scenario.pool,
    }
}
