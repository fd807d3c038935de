//! Five hundred sidecars meet one database that comes back.
//!
//! Simulated are the database, the applications, and the pool's list of connections; real are discovery with its
//! schedule, the breaker with its watchdog and ramp, shedding, and backoff. The clock is tokio's, paused.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tidegate::config::{Roles, UpstreamAddress};
use tidegate::discovery::dns::Resolve;
use tidegate::discovery::{Connection, Decision, Discovery, Observe, ObserveError, Rules, Settings, What};
use tidegate::exchange::Cause;
use tidegate::upstream::{Lsn, Observation, SystemIdentifier, TimelineId, UpstreamView, Writes};
use tidegate_layers::breaker::{
    BreakerConfig, Change, Classify, NoDiagnosis, Outcome, Phase, Probe, ProbeOutcome, Senses, Session,
    Watchdog,
};
use tidegate_layers::deadline::HasDeadline;
use tidegate_layers::shed::{Admitted, HasPriority, LaneConfig, QueueConfig};
use tidegate_layers::{Backoff, BreakerLayer, CircuitOpen, Deadline, Overloaded, Priority, ShedLayer};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tower::{Layer, Service, ServiceExt};

const SIDECARS: usize = 500;
/// Applications' connections per sidecar.
const USERS: usize = 20;
/// What each waits between two statements, in milliseconds: when it was served, and when it was refused.
const THINK: std::ops::Range<u64> = 2500..7500;
const RETRY: std::ops::Range<u64> = 100..300;
/// What is asserted: connects within any second, four per sidecar (a control connection, two of the write probe, a backend) ...
const CONNECTS_PER_SECOND: usize = SIDECARS * 4;
/// ... and within 100 ms, where a fleet in step would need one for each of its users;
const CONNECTS_PER_BIN: usize = SIDECARS * 3 / 5;
/// the time until 95 % of what is asked is served, and goes on to be.
const RECOVERY: Duration = Duration::from_secs(5);
/// Backends per sidecar.
const POOL: usize = 20;
/// Cores of the database, and what a login (fork, SCRAM) and a statement cost one of them.
const CORES: usize = 16;
const LOGIN: Duration = Duration::from_millis(5);
const STATEMENT: Duration = Duration::from_millis(2);
/// As `timeouts.connect`, `timeouts.write`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// The timeline.
const DOWN: Duration = Duration::from_secs(6);
const UP: Duration = Duration::from_secs(18);
const END: Duration = Duration::from_secs(28);
/// Connects and answers are counted per this.
const BIN: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Refused;

/// A server with a few cores, which is gone for a while. Connections of before are dead afterwards.
struct Database {
    start: Instant,
    up: AtomicBool,
    generation: AtomicUsize,
    cores: Semaphore,
    connects: Mutex<Vec<usize>>,
    /// Statements that ended, either way.
    asked: Mutex<Vec<usize>>,
    answers: Mutex<Vec<usize>>,
}

impl Database {
    fn new() -> Self {
        let bins = usize::try_from(END.as_millis() / BIN.as_millis()).unwrap() + 1;
        Self {
            start: Instant::now(),
            up: AtomicBool::new(true),
            generation: AtomicUsize::new(1),
            cores: Semaphore::new(CORES),
            connects: Mutex::new(vec![0; bins]),
            asked: Mutex::new(vec![0; bins]),
            answers: Mutex::new(vec![0; bins]),
        }
    }

    fn count(&self, bins: &Mutex<Vec<usize>>) {
        let bin = usize::try_from(self.start.elapsed().as_millis() / BIN.as_millis()).unwrap();
        if let Some(count) = bins.lock().unwrap().get_mut(bin) {
            *count += 1;
        }
    }

    fn switch(&self, up: bool) {
        self.up.store(up, Ordering::Relaxed);
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    fn is_alive(&self, connection: usize) -> bool {
        self.up.load(Ordering::Relaxed) && connection == self.generation.load(Ordering::Relaxed)
    }

    async fn work(&self, connection: usize, cost: Duration) -> Result<(), Refused> {
        let _core = self.cores.acquire().await.unwrap();
        if !self.is_alive(connection) {
            return Err(Refused);
        }
        sleep(cost).await;
        if self.is_alive(connection) { Ok(()) } else { Err(Refused) }
    }

    /// A new connection, or what refuses it.
    async fn connect(&self) -> Result<usize, Refused> {
        let connection = self.generation.load(Ordering::Relaxed);
        if !self.up.load(Ordering::Relaxed) {
            return Err(Refused);
        }
        self.count(&self.connects);
        match timeout(CONNECT_TIMEOUT, self.work(connection, LOGIN)).await {
            Ok(done) => done.map(|()| connection),
            Err(_) => Err(Refused),
        }
    }
}

/// A connection that is kept for control, and asks as the prober will.
struct Control {
    database: Arc<Database>,
    kept: AtomicUsize,
}

impl Control {
    fn new(database: &Arc<Database>) -> Self {
        Self { database: Arc::clone(database), kept: AtomicUsize::new(0) }
    }

