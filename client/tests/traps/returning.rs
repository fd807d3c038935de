//! What a connection is like when the next one gets it.

use std::time::Duration;

use tidegate_client::{Error, ErrorKind, TxOptions, TxOutcome};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{Relay, backends, builder, is_quiet, own_postgres, pool, shared_postgres, wait_until};
use crate::{LONG, SHORT, manager, plain, plain_builder, switch, url_of};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_whose_check_hangs_is_thrown_away() {
    // bb8 drops the guard of a connection in the middle of its check, and takes it back as healthy.
    let relay = Relay::to(shared_postgres().port()).await;

    // THE TRAP
    let plain = plain(&relay.url(), "check_plain", 1, SHORT);
    drop(plain.get().await.unwrap());
    relay.stall();
    plain.get().await.unwrap_err();
    assert_eq!(plain.state().idle_connections, 1, "the dead connection is offered to the next");
    relay.heal();

    let pool = pool(&relay.url(), "check", 1);
    drop(pool.read().await.unwrap());
    // Long enough that it is checked at all.
    sleep(Duration::from_millis(600)).await;
    relay.stall();
    let start = Instant::now();
    pool.read().await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(pool.status().idle, 0);
    relay.heal();
    let start = Instant::now();
    while pool.read().await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(5), "it does not come back");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_dropped_in_mid_query_does_not_go_back_busy() {
    // bb8 cannot know; the next caller queues behind a statement that nobody wants any more.
    let slow = "SELECT pg_sleep(2)";

    // THE TRAP
    let plain = plain(&shared_postgres().url(), "busy_plain", 1, LONG * 3);
    let client = plain.get().await.unwrap();
    timeout(SHORT, client.simple_query(slow)).await.unwrap_err();
    drop(client);
    let start = Instant::now();
    plain.get().await.unwrap().simple_query("SELECT 1").await.unwrap();
    assert!(start.elapsed() > Duration::from_secs(1), "{:?}", start.elapsed());

    let pool = builder(&shared_postgres().url(), "busy").size(1).build().unwrap();
    let mut connection = pool.write().await.unwrap();
    timeout(SHORT, connection.simple_query(slow)).await.unwrap_err();
    drop(connection);
    let start = Instant::now();
    pool.write().await.unwrap().simple_query("SELECT 1").await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_dropped_in_a_transaction_is_rolled_back() {
    // The next caller would write into somebody else's transaction, and lose it all.
    let status = "SELECT now() = statement_timestamp()";
    let fresh = |messages: Vec<tokio_postgres::SimpleQueryMessage>| {
        messages.iter().any(|message| {
            matches!(message, tokio_postgres::SimpleQueryMessage::Row(row) if row.get(0) == Some("t"))
        })
    };

    // THE TRAP
    let plain = plain(&shared_postgres().url(), "open_plain", 1, LONG);
    plain.get().await.unwrap().batch_execute("BEGIN").await.unwrap();
    sleep(Duration::from_millis(20)).await;
    assert!(!fresh(plain.get().await.unwrap().simple_query(status).await.unwrap()));

    let pool = pool(&shared_postgres().url(), "open", 1);
    pool.write().await.unwrap().batch_execute("BEGIN").await.unwrap();
    sleep(Duration::from_millis(20)).await;
    assert!(fresh(pool.write().await.unwrap().simple_query(status).await.unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_that_nobody_waits_for_ends_on_the_server() {
    // Dropping the future cancels nothing, and dropping the client waits for the answer first.
    let node = shared_postgres();
    let running = |name: &str| backends(node, name, "query LIKE 'SELECT pg_sleep%' AND state = 'active'");

    // THE TRAP
    let plain = plain(&node.url(), "leak_plain", 1, LONG);
    let client = plain.get().await.unwrap();
    timeout(SHORT, client.simple_query("SELECT pg_sleep(6)")).await.unwrap_err();
    drop(client);
    drop(plain);
    sleep(LONG).await;
    assert_eq!(running("leak_plain"), 1, "the pool is gone, its backend is not");

    let pool = pool(&node.url(), "leak", 1);
    let mut connection = pool.write().await.unwrap();
    timeout(SHORT, connection.simple_query("SELECT pg_sleep(6)")).await.unwrap_err();
    drop(connection);
    wait_until("the statement ends", || running("leak") == 0).await;
    wait_until("the permit is back", || is_quiet(&pool)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_transaction_frees_its_locks() {
    // The driver queues a ROLLBACK behind the statement that hangs, and the lock stays as long as that does.
    let node = shared_postgres();
    node.sql("CREATE TABLE locked (id bigint)").unwrap();
    let lock = "LOCK TABLE locked IN ACCESS EXCLUSIVE MODE";
    let is_locked = || node.sql("SET lock_timeout = '100ms'; SELECT count(*) FROM locked").is_err();

    // THE TRAP
    let plain = plain(&node.url(), "lock_plain", 1, LONG);
    let mut client = plain.get().await.unwrap();
    let transaction = client.transaction().await.unwrap();
    transaction.batch_execute(lock).await.unwrap();
    timeout(SHORT, transaction.batch_execute("SELECT pg_sleep(5)")).await.unwrap_err();
    drop(transaction);
    drop(client);
    sleep(LONG).await;
    assert!(is_locked(), "the lock is held for nobody");
    wait_until("the statement of the plain pool ends", || !is_locked()).await;

    let pool = builder(&node.url(), "lock").size(1).build().unwrap();
    let abandoned = pool.transaction(TxOptions::write(), async |mut tx| {
        tx.batch_execute(lock).await?;
        tx.batch_execute("SELECT pg_sleep(5)").await
    });
    let late: Result<TxOutcome<(), Error>, _> = timeout(SHORT, abandoned).await;
    assert!(late.is_err());
    let start = Instant::now();
    wait_until("the lock is free", || !is_locked()).await;
    assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_died_idle_is_not_handed_out() {
    // Nobody looks at what idles; without its check on checkout bb8 hands the dead connection to the next.
    let node = shared_postgres();
    let kill = |name: &str| {
        let sql = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{name}'"
        );
        node.sql(&sql).unwrap();
    };

    // THE TRAP
    let plain = plain_builder(1, LONG).test_on_check_out(false).reaper_rate(Duration::from_millis(50));
    let plain = plain.build_unchecked(manager(&node.url(), "idle_plain"));
    drop(plain.get().await.unwrap());
    kill("idle_plain");
    sleep(SHORT).await;
    assert_eq!(plain.state().idle_connections, 1, "the reaper has passed it by");
    plain.get().await.unwrap().simple_query("SELECT 1").await.unwrap_err();

    let pool = pool(&node.url(), "idle", 1);
    drop(pool.read().await.unwrap());
    kill("idle");
    sleep(SHORT).await;
    pool.read().await.unwrap().simple_query("SELECT 1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_freezes_is_noticed_by_whoever_waits_for_it() {
    // The kernel of a frozen server acknowledges everything, so no setting of the socket ends the wait.
    let node = own_postgres();
    let plain =
        plain(&format!("{}?tcp_user_timeout=1&keepalives_idle=1", node.url()), "frozen_plain", 1, LONG);
    let pool = pool(&node.url(), "frozen", 1);
    let client = plain.get().await.unwrap();
    let mut connection = pool.read().await.unwrap();
    node.freeze().unwrap();

    // At the same time: later, the breaker would have heard of it elsewhere.
    let ours = async {
        let start = Instant::now();
        let error = connection.simple_query("SELECT 1").await.unwrap_err();
        (error, start.elapsed())
    };
    // THE TRAP
    let trap = timeout(LONG * 2, client.simple_query("SELECT 1"));
    let (trap, (error, took)) = tokio::join!(trap, ours);
    trap.map(drop).unwrap_err();

    assert!(took < LONG, "{took:?}");
    assert_eq!(error.kind(), ErrorKind::Timeout);
    node.thaw().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_never_has_more_of_our_backends_than_the_pool_allows() {
    // A connection that broke is replaced while its backend still works: the pool's bound is the client's alone.
    const ROUNDS: usize = 5;
    let relay = switch(shared_postgres().port()).await;
    let busy = |name: &str| backends(shared_postgres(), name, "state = 'active' AND query LIKE '%pg_sleep%'");
    let break_all = async || {
        sleep(SHORT / 4).await;
        relay.enable(false);
        // A relay that is on again before it has seen that it was off breaks nothing.
        sleep(SHORT / 4).await;
        relay.enable(true);
    };

    // THE TRAP
    let plain = plain(&url_of(&relay), "bound_plain", 1, LONG);
    for _ in 0..ROUNDS {
        let client = plain.get().await.unwrap();
        let (broken, ()) = tokio::join!(client.simple_query("SELECT pg_sleep(5)"), break_all());
        assert!(broken.is_err());
    }
    assert!(busy("bound_plain") > 1, "more backends than the pool has connections");

    let pool = pool(&url_of(&relay), "bound", 1);
    for _ in 0..ROUNDS {
        // Refused while the permit is charged for a backend that still works.
        if let Ok(mut connection) = pool.write().await {
            let (broken, ()) = tokio::join!(connection.simple_query("SELECT pg_sleep(5)"), break_all());
            assert!(broken.is_err());
        }
        assert!(busy("bound") <= 1);
    }
    wait_until("the permit is back", || is_quiet(&pool)).await;
    assert_eq!(busy("bound"), 0);
}
