//! More work than there is capacity for: what is done is done in time, the rest is refused at once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tidegate_tests::{Frames, ScriptedApp};
use tokio::task::{JoinSet, block_in_place};
use tokio::time::MissedTickBehavior;

use super::{
    ANSWER_SLACK, NOISE, Op, Watch, at_most, complete, durations, guarded, kinds, percentile, refused,
    session, timed,
};
use crate::rig::own_postgres;

const QUEUE: Duration = Duration::from_millis(500);
/// Twenty milliseconds of a backend each.
const WORK: &str = "SELECT pg_sleep(0.02)";
const SECTIONS: &str = "[pool]\nsize = 4\n[timeouts]\nqueue = \"500ms\"\n";

/// Sessions that work until told to stop; with a period each tries once in it, without one at once again.
struct Burst {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<Vec<Op>>,
    begin: Instant,
}

impl Burst {
    async fn start(address: SocketAddr, sessions: u32, period: Option<Duration>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for number in 0..sessions {
            let app = ScriptedApp::session(address, "postgres", "postgres").await.0;
            let delay = period.map_or(Duration::ZERO, |period| period * number / sessions);
            tasks.spawn(work(app, Arc::clone(&stop), delay, period));
        }
        Self { stop, tasks, begin: Instant::now() }
    }

    /// All operations, and the time that they had.
    async fn end_after(self, span: Duration) -> (Vec<Op>, Duration) {
        tokio::time::sleep(span).await;
        self.stop.store(true, Ordering::Relaxed);
        let lasted = self.begin.elapsed();
        (self.tasks.join_all().await.concat(), lasted)
    }
}

async fn work(
    mut app: ScriptedApp,
    stop: Arc<AtomicBool>,
    delay: Duration,
    period: Option<Duration>,
) -> Vec<Op> {
    tokio::time::sleep(delay).await;
    let mut ticks = tokio::time::interval(period.unwrap_or(Duration::from_nanos(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut ops = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let begin = Instant::now();
        let problem = app.query(WORK).await.error();
        ops.push(Op { id: 0, begin, end: Instant::now(), problem });
    }
    ops
}

fn per_second(ops: &[Op], span: Duration) -> f64 {
    let count = u32::try_from(ops.iter().filter(|op| op.ok()).count()).unwrap();
    f64::from(count) / span.as_secs_f64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_times_too_much_work_costs_no_goodput_and_is_forgotten_when_it_ends() {
    // A plain queue serves only what waited too long already; a retry storm then keeps it so for ever.
    let node = block_in_place(|| own_postgres(&[]));
    let proxy = guarded(&node, SECTIONS).await;
    let calm = Burst::start(proxy.address(), 4, None).await;
    let (ops, span) = calm.end_after(Duration::from_secs(2)).await;
    let capacity = per_second(&ops, span);
    assert!(ops.iter().all(Op::ok), "{:?}", kinds(&ops));

    // Each of 150 sessions asks so often that all together want three times the capacity.
    let sessions = 150;
    let period = Duration::from_secs_f64(f64::from(sessions) / (3.0 * capacity));
    let burst = Burst::start(proxy.address(), sessions, Some(period)).await;
    let (ops, span) = burst.end_after(Duration::from_secs(4)).await;
    let over = Instant::now();

    let goodput = per_second(&ops, span);
    println!("capacity {capacity:.0}/s, goodput {goodput:.0}/s, {:?}", kinds(&ops));
    let slowest = |ok: bool| durations(&ops, |op| op.ok() == ok).into_iter().max().unwrap_or_default();
    println!(
        "slowest success {:?}, slowest refusal {:?}, median refusal {:?}",
        slowest(true),
        slowest(false),
        percentile(durations(&ops, |op| !op.ok()), 50)
    );
    assert!(goodput >= 0.8 * capacity, "goodput {goodput:.0}/s of {capacity:.0}/s");
    let bound = QUEUE + ANSWER_SLACK * NOISE;
    assert!(slowest(true) <= bound, "a statement waited and ran for {:?}", slowest(true));
    assert!(slowest(false) <= bound, "a statement waited {:?} to be refused", slowest(false));
    let problems: Vec<_> = ops.iter().filter_map(|op| op.problem.as_ref()).collect();
    assert!(problems.len() > 50, "{} refusals at three times the capacity", problems.len());
    for problem in problems {
        assert_eq!(problem.code(), "53300", "{problem:?}");
        assert_eq!(problem.detail_of("lane"), Some("read"), "{problem:?}");
        complete(problem);
    }
    back_to_normal(proxy.address(), capacity, over).await;
}

/// At half of the capacity nothing is refused any more, and nothing waits, within ten seconds.
async fn back_to_normal(address: SocketAddr, capacity: f64, over: Instant) {
    loop {
        let period = Duration::from_secs_f64(4.0 / (0.5 * capacity));
        let light = Burst::start(address, 4, Some(period)).await;
        let begin = Instant::now();
        let (ops, _) = light.end_after(Duration::from_secs(1)).await;
        let p99 = percentile(durations(&ops, |_| true), 99);
        if ops.iter().all(Op::ok) && p99 < Duration::from_millis(100) {
            at_most("back to normal", begin - over, Duration::from_secs(10));
            return;
        }
        assert!(over.elapsed() < Duration::from_secs(20), "still {:?}, p99 {p99:?}", kinds(&ops));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_at_once() {
    // What cannot be served in time had better know now. The queue is bounded by number too.
    let node = block_in_place(|| own_postgres(&[]));
    let sections = "[pool]\nsize = 1\n[timeouts]\nqueue = \"4s\"\nwrite = \"4s\"\ncommit = \"4s\"\n\
                    [shed]\nqueue_max = 3\ncodel_target = \"4s\"\ncodel_interval = \"10s\"\n";
    let proxy = guarded(&node, sections).await;
    let mut busy = session(&proxy).await;
    busy.send(Frames::new().query("SELECT pg_sleep(3)")).await;
    let running = "SELECT count(*) = 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(3)'";
    Watch::new(&node).await.wait("the backend is busy", running).await;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let mut app = session(&proxy).await;
        app.send(Frames::new().query("SELECT 1")).await;
        waiting.push(app);
    }
    let since = Instant::now();
    let mut queued = 0.0;
    while queued < 2.5 && since.elapsed() < Duration::from_secs(2) {
        queued = proxy.metrics().await.get("tidegate_pool_waiting", &[]).unwrap_or(0.0);
    }
    assert!(queued > 2.5, "queue_max is three, but {queued} wait: the third was refused");

    let mut app = session(&proxy).await;
    let (reply, took) = timed(&mut app, "SELECT 1").await;

    let details = [("reason", "queue_full"), ("lane", "read"), ("outcome", "not_sent")];
    refused(&reply, "53300", &details);
    assert!(took < Duration::from_millis(100), "{took:?}");
    assert_eq!(busy.reply().await.error(), None);
    for mut app in waiting {
        assert_eq!(app.reply().await.error(), None, "those that were let in are served");
    }
    assert_eq!(app.query("SELECT 1").await.error(), None);
}
