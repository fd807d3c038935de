//! Session state that lives in a backend keeps that backend: it is there in the next transaction, whoever else works.

use std::time::Duration;

use tidegate_tests::{Frames, Received, Reply, ScriptedApp, wait_for};
use tokio::task::JoinHandle;

use crate::rig::{Rig, SOON, pool_of, run, sidecar, value};

const PINS: &str = "tidegate_pins_total";

/// Other sessions at work, so that a backend that is not kept gets into other hands at once.
struct Others(Vec<JoinHandle<()>>);

impl Others {
    async fn start(rig: &Rig) -> Self {
        let mut tasks = Vec::new();
        for _ in 0..4 {
            let mut app = rig.app().await;
            tasks.push(tokio::spawn(async move {
                loop {
                    run(&mut app, "BEGIN").await;
                    run(&mut app, "SELECT pg_sleep(0.002)").await;
                    run(&mut app, "COMMIT").await;
                }
            }));
        }
        Self(tasks)
    }

    /// They must have met no error.
    fn stop(self) {
        for task in self.0 {
            assert!(!task.is_finished(), "one of the other sessions has failed");
            task.abort();
        }
    }
}

async fn pins(rig: &Rig) -> f64 {
    rig.proxy().metrics().await.get(PINS, &[]).unwrap_or(0.0)
}

