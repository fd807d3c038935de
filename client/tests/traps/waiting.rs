//! Who waits, for how long, and who is refused.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use futures_util::future::join_all;
use tidegate_client::{ErrorKind, Outcome};
use tokio::time::{Instant, timeout};

use crate::support::{Relay, is_quiet, own_postgres, pool, shared_postgres, wait_until};
use crate::{LONG, SHORT, plain};

/// Whether a future is ready when it is polled for the first time.
fn is_ready_at_once<F: Future>(future: F) -> bool {
    matches!(pin!(future).poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(_))
}

#[tokio::test]
async fn who_waits_is_served_before_who_comes_later() {
    // bb8 wakes a waiter, and a newcomer takes the connection before it has run: the beaten one goes to the tail.
    let url = shared_postgres().url();

    // THE TRAP
    let plain = plain(&url, "fair_plain", 1, LONG);
    let held = plain.get().await.unwrap();
    let mut waiting = pin!(plain.get());
    assert!(timeout(SHORT, waiting.as_mut()).await.is_err());
    drop(held);
    // Its check on checkout takes a round trip; what counts is that it holds the connection by now.
    let mut newcomer = pin!(plain.get());
    assert!(newcomer.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert_eq!(plain.state().idle_connections, 0, "taken by the newcomer");
    assert!(timeout(SHORT, waiting).await.is_err(), "the waiter waits on");

    let pool = pool(&url, "fair", 1);
    let held = pool.read().await.unwrap();
    let mut waiting = pin!(pool.read());
    assert!(timeout(SHORT / 2, waiting.as_mut()).await.is_err());
    drop(held);
    assert!(!is_ready_at_once(pool.read()), "a newcomer took what was meant for a waiter");
    timeout(SHORT, waiting).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_at_a_server_that_hangs_is_refused_and_not_piled_up() {
    // The driver's channel to a connection has no bound, nor has bb8's queue: a stall fills the memory.
    const CROWD: usize = 2000;
    let node = own_postgres();
    let plain = plain(&node.url(), "crowd_plain", 1, LONG * 5);
    let pool = pool(&node.url(), "crowd", 2);
    let client = plain.get().await.unwrap();
    drop(pool.read().await.unwrap());
    node.freeze().unwrap();

    // THE TRAP
    let piled_up = join_all((0..CROWD).map(|_| client.simple_query("SELECT 1")));
    assert!(timeout(LONG, piled_up).await.is_err(), "all of them are queued, none is refused");
    let waiting = join_all((0..CROWD).map(|_| plain.get()));
    assert!(timeout(LONG, waiting).await.is_err(), "nor is any of these");

    let start = Instant::now();
    let answers = join_all((0..CROWD).map(async |_| pool.read().await?.simple_query("SELECT 1").await)).await;
    assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
    let is_refusal = |error: &&tidegate_client::Error| {
        matches!(error.kind(), ErrorKind::Overloaded | ErrorKind::BreakerOpen)
            && error.outcome() == Outcome::NotSent
    };
    let refused = answers.iter().filter_map(|answer| answer.as_ref().err()).filter(is_refusal).count();
    assert!(refused > CROWD / 2, "{refused} refused");
    assert!(answers.iter().all(Result::is_err));
    node.thaw().unwrap();
    wait_until("quiet", || is_quiet(&pool)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkout_costs_no_round_trip() {
    // bb8-postgres asks the server at each checkout whether it is there, also if it has just answered.
    const CALLS: usize = 20;
    let relay = Relay::to(shared_postgres().port()).await;

    // THE TRAP
    let plain = plain(&relay.url(), "trip_plain", 1, LONG);
    drop(plain.get().await.unwrap());
    let before = relay.sent();
    for _ in 0..CALLS {
        plain.get().await.unwrap().simple_query("SELECT 1").await.unwrap();
    }
    assert_eq!(relay.sent() - before, CALLS * 2);

    let pool = pool(&relay.url(), "trip", 1);
    drop(pool.read().await.unwrap());
    let before = relay.sent();
    for _ in 0..CALLS {
        pool.read().await.unwrap().simple_query("SELECT 1").await.unwrap();
    }
    // The pool's own connections may say something, too.
    assert!(relay.sent() - before < CALLS * 3 / 2, "{}", relay.sent() - before);
}
