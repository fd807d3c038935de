//! Every phase is bounded, and the answer says what is known.

use std::time::{Duration, Instant};

use tidegate_chaos::cluster::{Cluster, Node};
use tidegate_tests::{
    BackendKey, Frames, Incoming, Proxy, Replies, Reply, ScriptedApp, ScriptedServer, Signal, wait_for,
};
use tokio::task::{JoinSet, block_in_place};

use super::{
    ANSWER_SLACK, LEDGER, NOISE, Watch, at_deadline, guarded, refused, session, synchronous_cluster, timed,
    timed_frames,
};
use crate::rig::{SOON, own_postgres, run, value};

const DEADLINE: Duration = Duration::from_millis(1500);

/// Everything has the deadline of these tests. The breaker is left out of most by its number of stuck statements.
const SECTIONS: &str =
    "[pool]\nsize = 6\n[timeouts]\nread = \"1500ms\"\nwrite = \"1500ms\"\ncommit = \"1500ms\"\n";

struct Fixture {
    node: Node,
    proxy: Proxy,
}

impl Fixture {
    async fn new(more: &str) -> Self {
        let node = block_in_place(|| own_postgres(&[]));
        block_in_place(|| node.sql(LEDGER)).unwrap();
        block_in_place(|| node.sql("INSERT INTO ledger VALUES (0)")).unwrap();
        let proxy = guarded(&node, &format!("{SECTIONS}{more}")).await;
        Self { node, proxy }
    }

    /// A session past the sidecar that holds the row 0, and its process.
    async fn holder(&self) -> (ScriptedApp, String) {
        let direct = ([127, 0, 0, 1], self.node.port()).into();
        let mut holder = ScriptedApp::session(direct, "postgres", "postgres").await.0;
        run(&mut holder, "BEGIN").await;
        run(&mut holder, "UPDATE ledger SET id = 0 WHERE id = 0").await;
        let pid = value(&mut holder, "SELECT pg_backend_pid()").await;
        (holder, pid)
    }
}

/// Insert and wait for the row in one statement: if it were half done, the new row would show.
fn blocked(id: u32) -> String {
    format!("WITH new AS (INSERT INTO ledger VALUES ({id})) UPDATE ledger SET id = 0 WHERE id = 0")
}

