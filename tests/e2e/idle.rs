//! Idle deadlines: the session is told with PostgreSQL's own SQLSTATE, and what it held is free.

use std::time::{Duration, Instant};

use tidegate_tests::{Problem, ScriptedApp, keepalive_of, wait_until};

use crate::rig::{Rig, SOON, run, sidecar, value};

/// The FATAL error that the session ends with.
async fn last_words(mut app: ScriptedApp) -> Problem {
    let messages = app.expect_end().await;
    let errors: Vec<_> = messages.iter().filter(|message| message.tag == b'E').collect();
    assert_eq!(errors.len(), 1, "{messages:?}");
    errors[0].problem().unwrap()
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_dead_application_is_noticed_within_a_minute() {
    // One that lost its power sends no FIN, and the kernel by itself asks after two hours: its session, and in a
    // transaction its locks, would be there all that time.
    let rig = Rig::start(sidecar("")).await;
    let mut app = rig.app().await;
    run(&mut app, "SELECT 1").await;

    assert!(keepalive_of(rig.proxy().address().port()).await <= Duration::from_secs(30));
}

#[tokio::test]
async fn an_idle_session_ends_with_57p05() {
    // A driver that finds its connection closed without a word reports a network failure.
    let rig = Rig::start(sidecar("[timeouts]\nidle_session = \"1s\"\n")).await;
    let mut app = rig.app().await;
    run(&mut app, "SELECT 1").await;
    let start = Instant::now();

    let problem = last_words(app).await;

    assert!(start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert_eq!((problem.severity(), problem.code()), ("FATAL", "57P05"));
    assert_eq!(problem.detail_of("reason"), Some("idle_session"));
    assert_eq!(problem.detail_of("outcome"), Some("rolled_back"));
}

#[tokio::test]
async fn a_session_that_never_spoke_is_idle_too() {
    // The clock that starts with the first statement would let these live for ever.
    let rig = Rig::start(sidecar("[timeouts]\nidle_session = \"1s\"\n")).await;

    let problem = last_words(rig.app().await).await;

    assert_eq!((problem.severity(), problem.code()), ("FATAL", "57P05"));
}

#[tokio::test]
async fn a_session_at_work_is_not_idle() {
    // A long statement and a steady trickle both pass the span many times; neither is idleness.
    let rig = Rig::start(sidecar("[timeouts]\nidle_session = \"1s\"\n")).await;
    let mut app = rig.app().await;

    run(&mut app, "SELECT pg_sleep(2.5)").await;
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        run(&mut app, "SELECT 1").await;
    }
}

#[tokio::test]
async fn idle_in_a_transaction_ends_with_25p03_and_frees_its_locks() {
    // Else the row stays locked until somebody looks at pg_stat_activity.
    let rig = Rig::start(sidecar("[timeouts]\nidle_in_transaction = \"1s\"\n")).await;
    rig.sql("CREATE TABLE t (a int); INSERT INTO t VALUES (1)");
    let mut holder = rig.app().await;
    run(&mut holder, "BEGIN").await;
    run(&mut holder, "UPDATE t SET a = 2").await;
    let mut waiter = rig.app().await;
    let start = Instant::now();

    let update = waiter.query("UPDATE t SET a = a + 10").await;
    let problem = last_words(holder).await;

    assert_eq!(update.error(), None);
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert_eq!((problem.severity(), problem.code()), ("FATAL", "25P03"));
    assert_eq!(problem.detail_of("reason"), Some("idle_in_transaction"));
    assert_eq!(problem.detail_of("outcome"), Some("rolled_back"));
    assert_eq!(value(&mut waiter, "SELECT a FROM t").await, "11");
}

#[tokio::test]
async fn a_failed_transaction_may_not_idle_either() {
    // It holds a backend all the same.
    let rig = Rig::start(sidecar("[pool]\nsize = 1\n[timeouts]\nidle_in_transaction = \"1s\"\n")).await;
    let mut holder = rig.app().await;
    holder.query("BEGIN").await;
    assert_eq!(holder.query("SELECT 1/0").await.status(), Some('E'));

    let problem = last_words(holder).await;

    assert_eq!(problem.code(), "25P03");
    let idle = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                AND state LIKE 'idle in transaction%'";
    wait_until(SOON, "no transaction is left", || rig.sql(idle) == "0").await;
}

#[tokio::test]
async fn a_transaction_at_work_is_not_idle() {
    // The span is counted from the last statement, not from BEGIN.
    let rig = Rig::start(sidecar("[timeouts]\nidle_in_transaction = \"1s\"\n")).await;
    let mut app = rig.app().await;
    run(&mut app, "BEGIN").await;

    for _ in 0..6 {
        run(&mut app, "SELECT 1").await;
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    run(&mut app, "SELECT pg_sleep(2)").await;

    assert_eq!(app.query("COMMIT").await.commands(), ["COMMIT"]);
}
