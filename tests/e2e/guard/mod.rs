//! A database that hangs cannot hang the application: lanes, deadlines, breakers, shedding, and errors that say
//! what became of a statement.
//!
//! The bounds are the product's promises. A machine that does many things at once cannot keep them to the
//! millisecond: [`at_most`] prints what was measured, and fails only beyond [`NOISE`] times the promise.

/// A cancel never ends an innocent statement, whatever is mixed.
mod cancels;
/// The error names what is wrong with the database.
mod causes;
/// Every statement is answered in time, and truthfully.
mod deadlines;
/// Who logs in at a server, and when.
mod door;
/// Writes cannot take what reads need, and reads that write are writes.
mod lanes;
/// Sessions that write and read at a rate.
mod load;
/// A hot row is not an outage.
mod lock_storm;
/// What rolls back is never refused.
mod rollback;
/// More work than there is capacity for.
mod shedding;
/// Writes are not served, in each way in which that can be, under full load.
mod stall;
/// What is not there when it is looked at, or not to be seen.
mod unseen;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tidegate_chaos::cluster::{Cluster, ClusterOptions, Node, NodeOptions, Programs, Replication};
use tidegate_tests::{
    BackendKey, Frames, Incoming, Message, Problem, Proxy, Replies, Reply, ScriptedApp, ScriptedBackend,
    ScriptedServer, wait_for,
};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use self::load::{How, Op, Running};
use crate::rig::{SOON, sidecar};

/// Allowance for a loaded machine: a bound of the contract may be exceeded by this factor.
const NOISE: u32 = 2;

/// Answers to a deadline come at the latest so long after it.
const ANSWER_SLACK: Duration = Duration::from_millis(500);

/// Control connections of a sidecar to one upstream, at most.
const CONTROL_CONNECTIONS: u64 = 3;

/// The promise, printed with what was measured.
fn at_most(what: &str, measured: Duration, promise: Duration) {
    println!("{what}: {measured:?} (promise {promise:?})");
    assert!(measured <= promise * NOISE, "{what} took {measured:?}; the promise is {promise:?}");
}

/// An answer at a deadline: not before, and at most the slack after it.
fn at_deadline(what: &str, took: Duration, deadline: Duration) {
    println!("{what}: {took:?} (deadline {deadline:?})");
    // Timers round; what came clearly before was not the deadline.
    assert!(took + Duration::from_millis(50) >= deadline, "{what} after {took:?}, before {deadline:?}");
    let late = took.saturating_sub(deadline);
    assert!(late <= ANSWER_SLACK * NOISE, "{what} came {late:?} after its deadline of {deadline:?}");
}

/// A primary whose commits wait for its standby, with an empty table `ledger (id)`.
fn synchronous_cluster() -> Cluster {
    let node = NodeOptions::new(Programs::find().unwrap());
    let options = ClusterOptions { node, standbys: 1, replication: Replication::Synchronous };
    let cluster = Cluster::start(&options).unwrap();
    cluster.primary().sql(LEDGER).unwrap();
    cluster
}

/// Without a primary key: a write that was applied twice must show, not fail.
const LEDGER: &str = "CREATE TABLE ledger (id bigint NOT NULL)";

/// A sidecar with these sections before a server.
async fn guarded(node: &Node, sections: &str) -> Proxy {
    sidecar(sections).upstream(&node.url()).start().await
}

/// A sidecar with these sections before a server that answers everything, until a message `strikes` in the status of its
/// transaction; from then on it does as `then` says.
async fn scripted<F>(
    sections: &str,
    strikes: fn(&Message, char) -> bool,
    then: fn(ScriptedBackend) -> F,
) -> (ScriptedServer, Proxy)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut server = ScriptedServer::start().await;
    server.serve(move |incoming| async move {
        let mut backend = match incoming {
            Incoming::Session(backend) => backend,
            Incoming::Cancel { connection, .. } => return connection.go_silent().await,
        };
        backend.welcome(&BackendKey { pid: 7, secret: vec![1, 2, 3, 4] }).await;
        let mut status = 'I';
        while let Some(message) = backend.next().await {
            if strikes(&message, status) {
                return then(backend).await;
            }
            backend.send(scripted_answer(&message, &mut status)).await;
        }
    });
    let proxy = sidecar(sections).upstream(&server.url()).start().await;
    (server, proxy)
}

fn scripted_answer(message: &Message, status: &mut char) -> Replies {
    let replies = Replies::new();
    match message.tag {
        b'Q' if message.body.starts_with(b"BEGIN") => {
            *status = 'T';
            replies.complete("BEGIN").ready(*status)
        }
        b'Q' if message.body.starts_with(b"ROLLBACK") => {
            *status = 'I';
            replies.complete("ROLLBACK").ready(*status)
        }
        b'Q' if message.body.starts_with(b"INSERT") => replies.complete("INSERT 0 1").ready(*status),
        b'Q' => replies.one_value("1"),
        b'P' => replies.message(b'1', &[]),
        b'B' => replies.message(b'2', &[]),
        b'E' => replies.complete("SELECT 1"),
        b'S' => replies.ready(*status),
        _ => replies,
    }
}

/// A raw session through the sidecar.
async fn session(proxy: &Proxy) -> ScriptedApp {
    ScriptedApp::session(proxy.address(), "postgres", "postgres").await.0
}

/// An answer, and how long it took.
async fn timed(app: &mut ScriptedApp, sql: &str) -> (Reply, Duration) {
    timed_frames(app, Frames::new().query(sql)).await
}

