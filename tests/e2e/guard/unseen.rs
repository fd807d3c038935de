//! What was not there when its exchange was admitted, or is not what it looks like: it is looked at when it comes, and nothing
//! is said of it that is not known.

use std::time::{Duration, Instant};

use tidegate_tests::{Frames, Message, Proxy, ScriptedApp, ScriptedBackend, ScriptedServer, wait_for};
use tokio::task::block_in_place;
use tokio::time::sleep;

use super::{LEDGER, NOISE, Watch, guarded, refused, scripted, session, synchronous_cluster};
use crate::rig::{SOON, own_postgres, run, value};

const INSERT: &str = "INSERT INTO ledger VALUES (50)";

fn unnamed(sql: &str) -> Frames {
    Frames::new().unnamed(sql, &[])
}

/// How long the breaker may take, from the first stuck write.
const TRIP: Duration = Duration::from_millis(1500);

async fn trips(proxy: &Proxy) -> f64 {
    proxy.metrics().await.get("tidegate_breaker_trips_total", &[("lane", "write")]).unwrap_or_default()
}

/// Waits until writes are refused, and says how long that took.
async fn wait_refused(proxy: &Proxy) -> Duration {
    let begin = Instant::now();
    wait_for(SOON, "the breaker opens", async || (trips(proxy).await > 0.0).then_some(())).await;
    begin.elapsed()
}

/// A server that answers everything, until a message comes that has "last" in it.
async fn server_until_last<F>(then: fn(ScriptedBackend) -> F) -> (ScriptedServer, Proxy)
where
    F: Future<Output = ()> + Send + 'static,
{
    let sections = "[pool]\nsize = 3\nwrite_share = 1.0\n[commit]\nresolve = false\n[timeouts]\n\
                    read = \"700ms\"\nwrite = \"700ms\"\ncommit = \"700ms\"\nqueue = \"700ms\"\nconnect = \"700ms\"\n";
    let is_last = |message: &Message, _| message.body.windows(4).any(|word| word == b"last");
    scripted(sections, is_last, then).await
}

