//! What is wrong with the database is found out and said; it ends when the fault ends.

use std::time::{Duration, Instant};

use tidegate_chaos::cluster::{Cluster, ClusterOptions, Node, NodeOptions, Programs, Replication, StopMode};
use tidegate_tests::{Frames, Message, Problem, Proxy, ScriptedApp, ScriptedBackend, WebReceiver, wait_for};
use tokio::task::block_in_place;
use tokio::time::sleep;

use super::{
    ANSWER_SLACK, How, LEDGER, NOISE, Op, Running, Watch, at_most, complete, durations, guarded, percentile,
    refused, scripted, session, timed_frames, verdict,
};
use crate::rig::{SOON, own_postgres, run};

const WRITERS: (u32, u32) = (20, 40);
const READERS: (u32, u32) = (5, 20);
/// Of all statements.
const DEADLINE: Duration = Duration::from_secs(2);

const SECTIONS: &str =
    "[pool]\nsize = 20\n[timeouts]\nread = \"2s\"\nwrite = \"2s\"\ncommit = \"2s\"\nconnect = \"1s\"\n";

const TRIP: Duration = Duration::from_millis(1500);
const FIRST_WRITE: Duration = Duration::from_secs(2);
/// An answer that waits for nobody.
const AT_ONCE: Duration = Duration::from_millis(200);

async fn server_and_sidecar() -> (Node, Proxy) {
    let node = block_in_place(|| own_postgres(&[]));
    block_in_place(|| node.sql(LEDGER)).unwrap();
    let proxy = guarded(&node, SECTIONS).await;
    (node, proxy)
}

/// A fault under load, and its end.
struct Struck {
    fault: Instant,
    healed: Instant,
    writes: Vec<Op>,
    reads: Vec<Op>,
}

/// Load, a fault for three seconds, and load until all is well again.
async fn strike(node: &Node, proxy: &Proxy, fault: impl FnOnce(&Node), heal: impl FnOnce(&Node)) -> Struck {
    let running = Running::start(proxy.address(), How::Simple, WRITERS, READERS).await;
    running.wait_written(Duration::from_secs(10), Instant::now(), 40).await;

    let begin = Instant::now();
    block_in_place(|| fault(node));
    sleep(Duration::from_secs(4)).await;
    block_in_place(|| heal(node));
    let healed = Instant::now();

    let first = running.wait_written(FIRST_WRITE * 4, healed, 1).await;
    running.wait_calm(Duration::from_secs(12), healed).await;
    let (writes, reads) = running.finish().await;
    at_most("first write after the heal", first.end - healed, FIRST_WRITE);
    verdict(&writes, &Watch::new(node).await.ledger().await);
    Struck { fault: begin, healed, writes, reads }
}

impl Struck {
    /// Refusals of the write lane while the fault lasted, once there was time to find out.
    fn refusals(&self) -> Vec<&Problem> {
        let settled = self.fault + TRIP * NOISE;
        let during = self.writes.iter().filter(|op| op.begin > settled && op.end < self.healed);
        during.filter_map(|op| op.problem.as_ref()).collect()
    }

    /// The breaker opened in time, soon knew why, and then refused at once.
    fn tripped(&self) {
        let refusals = || self.writes.iter().filter(|op| op.is("53000"));
        let first = refusals().map(|op| op.end).min();
        let first = first.unwrap_or_else(|| panic!("no write was told 53000"));
        at_most("first refusal", first - self.fault, TRIP);
        let unknown = |op: &&Op| op.problem.as_ref().unwrap().detail_of("cause") == Some("unknown");
        if let Some(last) = refusals().filter(unknown).map(|op| op.end).max() {
            at_most("cause is unknown", last - first, Duration::from_secs(1));
        }
        let settled = self.fault + TRIP * NOISE;
        let took = durations(&self.writes, |op| op.begin > settled && op.end < self.healed);
        at_most("median of refusals", percentile(took, 50), Duration::from_millis(5));
    }

    /// No statement was left without an answer beyond its deadline.
    fn all_answered(&self) {
        let slowest = self.writes.iter().chain(&self.reads).max_by_key(|op| op.took()).unwrap();
        println!("slowest answer: {:?}", slowest.took());
        assert!(slowest.took() <= DEADLINE + ANSWER_SLACK * NOISE, "{slowest:?}");
    }
}