async fn timed_frames(app: &mut ScriptedApp, frames: Frames) -> (Reply, Duration) {
    let begin = Instant::now();
    let reply = app.exchange(frames).await;
    (reply, begin.elapsed())
}

/// The error must be this one, with these DETAIL keys, and leave the session alive.
#[track_caller]
fn refused(reply: &Reply, code: &str, details: &[(&str, &str)]) -> Problem {
    let problem = reply.error().unwrap_or_else(|| panic!("no error, but {:?}", reply.commands()));
    assert_eq!((problem.severity(), problem.code()), ("ERROR", code), "{problem:?}");
    for (key, wanted) in details {
        assert_eq!(problem.detail_of(key), Some(*wanted), "{key} in {problem:?}");
    }
    assert!(reply.status().is_some(), "ReadyForQuery after {problem:?}");
    complete(&problem);
    problem
}

/// What every error of ours must carry.
#[track_caller]
fn complete(problem: &Problem) {
    assert!(problem.detail_of("reason").is_some(), "a reason in {problem:?}");
    assert!(problem.detail_of("outcome").is_some(), "an outcome in {problem:?}");
    assert!(problem.message().starts_with("tidegate: "), "{problem:?}");
    if problem.code().starts_with("53") {
        assert_eq!(problem.detail_of("outcome"), Some("not_sent"), "{problem:?}");
        let retry = problem.detail_of("retry_after_ms").map(str::parse::<u64>);
        assert!(matches!(retry, Some(Ok(_))), "retry_after_ms in {problem:?}");
    }
}

// ---- looking past the sidecar ----

/// A session past the sidecar that looks at the server, and is not counted itself.
struct Watch(Client);

impl Watch {
    async fn new(node: &Node) -> Self {
        // Not over TCP: a network that is broken on purpose must not blind it.
        let mut config = tokio_postgres::Config::new();
        config.host_path(node.socket_dir()).port(node.port()).user("postgres").dbname("postgres");
        let (client, connection) = config.application_name("watch").connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        Self(client)
    }

    /// The first column of all rows.
    async fn column(&self, sql: &str) -> Vec<String> {
        let rows = self.0.simple_query(sql).await.unwrap();
        let cell = |message: SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
            _ => None,
        };
        rows.into_iter().filter_map(cell).collect()
    }

    async fn value(&self, sql: &str) -> String {
        self.column(sql).await.into_iter().next().unwrap_or_default()
    }

    /// Client backends that came over TCP, this session and other watches excluded.
    async fn backends(&self) -> u64 {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' \
                   AND client_addr IS NOT NULL AND application_name <> 'watch'";
        self.value(sql).await.parse().unwrap()
    }

    /// How often each id is in the ledger.
    async fn ledger(&self) -> BTreeMap<u64, usize> {
        let mut counts = BTreeMap::new();
        for id in self.column("SELECT id FROM ledger").await {
            *counts.entry(id.parse().unwrap()).or_default() += 1;
        }
        counts
    }

    /// Waits until this condition of the server is true.
    async fn wait(&self, what: &str, sql: &str) {
        wait_for(SOON, what, async || (self.value(sql).await == "t").then_some(())).await;
    }
}

/// The highest number of backends, looked at again and again.
struct Peak {
    highest: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Peak {
    async fn watch(node: &Node) -> Self {
        let watch = Watch::new(node).await;
        let highest = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&highest);
        let task = tokio::spawn(async move {
            loop {
                seen.fetch_max(watch.backends().await, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Self { highest, task }
    }

    fn end(self) -> u64 {
        self.task.abort();
        self.highest.load(Ordering::Relaxed)
    }
}

/// What the errors promise about the ledger: acknowledged is there once, refused is not there, nothing is there twice.
fn verdict(writes: &[Op], ledger: &BTreeMap<u64, usize>) {
    for op in writes {
        let copies = ledger.get(&op.id).copied().unwrap_or(0);
        let problem = op.problem.as_ref();
        assert!(copies <= 1, "applied {copies} times: {op:?}");
        match problem.map_or("", Problem::code) {
            "" => assert_eq!(copies, 1, "acknowledged, but lost: {op:?}"),
            "08007" => {}
            // 57P01 is PostgreSQL's own, of a session that it ended before it committed.
            code @ ("57014" | "40000" | "25P02" | "25006" | "53000" | "53300" | "57P01") => {
                assert_eq!(copies, 0, "told {code}, but there: {op:?}");
            }
            other => panic!("{other} is not an error of the contract: {op:?}"),
        }
    }
    println!("writes: {:?}", kinds(writes));
}

/// How often each answer came.
fn kinds<'a>(ops: impl IntoIterator<Item = &'a Op>) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for op in ops {
        let kind = op.problem.as_ref().map(|problem| {
            let of = |key| problem.detail_of(key).unwrap_or("-");
            format!("{} {} {} {}", problem.code(), of("reason"), of("cause"), of("outcome"))
        });
        *kinds.entry(kind.unwrap_or_else(|| "ok".to_owned())).or_default() += 1;
    }
    kinds
}

/// The duration that this share (per cent) of the operations do not exceed.
fn percentile(mut took: Vec<Duration>, percent: usize) -> Duration {
    assert!(!took.is_empty(), "no operations to judge by");
    took.sort_unstable();
    took[(took.len() - 1) * percent / 100]
}

/// The durations of those operations that meet the condition.
fn durations<'a>(ops: impl IntoIterator<Item = &'a Op>, meets: impl Fn(&Op) -> bool) -> Vec<Duration> {
    ops.into_iter().filter(|op| meets(op)).map(Op::took).collect()
}
