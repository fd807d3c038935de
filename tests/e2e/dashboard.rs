//! The page that an on-call engineer opens, in a real browser: what it says in each state, and what it looks like.
//!
//! Screenshots are kept under `CARGO_TARGET_TMPDIR`, in `dashboard/`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tidegate::sql::Lane;
use tidegate::status::history::{Point, Sample};
use tidegate::status::{
    Alerts, Breaker, Event, Incident, LaneState, LaneStatus, Lanes, Level, PoolStatus, Rates, Sessions,
    Status, Tally, Thread, UpstreamStatus, Watchdog, advice,
};
use tidegate::telemetry::admin::page::{PAGE, POLICY};
use tidegate_tests::shared_postgres;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::browser::{Browser, Screen};
use crate::rig::sidecar;

pub(crate) const DESK: Screen = Screen { width: 1280, height: 1200, scheme: "light" };
const NIGHT: Screen = Screen { scheme: "dark", ..DESK };
const PHONE: Screen = Screen { width: 390, height: 844, scheme: "light" };
const PHONE_AT_NIGHT: Screen = Screen { scheme: "dark", ..PHONE };

/// The connection to the sidecar stays open for longer than any test.
const LONG: Duration = Duration::from_mins(10);

fn picture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("dashboard").join(name)
}

/// Opens the page, waits for its state and keeps a picture.
pub(crate) async fn look(
    browser: &mut Browser,
    url: &str,
    screen: Screen,
    connection: &str,
    name: &str,
) -> String {
    browser.open(url, screen).await;
    browser.wait(&format!("document.documentElement.dataset.connection === '{connection}'")).await;
    browser.wait("document.getElementById('host').textContent !== ''").await;
    browser.picture(&picture(name)).await;
    // Neither a phone nor a desk should have to scroll sideways.
    let fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth";
    assert_eq!(browser.value(fits).await, true, "{name} is wider than the screen");
    browser.text().await
}

/// A server that shows the page with a state and a history of the test's own.
struct Stage {
    url: String,
}

impl Stage {
    async fn start(status: &Status, samples: &[Sample], after: After) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let history = serde_json::to_string(samples).unwrap();
        let news = format!("event: status\ndata: {}\n\n", serde_json::to_string(status).unwrap());
        let play = Arc::new(Play { news, history, after, told: AtomicBool::new(false) });
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(perform(stream, Arc::clone(&play)));
            }
        });
        Self { url }
    }
}

/// What the stage says.
struct Play {
    news: String,
    history: String,
    after: After,
    told: AtomicBool,
}

/// What comes after the state was told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    /// The same again each second.
    Steady,
    /// The connection ends, and nobody answers again.
    Gone,
}

async fn perform(mut stream: TcpStream, play: Arc<Play>) {
    let mut request = [0; 4096];
    let length = stream.read(&mut request).await.unwrap_or(0);
    if !request[..length].starts_with(b"GET /events") {
        let _ = stream.write_all(page().as_bytes()).await;
        return;
    }
    if play.told.swap(true, Ordering::Relaxed) && play.after == After::Gone {
        return;
    }
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
    let Play { news, history, after, .. } = &*play;
    let mut text = format!("{head}event: history\ndata: {{\"samples\":{history}}}\n\n{news}");
    while stream.write_all(text.as_bytes()).await.is_ok() && *after == After::Steady {
        tokio::time::sleep(Duration::from_secs(1)).await;
        text.clone_from(news);
    }
}

fn page() -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Security-Policy: {}\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n{}",
        *POLICY,
        PAGE.len(),
        *PAGE
    )
}

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// A number between 0 and 1 that looks like chance and is the same in every run.
fn noise(seed: u64) -> f64 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 31;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    #[expect(clippy::cast_precision_loss, reason = "53 bits of chance")]
    let unit = (x >> 11) as f64 / (1_u64 << 53) as f64;
    unit
}

fn busy_point(seed: u64, load: f64, slow: f64) -> Point {
    let wobble = 0.85 + 0.3 * noise(seed);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and positive")]
    let in_flight = (load / 400.0 * wobble) as u64;
    Point {
        throughput: load * wobble,
        p50_ms: Some(0.5 * slow * wobble),
        p95_ms: Some(1.8 * slow * wobble),
        p99_ms: Some(4.0 * slow * (0.7 + noise(seed + 1))),
        in_flight: Some(in_flight),
        queued: Some(0),
        ..Point::default()
    }
}

/// Ten minutes; `write` says what the write lane does so many seconds before the end.
fn history(write: impl Fn(u64, Point) -> Point) -> Vec<Sample> {
    let end = now_ms();
    let sample = |ago: u64| Sample {
        at_ms: end - ago * 1000,
        sessions: 240,
        read: busy_point(ago * 3, 4200.0, 0.9),
        write: write(ago, busy_point(ago * 7, 900.0, 2.0)),
    };
    (0..600).rev().map(sample).collect()
}

