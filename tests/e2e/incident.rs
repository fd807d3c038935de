//! Each way in which writes can hang is one incident: within seconds `/readyz/write` says no and why, somebody is
//! paged, and the heartbeat stops; once, and when it is over, once more, whatever happens to the sidecar meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tidegate_chaos::cluster::{
    Cluster, ClusterOptions, Node, NodeOptions, Programs, Replication, WalStorage,
};
use tidegate_chaos::fault::{Fault, Guard, Processes};
use tidegate_tests::{Proxy, WebReceiver, wait_for};
use tokio::task::{JoinSet, block_in_place};
use tokio::time::{Instant, sleep};
use tokio_postgres::NoTls;

use crate::rig::{SOON, sidecar};

/// From the first stuck write to the page.
const PAGED: Duration = Duration::from_secs(5);
/// A heartbeat is due once in this time.
const PERIOD: Duration = Duration::from_secs(1);
/// How long a fault lasts after everything about it was seen.
const LASTING: Duration = Duration::from_secs(2);

/// Which lanes hang with the fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hang {
    Writes,
    /// Whoever cannot be reached, or says nothing, serves no reads either.
    All,
}

/// What the page is called, also where reads hang as well: one server is one incident.
const ALERT: &str = "write_stalled";

/// A server under traffic, a sidecar before it, and whoever is to be told.
struct Stage {
    proxy: Proxy,
    pager: WebReceiver,
    heart: WebReceiver,
    _traffic: JoinSet<()>,
}

impl Stage {
    async fn start(node: &Node) -> Self {
        let (pager, heart) = (WebReceiver::start().await, WebReceiver::start().await);
        let settings = format!(
            "[cluster]\nupstreams = [\"127.0.0.1:{}\"]\n[timeouts]\nread = \"2s\"\nwrite = \"2s\"\ncommit = \"2s\"\n\
             [alerts]\nwebhooks = [{{ url = \"{}\" }}]\nheartbeat_url = \"{}\"\nheartbeat_interval = \"1s\"\n",
            node.port(),
            pager.url("/hook"),
            heart.url("/beat")
        );
        let proxy = sidecar(&settings).start().await;
        let mut traffic = JoinSet::new();
        for sql in
            ["INSERT INTO visits VALUES (now())"; 4].into_iter().chain(["SELECT count(*) FROM visits"; 2])
        {
            traffic.spawn(go_on(proxy.address(), sql));
        }
        let stage = Self { proxy, pager, heart, _traffic: traffic };
        wait_for(SOON, "writes commit and the heart beats", async || {
            let metrics = stage.proxy.metrics().await;
            let written = metrics.get("tidegate_service_seconds_count", &[("lane", "write")]);
            (written > Some(20.0) && !stage.heart.received().is_empty()).then_some(())
        })
        .await;
        stage
    }

    async fn ready(&self, path: &str) -> (u16, Value) {
        let answer = self.proxy.get(path).await;
        (answer.status, serde_json::from_str(&answer.body).unwrap())
    }

    /// Waits until this path says no, for this cause.
    async fn wait_refused(&self, path: &str, cause: &str) {
        let body = wait_for(SOON, &format!("{path} says no because of {cause}"), async || {
            let (status, body) = self.ready(path).await;
            (status == 503 && body["cause"] == cause).then_some(body)
        })
        .await;
        assert!(body["since"].as_str().is_some_and(|since| since.ends_with('Z')), "{body}");
    }

    /// Alert, status and cause of each message that was accepted, in the order of their coming.
    fn pages(&self) -> Vec<(String, String, String)> {
        let text = |body: &Value, key: &str| body[key].as_str().unwrap_or_default().to_owned();
        let bodies = self.pager.accepted();
        let bodies = bodies.iter().map(|body| serde_json::from_str::<Value>(body).unwrap());
        bodies.map(|body| (text(&body, "alert"), text(&body, "status"), text(&body, "cause"))).collect()
    }

    async fn wait_page(&self, status: &str) {
        wait_for(SOON * 2, &format!("{ALERT} {status}"), async || {
            self.pages().iter().any(|page| page.0 == ALERT && page.1 == status).then_some(())
        })
        .await;
    }

    /// Two periods after `since` nothing beats any more; looked at for as long as the fault is to last.
    async fn heart_stopped(&self, since: Instant) {
        // A beat may be on its way.
        tokio::time::sleep_until(since + PERIOD * 2 + PERIOD / 4).await;
        let beats = self.heart.received().len();
        sleep(LASTING).await;
        assert_eq!(self.heart.received().len(), beats, "heartbeats while no write commits");
    }

    /// All is well again: said, resolved, and the heart beats.
    async fn over(&self) {
        self.wait_page("resolved").await;
        for path in ["/readyz", "/readyz/write"] {
            wait_for(SOON, path, async || (self.ready(path).await.0 == 200).then_some(())).await;
        }
        let beats = self.heart.received().len();
        wait_for(SOON, "a heartbeat", async || (self.heart.received().len() > beats).then_some(())).await;
        wait_for(SOON, "nothing to be sent", async || {
            let pending = self.proxy.metrics().await.get("tidegate_alerts_pending", &[]);
            (pending == Some(0.0)).then_some(())
        })
        .await;
    }