const NOTHING_RUNS: &str = "SELECT count(*) = 0 FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep%' \
                            AND pid <> pg_backend_pid()";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_ends_at_its_deadline_and_the_session_goes_on() {
    // Without a deadline it would sleep for a minute; without a cancel the server would go on with it.
    let fixture = Fixture::new("").await;
    let mut app = session(&fixture.proxy).await;

    for frames in
        [Frames::new().query("SELECT pg_sleep(60)"), Frames::new().unnamed("SELECT pg_sleep(60)", &[]).sync()]
    {
        let (reply, took) = timed_frames(&mut app, frames).await;

        at_deadline("read", took, DEADLINE);
        let details = [("reason", "read_timeout"), ("lane", "read"), ("outcome", "rolled_back")];
        refused(&reply, "57014", &details);
        assert_eq!(reply.status(), Some('I'));
        assert_eq!(value(&mut app, "SELECT 1").await, "1");
        Watch::new(&fixture.node).await.wait("the server gave up too", NOTHING_RUNS).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_follows_a_deadline_has_all_of_its_own_time() {
    // A clock that still runs from the statement before would call the next one late before it has begun.
    let fixture = Fixture::new("").await;
    let next = [
        Frames::new().query("SELECT 1"),
        Frames::new().query("BEGIN"),
        Frames::new().query("INSERT INTO ledger VALUES (1)"),
        Frames::new().query("SET statement_timeout = 0"),
        Frames::new().unnamed("SELECT 1", &[]).sync(),
        Frames::new().unnamed("BEGIN", &[]).sync(),
        Frames::new().sync(),
    ];
    let mut checks = JoinSet::new();
    for frames in next {
        let address = fixture.proxy.address();
        checks.spawn(async move {
            let mut app = ScriptedApp::session(address, "postgres", "postgres").await.0;
            // Not more at a time than there are backends, or queueing is tested.
            while app.query("SELECT pg_sleep(60)").await.error_code() != "57014" {}
            let reply = app.exchange(frames.clone()).await;
            (format!("{:?}", String::from_utf8_lossy(frames.as_ref())), reply.error())
        });
    }

    let wrong: Vec<_> = checks.join_all().await.into_iter().filter(|(_, error)| error.is_some()).collect();

    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_is_late_when_it_has_hardly_begun_is_told_of_its_blocker_too() {
    // What waited for its turn meets its deadline long before anybody looks at what takes long.
    let fixture = Fixture::new("").await;
    let (_holder, pid) = fixture.holder().await;
    let mut app = session(&fixture.proxy).await;
    run(&mut app, "SET tidegate.write_timeout = '30ms'").await;

    // On a busy machine the look may come too late.
    wait_for(SOON, "the blocker is named", async || {
        let problem = app.query(&blocked(1)).await.error().unwrap();
        assert_eq!(problem.code(), "57014");
        (problem.detail_of("blocked_by") == Some(&pid)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_waits_for_a_lock_ends_at_its_deadline_and_names_the_blocker() {
    // The blocker's process is what an operator needs; the write must be gone for good.
    let fixture = Fixture::new("").await;
    let (mut holder, pid) = fixture.holder().await;
    let mut app = session(&fixture.proxy).await;

    let frames = [Frames::new().query(&blocked(1)), Frames::new().unnamed(&blocked(1), &[]).sync()];
    for frames in frames {
        let (reply, took) = timed_frames(&mut app, frames).await;

        at_deadline("write", took, DEADLINE);
        let details = [
            ("reason", "write_timeout"),
            ("lane", "write"),
            ("cause", "lock"),
            ("blocked_by", pid.as_str()),
            ("outcome", "rolled_back"),
        ];
        refused(&reply, "57014", &details);
        assert_eq!(reply.status(), Some('I'));
    }
    run(&mut holder, "ROLLBACK").await;
    run(&mut app, &blocked(2)).await;
    let ledger = Watch::new(&fixture.node).await.ledger().await;
    assert_eq!((ledger.get(&1), ledger.get(&2)), (None, Some(&1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_in_a_transaction_fails_it_until_rollback() {
    // As after any error of PostgreSQL's: 25P02, a COMMIT that says ROLLBACK, and then a session as new.
    let fixture = Fixture::new("").await;
    let (mut holder, _) = fixture.holder().await;
    let mut app = session(&fixture.proxy).await;

    for (id, end) in [(1, "ROLLBACK"), (2, "COMMIT"), (3, "ABORT"), (4, "END")] {
        run(&mut app, "BEGIN").await;
        run(&mut app, &format!("INSERT INTO ledger VALUES ({id})")).await;
        let reply = app.query(&blocked(id)).await;
        refused(&reply, "57014", &[("reason", "write_timeout"), ("outcome", "rolled_back")]);
        assert_eq!(reply.status(), Some('E'));
        let reply = app.query("SELECT 1").await;
        assert_eq!((reply.error_code().as_str(), reply.status()), ("25P02", Some('E')));

        let reply = app.query(end).await;

        assert_eq!((reply.error(), reply.status()), (None, Some('I')), "{end}");
        assert_eq!(reply.commands(), ["ROLLBACK"], "{end}");
        assert_eq!(value(&mut app, "SELECT 1").await, "1");
    }
    run(&mut holder, "ROLLBACK").await;
    let ledger = Watch::new(&fixture.node).await.ledger().await;
    assert_eq!(ledger.into_keys().collect::<Vec<_>>(), [0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_of_short_statements_ends_at_its_own_deadline() {
    // No statement of it is too long; together they are.
    let fixture = Fixture::new("transaction = \"2s\"\n").await;
    let mut app = session(&fixture.proxy).await;
    let begin = Instant::now();
    run(&mut app, "BEGIN").await;
    run(&mut app, "INSERT INTO ledger VALUES (1)").await;

    let reply = loop {
        let reply = app.query("SELECT pg_sleep(0.4)").await;
        if reply.error().is_some() {
            break reply;
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "the transaction goes on");
    };

    at_deadline("transaction", begin.elapsed(), Duration::from_secs(2));
    refused(&reply, "57014", &[("reason", "transaction_timeout"), ("outcome", "rolled_back")]);
    assert_eq!(reply.status(), Some('E'));
    let reply = app.query("COMMIT").await;
    assert_eq!((reply.error(), reply.commands()), (None, vec!["ROLLBACK".to_owned()]));
    assert_eq!(reply.status(), Some('I'));
    assert_eq!(value(&mut app, "SELECT 1").await, "1");
    assert_eq!(Watch::new(&fixture.node).await.ledger().await.get(&1), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_idles_in_a_transaction_ends_and_frees_its_locks() {
    // It would hold row and backend for ever.
    let fixture = Fixture::new("idle_in_transaction = \"1s\"\n").await;
    let mut app = session(&fixture.proxy).await;
    run(&mut app, "BEGIN").await;
    run(&mut app, "UPDATE ledger SET id = 0 WHERE id = 0").await;
    let begin = Instant::now();

    let last = app.receive().await.problem().unwrap();

    at_deadline("idle", begin.elapsed(), Duration::from_secs(1));
    assert_eq!((last.severity(), last.code()), ("FATAL", "25P03"), "{last:?}");
    assert_eq!(last.detail_of("reason"), Some("idle_in_transaction"));
    assert_eq!(last.detail_of("outcome"), Some("rolled_back"));
    let mut other = session(&fixture.proxy).await;
    run(&mut other, "UPDATE ledger SET id = 0 WHERE id = 0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_waits_for_a_backend_is_refused_unsent() {
    // The only backend is busy; queueing counts against the deadline.
    let fixture = Fixture::new("queue = \"700ms\"\nconnect = \"700ms\"\n[shed]\nqueue_max = 50\n").await;
    let node = &fixture.node;
    let sections = "[pool]\nsize = 1\n[timeouts]\nread = \"5s\"\nqueue = \"700ms\"\n";
    let proxy = guarded(node, sections).await;
    let mut busy = session(&proxy).await;
    busy.send(Frames::new().query("SELECT pg_sleep(3)")).await;
    let running = "SELECT count(*) = 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(3)'";
    Watch::new(node).await.wait("the backend is busy", running).await;

    for sql in ["SELECT 1", "INSERT INTO ledger VALUES (1)"] {
        let mut app = session(&proxy).await;
        let (reply, took) = timed(&mut app, sql).await;

        at_deadline("queue", took, Duration::from_millis(700));
        let problem = refused(&reply, "53300", &[("outcome", "not_sent")]);
        let reason = problem.detail_of("reason");
        assert!(matches!(reason, Some("queue_timeout" | "deadline")), "{problem:?}");
        assert_eq!(reply.status(), Some('I'));
    }
    assert_eq!(busy.reply().await.error(), None);
    assert_eq!(Watch::new(node).await.ledger().await.get(&1), None);
}

// ---- commits that wait for a standby ----

async fn stuck_cluster(sync_wait: &str) -> (Cluster, Proxy) {
    let cluster = block_in_place(synchronous_cluster);
    let sections = format!("{SECTIONS}[commit]\nsync_wait = \"{sync_wait}\"\n");
    let proxy = guarded(cluster.primary(), &sections).await;
    // Backend and lane are there before the fault.
    let mut app = session(&proxy).await;
    run(&mut app, "INSERT INTO ledger VALUES (0)").await;
    block_in_place(|| cluster.standbys()[0].freeze()).unwrap();
    (cluster, proxy)
}

/// Writes the rows 1 to 3, each in a way of its own at the same time, and gives the answers of what commits.
async fn commits(proxy: &Proxy) -> Vec<(ScriptedApp, usize, Reply)> {
    let mut tasks = JoinSet::new();
    for way in 0..3 {
        let mut app = session(proxy).await;
        tasks.spawn(async move {
            let insert = format!("INSERT INTO ledger VALUES ({})", way + 1);
            let (reply, took) = match way {
                0 => timed(&mut app, &insert).await,
                EXTENDED => timed_frames(&mut app, Frames::new().unnamed(&insert, &[]).sync()).await,
                _ => {
                    run(&mut app, "BEGIN").await;
                    run(&mut app, &insert).await;
                    timed(&mut app, "COMMIT").await
                }
            };
            at_deadline("commit", took, DEADLINE);
            (app, way, reply)
        });
    }
    tasks.join_all().await
}

const EXTENDED: usize = 1;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_what_is_stuck_makes_no_room_for_more_of_it() {
    // Applications with shorter deadlines than ours leave first. Were each followed by a new backend, the server would
    // be full of stuck ones before anybody noticed.
    let Fixture { node, proxy } = Fixture::new("").await;
    let mut apps = Vec::new();
    for _ in 0..3 {
        let mut app = session(&proxy).await;
        app.send(Frames::new().query("SELECT pg_sleep(60)")).await;
        apps.push(app);
    }
    let sleepers = "SELECT coalesce(string_agg(pid::text, ' '), '') FROM pg_stat_activity \
                    WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'";
    let pids: Vec<u32> = wait_for(SOON, "three statements run", async || {
        let pids = block_in_place(|| node.sql(sleepers)).unwrap();
        let pids: Vec<u32> = pids.split(' ').filter_map(|pid| pid.parse().ok()).collect();
        (pids.len() == 3).then_some(pids)
    })
    .await;
    let signal = |signal| pids.iter().for_each(|pid| block_in_place(|| node.signal(*pid, signal)).unwrap());
    signal(Signal::STOP);

    apps.into_iter().for_each(ScriptedApp::reset);

    let zombies = async || proxy.metrics().await.get("tidegate_upstream_zombies", &[]);
    wait_for(SOON, "they are given up on", async || (zombies().await == Some(3.0)).then_some(())).await;
    let mut others = JoinSet::new();
    for _ in 0..10 {
        let mut app = session(&proxy).await;
        others.spawn(async move { value(&mut app, "SELECT 5 FROM pg_sleep(0.05)").await });
    }
    assert!(others.join_all().await.iter().all(|five| five == "5"), "there is room for others");
    let ours = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' \
                AND application_name <> 'tidegate control' AND pid <> pg_backend_pid()";
    assert_eq!(block_in_place(|| node.sql(ours)).unwrap(), "6", "as many as the pool may have");
    signal(Signal::CONT);
    wait_for(SOON, "they are gone", async || (zombies().await == Some(0.0)).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_commit_is_left_alone_and_called_unknown() {
    // A cancel would make a row visible that only one server has. It appears when the standby has it, not before.
    let (cluster, proxy) = stuck_cluster("leave").await;

    for (mut app, _, reply) in commits(&proxy).await {
        let details = [("outcome", "unknown"), ("cause", "sync_standby"), ("reason", "commit_unresolved")];
        refused(&reply, "08007", &details);
        assert_eq!(reply.status(), Some('I'));
        assert_eq!(value(&mut app, "SELECT count(*) FROM ledger").await, "1", "not visible yet");
    }

    let watch = Watch::new(cluster.primary()).await;
    // Of a write by itself in the extended protocol our question is what the server was asked last.
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' \
                   AND backend_type = 'client backend' \
                   AND (query LIKE 'INSERT%' OR query = 'COMMIT' OR query LIKE '%tidegate: outcome of COMMIT%')";
    assert_eq!(watch.value(waiting).await, "3", "the backends wait on, uncancelled");
    let cancels = proxy.metrics().await.get("tidegate_cancels_sent_total", &[]);
    assert!(cancels.unwrap_or(0.0) < 1.0, "{cancels:?} cancels were sent");
    // Seen: none were counted, though they take up the write lane as those do whose connection is closed.
    let zombies = async || proxy.metrics().await.get("tidegate_upstream_zombies", &[]);
    assert_eq!(zombies().await, Some(3.0));
    block_in_place(|| cluster.standbys()[0].thaw()).unwrap();
    watch.wait("the rows appear", "SELECT count(*) = 4 FROM ledger").await;
    let mut app = session(&proxy).await;
    wait_for(SOON, "writes work again", async || {
        app.query("INSERT INTO ledger VALUES (4)").await.error().is_none().then_some(())
    })
    .await;
    wait_for(SOON, "none is left", async || (zombies().await == Some(0.0)).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_of_what_was_pipelined_is_a_commit() {
    // Seen: a SELECT right behind a BEGIN that was not answered yet was taken for one outside of a transaction, and the
    // COMMIT after it for one of a read. With a disk that was frozen it was told rolled_back, and then it was there.
    let (cluster, proxy) = stuck_cluster("leave").await;
    let simple = Frames::new().query("BEGIN; INSERT INTO ledger VALUES (1)").query("SELECT 1");
    let extended = Frames::new().unnamed("BEGIN", &[]).unnamed("INSERT INTO ledger VALUES (2)", &[]).sync();
    let mut tasks = JoinSet::new();
    for frames in [simple, extended.unnamed("SELECT 1", &[]).sync()] {
        let mut app = session(&proxy).await;
        app.send(frames).await;
        for _ in 0..2 {
            let reply = app.reply().await;
            assert_eq!((reply.error(), reply.status()), (None, Some('T')));
        }
        tasks.spawn(async move { timed(&mut app, "COMMIT").await });
    }

    for (reply, took) in tasks.join_all().await {
        at_deadline("commit", took, DEADLINE);
        let details = [("outcome", "unknown"), ("cause", "sync_standby"), ("reason", "commit_unresolved")];
        refused(&reply, "08007", &details);
    }
    drop(cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_behind_a_write_takes_neither_its_lane_nor_its_deadline_away() {
    // Pipelined behind whatever is stuck, reads would move it into their part of the pool, and give it their time.
    let fixture = Fixture::new("").await;
    let (_holder, _) = fixture.holder().await;
    let sections = "[pool]\nsize = 6\n[timeouts]\nread = \"20s\"\nwrite = \"1500ms\"\ncommit = \"1500ms\"\n";
    let proxy = guarded(&fixture.node, sections).await;
    let mut app = session(&proxy).await;
    let begin = Instant::now();

    app.send(Frames::new().query(&blocked(1)).query("SELECT 7")).await;
    wait_for(SOON, "the write is in its lane", async || {
        let metrics = proxy.metrics().await;
        let of = |lane| metrics.get("tidegate_lane_in_flight", &[("lane", lane)]);
        (of("write") > Some(0.0)).then(|| assert_eq!(of("read"), Some(0.0)))
    })
    .await;
    let (write, read) = (app.reply().await, app.reply().await);

    refused(&write, "57014", &[("reason", "write_timeout"), ("lane", "write"), ("outcome", "rolled_back")]);
    at_deadline("write", begin.elapsed(), DEADLINE);
    assert_eq!(read.value().as_deref(), Some("7"));
}

/// `FunctionCall` of `pg_sleep(60)`.
fn sleep_call(node: &Node) -> Frames {
    let oid: u32 = node.sql("SELECT 'pg_sleep'::regproc::oid").unwrap().parse().unwrap();
    // One argument, argument and result as text.
    let body = [&oid.to_be_bytes()[..], &[0, 0, 0, 1, 0, 0, 0, 2], b"60", &[0, 0]].concat();
    Frames::new().message(b'F', &body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_call_is_a_statement_that_writes_and_no_commit() {
    // Given up as a commit, at the deadline of one, it would be called unknown where nothing can have become durable.
    let fixture = Fixture::new("").await;
    let sections = "[timeouts]\nwrite = \"1500ms\"\ncommit = \"20s\"\n";
    let proxy = guarded(&fixture.node, sections).await;
    let call = block_in_place(|| sleep_call(&fixture.node));
    let details = [("reason", "write_timeout"), ("lane", "write"), ("outcome", "rolled_back")];
    let (mut inside, mut outside) = (session(&proxy).await, session(&proxy).await);
    run(&mut inside, "BEGIN").await;
    run(&mut inside, "INSERT INTO ledger VALUES (1)").await;

    for (app, status) in [(&mut inside, 'E'), (&mut outside, 'I')] {
        let (reply, took) = timed_frames(app, call.clone()).await;

        at_deadline("a function call", took, DEADLINE);
        refused(&reply, "57014", &details);
        assert_eq!(reply.status(), Some(status));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_that_nobody_reads_has_all_the_time_it_may_need_and_is_called_unknown() {
    // It may write for as long as a write may, or commit and go on: its rows are there, whatever the error says.
    let fixture = Fixture::new("").await;
    let comment = "x".repeat(300_000);
    let text = format!("BEGIN; INSERT INTO ledger VALUES (7); COMMIT; SELECT pg_sleep(60) /* {comment} */");
    for (write, commit) in [("1500ms", "500ms"), ("500ms", "1500ms")] {
        let sections = format!(
            "[timeouts]\nwrite = \"{write}\"\ncommit = \"{commit}\"\nqueue = \"500ms\"\nconnect = \"500ms\"\n"
        );
        let proxy = guarded(&fixture.node, &sections).await;
        let mut app = session(&proxy).await;

        let (reply, took) = timed(&mut app, &text).await;

        at_deadline("what nobody reads", took, DEADLINE);
        refused(&reply, "08007", &[("reason", "commit_unresolved"), ("outcome", "unknown")]);
        assert_eq!(reply.status(), Some('I'));
        Watch::new(&fixture.node).await.wait("it is cancelled", NOTHING_RUNS).await;
    }
    assert_eq!(Watch::new(&fixture.node).await.ledger().await.get(&7), Some(&2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_commit_can_be_cancelled_and_is_then_called_unreplicated() {
    // The choice of those who want their locks back: committed here, confirmed by no standby, and never plain success.
    let (cluster, proxy) = stuck_cluster("cancel").await;

    for (mut app, way, reply) in commits(&proxy).await {
        let details = [
            ("outcome", "committed_unreplicated"),
            ("reason", "committed_unreplicated"),
            ("cause", "sync_standby"),
        ];
        refused(&reply, "08007", &details);
        assert_eq!(reply.status(), Some('I'));
        // In the extended protocol CommandComplete precedes the commit, as with deferred constraints.
        let expected: &[&str] = if way == EXTENDED { &["INSERT 0 1"] } else { &[] };
        assert_eq!(reply.commands(), expected, "the end of a commit in doubt");
        assert_eq!(value(&mut app, "SELECT count(*) FROM ledger").await, "4", "visible at once");
    }
    drop(cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_select_under_way_on_a_primary_that_freezes_is_answered_in_time() {
    // Neither cancel nor drain get an answer. Behind the session's back they may take what they need.
    let fixture = Fixture::new("").await;
    let mut outside = session(&fixture.proxy).await;
    let mut inside = session(&fixture.proxy).await;
    run(&mut inside, "BEGIN").await;
    run(&mut inside, "INSERT INTO ledger VALUES (1)").await;
    outside.send(Frames::new().query("SELECT pg_sleep(1.2)")).await;
    inside.send(Frames::new().query("SELECT pg_sleep(1.2)")).await;
    let begin = Instant::now();
    let running = "SELECT count(*) = 2 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(1.2)'";
    Watch::new(&fixture.node).await.wait("both run", running).await;
    block_in_place(|| fixture.node.freeze()).unwrap();
    let latest = begin + DEADLINE + ANSWER_SLACK * NOISE;

    let reply = outside.reply().await;

    assert!(Instant::now() < latest, "{:?}", begin.elapsed());
    refused(&reply, "57014", &[("reason", "read_timeout"), ("lane", "read"), ("outcome", "rolled_back")]);
    assert_eq!(reply.status(), Some('I'));
    // The transaction has written: it is in the write lane.
    let reply = inside.reply().await;
    assert!(Instant::now() < latest, "{:?}", begin.elapsed());
    refused(&reply, "57014", &[("lane", "write"), ("outcome", "rolled_back")]);
    assert_eq!(reply.status(), Some('E'));
    let reply = inside.query("SELECT 1").await;
    assert_eq!((reply.error_code().as_str(), reply.status()), ("25P02", Some('E')));
    let (reply, took) = timed(&mut inside, "ROLLBACK").await;
    assert_eq!((reply.error(), reply.status()), (None, Some('I')), "nobody but the sidecar can answer now");
    assert!(took < ANSWER_SLACK * NOISE, "ROLLBACK took {took:?}");

    block_in_place(|| fixture.node.thaw()).unwrap();
    let watch = Watch::new(&fixture.node).await;
    watch.wait("nothing is left running", NOTHING_RUNS).await;
    assert_eq!(watch.ledger().await.get(&1), None, "the transaction that was told rolled_back");
}

/// A server that answers an INSERT after this time, everything else at once, and never a cancel request.
async fn slow_to_insert(pause: Duration) -> ScriptedServer {
    let mut server = ScriptedServer::start().await;
    server.serve(move |incoming| async move {
        let mut backend = match incoming {
            Incoming::Session(backend) => backend,
            Incoming::Cancel { connection, .. } => return connection.go_silent().await,
        };
        backend.welcome(&BackendKey { pid: 7, secret: vec![1, 2, 3, 4] }).await;
        let mut status = 'I';
        while let Some(message) = backend.next().await {
            let replies = match message.tag {
                b'Q' if message.body.starts_with(b"BEGIN") => {
                    status = 'T';
                    Replies::new().complete("BEGIN").ready(status)
                }
                b'Q' if message.body.starts_with(b"INSERT") => {
                    tokio::time::sleep(pause).await;
                    Replies::new().complete("INSERT 0 1").ready(status)
                }
                b'Q' if message.body.starts_with(b"COMMIT") => {
                    status = 'I';
                    Replies::new().complete("COMMIT").ready(status)
                }
                b'Q' => Replies::new().one_value("1"),
                b'P' => Replies::new().message(b'1', &[]),
                b'B' => Replies::new().message(b'2', &[]),
                b'E' => Replies::new().complete("SELECT 1"),
                b'S' => Replies::new().ready(status),
                _ => Replies::new(),
            };
            backend.send(replies).await;
        }
    });
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_is_refused_aloud_when_its_backend_had_to_be_given_up_after_an_answer_that_came_late() {
    // Seen when a frozen server went on: the INSERT was answered after its deadline and before anybody was told of
    // that, the cancel request could still strike, so the backend was given up, and COMMIT was answered ROLLBACK
    // without an error, as after one that the application has seen. The write was lost in silence.
    let server = slow_to_insert(Duration::from_millis(1600)).await;
    let proxy = crate::rig::sidecar(SECTIONS).upstream(&server.url()).start().await;
    let (mut app, _) = ScriptedApp::session(proxy.address(), "postgres", "postgres").await;
    run(&mut app, "BEGIN").await;

    let inserted = app.query("INSERT INTO t VALUES (1)").await;
    let committed = app.query("COMMIT").await;

    assert_eq!((inserted.error(), inserted.status()), (None, Some('T')));
    assert_eq!((committed.error_code().as_str(), committed.status()), ("40000", Some('I')), "{committed:?}");
}