    async fn ask(&self, fresh: bool) -> Result<(), Refused> {
        let mut connection = self.kept.load(Ordering::Relaxed);
        if fresh || !self.database.is_alive(connection) {
            connection = self.database.connect().await?;
            self.kept.store(connection, Ordering::Relaxed);
        }
        self.database.work(connection, STATEMENT / 4).await
    }
}

impl Observe for Control {
    async fn observe(&self, _: &UpstreamView, connection: Connection) -> Result<Observation, ObserveError> {
        self.ask(connection == Connection::Fresh).await.map_err(|Refused| ObserveError::Unreachable)?;
        Ok(Observation {
            system: SystemIdentifier(7),
            timeline: TimelineId(1),
            in_recovery: false,
            lsn: Lsn(1),
            lag: None,
            version_num: 180_001,
            read_only: false,
        })
    }

    async fn commit(&self, _: &UpstreamView) -> Result<Lsn, Cause> {
        self.ask(false).await.map(|()| Lsn(1)).map_err(|Refused| Cause::Unreachable)
    }
}

struct WriteProbe(Control);

impl Probe for WriteProbe {
    async fn probe(&self, session: Session) -> ProbeOutcome {
        match self.0.ask(session == Session::Fresh).await {
            Ok(()) => ProbeOutcome::Ok,
            Err(Refused) => ProbeOutcome::Failed,
        }
    }
}

struct NoNames;

impl Resolve for NoNames {
    async fn resolve(&self, _: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// Idle connections, two connects at a time, and a pause after one that failed: as the sidecar's pool does it.
struct Pool {
    database: Arc<Database>,
    idle: Mutex<Vec<usize>>,
    connects: Semaphore,
    trouble: Mutex<(Backoff, Instant)>,
}

impl Pool {
    fn new(database: &Arc<Database>) -> Self {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        Self {
            database: Arc::clone(database),
            idle: Mutex::default(),
            connects: Semaphore::new(2),
            trouble: Mutex::new((backoff, Instant::now())),
        }
    }

    async fn connection(&self) -> Result<usize, Refused> {
        if let Some(connection) = self.idle.lock().unwrap().pop() {
            return Ok(connection);
        }
        let _place = self.connects.acquire().await.unwrap();
        let retry_at = self.trouble.lock().unwrap().1;
        sleep_until(retry_at).await;
        let connected = self.database.connect().await;
        let (backoff, retry_at) = &mut *self.trouble.lock().unwrap();
        match connected {
            Ok(_) => backoff.reset(),
            Err(Refused) => *retry_at = Instant::now() + backoff.next(&mut rand::rng()),
        }
        connected
    }

    async fn run(&self) -> Result<(), Error> {
        let statement = async {
            let connection = self.connection().await?;
            self.database.work(connection, STATEMENT).await?;
            self.idle.lock().unwrap().push(connection);
            Ok(())
        };
        timeout(WRITE_TIMEOUT, statement).await.unwrap_or(Err(Refused)).map_err(|Refused| Error::Lost)
    }
}

#[derive(Debug)]
enum Error {
    Refused,
    Lost,
}

impl<C> From<CircuitOpen<C>> for Error {
    fn from(_: CircuitOpen<C>) -> Self {
        Self::Refused
    }
}

impl From<Overloaded> for Error {
    fn from(_: Overloaded) -> Self {
        Self::Refused
    }
}

#[derive(Clone, Copy)]
struct Statement;

impl HasPriority for Statement {
    fn priority(&self) -> Priority {
        Priority::default()
    }
}

impl HasDeadline for Statement {
    fn deadline(&self) -> Option<Deadline> {
        None
    }
}

#[derive(Clone)]
struct Innermost(Arc<Pool>);

impl Service<Statement> for Innermost {
    type Response = ();
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Statement) -> Self::Future {
        let pool = Arc::clone(&self.0);
        Box::pin(async move { pool.run().await })
    }
}

#[derive(Clone, Copy)]
struct Ours;

impl Classify<Admitted<()>, Error> for Ours {
    fn classify(&self, result: Result<&Admitted<()>, &Error>) -> Outcome {
        match result {
            Ok(_) => Outcome::Ok,
            Err(Error::Lost) => Outcome::Failed,
            Err(Error::Refused) => Outcome::Ignored,
        }
    }
}

/// What happened in the fleet after the database came back.
#[derive(Default)]
struct Seen {
    trips: AtomicUsize,
    losses: AtomicUsize,
    elections: AtomicUsize,
}

/// Starts one sidecar and its applications. What is returned keeps it alive.
fn sidecar(database: &Arc<Database>, seen: &Arc<Seen>, seed: u64) -> Arc<Discovery> {
    let back = database.start + UP;
    let told = Arc::clone(seen);
    let announce = move |decision: &Decision| {
        let count = match decision.what {
            What::PrimaryLost => &told.losses,
            What::PrimaryElected => &told.elections,
            _ => return,
        };
        count.fetch_add(usize::from(decision.at >= back), Ordering::Relaxed);
    };
    let settings = Settings {
        rules: Rules { roles: Roles::Probe, settle: Duration::from_secs(2) },
        upstreams: vec![UpstreamAddress::Tcp { host: "10.0.0.1".to_owned(), port: 5432 }],
        connect: CONNECT_TIMEOUT,
        patroni: Vec::new(),
        memory: None,
        record: None,
    };
    let discovery =
        Arc::new(Discovery::start(settings, Arc::new(Control::new(database)), Arc::new(NoNames), announce));

    let shed = ShedLayer::new(LaneConfig { ceiling: POOL, queue: QueueConfig::default() });
    let permits = shed.permits().clone();
    let told = Arc::clone(seen);
    let senses = Senses {
        probe: WriteProbe(Control::new(database)),
        diagnose: NoDiagnosis,
        events: move |change: &Change<&'static str>| {
            permits.set_ramp(0, change.to.ramp_limit(POOL));
            let trip = change.to == Phase::Open && change.at >= back;
            told.trips.fetch_add(usize::from(trip), Ordering::Relaxed);
        },
        random: SmallRng::seed_from_u64(seed),
    };
    let (breaker, watchdog) = Watchdog::new(BreakerConfig::default(), 64, senses);
    tokio::spawn(watchdog.run());
    let stack = BreakerLayer::new(breaker, Ours).layer(shed.layer(Innermost(Arc::new(Pool::new(database)))));

