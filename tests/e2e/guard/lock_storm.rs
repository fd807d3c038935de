//! Many writers want one row that somebody holds. That is the application's doing, not the database's: the row's
//! writers get their deadlines, the others notice nothing, and the breaker stays shut.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tidegate_chaos::cluster::Node;
use tidegate_tests::{Problem, ScriptedApp};
use tokio::task::{JoinSet, block_in_place};
use tokio::time::sleep;

use super::{Op, Peak, Watch, at_deadline, at_most, complete, durations, guarded, kinds, percentile};
use crate::rig::{own_postgres, run, value};

const DEADLINE: Duration = Duration::from_secs(2);
/// Long enough for a third round of deadlines.
const STORM: Duration = Duration::from_secs(7);

/// What the sessions of one storm were told.
struct Storm {
    holder: String,
    hot: Vec<Op>,
    elsewhere: Vec<Op>,
    reads: Vec<Op>,
    backends: u64,
}

/// How a statement is run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Itself,
    Transaction,
}

/// Runs one statement again and again until the end.
async fn repeat(address: SocketAddr, sql: String, by: By, pause: Duration, end: Instant) -> Vec<Op> {
    let mut app = ScriptedApp::session(address, "postgres", "postgres").await.0;
    let mut ops = Vec::new();
    while Instant::now() < end {
        if by == By::Transaction {
            run(&mut app, "BEGIN").await;
        }
        let begin = Instant::now();
        let problem = app.query(&sql).await.error();
        ops.push(Op { id: 0, begin, end: Instant::now(), problem });
        if by == By::Transaction {
            run(&mut app, "ROLLBACK").await;
        }
        sleep(pause).await;
    }
    ops
}

/// Opens the backends beforehand: opening them all takes longer than a statement may wait.
async fn warm(address: SocketAddr, backends: usize) {
    let mut tasks = JoinSet::new();
    for _ in 0..backends {
        tasks.spawn(async move {
            let mut app = ScriptedApp::session(address, "postgres", "postgres").await.0;
            // Until all have one there are refusals.
            while app.query("SELECT pg_sleep(1)").await.error().is_some() {}
        });
    }
    tasks.join_all().await;
}

async fn storm(node: &Node, pool: usize, hot_by: By) -> Storm {
    block_in_place(|| node.sql("CREATE TABLE rows AS SELECT id, 0 AS n FROM generate_series(0, 99) id"))
        .unwrap();
    block_in_place(|| node.sql("CREATE UNIQUE INDEX ON rows (id)")).unwrap();
    let sections = format!(
        "[pool]\nsize = {pool}\nmax_per_upstream = 90\n[timeouts]\nwrite = \"2s\"\ncommit = \"2s\"\n"
    );
    let proxy = guarded(node, &sections).await;
    let direct = std::net::SocketAddr::from(([127, 0, 0, 1], node.port()));
    let mut holder = ScriptedApp::session(direct, "postgres", "postgres").await.0;
    run(&mut holder, "BEGIN").await;
    run(&mut holder, "UPDATE rows SET n = n + 1 WHERE id = 0").await;
    let pid = value(&mut holder, "SELECT pg_backend_pid()").await;

    warm(proxy.address(), pool.min(45)).await;
    let peak = Peak::watch(node).await;
    let begun = Instant::now();
    let end = begun + STORM;
    let group = |count: u32, sql: fn(u32) -> String, by: By, pause_ms: u64| {
        let mut tasks = JoinSet::new();
        for number in 0..count {
            let pause = Duration::from_millis(pause_ms);
            tasks.spawn(repeat(proxy.address(), sql(number), by, pause, end));
        }
        tasks
    };
    let hot = group(30, |_| "UPDATE rows SET n = n + 1 WHERE id = 0".to_owned(), hot_by, 50);
    let elsewhere =
        group(10, |number| format!("UPDATE rows SET n = n + 1 WHERE id = {}", number + 1), By::Itself, 100);
    let reads = group(5, |_| "SELECT count(*) FROM rows".to_owned(), By::Itself, 100);
    let of = async |tasks: JoinSet<Vec<Op>>| tasks.join_all().await.concat();
    let (hot, elsewhere, reads) = (of(hot).await, of(elsewhere).await, of(reads).await);
    let backends = peak.end();
    run(&mut holder, "ROLLBACK").await;

    println!("hot: {:?}\nelsewhere: {:?}\nreads: {:?}", kinds(&hot), kinds(&elsewhere), kinds(&reads));
    let shed = hot.iter().chain(&elsewhere).filter(|op| op.is("53300"));
    let shed: Vec<u128> = shed.map(|op| (op.end - begun).as_millis()).collect();
    println!("{backends} backends at most; writes were shed at (ms) {shed:?}");
    let n = Watch::new(node).await.value("SELECT n FROM rows WHERE id = 0").await;
    assert_eq!(n, "0", "writes that were told that they failed are there");
    Storm { holder: pid, hot, elsewhere, reads, backends }
}