/// What may have been committed by the time the server is silent, or gone.
fn ways() -> Vec<(&'static str, bool, Frames)> {
    let padded = format!("SELECT 1 /* {} */", "x".repeat(200));
    let long = (0..300).fold(Frames::new(), |frames, _| frames.unnamed(&padded, &[]));
    vec![
        (
            "behind a ROLLBACK",
            true,
            Frames::new().query("ROLLBACK").query("INSERT INTO ledger VALUES (1) /* last */"),
        ),
        (
            "in a text behind a ROLLBACK",
            true,
            Frames::new().query("ROLLBACK; INSERT INTO ledger VALUES (1) /* last */"),
        ),
        (
            "behind a Flush",
            false,
            unnamed("SELECT 1").flush().unnamed("INSERT INTO ledger VALUES (1) /* last */", &[]).sync(),
        ),
        (
            "far behind in a pipeline",
            false,
            long.unnamed("INSERT INTO ledger VALUES (1) /* last */", &[]).sync(),
        ),
        ("by a hint", false, Frames::new().query("SELECT /*tidegate:lane=write*/ stores() /* last */")),
        ("by order", false, unnamed("SELECT 1 /* last */").sync()),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_may_have_committed_unseen_is_never_called_rolled_back() {
    // Told 57014 or 40000 with outcome=rolled_back, which is safe to try again, the application would write twice.
    let (_silent_server, silent) = server_until_last(ScriptedBackend::go_silent).await;
    let (_dying_server, dying) = server_until_last(|backend| async move { drop(backend) }).await;

    for (what, proxy) in [("silent", &silent), ("dying", &dying)] {
        for (way, in_transaction, frames) in ways() {
            let mut app = session(proxy).await;
            if way == "by order" {
                run(&mut app, "SET tidegate.lane = 'write'").await;
            }
            if in_transaction {
                run(&mut app, "BEGIN").await;
                run(&mut app, "INSERT INTO ledger VALUES (0)").await;
            }
            app.send(frames).await;
            let mut problem = None;
            while problem.is_none() {
                problem = app.reply().await.error();
            }

            let problem = problem.unwrap();
            assert_eq!(
                (problem.code(), problem.detail_of("outcome")),
                ("08007", Some("unknown")),
                "{what}, {way}: {problem:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_comes_late_in_its_exchange_is_refused_by_an_open_breaker() {
    // It would go unseen past the breaker into a server that hangs, wait as long as a read may, and take what reads need.
    let cluster = block_in_place(synchronous_cluster);
    let proxy = guarded(cluster.primary(), "[pool]\nsize = 20\n").await;
    let flushed = async |proxy: &Proxy| {
        let mut app = session(proxy).await;
        app.send(unnamed("SELECT 7").flush()).await;
        for tag in *b"12TDC" {
            app.expect(tag).await;
        }
        app
    };
    let (mut writer, mut reader) = (flushed(&proxy).await, flushed(&proxy).await);
    let mut deallocating = session(&proxy).await;
    deallocating.exchange(Frames::new().parse("old", "SELECT 8", &[]).sync()).await;
    run(&mut deallocating, "BEGIN").await;
    run(&mut deallocating, "SELECT 1").await;
    run(&mut deallocating, "DEALLOCATE old").await;
    let mut idle = session(&proxy).await;
    idle.exchange(Frames::new().parse("old", "SELECT 8", &[]).sync()).await;
    run(&mut idle, "DEALLOCATE old").await;
    run(&mut idle, "BEGIN").await;
    run(&mut idle, "SELECT 1").await;
    // Behind an exchange that came in parts, in a transaction.
    let mut parts = session(&proxy).await;
    run(&mut parts, "BEGIN").await;
    parts.send(unnamed("SELECT 7").flush()).await;
    for tag in *b"12TDC" {
        parts.expect(tag).await;
    }
    assert_eq!(parts.exchange(Frames::new().sync()).await.status(), Some('T'));
    // A session that keeps its backend, whose refused exchange ends by itself.
    let mut pinned = session(&proxy).await;
    run(&mut pinned, "LISTEN news").await;
    run(&mut pinned, "BEGIN").await;
    run(&mut pinned, "SELECT 1").await;
    block_in_place(|| cluster.standbys()[0].freeze()).unwrap();
    let mut stuck = Vec::new();
    for _ in 0..3 {
        let mut app = session(&proxy).await;
        app.send(Frames::new().query("INSERT INTO ledger VALUES (1)")).await;
        stuck.push(app);
    }
    wait_refused(&proxy).await;

    let breaker_open = [("reason", "breaker_open"), ("lane", "write"), ("outcome", "not_sent")];
    let reply = writer.exchange(unnamed(INSERT).sync()).await;
    refused(&reply, "53000", &breaker_open);
    assert_eq!(reply.status(), Some('I'));
    assert_eq!(value(&mut writer, "SELECT 1").await, "1", "the session goes on");
    let reply = reader.exchange(unnamed("SELECT 9").sync()).await;
    assert_eq!((reply.error(), reply.value().as_deref()), (None, Some("9")), "reads go on");
    for app in [&mut deallocating, &mut idle, &mut parts] {
        refused(&app.query(INSERT).await, "53000", &breaker_open);
        run(app, "ROLLBACK").await;
    }
    let begin = Instant::now();
    let reply = pinned.exchange(unnamed(INSERT).flush().sync()).await;
    refused(&reply, "53000", &breaker_open);
    assert_eq!(reply.status(), Some('E'));
    assert!(begin.elapsed() < Duration::from_secs(1), "took {:?}", begin.elapsed());
    run(&mut pinned, "ROLLBACK").await;
    drop(stuck);
    block_in_place(|| cluster.standbys()[0].thaw()).unwrap();
    wait_for(SOON, "writes work again", async || {
        writer.query("INSERT INTO ledger VALUES (99)").await.error().is_none().then_some(())
    })
    .await;
    let ledger = Watch::new(cluster.primary()).await.ledger().await;
    assert_eq!(ledger.get(&50), None, "what was refused is there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_are_pipelined_behind_reads_open_the_breaker_of_writes() {
    // Watched in the lane of the read in front, they hang as long as they may, and nobody asks whether others do. The probes that
    // ask now and then are left out.
    let cluster = block_in_place(synchronous_cluster);
    let sections = "[pool]\nsize = 20\n[breaker]\nprobe_interval = \"10min\"\n";
    let proxy = guarded(cluster.primary(), sections).await;
    let mut apps = Vec::new();
    for id in 0..3 {
        let mut app = session(&proxy).await;
        run(&mut app, &format!("INSERT INTO ledger VALUES ({id})")).await;
        apps.push(app);
    }
    // What committed lately is progress.
    sleep(Duration::from_secs(1)).await;
    block_in_place(|| cluster.standbys()[0].freeze()).unwrap();

    for app in &mut apps {
        app.send(Frames::new().query("SELECT 1").query(INSERT)).await;
    }

    let took = wait_refused(&proxy).await;
    assert!(took < TRIP * NOISE, "took {took:?}");
}

/// Says something again and again, until it is told to end.
async fn keep_saying(mut app: ScriptedApp, sql: &'static str) {
    loop {
        let reply = app.query(sql).await;
        if reply.error().is_some() {
            return;
        }
        sleep(Duration::from_millis(30)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_commit_nothing_do_not_keep_the_breaker_closed() {
    // Seen as progress, a batch that inserts in one long transaction, and workers that look for jobs and find none, would hide
    // that nobody's COMMIT ends.
    let cluster = block_in_place(synchronous_cluster);
    let proxy = guarded(cluster.primary(), "[pool]\nsize = 20\n").await;
    let mut batch = session(&proxy).await;
    run(&mut batch, "BEGIN").await;
    tokio::spawn(keep_saying(batch, "INSERT INTO ledger VALUES (7)"));
    for _ in 0..2 {
        let poller = session(&proxy).await;
        tokio::spawn(keep_saying(poller, "UPDATE ledger SET id = id WHERE id = -1"));
    }
    sleep(Duration::from_secs(1)).await;
    block_in_place(|| cluster.standbys()[0].freeze()).unwrap();

    let mut writer = session(&proxy).await;
    writer.send(Frames::new().query(INSERT)).await;

    let took = wait_refused(&proxy).await;
    assert!(took < TRIP * NOISE, "took {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_sidecar_answers_itself_leaves_no_deadline_behind() {
    // A transaction would be ended because its application thinks for longer than a statement may take, and a session that keeps
    // its backend as well.
    let node = block_in_place(|| own_postgres(&[]));
    block_in_place(|| node.sql(LEDGER)).unwrap();
    let deadline = Duration::from_millis(600);
    let sections = "[timeouts]\nread = \"600ms\"\nwrite = \"600ms\"\ncommit = \"600ms\"\nqueue = \"600ms\"\nconnect = \"600ms\"\n";
    let proxy = guarded(&node, sections).await;
    let ours = [
        Frames::new().query("SET LOCAL tidegate.priority = 'critical'"),
        Frames::new().query("SHOW tidegate.lane"),
        unnamed("SHOW tidegate.lane").sync(),
        Frames::new().query("DEALLOCATE old"),
        Frames::new().query("SELECT 1").flush(),
    ];
    for frames in ours {
        let mut app = session(&proxy).await;
        app.exchange(Frames::new().parse("old", "SELECT 8", &[]).sync()).await;
        run(&mut app, "BEGIN").await;
        run(&mut app, INSERT).await;
        assert_eq!(app.exchange(frames).await.error(), None);
        let mut pinned = session(&proxy).await;
        run(&mut pinned, "LISTEN news").await;
        run(&mut pinned, "SHOW tidegate.lane").await;

        sleep(deadline * 2).await;

        run(&mut app, "SELECT 1").await;
        assert_eq!(run(&mut app, "COMMIT").await.commands(), ["COMMIT"]);
        run(&mut pinned, "SELECT 1").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deallocate_that_is_answered_here_leaves_what_follows_as_it_is() {
    // The statement behind it would be sent in the place of the one behind that.
    let node = block_in_place(|| own_postgres(&[]));
    let proxy = guarded(&node, "").await;
    let mut app = session(&proxy).await;
    for (name, sql) in [("old", "SELECT 0"), ("one", "SELECT 1"), ("two", "SELECT 2")] {
        app.exchange(Frames::new().parse(name, sql, &[]).sync()).await;
        app.exchange(Frames::new().bind("", name, &[]).execute("", 0).sync()).await;
    }
    run(&mut app, "DEALLOCATE old").await;

    let bound = |frames: Frames, name| frames.bind("", name, &[]).execute("", 0).sync();
    app.send(bound(bound(Frames::new(), "one"), "two")).await;

    for wanted in ["1", "2"] {
        let reply = app.reply().await;
        assert_eq!((reply.error(), reply.value().as_deref()), (None, Some(wanted)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_committed_in_part_is_not_called_rolled_back() {
    // An application that tries again does the first part twice.
    let node = block_in_place(|| own_postgres(&[]));
    let objects = format!(
        "{LEDGER}; CREATE PROCEDURE halves() LANGUAGE plpgsql AS
         'BEGIN INSERT INTO ledger VALUES (1); COMMIT; PERFORM pg_sleep(60); END'"
    );
    block_in_place(|| node.sql(&objects)).unwrap();
    let proxy =
        guarded(&node, "[timeouts]\nwrite = \"800ms\"\nqueue = \"800ms\"\nconnect = \"800ms\"\n").await;
    let texts = [
        "CALL halves()",
        "DO $$ BEGIN INSERT INTO ledger VALUES (1); COMMIT; PERFORM pg_sleep(60); END $$",
        "BEGIN; INSERT INTO ledger VALUES (1); COMMIT; BEGIN; DELETE FROM ledger WHERE id = 1 AND pg_sleep(60) IS NULL; COMMIT",
    ];

    for (done, text) in (1..).zip(texts) {
        let mut app = session(&proxy).await;
        let reply = app.query(text).await;

        refused(&reply, "08007", &[("outcome", "unknown")]);
        let count = block_in_place(|| node.sql("SELECT count(*) FROM ledger")).unwrap();
        assert_eq!(count, done.to_string(), "{text}");
        if reply.status() == Some('E') {
            run(&mut app, "ROLLBACK").await;
        }
        assert_eq!(value(&mut app, "SELECT 1").await, "1");
    }
    // In a transaction nothing of it is committed.
    let mut app = session(&proxy).await;
    run(&mut app, "BEGIN").await;
    let reply = app.query("DO $$ BEGIN PERFORM pg_sleep(60); END $$").await;
    refused(&reply, "57014", &[("outcome", "rolled_back")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_waits_for_its_standby_is_not_cancelled_because_its_application_leaves() {
    // The cancel would make a row visible that only one server has, and nobody was told.
    let cluster = block_in_place(synchronous_cluster);
    let proxy = guarded(cluster.primary(), "").await;
    let mut app = session(&proxy).await;
    run(&mut app, "INSERT INTO ledger VALUES (1)").await;
    block_in_place(|| cluster.standbys()[0].freeze()).unwrap();
    app.send(Frames::new().query(INSERT)).await;
    let watch = Watch::new(cluster.primary()).await;
    watch.wait("it waits", "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '%50%' AND pid <> pg_backend_pid()").await;

    app.reset();

    sleep(Duration::from_secs(1)).await;
    assert_eq!(watch.ledger().await.get(&50), None, "no standby has it");
    block_in_place(|| cluster.standbys()[0].thaw()).unwrap();
    watch.wait("it is there", "SELECT count(*) = 1 FROM ledger WHERE id = 50").await;
}
