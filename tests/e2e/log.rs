//! The log may be stuck or gone, and nothing waits for it or dies with it.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_chaos::cluster::Signal;
use tidegate_chaos::fault::{Fault, Processes};
use tidegate_tests::{Credentials, Proxy, ScriptedApp, WebReceiver, wait_for};
use tokio::net::TcpListener;
use tokio::task::block_in_place;

use crate::admin::{TOKEN, order};
use crate::rig::{Rig, SOON, own_postgres, run, sidecar};
use crate::trusting;

/// What a pipe holds when nobody chooses its size, pipe(7).
const PIPE: usize = 65_536;

async fn lost(proxy: &Proxy) -> f64 {
    proxy.metrics().await.get("tidegate_log_lines_lost_total", &[]).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_takes_stops_neither_sessions_nor_breakers_nor_alerts_nor_the_end() {
    // The pipe of a container's log driver is full, or its disk frozen: whoever waits for that waits for ever.
    let (_unread, mut pipe) = std::io::pipe().unwrap();
    pipe.write_all("\n".repeat(PIPE).as_bytes()).unwrap();
    let node = Arc::new(own_postgres(&[]));
    let receiver = WebReceiver::start().await;
    let settings = format!(
        "[timeouts]\nread = \"2s\"\nwrite = \"2s\"\ncommit = \"2s\"\ndrain = \"1s\"\n[alerts]\nwebhooks = [{{ url = \"{}\" }}]\n",
        receiver.url("/hook")
    );
    let options = sidecar(&settings).upstream(&node.url());
    let mut proxy = options.log_to(pipe).start().await;
    let (mut app, _) = ScriptedApp::session(proxy.address(), "postgres", "postgres").await;
    run(&mut app, "CREATE TABLE kept (id int)").await;

    let fault = Fault::Freeze { node: "primary".to_owned(), what: Processes::All };
    let guard = block_in_place(|| fault.strike(&node)).unwrap();
    assert!(app.query("INSERT INTO kept VALUES (1)").await.error().is_some());
    wait_for(SOON, "writes are refused", async || {
        (proxy.get("/readyz/write").await.status == 503).then_some(())
    })
    .await;
    receiver.wait_accepted(1).await;
    block_in_place(|| guard.heal()).unwrap();
    wait_for(SOON, "writes are served", async || {
        (proxy.get("/readyz/write").await.status == 200).then_some(())
    })
    .await;
    receiver.wait_accepted(2).await;
    let wrong: Vec<String> = (0..200).map(|number| format!("wrong_{number} = 1")).collect();
    proxy.write_config(&wrong.join("\n"));
    wait_for(SOON, "more lines than there is room for", async || {
        proxy.signal(Signal::HUP);
        (lost(&proxy).await > 0.0).then_some(())
    })
    .await;

    drop(app);
    proxy.signal(Signal::TERM);
    assert!(proxy.wait_exit(SOON).await.success());
}

#[tokio::test]
async fn a_log_whose_reader_has_died_costs_no_place_of_a_backend() {
    // A write to it fails. A complaint about that on the same standard error is a panic, wherever one logs: it
    // ended the task that opens a backend before it gave the place back.
    let (reader, pipe) = std::io::pipe().unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let settings = "[pool]\nsize = 4\nmax_per_upstream = 10\n";
    let options = sidecar(settings).upstream(&format!("postgres://postgres@{gone}/postgres"));
    let proxy = options.log_to(pipe).start().await;
    drop(reader);
    let failed = async || proxy.metrics().await.get("tidegate_backend_connects_failed_total", &[]).unwrap();

    let began = Instant::now();
    while failed().await < 6.0 {
        assert!(began.elapsed() < SOON, "connects are tried");
        let mut app = ScriptedApp::connect(proxy.address()).await;
        let who = Credentials { user: "postgres", password: "", database: "postgres" };
        // Whether it is refused meanwhile is not the question.
        let _ = tokio::time::timeout(Duration::from_millis(300), app.log_in(who)).await;
    }
    assert!(lost(&proxy).await >= 6.0);
    wait_for(SOON, "no place is taken", async || {
        (proxy.metrics().await.get("tidegate_upstream_backends", &[]) == Some(0.0)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_line_for_people_is_plain_text_with_sentences() {
    // Seen in a file: escape sequences around each field, `evidence=Forced(Open)` and `cause=""`.
    let options = trusting(&format!("admin.token = \"{TOKEN}\""));
    let rig = Rig::start(options.environment("TIDEGATE_LOG_FORMAT", "human")).await;

    order(rig.proxy(), "/lanes/write/open").await;
    rig.proxy().wait_logged("forced_open").await;

    let log = rig.proxy().log();
    assert!(!log.contains('\u{1b}'), "{log}");
    assert!(log.contains("evidence=\"an operator ordered it\"") && !log.contains("cause=\"\""), "{log}");
}

#[tokio::test]
async fn a_statement_that_is_only_slow_is_no_event_and_no_line_of_the_log() {
    // Each was two of either: a report that takes long hid the outage that came before it.
    let rig = Rig::start(trusting("")).await;
    let mut app = rig.app().await;
    let file = rig.proxy().dir().join("state/journal.jsonl");

    run(&mut app, "SELECT pg_sleep(0.6)").await;
    wait_for(SOON, "the journal has what was suspected", async || {
        let journal = std::fs::read_to_string(&file).unwrap_or_default();
        journal.lines().any(|line| line.contains(r#""from":"suspect","to":"closed""#)).then_some(())
    })
    .await;

    let status = rig.proxy().get("/status").await.body;
    assert!(status.contains("The sidecar was started.") && !status.contains("stuck"), "{status}");
    assert!(!rig.proxy().log().contains("suspect"), "{}", rig.proxy().log());
}