    for user in 0..USERS {
        let (stack, discovery, database) = (stack.clone(), Arc::clone(&discovery), Arc::clone(database));
        let mut random = SmallRng::seed_from_u64(seed * 100 + u64::try_from(user).unwrap());
        tokio::spawn(async move {
            let topology = discovery.topology();
            let mut pause = 0..7500;
            loop {
                sleep(Duration::from_millis(random.random_range(pause))).await;
                let open = topology.load().writes() == Writes::Open;
                let served = open && stack.clone().oneshot(Statement).await.is_ok();
                database.count(&database.asked);
                if served {
                    database.count(&database.answers);
                }
                pause = if served { THINK } else { RETRY };
            }
        });
    }
    discovery
}

/// The most within a second that begins at any bin from `from` on.
fn peak(bins: &[usize], from: usize) -> usize {
    bins[from..].windows(10).map(|second| second.iter().sum()).max().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_fleet_brings_a_database_back_without_a_stampede_and_without_relapse() {
    // Without ramp and without the limit of connects each of the users that pushes would have a backend opened at once;
    // breakers that trip under the load of the return would make the curve oscillate.
    let real = std::time::Instant::now();
    let (database, seen) = (Arc::new(Database::new()), Arc::new(Seen::default()));
    let fleet: Vec<_> =
        (0..SIDECARS).map(|seed| sidecar(&database, &seen, u64::try_from(seed).unwrap())).collect();

    sleep_until(database.start + DOWN).await;
    database.switch(false);
    sleep_until(database.start + UP).await;
    database.switch(true);
    sleep_until(database.start + END).await;

    let connects = database.connects.lock().unwrap().clone();
    let answers = database.answers.lock().unwrap().clone();
    let asked = database.asked.lock().unwrap().clone();
    let bin = |time: Duration| usize::try_from(time.as_millis() / BIN.as_millis()).unwrap();
    let (up, end) = (bin(UP), bin(END));
    let share = |from: usize| {
        let sum = |bins: &[usize]| bins[from..from + 10].iter().sum::<usize>();
        sum(&answers) * 100 / sum(&asked).max(1)
    };
    let recovered = (up..end - 10)
        .find(|from| (*from..end - 10).all(|from| share(from) >= 95))
        .map(|from| BIN * u32::try_from(from - up).unwrap());
    let all: usize = connects[up..].iter().sum();
    let peak_second = peak(&connects, up);
    let peak_bin = *connects[up..].iter().max().unwrap();
    println!(
        "{SIDECARS} sidecars, {} users: after the return {all} connects in all, at most {peak_second}/s and {peak_bin} in \
         100 ms; 95 % are served after {recovered:?}; {} trips, {} losses, \
         {} elections; {:?} of real time",
        SIDECARS * USERS,
        seen.trips.load(Ordering::Relaxed),
        seen.losses.load(Ordering::Relaxed),
        seen.elections.load(Ordering::Relaxed),
        real.elapsed(),
    );
    for second in (up..end).step_by(10).take(8) {
        println!(
            "  +{} s: {:?} connects per 100 ms, {} answers, {} %",
            (second - up) / 10,
            &connects[second..second + 10],
            answers[second..second + 10].iter().sum::<usize>(),
            share(second)
        );
    }
    assert!(peak_second <= CONNECTS_PER_SECOND, "{peak_second} connects in a second");
    assert!(peak_bin <= CONNECTS_PER_BIN, "{peak_bin} connects in 100 ms");
    assert!(recovered.is_some_and(|time| time <= RECOVERY), "recovered after {recovered:?}");
    let trips = seen.trips.load(Ordering::Relaxed);
    assert!(trips <= SIDECARS / 100, "{trips} breakers tripped again");
    assert_eq!(seen.losses.load(Ordering::Relaxed), 0, "nobody may lose the primary again");
    assert_eq!(seen.elections.load(Ordering::Relaxed), SIDECARS, "each sidecar changes once");
    drop(fleet);
}
