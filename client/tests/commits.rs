//! What has been committed when a call ends: no more and no less than it says.

#![expect(clippy::unwrap_used, reason = "whatever is not as it should be fails the test")]

mod support;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{FutureExt, SinkExt};
use support::{
    Relay, brief, builder, is_quiet, patient, pool, shared_postgres, synchronous_cluster, wait_until,
};
use tidegate_chaos::relay::Relay as Switch;
use tidegate_client::tokio_postgres::{self, Client};
use tidegate_client::{Builder, Error, ErrorKind, Outcome, Pool, Sidecar, TxOptions, TxOutcome, deadline};
use tidegate_tests::{BackendKey, Incoming, Replies, ScriptedServer};
use tokio::time::{Instant, sleep, timeout};

/// A table of this test's own, and a pool with one connection.
fn table_and_pool(name: &str, columns: &str) -> Pool {
    shared_postgres().sql(&format!("CREATE TABLE {name} ({columns})")).unwrap();
    builder(&shared_postgres().url(), name).timeouts(patient()).size(1).build().unwrap()
}

fn count(table: &str) -> String {
    shared_postgres().sql(&format!("SELECT count(*) FROM {table}")).unwrap()
}

async fn copy(client: &Client, table: &str, data: &'static [u8]) -> Result<u64, tokio_postgres::Error> {
    let mut sink = pin!(client.copy_in::<_, &[u8]>(&format!("COPY {table} FROM STDIN")).await?);
    sink.send(data).await?;
    sink.finish().await
}

