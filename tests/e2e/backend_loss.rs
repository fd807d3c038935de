//! Backends die under load: every session goes on or gets a proper error, nothing acknowledged is lost, nothing refused
//! is there, and the pool heals by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tidegate_chaos::cluster::{Node, Signal, StopMode};
use tidegate_tests::{
    BackendKey, Frames, Incoming, Problem, Received, Replies, ScriptedApp, ScriptedBackend, ScriptedServer,
    wait_for, within,
};
use tokio::task::{JoinSet, block_in_place, spawn_blocking};

use crate::rig::{Rig, SOON, own_postgres, pool_of, run, sidecar, value};

const SESSIONS: usize = 20;
/// No answer may take longer, counted from when the server is back.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is known of one inserted id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// PostgreSQL said so.
    Committed,
    /// The error says that it is not there.
    Absent,
    /// Either way is right.
    Unknown,
}

/// What all sessions saw.
#[derive(Default)]
struct History {
    next_id: AtomicU64,
    stop: AtomicBool,
    fates: Mutex<Vec<(u64, Fate)>>,
    /// Begin and end of every statement that took long.
    slow: Mutex<Vec<(Instant, Instant)>>,
    /// What must never happen.
    broken: Mutex<Vec<String>>,
    errors: AtomicU64,
    successes: AtomicU64,
    /// How often each error came, for whoever reads a failure.
    kinds: Mutex<BTreeMap<String, u64>>,
}

impl std::fmt::Debug for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("History")
            .field("successes", &self.successes)
            .field("errors", &self.kinds.lock().unwrap())
            .field("broken", &self.broken.lock().unwrap())
            .finish_non_exhaustive()
    }
}

impl History {
    fn blame(&self, what: String) {
        self.broken.lock().unwrap().push(what);
    }

    fn fate(&self, id: u64, fate: Fate) {
        self.fates.lock().unwrap().push((id, fate));
    }
}

/// What came of one exchange.
enum Answer {
    /// Command tag of the last statement.
    Done(String),
    Failed(Problem),
    /// The session is over; its FATAL error, unless it ended without a word.
    Over(Option<Problem>),
}

/// One application session; it connects again when it must.
struct Worker {
    app: Option<ScriptedApp>,
    address: std::net::SocketAddr,
    history: Arc<History>,
}

impl Worker {
    async fn exchange(&mut self, sql: &str) -> Answer {
        let begin = Instant::now();
        let answer = self.attempt(sql).await;
        let took = begin.elapsed();
        if took > Duration::from_secs(1) {
            self.history.slow.lock().unwrap().push((begin, Instant::now()));
        }
        match &answer {
            Answer::Done(_) => drop(self.history.successes.fetch_add(1, Ordering::Relaxed)),
            Answer::Failed(problem) => self.inspect(sql, problem),
            Answer::Over(Some(problem)) => {
                self.app = None;
                self.inspect(sql, problem);
            }
            Answer::Over(None) => {
                self.app = None;
                self.history.blame(format!("{sql}: the session ended without a word"));
            }
        }
        answer
    }

    async fn attempt(&mut self, sql: &str) -> Answer {
        if self.app.is_none() {
            match Self::connect(self.address).await {
                Ok(app) => self.app = Some(app),
                Err(problem) => return Answer::Over(Some(problem)),
            }
        }
        let app = self.app.as_mut().unwrap();
        if app.try_send(Frames::new().query(sql)).await.is_err() {
            return Answer::Over(None);
        }
        let (mut problem, mut command) = (None, String::new());
        loop {
            match app.receive_within(Duration::from_secs(20)).await {
                Received::Message(message) => match message.tag {
                    b'Z' => return problem.map_or(Answer::Done(command), Answer::Failed),
                    b'C' => command = message.strings().remove(0),
                    b'E' => problem = message.problem(),
                    _ => {}
                },
                Received::Closed { .. } | Received::Reset(_) => return Answer::Over(problem),
                Received::Silence => {
                    self.history.blame(format!("{sql}: no answer within 20 s"));
                    return Answer::Over(problem);
                }
            }
        }
    }

