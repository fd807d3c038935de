//! An axum service with two hundred users, before, during and after a stall of its primary's commits.
//!
//! Used with the pool straight at PostgreSQL, and with a sidecar in between.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::routing::{get, post};
use tidegate_chaos::cluster::Cluster;
use tidegate_client::http::ResilienceLayer;
use tidegate_client::{Builder, Error, Lane, Pool, Timeouts, TxOptions};
use tokio::time::{Instant, sleep, sleep_until};
use tower::ServiceExt;

pub(crate) const SIZE: usize = 20;
const WRITERS: usize = 150;
const READERS: usize = 50;
const CAP: Duration = Duration::from_secs(2);

/// When the standby that commits wait for freezes, thaws, and when the users go.
const FREEZE: u64 = 2000;
const THAW: u64 = 7000;
const END: u64 = 12_000;

/// The pool of such a service.
pub(crate) fn pool(url: &str) -> Pool {
    let timeouts = Timeouts { read: CAP, write: CAP, commit: CAP, ..Timeouts::default() };
    let builder = Builder::parse(&format!("{url}?application_name=stall")).unwrap();
    builder.size(SIZE).timeouts(timeouts).build().unwrap()
}

async fn write(State(pool): State<Pool>) -> Result<String, Error> {
    let write = async |mut tx: tidegate_client::Transaction| {
        tx.execute("INSERT INTO t (v) VALUES ('order')", &[]).await
    };
    pool.transaction(TxOptions::write(), write).await.into_result().map(|rows: u64| rows.to_string())
}

async fn read(State(pool): State<Pool>) -> Result<String, Error> {
    let row = pool.read().await?.query_one("SELECT 1", &[]).await?;
    Ok(row.get::<_, i32>(0).to_string())
}

#[derive(Debug, Clone, Copy)]
struct Answer {
    started: Instant,
    took: Duration,
    status: StatusCode,
    write: bool,
}

/// What the users saw.
#[derive(Default)]
struct Seen {
    answers: Mutex<Vec<Answer>>,
    in_flight: AtomicUsize,
}

/// One user: a request, a pause, a request.
async fn user(router: Router, write: bool, until: Instant, seen: Arc<Seen>) {
    while Instant::now() < until {
        let (method, path) = if write { ("POST", "/orders") } else { ("GET", "/orders") };
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let started = Instant::now();
        seen.in_flight.fetch_add(1, Ordering::Relaxed);
        let status = router.clone().oneshot(request).await.unwrap().status();
        seen.in_flight.fetch_sub(1, Ordering::Relaxed);
        seen.answers.lock().unwrap().push(Answer { started, took: started.elapsed(), status, write });
        sleep(Duration::from_millis(500)).await;
    }
}

/// How late a task of this machine runs at worst now: what is beyond that is ours.
async fn lateness(until: Instant) -> Duration {
    const STEP: Duration = Duration::from_millis(5);
    let mut worst = Duration::ZERO;
    while Instant::now() < until {
        let due = Instant::now() + STEP;
        sleep(STEP).await;
        worst = worst.max(due.elapsed());
    }
    worst
}

/// The most requests that stay under way, once those are answered that the stall caught. Refused ones come in waves, when
/// it is time to try again: each is there for a few milliseconds, and what counts is what a wave leaves behind.
async fn crowd(seen: &Seen, from: Instant, until: Instant) -> usize {
    const LOOK: Duration = Duration::from_millis(5);
    const LOOKS: usize = 6;
    sleep_until(from).await;
    let mut most = 0;
    while Instant::now() < until {
        let mut least = usize::MAX;
        for _ in 0..LOOKS {
            least = least.min(seen.in_flight.load(Ordering::Relaxed));
            sleep(LOOK).await;
        }
        most = most.max(least);
    }
    most
}

fn p99(took: impl Iterator<Item = Duration>) -> Duration {
    let mut took: Vec<_> = took.collect();
    took.sort_unstable();
    took.get(took.len() * 99 / 100).copied().unwrap_or_default()
}

/// When what happened.
struct Times {
    froze: Instant,
    opened: Instant,
    healed: Instant,
}