fn serving(lane: Lane, rates: Rates, in_flight: u64) -> LaneStatus {
    LaneStatus {
        phase: "closed".to_owned(),
        order: "auto".to_owned(),
        sentence: advice::sentence(lane, LaneState::Serving, None),
        in_flight: Some(in_flight),
        queued: Some(0),
        oldest_in_flight_ms: Some(3),
        rates,
        since_at_ms: Some(now_ms() - 7_500_000),
        ..LaneStatus::default()
    }
}

fn rates(throughput: f64, p50: f64) -> Rates {
    Rates {
        throughput,
        refusals: 0.0,
        p50_ms: Some(p50),
        p95_ms: Some(p50 * 3.5),
        p99_ms: Some(p50 * 8.0),
        wait_p99_ms: Some(0.1),
    }
}

fn upstream(name: &str, role: &str) -> UpstreamStatus {
    let breaker =
        |lane: &str| Breaker { lane: lane.to_owned(), phase: "closed".to_owned(), ..Breaker::default() };
    UpstreamStatus {
        name: name.to_owned(),
        role: role.to_owned(),
        timeline: Some(7),
        lsn: Some("2A/9C0135B8".to_owned()),
        version: Some("17.6".to_owned()),
        epoch: 3,
        breakers: vec![breaker("read"), breaker("write")],
        probe_read_ms: Some(0.4),
        probe_write_ms: Some(2.1),
        last_write_at_ms: Some(now_ms() - 300),
        backends: 31,
        backends_max: 60,
        ..UpstreamStatus::default()
    }
}

fn event(ago_s: u64, level: Level, what: &str, evidence: &str) -> Event {
    Event {
        at_ms: now_ms() - ago_s * 1000,
        level,
        kind: "breaker".to_owned(),
        what: what.to_owned(),
        upstream: Some("10.0.0.1:5432".to_owned()),
        evidence: (!evidence.is_empty()).then(|| evidence.to_owned()),
        ..Event::default()
    }
}

fn quiet() -> Status {
    let mut standby = upstream("10.0.0.2:5432", "standby");
    (standby.lag_ms, standby.lag_bytes, standby.last_write_at_ms, standby.probe_write_ms) =
        (Some(4), Some(8192), None, None);
    standby.backends = 4;
    let pool = |database: &str, user: &str, leased| PoolStatus {
        upstream: "10.0.0.1:5432".to_owned(),
        database: database.to_owned(),
        user: user.to_owned(),
        idle: 6,
        leased,
        exchanges: 1_234_567,
        ..PoolStatus::default()
    };
    Status {
        version: "0.1.0".to_owned(),
        host: "app-17".to_owned(),
        at_ms: now_ms(),
        uptime_ms: 7_500_000,
        verdict: advice::verdict(&advice::Facts {
            draining: false,
            paused: false,
            states: [LaneState::Serving; 2],
            sentences: ["", ""],
            next: ["", ""],
            stalled: None,
        }),
        lanes: Lanes {
            read: serving(Lane::Read, rates(4213.0, 0.45), 11),
            write: serving(Lane::Write, rates(902.4, 1.1), 3),
        },
        upstreams: vec![upstream("10.0.0.1:5432", "primary"), standby],
        pools: vec![pool("shop", "app", 12), pool("shop", "jobs", 1)],
        sessions: Sessions { now: 240, max: 10_000 },
        events: vec![event(7200, Level::Ok, "10.0.0.1:5432 is the primary (timeline 7).", "")],
        alerts: Some(Alerts { sent_total: 2, ..Alerts::default() }),
        watchdog: Some(Watchdog {
            threads: ["tidegate-worker-0", "tidegate-admin"]
                .map(|name| Thread { name: name.to_owned(), stalled_ms: 3 })
                .to_vec(),
        }),
        ..Status::default()
    }
}

const EVIDENCE: &str =
    "14 commits wait in SyncRep; synchronous_standby_names wants s1, which is not connected";

