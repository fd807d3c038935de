//! Shared by the tests of the crate: servers, pools, a relay that stalls, waiting.

#![allow(dead_code, reason = "each test binary uses a part of it, and one of them all")]
#![expect(clippy::unwrap_used, reason = "a fixture that does not get what it needs fails its test")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tidegate_chaos::cluster::{Cluster, ClusterOptions, Node, NodeOptions, Programs, Replication};
use tidegate_client::{Builder, Pool, Timeouts};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// What should take milliseconds must be seen within this time, also on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) fn options() -> NodeOptions {
    NodeOptions::new(Programs::find().unwrap()).set("max_connections", "200")
}

/// A server of the test's own.
pub(crate) fn own_postgres() -> Node {
    Node::start(&options()).unwrap()
}

/// One that the tests of a process share; for tests that neither stop nor configure it.
pub(crate) fn shared_postgres() -> &'static Node {
    static SHARED: OnceLock<Node> = OnceLock::new();
    SHARED.get_or_init(own_postgres)
}

/// A primary whose commits wait for its standby.
pub(crate) fn synchronous_cluster() -> Cluster {
    let options = ClusterOptions { node: options(), standbys: 1, replication: Replication::Synchronous };
    let cluster = Cluster::start(&options).unwrap();
    cluster.primary().sql("CREATE TABLE t (id bigserial PRIMARY KEY, v text)").unwrap();
    cluster
}

/// Bounds that a test can wait for.
pub(crate) fn brief() -> Timeouts {
    Timeouts {
        acquire: Duration::from_millis(500),
        connect: Duration::from_millis(500),
        read: Duration::from_secs(1),
        write: Duration::from_secs(1),
        commit: Duration::from_secs(1),
        total: None,
    }
}

/// Bounds that do not interfere with a test about something else, also on a busy machine.
pub(crate) fn patient() -> Timeouts {
    let patience = Duration::from_secs(10);
    Timeouts {
        acquire: patience,
        connect: patience,
        read: patience,
        write: patience,
        commit: patience,
        total: None,
    }
}

/// A pool whose connections the server knows by the name of the test.
pub(crate) fn pool(url: &str, name: &str, size: usize) -> Pool {
    builder(url, name).size(size).build().unwrap()
}

pub(crate) fn builder(url: &str, name: &str) -> Builder {
    Builder::parse(&format!("{url}?application_name={name}"))
        .unwrap()
        .name(name)
        .timeouts(brief())
        .write_share(1.0)
}

/// What backends of a name do, by state.
pub(crate) fn backends(node: &Node, name: &str, condition: &str) -> usize {
    let sql =
        format!("SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}' AND {condition}");
    node.sql(&sql).unwrap().parse().unwrap()
}

/// Looks again and again until it holds.
pub(crate) async fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < SOON, "not within {SOON:?}: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// No permit taken, nobody waiting.
pub(crate) fn is_quiet(pool: &Pool) -> bool {
    let status = pool.status();
    [status.read, status.write].iter().all(|lane| lane.in_flight == 0 && lane.waiting == 0)
}

/// A TCP relay that can stop to pass bytes on, in both directions, while it goes on accepting: what a network does
/// that loses packets, or a server that is frozen.
pub(crate) struct Relay {
    address: std::net::SocketAddr,
    stalled: watch::Sender<bool>,
    sent: Arc<AtomicUsize>,
    answers_max: Arc<AtomicUsize>,
}

impl Relay {
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stalled, watch) = watch::channel(false);
        let sent = Arc::new(AtomicUsize::new(0));
        let answers_max = Arc::new(AtomicUsize::new(usize::MAX));
        let (count, limit) = (Arc::clone(&sent), Arc::clone(&answers_max));
        tokio::spawn(async move {
            while let Ok((app, _)) = listener.accept().await {
                let limit = limit.load(Ordering::Relaxed);
                tokio::spawn(relay(app, port, watch.clone(), Arc::clone(&count), limit));
            }
        });
        Self { address, stalled, sent, answers_max }
    }

    /// Connections that are made from now on hear so many answers of the server, and then nothing.
    pub(crate) fn hush_after(&self, answers: usize) {
        self.answers_max.store(answers, Ordering::Relaxed);
    }

    /// How often applications have sent something.
    pub(crate) fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.address)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn stall(&self) {
        self.stalled.send_replace(true);
    }

    pub(crate) fn heal(&self) {
        self.stalled.send_replace(false);
    }
}

async fn relay(
    app: TcpStream,
    port: u16,
    stalled: watch::Receiver<bool>,
    sent: Arc<AtomicUsize>,
    answers_max: usize,
) {
    if *stalled.borrow() {
        // Its packets are lost, and nobody says so, also when the network is well again.
        std::future::pending::<()>().await;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let (app_in, app_out) = app.into_split();
    let (server_in, server_out) = server.into_split();
    let answers = AtomicUsize::new(0);
    tokio::select! {
        () = pass(app_in, server_out, stalled.clone(), &sent, usize::MAX) => {}
        () = pass(server_in, app_out, stalled, &answers, answers_max) => {}
    }
}

async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut stalled: watch::Receiver<bool>,
    count: &AtomicUsize,
    limit: usize,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(read) = from.read(&mut buffer).await else { return };
        if count.fetch_add(1, Ordering::Relaxed) >= limit {
            // Lost, and so is what comes behind it; nobody is told.
            std::future::pending::<()>().await;
        }
        if stalled.wait_for(|stalled| !stalled).await.is_err() || read == 0 {
            return;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