fn names(problem: &Problem, causes: &[&str]) {
    complete(problem);
    assert_eq!(problem.code(), "53000", "{problem:?}");
    let cause = problem.detail_of("cause").unwrap_or_default();
    assert!(causes.contains(&cause), "one of {causes:?}, not {problem:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_primary_is_called_frozen_and_every_statement_is_answered() {
    // TCP still connects and acknowledges: no timer of the kernel ever fires. What was sent may still run after the
    // thaw, so a write that got no answer must not be called failed.
    let (node, proxy) = server_and_sidecar().await;

    let struck = strike(&node, &proxy, |node| node.freeze().unwrap(), |node| node.thaw().unwrap()).await;

    struck.tripped();
    struck.all_answered();
    let refusals = struck.refusals();
    assert!(refusals.len() > 10, "{} refusals", refusals.len());
    for problem in refusals {
        names(problem, &["frozen"]);
        assert_eq!(problem.detail_of("lane"), Some("write"), "{problem:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_primary_is_called_unreachable_and_comes_back_by_itself() {
    // Its port is closed: every attempt to connect is refused at once, and nobody need wait for anything.
    let (node, proxy) = server_and_sidecar().await;

    let stop = |node: &Node| assert!(node.stop(StopMode::Fast).unwrap().success());
    let struck = strike(&node, &proxy, stop, |node| node.resume().unwrap()).await;

    struck.tripped();
    struck.all_answered();
    let refusals = struck.refusals();
    assert!(refusals.len() > 10, "{} refusals", refusals.len());
    for problem in refusals {
        names(problem, &["unreachable"]);
        let reason = problem.detail_of("reason");
        assert!(matches!(reason, Some("no_upstream" | "breaker_open")), "{problem:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_primary_fails_one_write_and_stops_the_others() {
    // The server's own 25006 is passed on: it is true. What follows need not be tried.
    let (node, proxy) = server_and_sidecar().await;
    let mut app = session(&proxy).await;
    run(&mut app, "INSERT INTO ledger VALUES (1)").await;

    block_in_place(|| node.set("default_transaction_read_only", "on")).unwrap();
    // Backends see it when they next wait for a command.
    let first = wait_for(Duration::from_secs(5), "a write fails", async || {
        app.query("INSERT INTO ledger VALUES (2)").await.error()
    })
    .await;
    assert_eq!((first.severity(), first.code()), ("ERROR", "25006"), "{first:?}");
    assert!(!first.message().starts_with("tidegate"), "PostgreSQL's own: {first:?}");

    let told = Instant::now();
    let second = wait_for(Duration::from_secs(5), "the breaker opens", async || {
        let reply = app.query("INSERT INTO ledger VALUES (3)").await;
        (reply.error_code() != "25006").then_some(reply)
    })
    .await;
    // At once, but for one scan of the breaker.
    at_most("breaker opens", told.elapsed(), Duration::from_millis(100));
    let problem = second.error().unwrap();
    names(&problem, &["read_only"]);
    assert_eq!(problem.detail_of("reason"), Some("breaker_open"));
    assert_eq!(problem.detail_of("lane"), Some("write"));
    assert_eq!(second.status(), Some('I'));
    run(&mut app, "SELECT count(*) FROM ledger").await;

    block_in_place(|| node.set("default_transaction_read_only", "off")).unwrap();
    let healed = Instant::now();
    wait_for(Duration::from_secs(10), "writes work again", async || {
        app.query("INSERT INTO ledger VALUES (4)").await.error().is_none().then_some(())
    })
    .await;
    at_most("first write after the heal", healed.elapsed(), FIRST_WRITE);
    assert_eq!(Watch::new(&node).await.ledger().await.get(&3), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_is_taken_for_the_primary_serves_reads_and_says_why_not_writes() {
    // It is in recovery for good: nothing that was sent to it can ever write.
    let node = NodeOptions::new(Programs::find().unwrap());
    let options = ClusterOptions { node, standbys: 1, replication: Replication::Asynchronous };
    let cluster = block_in_place(|| Cluster::start(&options)).unwrap();
    let proxy = guarded(&cluster.standbys()[0], &format!("{SECTIONS}[cluster]\nroles = \"static\"\n")).await;
    let mut app = session(&proxy).await;
    run(&mut app, "SELECT 1").await;

    let refusal = wait_for(Duration::from_secs(10), "writes are refused", async || {
        let problem = app.query("CREATE TABLE here (id int)").await.error()?;
        assert!(matches!(problem.code(), "25006" | "53000"), "{problem:?}");
        (problem.code() == "53000").then_some(problem)
    })
    .await;

    names(&refusal, &["in_recovery", "read_only"]);
    run(&mut app, "SELECT 1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_whole_though_the_backend_that_the_session_keeps_is_frozen() {
    // Seen: the error came at once, and its ReadyForQuery was left to the frozen server, which nothing bounded.
    let (node, proxy) = server_and_sidecar().await;
    let insert = || Frames::new().unnamed("INSERT INTO ledger VALUES (1)", &[]);
    let mut pinned = session(&proxy).await;
    run(&mut pinned, "CREATE TEMP TABLE mine AS SELECT 7 AS seven").await;
    let mut other = session(&proxy).await;
    block_in_place(|| node.freeze()).unwrap();
    wait_for(SOON, "the breaker opens", async || {
        (other.exchange(insert().sync()).await.error_code() == "53000").then_some(())
    })
    .await;

    for frames in [insert().sync(), insert().flush().unnamed("SELECT 1", &[]).sync()] {
        let (reply, took) = timed_frames(&mut pinned, frames).await;

        refused(&reply, "53000", &[("reason", "breaker_open"), ("outcome", "not_sent")]);
        assert_eq!((reply.tags().as_str(), reply.status()), ("EZ", Some('I')));
        at_most("the refusal", took, AT_ONCE);
    }
    block_in_place(|| node.thaw()).unwrap();

    let seven = Frames::new().unnamed("SELECT seven FROM mine", &[]).sync();
    wait_for(SOON, "the session goes on", async || {
        (pinned.exchange(seven.clone()).await.value().as_deref() == Some("7")).then_some(())
    })
    .await;
}

/// What pools of drivers send before they lend a connection to somebody else; the first is asyncpg's.
const CLEARS: [&str; 6] = [
    "SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;",
    "DEALLOCATE ALL",
    "RESET ALL",
    "UNLISTEN *",
    "close all;",
    "DISCARD ALL",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clears_a_session_is_answered_though_the_server_is_frozen() {
    // Seen: asyncpg's pool gave up each connection that it got back in a stall, and a rollback of psycopg raised. What is
    // answered is what PostgreSQL answers to a session of its own.
    let (node, proxy) = server_and_sidecar().await;
    let mut app = session(&proxy).await;
    let mut differs = session(&proxy).await;
    run(&mut differs, "SET work_mem = '5MB'").await;
    let mut direct =
        ScriptedApp::session(([127, 0, 0, 1], node.port()).into(), "postgres", "postgres").await.0;
    let mut answers = Vec::new();
    for text in CLEARS {
        answers.push(direct.query(text).await);
    }
    let prepared = app.exchange(Frames::new().parse("kept", "SELECT 1", &[]).sync()).await;
    assert_eq!(prepared.error(), None);
    block_in_place(|| node.freeze()).unwrap();
    wait_for(SOON, "reads are refused", async || {
        (app.query("SELECT 1").await.error_code() == "53000").then_some(())
    })
    .await;

    for (text, answer) in CLEARS.iter().zip(&answers) {
        assert_eq!(app.query(text).await, *answer, "{text}");
    }

    // What does more is not called done, nor is what a server has to do.
    for (app, text) in [(&mut app, "RESET ALL; SELECT 1"), (&mut differs, "RESET ALL")] {
        refused(&app.query(text).await, "53000", &[("reason", "breaker_open"), ("outcome", "not_sent")]);
    }
    block_in_place(|| node.thaw()).unwrap();
    wait_for(SOON, "the session goes on", async || {
        app.query("SELECT 1").await.error().is_none().then_some(())
    })
    .await;
    let again = app.exchange(Frames::new().parse("kept", "SELECT 2", &[]).sync()).await;
    assert_eq!(again.error(), None, "DISCARD ALL left a statement behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_under_reads_takes_no_writes_either_and_is_not_said_to() {
    // Seen: for a second and more /readyz/write said 200 while the other lane was refused because the server was frozen.
    let (node, proxy) = server_and_sidecar().await;
    let mut app = session(&proxy).await;
    run(&mut app, "SELECT 1").await;
    block_in_place(|| node.freeze()).unwrap();

    wait_for(SOON, "reads are refused", async || {
        app.query("SELECT 1").await.error().filter(|problem| problem.detail_of("cause") == Some("frozen"))
    })
    .await;
    let refusing = Instant::now();
    wait_for(SOON, "writes are, too", async || {
        (proxy.get("/readyz/write").await.status == 503).then_some(())
    })
    .await;

    at_most("until writes are refused", refusing.elapsed(), AT_ONCE);
    block_in_place(|| node.thaw()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_primary_refuses_reads_too_and_no_session_is_lost() {
    // Reads hang with the writes here; each is answered in time, and the sessions are usable after the thaw.
    let (node, proxy) = server_and_sidecar().await;
    let mut apps: Vec<ScriptedApp> = Vec::new();
    for _ in 0..6 {
        let mut app = session(&proxy).await;
        run(&mut app, "SELECT 1").await;
        apps.push(app);
    }

    block_in_place(|| node.freeze()).unwrap();
    let mut frozen = tokio::task::JoinSet::new();
    for mut app in apps {
        frozen.spawn(async move {
            for _ in 0..3 {
                let begin = Instant::now();
                let problem = app.query("SELECT 1").await.error().expect("nobody can answer");
                assert!(begin.elapsed() <= DEADLINE + ANSWER_SLACK * NOISE, "{:?}", begin.elapsed());
                assert!(matches!(problem.code(), "57014" | "53000" | "53300"), "{problem:?}");
                complete(&problem);
                sleep(Duration::from_millis(200)).await;
            }
            app
        });
    }
    let apps = frozen.join_all().await;
    block_in_place(|| node.thaw()).unwrap();
    let healed = Instant::now();

    for mut app in apps {
        wait_for(Duration::from_secs(10), "reads work again", async || {
            app.query("SELECT 1").await.error().is_none().then_some(())
        })
        .await;
    }
    at_most("reads after the thaw", healed.elapsed(), FIRST_WRITE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cause_that_is_never_found_is_paged_all_the_same() {
    // The page waits for the cause; and a breaker that has opened often stays open for half a minute before it looks
    // again. Nobody would be told until then.
    let receiver = WebReceiver::start().await;
    let sections = format!(
        "[breaker]\nopen_min = \"30s\"\n[timeouts]\nwrite = \"2s\"\ncommit = \"2s\"\n\
         [alerts]\nwebhooks = [{{ url = \"{}\" }}]\n",
        receiver.url("/hook")
    );
    // Writes hang, the probe's among them; whatever else is asked is answered with nothing.
    let is_write = |message: &Message, _| {
        let text = String::from_utf8_lossy(&message.body);
        text.contains("INSERT") || text.contains("pg_logical_emit_message")
    };
    let (_server, proxy) = scripted(&sections, is_write, ScriptedBackend::go_silent).await;
    for _ in 0..4 {
        let mut app = session(&proxy).await;
        tokio::spawn(async move { app.query("INSERT INTO ledger VALUES (1)").await });
    }
    let refused = [("lane", "write"), ("phase", "open")];
    wait_for(SOON, "the breaker opens", async || {
        (proxy.metrics().await.get("tidegate_breaker_phase", &refused) == Some(1.0)).then_some(())
    })
    .await;
    let begin = Instant::now();

    receiver.wait_accepted(1).await;

    at_most("a page without a cause", begin.elapsed(), Duration::from_millis(2500));
    let body = receiver.accepted().remove(0);
    assert!(body.contains("\"cause\":\"unknown\"") && body.contains("write_stalled"), "{body}");
}