/// Writes hang since 133 seconds, and are refused.
fn stalled() -> Status {
    let mut status = quiet();
    let lane = &mut status.lanes.write;
    lane.state = LaneState::Refusing;
    "open".clone_into(&mut lane.phase);
    lane.cause = Some("sync_standby".to_owned());
    lane.evidence = Some(EVIDENCE.to_owned());
    lane.since_at_ms = Some(now_ms() - 133_000);
    lane.in_flight = Some(14);
    lane.oldest_in_flight_ms = Some(134_500);
    lane.refused_total = 119_433;
    lane.rates = Rates { refusals: 903.0, ..Rates::default() };
    let cause = Some(tidegate::exchange::Cause::SyncStandby);
    lane.sentence = advice::sentence(Lane::Write, lane.state, cause);
    advice::lane_next(lane.state, cause).clone_into(&mut lane.next);
    status.upstreams[0].zombies = 14;
    status.upstreams[0].last_write_at_ms = Some(now_ms() - 135_000);
    status.upstreams[0].probe_write_ms = None;
    "open".clone_into(&mut status.upstreams[0].breakers[1].phase);
    status.upstreams.truncate(1);
    let lost = UpstreamStatus {
        problem: Some("unreachable".to_owned()),
        lsn: None,
        version: None,
        breakers: Vec::new(),
        backends: 0,
        probe_read_ms: None,
        probe_write_ms: None,
        last_write_at_ms: None,
        ..upstream("10.0.0.2:5432", "standby")
    };
    status.upstreams.push(lost);
    status.refusals =
        vec![Tally { lane: "write".to_owned(), word: "breaker_open".to_owned(), total: 119_433 }];
    status
        .events
        .insert(0, event(134, Level::Warning, "The write lane is suspect.", "3 of 3 writes stuck for 1 s"));
    status.events.insert(0, event(133, Level::Critical, "The breaker of the write lane opened.", EVIDENCE));
    status.alerts = Some(Alerts {
        sent_total: 3,
        open: vec![Incident {
            id: "1".to_owned(),
            summary: "writes are refused: sync_standby".to_owned(),
            since_at_ms: now_ms() - 133_000,
        }],
        ..Alerts::default()
    });
    judge(&mut status);
    status
}

/// Writes come back.
fn recovering() -> Status {
    let mut status = stalled();
    status.upstreams = quiet().upstreams;
    "ramp".clone_into(&mut status.upstreams[0].breakers[1].phase);
    let lane = &mut status.lanes.write;
    lane.state = LaneState::Recovering;
    "ramp".clone_into(&mut lane.phase);
    lane.since_at_ms = Some(now_ms() - 2_000);
    (lane.cause, lane.evidence) = (None, None);
    lane.in_flight = Some(4);
    lane.oldest_in_flight_ms = Some(4);
    lane.rates = Rates { refusals: 410.0, ..rates(380.0, 1.3) };
    lane.sentence = advice::sentence(Lane::Write, lane.state, None);
    advice::lane_next(lane.state, None).clone_into(&mut lane.next);
    status.events.insert(
        0,
        event(2, Level::Ok, "The write lane lets traffic in again.", "3 probes committed in a row"),
    );
    status.alerts = Some(Alerts { sent_total: 4, ..Alerts::default() });
    judge(&mut status);
    status
}

fn judge(status: &mut Status) {
    let Lanes { read, write } = &status.lanes;
    status.verdict = advice::verdict(&advice::Facts {
        draining: false,
        paused: false,
        states: [read.state, write.state],
        sentences: [&read.sentence, &write.sentence],
        next: [&read.next, &write.next],
        stalled: None,
    });
}

/// A write lane that hangs from 134 s before the end until `healed` seconds before it.
fn stall_until(healed: u64) -> impl Fn(u64, Point) -> Point {
    move |ago, point| match ago {
        133..135 => Point {
            state: LaneState::Suspect,
            throughput: 40.0,
            in_flight: Some(14),
            queued: Some(620),
            p50_ms: None,
            p95_ms: None,
            p99_ms: None,
            ..point
        },
        ago if ago < 133 && ago >= healed => Point {
            state: LaneState::Refusing,
            refusals: point.throughput,
            throughput: 0.0,
            in_flight: Some(14),
            p50_ms: None,
            p95_ms: None,
            p99_ms: None,
            ..point
        },
        ago if ago < healed => Point {
            state: LaneState::Recovering,
            throughput: point.throughput * 0.4,
            refusals: point.throughput * 0.5,
            ..point
        },
        _ => point,
    }
}

fn assert_shows(text: &str, wanted: &[&str]) {
    for wanted in wanted {
        assert!(text.contains(wanted), "{wanted:?} is not on the page:\n{text}");
    }
}

