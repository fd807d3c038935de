//! From nothing to a session.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tidegate_chaos::cluster::{Cluster, ClusterOptions, Replication, SecretKind, StopMode};
use tidegate_client::{Builder, Cause, ErrorKind, Outcome, Timeouts, deadline};
use tidegate_tests::keepalive_of;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::NoTls;

use crate::support::{Relay, brief, builder, options, own_postgres, pool, shared_postgres};
use crate::{LONG, SHORT, manager, plain, plain_builder, switch, url_of};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_heard_of_at_once() {
    // bb8 gives connect errors to a sink that drops them, and the caller waits for its whole timeout.
    let node = own_postgres();
    node.create_user("app", "right", SecretKind::Scram).unwrap();
    node.set_hba(&["host all all 127.0.0.1/32 scram-sha-256"]).unwrap();
    let url = format!("postgres://app:wrong@127.0.0.1:{}/postgres", node.port());

    // THE TRAP
    let start = Instant::now();
    let error = plain(&url, "password", 1, LONG).get().await.unwrap_err();
    assert!(matches!(error, bb8::RunError::TimedOut) && start.elapsed() >= LONG);

    let start = Instant::now();
    let error = pool(&url, "password", 1).read().await.unwrap_err();
    assert!(start.elapsed() < LONG / 2, "{:?}", start.elapsed());
    assert_eq!((error.kind(), error.cause()), (ErrorKind::Connect, Some(Cause::Auth)));
    assert_eq!(error.sqlstate().unwrap().code(), "28P01");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connects_that_hang_do_not_jam_the_pool() {
    // A connect without a bound holds its place in bb8 for ever, also when the server is back.
    let relay = Relay::to(shared_postgres().port()).await;
    relay.stall();

    // THE TRAP
    let plain = plain(&relay.url(), "jam_plain", 1, SHORT);
    plain.get().await.unwrap_err();
    relay.heal();
    sleep(LONG).await;
    plain.get().await.unwrap_err();

    relay.stall();
    let pool = pool(&relay.url(), "jam", 1);
    let error = pool.read().await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotSent);
    relay.heal();
    let start = Instant::now();
    while pool.read().await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(5), "the pool is jammed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_connect_gets_the_connection_that_comes_back_first() {
    // A connection that is kept at hand for the next user is of no use to one who waits already.
    let relay = Relay::to(shared_postgres().port()).await;
    let pool = pool(&relay.url(), "comes_back", 2);
    for _ in 0..2 {
        let mut held = pool.read().await.unwrap();
        held.simple_query("SELECT 1").await.unwrap();
        relay.stall();
        let other = pool.clone();
        let waits =
            tokio::spawn(async move { other.read().await.map(|connection| connection.backend_pid()) });
        sleep(SHORT / 4).await;
        let pid = held.backend_pid();

        drop(held);

        let got = timeout(SHORT, waits).await.expect("not to wait for a connect").unwrap().unwrap();
        assert_eq!(got, pid);
        relay.heal();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_does_not_hang_the_connect() {
    // `connect_timeout` ends with the TCP handshake, which the kernel of a frozen server still makes.
    let node = own_postgres();
    node.freeze().unwrap();

    // THE TRAP
    let url = format!("{}?connect_timeout=1", node.url());
    timeout(LONG, tokio_postgres::connect(&url, NoTls)).await.map(drop).unwrap_err();

    let start = Instant::now();
    let error = deadline::within(LONG, pool(&node.url(), "frozen", 1).write()).await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(error.outcome(), Outcome::NotSent);
    node.thaw().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connect_that_failed_is_news_to_those_who_wait() {
    // Told not to retry, bb8 drops the error and wakes nobody: the caller sleeps on, also when the server is back.
    let relay = switch(shared_postgres().port()).await;

    // THE TRAP
    relay.enable(false);
    let plain =
        plain_builder(1, LONG).retry_connection(false).build_unchecked(manager(&url_of(&relay), "news"));
    let start = Instant::now();
    let (waiter, ()) = tokio::join!(plain.get(), async {
        sleep(SHORT).await;
        relay.enable(true);
    });
    assert!(matches!(waiter, Err(bb8::RunError::TimedOut)) && start.elapsed() >= LONG);

    relay.enable(false);
    let pool = pool(&url_of(&relay), "news", 1);
    let start = Instant::now();
    let error = pool.read().await.unwrap_err();
    assert!(start.elapsed() < LONG / 2, "{:?}", start.elapsed());
    assert_eq!((error.kind(), error.cause()), (ErrorKind::Connect, Some(Cause::Unreachable)));
    relay.enable(true);
    let start = Instant::now();
    while pool.read().await.is_err() {
        assert!(start.elapsed() < LONG, "it does not come back");
    }
}

/// How many connects are under way at once, when nobody answers them.
async fn herd<E>(connect: impl AsyncFn(u16) -> Vec<E>) -> usize {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = AtomicUsize::new(0);
    let mut kept = Vec::new();
    let accept = async {
        loop {
            kept.push(listener.accept().await.unwrap());
            seen.fetch_add(1, Ordering::Relaxed);
        }
    };
    tokio::select! {
        () = accept => {}
        _ = connect(port) => {}
    }
    seen.into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_does_not_connect_as_a_herd() {
    // bb8 connects for all who wait at the same time, and again in step: what a server that comes back needs least.
    const SIZE: usize = 30;

    // THE TRAP
    let all_at_once = herd(async |port| {
        let plain = plain(&format!("postgres://postgres@127.0.0.1:{port}/postgres"), "herd", 30, SHORT);
        join_all((0..SIZE).map(|_| plain.get())).await.into_iter().map(|got| got.map(drop)).collect()
    });
    assert_eq!(all_at_once.await, SIZE);

    let few = herd(async |port| {
        let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
        // The connect's bound is the longer one: none is given up in this time.
        let timeouts = Timeouts { acquire: SHORT, ..brief() };
        let pool = builder(&url, "herd").size(SIZE).timeouts(timeouts).build().unwrap();
        join_all((0..SIZE).map(|_| pool.read())).await
    });
    // Two for those who wait, and the pool's own: it has begun to ask what is wrong.
    assert!((2..=5).contains(&few.await));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connect_is_bounded_at_every_answer() {
    // Behind each answer of the server, from the first step of its authentication to that about its role, a network
    // that loses packets hangs a connect whose timeout ended with the TCP handshake.
    const ANSWERS: usize = 4;
    let node = own_postgres();
    node.create_user("app", "right", SecretKind::Scram).unwrap();
    node.set_hba(&["host all all 127.0.0.1/32 scram-sha-256"]).unwrap();
    let relay = Relay::to(node.port()).await;
    let roles = "target_session_attrs=read-write";
    let url = format!("postgres://app:right@127.0.0.1:{}/postgres?{roles}", relay.port());
    for answers in 0..ANSWERS {
        relay.hush_after(answers);

        // THE TRAP
        let hung = timeout(LONG, tokio_postgres::connect(&format!("{url}&connect_timeout=1"), NoTls)).await;
        assert!(hung.is_err(), "it was enough to hear {answers} answers");

        let start = Instant::now();
        let pool = Builder::parse(&url).unwrap().timeouts(brief()).build().unwrap();
        let error = pool.read().await.unwrap_err();
        assert!(start.elapsed() < LONG / 2, "{answers} answers: {:?}", start.elapsed());
        assert_eq!(error.outcome(), Outcome::NotSent);
    }
    relay.hush_after(ANSWERS);
    timeout(LONG, tokio_postgres::connect(&url, NoTls)).await.unwrap().map(drop).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_first_host_costs_its_head_start() {
    // Hosts that are tried one after the other hide the good one behind the frozen one.
    let (node, frozen) = (own_postgres(), own_postgres());
    frozen.freeze().unwrap();
    let url = format!(
        "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres?target_session_attrs=read-write",
        frozen.port(),
        node.port()
    );

    // THE TRAP
    let one_by_one = format!("{url}&connect_timeout=1");
    timeout(LONG, tokio_postgres::connect(&one_by_one, NoTls)).await.map(drop).unwrap_err();

    let timeouts = Timeouts { connect: Duration::from_secs(5), ..Timeouts::default() };
    let pool = Builder::parse(&url).unwrap().timeouts(timeouts).build().unwrap();
    let start = Instant::now();
    let mut connection = pool.write().await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    let port = connection.query_one("SELECT inet_server_port()", &[]).await.unwrap();
    assert_eq!(port.get::<_, i32>(0), i32::from(node.port()));
    frozen.thaw().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_was_replaced_gets_no_more_writes() {
    // Cut off from its fellows an old primary goes on saying that it takes writes; they are lost when it rejoins.
    let options = ClusterOptions { node: options(), standbys: 1, replication: Replication::Asynchronous };
    let cluster = Cluster::start(&options).unwrap();
    let (old, new) = (cluster.primary(), &cluster.standbys()[0]);
    let url = format!(
        "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres?target_session_attrs=read-write",
        old.port(),
        new.port()
    );
    let port = "SELECT inet_server_port()";
    let is_new = |row: &tokio_postgres::Row| row.get::<_, i32>(0) == i32::from(new.port());
    let plain = plain(&url, "replaced", 1, LONG * 2);
    let pool = Builder::parse(&url).unwrap().build().unwrap();
    assert!(!is_new(&pool.write().await.unwrap().query_one(port, &[]).await.unwrap()));
    old.freeze().unwrap();
    new.promote().unwrap();
    let start = Instant::now();
    while !async { Ok::<_, tidegate_client::Error>(is_new(&pool.write().await?.query_one(port, &[]).await?)) }
        .await
        .unwrap_or(false)
    {
        assert!(start.elapsed() < Duration::from_secs(15), "the new primary is not found");
    }
    old.thaw().unwrap();

    // THE TRAP
    let row = plain.get().await.unwrap().query_one(port, &[]).await.unwrap();
    assert!(!is_new(&row), "written to the one that was replaced");

    // The new one goes away for a moment: nobody is better than the wrong one.
    new.stop(StopMode::Immediate).unwrap();
    let start = Instant::now();
    while start.elapsed() < LONG {
        let wrote = deadline::within(SHORT, async { pool.write().await?.query_one(port, &[]).await }).await;
        assert!(wrote.is_err(), "written to the one that was replaced");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_peer_is_noticed_in_seconds() {
    // The driver asks an idle peer after two hours, and never gives up on bytes that are not acknowledged.
    let ports = "SELECT inet_client_port()";

    // THE TRAP
    let client = plain(&shared_postgres().url(), "keepalive", 1, LONG);
    let client = client.get().await.unwrap();
    let port: i32 = client.query_one(ports, &[]).await.unwrap().get(0);
    assert!(keepalive_of(u16::try_from(port).unwrap()).await > Duration::from_hours(1));

    let pool = pool(&shared_postgres().url(), "keepalive", 1);
    let mut connection = pool.read().await.unwrap();
    let port: i32 = connection.query_one(ports, &[]).await.unwrap().get(0);
    assert!(keepalive_of(u16::try_from(port).unwrap()).await <= Duration::from_secs(5));
}
