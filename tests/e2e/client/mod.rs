//! The client crate with a sidecar in its path: its promises hold there, too.
//!
//! The tests of the crate itself (`client/tests`) show each trap of the plain pool, and that this pool passes it straight
//! at `PostgreSQL`. Here it passes them behind the sidecar; faults are SIGSTOP of the sidecar or of the server behind it,
//! and stalling relays on either side.

/// Any future may be dropped at any await point.
mod drops;
#[path = "../../../client/tests/support/polls.rs"]
mod polls;
#[path = "../../../client/tests/support/service.rs"]
mod service;
/// Deadlines, priorities and errors pass between the two.
mod terms;
/// The traps of the plain pool.
mod traps;

use std::sync::Arc;
use std::time::Duration;

use tidegate_chaos::cluster::{Cluster, ClusterOptions, NodeOptions, Programs, Replication};
use tidegate_client::{Builder, Pool, Timeouts};
use tidegate_tests::{Bench, PATIENCE, Proxy, shared_postgres, wait_until};

use crate::trusting;

/// Bounds that a test can wait for.
fn brief() -> Timeouts {
    Timeouts {
        acquire: Duration::from_millis(500),
        connect: Duration::from_millis(500),
        read: Duration::from_secs(1),
        write: Duration::from_secs(1),
        commit: Duration::from_secs(1),
        total: None,
    }
}

fn builder(url: &str) -> Builder {
    Builder::parse(url).unwrap().timeouts(brief()).write_share(1.0)
}

fn url(proxy: &Proxy) -> String {
    proxy.url("postgres", "postgres")
}

/// A sidecar before the shared server, and a pool before the sidecar.
async fn pooled(size: usize) -> (Bench, Pool) {
    let bench = crate::bench("").await;
    let pool = builder(&url(&bench.proxy)).size(size).build().unwrap();
    (bench, pool)
}

/// No permit taken, nobody waiting.
fn is_quiet(pool: &Pool) -> bool {
    let status = pool.status();
    [status.read, status.write].iter().all(|lane| lane.in_flight == 0 && lane.waiting == 0)
}

async fn wait_quiet(pool: &Pool) {
    wait_until(PATIENCE, "all permits are back", || is_quiet(pool)).await;
}

/// Backends of the shared server that run a statement with this mark.
fn running(mark: &str) -> usize {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%{mark}%' \
         AND pid <> pg_backend_pid()"
    );
    shared_postgres().sql(&sql).unwrap().parse().unwrap()
}

/// A primary whose commits wait for its standby.
fn synchronous_cluster() -> Cluster {
    let node = NodeOptions::new(Programs::find().unwrap()).set("max_connections", "200");
    let options = ClusterOptions { node, standbys: 1, replication: Replication::Synchronous };
    let cluster = Cluster::start(&options).unwrap();
    cluster.primary().sql("CREATE TABLE t (id bigserial PRIMARY KEY, v text)").unwrap();
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stall_of_writes_is_not_a_stall_of_the_service() {
    // What the sidecar refuses at once must not queue up in the pool before it.
    let cluster = Arc::new(synchronous_cluster());
    // A machine that does other things as well makes reads wait; that is not what is looked at here.
    let patient = trusting("[shed]\ncodel_target = \"2s\"\ncodel_interval = \"2s\"");
    let proxy = patient.upstream(&cluster.primary().url()).start().await;
    let pool = service::pool(&url(&proxy));

    // The sidecar's 1.5 s, and the pool's next look: all its permits are with writes that were caught.
    let refused_within = Duration::from_millis(2100);
    service::assert_that_a_stall_of_writes_is_not_one_of_the_service(&pool, &cluster, refused_within, || ())
        .await;

    wait_quiet(&pool).await;
}
