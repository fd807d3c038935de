//! Any future may be dropped at any await point: polled N times, then dropped, for every N.

#![expect(clippy::unwrap_used, reason = "whatever is not as it should be fails the test")]

#[path = "support/polls.rs"]
mod polls;
mod support;

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use polls::{Ended, poll_then_drop};
use support::{backends, builder, is_quiet, pool, shared_postgres, wait_until};
use tidegate_client::http::ResilienceLayer;
use tidegate_client::tokio_postgres::SimpleQueryMessage;
use tidegate_client::tokio_postgres::types::Type;
use tidegate_client::{Checkout, Error, Lane, Pool, Retry, TxOptions, TxOutcome, deadline};
use tower::{Layer, ServiceExt, service_fn};

/// Whatever was dropped where: the next user finds an idle connection, all permits come back, and no backend of
/// ours is left busy or in a transaction.
async fn assert_sound(pool: &Pool, name: &str, size: usize) {
    wait_until(&format!("{name}: permits come back, {:?}", pool.status()), || is_quiet(pool)).await;
    let mut all = Vec::new();
    for _ in 0..size {
        let mut connection = pool.write().await.unwrap();
        // In a transaction of somebody else's, now() would stand still; behind an old query the answer would be its.
        let rows = connection.simple_query("SELECT 7, now() = statement_timestamp()").await.unwrap();
        let row = rows.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((row.get(0), row.get(1))),
            _ => None,
        });
        assert_eq!(row, Some((Some("7"), Some("t"))));
        all.push(connection);
    }
    drop(all);
    let node = shared_postgres();
    wait_until("no transaction is left open", || {
        backends(node, name, "state <> 'idle' AND query NOT LIKE '%emit_message%'") == 0
    })
    .await;
    // The stock, and at most three of the pool's own: two probes and a look.
    assert!(backends(node, name, "true") <= size + 3);
}