#[tokio::test]
async fn in_quiet_times_the_page_says_so() {
    // A page that stays empty, or a script that the policy forbids, would leave the sentence of the file.
    let Some(mut browser) = Browser::start().await else { return };
    let stage = Stage::start(&quiet(), &history(|_, point| point), After::Steady).await;

    look(&mut browser, &stage.url, PHONE, "live", "quiet-phone.png").await;
    look(&mut browser, &stage.url, NIGHT, "live", "quiet-dark.png").await;
    let text = look(&mut browser, &stage.url, DESK, "live", "quiet.png").await;

    assert_shows(
        &text,
        &["All is well: reads and writes are served.", "app-17", "4,213/s", "10.0.0.2:5432", "standby"],
    );
    assert_eq!(browser.value("document.documentElement.dataset.level").await, "ok");
    let label = "document.querySelector('#write svg').getAttribute('aria-label')";
    let label = browser.value(label).await;
    assert!(label.as_str().unwrap().starts_with("Writes, throughput over ten minutes; now "), "{label}");
    let drawn = browser.value("document.querySelector('#write .line-0').getAttribute('d').length").await;
    assert!(drawn.as_u64().unwrap() > 1000, "ten minutes are drawn at once");
}

#[tokio::test]
async fn in_a_stall_the_page_says_what_why_since_when_and_what_to_do() {
    // These four are what an engineer needs before anything else, also at night and on a phone.
    let Some(mut browser) = Browser::start().await else { return };
    let stage = Stage::start(&stalled(), &history(stall_until(0)), After::Steady).await;

    for (screen, name) in [
        (DESK, "stalled.png"),
        (NIGHT, "stalled-dark.png"),
        (PHONE, "stalled-phone.png"),
        (PHONE_AT_NIGHT, "stalled-phone-dark.png"),
    ] {
        let text = look(&mut browser, &stage.url, screen, "live", name).await;

        let sentence = "Writes are refused at once, because commits wait for a synchronous standby that does not \
                        answer. Reads are served.";
        assert_shows(
            &text,
            &[sentence, "What to do next", "synchronous_standby_names", "Refusing", "for 2 min"],
        );
        assert_shows(&text, &[EVIDENCE, "The breaker of the write lane opened.", "119,433"]);
        assert_eq!(browser.value("document.documentElement.dataset.level").await, "critical");
        // Without scrolling.
        let seen = "document.getElementById('next').getBoundingClientRect().bottom < innerHeight";
        assert_eq!(browser.value(seen).await, true, "{name}");
        let banded = browser.value("document.querySelectorAll('#write .band-refusing').length").await;
        assert!(banded.as_u64().unwrap() > 0, "the plots show when it began");
    }
}

#[tokio::test]
async fn a_recovery_is_told_from_health_and_from_outage() {
    // Somebody who sees "serving" too early starts the batch that brings the outage back.
    let Some(mut browser) = Browser::start().await else { return };
    let stage = Stage::start(&recovering(), &history(stall_until(3)), After::Steady).await;

    look(&mut browser, &stage.url, PHONE, "live", "recovering-phone.png").await;
    look(&mut browser, &stage.url, NIGHT, "live", "recovering-dark.png").await;
    let text = look(&mut browser, &stage.url, DESK, "live", "recovering.png").await;

    assert_shows(
        &text,
        &["Writes are let in again, more each second. Reads are served.", "Recovering", "ramping up"],
    );
    assert_eq!(browser.value("document.documentElement.dataset.level").await, "warning");
}

#[tokio::test]
async fn a_page_without_a_sidecar_does_not_pass_old_news_for_new() {
    // A page that froze on "all is well" is worse than none.
    let Some(mut browser) = Browser::start().await else { return };
    let stage = Stage::start(&quiet(), &history(|_, point| point), After::Gone).await;

    let text = look(&mut browser, &stage.url, DESK, "lost", "lost.png").await;

    assert_shows(
        &text,
        &["No answer from this sidecar. What follows is old.", "connection lost; this was the state at"],
    );
}

#[tokio::test]
async fn the_page_follows_the_real_sidecar_and_notices_its_end() {
    // The stage above could differ from what the binary sends: its policy, its stream, its document.
    let Some(mut browser) = Browser::start().await else { return };
    let token = "[admin]\ntoken = \"0123456789abcdef\"\n";
    let upstream = shared_postgres().port();
    let settings = format!("[cluster]\nupstreams = [\"127.0.0.1:{upstream}\"]\n{token}");
    let mut proxy = sidecar(&settings).start().await;
    let url = format!("http://{}/", proxy.admin_address());

    let text = look(&mut browser, &url, DESK, "live", "real.png").await;
    assert_shows(&text, &["All is well: reads and writes are served.", "Serving", "live"]);

    crate::admin::order(&proxy, "/pause").await;
    browser.wait("document.documentElement.dataset.level === 'critical'").await;
    assert_shows(&browser.text().await, &["An operator paused all traffic", "POST /resume"]);

    proxy.signal(tidegate_tests::Signal::KILL);
    proxy.wait_exit(LONG).await;
    browser.wait("document.documentElement.dataset.connection === 'lost'").await;
}
