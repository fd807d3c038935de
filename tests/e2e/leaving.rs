//! What a session leaves behind at its backend, and what a backend that is lost leaves behind in its session: nothing
//! that either takes for true later.

use tidegate_tests::{Frames, ScriptedApp, shared_postgres, wait_for};
use tokio::task::block_in_place;

use crate::rig::{Rig, SOON, own_postgres, pool_of, run};

const ZONE: &str = "Asia/Tokyo";

async fn zone_of(app: &mut ScriptedApp) -> String {
    run(app, "SHOW TimeZone").await.value().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_skipped_when_a_session_left_is_not_taken_for_prepared() {
    // Every session after it would be told that its statement does not exist, for as long as the backend lives.
    let rig = Rig::start(pool_of(1)).await;
    rig.sql("CREATE TABLE t (a int); INSERT INTO t VALUES (1)");
    let mut holder =
        ScriptedApp::session(([127, 0, 0, 1], shared_postgres().port()).into(), "postgres", &rig.database)
            .await
            .0;
    run(&mut holder, "BEGIN; UPDATE t SET a = 2").await;
    let update = "UPDATE t SET a = 3";
    let mut leaver = rig.app().await;
    // Behind it goes our own question about its outcome, which a fresh backend has to be prepared for.
    leaver.send(Frames::new().unnamed(update, &[]).sync()).await;
    rig.wait_running(update).await;

    drop(leaver);
    let mut next = rig.app().await;
    wait_for(SOON, "the backend serves the next", async || {
        next.query("SELECT 1").await.error().is_none().then_some(())
    })
    .await;
    run(&mut holder, "COMMIT").await;

    let reply = next.exchange(Frames::new().unnamed(update, &[]).sync()).await;
    assert_eq!(reply.error(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_setting_of_a_session_that_left_is_not_taken_for_the_backends() {
    // The next one that wants the same would get no replay, and run in the wrong time zone.
    let rig = Rig::start(pool_of(1)).await;
    let mut leaver = rig.app().await;
    run(&mut leaver, "BEGIN").await;
    run(&mut leaver, &format!("SET LOCAL TimeZone = '{ZONE}'")).await;

    drop(leaver);

    let mut next = rig.app_with(&[("TimeZone", ZONE)]).await;
    assert_eq!(zone_of(&mut next).await, ZONE);
    let mut other = rig.app().await;
    assert_ne!(zone_of(&mut other).await, ZONE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_setting_ends_with_its_transaction_also_when_the_backend_is_lost() {
    // It was reported like any other, and would be replayed on every backend from then on.
    let rig = Rig::start(pool_of(2)).await;
    let mut app = rig.app().await;
    let before = zone_of(&mut app).await;
    run(&mut app, "BEGIN").await;
    run(&mut app, &format!("SET LOCAL TimeZone = '{ZONE}'")).await;
    let pid = run(&mut app, "SELECT pg_backend_pid()").await.value().unwrap();

    block_in_place(|| rig.sql(&format!("SELECT pg_terminate_backend({pid}, 5000)")));

    assert!(app.query("SELECT 1").await.error().is_some());
    run(&mut app, "ROLLBACK").await;
    assert_eq!(zone_of(&mut app).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_read_only_for_a_while_leaves_no_session_read_only() {
    // It reports that as if the session had asked for it: replayed to other backends it outlives the order.
    let node = block_in_place(|| own_postgres(&[]));
    block_in_place(|| node.sql("CREATE TABLE t (a int)")).unwrap();
    let order = |sql: &str| {
        let sql = format!("{sql}; SELECT pg_reload_conf()");
        block_in_place(|| sql.split(';').try_for_each(|one| node.sql(one).map(drop))).unwrap();
    };
    let read_only = "SELECT current_setting('default_transaction_read_only')";
    let proxy = pool_of(1).upstream(&node.url()).start().await;
    let session = async || ScriptedApp::session(proxy.address(), "postgres", "postgres").await.0;
    let (mut first, mut second) = (session().await, session().await);
    run(&mut first, "INSERT INTO t VALUES (1)").await;

    order("ALTER SYSTEM SET default_transaction_read_only = on");
    wait_for(SOON, "read-only", async || (run(&mut first, read_only).await.value()? == "on").then_some(()))
        .await;
    order("ALTER SYSTEM RESET default_transaction_read_only");
    wait_for(SOON, "writable", async || (run(&mut second, read_only).await.value()? == "off").then_some(()))
        .await;

    wait_for(SOON, "writes go on", async || {
        let reply = first.query("INSERT INTO t VALUES (2)").await;
        reply.error().is_none().then_some(())
    })
    .await;
}

/// Ends the backend that runs this statement, of which the application hears.
async fn lose_backend(rig: &Rig, app: &mut ScriptedApp, running: &str) {
    rig.wait_running(running).await;
    let end =
        format!("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE query = '{running}'");
    block_in_place(|| rig.sql(&end));
    assert!(app.reply().await.error().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_setting_that_was_answered_outlives_a_backend_that_is_lost_under_what_came_with_it() {
    // The application has it in writing that it works for this tenant, and would go on in the tables of another.
    let rig = Rig::start(pool_of(2)).await;
    let mut app = rig.app().await;
    let asleep = "SELECT pg_sleep(65)";
    app.send(Frames::new().query("SET search_path = tenant").query(asleep)).await;
    assert_eq!(app.reply().await.commands(), ["SET"]);

    lose_backend(&rig, &mut app, asleep).await;

    assert_eq!(run(&mut app, "SHOW search_path").await.value().unwrap(), "tenant");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_setting_of_a_pipelined_transaction_outlives_a_backend_that_is_lost_behind_it() {
    // There the COMMIT makes it last, not the SET.
    let rig = Rig::start(pool_of(2)).await;
    let mut app = rig.app().await;
    let asleep = "SELECT pg_sleep(66)";
    let texts = ["BEGIN", "SET search_path = tenant", "COMMIT", asleep];
    app.send(texts.iter().fold(Frames::new(), |frames, text| frames.query(text))).await;
    for _ in 0..3 {
        assert_eq!(app.reply().await.error(), None);
    }

    lose_backend(&rig, &mut app, asleep).await;

    assert_eq!(run(&mut app, "SHOW search_path").await.value().unwrap(), "tenant");
}
