//! Claims of the whole breaker (handle, watchdog, service) against a service that hangs, on a paused clock.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tidegate_layers::CircuitOpen;
use tidegate_layers::breaker::{
    BreakerConfig, BreakerLayer, Change, Diagnose, ErrorsAreFailures, Events, Evidence, Force, Handle,
    Outcome, Phase, Probe, ProbeOutcome, Senses, Session, Ticket, Watchdog,
};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_test::{assert_ready_err, assert_ready_ok, task};
use tower_test::{assert_request_eq, mock};

const MS: Duration = Duration::from_millis(1);
const TRIP_MAX: Duration = Duration::from_millis(1500);

type Cause = &'static str;
type Changes = Arc<Mutex<Vec<Change<Cause>>>>;

/// The service behind the breaker, as its probe sees it.
#[derive(Debug, Default)]
struct Service {
    hung: AtomicBool,
    diagnosis_hangs: AtomicBool,
    probes: AtomicUsize,
    probes_at_once_max: AtomicUsize,
    probing: AtomicUsize,
}

struct Asker(Arc<Service>);

/// Counts the probes under way, also those that are dropped.
struct UnderWay<'a>(&'a AtomicUsize);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Probe for Asker {
    async fn probe(&self, _: Session) -> ProbeOutcome {
        self.0.probes.fetch_add(1, Ordering::Relaxed);
        let at_once = self.0.probing.fetch_add(1, Ordering::Relaxed) + 1;
        self.0.probes_at_once_max.fetch_max(at_once, Ordering::Relaxed);
        let _under_way = UnderWay(&self.0.probing);
        sleep(2 * MS).await;
        if self.0.hung.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        ProbeOutcome::Ok
    }
}

impl Diagnose<Cause> for Asker {
    async fn diagnose(&self) -> Option<Cause> {
        if self.0.diagnosis_hangs.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        sleep(20 * MS).await;
        Some("storage")
    }
}

/// Takes its time to write a change down.
struct SlowScribe {
    takes: Duration,
    told: Changes,
}

impl Events<Cause> for SlowScribe {
    fn record(&mut self, _: &Change<Cause>) -> impl Future<Output = ()> + Send {
        sleep(self.takes)
    }

    fn changed(&mut self, change: &Change<Cause>) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).push(change.clone());
    }
}

struct Bench {
    service: Arc<Service>,
    handle: Handle<Cause>,
    changes: Changes,
    watchdog: tokio::task::JoinHandle<()>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.watchdog.abort();
    }
}

impl Bench {
    fn start(seed: u64) -> Self {
        Self::with(BreakerConfig::default(), seed)
    }

    fn with(config: BreakerConfig, seed: u64) -> Self {
        let service = Arc::new(Service::default());
        let changes = Changes::default();
        let told = Arc::clone(&changes);
        let senses = Senses {
            probe: Asker(Arc::clone(&service)),
            diagnose: Asker(Arc::clone(&service)),
            events: move |change: &Change<Cause>| {
                told.lock().unwrap_or_else(PoisonError::into_inner).push(change.clone());
            },
            random: SmallRng::seed_from_u64(seed),
        };
        let (handle, watchdog) = Watchdog::new(config, 64, senses);
        Self { service, handle, changes, watchdog: tokio::spawn(watchdog.run()) }
    }

    /// Starts a call in a slot of its own. `None` if it is refused.
    fn begin(&self, slot: usize) -> Option<Ticket> {
        let now = Instant::now();
        let ticket = self.handle.admit(now).ok()?;
        self.handle.slots().begin(slot, now);
        Some(ticket)
    }

    fn end(&self, slot: usize, ticket: Ticket, outcome: Outcome) {
        self.handle.slots().end(slot);
        self.handle.complete(ticket, outcome, Instant::now());
    }

    async fn call(&self, slot: usize, takes: Duration) {
        if let Some(ticket) = self.begin(slot) {
            sleep(takes).await;
            self.end(slot, ticket, Outcome::Ok);
        }
    }

    /// Every other call fails. Gives whether that opened it.
    async fn half_fail(&self, calls: usize, every: Duration) -> bool {
        for call in 0..calls {
            let Some(ticket) = self.begin(0) else { return true };
            self.end(0, ticket, if call % 2 == 0 { Outcome::Failed } else { Outcome::Ok });
            sleep(every).await;
        }
        false
    }