/// Makes state, lets others work on a pool of 2, and looks for the state twenty times, each in a transaction of its
/// own. The metric must count it.
async fn keeps(make: &[&str], look: &str, wanted: &str) {
    let rig = Rig::start(pool_of(2)).await;
    let mut app = rig.app().await;
    let before = pins(&rig).await;

    for sql in make {
        run(&mut app, sql).await;
    }
    let others = Others::start(&rig).await;
    for _ in 0..20 {
        assert_eq!(value(&mut app, look).await, wanted, "{look}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    others.stop();

    assert!(pins(&rig).await > before, "{PINS} has not grown");
    let page = rig.proxy().metrics().await.0;
    assert!(page.lines().any(|line| line.starts_with(PINS) && line.contains("reason=\"")), "{page}");
}

#[tokio::test]
async fn the_log_says_why_a_backend_is_kept() {
    // A pool that is too small for no visible reason is looked for in the log.
    let rig = Rig::start(pool_of(2)).await;
    let mut app = rig.app().await;

    run(&mut app, "CREATE TEMP TABLE mine ()").await;

    rig.proxy().wait_logged("pin").await;
}

#[tokio::test]
async fn a_temporary_table_stays() {
    // On another backend the table does not exist (42P01).
    keeps(&["CREATE TEMP TABLE mine AS SELECT 42 AS a"], "SELECT a FROM mine", "42").await;
}

#[tokio::test]
async fn a_temporary_table_made_by_select_into_stays() {
    // The same without the words CREATE TEMP TABLE.
    keeps(&["SELECT 43 AS a INTO TEMP mine"], "SELECT a FROM mine", "43").await;
}

#[tokio::test]
async fn a_held_cursor_stays() {
    // On another backend: 34000, or another session's rows.
    let make = ["BEGIN", "DECLARE mine CURSOR WITH HOLD FOR SELECT 7 FROM generate_series(1, 100)", "COMMIT"];
    keeps(&make, "FETCH 1 FROM mine", "7").await;
}

#[tokio::test]
async fn an_advisory_session_lock_stays() {
    // On another backend the unlock returns false, with a warning, and the lock is never freed. Each look takes
    // and frees one level more.
    let look = "SELECT pg_advisory_unlock(77) AND pg_try_advisory_lock(77)";
    keeps(&["SELECT pg_advisory_lock(77)"], look, "t").await;
}

#[tokio::test]
async fn a_statement_prepared_in_sql_stays() {
    // On another backend: 26000.
    keeps(&["PREPARE mine AS SELECT 9"], "EXECUTE mine", "9").await;
}

#[tokio::test]
async fn a_notification_arrives_while_the_session_is_idle() {
    // Nobody asks for it: it must come without a statement of the listener's, and also to a listener that works.
    let rig = Rig::start(pool_of(2)).await;
    let mut listener = rig.app().await;
    let mut sender = rig.app().await;
    run(&mut listener, "LISTEN tide").await;
    let others = Others::start(&rig).await;

    for payload in ["low", "high"] {
        run(&mut sender, &format!("NOTIFY tide, '{payload}'")).await;
        let message = listener.expect(b'A').await;
        // Process id, channel, payload.
        let text = String::from_utf8_lossy(&message.body[4..]).into_owned();
        assert_eq!(text, format!("tide\0{payload}\0"));
    }
    others.stop();

    assert!(pins(&rig).await >= 1.0);
}

#[tokio::test]
async fn a_channel_left_brings_no_more() {
    // The sender's own session may share the backend then; what it hears of itself must not reach the first.
    let rig = Rig::start(pool_of(2)).await;
    let (mut listener, mut sender) = (rig.app().await, rig.app().await);
    run(&mut listener, "LISTEN tide").await;
    run(&mut listener, "UNLISTEN tide").await;

    run(&mut sender, "NOTIFY tide").await;

    listener.expect_silence(Duration::from_millis(300)).await;
    let reply = run(&mut listener, "SELECT 1").await;
    assert!(!reply.tags().contains('A'), "{}", reply.tags());
}

/// A session that listens, sends this and works on; then somebody notifies it.
async fn notified_behind(frames: Frames) -> (Rig, ScriptedApp) {
    let rig = Rig::start(pool_of(2)).await;
    let (mut listener, mut sender) = (rig.app().await, rig.app().await);
    run(&mut listener, "LISTEN tide").await;
    assert_eq!(listener.exchange(frames).await.error(), None);
    // A backend that is not kept would be given away here.
    run(&mut listener, "SELECT 1").await;
    run(&mut sender, "NOTIFY tide").await;
    (rig, listener)
}

#[tokio::test]
async fn a_pin_goes_when_its_end_is_executed_and_not_before() {
    // A driver that only looked what UNLISTEN returns had its backend given to others, who got its notifications.
    let parsed = Frames::new().parse("", "UNLISTEN *", &[]);
    let bound = parsed.clone().bind("", "", &[]);

    for only_seen in [parsed.describe_statement(""), bound.clone()] {
        let (_rig, mut listener) = notified_behind(only_seen.sync()).await;
        listener.expect(b'A').await;
    }
    let (_rig, mut silent) = notified_behind(bound.execute("", 0).sync()).await;
    silent.expect_silence(Duration::from_millis(200)).await;
}

#[tokio::test]
async fn what_is_listened_to_behind_a_discard_all_is_heard() {
    // The server forgets what was before it; a sidecar that also forgets what comes behind gives a listening backend away.
    for first in ["DISCARD ALL", "UNLISTEN *"] {
        let frames = Frames::new().unnamed(first, &[]).unnamed("LISTEN tide", &[]).sync();
        let (_rig, mut listener) = notified_behind(frames).await;
        listener.expect(b'A').await;
    }
}

/// A pool of one backend and little patience: whoever keeps the backend is felt.
async fn one_backend() -> (Rig, ScriptedApp, ScriptedApp) {
    let config = "[pool]\nsize = 1\n[timeouts]\nqueue = \"400ms\"\n";
    let rig = Rig::start(sidecar(config)).await;
    let (holder, other) = (rig.app().await, rig.app().await);
    (rig, holder, other)
}

fn reason(reply: &Reply) -> Option<String> {
    reply.error()?.detail_of("reason").map(str::to_owned)
}

async fn served(other: &mut ScriptedApp) {
    wait_for(SOON, "the backend serves the other session", async || {
        other.query("SELECT 1").await.error().is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn discard_all_gives_the_backend_back() {
    // The state is gone by the server's own word, so there is no reason to keep the backend.
    for make in
        ["LISTEN tide", "CREATE TEMP TABLE mine ()", "SELECT pg_advisory_lock(1)", "PREPARE mine AS SELECT 1"]
    {
        let (rig, mut holder, mut other) = one_backend().await;
        run(&mut holder, make).await;
        let kept = other.query("SELECT 1").await;
        assert_eq!(
            (kept.error_code().as_str(), reason(&kept).as_deref()),
            ("53300", Some("queue_timeout")),
            "{make}"
        );

        run(&mut holder, "DISCARD ALL").await;

        assert_eq!(other.query("SELECT 1").await.error(), None, "{make}");
        assert_eq!(rig.backends(), 1, "{make}");
    }
}

#[tokio::test]
async fn a_session_that_leaves_gives_the_backend_back_clean() {
    // The next session must neither see the state nor wait for it.
    let (rig, mut holder, mut other) = one_backend().await;
    run(&mut holder, "CREATE TEMP TABLE mine ()").await;
    run(&mut holder, "LISTEN tide").await;
    run(&mut holder, "SELECT pg_advisory_lock(1)").await;

    drop(holder);

    served(&mut other).await;
    assert_eq!(value(&mut other, "SELECT to_regclass('mine')").await, "");
    assert_eq!(value(&mut other, "SELECT count(*) FROM pg_listening_channels()").await, "0");
    assert_eq!(rig.sql("SELECT pg_try_advisory_lock(1)"), "t");
}

#[tokio::test]
async fn state_that_was_rolled_back_keeps_nothing() {
    // CREATE TEMP TABLE and LISTEN take effect at COMMIT; without it there is nothing to keep. A sidecar may keep the
    // backend of a session that meant to make state, but then DISCARD ALL must still free it.
    let (_rig, mut holder, mut other) = one_backend().await;
    run(&mut holder, "BEGIN").await;
    run(&mut holder, "CREATE TEMP TABLE mine ()").await;
    run(&mut holder, "ROLLBACK").await;

    run(&mut holder, "DISCARD ALL").await;

    assert_eq!(other.query("SELECT 1").await.error(), None);
}

#[tokio::test]
async fn a_pinned_session_that_loses_its_backend_is_told() {
    // Its state is gone: going on silently on another backend would hide that.
    let rig = Rig::start(pool_of(2)).await;
    let mut app = rig.app().await;
    run(&mut app, "CREATE TEMP TABLE mine AS SELECT 1 AS a").await;
    let pid = value(&mut app, "SELECT pg_backend_pid()").await;

    rig.sql(&format!("SELECT pg_terminate_backend({pid})"));

    let _ = app.try_send(Frames::new().query("SELECT a FROM mine")).await;
    match app.receive_within(SOON).await {
        Received::Message(message) => assert_eq!(char::from(message.tag), 'E', "{message:?}"),
        other => panic!("the session ended without a word: {other:?}"),
    }
}