/// Whoever is stuck is told so at its deadline, with the process that it waits for.
fn told_of_the_lock(storm: &Storm) {
    let stuck: Vec<(&Problem, Duration)> = storm
        .hot
        .iter()
        .filter(|op| op.is("57014"))
        .filter_map(|op| op.problem.as_ref().map(|problem| (problem, op.took())))
        .collect();
    assert!(!stuck.is_empty(), "nobody reached a deadline");
    for (problem, _) in &stuck {
        complete(problem);
        assert_eq!(problem.detail_of("reason"), Some("write_timeout"), "{problem:?}");
        assert_eq!(problem.detail_of("cause"), Some("lock"), "{problem:?}");
        let blockers = problem.detail_of("blocked_by").unwrap_or_default();
        let all_pids = blockers.split(',').all(|pid| pid.parse::<u32>().is_ok());
        assert!(all_pids, "blocked_by in {problem:?}");
    }
    // The others of the queue wait for the first of it, which waits for the holder.
    let named = stuck.iter().filter(|(problem, _)| {
        problem.detail_of("blocked_by").unwrap_or_default().split(',').any(|pid| pid == storm.holder)
    });
    assert!(named.count() > 0, "nobody was told of the process {} that holds the row", storm.holder);
}

fn nothing_tripped(storm: &Storm) {
    for op in storm.hot.iter().chain(&storm.elsewhere).chain(&storm.reads) {
        assert!(!op.is("53000"), "the breaker opened: {op:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_storm_never_opens_the_breaker_and_others_notice_nothing() {
    // Thirty statements are stuck at the same time: by their number alone this looks like an outage.
    let node = block_in_place(|| own_postgres(&[]));

    let storm = storm(&node, 64, By::Itself).await;

    nothing_tripped(&storm);
    told_of_the_lock(&storm);
    for op in storm.hot.iter().filter(|op| op.is("57014")) {
        at_deadline("stuck write", op.took(), DEADLINE);
    }
    for op in storm.elsewhere.iter().chain(&storm.reads) {
        assert!(op.ok(), "somebody else noticed: {op:?}");
    }
    let p99 = percentile(durations(storm.elsewhere.iter().chain(&storm.reads), |_| true), 99);
    at_most("p99 of the others", p99, Duration::from_millis(100));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_storm_that_fills_the_write_lane_leaves_reads_and_breaker_alone() {
    // Only 14 of the 30 fit into the lane; what waits is shed. Still nothing is wrong with the database.
    let node = block_in_place(|| own_postgres(&[]));

    let storm = storm(&node, 20, By::Itself).await;

    nothing_tripped(&storm);
    told_of_the_lock(&storm);
    for op in &storm.reads {
        assert!(op.ok(), "a read noticed: {op:?}");
    }
    for op in storm.hot.iter().chain(&storm.elsewhere) {
        assert!(op.ok() || op.is("57014") || op.is("53300"), "{op:?}");
    }
    assert!(storm.backends <= 20 + super::CONTROL_CONNECTIONS + 1, "{} backends", storm.backends);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_storm_of_transactions_leaves_room_in_the_lane_for_other_writes() {
    // What waits for the row is known by its text, and a quarter of the lane is not for it. Behind the first write of a
    // transaction stands a question of ours, which hid that it was alone.
    let node = block_in_place(|| own_postgres(&[]));

    let storm = storm(&node, 20, By::Transaction).await;

    nothing_tripped(&storm);
    told_of_the_lock(&storm);
    let begun = storm.hot.iter().map(|op| op.begin).min().unwrap();
    let late = |op: &&Op| op.begin > begun + DEADLINE;
    for op in storm.elsewhere.iter().filter(late) {
        assert!(op.ok(), "another write noticed: {op:?}");
    }
}