    async fn until(&self, phase: impl Fn(Phase) -> bool, within: Duration) -> Duration {
        let start = Instant::now();
        while !phase(self.handle.phase()) {
            assert!(start.elapsed() <= within, "still {:?} after {within:?}", self.handle.phase());
            sleep(5 * MS).await;
        }
        start.elapsed()
    }

    async fn until_open(&self) -> Duration {
        self.until(|phase| phase == Phase::Open, TRIP_MAX).await
    }

    fn changes(&self) -> Vec<Change<Cause>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn causes_when_opened(&self) -> Vec<Option<Cause>> {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.iter().filter(|change| change.to == Phase::Open).map(|change| change.cause).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_takes_effect_when_it_is_recorded_and_not_before() {
    // What was refused before it was written down cannot be explained after a crash.
    let service = Arc::new(Service::default());
    let changes = Changes::default();
    let senses = Senses {
        probe: Asker(Arc::clone(&service)),
        diagnose: Asker(service),
        events: SlowScribe { takes: 50 * MS, told: Arc::clone(&changes) },
        random: SmallRng::seed_from_u64(1),
    };
    let (handle, watchdog) = Watchdog::<Cause, _, _, _, _>::new(BreakerConfig::default(), 64, senses);
    let watchdog = tokio::spawn(watchdog.run());
    sleep(MS).await;
    let ordered = Instant::now();

    handle.force(Force::Open);
    while handle.admit(Instant::now()).is_ok() {
        assert!(changes.lock().unwrap().is_empty(), "nobody is told of what is not in force");
        sleep(MS).await;
    }

    assert!(ordered.elapsed() >= 50 * MS, "refused after {:?}", ordered.elapsed());
    assert!(ordered.elapsed() <= 200 * MS, "refused after {:?}", ordered.elapsed());
    sleep(MS).await;
    assert_eq!(changes.lock().unwrap().len(), 1);
    watchdog.abort();
}

#[tokio::test(start_paused = true)]
async fn half_of_the_calls_failing_opens_it_when_the_probe_agrees_and_only_then() {
    // No five in a row, nothing stuck, and something always succeeds: the rate is all that shows. With good probes
    // it is the callers' own trouble.
    let bench = Bench::start(1);
    bench.service.hung.store(true, Ordering::Relaxed);
    assert!(bench.half_fail(60, 50 * MS).await, "{:?}", bench.handle.phase());
    let changes = bench.changes();
    let opened = changes.iter().find(|change| change.to == Phase::Open).unwrap();
    assert!(matches!(opened.evidence, Evidence::FailureRate(counts) if counts.calls() >= 20), "{opened:?}");

    let bench = Bench::start(1);
    assert!(!bench.half_fail(600, 50 * MS).await);
}

#[tokio::test(start_paused = true)]
async fn a_rate_needs_its_calls_within_the_window_that_is_configured() {
    // Fewer than two calls a second: ten seconds have too few to tell, a minute has enough.
    let minute = BreakerConfig { rate_window: Duration::from_mins(1), ..BreakerConfig::default() };
    for (config, tells) in [(BreakerConfig::default(), false), (minute, true)] {
        let bench = Bench::with(config, 1);

        bench.half_fail(40, 600 * MS).await;

        let changes = bench.changes();
        let by_rate = changes.iter().any(|change| matches!(change.evidence, Evidence::FailureRate(_)));
        assert_eq!(by_rate, tells, "{changes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_window_of_a_rate_follows_a_change_of_the_rules() {
    // An operator who widens it for a service with few calls would believe to have a rule that is not in force.
    let minute = BreakerConfig { rate_window: Duration::from_mins(1), ..BreakerConfig::default() };
    for (old, new, tells) in
        [(BreakerConfig::default(), minute, true), (minute, BreakerConfig::default(), false)]
    {
        let bench = Bench::with(old, 1);
        bench.handle.configure(new);

        bench.half_fail(40, 600 * MS).await;

        let changes = bench.changes();
        let by_rate = changes.iter().any(|change| matches!(change.evidence, Evidence::FailureRate(_)));
        assert_eq!(by_rate, tells, "{changes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_hung_call_opens_it_within_a_second_and_a_half() {
    // Completion-counting breakers never see this call; volume-based ones want twenty of them.
    for seed in 0..20 {
        let bench = Bench::start(seed);
        sleep(Duration::from_millis(3000 + 137 * seed)).await;
        bench.service.hung.store(true, Ordering::Relaxed);
        bench.begin(0);

        bench.until_open().await;

        assert_eq!(bench.causes_when_opened(), [Some("storage")]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_million_successes_do_not_delay_the_trip() {
    // An average over the life of the breaker needs a million failures to move.
    let bench = Bench::start(1);
    for _ in 0..100 {
        for _ in 0..10_000 {
            if let Some(ticket) = bench.begin(0) {
                bench.end(0, ticket, Outcome::Ok);
            }
        }
        bench.call(1, 100 * MS).await;
    }
    bench.service.hung.store(true, Ordering::Relaxed);
    for slot in 0..20 {
        bench.begin(slot);
    }

    bench.until_open().await;
}

#[tokio::test(start_paused = true)]
async fn fast_calls_make_it_see_a_stall_sooner() {
    // With a fixed bound a service that answers in 2 ms would be stuck for a second before anybody looks.
    let bench = Bench::start(1);
    for _ in 0..1000 {
        bench.call(0, 2 * MS).await;
    }
    bench.service.hung.store(true, Ordering::Relaxed);
    bench.begin(0);

    assert!(bench.until_open().await <= 900 * MS);
}

#[tokio::test(start_paused = true)]
async fn a_lock_storm_never_opens_it() {
    // Thirty calls wait for one lock for a minute and fail at their deadlines; ten others do their work.
    let bench = Bench::start(1);
    let start = Instant::now();
    while start.elapsed() < Duration::from_mins(1) {
        let stuck: Vec<_> = (0..30).map(|slot| (slot, bench.begin(slot).unwrap())).collect();
        for _ in 0..50 {
            bench.call(31, 20 * MS).await;
            sleep(80 * MS).await;
        }
        for (slot, ticket) in stuck {
            bench.end(slot, ticket, Outcome::Failed);
        }
    }

    assert_eq!(bench.causes_when_opened(), []);
    assert!(bench.handle.phase().admits());
}

#[tokio::test(start_paused = true)]
async fn a_lock_storm_that_stops_everything_does_not_open_it_either() {
    // No call at all finishes, as in a stall; the probe is the only difference.
    let bench = Bench::start(1);
    for slot in 0..40 {
        bench.begin(slot);
    }

    sleep(Duration::from_mins(1)).await;

    assert_eq!(bench.handle.phase(), Phase::Suspect);
}

#[tokio::test(start_paused = true)]
async fn it_ramps_within_two_seconds_of_the_heal_and_closes_within_six() {
    // Half-open must not wait for traffic, nor longer the longer the outage was.
    for seed in 0..20 {
        let bench = Bench::start(seed);
        bench.service.hung.store(true, Ordering::Relaxed);
        bench.begin(0);
        bench.until_open().await;
        sleep(Duration::from_millis(30_000 + 97 * seed)).await;

        bench.service.hung.store(false, Ordering::Relaxed);
        let healed = Instant::now();
        bench.until(Phase::admits, Duration::from_secs(2)).await;
        bench.until(|phase| phase == Phase::Closed, Duration::from_secs(5)).await;

        assert!(healed.elapsed() <= Duration::from_secs(6), "{:?}", healed.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn calls_that_answer_without_doing_what_hangs_are_no_progress_and_no_failures() {
    // As progress they would hide for as long as they come that nothing else ends. Not counted at all, failures that lie hours
    // apart would be in a row.
    let bench = Bench::start(1);
    let answer = || {
        if let Some(ticket) = bench.begin(1) {
            bench.end(1, ticket, Outcome::Answered);
        }
    };
    for _ in 0..20 {
        let ticket = bench.begin(0).unwrap();
        bench.end(0, ticket, Outcome::Failed);
        sleep(Duration::from_secs(11)).await;
        answer();
    }
    assert!(bench.changes().is_empty(), "{:?}", bench.changes());
    bench.service.hung.store(true, Ordering::Relaxed);
    bench.begin(0);

    let answers = async {
        loop {
            answer();
            sleep(50 * MS).await;
        }
    };

    tokio::select! {
        _ = bench.until_open() => {}
        () = answers => {}
    }
}

#[tokio::test(start_paused = true)]
async fn zombies_of_the_outage_do_not_trip_it_again() {
    // Their slots are still busy when traffic returns: seen as stuck they would re-open the breaker for ever.
    let bench = Bench::start(1);
    bench.service.hung.store(true, Ordering::Relaxed);
    let zombies: Vec<_> = (0..20).map(|slot| (slot, bench.begin(slot).unwrap())).collect();
    bench.until_open().await;
    bench.service.hung.store(false, Ordering::Relaxed);
    bench.until(Phase::admits, Duration::from_secs(5)).await;
    for (slot, ticket) in zombies.into_iter().take(10) {
        bench.end(slot, ticket, Outcome::Failed);
    }

    bench.until(|phase| phase == Phase::Closed, Duration::from_secs(5)).await;

    assert_eq!(bench.handle.stragglers(), 10);
    assert_eq!(bench.causes_when_opened().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn failures_of_before_the_trip_are_forgotten_when_traffic_returns() {
    // Otherwise the first look after the ramp would find the service suspect for what it did before.
    let bench = Bench::start(1);
    for _ in 0..30 {
        let ticket = bench.begin(0).unwrap();
        bench.end(0, ticket, Outcome::Failed);
    }
    bench.service.hung.store(true, Ordering::Relaxed);
    bench.begin(0);
    bench.until_open().await;
    bench.service.hung.store(false, Ordering::Relaxed);
    bench.until(|phase| phase == Phase::Closed, Duration::from_secs(8)).await;

    sleep(Duration::from_secs(3)).await;

    let changes = bench.changes.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(changes.last().map(|change| change.to), Some(Phase::Closed));
}

#[tokio::test(start_paused = true)]
async fn a_diagnosis_that_hangs_delays_nothing() {
    // Waiting for the cause would keep the app hanging for the sake of an explanation.
    let bench = Bench::start(1);
    bench.service.diagnosis_hangs.store(true, Ordering::Relaxed);
    bench.service.hung.store(true, Ordering::Relaxed);
    bench.begin(0);

    bench.until_open().await;
    assert_eq!(bench.handle.cause(), None);

    // Asked again and again until it can be told, so it is unknown for a second or so at most.
    bench.service.diagnosis_hangs.store(false, Ordering::Relaxed);
    sleep(Duration::from_millis(1200)).await;
    assert_eq!(bench.causes_when_opened(), [None, Some("storage")]);
}

#[tokio::test(start_paused = true)]
async fn there_is_never_a_second_probe_under_way() {
    // Probes that pile up on a service that hangs are one more load on it.
    let bench = Bench::start(1);
    bench.service.hung.store(true, Ordering::Relaxed);
    bench.begin(0);
    sleep(Duration::from_mins(1)).await;

    assert_eq!(bench.service.probes_at_once_max.load(Ordering::Relaxed), 1);
    let probes = bench.service.probes.load(Ordering::Relaxed);
    assert!((80..=130).contains(&probes), "{probes} probes in a minute: two a second are meant");
}

#[tokio::test(start_paused = true)]
async fn new_rules_hold_from_the_next_tick_on() {
    // An operator who finds that it opens too late cannot wait for a restart. Two failures mean nothing by default.
    let bench = Bench::start(15);
    let fail = async || {
        for slot in 0..2 {
            let ticket = bench.begin(slot).unwrap();
            bench.end(slot, ticket, Outcome::Failed);
        }
        sleep(Duration::from_secs(1)).await;
    };
    fail().await;
    assert!(bench.changes.lock().unwrap().is_empty());
    bench.call(0, MS).await;

    let often = 300 * MS;
    let config = BreakerConfig { consecutive_failures: 2, probe_closed: often, ..BreakerConfig::default() };
    bench.handle.configure(config);
    sleep(Duration::from_secs(2)).await;
    let probes = bench.service.probes.load(Ordering::Relaxed);
    assert!(probes >= 3, "{probes} probes");
    fail().await;

    let changes = bench.changes.lock().unwrap();
    assert_eq!(changes.first().map(|change| change.to), Some(Phase::Suspect), "{changes:?}");
}

#[tokio::test(start_paused = true)]
async fn proof_and_orders_work_at_once() {
    // A read-only service needs no second opinion, an operator even less.
    let bench = Bench::start(1);
    sleep(150 * MS).await;
    bench.handle.report("read_only");
    sleep(MS).await;
    assert_eq!((bench.handle.phase(), bench.handle.cause()), (Phase::Open, Some("read_only")));

    bench.handle.force(Force::Closed);
    sleep(MS).await;
    assert_eq!(bench.handle.phase(), Phase::ForcedClosed);
    assert!(bench.handle.admit(Instant::now()).is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_service_refuses_in_call_and_names_cause_and_time() {
    // An error from `poll_ready` means "discard this service"; after a trip it must come back.
    type BoxError = Box<dyn std::error::Error + Send + Sync>;
    let bench = Bench::start(1);
    let layer = BreakerLayer::new(bench.handle.clone(), ErrorsAreFailures);
    let (mut service, mut inner) = mock::spawn_layer::<u32, u32, _>(layer);
    inner.allow(10);
    assert_ready_ok!(service.poll_ready());
    let mut first = task::spawn(service.call(1));
    assert_request_eq!(inner, 1).send_response(10);
    assert_eq!(assert_ready_ok!(first.poll()), 10);

    bench.service.hung.store(true, Ordering::Relaxed);
    assert_ready_ok!(service.poll_ready());
    let _hung = service.call(2);
    bench.until_open().await;

    assert_ready_ok!(service.poll_ready());
    let refused: BoxError = assert_ready_err!(task::spawn(service.call(3)).poll());
    let refused = refused.downcast_ref::<CircuitOpen<Cause>>().unwrap();
    assert_eq!(refused.cause, Some("storage"));
    assert!(refused.retry_after >= 500 * MS && refused.retry_after <= 2300 * MS, "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn calls_that_are_dropped_count_only_when_they_were_stuck() {
    // A caller that goes away after a millisecond says nothing; one that gave up after a second does.
    let bench = Bench::start(1);
    let layer = BreakerLayer::new(bench.handle.clone(), ErrorsAreFailures);
    let (mut service, mut inner) = mock::spawn_layer::<u32, u32, _>(layer);
    inner.allow(100);
    for _ in 0..20 {
        assert_ready_ok!(service.poll_ready());
        drop(service.call(1));
    }
    sleep(300 * MS).await;
    assert_eq!(bench.handle.phase(), Phase::Closed);

    let start = Instant::now();
    let calls: Vec<_> = (0..5)
        .map(|_| {
            assert_ready_ok!(service.poll_ready());
            service.call(1)
        })
        .collect();
    sleep_until(start + 1200 * MS).await;
    drop(calls);
    sleep(150 * MS).await;
    assert_eq!(bench.handle.phase(), Phase::Suspect, "five failures in a row");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn stragglers_change_nothing(outcomes in proptest::collection::vec((0..3_u8, 0..4000_u64), 0..200)) {
        // Whatever calls of before the trip come to, whenever they do: recovery must take the same course.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
        let course = |stragglers: Vec<(u8, u64)>| runtime.block_on(async {
            let bench = Bench::start(7);
            let tickets: Vec<_> = stragglers.iter().map(|_| bench.begin(0).unwrap()).collect();
            bench.service.hung.store(true, Ordering::Relaxed);
            bench.begin(1);
            bench.until_open().await;
            bench.service.hung.store(false, Ordering::Relaxed);
            let opened = Instant::now();
            let mut ends: Vec<_> = stragglers.iter().zip(tickets).collect();
            ends.sort_by_key(|((_, after), _)| *after);
            for ((outcome, after), ticket) in ends {
                sleep_until(opened + Duration::from_millis(*after)).await;
                let outcome = [Outcome::Ok, Outcome::Failed, Outcome::Ignored][usize::from(*outcome)];
                bench.end(0, ticket, outcome);
            }
            sleep_until(opened + Duration::from_secs(10)).await;
            let changes = bench.changes.lock().unwrap_or_else(PoisonError::into_inner);
            let phases: Vec<_> = changes.iter().map(|c| (c.to, c.epoch, c.cause)).collect();
            assert_eq!(bench.handle.stragglers(), stragglers.len() as u64);
            phases
        });
        prop_assert_eq!(course(outcomes), course(Vec::new()));
    }
}
