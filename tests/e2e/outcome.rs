//! What became of a COMMIT whose answer was lost. A relay that knows where messages end cuts the connection to the
//! database where it hurts; what the application is told is compared with what is in the table.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use tidegate_chaos::cluster::{Cluster, ClusterOptions, Node, NodeOptions, Programs, Replication, StopMode};
use tidegate_chaos::relay::{Action, Cut, Kind, Message, Moment, Relay, Stream, Toxic};
use tidegate_tests::{
    BackendKey, Frames, Incoming, Problem, Proxy, Replies, Reply, ScriptedApp, ScriptedBackend,
    ScriptedServer, Signal, wait_for,
};
use tokio::task::block_in_place;

use crate::rig::{SOON, own_postgres, sidecar};

/// Commits that are broken in the long run; `BROKEN_COMMITS` in the environment asks for another number.
const BROKEN: u64 = 200;
/// One in so many is broken by a crash of the server, which takes long.
const CRASH_EVERY: u64 = 40;
const SEED: u64 = 4711;

/// A server, a relay in front of it, and the sidecar in front of both.
struct Rig {
    node: Node,
    relay: Relay,
    proxy: Proxy,
}

impl Rig {
    async fn start(sections: &str) -> Self {
        let node = block_in_place(|| own_postgres(&[]));
        block_in_place(|| node.sql("CREATE TABLE kept (id int PRIMARY KEY)")).unwrap();
        let upstream = (Ipv4Addr::LOCALHOST, node.port()).into();
        let relay = Relay::start((Ipv4Addr::LOCALHOST, 0).into(), upstream).await.unwrap();
        let url = format!("postgres://postgres@127.0.0.1:{}/postgres", relay.address().port());
        let proxy = sidecar(sections).upstream(&url).start().await;
        Self { node, relay, proxy }
    }

    async fn app(&self) -> ScriptedApp {
        ScriptedApp::session(self.proxy.address(), "postgres", "postgres").await.0
    }

    fn cut(&self, cut: Cut) {
        let stream = if cut.message.is_frontend() { Stream::Upstream } else { Stream::Downstream };
        self.relay.add(Toxic::new("cut", stream, Kind::Cut(cut)));
    }

    fn mend(&self) {
        self.relay.remove("cut");
    }

    fn has(&self, id: u64) -> bool {
        block_in_place(|| self.node.sql(&format!("SELECT count(*) FROM kept WHERE id = {id}"))).unwrap()
            == "1"
    }
}

fn at(message: Message, when: Moment, action: Action) -> Cut {
    Cut { message, statement: None, when, action, chance: 1.0 }
}

fn at_commit(message: Message, when: Moment) -> Cut {
    Cut { statement: Some("COMMIT".to_owned()), ..at(message, when, Action::Reset) }
}

/// A transaction with one write, up to its COMMIT.
async fn write(app: &mut ScriptedApp, id: u64) {
    for sql in ["BEGIN".to_owned(), format!("INSERT INTO kept VALUES ({id})")] {
        assert_eq!(app.query(&sql).await.error(), None, "{sql}");
    }
}

