//! Taking a backend from its pool and giving it back: what a transaction costs beside its bytes.
//!
//! Against a real server, since a pool has no other backends; while it runs nothing is sent.

#![expect(clippy::expect_used, reason = "a benchmark that cannot be set up has nothing to say")]

use std::sync::Arc;
use std::time::Instant;

use criterion::{Criterion, criterion_group, criterion_main};
use tidegate::auth::scram::KeyCache;
use tidegate::backend::Connector;
use tidegate::clock;
use tidegate::config::{Config, Sources};
use tidegate::pool::upstream::{Limits, enter_worker};
use tidegate::pool::{Databases, Pool, PoolKey, Upstream};
use tidegate::sql::Lane;
use tidegate::stack::{Checkout, build};
use tidegate_chaos::cluster::{Node, NodeOptions, Programs};
use tidegate_layers::breaker::Outcome;
use tidegate_layers::shed::Ask;
use tower::Service as _;

fn pool(address: String) -> Arc<Pool> {
    let sources = Sources { upstreams: vec![tidegate::config::Password::new(address)], ..Sources::default() };
    let config = Config::load(&sources).expect("flags of our own");
    let connector = Connector {
        address: config.cluster.upstreams.first().expect("one was given").clone(),
        ssl_mode: tidegate::config::SslMode::Disable,
        tls: None,
        keys: Arc::new(KeyCache::new(16).expect("randomness")),
    };
    let upstream =
        Upstream::new(connector, &Limits::of(&config), &Arc::<Databases>::default(), &Arc::default());
    upstream.pool(PoolKey { database: "postgres".into(), user: "postgres".into(), replication: None })
}

fn checkout(pool: &Arc<Pool>) -> Checkout<'_> {
    Checkout { pool, lane: Lane::Read, ask: Ask::default(), now: clock::now(), worker: 0 }
}

fn benches(criterion: &mut Criterion) {
    let programs = Programs::find().expect("PostgreSQL is installed");
    let node = Node::start(&NodeOptions::new(programs)).expect("a throwaway server");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    enter_worker(0);
    let pool = pool(format!("127.0.0.1:{}", node.port()));
    let mut stack = build();

    criterion.bench_function("checkout and give back", |bench| {
        bench.iter_custom(|rounds| {
            runtime.block_on(async {
                // The first one opens the backend.
                stack.call(checkout(&pool)).await.expect("a backend").give_back();
                let start = Instant::now();
                for _ in 0..rounds {
                    stack.call(checkout(&pool)).await.expect("a backend").give_back();
                }
                start.elapsed()
            })
        });
    });

    criterion.bench_function("checkout, guard and give back", |bench| {
        bench.iter_custom(|rounds| {
            runtime.block_on(async {
                stack.call(checkout(&pool)).await.expect("a backend").give_back();
                let guard = &pool.upstream.guard;
                let start = Instant::now();
                for _ in 0..rounds {
                    // The real time is read once per turn of a worker: with one client, when the query comes and when
                    // its answer does.
                    clock::begin_turn();
                    let lease = stack.at_once(checkout(&pool)).expect("an idle backend");
                    let now = clock::now();
                    let running = guard.begin(lease.slot.as_ref(), Lane::Read, now).expect("it is closed");
                    if let Some(slot) = &lease.slot {
                        slot.arm(clock::at_ms(now) + 5_000);
                    }
                    clock::begin_turn();
                    guard.end(lease.slot.as_ref(), running, Outcome::Ok, clock::now());
                    if let Some(slot) = &lease.slot {
                        slot.disarm();
                    }
                    lease.give_back();
                }
                start.elapsed()
            })
        });
    });
}

criterion_group!(group, benches);
criterion_main!(group);