/// Freezes the standby, waits until writes are refused, and thaws it.
async fn stall(pool: &Pool, cluster: &Arc<Cluster>, at: impl Fn(u64) -> Instant) -> Times {
    let standby = || Arc::clone(&cluster.standbys()[0]);
    sleep_until(at(FREEZE)).await;
    let node = standby();
    tokio::task::spawn_blocking(move || node.freeze().unwrap()).await.unwrap();
    let froze = Instant::now();
    while pool.refusal(Lane::Write).is_none() {
        assert!(froze.elapsed() < CAP * 2, "writes are let through still: {:?}", pool.status());
        sleep(Duration::from_millis(5)).await;
    }
    let opened = Instant::now();
    sleep_until(at(THAW)).await;
    let healed = Instant::now();
    let node = standby();
    tokio::task::spawn_blocking(move || node.thaw().unwrap()).await.unwrap();
    Times { froze, opened, healed }
}

/// Runs the service through a stall; panics where it does not keep what is promised. `during` is called in the middle.
/// `refused_within` is when writes must be refused at the latest.
pub(crate) async fn assert_that_a_stall_of_writes_is_not_one_of_the_service(
    pool: &Pool,
    cluster: &Arc<Cluster>,
    refused_within: Duration,
    during: impl FnOnce() + Send + 'static,
) {
    let router = Router::new()
        .route("/orders", post(write).merge(get(read)))
        .layer(ResilienceLayer::new(pool, CAP))
        .with_state(pool.clone());
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let seen = Arc::new(Seen::default());
    let noise = tokio::spawn(lateness(at(END)));
    let users: Vec<_> = (0..WRITERS + READERS)
        .map(|number| tokio::spawn(user(router.clone(), number < WRITERS, at(END), Arc::clone(&seen))))
        .collect();
    let look = async {
        sleep_until(at(THAW - 500)).await;
        tokio::task::spawn_blocking(during).await.unwrap();
    };
    // From when the last of those is answered that were sent before the lane was shut.
    let caught = at(FREEZE + 1600) + CAP + Duration::from_millis(500);
    let (times, (), most) = tokio::join!(stall(pool, cluster, at), look, crowd(&seen, caught, at(THAW)));
    for user in users {
        user.await.unwrap();
    }
    let answers = seen.answers.lock().unwrap().clone();
    let noise = noise.await.unwrap();
    let refused_after = times.opened - times.froze;
    assert!(refused_after <= refused_within + noise, "refused after {refused_after:?}");
    judge(&answers, &times, most, noise);
}

fn judge(answers: &[Answer], times: &Times, most: usize, noise: Duration) {
    let Times { froze, opened, healed } = *times;
    let reads: Vec<_> = answers.iter().filter(|answer| !answer.write).collect();
    let writes: Vec<_> = answers.iter().filter(|answer| answer.write).collect();
    let refused: Vec<_> = writes
        .iter()
        .filter(|answer| answer.started > opened && answer.started < healed)
        .filter(|answer| answer.status == StatusCode::SERVICE_UNAVAILABLE)
        .collect();
    let slowest = writes.iter().map(|answer| answer.took).max().unwrap();
    let back = writes.iter().filter(|answer| answer.started > healed && answer.status.is_success());
    let back = back.map(|answer| answer.started + answer.took - healed).min().unwrap();
    let stalled = reads.iter().filter(|answer| answer.started > froze && answer.started < healed);
    let read_p99 = p99(stalled.map(|answer| answer.took));
    let refused_p99 = p99(refused.iter().map(|answer| answer.took));
    println!(
        "refused after {:?}; {} refusals, p99 {refused_p99:?}; at most {most} requests stay under way; slowest write \
         {slowest:?}; {} reads, p99 {read_p99:?}; first write {back:?} after the heal; lateness of the machine {noise:?}",
        opened - froze,
        refused.len(),
        reads.len(),
    );

    assert!(slowest <= CAP + Duration::from_millis(50) + noise, "a write took {slowest:?}");
    let failed = reads.iter().find(|answer| !answer.status.is_success());
    assert!(
        failed.is_none(),
        "a read failed, {:?} after the stall began: {failed:?}",
        failed.map(|it| it.started - froze)
    );
    assert!(read_p99 <= Duration::from_millis(50) + noise, "reads took {read_p99:?}");
    assert!(refused.len() > WRITERS, "only {} refusals", refused.len());
    assert!(refused_p99 <= Duration::from_millis(10) + noise, "refusals took {refused_p99:?}");
    assert!(most <= READERS + SIZE, "{most} requests stay under way");
    assert!(back <= Duration::from_secs(2) + noise, "writes came back after {back:?}");
    let late = writes.iter().filter(|answer| answer.started > healed + Duration::from_millis(3500));
    assert!(
        late.clone().count() > 0 && late.clone().all(|answer| answer.status.is_success()),
        "not recovered"
    );
}
