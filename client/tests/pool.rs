//! What a pool promises when nothing is wrong, and at its edges.

mod support;

use std::time::Duration;

use support::{backends, builder, is_quiet, patient, shared_postgres, wait_until};
use tidegate_client::tokio_postgres::error::SqlState;
use tidegate_client::{
    Checkout, Error, ErrorKind, Lane, Outcome, Pool, Retry, TxOptions, TxOutcome, deadline,
};
use tokio::time::Instant;
use tower::{Service, ServiceExt};

#[expect(clippy::expect_used, reason = "a fixture that does not get what it needs fails its test")]
fn table(name: &str) -> &str {
    shared_postgres().sql(&format!("CREATE TABLE {name} (id bigint PRIMARY KEY)")).expect("a new table");
    name
}

#[expect(clippy::expect_used, reason = "as above")]
fn pool(url: &str, name: &str, size: usize) -> Pool {
    builder(url, name).size(size).timeouts(patient()).build().expect("a pool")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_used_again_by_the_next() {
    // A proof of idleness that never succeeds would connect anew for each caller.
    let pool = pool(&shared_postgres().url(), "reuse", 4);
    let mut pids = Vec::new();

    for _ in 0..20 {
        let mut connection = pool.read().await.unwrap();
        let row = connection.query_one("SELECT 40 + $1::int4", &[&2_i32]).await.unwrap();
        assert_eq!(row.get::<_, i32>(0), 42);
        pids.push(connection.backend_pid().unwrap());
    }

    pids.dedup();
    assert_eq!(pids.len(), 1);
    assert!(is_quiet(&pool));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_of_the_server_keeps_the_connection_and_says_what_happened() {
    // Thrown away with each key violation, connections would be made all the time.
    let pool = pool(&shared_postgres().url(), "errors", 1);
    let table = table("errors");
    let mut connection = pool.write().await.unwrap();
    let pid = connection.backend_pid();
    let insert = format!("INSERT INTO {table} VALUES (1)");
    connection.execute(&insert, &[]).await.unwrap();

    let error = connection.execute(&insert, &[]).await.unwrap_err();

    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Database, Outcome::RolledBack));
    assert_eq!(error.sqlstate().unwrap().code(), "23505");
    assert!(!error.is_safe_to_retry() && error.lane() == Some(Lane::Write));
    drop(connection);
    assert_eq!(pool.write().await.unwrap().backend_pid(), pid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_commit_roll_back_and_say_so() {
    // The three ends must not be taken for each other.
    let pool = pool(&shared_postgres().url(), "ends", 2);
    let table = table("ends");
    let insert = |id: i64| format!("INSERT INTO {table} VALUES ({id})");

    let committed: TxOutcome<u64, Error> =
        pool.transaction(TxOptions::write(), async |mut tx| tx.execute(&insert(1), &[]).await).await;
    let failed: TxOutcome<u64, Error> = pool
        .transaction(TxOptions::write(), async |mut tx| {
            tx.execute(&insert(2), &[]).await?;
            tx.execute(&insert(1), &[]).await
        })
        .await;
    // The error is swallowed: COMMIT would be answered with success, and roll back.
    let swallowed: TxOutcome<(), Error> = pool
        .transaction(TxOptions::write(), async |mut tx| {
            tx.execute(&insert(3), &[]).await?;
            drop(tx.execute(&insert(1), &[]).await);
            Ok(())
        })
        .await;

    assert!(matches!(committed, TxOutcome::Committed(1)));
    assert!(matches!(&failed, TxOutcome::RolledBack(error) if error.outcome() == Outcome::RolledBack));
    assert!(matches!(&swallowed, TxOutcome::RolledBack(error) if error.kind() == ErrorKind::RolledBack));
    assert_eq!(shared_postgres().sql(&format!("SELECT array_agg(id) FROM {table}")).unwrap(), "{1}");
    wait_until("quiet", || is_quiet(&pool)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflict_is_tried_again_only_when_asked_for() {
    // Retries that nobody asked for run the application's code twice; asked for, a 40001 must not reach it.
    let pool = pool(&shared_postgres().url(), "conflict", 2);
    for (retry, expected) in [(Retry::Never, 1), (Retry::Safe, 2)] {
        let mut attempts = 0;

        let outcome: TxOutcome<(), Error> = pool
            .transaction(TxOptions::write().retry(retry), |mut tx| {
                attempts += 1;
                let first = attempts == 1;
                async move {
                    if first {
                        tx.batch_execute("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$").await?;
                    }
                    Ok(())
                }
            })
            .await;

        assert_eq!(attempts, expected);
        assert_eq!(matches!(outcome, TxOutcome::Committed(())), retry == Retry::Safe);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_budget_spans_waiting_and_running() {
    // If each phase had its own clock, the caller would wait for the sum.
    let pool = builder(&shared_postgres().url(), "budget").size(1).build().unwrap();
    let held = pool.read().await.unwrap();
    let start = Instant::now();

    let waiting = deadline::within(Duration::from_millis(200), pool.read()).await.unwrap_err();
    assert_eq!((waiting.kind(), waiting.outcome()), (ErrorKind::Overloaded, Outcome::NotSent));
    assert!(start.elapsed() < Duration::from_millis(450), "{:?}", start.elapsed());

    drop(held);
    let start = Instant::now();
    let running = deadline::within(Duration::from_millis(300), async {
        let mut connection = pool.read().await?;
        connection.query("SELECT pg_sleep(10)", &[]).await
    })
    .await
    .unwrap_err();
    assert_eq!((running.kind(), running.outcome()), (ErrorKind::Timeout, Outcome::RolledBack));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_is_cancelled_in_time_keeps_its_connection() {
    // The margin before the deadline is there so that the outcome is known and nothing is thrown away.
    const ATTEMPTS: usize = 10;
    let pool = pool(&shared_postgres().url(), "cancelled", 1);
    for _ in 0..ATTEMPTS {
        let mut connection = pool.write().await.unwrap();
        let pid = connection.backend_pid();

        let slow = connection.query("SELECT pg_sleep(10)", &[]);
        let error = deadline::within(Duration::from_secs(1), slow).await.unwrap_err();

        assert_eq!(error.kind(), ErrorKind::Timeout);
        if error.sqlstate() == Some(&SqlState::QUERY_CANCELED) {
            assert_eq!(error.outcome(), Outcome::RolledBack);
            assert_eq!(connection.query_one("SELECT 1", &[]).await.unwrap().get::<_, i32>(0), 1);
            assert_eq!(connection.backend_pid(), pid);
            return;
        }
        // A machine so busy that a cancel takes a tenth of a second: the outcome is not known in time then.
        assert_eq!(error.outcome(), Outcome::Unknown);
        drop(connection);
        wait_until("the permit is back", || is_quiet(&pool)).await;
    }
    panic!("no cancel was in time in {ATTEMPTS} attempts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stuck_writers_leave_permits_for_readers() {
    // One stock of permits for both lanes is what lets stuck writes take the readers down.
    let pool = builder(&shared_postgres().url(), "lanes").size(3).write_share(0.5).build().unwrap();
    let _writer = pool.write().await.unwrap();

    let refused = deadline::within(Duration::from_millis(100), pool.write()).await.unwrap_err();
    assert_eq!((refused.kind(), refused.lane()), (ErrorKind::Overloaded, Some(Lane::Write)));

    let (_one, _two) = (pool.read().await.unwrap(), pool.read().await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pool_is_a_tower_service() {
    // Layers of others must fit around it; what idles must not hold a permit.
    let mut service = pool(&shared_postgres().url(), "tower", 1);
    let idle_clone = service.clone().ready_oneshot().await.unwrap();

    let mut connection = service.ready().await.unwrap().call(Checkout::of(Lane::Read)).await.unwrap();

    connection.query_one("SELECT 1", &[]).await.unwrap();
    drop(idle_clone);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_leaves_a_connection_that_can_be_used_again() {
    // The Sync behind a COPY is never answered: counted naively, every COPY would cost its connection.
    use futures_util::SinkExt;
    let pool = pool(&shared_postgres().url(), "copy", 1);
    let table = table("copy");
    let mut connection = pool.write().await.unwrap();
    let pid = connection.backend_pid();
    let sql = format!("COPY {table} FROM STDIN");

    let rows = connection
        .with_client(async |client| {
            let sink = client.copy_in::<_, &[u8]>(&sql).await?;
            let mut sink = std::pin::pin!(sink);
            sink.send(b"1\n2\n").await?;
            sink.finish().await
        })
        .await
        .unwrap();

    assert_eq!(rows, 2);
    drop(connection);
    wait_until("quiet", || is_quiet(&pool)).await;
    assert_eq!(pool.write().await.unwrap().backend_pid(), pid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_pool_is_the_end_of_its_backends() {
    // A task that keeps a connection alive would leak one per pool.
    let pool = pool(&shared_postgres().url(), "end", 3);
    let connections = (pool.read().await.unwrap(), pool.write().await.unwrap());
    assert!(backends(shared_postgres(), "end", "true") >= 2);

    drop(connections);
    drop(pool);

    wait_until("no backends", || backends(shared_postgres(), "end", "true") == 0).await;
}

/// Compiles or does not: an axum handler must be `Send`.
#[expect(dead_code, reason = "compiling is the test")]
fn a_transaction_can_run_in_a_spawned_task(pool: tidegate_client::Pool) {
    tokio::spawn(async move {
        let key = String::from("k");
        let outcome: TxOutcome<u64, Error> = pool
            .transaction(TxOptions::write(), async |mut tx| {
                let row = tx.query_one("SELECT $1", &[&key]).await?;
                tx.execute("SELECT $1", &[&row.get::<_, i64>(0)]).await
            })
            .await;
        drop(outcome);
    });
}

/// As above.
#[expect(dead_code, reason = "compiling is the test")]
fn a_borrowed_client_can_be_used_in_a_spawned_task(pool: tidegate_client::Pool) {
    tokio::spawn(async move {
        let sql = String::from("SELECT 1");
        let mut connection = pool.read().await?;
        connection.with_client(async |client| client.batch_execute(&sql).await).await
    });
}
