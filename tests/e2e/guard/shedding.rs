//! More work than there is capacity for: what is done is done in time, the rest is refused at once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tidegate_tests::{Frames, Proxy, ScriptedApp};
use tokio::task::{JoinSet, block_in_place};
use tokio::time::{MissedTickBehavior, sleep};

use super::{Op, Watch, at_most, complete, durations, guarded, kinds, percentile, refused, session, timed};
use crate::rig::{own_postgres, run};

const QUEUE: Duration = Duration::from_millis(500);
const POOL: u32 = 8;
/// Forty milliseconds of a backend on average, and next to none of a processor: the pool is what there is too little of.
/// Were all of one length, the backends would soon be free all at once, and never in between.
const WORK: &str = "SELECT pg_sleep(0.03 + 0.02 * random())";
const LONGEST: Duration = Duration::from_millis(50);
const SECTIONS: &str = "[pool]\nsize = 8\n[timeouts]\nqueue = \"500ms\"\n";
/// Nobody asks again before its answer: this many are needed to ask for three times what there is, while most wait.
const CROWD: u32 = 400;
/// Of the capacity, that must be left in a burst.
const GOODPUT: f64 = 0.9;

/// Sessions of one priority that work until told to stop.
struct Crowd {
    sessions: Vec<ScriptedApp>,
}

/// A crowd at work. With a rate it asks so often in a second, all sessions together; without one each asks again at
/// once.
struct Working {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<(ScriptedApp, Vec<Op>)>,
    begin: Instant,
}

/// What a crowd has done, and the time that it had.
struct Work {
    ops: Vec<Op>,
    begin: Instant,
    end: Instant,
}

impl Crowd {
    async fn new(address: SocketAddr, sessions: u32, priority: &str) -> Self {
        let mut crowd = Vec::new();
        for _ in 0..sessions {
            let mut app = ScriptedApp::session(address, "postgres", "postgres").await.0;
            run(&mut app, &format!("SET tidegate.priority = '{priority}'")).await;
            crowd.push(app);
        }
        Self { sessions: crowd }
    }

    fn work(&mut self, rate: Option<f64>) -> Working {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        let step = rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(1.0 / rate));
        let period = step * u32::try_from(self.sessions.len()).unwrap();
        for (app, number) in self.sessions.drain(..).zip(0..) {
            tasks.spawn(work(app, Arc::clone(&stop), step * number, period));
        }
        Working { stop, tasks, begin: Instant::now() }
    }

    async fn work_for(&mut self, span: Duration, rate: Option<f64>) -> Work {
        let working = self.work(rate);
        sleep(span).await;
        working.end(self).await
    }
}

impl Working {
    async fn end(self, crowd: &mut Crowd) -> Work {
        let end = Instant::now();
        self.stop.store(true, Ordering::Relaxed);
        let (apps, ops): (Vec<_>, Vec<_>) = self.tasks.join_all().await.into_iter().unzip();
        crowd.sessions = apps;
        Work { ops: ops.concat(), begin: self.begin, end }
    }
}

