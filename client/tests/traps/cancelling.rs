//! What a cancel does, and what it does not.

use std::time::Duration;

use tidegate_chaos::cluster::Signal;
use tidegate_client::{Builder, Error, ErrorKind, Outcome, SyncWait, deadline};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::NoTls;

use crate::support::{
    Relay, backends, brief, builder, is_quiet, own_postgres, pool, shared_postgres, synchronous_cluster,
    wait_until,
};
use crate::{LONG, SHORT, plain, tls};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_never_hits_the_next_query() {
    // tokio-postgres returns as soon as the request is written; it may arrive when something else runs.
    const ROUNDS: usize = 30;

    // THE TRAP
    let (client, connection) = tokio_postgres::connect(&shared_postgres().url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    let mut hit = 0;
    for _ in 0..ROUNDS {
        client.cancel_token().cancel_query(NoTls).await.unwrap();
        hit += usize::from(client.batch_execute("SELECT pg_sleep(0.02)").await.is_err());
    }
    assert!(hit > 0, "the race was not seen in {ROUNDS} rounds");

    let pool = pool(&shared_postgres().url(), "innocent", 1);
    for _ in 0..ROUNDS {
        let guilty = async {
            let mut connection = pool.write().await?;
            connection.batch_execute("SELECT pg_sleep(5)").await
        };
        deadline::within(Duration::from_millis(50), guilty).await.unwrap_err();
        wait_until("the permit is back", || is_quiet(&pool)).await;
        let innocent: Result<(), Error> = async {
            let mut connection = pool.write().await?;
            connection.batch_execute("SELECT pg_sleep(0.02)").await
        }
        .await;
        innocent.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_is_not_replicated_is_not_called_success() {
    // A cancelled wait for the standby ends with success and a warning that nobody reads.
    let cluster = synchronous_cluster();
    let (primary, insert) = (cluster.primary(), "INSERT INTO t (v) VALUES ('x')");
    cluster.standbys()[0].freeze().unwrap();

    // THE TRAP
    let (client, connection) = tokio_postgres::connect(&primary.url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    let token = client.cancel_token();
    let (said, ()) = tokio::join!(client.execute(insert, &[]), async {
        sleep(SHORT).await;
        token.cancel_query(NoTls).await.unwrap();
    });
    assert_eq!(said.unwrap(), 1, "told that it is done");

    // Ours, told to cancel.
    let pool = builder(&primary.url(), "unreplicated").size(2).sync_wait(SyncWait::Cancel).build().unwrap();
    let mut connection = pool.write().await.unwrap();
    let error = connection.execute(insert, &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CommitUnknown, "{error:?}");
    assert_eq!((error.outcome(), error.is_safe_to_retry()), (Outcome::CommittedUnreplicated, false));
    drop(connection);

    // Ours as it is by default: the waiter is left alone and stays charged; it is not visible to anybody.
    let pool = builder(&primary.url(), "left").size(2).build().unwrap();
    let error = async { pool.write().await?.execute(insert, &[]).await }.await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::Unknown), "{error:?}");
    assert_eq!(pool.status().write.in_flight, 1);
    assert_eq!(backends(primary, "left", "wait_event = 'SyncRep' AND query LIKE 'INSERT%'"), 1);
    cluster.standbys()[0].thaw().unwrap();
    wait_until("the zombie ends", || is_quiet(&pool)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_heeds_no_cancel_costs_one_permit_and_no_caller() {
    // Some waits cannot be interrupted. The driver calls the cancel done, and bb8 gives the connection to the next.
    let node = own_postgres();
    let freeze = |pid: i32| node.signal(u32::try_from(pid).unwrap(), Signal::STOP).unwrap();

    // THE TRAP
    let plain = plain(&node.url(), "deaf_plain", 1, LONG);
    let client = plain.get().await.unwrap();
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    freeze(pid);
    timeout(SHORT, client.simple_query("SELECT 1")).await.unwrap_err();
    client.cancel_token().cancel_query(NoTls).await.unwrap();
    drop(client);
    assert_eq!(plain.state().idle_connections, 1, "it is offered to the next");
    plain.get().await.unwrap_err();

    let pool = builder(&node.url(), "deaf").size(2).build().unwrap();
    let mut connection = pool.write().await.unwrap();
    let pid = connection.backend_pid().unwrap();
    freeze(pid);
    let start = Instant::now();
    let error = connection.simple_query("SELECT 1").await.unwrap_err();
    assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::Unknown));
    drop(connection);
    // Discarded; its permit stays charged as long as the backend is there, the other one serves.
    let other = pool.write().await.unwrap().query_one("SELECT pg_backend_pid()", &[]).await.unwrap();
    assert_ne!(other.get::<_, i32>(0), pid);
    sleep(LONG).await;
    assert_eq!((pool.status().write.in_flight, pool.status().connections), (1, 1));
    node.signal(u32::try_from(pid).unwrap(), Signal::CONT).unwrap();
    wait_until("the permit is back", || is_quiet(&pool)).await;
    assert_eq!(backends(&node, "deaf", &format!("pid = {pid}")), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_is_bounded_also_in_its_handshake() {
    // The driver waits for the server's answer to its request for TLS, for ever.
    let server = tls::server();
    let trust = tls::trusting(std::slice::from_ref(&server.certificate));
    let relay = Relay::to(server.node.port()).await;
    let url = format!("postgres://postgres@localhost:{}/postgres?sslmode=require", relay.port());

    // THE TRAP
    let connect = || tokio_postgres_rustls::MakeRustlsConnect::new(trust.clone());
    let (client, connection) = tokio_postgres::connect(&url, connect()).await.unwrap();
    tokio::spawn(connection);
    relay.stall();
    assert!(timeout(LONG, client.cancel_token().cancel_query(connect())).await.is_err());
    relay.heal();

    let pool = Builder::parse(&url).unwrap().timeouts(brief()).tls(trust.clone()).size(1).build().unwrap();
    let mut connection = pool.write().await.unwrap();
    relay.stall();
    let start = Instant::now();
    connection.simple_query("SELECT pg_sleep(5)").await.unwrap_err();
    drop(connection);
    wait_until("the connection is discarded", || pool.status().connections == 0).await;
    assert!(start.elapsed() < LONG * 2, "{:?}", start.elapsed());
    relay.heal();
}
