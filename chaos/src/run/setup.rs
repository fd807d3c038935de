//! Starts what a run needs, in order.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::task::spawn_blocking;

use crate::cluster::{Cable, Cluster, ClusterOptions, Node, NodeOptions, Result as ClusterResult};
use crate::history::RunClock;
use crate::observe::machine::Mirror;
use crate::observe::webhook::Webhook;
use crate::relay::Relay;
use crate::subject::{Subject, SubjectOptions, loopback};
use crate::workload;

use super::edge::Edge;
use super::rig::{DATABASE, Rig, USER};
use super::{Error, RunOptions};

/// Cluster first, then whoever connects to it.
pub(super) async fn rig(options: &RunOptions, clock: RunClock) -> Result<Rig, Error> {
    let webhook = Webhook::start(clock).await?;
    let (cluster, stranger) = {
        let options = options.clone();
        spawn_blocking(move || start_servers(&options)).await??
    };
    let (relays, cables) = start_relays(options, &cluster).await?;
    let addresses = cluster.nodes().map(|node| match relays.get(node.name()) {
        Some(relay) => relay.address(),
        None => loopback(node.port()),
    });
    let subject_options = SubjectOptions {
        upstreams: addresses.chain(stranger.as_ref().map(|node| loopback(node.port()))).collect(),
        pool: options.scenario.pool,
        webhook: Some(webhook.url()),
        tidegate: options.scenario.tidegate.clone(),
    };
    let (kind, programs) = (options.subject.clone(), options.programs.clone());
    let (subject, edge) = spawn_blocking(move || -> ClusterResult<(Subject, Option<Edge>)> {
        let subject = Subject::start(&kind, &programs.subjects, &subject_options)?;
        let edge = match (&programs.service, &programs.haproxy) {
            (Some(service), Some(haproxy)) => Some(Edge::start(service, haproxy, subject.address())?),
            _ => None,
        };
        Ok((subject, edge))
    })
    .await??;
    Ok(Rig {
        edge,
        subject,
        relays,
        cables,
        webhook,
        mirror: Mirror::start()?,
        stranger,
        fallen: Arc::default(),
        cluster,
    })
}

fn start_servers(options: &RunOptions) -> ClusterResult<(Cluster, Option<Node>)> {
    let plan = &options.scenario.cluster;
    let mut node = NodeOptions::new(options.postgres.clone())
        .wal(plan.wal.storage())
        // For pg_rewind.
        .set("wal_log_hints", "on")
        // For the truth.
        .set("track_commit_timestamp", "on")
        // Standbys read the workload's tables while they replay.
        .set("hot_standby_feedback", "on");
    for (parameter, value) in &plan.settings {
        node = node.set(parameter, value);
    }
    let start_stranger = || Node::start(&node.clone().name("stranger").own_identity());
    let stranger = plan.stranger.then(start_stranger).transpose()?;
    let cluster =
        Cluster::start(&ClusterOptions { node, standbys: plan.standbys, replication: plan.replication() })?;
    stranger.iter().try_for_each(create_tables)?;
    create_tables(cluster.primary())?;
    // Whoever logs in at a standby must find the database there.
    cluster.wait_replayed()?;
    Ok((cluster, stranger))
}

fn create_tables(primary: &Node) -> ClusterResult<()> {
    primary.sql(&format!("CREATE ROLE {USER} LOGIN; CREATE ROLE tidegate LOGIN"))?;
    primary.sql(&format!("CREATE DATABASE {DATABASE} OWNER {USER}"))?;
    primary.sql_in(DATABASE, &format!("SET ROLE {USER}; {}", workload::schema()))?;
    primary.sql_in(DATABASE, "VACUUM ANALYZE").map(drop)
}

type Links = (BTreeMap<String, Arc<Relay>>, BTreeMap<String, Arc<Cable>>);

async fn start_relays(options: &RunOptions, cluster: &Cluster) -> Result<Links, Error> {
    let (mut relays, mut cables) = (BTreeMap::new(), BTreeMap::new());
    let plan = &options.scenario.cluster;
    for node in cluster.nodes() {
        let (name, upstream) = (node.name().to_owned(), loopback(node.port()));
        if plan.cable {
            let (cable, listener) = spawn_blocking(Cable::lay).await??;
            relays.insert(name.clone(), Arc::new(Relay::over(listener, upstream)?));
            cables.insert(name, Arc::new(cable));
        } else if plan.relay {
            relays.insert(name, Arc::new(Relay::start(loopback(0), upstream).await?));
        }
    }
    Ok((relays, cables))
}