/// Drops after 0, 1, 2, … polls until the operation comes to its end.
async fn at_every_await<F: Future>(name: &str, limit: usize, operation: impl Fn(Pool) -> F) {
    const SIZE: usize = 2;
    let pool = pool(&shared_postgres().url(), name, SIZE);
    for polls in 0..limit {
        let ended = poll_then_drop(polls, operation(pool.clone())).await;
        assert_sound(&pool, name, SIZE).await;
        if ended == Ended::Yes {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acquiring_and_a_read() {
    // A cold pool: waiting, connecting, checking and running are all dropped somewhere.
    at_every_await("drop_read", 60, async |pool: Pool| {
        let mut connection = pool.read().await?;
        connection.query("SELECT generate_series(1, 100)", &[]).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_takes_its_time() {
    // The driver goes on reading when its future is dropped: given back at once, the next would queue behind it.
    at_every_await("drop_slow", 12, async |pool: Pool| {
        let mut connection = pool.write().await?;
        connection.query("SELECT pg_sleep(30)", &[]).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_with_locks() {
    // A lock that survives its transaction's future blocks everybody else.
    shared_postgres().sql("CREATE TABLE drop_tx (id bigint)").unwrap();
    at_every_await("drop_tx", 60, async |pool: Pool| -> TxOutcome<(), Error> {
        pool.transaction(TxOptions::write(), async |mut tx| {
            tx.batch_execute("LOCK TABLE drop_tx IN EXCLUSIVE MODE").await?;
            tx.execute("INSERT INTO drop_tx VALUES (1)", &[]).await?;
            tx.query("SELECT * FROM drop_tx", &[]).await.map(drop)
        })
        .await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_in_the_middle_of_its_data() {
    // A connection in copy mode answers nothing until the copy fails or is done.
    use futures_util::SinkExt;
    shared_postgres().sql("CREATE TABLE drop_copy (id bigint)").unwrap();
    at_every_await("drop_copy", 40, async |pool: Pool| {
        let mut connection = pool.write().await?;
        connection
            .with_client(async |client| {
                let sink = client.copy_in::<_, &[u8]>("COPY drop_copy FROM STDIN").await?;
                let mut sink = pin!(sink);
                for _ in 0..3 {
                    sink.send(b"1\n").await?;
                    tokio::task::yield_now().await;
                }
                sink.finish().await
            })
            .await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_of_every_kind() {
    // Each has its own number of exchanges, and each exchange its own place to be dropped in.
    at_every_await("drop_prepared", 40, async |pool: Pool| {
        let mut connection = pool.acquire(Lane::Write).await?;
        let statement = connection.prepare("SELECT $1::int4 + 1").await?;
        connection.query_opt(&statement, &[&1_i32]).await
    })
    .await;
    at_every_await("drop_typed", 40, async |pool: Pool| {
        let mut connection = pool.write().await?;
        connection.query_typed("SELECT $1 + 1", &[(&1_i32, Type::INT4)]).await?;
        connection.query_one("SELECT 1", &[]).await
    })
    .await;
    at_every_await("drop_simple", 40, async |pool: Pool| {
        let mut connection = pool.write().await?;
        connection.batch_execute("BEGIN; SELECT 1; COMMIT").await?;
        connection.simple_query("SELECT 1; SELECT 2").await?;
        connection.execute("SELECT 1", &[]).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_is_cut_off_by_its_deadline() {
    // Dropped before the cancel, while it is under way, and after the answer was given up.
    at_every_await("drop_late", 40, async |pool: Pool| {
        let late = async { pool.write().await?.query("SELECT pg_sleep(30)", &[]).await };
        Box::pin(deadline::within(Duration::from_millis(150), late)).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_is_tried_again() {
    // Between two attempts nothing may be held.
    at_every_await("drop_retry", 60, async |pool: Pool| -> TxOutcome<(), Error> {
        let mut attempts = 0;
        pool.transaction(TxOptions::write().retry(Retry::Safe), |mut tx| {
            attempts += 1;
            let sql = if attempts == 1 { "DO $$ BEGIN RAISE SQLSTATE '40001'; END $$" } else { "SELECT 1" };
            async move { tx.batch_execute(sql).await }
        })
        .await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_services() {
    // The pool as a Tower service, and a request whose client hangs up.
    at_every_await("drop_service", 40, async |pool: Pool| {
        let mut connection = pool.oneshot(Checkout::of(Lane::Write)).await?;
        connection.query_one("SELECT 1", &[]).await
    })
    .await;
    at_every_await("drop_http", 40, async |pool: Pool| {
        let handler = service_fn(|_: http::Request<()>| async {
            let row = pool.read().await?.query_one("SELECT 1", &[]).await?;
            Ok::<_, Error>(http::Response::new(row.get::<_, i32>(0).to_string()))
        });
        let layer = ResilienceLayer::new(&pool, Duration::from_secs(5));
        layer.layer(handler).oneshot(http::Request::new(())).await
    })
    .await;
}

#[test]
fn a_guard_may_be_dropped_outside_of_any_runtime() {
    // A connection that cannot be kept is replaced, and that needs a runtime: the pool's own.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (pool, lost, busy) = runtime.block_on(async {
        let pool = builder(&shared_postgres().url(), "drop_outside").size(4).min_idle(1).build().unwrap();
        let (lost, mut busy) = (pool.write().await.unwrap(), pool.write().await.unwrap());
        let pid = lost.backend_pid().unwrap();
        shared_postgres().sql(&format!("SELECT pg_terminate_backend({pid})")).unwrap();
        let abandoned =
            tokio::time::timeout(Duration::from_millis(50), busy.query("SELECT pg_sleep(30)", &[]));
        abandoned.await.unwrap_err();
        (pool, lost, busy)
    });

    std::thread::spawn(move || drop((lost, busy))).join().unwrap();

    runtime.block_on(wait_until("all permits are back", || is_quiet(&pool)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_callers_who_give_up() {
    // The same under contention: permits handed to those who have just left must go on to the next.
    const SIZE: usize = 3;
    let pool = builder(&shared_postgres().url(), "drop_crowd").size(SIZE).build().unwrap();
    let crowd: Vec<_> = (0..200)
        .map(|number| {
            let pool = pool.clone();
            tokio::spawn(async move {
                poll_then_drop(1 + number % 9, async {
                    let mut connection = pool.write().await?;
                    connection.query("SELECT pg_sleep(0.002)", &[]).await
                })
                .await
            })
        })
        .collect();
    for caller in crowd {
        tokio::time::timeout(Duration::from_secs(20), caller).await.unwrap().unwrap();
    }

    assert_sound(&pool, "drop_crowd", SIZE).await;
}