async fn work(
    mut app: ScriptedApp,
    stop: Arc<AtomicBool>,
    delay: Duration,
    period: Duration,
) -> (ScriptedApp, Vec<Op>) {
    sleep(delay).await;
    let mut ticks = tokio::time::interval(period.max(Duration::from_nanos(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut ops = Vec::new();
    loop {
        ticks.tick().await;
        if stop.load(Ordering::Relaxed) {
            return (app, ops);
        }
        let begin = Instant::now();
        let problem = app.query(WORK).await.error();
        ops.push(Op { id: 0, begin, end: Instant::now(), problem });
    }
}

impl Work {
    /// How many of those that meet the condition ended in a second, as long as it lasted.
    fn per_second(&self, meets: impl Fn(&Op) -> bool) -> f64 {
        let count = self.ops.iter().filter(|op| op.end <= self.end && meets(op)).count();
        f64::from(u32::try_from(count).unwrap()) / (self.end - self.begin).as_secs_f64()
    }

    fn percentile(&self, percent: usize) -> Duration {
        percentile(durations(&self.ops, |_| true), percent)
    }

    fn slowest(&self, ok: bool) -> Duration {
        durations(&self.ops, |op| op.ok() == ok).into_iter().max().unwrap_or_default()
    }

    fn succeeded(&self, who: &str) {
        assert!(self.ops.iter().all(Op::ok), "{who}: {:?}", kinds(&self.ops));
    }
}

/// A burst of three times what there is capacity for, and a little work that matters more, before it and during it.
struct Overload {
    proxy: Proxy,
    /// Of statements in a second.
    capacity: f64,
    bulk: Work,
    favoured: Work,
    favoured_in_quiet: Work,
    over: Instant,
}

impl Overload {
    async fn new(bulk: &str, favoured: &str) -> Self {
        let node = block_in_place(|| own_postgres(&[]));
        let proxy = guarded(&node, SECTIONS).await;
        let capacity = capacity(&proxy).await;
        let mut favoured = Crowd::new(proxy.address(), POOL, favoured).await;
        let mut bulk = Crowd::new(proxy.address(), CROWD, bulk).await;
        let little = Some(0.1 * capacity);
        let favoured_in_quiet = favoured.work_for(Duration::from_secs(3), little).await;

        let (matters, too_much) = (favoured.work(little), bulk.work(Some(3.0 * capacity)));
        sleep(Duration::from_secs(6)).await;
        let bulk = too_much.end(&mut bulk).await;
        let favoured = matters.end(&mut favoured).await;
        let over = bulk.end;

        let overload = Self { proxy, capacity, bulk, favoured, favoured_in_quiet, over };
        overload.print();
        overload.back_to_normal().await;
        drop(node);
        overload
    }

    /// What was done in time.
    fn goodput(&self) -> f64 {
        self.bulk.per_second(Op::ok) + self.favoured.per_second(Op::ok)
    }

    fn print(&self) {
        let (capacity, goodput) = (self.capacity, self.goodput());
        let asked = self.bulk.per_second(|_| true);
        println!("capacity {capacity:.0}/s, goodput {goodput:.0}/s, answers {asked:.0}/s");
        println!("bulk: {:?}", kinds(&self.bulk.ops));
        println!("median refusal: {:?}", percentile(durations(&self.bulk.ops, |op| !op.ok()), 50));
        println!("favoured: {:?}", kinds(&self.favoured.ops));
        println!(
            "favoured: p99 {:?} in quiet, {:?} in the burst",
            self.favoured_in_quiet.percentile(99),
            self.favoured.percentile(99)
        );
    }

    fn goodput_is_kept(&self) {
        let (capacity, goodput) = (self.capacity, self.goodput());
        assert!(goodput >= GOODPUT * capacity, "goodput {goodput:.0}/s of {capacity:.0}/s");
        let asked = self.bulk.per_second(|_| true);
        assert!(asked >= 2.5 * capacity, "only {asked:.0}/s were asked for of {capacity:.0}/s");
    }

    /// Nobody waits longer than allowed, and whoever is refused is told why.
    fn waits_are_bounded(&self) {
        let slowest = |ok| self.bulk.slowest(ok).max(self.favoured.slowest(ok));
        at_most("slowest success", slowest(true), QUEUE + LONGEST);
        at_most("slowest refusal", slowest(false), QUEUE);
        let problems: Vec<_> = self.bulk.ops.iter().filter_map(|op| op.problem.as_ref()).collect();
        assert!(problems.len() > 500, "{} refusals at three times the capacity", problems.len());
        for problem in problems {
            assert_eq!(problem.code(), "53300", "{problem:?}");
            assert_eq!(problem.detail_of("lane"), Some("read"), "{problem:?}");
            complete(problem);
        }
    }

    fn favoured_notices_nothing(&self) {
        self.favoured_in_quiet.succeeded("favoured in quiet");
        self.favoured.succeeded("favoured in the burst");
        let (quiet, burst) = (self.favoured_in_quiet.percentile(99), self.favoured.percentile(99));
        // It waits for the first backend that comes free. The allowance is what the scheduler of a busy machine may add.
        let bound = quiet * 5 / 4 + Duration::from_millis(50);
        assert!(burst <= bound, "favoured work takes {burst:?} at p99, in quiet {quiet:?}");
    }

    /// At half of the capacity nothing is refused any more, and nothing waits, within ten seconds; and all of it is there.
    async fn back_to_normal(&self) {
        let mut light = Crowd::new(self.proxy.address(), POOL, "sheddable").await;
        loop {
            let begin = Instant::now();
            let work = light.work_for(Duration::from_secs(1), Some(0.5 * self.capacity)).await;
            if work.ops.iter().all(Op::ok) && work.percentile(99) < LONGEST + Duration::from_millis(100) {
                at_most("back to normal", begin - self.over, Duration::from_secs(10));
                break;
            }
            let p99 = work.percentile(99);
            assert!(
                self.over.elapsed() < Duration::from_secs(20),
                "still {:?}, p99 {p99:?}",
                kinds(&work.ops)
            );
        }
        let left = capacity(&self.proxy).await;
        println!("capacity afterwards {left:.0}/s");
        assert!(
            left >= GOODPUT * self.capacity,
            "of a capacity of {:.0}/s {left:.0}/s are left",
            self.capacity
        );
    }
}

/// Statements in a second when there is always one that waits for the next backend, and hardly more.
async fn capacity(proxy: &Proxy) -> f64 {
    let mut crowd = Crowd::new(proxy.address(), POOL * 2, "critical").await;
    // Until all backends are open.
    crowd.work_for(Duration::from_secs(1), None).await;
    let work = crowd.work_for(Duration::from_secs(2), None).await;
    work.succeeded("a full house");
    work.per_second(Op::ok)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_times_too_much_work_costs_no_goodput_and_is_forgotten_when_it_ends() {
    // A plain queue serves only what waited too long already; a retry storm then keeps it so for ever.
    let overload = Overload::new("critical", "critical_plus").await;

    overload.goodput_is_kept();
    overload.waits_are_bounded();
    overload.favoured_notices_nothing();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_times_too_much_sheddable_work_harms_no_critical_work() {
    // In one queue for all, what matters would wait behind four hundred statements that do not, or be refused with them.
    let overload = Overload::new("sheddable", "critical").await;

    overload.goodput_is_kept();
    overload.waits_are_bounded();
    overload.favoured_notices_nothing();
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