    async fn connect(address: std::net::SocketAddr) -> Result<ScriptedApp, Problem> {
        let mut app = ScriptedApp::connect(address).await;
        let who = tidegate_tests::Credentials { user: "postgres", password: "", database: "postgres" };
        app.log_in(who).await.map(|_| app)
    }

    /// An error must be one that a driver understands; ours must say what is known.
    fn inspect(&self, sql: &str, problem: &Problem) {
        self.history.errors.fetch_add(1, Ordering::Relaxed);
        let kind = format!("{} {}: {}", problem.severity(), problem.code(), problem.message());
        *self.history.kinds.lock().unwrap().entry(kind).or_default() += 1;
        if problem.code().len() != 5 || problem.message().is_empty() {
            self.history.blame(format!("{sql}: {problem:?}"));
        }
        let ours = problem.message().starts_with("tidegate: ");
        let login = problem.severity() == "FATAL" && problem.code() == "53300";
        if ours && !login && (problem.detail_of("reason").is_none() || problem.detail_of("outcome").is_none())
        {
            self.history.blame(format!("{sql}: keys are missing in DETAIL of {problem:?}"));
        }
        if ours
            && matches!(problem.code(), "53300" | "53000")
            && problem.detail_of("retry_after_ms").is_none()
        {
            self.history.blame(format!("{sql}: no retry_after_ms in {problem:?}"));
        }
    }

    async fn work(mut self, number: usize) {
        let mut round = number;
        while !self.history.stop.load(Ordering::Relaxed) {
            let before = self.history.errors.load(Ordering::Relaxed);
            match round % 3 {
                0 => drop(self.exchange("SELECT count(*) FROM ledger WHERE id < 10").await),
                1 => self.autocommit().await,
                _ => self.transaction().await,
            }
            round += 1;
            // After an error a sane application breathes; the others must not flood the server either.
            let pause_ms = if self.history.errors.load(Ordering::Relaxed) > before { 20 } else { 2 };
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        }
    }

    async fn autocommit(&mut self) {
        let id = self.history.next_id.fetch_add(1, Ordering::Relaxed);
        let fate = match self.exchange(&format!("INSERT INTO ledger VALUES ({id})")).await {
            Answer::Done(_) => Fate::Committed,
            Answer::Failed(problem) | Answer::Over(Some(problem)) => told(&problem),
            Answer::Over(None) => Fate::Unknown,
        };
        self.history.fate(id, fate);
    }

    async fn transaction(&mut self) {
        let id = self.history.next_id.fetch_add(1, Ordering::Relaxed);
        let mut failed = false;
        for sql in ["BEGIN", &format!("INSERT INTO ledger VALUES ({id})"), "SELECT 1"] {
            match self.exchange(sql).await {
                Answer::Done(_) if failed => {
                    self.history.blame(format!("{sql} succeeded in a transaction that had failed"));
                }
                Answer::Done(_) => {}
                Answer::Failed(_) => failed = true,
                // What was not committed yet cannot be any more.
                Answer::Over(_) => return self.history.fate(id, Fate::Absent),
            }
            // A refused BEGIN has begun nothing.
            if failed && sql == "BEGIN" {
                return;
            }
        }
        let fate = match self.exchange("COMMIT").await {
            Answer::Done(tag) if tag == "COMMIT" && failed => {
                self.history.blame("COMMIT of a failed transaction reported success".to_owned());
                Fate::Unknown
            }
            Answer::Done(tag) if tag == "COMMIT" => Fate::Committed,
            Answer::Done(_) => Fate::Absent,
            _ if failed => Fate::Absent,
            Answer::Failed(problem) | Answer::Over(Some(problem)) => told(&problem),
            Answer::Over(None) => Fate::Unknown,
        };
        self.history.fate(id, fate);
        if self.app.is_some() && !matches!(fate, Fate::Committed) {
            drop(self.exchange("ROLLBACK").await);
        }
    }
}

