//! What every exchange costs beside its bytes allocates nothing.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use allocation_counter::measure;
use tidegate::auth::scram::KeyCache;
use tidegate::backend::{Connector, Statement};
use tidegate::config::{Config, Password, Sources, SslMode};
use tidegate::exchange::Facts;
use tidegate::guard::Running;
use tidegate::io::Buffer;
use tidegate::pool::upstream::{Limits, enter_worker};
use tidegate::pool::{Databases, Lease, Pool, PoolKey, Upstream};
use tidegate::session::lanes::{Surroundings, TransactionLane, fingerprint_of};
use tidegate::session::names::Names;
use tidegate::session::notes::Pins;
use tidegate::sql::Lane;
use tidegate::stack::{Checkout, Stack, build};
use tidegate_chaos::cluster::{Node, NodeOptions, Programs};
use tidegate_layers::breaker::Outcome;
use tidegate_layers::shed::Ask;
use tokio::time::Instant;
use tower::Service as _;

fn pool(port: u16) -> Arc<Pool> {
    let url = Password::new(format!("127.0.0.1:{port}"));
    let config = Config::load(&Sources { upstreams: vec![url], ..Sources::default() }).unwrap();
    let connector = Connector {
        address: config.cluster.upstreams.first().unwrap().clone(),
        ssl_mode: SslMode::Disable,
        tls: None,
        keys: Arc::new(KeyCache::new(4).unwrap()),
    };
    let upstream =
        Upstream::new(connector, &Limits::of(&config), &Arc::<Databases>::default(), &Arc::default());
    upstream.pool(PoolKey { database: "postgres".into(), user: "postgres".into(), replication: None })
}

fn checkout(pool: &Arc<Pool>, lane: Lane) -> Checkout<'_> {
    Checkout { pool, lane, ask: Ask::default(), now: Instant::now(), worker: 0 }
}

/// The idle backend, in the way of sessions and in that of all others.
fn taken(stack: &mut Stack, pool: &Arc<Pool>, lane: Lane) -> Lease {
    stack.at_once(checkout(pool, lane)).unwrap().give_back();
    let mut checkout = pin!(stack.call(checkout(pool, lane)));
    match checkout.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(lease) => lease.unwrap(),
        Poll::Pending => panic!("the backend was not idle"),
    }
}

/// The lane of a statement outside of a transaction.
fn lane_of(facts: &Facts, text: &[u8], pool: &Arc<Pool>) -> Lane {
    let surroundings =
        Surroundings { pool, learned: &pool.upstream.guard.learned, asked: None, pins: Pins::NONE };
    TransactionLane::default().next(facts, surroundings, || fingerprint_of(text))
}

/// What a simple query does.
fn simple(pool: &Arc<Pool>) -> Lane {
    let text: &[u8] = b"UPDATE accounts SET balance = balance + 1 WHERE id = 42";
    lane_of(&Facts::of(text), text, pool)
}

/// Everything that is done for one exchange beside carrying its bytes.
fn exchange(stack: &mut Stack, pool: &Arc<Pool>, lane: Lane) {
    let mut lease = taken(stack, pool, lane);
    let guard = &pool.upstream.guard;
    let now = Instant::now();
    let running: Running = guard.begin(lease.slot.as_ref(), lane, now).unwrap();
    if let Some(slot) = &lease.slot {
        slot.arm(tidegate::clock::at_ms(now) + 5_000);
    }
    let _ = guard.end(lease.slot.as_ref(), running, Outcome::Ok, Instant::now());
    lease.fared_well();
    lease.give_back();
}

#[test]
fn sorting_checkout_and_guard_of_an_exchange_allocate_nothing() {
    // At hundreds of thousands of exchanges per second the allocator would cost more than all the rest.
    let node = Node::start(&NodeOptions::new(Programs::find().unwrap())).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    enter_worker(0);
    let pool = pool(node.port());
    let mut stack = build();
    let counted = runtime.block_on(async {
        stack.call(checkout(&pool, Lane::Write)).await.unwrap().give_back();
        let prepared = Statement::intern(b"SELECT balance FROM accounts WHERE id = $1\0\0\0", || {
            Facts::of(b"SELECT balance FROM accounts WHERE id = $1")
        });
        let mut exchanges = |count| {
            for _ in 0..count {
                let read = lane_of(&prepared.facts, prepared.text(), &pool);
                exchange(&mut stack, &pool, read);
                let write = simple(&pool);
                exchange(&mut stack, &pool, write);
                assert_eq!((read, write), (Lane::Read, Lane::Write));
            }
        };
        exchanges(10);
        measure(|| exchanges(1000))
    });

    assert_eq!(counted.count_total, 0);
}

#[test]
fn an_unnamed_statement_takes_the_memory_of_the_one_before() {
    // Drivers that do not prepare parse one for each query.
    let texts: [&[u8]; 2] =
        [b"UPDATE accounts SET balance = 1 WHERE id = $1", b"DELETE FROM accounts WHERE id = $1"];
    let mut names = Names::of_session(1);
    let mut parses = |count| {
        for _ in 0..count {
            for text in texts {
                names.set_unnamed(text, Facts::of(text));
                names.unnamed_answered();
                names.set_unnamed_plain(b"SELECT 1");
            }
        }
    };
    parses(10);
    let counted = measure(|| parses(100));

    assert_eq!(counted.count_total, 0);
}

#[test]
fn buffers_of_hundreds_of_sessions_that_wait_are_used_again() {
    // Each that is not has to be cleared, which costs more than the query that it is for.
    let lend = || drop((0..500).map(|_| Buffer::lend()).collect::<Vec<_>>());
    lend();
    let counted = measure(lend);

    // The list that they stand in.
    assert_eq!(counted.count_total, 1);
}