    /// One page and one resolve, and nothing else.
    fn told_once(&self, cause: &str) {
        let pages = self.pages();
        let told: Vec<_> = pages.iter().map(|page| (&*page.0, &*page.1)).collect();
        assert_eq!(told, [(ALERT, "firing"), (ALERT, "resolved")]);
        assert_eq!(pages[0].2, cause);
    }

    /// What is said of both lanes.
    async fn wait_refusing(&self, hang: Hang, cause: &str) {
        self.wait_refused("/readyz/write", cause).await;
        match hang {
            Hang::Writes => assert_eq!(self.ready("/readyz").await.0, 200, "reads can be served"),
            Hang::All => self.wait_refused("/readyz", cause).await,
        }
    }
}

/// A session that runs a statement again and again, and logs in again when it has to.
async fn go_on(address: SocketAddr, sql: &'static str) {
    loop {
        let url = format!("postgres://postgres@{address}/postgres");
        if let Ok((client, connection)) = tokio_postgres::connect(&url, NoTls).await {
            let driver = tokio::spawn(connection);
            while !client.is_closed() {
                let _ = client.simple_query(sql).await;
                sleep(Duration::from_millis(20)).await;
            }
            driver.abort();
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// A primary whose commits wait for its standby.
fn synchronous() -> Cluster {
    let node = NodeOptions::new(Programs::find().unwrap());
    let options = ClusterOptions { node, standbys: 1, replication: Replication::Synchronous };
    let cluster = Cluster::start(&options).unwrap();
    cluster.primary().sql(VISITS).unwrap();
    cluster
}

const VISITS: &str = "CREATE TABLE visits (at timestamptz)";

fn alone(wal: WalStorage) -> Arc<Node> {
    let node = Node::start(&NodeOptions::new(Programs::find().unwrap()).wal(wal)).unwrap();
    node.sql(VISITS).unwrap();
    Arc::new(node)
}

/// A fault from its beginning to its end. In the middle the sidecar is killed and started again: the new process knows
/// nothing of the stall but what is on disk. One that forgets pages twice, or never says that it is over; and until it
/// has seen a commit it must not call itself well.
async fn suffer(stage: &mut Stage, inject: impl FnOnce() -> Guard, cause: &str, hang: Hang) {
    // The next write is stuck; there is one every few milliseconds.
    let struck = Instant::now();
    let fault = block_in_place(inject);
    stage.wait_page("firing").await;
    let paged = struck.elapsed();
    assert!(paged <= PAGED, "paged after {paged:?}");
    stage.wait_refusing(hang, cause).await;
    stage.heart_stopped(struck).await;
    stage.wait_refusing(hang, cause).await;

    let beats = stage.heart.received().len();
    stage.proxy.kill_and_restart().await;
    stage.wait_refusing(hang, cause).await;
    sleep(LASTING).await;
    assert_eq!(stage.heart.received().len(), beats, "heartbeats of a process that has seen no write commit");

    block_in_place(|| fault.heal()).unwrap();
    stage.over().await;
    stage.told_once(cause);
}

/// Of a server alone.
async fn alone_with(fault: Fault, wal: WalStorage, cause: &str, hang: Hang) {
    if let Some(why) = fault.obstacle() {
        println!("skipped: {fault}: {why}");
        return;
    }
    let node = block_in_place(|| alone(wal));
    let mut stage = Stage::start(&node).await;
    suffer(&mut stage, || fault.strike(&node).unwrap(), cause, hang).await;
}

fn primary() -> String {
    "primary".to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_freezes_stops_writes_and_is_told_once() {
    // The outage that this project exists for.
    let cluster = block_in_place(synchronous);
    let mut stage = Stage::start(cluster.primary()).await;
    let fault = Fault::Freeze { node: "s1".to_owned(), what: Processes::All };
    suffer(&mut stage, || fault.strike(&cluster.standbys()[0]).unwrap(), "sync_standby", Hang::Writes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_freezes_stops_writes_and_is_called_storage() {
    // Nothing can be cancelled or ended then; reads need no WAL.
    let fault = Fault::WalFreeze { node: primary() };
    alone_with(fault, WalStorage::Loop { mib: 512 }, "storage", Hang::Writes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_freezes_serves_nothing_and_both_lanes_say_so() {
    // Its kernel accepts and acknowledges: whoever waits for an error waits for ever.
    let fault = Fault::Freeze { node: primary(), what: Processes::All };
    alone_with(fault, WalStorage::Inside, "frozen", Hang::All).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_behind_a_black_hole_serves_nothing_and_both_lanes_say_so() {
    // Packets vanish without an error; TCP alone would try again for a quarter of an hour.
    let fault = Fault::DropPackets { node: primary(), larger_than: None, both_ways: false };
    alone_with(fault, WalStorage::Inside, "unreachable", Hang::All).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_turns_read_only_serves_reads_and_pages_for_writes() {
    // Every write fails at once there, with an error that many applications take for their own mistake.
    let fault = Fault::ReadOnly { node: primary() };
    alone_with(fault, WalStorage::Inside, "read_only", Hang::Writes).await;
}