/// What the table of errors promises.
fn told(problem: &Problem) -> Fate {
    let absent = matches!(problem.code(), "40000" | "57014" | "25P02") || problem.code().starts_with("53");
    let stated = matches!(problem.detail_of("outcome"), Some("not_sent" | "rolled_back"));
    if absent || stated { Fate::Absent } else { Fate::Unknown }
}

/// Twenty sessions work, the fault happens, all must work again; then the table is compared with what they were told.
async fn survive(fault: impl FnOnce(&Node) + Send + 'static) {
    let node = Arc::new(own_postgres(&[("max_connections", "50")]));
    node.sql("CREATE TABLE ledger (id bigint PRIMARY KEY)").unwrap();
    let proxy = sidecar("[pool]\nsize = 8\n").upstream(&node.url()).start().await;
    let history = Arc::new(History::default());
    let mut workers = JoinSet::new();
    for number in 0..SESSIONS {
        let worker = Worker { app: None, address: proxy.address(), history: Arc::clone(&history) };
        workers.spawn(worker.work(number));
    }
    let grown = async |by: u64| {
        let start = history.successes.load(Ordering::Relaxed);
        let begin = Instant::now();
        while history.successes.load(Ordering::Relaxed) < start + by {
            assert!(begin.elapsed() < Duration::from_secs(15), "the sessions are stuck: {history:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    grown(500).await;
    assert_eq!(history.errors.load(Ordering::Relaxed), 0, "errors before the fault");

    let struck = Arc::clone(&node);
    spawn_blocking(move || fault(&struck)).await.unwrap();
    let look = || node.sql("SELECT 1").is_ok();
    wait_for(SOON, "the server is back", async || block_in_place(look).then_some(())).await;
    let back = Instant::now();
    grown(200).await;
    wait_for(PATIENCE, "errors cease", async || {
        let errors = history.errors.load(Ordering::Relaxed);
        grown(300).await;
        (history.errors.load(Ordering::Relaxed) == errors).then_some(())
    })
    .await;
    history.stop.store(true, Ordering::Relaxed);
    // A panic in one of them is this test's.
    within(Duration::from_secs(25), "the sessions end", workers.join_all()).await;

    verdict(&node, &history, back);
}

fn verdict(node: &Node, history: &History, back: Instant) {
    let broken = history.broken.lock().unwrap();
    assert!(
        broken.is_empty(),
        "{} broken promises, such as {:#?}",
        broken.len(),
        &broken[..broken.len().min(5)]
    );
    for (begin, end) in history.slow.lock().unwrap().iter() {
        let late = end.saturating_duration_since(back.max(*begin));
        assert!(late < PATIENCE, "an answer came {late:?} after the server was back");
    }
    let present: BTreeSet<u64> =
        node.sql("SELECT id FROM ledger").unwrap().lines().map(|line| line.parse().unwrap()).collect();
    let fates = history.fates.lock().unwrap();
    let those = |fate: Fate| fates.iter().filter(move |(_, known)| *known == fate).map(|(id, _)| *id);
    let lost: Vec<u64> = those(Fate::Committed).filter(|id| !present.contains(id)).collect();
    let refuted: Vec<u64> = those(Fate::Absent).filter(|id| present.contains(id)).collect();
    assert!(lost.is_empty(), "acknowledged, but not there: {lost:?}");
    assert!(refuted.is_empty(), "refused, but there: {refuted:?}");
    println!(
        "errors {}, acknowledged {}",
        history.errors.load(Ordering::Relaxed),
        those(Fate::Committed).count()
    );
}

/// Process ids of the pool's backends. The control plane's are told by what they do: they never touch the ledger.
fn pool_backends(node: &Node) -> Vec<u32> {
    let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' \
               AND client_addr IS NOT NULL AND (query LIKE '%ledger%' OR query IN ('SELECT 1', 'COMMIT'))";
    node.sql(sql).unwrap_or_default().lines().map(|line| line.parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminated_backends_are_replaced() {
    // An administrator ends one backend after the other, whatever they do at that moment.
    survive(|node| {
        for round in 0..15_usize {
            let backends = pool_backends(node);
            if let Some(pid) = backends.get(round % backends.len().max(1)) {
                node.sql(&format!("SELECT pg_terminate_backend({pid})")).unwrap();
            }
            std::thread::sleep(Duration::from_millis(40));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_backend_takes_the_server_down_but_no_session() {
    // SIGKILL of one backend makes PostgreSQL end all others and recover.
    survive(|node| {
        let pid = wait_for_backend(node);
        node.signal(pid, Signal::KILL).unwrap();
        let start = Instant::now();
        // The old postmaster lives; its log says when recovery is over.
        while node.log().matches("database system is ready to accept connections").count() < 2 {
            assert!(start.elapsed() < SOON, "no recovery");
            std::thread::sleep(Duration::from_millis(5));
        }
    })
    .await;
}

fn wait_for_backend(node: &Node) -> u32 {
    let start = Instant::now();
    loop {
        if let Some(pid) = pool_backends(node).first() {
            return *pid;
        }
        assert!(start.elapsed() < SOON, "no backend at work");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fast_restart_is_survived() {
    // All sessions get FATAL 57P01 from the server, then connections are refused, then it is starting up (57P03).
    survive(|node| node.restart(StopMode::Fast).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_immediate_restart_is_survived() {
    // Backends quit with a WARNING only; commits in flight may be either way.
    survive(|node| node.restart(StopMode::Immediate).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_is_survived() {
    // Sockets end without a word.
    survive(|node| {
        node.kill().unwrap();
        std::thread::sleep(Duration::from_millis(500));
        node.resume().unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_heals_after_more_failed_connects_than_it_has_slots() {
    // A slot that a failed connect keeps is lost; after as many failures as slots the pool would be dead for good.
    let node = own_postgres(&[]);
    let proxy = sidecar("[pool]\nsize = 2\n").upstream(&node.url()).start().await;
    let mut apps = Vec::new();
    for _ in 0..4 {
        apps.push(ScriptedApp::session(proxy.address(), "postgres", "postgres").await.0);
    }
    run(&mut apps[0], "SELECT 1").await;
    node.stop(StopMode::Fast).unwrap();

    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(4) {
        for app in &mut apps {
            app.send(Frames::new().query("SELECT 1")).await;
        }
        for app in &mut apps {
            let reply = app.reply_within(SOON).await;
            let error = reply.error().expect("an error while the server is down");
            assert!(matches!(error.code(), "53000" | "53300"), "{error:?}");
            assert_eq!(error.detail_of("outcome"), Some("not_sent"), "{error:?}");
            assert!(error.detail_of("retry_after_ms").is_some(), "{error:?}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node.resume().unwrap();

    wait_for(PATIENCE, "the pool is whole again", async || {
        apps[0].query("SELECT 1").await.error().is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_transaction_that_lost_its_backend_never_commits() {
    // The first half is gone. Going on with a new backend would commit the second half alone.
    let rig = Rig::start(pool_of(2)).await;
    rig.sql("CREATE TABLE t (a int)");
    let mut app = rig.app().await;
    run(&mut app, "BEGIN").await;
    run(&mut app, "INSERT INTO t VALUES (1)").await;
    let pid = value(&mut app, "SELECT pg_backend_pid()").await;
    rig.sql(&format!("SELECT pg_terminate_backend({pid}, 5000)"));

    let next = app.query("INSERT INTO t VALUES (2)").await;
    let after = app.query("SELECT 1").await;
    let pipelined = app.exchange(Frames::new().unnamed("SELECT 1", &[]).sync()).await;
    let end = app.query("COMMIT").await;

    assert_eq!(next.error().map(|error| error.severity().to_owned()).as_deref(), Some("ERROR"));
    assert_eq!(next.status(), Some('E'));
    assert_eq!((after.error_code().as_str(), after.status()), ("25P02", Some('E')));
    assert_eq!((pipelined.error_code().as_str(), pipelined.status()), ("25P02", Some('E')));
    assert_ne!(end.commands(), ["COMMIT"]);
    if end.status() == Some('E') {
        run(&mut app, "ROLLBACK").await;
    }
    assert_eq!(value(&mut app, "SELECT count(*) FROM t").await, "0");
}

#[tokio::test]
async fn what_stands_behind_the_rollback_of_a_lost_transaction_is_run() {
    // Seen: neither run nor refused, in a pipeline that was answered without an error.
    let rig = Rig::start(pool_of(2)).await;
    rig.sql("CREATE TABLE t (a int)");
    let mut app = rig.app().await;
    run(&mut app, "BEGIN").await;
    run(&mut app, "INSERT INTO t VALUES (1)").await;
    let pid = value(&mut app, "SELECT pg_backend_pid()").await;
    rig.sql(&format!("SELECT pg_terminate_backend({pid}, 5000)"));
    assert_eq!(app.query("SELECT 1").await.status(), Some('E'));

    let more = Frames::new().unnamed("ROLLBACK", &[]).unnamed("INSERT INTO t VALUES (2)", &[]);
    let reply = app.exchange(more.sync()).await;

    assert_eq!((reply.tags().as_str(), reply.status()), ("12nC12nCZ", Some('I')), "{:?}", reply.error());
    assert_eq!(reply.commands(), ["ROLLBACK", "INSERT 0 1"]);
    assert_eq!(value(&mut app, "SELECT string_agg(a::text, ' ') FROM t").await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_behind_the_rollback_of_a_lost_transaction_is_refused_without_a_server() {
    // The ROLLBACK itself needs none: an application that gets an error for it gives its connection up.
    let node = own_postgres(&[]);
    let proxy = sidecar("").upstream(&node.url()).start().await;
    let rollback = || Frames::new().unnamed("ROLLBACK", &[]);
    let mut apps = [in_transaction(&proxy).await, in_transaction(&proxy).await];
    block_in_place(|| node.stop(StopMode::Fast)).unwrap();
    for app in &mut apps {
        assert_eq!(app.query("SELECT 1").await.status(), Some('E'));
    }
    let [mut alone, mut with_more] = apps;

    let rolled_back = alone.exchange(rollback().sync()).await;
    let refused = with_more.exchange(rollback().unnamed("SELECT 1", &[]).sync()).await;

    assert_eq!((rolled_back.tags().as_str(), rolled_back.status()), ("12nCZ", Some('I')));
    assert_eq!((refused.tags().as_str(), refused.status()), ("12nCEZ", Some('I')));
    assert_eq!(refused.error().unwrap().detail_of("outcome"), Some("not_sent"));
}

/// A session in a transaction that has a backend.
async fn in_transaction(proxy: &tidegate_tests::Proxy) -> ScriptedApp {
    let (mut app, _) = ScriptedApp::session(proxy.address(), "postgres", "postgres").await;
    run(&mut app, "BEGIN").await;
    run(&mut app, "SELECT 1").await;
    app
}

#[tokio::test]
async fn a_commit_that_finds_its_backend_dead_is_no_success() {
    // The most dangerous statement to be told a lie about.
    let rig = Rig::start(pool_of(2)).await;
    rig.sql("CREATE TABLE t (a int)");
    let mut app = rig.app().await;
    run(&mut app, "BEGIN").await;
    run(&mut app, "INSERT INTO t VALUES (1)").await;
    let pid = value(&mut app, "SELECT pg_backend_pid()").await;
    rig.sql(&format!("SELECT pg_terminate_backend({pid}, 5000)"));

    let end = app.query("COMMIT").await;

    assert_ne!(end.commands(), ["COMMIT"]);
    if end.status() != Some('I') {
        run(&mut app, "ROLLBACK").await;
    }
    assert_eq!(value(&mut app, "SELECT count(*) FROM t").await, "0");
}

#[tokio::test]
async fn a_statement_whose_backend_is_terminated_gets_a_proper_error() {
    // The session outlives its backend, and the error says what PostgreSQL said or what is known.
    let rig = Rig::start(pool_of(1)).await;
    let mut app = rig.app().await;
    app.send(Frames::new().query("SELECT pg_sleep(64)")).await;
    rig.wait_running("SELECT pg_sleep(64)").await;

    rig.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(64)'");
    let reply = app.reply_within(Duration::from_secs(3)).await;

    let error = reply.error().unwrap();
    assert_eq!((error.severity(), error.code().len()), ("ERROR", 5));
    assert_eq!(reply.status(), Some('I'));
    assert_eq!(value(&mut app, "SELECT 1").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_a_lost_backend_was_to_give_and_take_are_as_before() {
    // Drivers prepare under the same name again when they try again: it would be taken (42P05) for as long as the session
    // lives, and one whose Close got an error would be gone.
    let rig = Rig::start(pool_of(2)).await;
    rig.sql("CREATE TABLE t (a int)");
    let (mut app, mut locker) = (rig.app().await, rig.app().await);
    let old = Frames::new().parse("old", "SELECT 'old'", &[]);
    assert_eq!(app.exchange(old.sync()).await.error(), None);
    let select = "SELECT count(*) FROM t";
    let first = Frames::new().parse("new", select, &[]).bind("", "new", &[]).execute("", 0);
    run(&mut locker, "BEGIN; LOCK TABLE t").await;
    app.send(first.clone().close_statement("old").sync()).await;
    rig.wait_running(select).await;

    rig.sql(&format!(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE query = '{select}'"
    ));
    let lost = app.reply().await;
    run(&mut locker, "ROLLBACK").await;
    let again = app.exchange(first.sync()).await;
    let kept = app.exchange(Frames::new().bind("", "old", &[]).execute("", 0).sync()).await;

    assert_eq!((lost.tags().as_str(), lost.status()), ("EZ", Some('I')));
    assert_eq!((again.error(), again.value().as_deref()), (None, Some("0")));
    assert_eq!((kept.error(), kept.value().as_deref()), (None, Some("old")));
}

// ---- a server that misbehaves ----

/// A sidecar before a fake server. The first session of the pool to send this query meets the misbehaviour; everything
/// else is answered as PostgreSQL would.
async fn before<F>(
    misbehave: impl Fn(ScriptedBackend) -> F + Send + Sync + 'static,
) -> (ScriptedServer, tidegate_tests::Proxy)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut server = ScriptedServer::start().await;
    let (misbehave, first) = (Arc::new(misbehave), Arc::new(AtomicBool::new(true)));
    server.serve(move |incoming| {
        let (misbehave, first) = (Arc::clone(&misbehave), Arc::clone(&first));
        async move {
            let Incoming::Session(mut backend) = incoming else { return };
            backend.welcome(&BackendKey { pid: 7, secret: vec![1, 2, 3, 4] }).await;
            while let Some(message) = backend.next().await {
                let replies = match message.tag {
                    b'Q' if message.body.starts_with(b"SELECT bad") => {
                        if first.swap(false, Ordering::SeqCst) {
                            return misbehave(backend).await;
                        }
                        Replies::new().one_value("good")
                    }
                    b'Q' if message.body.starts_with(b"SELECT") => Replies::new().one_value("good"),
                    b'Q' => Replies::new().complete("SET").ready('I'),
                    b'P' => Replies::new().message(b'1', &[]),
                    b'B' => Replies::new().message(b'2', &[]),
                    b'E' => Replies::new().complete("SET"),
                    b'S' => Replies::new().ready('I'),
                    _ => Replies::new(),
                };
                backend.send(replies).await;
            }
        }
    });
    let proxy = pool_of(2).upstream(&server.url()).start().await;
    (server, proxy)
}

async fn session(proxy: &tidegate_tests::Proxy) -> ScriptedApp {
    ScriptedApp::session(proxy.address(), "postgres", "shop").await.0
}

/// The sidecar and its other sessions must not have suffered.
async fn others_live(proxy: &mut tidegate_tests::Proxy, other: &mut ScriptedApp) {
    assert!(proxy.is_running());
    assert_eq!(value(other, "SELECT 1").await, "good");
    assert_eq!(value(&mut session(proxy).await, "SELECT bad").await, "good");
}

#[tokio::test]
async fn a_server_that_closes_before_it_answers_is_an_error_and_no_more() {
    // Nothing of the answer has reached the application, so its session can go on.
    let (_server, mut proxy) = before(|backend| async move { drop(backend) }).await;
    let (mut app, mut other) = (session(&proxy).await, session(&proxy).await);

    let reply = app.query("SELECT bad").await;

    let error = reply.error().unwrap();
    assert_eq!((error.severity(), error.code().len()), ("ERROR", 5), "{error:?}");
    assert!(error.detail_of("outcome").is_some(), "{error:?}");
    assert_eq!(reply.status(), Some('I'));
    assert_eq!(value(&mut app, "SELECT bad").await, "good");
    others_live(&mut proxy, &mut other).await;
}

#[tokio::test]
async fn a_server_that_resets_after_some_rows_is_an_error() {
    // Whole messages have been passed on: an ErrorResponse may follow them, a CommandComplete may not.
    let (_server, mut proxy) = before(|mut backend| async move {
        let rows = Replies::new().row_description(&["value"]).data_row(&[Some("one")]);
        backend.send(rows).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        backend.reset();
    })
    .await;
    let (mut app, mut other) = (session(&proxy).await, session(&proxy).await);

    let reply = app.query("SELECT bad").await;

    assert!(matches!(reply.tags().as_str(), "TDEZ" | "EZ"), "{}", reply.tags());
    assert_eq!(value(&mut app, "SELECT 1").await, "good");
    others_live(&mut proxy, &mut other).await;
}

#[tokio::test]
async fn a_server_that_dies_within_a_row_ends_the_session() {
    // Half of the row is with the application. Anything that follows would be taken for the row's other half, so
    // nothing may follow but the end.
    let (_server, mut proxy) = before(|mut backend| async move {
        backend.send(Replies::new().row_description(&["value"])).await;
        let row = Replies::new().data_row(&[Some(&"x".repeat(1_000_000))]);
        backend.send(&row.as_ref()[..600_000]).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(backend);
    })
    .await;
    let (mut app, mut other) = (session(&proxy).await, session(&proxy).await);
    app.send(Frames::new().query("SELECT bad")).await;

    app.expect(b'T').await;
    match app.receive_within(SOON).await {
        Received::Closed { rest } => {
            let row = Replies::new().data_row(&[Some(&"x".repeat(1_000_000))]);
            assert!(row.as_ref().starts_with(&rest), "something was put into the row");
        }
        Received::Reset(_) => {}
        other => panic!("instead of the end: {other:?}"),
    }
    others_live(&mut proxy, &mut other).await;
}

#[tokio::test]
async fn a_server_that_dies_within_the_end_of_a_command_is_told_of() {
    // Half of CommandComplete used to be passed on, and then the end of the connection was all that could be said: the
    // application was left to guess whether its write was made.
    let (_server, mut proxy) = before(|mut backend| async move {
        let complete = Replies::new().complete("INSERT 0 1");
        backend.send(&complete.as_ref()[..9]).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(backend);
    })
    .await;
    let (mut app, mut other) = (session(&proxy).await, session(&proxy).await);

    let reply = app.query("SELECT bad").await;

    assert_eq!(reply.tags(), "EZ");
    assert_eq!(value(&mut app, "SELECT 1").await, "good");
    others_live(&mut proxy, &mut other).await;
}

#[tokio::test]
async fn a_server_that_answers_garbage_is_left() {
    // Passing it on would put the driver out of step; believing its lengths would wait for ever, or take memory.
    let nonsense: [&'static [u8]; 4] = [
        b"\x00\x00\x00\x00\x00\x00\x00\x00",
        b"D\x00\x00\x00\x03",
        b"Z\x00\x00\x00\x05?",
        b"T\xff\xff\xff\xff",
    ];
    for bytes in nonsense {
        refuses(bytes).await;
    }
}

#[tokio::test]
async fn a_server_that_speaks_http_is_left() {
    // "HTTP" reads as a CopyOutResponse of 1.4 GB. Only T, D, d, V, E, N and A may be longer than 30,000 bytes: so libpq
    // recognises a lost position (VALID_LONG_MESSAGE_TYPE in src/interfaces/libpq/fe-protocol3.c).
    refuses(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
}

/// The application must get an error for these bytes, soon, and the next backend must be fine.
async fn refuses(bytes: &'static [u8]) {
    let (_server, mut proxy) = before(move |mut backend| async move {
        backend.send(bytes).await;
        backend.go_silent().await;
    })
    .await;
    let (mut app, mut other) = (session(&proxy).await, session(&proxy).await);
    app.send(Frames::new().query("SELECT bad")).await;

    match app.receive_within(Duration::from_secs(5)).await {
        Received::Message(message) => {
            assert_eq!(char::from(message.tag), 'E', "{bytes:?}: {message:?}");
            assert_eq!(message.problem().unwrap().code().len(), 5);
        }
        other => panic!("{bytes:?}: instead of an error: {other:?}"),
    }
    others_live(&mut proxy, &mut other).await;
}

#[tokio::test]
async fn what_a_server_answered_before_it_sent_garbage_is_an_answer() {
    // The exchange would be over for us and its answer thrown away with the garbage: the application would wait for ever.
    let (_server, mut proxy) = before(|mut backend| async move {
        let answer = Replies::new().one_value("answered");
        backend.send(answer.raw(b"D\x00\x00\x00\x03")).await;
        backend.go_silent().await;
    })
    .await;
    let (mut app, mut other) = (session(&proxy).await, session(&proxy).await);
    app.send(Frames::new().query("SELECT bad")).await;

    let reply = app.reply_within(SOON).await;

    assert_eq!((reply.value().as_deref(), reply.status()), (Some("answered"), Some('I')));
    assert_eq!(value(&mut app, "SELECT 1").await, "good");
    others_live(&mut proxy, &mut other).await;
}

#[tokio::test]
async fn an_idle_backend_that_says_farewell_is_replaced_unnoticed() {
    // FATAL 57P01 comes unasked while the backend waits in the pool; the next statement must not be answered with it.
    let mut server = ScriptedServer::start().await;
    let farewell = Arc::new(tokio::sync::Notify::new());
    let said = Arc::new(tokio::sync::Notify::new());
    let signals = (Arc::clone(&farewell), Arc::clone(&said));
    server.serve(move |incoming| {
        let (farewell, said) = (Arc::clone(&signals.0), Arc::clone(&signals.1));
        async move {
            let Incoming::Session(mut backend) = incoming else { return };
            let pooled = backend.parameter("database") == Some("shop");
            backend.welcome(&BackendKey { pid: 7, secret: vec![1, 2, 3, 4] }).await;
            loop {
                let message = tokio::select! {
                    message = backend.next() => message,
                    () = farewell.notified(), if pooled => {
                        let fatal = Replies::new().error("FATAL", "57P01", "terminating connection");
                        backend.send(fatal).await;
                        said.notify_one();
                        return;
                    }
                };
                match message.map(|message| message.tag) {
                    Some(b'Q') => backend.send(Replies::new().one_value("good")).await,
                    Some(_) => {}
                    None => return,
                }
            }
        }
    });
    let proxy = pool_of(1).upstream(&server.url()).start().await;
    let mut app = session(&proxy).await;
    for _ in 0..10 {
        assert_eq!(value(&mut app, "SELECT 1").await, "good");

        farewell.notify_one();
        within(SOON, "the farewell", said.notified()).await;
        tokio::time::sleep(Duration::from_millis(20)).await;

        let reply = app.query("SELECT 1").await;
        assert_eq!(reply.error(), None);
    }
}