fn outcome(problem: &Problem) -> (&str, Option<&str>, Option<&str>) {
    (problem.code(), problem.detail_of("reason"), problem.detail_of("outcome"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_was_lost_is_answered_as_if_nothing_had_happened() {
    // An application that hears 08007 has to find out by itself; one that hears nothing writes twice.
    let rig = Rig::start("").await;
    let mut app = rig.app().await;
    for (id, message) in [(1, Message::CommandComplete), (2, Message::ReadyForQuery)] {
        write(&mut app, id).await;
        rig.cut(at_commit(message, Moment::Before));

        let reply = app.query("COMMIT").await;
        rig.mend();

        assert_eq!(
            (reply.tags().as_str(), reply.commands(), reply.status()),
            ("CZ", vec!["COMMIT".to_owned()], Some('I'))
        );
        assert!(rig.has(id));
        assert_eq!(app.query("SELECT 1").await.value().as_deref(), Some("1"), "the session lives");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_whose_settings_were_committed_on_a_backend_that_is_lost_ends_with_it() {
    // The application has heard that they are set; in a session that went on they would not be.
    let rig = Rig::start("").await;
    let insert = |id: u64| format!("INSERT INTO kept VALUES ({id})");
    let mut app = rig.app().await;
    write(&mut app, 1).await;
    assert_eq!(app.query("SET work_mem = '7MB'").await.error(), None);
    rig.cut(at_commit(Message::CommandComplete, Moment::Before));
    let known = app.query("COMMIT").await;
    rig.mend();
    let end = app.expect_end().await;

    assert_eq!((known.error(), known.commands()), (None, vec!["COMMIT".to_owned()]));
    assert_eq!(outcome(&end[0].problem().unwrap()), ("08006", Some("session_lost"), None));

    // Where only the server knew the rest of the answer.
    let mut app = rig.app().await;
    write(&mut app, 2).await;
    assert_eq!(app.query("SET work_mem = '7MB'").await.error(), None);
    rig.cut(at_commit(Message::CommandComplete, Moment::Before));
    app.send(Frames::new().unnamed(&insert(3), &[]).unnamed("COMMIT", &[]).sync()).await;
    let end = app.expect_end().await;
    rig.mend();

    let error = end.last().unwrap().problem().unwrap();
    assert_eq!(error.severity(), "FATAL");
    assert_eq!(outcome(&error), ("08007", Some("commit_unresolved"), Some("committed")));
    assert!(rig.has(1) && rig.has(2) && rig.has(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_never_arrived_is_rolled_back_and_said_to_be() {
    // "Unknown" would keep an application from trying again what is safe to try again.
    let rig = Rig::start("").await;
    let mut app = rig.app().await;
    write(&mut app, 1).await;
    // Its answer is behind that of the sidecar's question, which the cut would otherwise sometimes hit.
    assert_eq!(app.query("SELECT 1").await.error(), None);
    rig.cut(at_commit(Message::Query, Moment::Before));

    let reply = app.query("COMMIT").await;
    rig.mend();

    let problem = reply.error().unwrap();
    assert_eq!(outcome(&problem), ("40000", Some("commit_rolled_back"), Some("rolled_back")));
    assert!(problem.detail_of("xid").is_some(), "{problem:?}");
    assert_eq!(reply.status(), Some('I'));
    assert!(!rig.has(1));
    write(&mut app, 1).await;
    assert_eq!(app.query("COMMIT").await.error(), None);
    assert!(rig.has(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extended_commits_and_writes_by_themselves_are_found_out_too() {
    // Their answer is in several messages, of which some have come: the rest must fit exactly.
    let rig = Rig::start("").await;
    let mut app = rig.app().await;
    let commit = Frames::new().unnamed("COMMIT", &[]).sync();

    app.exchange(Frames::new().unnamed("BEGIN", &[]).sync()).await;
    app.exchange(Frames::new().unnamed("INSERT INTO kept VALUES (1)", &[]).sync()).await;
    rig.cut(at_commit(Message::CommandComplete, Moment::Before));
    let committed = app.exchange(commit).await;
    rig.mend();
    // The new backend prepares our question with its first write; with the second the relay sees only the INSERT.
    app.exchange(Frames::new().unnamed("INSERT INTO kept VALUES (3)", &[]).sync()).await;
    rig.cut(Cut {
        statement: Some("INSERT".to_owned()),
        ..at(Message::ReadyForQuery, Moment::Before, Action::Reset)
    });
    let alone = app.exchange(Frames::new().unnamed("INSERT INTO kept VALUES (2)", &[]).sync()).await;
    rig.mend();

    assert_eq!((committed.error(), committed.status()), (None, Some('I')), "{}", committed.tags());
    assert_eq!(committed.commands(), ["COMMIT"]);
    assert_eq!((alone.tags().as_str(), alone.commands()), ("12nCZ", vec!["INSERT 0 1".to_owned()]));
    assert!(rig.has(1) && rig.has(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_behind_a_commit_is_not_said_to_be_committed_with_it() {
    // Seen: both were answered COMMIT, although of the second nobody knew whether the server ever got it.
    let rig = Rig::start("").await;
    let mut app = rig.app().await;
    let broken = async |app: &mut ScriptedApp, last: &str, frames: Frames| {
        let statement = Some(last.to_owned());
        rig.cut(Cut { statement, ..at(Message::CommandComplete, Moment::Before, Action::Reset) });
        let reply = app.exchange(frames).await;
        rig.mend();
        reply.error().unwrap()
    };

    write(&mut app, 1).await;
    // The answer to the sidecar's question is there before anything is cut.
    assert_eq!(app.query("SELECT 1").await.error(), None);
    let insert = |id: u64| format!("INSERT INTO kept VALUES ({id})");
    let behind =
        broken(&mut app, "INSERT", Frames::new().unnamed("COMMIT", &[]).unnamed(&insert(2), &[]).sync())
            .await;
    assert_eq!(outcome(&behind), ("08007", Some("commit_unresolved"), Some("unknown")));

    write(&mut app, 3).await;
    assert_eq!(app.query("SELECT 1").await.error(), None);
    let before =
        broken(&mut app, "COMMIT", Frames::new().unnamed(&insert(4), &[]).unnamed("COMMIT", &[]).sync())
            .await;
    assert_eq!(outcome(&before), ("08007", Some("commit_unresolved"), Some("committed")), "{before:?}");
    assert!(rig.has(3) && rig.has(4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_resolution_a_broken_commit_is_unknown_at_once_and_nothing_is_asked() {
    // Who turned it off does not pay for it: neither a question behind each write nor time behind a broken one.
    let rig = Rig::start("[commit]\nresolve = false").await;
    block_in_place(|| rig.node.set("log_statement", "all")).unwrap();
    let mut app = rig.app().await;
    write(&mut app, 1).await;
    rig.cut(at_commit(Message::CommandComplete, Moment::Before));

    let problem = app.query("COMMIT").await.error().unwrap();
    rig.mend();

    assert_eq!(outcome(&problem), ("08007", Some("commit_unresolved"), Some("unknown")));
    assert!(!rig.node.log().contains("txid_current_if_assigned"), "{}", rig.node.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_behind_a_copy_or_many_statements_is_found_out() {
    // No question fits behind these; the one in front of COMMIT must be answered before the commit begins.
    let rig = Rig::start("").await;
    let mut app = rig.app().await;
    assert_eq!(app.query("BEGIN").await.error(), None);
    let many = "INSERT INTO kept VALUES (1); INSERT INTO kept VALUES (2)";
    assert_eq!(app.query(many).await.error(), None);
    block_in_place(|| rig.node.set("synchronous_standby_names", "nobody")).unwrap();
    app.send(Frames::new().query("COMMIT")).await;
    let waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query = 'COMMIT'";
    let pid = wait_for(SOON, "the commit waits", async || {
        let pid = block_in_place(|| rig.node.sql(waiting)).unwrap();
        (!pid.is_empty()).then_some(pid)
    })
    .await;
    // The connection breaks while the commit waits, and then the wait ends.
    rig.relay.enable(false);
    rig.relay.enable(true);
    block_in_place(|| rig.node.set("synchronous_standby_names", "")).unwrap();

    let reply = app.reply().await;

    assert_eq!((reply.error(), reply.commands()), (None, vec!["COMMIT".to_owned()]), "process {pid}");
    assert!(rig.has(1) && rig.has(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_standby_is_neither_ended_nor_called_committed() {
    // Ending it would make a commit visible that a failover loses.
    let rig = Rig::start("[commit]\nresolve_within = \"500ms\"").await;
    let mut app = rig.app().await;
    write(&mut app, 1).await;
    block_in_place(|| rig.node.set("synchronous_standby_names", "nobody")).unwrap();
    app.send(Frames::new().query("COMMIT")).await;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query = 'COMMIT'";
    let is_waiting = || block_in_place(|| rig.node.sql(waiting)).unwrap() == "1";
    wait_for(SOON, "the commit waits", async || is_waiting().then_some(())).await;
    rig.relay.enable(false);
    rig.relay.enable(true);

    let problem = app.reply().await.error().unwrap();

    assert_eq!(outcome(&problem), ("08007", Some("commit_unresolved"), Some("unknown")));
    assert!(problem.detail_of("xid").is_some() && problem.detail_of("lsn").is_some(), "{problem:?}");
    assert!(is_waiting());
}

/// How a commit is broken.
#[derive(Debug, Clone, Copy)]
enum Break {
    /// The answer is lost.
    Reply(Message),
    /// The COMMIT is.
    Request(Moment, Action),
    /// The server process is told to end.
    Terminate,
    /// It is killed, and the whole server recovers.
    Kill,
}

const BREAKS: [Break; 7] = [
    Break::Reply(Message::CommandComplete),
    Break::Reply(Message::ReadyForQuery),
    Break::Request(Moment::Before, Action::Reset),
    Break::Request(Moment::After, Action::Reset),
    Break::Request(Moment::Amid, Action::Reset),
    Break::Request(Moment::After, Action::Close),
    Break::Terminate,
];

/// What the application was told, and after how long.
struct Told {
    id: u64,
    how: Break,
    reply: Reply,
    took: Duration,
}

/// Whether a transaction goes on behind its write: runs of those that do, long enough to make a habit, and of others.
fn goes_on(id: u64) -> bool {
    id / 30 % 2 == 1
}

impl Rig {
    /// One transaction whose COMMIT is broken. `None`: an earlier break has still been felt before the COMMIT.
    async fn broken(&self, app: &mut ScriptedApp, id: u64, how: Break, random: &mut StdRng) -> Option<Told> {
        let mut statements = vec!["BEGIN".to_owned(), format!("INSERT INTO kept VALUES ({id})")];
        if goes_on(id) {
            statements.push("SELECT 1".to_owned());
        }
        for sql in statements {
            if app.query(&sql).await.error().is_some() {
                app.query("ROLLBACK").await;
                return None;
            }
        }
        match how {
            Break::Reply(message) => self.cut(at_commit(message, Moment::Before)),
            Break::Request(when, action) => {
                self.cut(Cut { action, ..at_commit(Message::Query, when) });
            }
            Break::Terminate | Break::Kill => {}
        }
        let begun = Instant::now();
        app.send(Frames::new().query("COMMIT")).await;
        let pause = Duration::from_micros(random.random_range(0..1500));
        match how {
            Break::Terminate => {
                tokio::time::sleep(pause).await;
                let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                           WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()";
                // It may still be recovering from a crash.
                let _ = block_in_place(|| self.node.sql(sql));
            }
            Break::Kill => {
                tokio::time::sleep(pause).await;
                block_in_place(|| self.kill_a_backend());
            }
            Break::Reply(_) | Break::Request(..) => {}
        }
        let reply = app.reply().await;
        let took = begun.elapsed();
        self.mend();
        Some(Told { id, how, reply, took })
    }

    fn kill_a_backend(&self) {
        let processes = self.node.processes();
        let backend = processes.iter().find(|process| process.title.contains("postgres postgres"));
        if let Some(backend) = backend {
            // Gone by itself is as good.
            let _ = self.node.signal(backend.pid, Signal::KILL);
        }
    }
}

/// What the answers say, compared with what the table has.
#[derive(Debug, Default)]
struct Ledger {
    committed: u64,
    rolled_back: u64,
    unknown: u64,
    wrong: Vec<String>,
    took: Vec<Duration>,
}

impl Ledger {
    fn enter(&mut self, told: &Told, present: bool) {
        let problem = told.reply.error();
        let said = problem.as_ref().map_or("ok", |problem| problem.code());
        let known = problem.as_ref().and_then(|problem| problem.detail_of("outcome"));
        let is_right = match (said, known) {
            ("ok", _) => told.reply.commands() == ["COMMIT"] && present,
            ("08007", Some("committed" | "committed_unreplicated")) => present,
            ("08007", _) => true,
            // PostgreSQL's own word for a session that it ended before it committed.
            ("40000" | "57P01", _) => !present,
            _ => false,
        };
        match (said, known) {
            ("08007", Some("unknown")) => self.unknown += 1,
            _ if present => self.committed += 1,
            _ => self.rolled_back += 1,
        }
        if !is_right {
            self.wrong.push(format!("{} {:?}: present={present}, said {problem:?}", told.id, told.how));
        }
        self.took.push(told.took);
    }

    fn share(&self, percent: usize) -> Duration {
        let mut took = self.took.clone();
        took.sort();
        took[(took.len() - 1) * percent / 100]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_commit_that_broke_is_called_what_it_is_not() {
    // Answers, requests, processes and servers are lost at random moments around the COMMIT: a verdict from the wrong
    // server, the wrong life of it, or too early, is in contradiction to the table.
    let commits = std::env::var("BROKEN_COMMITS").ok().map_or(BROKEN, |number| number.parse().unwrap());
    println!("seed {SEED}, {commits} commits");
    let rig = Rig::start("[timeouts]\nconnect = \"1s\"\nqueue = \"5s\"\n[shed]\ncodel_target = \"5s\"\ncodel_interval = \"5s\"\n").await;
    let mut random = StdRng::seed_from_u64(SEED);
    let mut app = rig.app().await;
    let mut all = Vec::new();
    let mut id = 0;

    while u64::try_from(all.len()).unwrap() < commits {
        id += 1;
        let crashes = all.len() as u64 % CRASH_EVERY == CRASH_EVERY - 1;
        let how = if crashes { Break::Kill } else { *BREAKS.choose(&mut random).unwrap() };
        match rig.broken(&mut app, id, how, &mut random).await {
            Some(told) => all.push(told),
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }

    let kept = wait_for(SOON, "the server is back", async || {
        block_in_place(|| rig.node.sql("SELECT id FROM kept")).ok()
    })
    .await;
    let kept: std::collections::BTreeSet<u64> = kept.lines().map(|line| line.parse().unwrap()).collect();
    let mut ledger = Ledger::default();
    for told in &all {
        ledger.enter(told, kept.contains(&told.id));
    }
    println!(
        "{} committed, {} rolled back, {} unknown; p50 {:?}, p99 {:?}",
        ledger.committed,
        ledger.rolled_back,
        ledger.unknown,
        ledger.share(50),
        ledger.share(99)
    );
    assert!(ledger.wrong.is_empty(), "{:#?}", ledger.wrong);
    assert!(ledger.unknown * 10 <= commits, "{} of {commits} are unknown", ledger.unknown);
    assert!(ledger.committed > commits / 10 && ledger.rolled_back > commits / 10, "both must have happened");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_promotion_the_new_primary_says_what_it_has() {
    // The old primary can be asked no more; of its last commits the standby has some and lacks others.
    let programs = Programs::find().unwrap();
    let node = NodeOptions::new(programs);
    let options = ClusterOptions { node, standbys: 1, replication: Replication::Asynchronous };
    let cluster = block_in_place(|| Cluster::start(&options)).unwrap();
    let (primary, standby) = (cluster.primary(), &cluster.standbys()[0]);
    block_in_place(|| primary.sql("CREATE TABLE kept (id int PRIMARY KEY)")).unwrap();
    block_in_place(|| cluster.wait_streaming(1)).unwrap();
    let config = "[cluster]\nsettle = \"100ms\"\n[commit]\nresolve_within = \"8s\"\n";
    let proxy = sidecar(config).upstream(&primary.url()).upstream(&standby.url()).start().await;
    let mut apps = Vec::new();
    for id in 0..8 {
        let (mut app, _) = ScriptedApp::session(proxy.address(), "postgres", "postgres").await;
        wait_for(SOON, "a primary that takes writes", async || {
            let begun = app.query("BEGIN").await.error().is_none();
            let written = app.query(&format!("INSERT INTO kept VALUES ({id})")).await.error().is_none();
            if !(begun && written) {
                app.query("ROLLBACK").await;
            }
            (begun && written).then_some(())
        })
        .await;
        apps.push(app);
    }
    // What the first four commit arrives at the standby; what the others do cannot.
    block_in_place(|| primary.set("synchronous_standby_names", "nobody")).unwrap();
    for app in &mut apps[..4] {
        app.send(Frames::new().query("COMMIT")).await;
    }
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query = 'COMMIT'";
    let are_waiting = async |count: &str| {
        wait_for(SOON, "commits wait", async || {
            (block_in_place(|| primary.sql(waiting)).unwrap() == count).then_some(())
        })
        .await;
    };
    are_waiting("4").await;
    let written = block_in_place(|| primary.sql("SELECT pg_current_wal_flush_lsn()")).unwrap();
    wait_for(SOON, "the standby has it", async || {
        let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
        (block_in_place(|| standby.sql(&sql)).unwrap() == "t").then_some(())
    })
    .await;
    let receiver = block_in_place(|| standby.freeze_only("walreceiver")).unwrap();
    assert_eq!(receiver, 1);
    for app in &mut apps[4..] {
        app.send(Frames::new().query("COMMIT")).await;
    }
    are_waiting("8").await;

    block_in_place(|| primary.kill()).unwrap();
    block_in_place(|| standby.thaw()).unwrap();
    block_in_place(|| standby.promote()).unwrap();

    let kept = block_in_place(|| standby.sql("SELECT id FROM kept")).unwrap();
    for (id, app) in apps.iter_mut().enumerate() {
        let reply = app.reply().await;
        let present = kept.lines().any(|line| line == id.to_string());
        match reply.error() {
            None => assert!(present && reply.commands() == ["COMMIT"], "{id}"),
            Some(problem) => {
                assert_eq!(
                    outcome(&problem),
                    ("40000", Some("commit_rolled_back"), Some("rolled_back")),
                    "{id}"
                );
                assert!(!present, "{id}");
            }
        }
        assert!(id >= 4 || present, "{id} was on the standby");
    }
    drop(proxy);
    let _ = block_in_place(|| standby.stop(StopMode::Immediate));
}

#[tokio::test]
async fn a_question_that_a_late_cancel_hits_fails_the_transaction_and_the_application_hears_of_it() {
    // The server rolls back at COMMIT, and without our word the application would take "ROLLBACK" for its success.
    let mut server = ScriptedServer::start().await;
    server.serve(|incoming| async {
        let Incoming::Session(mut backend) = incoming else { return };
        backend.welcome(&BackendKey { pid: 7, secret: vec![1, 2, 3, 4] }).await;
        while let Some(message) = backend.next().await {
            let replies = match (message.tag, message.strings().first().map(String::as_str)) {
                (b'Q', Some("BEGIN")) => Replies::new().complete("BEGIN").ready('T'),
                (b'Q', Some("INSERT")) => Replies::new().complete("INSERT 0 1").ready('T'),
                (b'Q', Some("COMMIT")) => Replies::new().complete("ROLLBACK").ready('I'),
                (b'Q', Some("SELECT")) => Replies::new().error("ERROR", "25P02", "aborted").ready('E'),
                (b'Q', _) => Replies::new().one_value("1").ready('I'),
                (b'S', _) => Replies::new().error("ERROR", "57014", "canceling statement").ready('E'),
                _ => continue,
            };
            backend.send(replies).await;
        }
    });
    let config = "[timeouts]\nread = \"30s\"\n";
    let proxy = sidecar(config).upstream(&server.url()).start().await;

    for (next, status) in [("COMMIT", 'I'), ("SELECT", 'E')] {
        let (mut app, _) = ScriptedApp::session(proxy.address(), "postgres", "postgres").await;
        app.query("BEGIN").await;
        assert_eq!(app.query("INSERT").await.commands(), ["INSERT 0 1"]);

        let reply = app.query(next).await;

        let problem = reply.error().unwrap_or_else(|| panic!("{next}: {}", reply.tags()));
        assert_eq!((problem.code(), reply.status()), ("57014", Some(status)), "{next}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_never_hears_of_its_end_is_ended() {
    // Behind a middlebox that has lost the connection it waits for ever, in a place that others need.
    let rig = Rig::start("").await;
    let mut app = rig.app().await;
    let pid = app.query("SELECT pg_backend_pid()").await.value().unwrap();
    rig.cut(Cut {
        statement: Some("INSERT".to_owned()),
        ..at(Message::CommandComplete, Moment::Before, Action::Silence)
    });

    assert!(app.query("INSERT INTO kept VALUES (1)").await.error().is_some());
    rig.mend();

    let there = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
    let count = || block_in_place(|| rig.node.sql(&there)).unwrap();
    wait_for(SOON, "the backend ends", async || (count() == "0").then_some(())).await;
    let zombies = async || rig.proxy.metrics().await.get("tidegate_upstream_zombies", &[]);
    wait_for(SOON, "its place is free", async || (zombies().await == Some(0.0)).then_some(())).await;
    assert_eq!(app.query("SELECT 1").await.value().as_deref(), Some("1"));
}

/// Answers a Query that must come next.
async fn answer(backend: &mut ScriptedBackend, query: &str, status: char) {
    backend.expect_query(query).await;
    backend.send(Replies::new().complete(query).ready(status)).await;
}

/// Takes a question for a token, and gives what answers it.
async fn question(backend: &mut ScriptedBackend) -> Replies {
    backend.expect(b'B').await;
    backend.expect(b'E').await;
    Replies::new()
        .message(b'2', &[])
        .data_row(&[Some("8 bytes."), Some("8 bytes."), None])
        .complete("SELECT 1")
}

/// What a server sees of a session whose transactions all go on behind their first write, up to a cancel that comes
/// late.
async fn see_a_habit_form(backend: &mut ScriptedBackend) {
    // The first connection of a pool is asked for its settings.
    backend.expect(b'Q').await;
    backend.send(Replies::new().one_value("1").ready('I')).await;

    for transaction in 0..8 {
        answer(backend, "BEGIN", 'T').await;
        answer(backend, "INSERT", 'T').await;
        if transaction == 0 {
            backend.expect(b'P').await;
            backend.send(Replies::new().message(b'1', &[])).await;
        }
        let answered = question(backend).await;
        backend.expect(b'S').await;
        backend.send(answered.ready('T')).await;
        answer(backend, "SELECT", 'T').await;
        answer(backend, "COMMIT", 'I').await;
    }

    answer(backend, "BEGIN", 'T').await;
    answer(backend, "INSERT", 'T').await;
    let answered = question(backend).await;
    backend.expect_query("SELECT").await;
    backend.send(answered.complete("SELECT").ready('T')).await;
    answer(backend, "COMMIT", 'I').await;

    answer(backend, "BEGIN", 'T').await;
    answer(backend, "INSERT", 'T').await;
    question(backend).await;
    backend.expect_query("SELECT").await;
    backend.send(Replies::new().error("ERROR", "57014", "canceling statement")).await;
    backend.expect(b'S').await;
    backend.send(Replies::new().ready('E')).await;
    answer(backend, "ROLLBACK", 'I').await;
}

#[tokio::test]
async fn where_transactions_go_on_behind_their_write_the_question_stands_in_front_of_the_next_query() {
    // An exchange of its own for each question costs a server more than the question. And in front of a query one that
    // fails takes the query with it, which would leave both sides waiting for the other.
    let (done, seen) = tokio::sync::oneshot::channel();
    let done = std::sync::Mutex::new(Some(done));
    let mut server = ScriptedServer::start().await;
    server.serve(move |incoming| {
        let done = match &incoming {
            Incoming::Session(backend) if backend.parameter("database") == Some("shop") => {
                done.lock().unwrap().take()
            }
            _ => None,
        };
        async move {
            let Incoming::Session(mut backend) = incoming else { return };
            backend.welcome(&BackendKey { pid: 7, secret: vec![1, 2, 3, 4] }).await;
            match done {
                Some(done) => {
                    see_a_habit_form(&mut backend).await;
                    done.send(()).unwrap();
                }
                None => backend.answer_all(&Replies::new().one_value("1").ready('I')).await,
            }
        }
    });
    let proxy = sidecar("").upstream(&server.url()).start().await;
    let (mut app, _) = ScriptedApp::session(proxy.address(), "postgres", "shop").await;

    for _ in 0..9 {
        for query in ["BEGIN", "INSERT", "SELECT", "COMMIT"] {
            let reply = app.query(query).await;
            assert_eq!((reply.tags().as_str(), reply.commands()), ("CZ", vec![query.to_owned()]));
        }
    }
    app.query("BEGIN").await;
    app.query("INSERT").await;
    let reply = app.query("SELECT").await;
    assert_eq!(reply.error().map(|problem| problem.code().to_owned()).as_deref(), Some("57014"));
    assert_eq!((reply.tags().as_str(), reply.status()), ("EZ", Some('E')));
    assert_eq!(app.query("ROLLBACK").await.status(), Some('I'));
    seen.await.expect("the server saw all that it was to see");
}

#[tokio::test]
async fn the_last_words_of_a_server_are_no_answer_to_a_commit() {
    // A bare "terminating connection" leaves an application guessing whether its write took place.
    let mut server = ScriptedServer::start().await;
    server.serve(|incoming| async {
        let Incoming::Session(mut backend) = incoming else { return };
        backend.welcome(&BackendKey { pid: 7, secret: vec![1, 2, 3, 4] }).await;
        while let Some(message) = backend.next().await {
            let text = message.strings().first().cloned().unwrap_or_default();
            let fatal = |routine: &str| {
                let fields =
                    [('S', "FATAL"), ('V', "FATAL"), ('C', "57P01"), ('M', "terminating"), ('R', routine)];
                Replies::new().problem(b'E', &fields)
            };
            match text.as_str() {
                "INSERT INTO a VALUES (1)" | "SELECT 1" => {
                    return backend.send(fatal("ProcessInterrupts")).await;
                }
                "INSERT INTO b VALUES (1)" => return backend.send(fatal("secure_write")).await,
                // It is done at its Execute, and the order to end is obeyed before the next message is read.
                _ if message.tag == b'S' => {
                    let done = Replies::new().raw(b"1\0\0\0\x042\0\0\0\x04n\0\0\0\x04").complete("COMMIT");
                    return backend.send(done.raw(fatal("ProcessInterrupts").as_ref())).await;
                }
                _ if message.tag == b'Q' => backend.send(Replies::new().one_value("1").ready('I')).await,
                _ => {}
            }
        }
    });
    let proxy = sidecar("").upstream(&server.url()).start().await;
    let (mut app, _) = ScriptedApp::session(proxy.address(), "postgres", "postgres").await;
    let expected = [
        // Told to end before it committed.
        ("INSERT INTO a VALUES (1)", ("40000", Some("backend_lost"), Some("rolled_back"))),
        // It was about to say something: perhaps that it had committed.
        ("INSERT INTO b VALUES (1)", ("08007", Some("commit_unresolved"), Some("unknown"))),
        // Nothing was to be committed, and PostgreSQL's own words say all.
        ("SELECT 1", ("57P01", None, None)),
    ];
    for (sql, said) in expected {
        let reply = app.query(sql).await;

        assert_eq!(outcome(&reply.error().unwrap()), said, "{sql}");
        assert_eq!(reply.status(), Some('I'), "{sql}");
    }
    // Seen: told rolled_back by the same words, when it was durable.
    let reply = app.exchange(Frames::new().unnamed("COMMIT", &[]).sync()).await;
    assert_eq!(
        outcome(&reply.error().unwrap()),
        ("08007", Some("commit_unresolved"), Some("unknown")),
        "{}",
        reply.tags()
    );
}
