//! `SELECT 1` through this pool and through bb8 with bb8-postgres, side by side on one server.
//!
//! Two measurements. *In turns*: a few calls of each pool after the other, thousands of times, so that whatever else the
//! machine does hits all alike; their medians are compared. Then criterion, one pool after the other. Both on either
//! runtime of tokio: with one thread nothing but the pool differs; with several, waking threads is most of a call.

#![expect(clippy::expect_used, reason = "a benchmark that cannot run has nothing to say")]

use std::time::{Duration, Instant};

use bb8_postgres::PostgresConnectionManager;
use criterion::{Criterion, criterion_group, criterion_main};
use tidegate_chaos::cluster::{Node, NodeOptions, Programs};
use tidegate_client::{Builder, Pool};
use tokio::runtime::{self, Runtime};
use tokio_postgres::NoTls;

type Plain = bb8::Pool<PostgresConnectionManager<NoTls>>;

/// As its documentation shows it.
async fn plain(url: &str, test_on_check_out: bool) -> Plain {
    let manager = PostgresConnectionManager::new_from_stringlike(url, NoTls).expect("a URL");
    let builder = bb8::Pool::builder().max_size(4).test_on_check_out(test_on_check_out);
    builder.build(manager).await.expect("a pool")
}

/// A connection, `SELECT 1`, and back.
async fn plain_once(pool: &Plain) {
    pool.get().await.expect("a connection").simple_query("SELECT 1").await.expect("a row");
}

async fn ours_once(pool: &Pool) {
    pool.read().await.expect("a connection").simple_query("SELECT 1").await.expect("a row");
}

/// The first is what the others are compared with.
const POOLS: [&str; 3] = ["bb8, test_on_check_out(false)", "tidegate-client", "bb8 as it is by default"];

struct Subjects {
    name: &'static str,
    runtime: Runtime,
    ours: Pool,
    untested: Plain,
    tested: Plain,
}

impl Subjects {
    fn start(name: &'static str, mut builder: runtime::Builder, url: &str) -> Self {
        let runtime = builder.enable_all().build().expect("a runtime");
        let (ours, untested, tested) = runtime.block_on(async {
            let ours = Builder::parse(url).and_then(|builder| builder.size(4).build());
            (ours.expect("a pool"), plain(url, false).await, plain(url, true).await)
        });
        Self { name, runtime, ours, untested, tested }
    }

    async fn once(&self, subject: usize) {
        match subject {
            0 => plain_once(&self.untested).await,
            1 => ours_once(&self.ours).await,
            _ => plain_once(&self.tested).await,
        }
    }

    fn in_turns(&self) {
        const ROUNDS: usize = 5000;
        const CALLS: u32 = 4;
        let mut took: [Vec<Duration>; 3] = Default::default();
        self.runtime.block_on(async {
            for round in 0..ROUNDS * POOLS.len() {
                // The order changes from round to round.
                let subject = (round + round / POOLS.len()) % POOLS.len();
                let start = Instant::now();
                for _ in 0..CALLS {
                    self.once(subject).await;
                }
                took[subject].push(start.elapsed() / CALLS);
            }
        });
        println!("{}, in turns of {CALLS} calls, {ROUNDS} times: quartiles", self.name);
        for took in &mut took {
            took.sort_unstable();
        }
        let at = |subject: usize, quarter: usize| took[subject][took[subject].len() * quarter / 4];
        for (subject, name) in POOLS.iter().enumerate() {
            let [low, median, high] = [1, 2, 3].map(|quarter| at(subject, quarter));
            let ratio = median.as_secs_f64() / at(0, 2).as_secs_f64();
            println!("{name:32} {low:>10.1?} {median:>10.1?} {high:>10.1?}   {ratio:.3}");
        }
    }

    fn bench(&self, criterion: &mut Criterion) {
        let mut group = criterion.benchmark_group(format!("select_1/{}", self.name));
        group.measurement_time(Duration::from_secs(8)).sample_size(100);
        for (subject, name) in POOLS.iter().enumerate() {
            group.bench_function(*name, |bencher| {
                bencher.to_async(&self.runtime).iter(|| self.once(subject));
            });
        }
        group.finish();
    }
}

fn select_1(criterion: &mut Criterion) {
    let node = Node::start(&NodeOptions::new(Programs::find().expect("PostgreSQL"))).expect("a server");
    for (name, builder) in [
        ("current_thread", runtime::Builder::new_current_thread()),
        ("multi_thread", runtime::Builder::new_multi_thread()),
    ] {
        let subjects = Subjects::start(name, builder, &node.url());
        subjects.in_turns();
        subjects.bench(criterion);
    }
}

criterion_group!(benches, select_1);
criterion_main!(benches);