#[tokio::test]
async fn a_copy_that_is_dropped_unfinished_takes_its_transaction_with_it() {
    // The driver fails such a COPY behind everybody's back, and the COMMIT behind it is answered with "ROLLBACK". With one
    // thread it has no turn before the COMMIT is queued.
    let pool = table_and_pool("copy_dropped", "id bigint");

    let outcome: TxOutcome<(), Error> = pool
        .transaction(TxOptions::write(), async |mut tx| {
            tx.execute("INSERT INTO copy_dropped VALUES (1)", &[]).await?;
            let dropped = tx
                .with_client(async |client| {
                    let sink = client.copy_in::<_, &[u8]>("COPY copy_dropped FROM STDIN").await?;
                    pin!(sink).send(b"2\n").await
                })
                .await;
            // Whatever the application makes of it.
            drop(dropped);
            Ok(())
        })
        .await;

    assert!(
        matches!(&outcome, TxOutcome::RolledBack(error) if error.kind() == ErrorKind::RolledBack),
        "{outcome:?}"
    );
    assert_eq!(count("copy_dropped"), "0");
    assert!(pool.write().await.unwrap().batch_execute("SELECT 1").await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_whose_commit_fails_is_not_called_done() {
    // The number of rows comes with the end of the command; constraints that are deferred are looked at behind it.
    let pool = table_and_pool("copy_deferred", "id bigint UNIQUE DEFERRABLE INITIALLY DEFERRED");
    let mut connection = pool.write().await.unwrap();

    let error = connection
        .with_client(async |client| copy(client, "copy_deferred", b"1\n1\n").await)
        .await
        .unwrap_err();
    let rows = connection.with_client(async |client| copy(client, "copy_deferred", b"1\n2\n").await).await;

    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Database, Outcome::RolledBack), "{error:?}");
    assert!(!error.is_safe_to_retry());
    assert_eq!(rows.unwrap(), 2);
    assert_eq!(count("copy_deferred"), "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_is_over_when_all_that_it_began_is_answered() {
    // Given back with requests in its queue, a connection makes the next user wait for them, or be in their COPY.
    let pool = table_and_pool("begun", "id bigint");
    let mut connection = pool.write().await.unwrap();

    let start = Instant::now();
    connection
        .with_client(async |client| {
            drop(client.batch_execute("SELECT pg_sleep(0.4)").now_or_never());
            Ok(())
        })
        .await
        .unwrap();
    let took = start.elapsed();
    let failed = connection
        .with_client(async |client| {
            drop(client.batch_execute("SELECT 1 / 0").now_or_never());
            Ok(())
        })
        .await;

    assert!(took >= Duration::from_millis(400), "{took:?}");
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::Database);
    drop(connection);
    assert!(is_quiet(&pool));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_behind_something_committed_does_not_count_as_rolled_back() {
    // Done again, the first part is there twice.
    let pool = table_and_pool("parts", "id bigint UNIQUE");
    let mut connection = pool.write().await.unwrap();
    shared_postgres()
        .sql(
            "CREATE PROCEDURE parts_in_chunks() LANGUAGE plpgsql AS $$ BEGIN \
             INSERT INTO parts VALUES (10); COMMIT; RAISE SQLSTATE '40001'; END $$",
        )
        .unwrap();

    let two = connection
        .with_client(async |client| {
            client.batch_execute("INSERT INTO parts VALUES (1)").await?;
            client.batch_execute("INSERT INTO parts VALUES (1)").await
        })
        .await
        .unwrap_err();
    let batch = connection
        .batch_execute("INSERT INTO parts VALUES (2); COMMIT; INSERT INTO parts VALUES (1)")
        .await
        .unwrap_err();
    let call = connection.execute("CALL parts_in_chunks()", &[]).await.unwrap_err();
    shared_postgres().sql("DELETE FROM parts WHERE id = 10").unwrap();
    let simple = connection.simple_query("/* why */ call parts_in_chunks()").await.unwrap_err();

    for error in [two, batch, call, simple] {
        assert_eq!((error.outcome(), error.is_safe_to_retry()), (Outcome::Unknown, false), "{error:?}");
    }
    assert_eq!(shared_postgres().sql("SELECT array_agg(id ORDER BY id) FROM parts").unwrap(), "{1,2,10}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_behind_nothing_committed_is_rolled_back() {
    // Were everything in doubt, nothing could be done again.
    let pool = table_and_pool("whole", "id bigint UNIQUE");
    let mut connection = pool.write().await.unwrap();
    let conflict = "DO $$ BEGIN RAISE SQLSTATE '40001'; END $$";

    let alone = connection
        .with_client(async |client| {
            client.batch_execute("INSERT INTO whole VALUES (1); INSERT INTO whole VALUES (1)").await
        })
        .await
        .unwrap_err();
    let batch = connection.batch_execute("INSERT INTO whole VALUES (1); SELECT 1 / 0").await.unwrap_err();
    let inside: TxOutcome<(), Error> =
        pool_of_two().transaction(TxOptions::write(), async |mut tx| tx.batch_execute(conflict).await).await;

    let TxOutcome::RolledBack(inside) = inside else { panic!("{inside:?}") };
    for error in [alone, batch, inside] {
        assert_eq!(error.outcome(), Outcome::RolledBack, "{error:?}");
    }
    assert_eq!(count("whole"), "0");
}

fn pool_of_two() -> Pool {
    pool(&shared_postgres().url(), "whole_in_transaction", 2)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_was_given_up_is_not_offered_to_the_next() {
    // It was fit when it was given back the last time; that says nothing about now.
    let relay = Relay::to(shared_postgres().port()).await;
    let pool = pool(&relay.url(), "given_up", 1);
    drop(pool.read().await.unwrap());
    let mut connection = pool.read().await.unwrap();

    relay.stall();
    connection.simple_query("SELECT 1").await.unwrap_err();
    drop(connection);
    wait_until("it is given up", || pool.status().connections == 0).await;

    relay.heal();
    wait_until("the permit is back", || is_quiet(&pool)).await;
}

/// A server behind which statements take as long as they are told, and how many cancels it gets.
async fn slow(
    statement: &'static str,
    takes: Duration,
    answer: Replies,
) -> (ScriptedServer, Arc<AtomicUsize>) {
    let mut server = ScriptedServer::start().await;
    let cancels = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&cancels);
    server.serve(move |incoming| {
        let (count, answer) = (Arc::clone(&count), answer.clone());
        async move {
            let mut backend = match incoming {
                Incoming::Session(backend) => backend,
                Incoming::Cancel { .. } => {
                    count.fetch_add(1, Ordering::SeqCst);
                    return;
                }
            };
            backend.welcome(&BackendKey { pid: 7, secret: vec![0; 4] }).await;
            let mut status = 'I';
            while let Some(message) = backend.next().await {
                let sql = message.strings().first().cloned().unwrap_or_default();
                match sql.as_str() {
                    "BEGIN" => status = 'T',
                    "COMMIT" | "ROLLBACK" => status = 'I',
                    _ => {}
                }
                let replies = if sql == statement {
                    sleep(takes).await;
                    answer.clone().ready(status)
                } else if sql.starts_with("/*tidegate") || sql.starts_with("SHOW tidegate") {
                    // The pool's probes: whoever answers them works.
                    Replies::new().one_value("1")
                } else {
                    Replies::new().complete(&sql).ready(status)
                };
                backend.send(replies).await;
            }
        }
    });
    (server, cancels)
}

fn behind_a_sidecar(server: &ScriptedServer) -> Pool {
    Builder::parse(&server.url()).unwrap().timeouts(brief()).size(1).sidecar(Sidecar::Yes).build().unwrap()
}

const WRITE: &str = "INSERT INTO t DEFAULT VALUES";
const BEYOND: Duration = Duration::from_millis(1500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_may_wait_for_a_standby_behind_a_sidecar_is_not_cancelled() {
    // The sidecar sees what its backend waits for; our cancel would end the wait, and show a commit that is not
    // replicated.
    let (server, cancels) = slow(WRITE, BEYOND, Replies::new().complete("INSERT 0 1")).await;
    let pool = behind_a_sidecar(&server);

    let error = async { pool.write().await?.batch_execute(WRITE).await }.await.unwrap_err();
    wait_until("the connection is back", || is_quiet(&pool)).await;

    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::Unknown), "{error:?}");
    assert_eq!(cancels.load(Ordering::SeqCst), 0);
    // Where nothing commits there is nothing to show.
    let error = async { pool.read().await?.batch_execute(WRITE).await }.await.unwrap_err();
    wait_until("the connection is back", || is_quiet(&pool)).await;
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
    assert!(cancels.load(Ordering::SeqCst) > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_future_is_dropped_is_not_cancelled() {
    // It may wait for a standby, and nobody could tell that from any other statement.
    let (server, cancels) = slow("COMMIT", BEYOND, Replies::new().complete("COMMIT")).await;
    let pool = behind_a_sidecar(&server);

    let dropped = pool.transaction(TxOptions::write(), async |mut tx| tx.batch_execute(WRITE).await);
    let dropped: Result<TxOutcome<(), Error>, _> = timeout(BEYOND / 5, dropped).await;
    assert!(dropped.is_err());
    wait_until("the connection is back", || is_quiet(&pool)).await;

    assert_eq!(cancels.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_is_not_replicated_is_not_charged_to_the_next_user() {
    // Its warning comes when its own user has left; the next one has done nothing of the kind.
    let warning =
        [('S', "WARNING"), ('V', "WARNING"), ('C', "01000"), ('M', "no"), ('R', "SyncRepWaitForLSN")];
    let answer = Replies::new().problem(b'N', &warning).complete("INSERT 0 1");
    let (server, _cancels) = slow(WRITE, Duration::from_millis(300), answer).await;
    let pool = behind_a_sidecar(&server);

    let dropped = async { pool.write().await?.batch_execute(WRITE).await };
    timeout(Duration::from_millis(100), dropped).await.unwrap_err();
    wait_until("the connection is back", || is_quiet(&pool)).await;

    async { pool.write().await?.batch_execute("SELECT 1").await }.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_who_has_waited_for_all_the_time_of_a_lane_lowers_its_limit() {
    // Callers in a hurry would shrink a lane that works, and hangs would not shrink one that does not.
    let relay = Relay::to(shared_postgres().port()).await;
    let pool = pool(&relay.url(), "limits", 10);
    let limit = || pool.status().read.limit;
    let before = limit();

    let hurried = async { pool.read().await?.simple_query("SELECT pg_sleep(5)").await };
    deadline::within(Duration::from_millis(200), hurried).await.unwrap_err();
    wait_until("quiet", || is_quiet(&pool)).await;
    assert_eq!(limit(), before);

    let mut connection = pool.read().await.unwrap();
    relay.stall();
    connection.simple_query("SELECT 1").await.unwrap_err();
    assert!(limit() < before, "{} of {before}", limit());
    relay.heal();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_write_waits_for_is_looked_up_where_it_runs() {
    // Another host knows nothing of the process, or another one by that number: the write that waits for a standby would
    // be taken for one that is gone, cancelled, and seen without being replicated.
    let cluster = synchronous_cluster();
    let (primary, local) = (cluster.primary(), std::net::Ipv4Addr::LOCALHOST);
    let other = (local, shared_postgres().port()).into();
    let first = Switch::start((local, 0).into(), other).await.unwrap();
    first.enable(false);
    let hosts = format!("{local}:{},{local}:{}", first.address().port(), primary.port());
    let pool =
        builder(&format!("postgres://postgres@{hosts}/postgres"), "looked_up").size(1).build().unwrap();
    let mut connection = pool.write().await.unwrap();
    first.enable(true);
    cluster.standbys()[0].freeze().unwrap();

    let error = connection.execute("INSERT INTO t (v) VALUES ('x')", &[]).await.unwrap_err();

    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::Unknown), "{error:?}");
    assert_eq!(primary.sql("SELECT count(*) FROM t").unwrap(), "0");
    cluster.standbys()[0].thaw().unwrap();
    wait_until("the zombie ends", || is_quiet(&pool)).await;
}
