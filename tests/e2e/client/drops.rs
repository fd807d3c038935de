use std::future::Future;

use tidegate_client::tokio_postgres::SimpleQueryMessage::Row;
use tidegate_client::{Error, Pool, TxOptions, TxOutcome};

use super::polls::{Ended, poll_then_drop};
use super::{pooled, running, wait_quiet};
use crate::rig::SOON;
use tidegate_tests::{shared_postgres, wait_until};

const SIZE: usize = 2;

/// Whatever was dropped where: permits come back, the next user finds an idle connection, and nothing runs on behind
/// the sidecar.
async fn assert_sound(pool: &Pool, mark: &str) {
    wait_quiet(pool).await;
    let mut all = Vec::new();
    for _ in 0..SIZE {
        let mut connection = pool.write().await.unwrap();
        let rows = connection.simple_query("SELECT 7, now() = statement_timestamp()").await.unwrap();
        let fresh = |row: &tidegate_client::tokio_postgres::SimpleQueryRow| {
            (row.get(0), row.get(1)) == (Some("7"), Some("t"))
        };
        assert!(rows.iter().any(|message| matches!(message, Row(row) if fresh(row))), "{rows:?}");
        all.push(connection);
    }
    drop(all);
    wait_until(SOON, "nothing runs on", || running(mark) == 0).await;
    let open = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%' AND query LIKE '%{mark}%'"
    );
    wait_until(SOON, "no transaction is left open", || shared_postgres().sql(&open).unwrap() == "0").await;
}

/// Drops after 0, 1, 2, … polls until the operation comes to its end.
async fn at_every_await<F: Future>(limit: usize, mark: &str, operation: impl Fn(Pool) -> F) {
    let (_bench, pool) = pooled(SIZE).await;
    for polls in 0..limit {
        let ended = poll_then_drop(polls, operation(pool.clone())).await;
        if polls % 8 == 0 || ended == Ended::Yes {
            assert_sound(&pool, mark).await;
        }
        if ended == Ended::Yes {
            return;
        }
    }
    assert_sound(&pool, mark).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acquiring_and_a_statement_that_takes_its_time() {
    // The cancel of what was abandoned goes to the sidecar, and from there to the server.
    at_every_await(16, "drop_slow", async |pool: Pool| {
        let mut connection = pool.write().await?;
        connection.query("SELECT pg_sleep(30) /* drop_slow */", &[]).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_with_locks() {
    // A lock that survives its transaction's future blocks everybody else, and the sidecar's backend with it.
    shared_postgres().sql("CREATE TABLE drop_locks (id bigint)").unwrap();
    at_every_await(60, "drop_locks", async |pool: Pool| -> TxOutcome<(), Error> {
        pool.transaction(TxOptions::write(), async |mut tx| {
            tx.batch_execute("LOCK TABLE drop_locks IN EXCLUSIVE MODE").await?;
            tx.execute("INSERT INTO drop_locks VALUES (1)", &[]).await?;
            tx.query("SELECT * FROM drop_locks", &[]).await.map(drop)
        })
        .await
    })
    .await;
}
