//! A ROLLBACK waits for nothing that hangs: it is never refused, and an application that gives its connection up when
//! its ROLLBACK fails keeps it.

use std::time::{Duration, Instant};

use tidegate_chaos::cluster::Cluster;
use tidegate_tests::{
    Frames, Message, Proxy, Replies, Reply, ScriptedApp, ScriptedBackend, ScriptedServer, wait_for,
};
use tokio::task::block_in_place;

use super::{
    ANSWER_SLACK, NOISE, Watch, at_deadline, at_most, guarded, refused, scripted, session,
    synchronous_cluster, timed, timed_frames,
};
use crate::rig::{SOON, backend_pid, run, value};

/// Whatever takes that long was no answer of a server that can answer.
const SECTIONS: &str = "[pool]\nsize = 20\n[timeouts]\nread = \"10s\"\nwrite = \"10s\"\ncommit = \"10s\"\n[commit]\nresolve_within = \"1s\"\n";

/// As long as a ROLLBACK may take while the breaker of its lane is open.
const ROLLBACK_WITHIN: Duration = Duration::from_secs(1);

/// An answer of a server that is not stuck.
const AT_ONCE: Duration = Duration::from_millis(200);

/// The body of a function call: function 861, no arguments, and a result as text.
const NO_ARGUMENTS: [u8; 10] = [0, 0, 3, 93, 0, 0, 0, 0, 0, 0];

/// Enough stuck writes to open the breaker.
const STUCK: u32 = 3;

/// A primary whose commits wait for its standby, and a sidecar before it.
struct Stage {
    cluster: Cluster,
    proxy: Proxy,
}

impl Stage {
    async fn new() -> Self {
        let cluster = block_in_place(synchronous_cluster);
        let proxy = guarded(cluster.primary(), SECTIONS).await;
        Self { cluster, proxy }
    }

    /// A session with a transaction that has written this row.
    async fn writer(&self, id: u32) -> ScriptedApp {
        let mut app = session(&self.proxy).await;
        write(&mut app, id).await;
        app
    }

    /// Other sessions write until the breaker is open.
    async fn trip(&self) -> Vec<ScriptedApp> {
        let mut stuck = Vec::new();
        for id in 0..STUCK {
            let mut app = session(&self.proxy).await;
            app.send(Frames::new().query(&format!("INSERT INTO ledger VALUES ({})", 100 + id))).await;
            stuck.push(app);
        }
        wait_for(SOON, "the breaker opens", async || {
            let trips = self.proxy.metrics().await.get("tidegate_breaker_trips_total", &[("lane", "write")]);
            (trips >= Some(1.0)).then_some(())
        })
        .await;
        stuck
    }

    /// The standby freezes, and with it all writes.
    async fn freeze_standby(&self) -> Vec<ScriptedApp> {
        block_in_place(|| self.cluster.standbys()[0].freeze()).unwrap();
        self.trip().await
    }

    /// All is well again, and of these rows none is there.
    async fn end(self, rolled_back: &[u64]) {
        block_in_place(|| self.cluster.standbys()[0].thaw()).unwrap();
        let mut app = session(&self.proxy).await;
        wait_for(SOON, "writes work again", async || {
            app.query("INSERT INTO ledger VALUES (99)").await.error().is_none().then_some(())
        })
        .await;
        let ledger = Watch::new(self.cluster.primary()).await.ledger().await;
        let there: Vec<&u64> = rolled_back.iter().filter(|id| ledger.contains_key(id)).collect();
        assert!(there.is_empty(), "rolled back, and there: {there:?}");
    }
}

async fn write(app: &mut ScriptedApp, id: u32) {
    run(app, "BEGIN").await;
    run(app, &format!("INSERT INTO ledger VALUES ({id})")).await;
}

/// The transaction is over, and the application was told just that.
#[track_caller]
fn rolled_back(what: &str, reply: &Reply) {
    assert_eq!((reply.error(), reply.status()), (None, Some('I')), "{what}");
    assert_eq!(reply.commands(), ["ROLLBACK"], "{what}");
}

