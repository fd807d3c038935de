//! Lanes are bulkheads: writes cannot take what reads need. What counts as a write is decided by what it does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_chaos::cluster::{Node, NodeOptions, Programs, WalStorage};
use tidegate_chaos::fault::Fault;
use tidegate_tests::{Frames, Proxy, Reply, ScriptedApp, wait_for};
use tokio::task::{JoinSet, block_in_place};

use super::{
    LEDGER, Peak, Watch, at_deadline, at_most, guarded, refused, session, synchronous_cluster, timed,
};
use crate::rig::{SOON, own_postgres, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_that_wait_for_a_lock_hold_half_of_the_pool_and_reads_the_other() {
    // Fifteen writers are stuck before a pool of ten. One backend too many for them is one too few for reads.
    let node = block_in_place(|| own_postgres(&[]));
    block_in_place(|| node.sql(&format!("{LEDGER}; INSERT INTO ledger VALUES (0)"))).unwrap();
    let sections = "[pool]\nsize = 10\nwrite_share = 0.5\n[timeouts]\nwrite = \"3s\"\ncommit = \"3s\"\n";
    let proxy = guarded(&node, sections).await;
    let direct = ([127, 0, 0, 1], node.port()).into();
    let mut holder = ScriptedApp::session(direct, "postgres", "postgres").await.0;
    run(&mut holder, "BEGIN").await;
    run(&mut holder, "UPDATE ledger SET id = 0 WHERE id = 0").await;
    let update = "UPDATE ledger SET id = 0 WHERE id = 0 /* stuck */";
    let mut writers = JoinSet::new();
    for number in 0..15 {
        let mut app = session(&proxy).await;
        writers.spawn(async move {
            // Some of them read first: a transaction that waits for the lane must not hold what reads need either.
            if number % 3 == 0 {
                run(&mut app, "BEGIN").await;
                run(&mut app, "SELECT 1").await;
            }
            app.query(update).await
        });
    }
    let watch = Watch::new(&node).await;
    let stuck =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%/* stuck */'";
    watch.wait("the lane is full", &format!("SELECT ({stuck}) = 5")).await;
    let peak = Peak::watch(&node).await;

    let begin = Instant::now();
    let mut slowest = Duration::ZERO;
    let mut reader = session(&proxy).await;
    while begin.elapsed() < Duration::from_secs(2) {
        let read = Instant::now();
        run(&mut reader, "SELECT count(*) FROM ledger").await;
        slowest = slowest.max(read.elapsed());
        let writing = watch.value(stuck).await;
        assert!(writing.parse::<u32>().unwrap() <= 5, "{writing} backends write");
    }

    at_most("slowest read", slowest, Duration::from_millis(50));
    let backends = peak.end();
    assert!(backends <= 10 + super::CONTROL_CONNECTIONS + 1, "{backends} backends");
    for reply in writers.join_all().await {
        let problem = reply.error().unwrap();
        assert!(matches!(problem.code(), "57014" | "53300"), "{problem:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_writes_are_stuck_idle_backends_are_ready_before_reads_ask_for_them() {
    // Seen: in the first moments of a stall each write took one of the few backends that happened to be idle, and the reads
    // behind them waited for connects. Here there is one backend, and the first write takes it.
    let node = block_in_place(|| own_postgres(&[]));
    block_in_place(|| node.sql(LEDGER)).unwrap();
    let proxy = guarded(&node, "[timeouts]\nwrite = \"20s\"\ncommit = \"20s\"\n").await;
    let mut reader = session(&proxy).await;
    run(&mut reader, "SELECT 1").await;
    let direct = ([127, 0, 0, 1], node.port()).into();
    let mut holder = ScriptedApp::session(direct, "postgres", "postgres").await.0;
    run(&mut holder, "BEGIN").await;
    run(&mut holder, "LOCK TABLE ledger IN SHARE MODE").await;

    let waits = async || proxy.metrics().await.get("tidegate_queue_wait_seconds_count", &[("lane", "read")]);
    let before = waits().await;

    let mut writers = Vec::new();
    for stuck in 1..=6 {
        let mut writer = session(&proxy).await;
        writer.send(Frames::new().query(&format!("INSERT INTO ledger VALUES ({stuck})"))).await;
        writers.push(writer);
        wait_for(SOON, "two backends beside those that are stuck", async || {
            let metrics = proxy.metrics().await;
            let is = |state, least| {
                metrics.get("tidegate_pool_backends", &[("state", state)]).is_some_and(|is| is >= least)
            };
            (is("leased", stuck.into()) && is("idle", 2.0)).then_some(())
        })
        .await;
        run(&mut reader, "SELECT count(*) FROM ledger").await;
    }

    assert_eq!(waits().await, before, "a read waited for a backend");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_waits_for_its_lane_no_longer_than_its_deadline() {
    // Seen: the first write of a transaction waited for the whole of timeouts.queue, and its deadline began after that.
    let node = block_in_place(|| own_postgres(&[]));
    block_in_place(|| node.sql(LEDGER)).unwrap();
    let sections = "[pool]\nsize = 2\nwrite_share = 0.5\n[timeouts]\nqueue = \"4s\"\nwrite = \"4s\"\n\
                    [shed]\ncodel_target = \"4s\"\ncodel_interval = \"10s\"\n";
    let proxy = guarded(&node, sections).await;
    let (mut holder, mut app) = (session(&proxy).await, session(&proxy).await);
    run(&mut holder, "BEGIN").await;
    run(&mut holder, "INSERT INTO ledger VALUES (1)").await;
    run(&mut app, "SET tidegate.deadline_ms = 500").await;
    run(&mut app, "BEGIN").await;
    run(&mut app, "SELECT 1").await;

    let (reply, took) = timed(&mut app, "INSERT INTO ledger VALUES (2)").await;

    at_deadline("the wait", took, Duration::from_millis(500));
    let details = [("reason", "deadline"), ("lane", "write"), ("outcome", "not_sent")];
    refused(&reply, "53300", &details);
    assert_eq!(reply.status(), Some('E'));
    run(&mut app, "ROLLBACK").await;
    run(&mut app, "SELECT 1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_waits_for_a_lane_that_is_slow_unless_reads_would_have_nothing_left() {
    // Seen: while any write was slow enough to be suspect, each transaction that came to a full lane was refused, and
    // what it had done was lost. But each that waits holds a backend: one may, of the two that writes may not have.
    let node = block_in_place(|| own_postgres(&[]));
    block_in_place(|| node.sql(LEDGER)).unwrap();
    let sections = "[pool]\nsize = 4\nwrite_share = 0.5\n[timeouts]\nqueue = \"5s\"\nwrite = \"10s\"\ncommit = \"10s\"\n\
                    [shed]\ncodel_target = \"5s\"\ncodel_interval = \"10s\"\n";
    let proxy = guarded(&node, sections).await;
    let [mut slow, mut slower] = [session(&proxy).await, session(&proxy).await];
    let [mut first, mut second] = [session(&proxy).await, session(&proxy).await];
    slow.send(Frames::new().query("INSERT INTO ledger SELECT 1 FROM pg_sleep(3)")).await;
    slower.send(Frames::new().query("INSERT INTO ledger SELECT 2 FROM pg_sleep(4)")).await;
    for app in [&mut first, &mut second] {
        run(app, "BEGIN").await;
        run(app, "SELECT 1").await;
    }
    let suspect = [("lane", "write"), ("phase", "suspect")];
    wait_for(Duration::from_secs(2), "the breaker suspects something", async || {
        (proxy.metrics().await.get("tidegate_breaker_phase", &suspect) == Some(1.0)).then_some(())
    })
    .await;

    first.send(Frames::new().query("INSERT INTO ledger VALUES (3)")).await;
    first.expect_silence(Duration::from_millis(200)).await;
    let (refusal, took) = timed(&mut second, "INSERT INTO ledger VALUES (4)").await;
    let (read, read_took) = timed(&mut session(&proxy).await, "SELECT 1").await;

    refused(&refusal, "53300", &[("reason", "limit"), ("lane", "write"), ("outcome", "not_sent")]);
    assert_eq!(refusal.status(), Some('E'));
    at_most("refusal of the second", took, Duration::from_millis(100));
    assert_eq!(read.error(), None);
    at_most("read", read_took, Duration::from_millis(100));
    assert_eq!(slow.reply().await.error(), None);
    let waited = first.reply().await;
    assert_eq!((waited.error(), waited.status()), (None, Some('T')));
    run(&mut first, "COMMIT").await;
    assert_eq!(slower.reply().await.error(), None);
    let ledger = Watch::new(&node).await.ledger().await;
    assert_eq!(ledger.into_keys().collect::<Vec<_>>(), [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_goes_on_to_its_lane_when_no_more_backends_can_be_opened() {
    // It has its backend. Seen: whoever waited, for whatever, was refused with those whose login failed, and so was who
    // waited for a backend while others had some that came back.
    let node = block_in_place(|| own_postgres(&[]));
    let objects = format!("{LEDGER}; CREATE ROLE app LOGIN; GRANT ALL ON ledger TO app");
    block_in_place(|| node.sql(&objects)).unwrap();
    let sections = "[pool]\nsize = 3\nwrite_share = 0.4\n[timeouts]\nqueue = \"5s\"\n\
                    [shed]\ncodel_target = \"5s\"\ncodel_interval = \"10s\"\n";
    let proxy = guarded(&node, sections).await;
    let app = async || ScriptedApp::session(proxy.address(), "app", "postgres").await.0;
    let (mut holder, mut waiter, mut newcomer) = (app().await, app().await, app().await);
    run(&mut holder, "BEGIN").await;
    run(&mut holder, "INSERT INTO ledger VALUES (1)").await;
    run(&mut waiter, "BEGIN").await;
    run(&mut waiter, "SELECT 1").await;
    block_in_place(|| node.sql("ALTER ROLE app NOLOGIN")).unwrap();

    waiter.send(Frames::new().query("INSERT INTO ledger VALUES (2)")).await;
    waiter.expect_silence(Duration::from_millis(100)).await;
    newcomer.send(Frames::new().query("SELECT 1")).await;
    proxy.wait_logged("cannot open a backend").await;
    newcomer.expect_silence(Duration::from_millis(100)).await;
    waiter.expect_silence(Duration::from_millis(100)).await;
    run(&mut holder, "COMMIT").await;

    let written = waiter.reply().await;
    assert_eq!((written.error(), written.status()), (None, Some('T')));
    assert_eq!(newcomer.reply().await.error(), None);
    run(&mut waiter, "COMMIT").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_behind_a_statement_that_runs_has_its_wait_for_the_lane_after_that() {
    // The end of its wait was once the end of what ran before it, whose answer never came.
    let node = block_in_place(|| own_postgres(&[]));
    block_in_place(|| node.sql(LEDGER)).unwrap();
    let sections = "[pool]\nsize = 2\nwrite_share = 0.5\n[timeouts]\nqueue = \"500ms\"\n\
                    [shed]\ncodel_target = \"400ms\"\n";
    let proxy = guarded(&node, sections).await;
    let (mut holder, mut app) = (session(&proxy).await, session(&proxy).await);
    run(&mut holder, "BEGIN").await;
    run(&mut holder, "INSERT INTO ledger VALUES (1)").await;
    run(&mut app, "BEGIN").await;
    run(&mut app, "SELECT 1").await;

    let pipeline = Frames::new().query("SELECT 7 FROM pg_sleep(1.5)").query("INSERT INTO ledger VALUES (2)");
    app.send(pipeline).await;
    let (read, write) = (app.reply().await, app.reply().await);

    assert_eq!((read.value().as_deref(), read.status()), (Some("7"), Some('T')));
    refused(&write, "53300", &[("reason", "queue_timeout"), ("lane", "write"), ("outcome", "not_sent")]);
    assert_eq!(write.status(), Some('E'));
    run(&mut app, "ROLLBACK").await;
    run(&mut app, "SELECT 1").await;
}

/// One slot for writes and one for reads; the one for writes is taken by a transaction that has written. So
/// whatever is refused is a write, and whatever is answered is a read.
struct Sorter {
    node: Node,
    proxy: Proxy,
    holder: ScriptedApp,
}

impl Sorter {
    async fn new() -> Self {
        let node = block_in_place(|| own_postgres(&[]));
        let objects = format!(
            "{LEDGER}; CREATE SEQUENCE counter; INSERT INTO ledger VALUES (1);
             CREATE FUNCTION stores() RETURNS int LANGUAGE sql VOLATILE
                 AS 'INSERT INTO ledger VALUES (99); SELECT 1';
             CREATE FUNCTION looks() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT count(*) FROM ledger';
             CREATE PROCEDURE does() LANGUAGE sql AS 'INSERT INTO ledger VALUES (98)'"
        );
        block_in_place(|| node.sql(&objects)).unwrap();
        let sections = "[pool]\nsize = 2\nwrite_share = 0.5\n[timeouts]\nqueue = \"400ms\"\nidle_in_transaction = \"0\"\n\
                        [shed]\ncodel_target = \"390ms\"\n";
        let proxy = guarded(&node, sections).await;
        // Both backends are open before anybody is in a hurry.
        let (mut holder, mut reader) = (session(&proxy).await, session(&proxy).await);
        for app in [&mut holder, &mut reader] {
            wait_for(Duration::from_secs(10), "a backend is open", async || {
                let begun = app.query("BEGIN; SELECT 1").await;
                begun.error().is_none().then_some(())
            })
            .await;
        }
        run(&mut reader, "COMMIT").await;
        run(&mut holder, "INSERT INTO ledger VALUES (0)").await;
        Self { node, proxy, holder }
    }
}

/// Both protocols must come to the same verdict.
async fn both(address: SocketAddr, sql: &str) -> [Reply; 2] {
    let (mut app, _) = ScriptedApp::session(address, "postgres", "postgres").await;
    let simple = app.query(sql).await;
    let (mut app, _) = ScriptedApp::session(address, "postgres", "postgres").await;
    [simple, app.exchange(Frames::new().unnamed(sql, &[]).sync()).await]
}

const WRITES: &[&str] = &[
    "INSERT INTO ledger VALUES (2)",
    "  insert into ledger values (2)",
    "UPDATE ledger SET id = id",
    "DELETE FROM ledger WHERE id = 7",
    "MERGE INTO ledger USING (VALUES (5)) v (id) ON ledger.id = v.id WHEN NOT MATCHED THEN INSERT VALUES (v.id)",
    "TRUNCATE ledger",
    "CREATE TABLE made (id int)",
    "CREATE TEMP TABLE made_for_now (id int)",
    "CREATE TABLE made AS SELECT 1",
    "SELECT 1 AS one INTO made",
    "ALTER TABLE ledger ADD COLUMN more int",
    "COMMENT ON TABLE ledger IS 'a'",
    "GRANT SELECT ON ledger TO PUBLIC",
    "REFRESH MATERIALIZED VIEW nothing",
    "SELECT nextval('counter')",
    "SELECT setval('counter', 5)",
    "SELECT pg_catalog.nextval('counter')",
    "SELECT lo_create(0)",
    "SELECT * FROM ledger FOR UPDATE",
    "SELECT * FROM ledger FOR NO KEY UPDATE",
    "SELECT * FROM ledger FOR SHARE",
    "SELECT * FROM ledger FOR KEY SHARE",
    "select * from (select * from ledger for update) x",
    "WITH new AS (INSERT INTO ledger VALUES (3) RETURNING id) SELECT * FROM new",
    "WITH gone AS (DELETE FROM ledger WHERE id = 7 RETURNING id) SELECT count(*) FROM gone",
    "EXPLAIN ANALYZE INSERT INTO ledger VALUES (4)",
    "EXPLAIN (ANALYZE, COSTS off) INSERT INTO ledger VALUES (4)",
    "SELECT stores()",
    "SELECT public.stores()",
    "SELECT * FROM stores()",
    "SELECT \"stores\"()",
    "CALL does()",
    "DO $$ BEGIN INSERT INTO ledger VALUES (97); END $$",
    "/* a comment */ INSERT INTO ledger VALUES (2)",
    "-- a comment\nINSERT INTO ledger VALUES (2)",
    "/* nested /* comment */ SELECT 1 */ UPDATE ledger SET id = id",
    "SELECT pg_logical_emit_message(true, 'test', '')",
    "SELECT lo_unlink(12)",
    "COPY ledger FROM STDIN",
];

const READS: &[&str] = &[
    "SELECT 1",
    "select count(*) from ledger",
    "SELECT * FROM ledger WHERE id = 5 ORDER BY id LIMIT 1",
    "VALUES (1), (2)",
    "TABLE ledger",
    "SHOW server_version",
    "SHOW ALL",
    "WITH those AS (SELECT * FROM ledger) SELECT count(*) FROM those",
    "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 5) SELECT sum(i) FROM n",
    "SELECT random()",
    "SELECT clock_timestamp(), now(), statement_timestamp()",
    "SELECT pg_sleep(0)",
    "SELECT gen_random_uuid()",
    "SELECT 'INSERT INTO ledger VALUES (1)'",
    "SELECT $$FOR UPDATE$$",
    "SELECT $tag$ nextval('counter') $tag$",
    "SELECT 1 -- FOR UPDATE",
    "SELECT 1 /* INSERT */",
    "SELECT \"id\" AS \"insert\" FROM ledger",
    "SELECT E'it\\'s; DELETE FROM ledger'",
    "EXPLAIN INSERT INTO ledger VALUES (1)",
    "EXPLAIN SELECT 1",
    "EXPLAIN ANALYZE SELECT 1",
    "COPY (SELECT 1) TO STDOUT",
    "SELECT pg_backend_pid(), version(), current_user",
    "SELECT lower('A'), coalesce(NULL, 1), count(*) OVER () FROM ledger",
    "(SELECT 1) UNION ALL (SELECT 2)",
    "",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_may_wait_for_wal_is_a_write() {
    // A write that is taken for a read hangs in the readers' half with the next stall. This is the dangerous error.
    let sorter = Sorter::new().await;

    let mut wrong = Vec::new();
    let mut checks = JoinSet::new();
    for sql in WRITES {
        let address = sorter.proxy.address();
        checks.spawn(async move { (*sql, both(address, sql).await) });
    }
    for (sql, replies) in checks.join_all().await {
        for (reply, protocol) in replies.iter().zip(["simple", "extended"]) {
            let problem = reply.error().unwrap_or_default();
            if problem.code() != "53300" || problem.detail_of("lane") != Some("write") {
                wrong.push((protocol, sql, problem));
            }
        }
    }

    assert!(wrong.is_empty(), "taken for reads: {wrong:#?}");
    assert_eq!(sorter.node.sql("SELECT count(*) FROM ledger").unwrap(), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_looks_like_a_write_is_a_read() {
    // Reads in the writers' half fail in every stall, for nothing.
    let sorter = Sorter::new().await;

    let mut wrong = Vec::new();
    for sql in READS {
        for (reply, protocol) in both(sorter.proxy.address(), sql).await.iter().zip(["simple", "extended"]) {
            if let Some(problem) = reply.error() {
                wrong.push((protocol, *sql, problem));
            }
        }
    }

    assert!(wrong.is_empty(), "taken for writes, or refused: {wrong:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_hint_decides_the_lane() {
    // Whoever wrote the statement may know better than we do.
    let sorter = Sorter::new().await;
    let address = sorter.proxy.address();

    for reply in both(address, "/*tidegate:lane=read*/ SELECT looks()").await {
        assert_eq!(reply.error(), None);
    }
    for reply in both(address, "/*tidegate:lane=write*/ SELECT 1").await {
        refused(&reply, "53300", &[("lane", "write")]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stable_function_of_a_user_is_a_read_once_it_was_looked_up() {
    // Unknown means write; but the server knows, and is asked.
    let sorter = Sorter::new().await;
    let mut app = session(&sorter.proxy).await;

    wait_for(Duration::from_secs(10), "looks() is a read", async || {
        app.query("SELECT looks()").await.error().is_none().then_some(())
    })
    .await;

    refused(&app.query("SELECT stores()").await, "53300", &[("lane", "write"), ("outcome", "not_sent")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_statements_and_pipelines_take_the_lane_of_the_strongest() {
    // The write would come along in the reads' half.
    let sorter = Sorter::new().await;
    let write = [("lane", "write"), ("outcome", "not_sent")];

    let mut app = session(&sorter.proxy).await;
    refused(&app.query("SELECT 1; INSERT INTO ledger VALUES (2)").await, "53300", &write);
    let frames = Frames::new().unnamed("SELECT 1", &[]).unnamed("INSERT INTO ledger VALUES (2)", &[]).sync();
    let reply = app.exchange(frames).await;

    refused(&reply, "53300", &[("lane", "write")]);
    assert_eq!(reply.status(), Some('I'));
    // A prepared statement keeps its verdict.
    let parse = Frames::new().parse("s", "SELECT nextval('counter')", &[]).sync();
    let parsed = app.exchange(parse).await;
    if parsed.error().is_none() {
        let execute = || Frames::new().bind("", "s", &[]).execute("", 0).sync();
        refused(&app.exchange(execute()).await, "53300", &write);
        refused(&app.exchange(execute()).await, "53300", &write);
    }
    run(&mut app, "SELECT 1; SELECT 2").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_is_prepared_behind_a_known_read_stays_a_write_for_everybody() {
    // What was found out about the first text of a pipeline was once kept for the next new one, and with it for all
    // sessions that prepare the same.
    let mut sorter = Sorter::new().await;
    let (read, write) = ("SELECT 1 AS known", "INSERT INTO ledger VALUES (5)");
    let mut app = session(&sorter.proxy).await;
    let known = app.exchange(Frames::new().parse("known", read, &[]).sync()).await;
    assert!(known.error().is_none(), "{:?}", known.error());
    run(&mut sorter.holder, "COMMIT").await;

    let mut pipelining = session(&sorter.proxy).await;
    let both = Frames::new().parse("read", read, &[]).parse("write", write, &[]).sync();
    let prepared = pipelining.exchange(both).await;
    assert!(prepared.error().is_none(), "{:?}", prepared.error());

    run(&mut sorter.holder, "BEGIN").await;
    run(&mut sorter.holder, "INSERT INTO ledger VALUES (0)").await;
    let mut other = session(&sorter.proxy).await;
    let parse = Frames::new().parse("mine", write, &[]).bind("", "mine", &[]).execute("", 0).sync();
    refused(&other.exchange(parse).await, "53300", &[("lane", "write")]);
    let execute = Frames::new().bind("", "write", &[]).execute("", 0).sync();
    refused(&pipelining.exchange(execute).await, "53300", &[("lane", "write")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_is_a_read_until_it_writes() {
    // BEGIN alone says nothing; the first write has to get into the lane, and fails the transaction when it cannot.
    let sorter = Sorter::new().await;
    let mut app = session(&sorter.proxy).await;

    for begin in ["BEGIN", "START TRANSACTION", "BEGIN ISOLATION LEVEL SERIALIZABLE", "BEGIN READ ONLY"] {
        run(&mut app, begin).await;
        run(&mut app, "SELECT count(*) FROM ledger").await;
        let reply = run(&mut app, "COMMIT").await;
        assert_eq!((reply.commands(), reply.status()), (vec!["COMMIT".to_owned()], Some('I')), "{begin}");
    }
    for end in ["ROLLBACK", "COMMIT"] {
        run(&mut app, "BEGIN").await;
        run(&mut app, "SELECT 1").await;
        let reply = app.query("INSERT INTO ledger VALUES (2)").await;
        refused(&reply, "53300", &[("lane", "write")]);
        assert_eq!(reply.status(), Some('E'));
        let reply = app.query("SELECT 1").await;
        assert_eq!((reply.error_code().as_str(), reply.status()), ("25P02", Some('E')));
        let reply = run(&mut app, end).await;
        assert_eq!((reply.commands(), reply.status()), (vec!["ROLLBACK".to_owned()], Some('I')));
    }
    run(&mut app, "BEGIN").await;
    let reply = app.query("INSERT INTO ledger VALUES (2)").await;
    refused(&reply, "53300", &[("lane", "write")]);
    let reply = app.query("ROLLBACK").await;
    assert_eq!((reply.error(), reply.status()), (None, Some('I')));
    run(&mut app, "SELECT 1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discard_all_is_refused_with_the_writes_where_it_drops_tables_and_only_there() {
    // Pools of applications send it with each connection that they hand out. Taken for a read, it waited for the
    // standby with the tables' rows in the catalog; taken for a write of every session, a stall would cost all of them.
    let cluster = block_in_place(synchronous_cluster);
    let proxy = guarded(cluster.primary(), "").await;
    let (mut pinned, mut other) = (session(&proxy).await, session(&proxy).await);
    run(&mut pinned, "CREATE TEMP TABLE mine AS SELECT 7").await;
    run(&mut other, "SELECT 1").await;
    block_in_place(|| cluster.standbys()[0].freeze()).unwrap();
    let mut stuck = Vec::new();
    for id in 0..3 {
        let mut app = session(&proxy).await;
        app.send(Frames::new().query(&format!("INSERT INTO ledger VALUES ({id})"))).await;
        stuck.push(app);
    }
    wait_for(SOON, "the breaker opens", async || {
        let trips = proxy.metrics().await.get("tidegate_breaker_trips_total", &[("lane", "write")]);
        (trips >= Some(1.0)).then_some(())
    })
    .await;

    let discarded = pinned.query("DISCARD ALL").await;

    refused(&discarded, "53000", &[("reason", "breaker_open"), ("lane", "write"), ("outcome", "not_sent")]);
    run(&mut pinned, "SELECT * FROM mine").await;
    run(&mut other, "DISCARD ALL").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_that_the_server_does_not_know_yet_stays_a_write() {
    // Unknown means write. Remembered as a read it would write in the readers' half once somebody has created it.
    let sorter = Sorter::new().await;
    let mut app = session(&sorter.proxy).await;
    let write = [("lane", "write"), ("outcome", "not_sent")];
    let start = Instant::now();

    while start.elapsed() < Duration::from_secs(3) {
        refused(&app.query("SELECT newcomer()").await, "53300", &write);
    }
    let create =
        "CREATE FUNCTION newcomer() RETURNS int LANGUAGE sql AS 'INSERT INTO ledger VALUES (5); SELECT 1'";
    block_in_place(|| sorter.node.sql(create)).unwrap();

    refused(&app.query("SELECT newcomer()").await, "53300", &write);
}

/// A view that writes, which the text of a SELECT does not tell.
const HIDDEN_WRITE: &str = "CREATE TABLE ledger (id bigint NOT NULL);
    CREATE FUNCTION stores() RETURNS int LANGUAGE sql AS 'INSERT INTO ledger VALUES (1); SELECT 1';
    CREATE VIEW harmless AS SELECT stores() AS it";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_waits_as_only_writes_do_is_a_write_from_then_on_and_what_comes_behind_it_is_not() {
    // The view hides that it writes. Seen: the lesson was that of the last statement sent, which in a pipeline is another.
    let node = block_in_place(|| own_postgres(&[]));
    block_in_place(|| node.sql(HIDDEN_WRITE)).unwrap();
    let proxy = guarded(&node, "[timeouts]\nread = \"20s\"\nwrite = \"20s\"\ncommit = \"20s\"\n").await;
    let learned = async || proxy.metrics().await.get("tidegate_reads_learned_total", &[]);
    let (mut app, mut other) = (session(&proxy).await, session(&proxy).await);
    let (write, read) = ("SELECT it FROM harmless", "SELECT count(*) FROM ledger");
    let frames = |sql: &str| Frames::new().parse("", sql, &[]).bind("", "", &[]).execute("", 0).sync();
    let watch = Watch::new(&node).await;
    let waits =
        "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '%harmless%'";
    block_in_place(|| node.set("synchronous_standby_names", "nobody")).unwrap();

    let both = Frames::new().raw(frames(write).as_ref()).raw(frames(read).as_ref());
    app.send(both).await;
    watch.wait("it waits for the standby", waits).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(learned().await, Some(0.0));
    block_in_place(|| node.set("synchronous_standby_names", "")).unwrap();
    for _ in [write, read] {
        assert_eq!(app.reply().await.error(), None);
    }

    block_in_place(|| node.set("synchronous_standby_names", "nobody")).unwrap();
    app.send(frames(write)).await;
    wait_for(SOON, "it is learned", async || (learned().await == Some(1.0)).then_some(())).await;
    run(&mut other, "SET tidegate.write_timeout = '500ms'").await;
    let problem = other.query(write).await.error().unwrap();
    assert_eq!(problem.detail_of("lane"), Some("write"), "{problem:?}");
    assert_eq!(other.query(read).await.error(), None);
    block_in_place(|| node.set("synchronous_standby_names", "")).unwrap();
    assert_eq!(app.reply().await.error(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_waits_for_the_log_is_a_write_from_then_on() {
    // With a disk that is frozen no standby tells. Who only reads may wait for the log, too, and has no transaction id.
    let fault = Fault::WalFreeze { node: "primary".to_owned() };
    if let Some(why) = fault.obstacle() {
        println!("skipped: {fault}: {why}");
        return;
    }
    let options = NodeOptions::new(Programs::find().unwrap()).wal(WalStorage::Loop { mib: 512 });
    let node = block_in_place(|| Node::start(&options).map(Arc::new)).unwrap();
    block_in_place(|| node.sql(HIDDEN_WRITE)).unwrap();
    let proxy = guarded(&node, "[timeouts]\nread = \"20s\"\n").await;
    let learned = async || proxy.metrics().await.get("tidegate_reads_learned_total", &[]);
    let mut app = session(&proxy).await;
    assert_eq!(app.query("SELECT it FROM harmless").await.error(), None);
    assert_eq!(learned().await, Some(0.0));

    let frozen = block_in_place(|| fault.strike(&node)).unwrap();
    app.send(Frames::new().query("SELECT it FROM harmless")).await;
    wait_for(SOON, "it is learned", async || (learned().await == Some(1.0)).then_some(())).await;

    block_in_place(|| frozen.heal()).unwrap();
    assert_eq!(app.reply().await.error(), None);
}
