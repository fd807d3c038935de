use std::net::Ipv4Addr;
use std::time::Duration;

use tidegate_chaos::cluster::Signal;
use tidegate_chaos::relay::{Kind, Relay, Stream, Toxic};
use tidegate_client::tokio_postgres::SimpleQueryMessage;
use tidegate_client::{
    Cause, Error, ErrorKind, Outcome, Pool, TxOptions, TxOutcome, deadline, tokio_postgres,
};
use tidegate_tests::{PATIENCE, ProxyOptions, shared_postgres, wait_until};
use tokio::time::{Instant, sleep, timeout};

use super::{builder, pooled, running, synchronous_cluster, url, wait_quiet};
use crate::rig::own_postgres;
use crate::{TIDEGATE, trusting};

const SHORT: Duration = Duration::from_millis(400);
const LONG: Duration = Duration::from_secs(2);

/// Asks until it is served; what is jammed never is.
async fn assert_served(pool: &Pool) {
    let start = Instant::now();
    while async { pool.write().await?.batch_execute("SELECT 1").await }.await.is_err() {
        assert!(start.elapsed() < PATIENCE, "the pool is jammed: {:?}", pool.status());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_heard_of_at_once() {
    // The sidecar is who refuses; the caller must not wait for the end of its time.
    let options =
        ProxyOptions::new(TIDEGATE).config("[listen]\nauth = \"scram\"\nuserlist = \"users.txt\"\n");
    let options = options.file("users.txt", "\"postgres\" \"right\"\n").upstream(&shared_postgres().url());
    let proxy = options.start().await;
    let pool = builder(&format!("postgres://postgres:wrong@{}/postgres", proxy.address())).build().unwrap();
    let start = Instant::now();

    let error = pool.read().await.unwrap_err();

    assert!(start.elapsed() < LONG / 2, "{:?}", start.elapsed());
    assert_eq!((error.kind(), error.cause()), (ErrorKind::Connect, Some(Cause::Auth)));
    assert_eq!(error.sqlstate().unwrap().code(), "28P01");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_sidecar_hangs_no_connect_and_does_not_jam_the_pool() {
    // Its kernel accepts, and nobody answers: a connect that hangs would hold its place for ever.
    let bench = crate::bench("").await;
    let pool = builder(&url(&bench.proxy)).size(1).build().unwrap();
    bench.proxy.freeze();

    let start = Instant::now();
    let error = pool.read().await.unwrap_err();
    let took = start.elapsed();
    bench.proxy.signal(Signal::CONT);

    assert!(took < LONG / 2, "{took:?}");
    assert_eq!(error.outcome(), Outcome::NotSent);
    assert_served(&pool).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_freezes_is_noticed_by_its_users() {
    // Those who wait for an answer are answered, and the connection that hung is not given to the next.
    let (bench, pool) = pooled(1).await;
    let mut connection = pool.write().await.unwrap();
    connection.batch_execute("SELECT 1").await.unwrap();
    bench.proxy.freeze();

    let start = Instant::now();
    let error = connection.batch_execute("SELECT 1").await.unwrap_err();
    let took = start.elapsed();
    drop(connection);
    // Idle connections hang as well; the check of one must not hang its caller.
    let start = Instant::now();
    let refused = pool.write().await.is_err();
    let refused_after = start.elapsed();
    bench.proxy.signal(Signal::CONT);

    assert!(took < LONG && refused && refused_after < LONG / 2, "{took:?}, {refused_after:?}");
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_served(&pool).await;
    wait_quiet(&pool).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_dropped_in_mid_query_does_not_go_back_busy_and_its_statement_ends() {
    // The cancel must reach the backend behind the sidecar, and its end the pool before it.
    let (_bench, pool) = pooled(1).await;
    let mut connection = pool.write().await.unwrap();
    timeout(SHORT, connection.simple_query("SELECT pg_sleep(6) /* nobody */")).await.unwrap_err();
    drop(connection);

    let start = Instant::now();
    pool.write().await.unwrap().simple_query("SELECT 1").await.unwrap();

    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    wait_until(PATIENCE, "the statement ends on the server", || running("nobody") == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_dropped_in_a_transaction_is_rolled_back_and_its_locks_are_freed() {
    // The next caller would write into somebody else's transaction; everybody else would wait for its lock.
    let (_bench, pool) = pooled(1).await;
    shared_postgres().sql("CREATE TABLE client_lock (id bigint)").unwrap();
    let abandoned = pool.transaction(TxOptions::write(), async |mut tx| {
        tx.batch_execute("LOCK TABLE client_lock IN ACCESS EXCLUSIVE MODE").await?;
        tx.batch_execute("SELECT pg_sleep(6)").await
    });
    let late: Result<TxOutcome<(), Error>, _> = timeout(SHORT, abandoned).await;
    assert!(late.is_err());

    let start = Instant::now();
    let free = "SET lock_timeout = '100ms'; SELECT count(*) FROM client_lock";
    wait_until(PATIENCE, "the lock is free", || shared_postgres().sql(free).is_ok()).await;

    assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
    let rows =
        pool.write().await.unwrap().simple_query("SELECT now() = statement_timestamp()").await.unwrap();
    let fresh = |message: &SimpleQueryMessage| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("t"));
    assert!(rows.iter().any(fresh), "{rows:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_never_hits_the_next_query() {
    // Two cancels in a row, ours and the sidecar's: each of them could be late.
    const ROUNDS: usize = 30;
    let (_bench, pool) = pooled(1).await;
    for _ in 0..ROUNDS {
        let guilty = async { pool.write().await?.batch_execute("SELECT pg_sleep(5)").await };
        deadline::within(Duration::from_millis(50), guilty).await.unwrap_err();
        wait_quiet(&pool).await;
        let innocent: Result<(), Error> =
            async { pool.write().await?.batch_execute("SELECT pg_sleep(0.02)").await }.await;
        innocent.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_is_not_replicated_is_not_called_success() {
    // It is the sidecar that answers, before our own bound; what it says must not become "done" or "not done".
    let cluster = synchronous_cluster();
    let proxy = trusting("[timeouts]\ncommit = \"1s\"\nwrite = \"1s\"").upstream(&cluster.primary().url());
    let proxy = proxy.start().await;
    let patient = tidegate_client::Timeouts::default();
    let pool = builder(&url(&proxy)).timeouts(patient).size(2).build().unwrap();
    assert_served(&pool).await;
    cluster.standbys()[0].freeze().unwrap();

    let outcome: TxOutcome<u64, Error> = pool
        .transaction(TxOptions::write(), async |mut tx| {
            tx.execute("INSERT INTO t (v) VALUES ('x')", &[]).await
        })
        .await;

    cluster.standbys()[0].thaw().unwrap();
    let TxOutcome::Unknown { error, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(error.kind(), ErrorKind::CommitUnknown, "{error:?}");
    assert!(matches!(error.outcome(), Outcome::Unknown | Outcome::CommittedUnreplicated), "{error:?}");
    assert_eq!(error.sqlstate().unwrap().code(), "08007");
    assert!(!error.is_safe_to_retry());
    wait_quiet(&pool).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_behind_the_sidecar_hangs_nobody() {
    // The sidecar lives and answers; what it cannot do is refused or given up in time.
    let node = own_postgres(&[]);
    let proxy = trusting("").upstream(&node.url()).start().await;
    let pool = builder(&url(&proxy)).size(4).build().unwrap();
    assert_served(&pool).await;
    node.freeze().unwrap();

    let start = Instant::now();
    let mut slowest = Duration::ZERO;
    while start.elapsed() < LONG * 2 {
        let asked = Instant::now();
        let answer = async { pool.write().await?.batch_execute("SELECT 1").await }.await;
        slowest = slowest.max(asked.elapsed());
        assert!(answer.is_err());
        sleep(Duration::from_millis(20)).await;
    }

    assert!(slowest < LONG, "{slowest:?}");
    node.thaw().unwrap();
    assert_served(&pool).await;
    wait_quiet(&pool).await;
}

/// A relay to a local port, and what makes it hold back all bytes.
async fn relay(port: u16) -> Relay {
    Relay::start((Ipv4Addr::LOCALHOST, 0).into(), (Ipv4Addr::LOCALHOST, port).into()).await.unwrap()
}

fn stall(relay: &Relay) {
    relay.add(Toxic::new("up", Stream::Upstream, Kind::Stall {}));
    relay.add(Toxic::new("down", Stream::Downstream, Kind::Stall {}));
}

fn heal(relay: &Relay) {
    relay.remove("up");
    relay.remove("down");
}

/// While the relay stalls everybody is answered in time; when it is well again, everybody is served.
async fn assert_bounded(pool: &Pool, relay: &Relay) {
    assert_served(pool).await;
    stall(relay);
    let start = Instant::now();
    while start.elapsed() < LONG {
        let asked = Instant::now();
        let answer: Result<tokio_postgres::Row, Error> =
            async { pool.write().await?.query_one("SELECT 1", &[]).await }.await;
        assert!(answer.is_err());
        assert!(asked.elapsed() < LONG, "{:?}", asked.elapsed());
        sleep(Duration::from_millis(20)).await;
    }
    heal(relay);
    assert_served(pool).await;
    wait_quiet(pool).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalling_network_before_the_sidecar_hangs_nobody() {
    // Neither end is told; only the bounds of the pool itself help.
    let bench = crate::bench("").await;
    let relay = relay(bench.proxy.address().port()).await;
    let pool = builder(&format!("postgres://postgres@{}/postgres", relay.address())).size(3).build().unwrap();

    assert_bounded(&pool, &relay).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalling_network_behind_the_sidecar_hangs_nobody() {
    // The sidecar bounds what it waits for, and says so before the pool has to guess.
    let relay = relay(shared_postgres().port()).await;
    let upstream = format!("postgres://postgres@{}/postgres", relay.address());
    let proxy = trusting("").upstream(&upstream).start().await;
    let pool = builder(&url(&proxy)).size(3).build().unwrap();

    assert_bounded(&pool, &relay).await;
}