#[track_caller]
fn breaker_open(reply: &Reply, status: char) {
    refused(reply, "53000", &[("reason", "breaker_open"), ("lane", "write"), ("outcome", "not_sent")]);
    assert_eq!(reply.status(), Some(status));
}

fn unnamed(sql: &str) -> Frames {
    Frames::new().unnamed(sql, &[]).sync()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_breaker_refuses_no_rollback_of_what_has_written() {
    // Seen: it was told 53000 like a write, and only a second one was answered. A pool of an application closes a
    // connection whose ROLLBACK fails, so a stall cost all the connections that had a transaction open.
    let stage = Stage::new().await;
    let bound = Frames::new().bind("", "end", &[]).describe_portal("").execute("", 0);
    let ways = [
        ("simple", Frames::new().query("ROLLBACK")),
        ("with more words", Frames::new().query("/* over */ ABORT WORK;")),
        ("extended", unnamed("ROLLBACK")),
        ("prepared", bound.clone().sync()),
        ("behind a Close", Frames::new().close_statement("x").unnamed("ROLLBACK", &[]).flush().sync()),
        ("in a portal", Frames::new().parse("", "ABORT", &[]).bind("p", "", &[]).execute("p", 0).sync()),
    ];
    let mut sessions = Vec::new();
    for (id, (way, frames)) in (1..).zip(ways) {
        let mut app = session(&stage.proxy).await;
        app.exchange(Frames::new().parse("end", "ROLLBACK", &[]).sync()).await;
        write(&mut app, id).await;
        let pid = backend_pid(&mut app).await;
        sessions.push((app, way, frames, pid));
    }
    let stuck = stage.freeze_standby().await;

    let watch = Watch::new(stage.cluster.primary()).await;
    for (mut app, way, frames, pid) in sessions {
        let (reply, took) = timed_frames(&mut app, frames).await;

        rolled_back(way, &reply);
        at_most(way, took, AT_ONCE);
        // By the server itself, whose backend can go to others: none had to be closed.
        let idle = format!("SELECT state FROM pg_stat_activity WHERE pid = {pid}");
        assert_eq!(watch.value(&idle).await, "idle", "{way}");
        assert_eq!(value(&mut app, "SELECT 1").await, "1", "{way}");
        breaker_open(&app.query("INSERT INTO ledger VALUES (50)").await, 'I');
    }
    drop(stuck);
    stage.end(&[1, 2, 3, 4, 5, 6, 50]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_breaker_refuses_no_rollback_of_what_failed_and_of_what_only_read() {
    // These are ended as any other; and a backend that belongs to its session has what nobody can bring back.
    let stage = Stage::new().await;
    let mut failed = stage.writer(1).await;
    assert_eq!(failed.query("SELECT 1/0").await.status(), Some('E'));
    let mut reader = session(&stage.proxy).await;
    run(&mut reader, "BEGIN").await;
    run(&mut reader, "SELECT count(*) FROM ledger").await;
    let mut pinned = session(&stage.proxy).await;
    run(&mut pinned, "CREATE TEMP TABLE mine AS SELECT 7 AS seven").await;
    write(&mut pinned, 2).await;
    let _stuck = stage.freeze_standby().await;

    for (what, app) in [("failed", &mut failed), ("read", &mut reader), ("pinned", &mut pinned)] {
        let (reply, took) = timed(app, "ROLLBACK").await;

        rolled_back(what, &reply);
        at_most(what, took, AT_ONCE);
    }
    assert_eq!(value(&mut pinned, "SELECT seven FROM mine").await, "7");
    stage.end(&[1, 2]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_has_failed_is_answered_in_postgresqls_words_under_an_open_breaker() {
    // Its COMMIT, which rolls back, was told 53000 like a write, and so was what the server would have answered 25P02: an
    // application that looks at the SQLSTATE would wait for the breaker instead of ending its transaction.
    let stage = Stage::new().await;
    let named = Frames::new().bind("", "end", &[]).execute("", 0).sync();
    let ends = [Frames::new().query("COMMIT"), unnamed("END"), named];
    let mut sessions = Vec::new();
    for (id, end) in (1..).zip(ends.iter().cycle().take(2 * ends.len())) {
        let mut app = session(&stage.proxy).await;
        app.exchange(Frames::new().parse("end", "COMMIT", &[]).sync()).await;
        let is_pinned = id > 3;
        if is_pinned {
            run(&mut app, "CREATE TEMP TABLE mine AS SELECT 7 AS seven").await;
        }
        write(&mut app, id).await;
        assert_eq!(app.query("SELECT 1/0").await.status(), Some('E'));
        sessions.push((app, id, end.clone()));
    }
    let _stuck = stage.freeze_standby().await;

    for (mut app, id, end) in sessions {
        // The first of each kind asks nothing in between.
        if ![1, 4].contains(&id) {
            let further = app.query("INSERT INTO ledger VALUES (9)").await;
            assert_eq!((further.error_code().as_str(), further.status()), ("25P02", Some('E')), "{id}");
        }
        let (reply, took) = timed_frames(&mut app, end).await;
        rolled_back("failed", &reply);
        at_most("failed", took, AT_ONCE);
        assert_eq!(value(&mut app, "SELECT 1").await, "1", "{id}");
        breaker_open(&app.query("INSERT INTO ledger VALUES (9)").await, 'I');
    }
    stage.end(&[1, 2, 3, 4, 5, 6, 9]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_refused_in_a_transaction_ends_with_its_first_rollback() {
    // The contract of a refusal: a failed transaction, in PostgreSQL's words, until the application ends it.
    let stage = Stage::new().await;
    let ends = [Frames::new().query("ROLLBACK"), unnamed("ROLLBACK")];
    let mut sessions = Vec::new();
    for (id, end) in (1..).zip(ends) {
        sessions.push((stage.writer(id).await, end));
    }
    let mut committing = stage.writer(3).await;
    let _stuck = stage.freeze_standby().await;

    for (mut app, end) in sessions {
        breaker_open(&app.query("INSERT INTO ledger VALUES (4)").await, 'E');
        let further = app.query("SELECT 1").await;
        assert_eq!((further.error_code().as_str(), further.status()), ("25P02", Some('E')));
        rolled_back("refused", &app.exchange(end).await);
    }
    // A COMMIT that fails ends its transaction, too.
    breaker_open(&committing.query("COMMIT").await, 'I');
    stage.end(&[1, 2, 3, 4]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_in_a_transaction_takes_nothing_from_a_session_that_keeps_its_backend() {
    // The backend was cleaned and given to others: without a word the session had lost its temporary table.
    let stage = Stage::new().await;
    let insert = "INSERT INTO ledger VALUES (9)";
    let ways = [
        ("simple", Frames::new().query(insert)),
        ("extended", unnamed(insert)),
        ("a COMMIT", Frames::new().query("COMMIT")),
        ("an extended COMMIT", unnamed("COMMIT")),
        ("more than one", Frames::new().unnamed(insert, &[]).unnamed("SELECT 1", &[]).sync()),
        ("a function call", Frames::new().message(b'F', &NO_ARGUMENTS)),
    ];
    let mut sessions = Vec::new();
    for (id, (way, frames)) in (1..).zip(ways) {
        let mut app = session(&stage.proxy).await;
        run(&mut app, "CREATE TEMP TABLE mine AS SELECT 7 AS seven").await;
        write(&mut app, id).await;
        let pid = backend_pid(&mut app).await;
        sessions.push((app, way, frames, pid));
    }
    let _stuck = stage.freeze_standby().await;

    for (mut app, way, frames, pid) in sessions {
        // There is nothing in it to be refused.
        let nothing = app.exchange(Frames::new().sync()).await;
        assert_eq!((nothing.error(), nothing.status()), (None, Some('T')), "{way}");

        let (reply, took) = timed_frames(&mut app, frames).await;

        breaker_open(&reply, 'E');
        at_most(way, took, AT_ONCE);
        for further in ["SELECT 1", "ROLLBACK; INSERT INTO ledger VALUES (9)"] {
            let reply = app.query(further).await;
            assert_eq!(
                (reply.error_code().as_str(), reply.status()),
                ("25P02", Some('E')),
                "{way}: {further}"
            );
        }
        rolled_back(way, &app.query("ROLLBACK").await);
        assert_eq!(value(&mut app, "SELECT seven FROM mine").await, "7", "{way}");
        assert_eq!(backend_pid(&mut app).await, pid, "{way}");
        breaker_open(&app.query(insert).await, 'I');
    }
    stage.end(&[1, 2, 3, 4, 5, 6, 9]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_can_go_back_to_a_savepoint_and_is_refused_what_it_writes_next() {
    // Going back writes nothing that waits. Were it refused, the whole transaction would be lost with it.
    let stage = Stage::new().await;
    let mut sessions = Vec::new();
    for (id, back) in (1..).zip([Frames::new().query("ROLLBACK TO a"), unnamed("ROLLBACK TO SAVEPOINT a")]) {
        let mut app = stage.writer(id).await;
        run(&mut app, "SAVEPOINT a").await;
        assert_eq!(app.query("SELECT 1/0").await.status(), Some('E'));
        sessions.push((app, back));
    }
    let mut chained = stage.writer(3).await;
    let _stuck = stage.freeze_standby().await;

    for (mut app, back) in sessions {
        let reply = app.exchange(back).await;
        assert_eq!((reply.error(), reply.status()), (None, Some('T')));
        breaker_open(&app.query("SAVEPOINT b").await, 'E');
        rolled_back("behind a savepoint", &app.query("ROLLBACK").await);
    }
    let reply = chained.query("ROLLBACK AND CHAIN").await;
    assert_eq!((reply.error(), reply.status()), (None, Some('T')));
    rolled_back("chained", &chained.query("ROLLBACK").await);
    stage.end(&[1, 2, 3]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_does_nothing_but_roll_back_passes_an_open_breaker() {
    // Writes would hitch a ride behind a ROLLBACK, past the breaker and into a server that hangs.
    let stage = Stage::new().await;
    let insert = "INSERT INTO ledger VALUES (50)";
    let ways = [
        Frames::new().query(&format!("ROLLBACK; {insert}")),
        Frames::new().unnamed("ROLLBACK", &[]).unnamed(insert, &[]).sync(),
        Frames::new().unnamed("SAVEPOINT a", &[]).unnamed("ROLLBACK TO a", &[]).sync(),
        Frames::new().parse("", "ROLLBACK", &[]).execute("old", 0).sync(),
    ];
    let mut sessions = Vec::new();
    for (id, frames) in (1..).zip(ways) {
        let mut app = stage.writer(id).await;
        // A portal from before.
        let portal = Frames::new().parse("", insert, &[]).bind("old", "", &[]).sync();
        assert_eq!(app.exchange(portal).await.error(), None);
        sessions.push((app, frames));
    }
    let _stuck = stage.freeze_standby().await;

    for (mut app, frames) in sessions {
        let reply = app.exchange(frames).await;
        refused(&reply, "53000", &[("reason", "breaker_open")]);
        // The session goes on, whatever it sends next.
        app.query("ROLLBACK").await;
        assert_eq!(value(&mut app, "SELECT 1").await, "1");
    }
    stage.end(&[1, 2, 3, 4, 50]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_before_a_frozen_primary_is_one_all_the_same() {
    // Nobody answers there, but a transaction whose connection is closed cannot commit: the application need not be told
    // of an error, and must not wait for as long as a write may take.
    let stage = Stage::new().await;
    let (mut simple, mut extended) = (stage.writer(1).await, stage.writer(2).await);
    let mut chained = stage.writer(3).await;
    block_in_place(|| stage.cluster.primary().freeze()).unwrap();
    let _stuck = stage.trip().await;

    simple.send(Frames::new().query("ROLLBACK")).await;
    extended.send(unnamed("ROLLBACK")).await;
    let begin = Instant::now();
    for (what, app) in [("simple", &mut simple), ("extended", &mut extended)] {
        rolled_back(what, &app.reply().await);
        let latest = ROLLBACK_WITHIN + ANSWER_SLACK * NOISE;
        assert!(begin.elapsed() < latest, "{what} took {:?}", begin.elapsed());
    }
    // What it asks for as well only the server has.
    let chain = chained.query("ROLLBACK AND CHAIN").await;
    assert!(chain.error().is_some(), "{chain:?}");
    chained.query("ROLLBACK").await;

    block_in_place(|| stage.cluster.primary().thaw()).unwrap();
    for app in [&mut simple, &mut extended, &mut chained] {
        wait_for(SOON, "the session goes on", async || {
            app.query("SELECT 1").await.error().is_none().then_some(())
        })
        .await;
    }
    stage.end(&[1, 2, 3]).await;
}

/// A server that does as `misbehave` says when a transaction is to be rolled back.
async fn before<F>(misbehave: fn(ScriptedBackend) -> F) -> (ScriptedServer, Proxy)
where
    F: Future<Output = ()> + Send + 'static,
{
    let ends = |message: &Message, status| {
        status == 'T' && message.body.starts_with(b"ROLLBACK") || message.body.starts_with(b"\0ROLLBACK")
    };
    scripted(IMPATIENT, ends, misbehave).await
}

const WRITE_TIMEOUT: Duration = Duration::from_millis(700);

const IMPATIENT: &str = "[pool]\nsize = 3\nwrite_share = 1.0\n[commit]\nresolve = false\n\
                         [timeouts]\nwrite = \"700ms\"\nqueue = \"700ms\"\nconnect = \"700ms\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_whose_answer_does_not_come_in_time_is_one_all_the_same() {
    // Seen: 57014, outcome=rolled_back, as an error. It is what was asked for.
    let (_server, proxy) = before(ScriptedBackend::go_silent).await;

    for frames in [Frames::new().query("ROLLBACK"), unnamed("ROLLBACK")] {
        let mut app = session(&proxy).await;
        write(&mut app, 1).await;
        let (reply, took) = timed_frames(&mut app, frames).await;

        rolled_back("silence", &reply);
        at_deadline("ROLLBACK", took, WRITE_TIMEOUT);
        assert_eq!(value(&mut app, "SELECT 1").await, "1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_that_loses_its_backend_is_one_all_the_same() {
    // Had the backend been lost a moment sooner it would have been one, too.
    let (_server, proxy) = before(|backend| async move { drop(backend) }).await;
    let half = |mut backend: ScriptedBackend| async move {
        backend.send(Replies::new().complete("ROLLBACK")).await;
    };
    let (_other_server, other) = before(half).await;

    for (what, proxy) in [("nothing", &proxy), ("all but the end", &other)] {
        let mut app = session(proxy).await;
        write(&mut app, 1).await;

        rolled_back(what, &app.query("ROLLBACK").await);

        assert_eq!(value(&mut app, "SELECT 1").await, "1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_chains_or_pipelines_more_behind_a_rollback_is_told_that_its_backend_is_lost() {
    // Whether what was to follow has happened is not known: silence about it would be a lie.
    let (_server, proxy) = before(|backend| async move { drop(backend) }).await;
    let chain = Frames::new().query("ROLLBACK AND CHAIN");
    let more = Frames::new().query("ROLLBACK").query("INSERT INTO ledger VALUES (2)");

    for frames in [chain, more] {
        let mut app = session(&proxy).await;
        write(&mut app, 1).await;
        let reply = app.exchange(frames).await;

        assert!(reply.error().is_some(), "{reply:?}");
    }
}
