//! The pool: permits in two lanes before connections in one stock.

use std::sync::Arc;
use std::time::Duration;

use bb8::{PooledConnection, QueueStrategy};
use tidegate_layers::breaker::Phase;
use tidegate_layers::shed::{Handoff, LaneConfig, LaneStats, QueueConfig};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use crate::acquire::Silence;
use crate::config::{Builder, SyncWait, Timeouts};
use crate::connection::Connection;
use crate::connector::Connector;
use crate::control::Control;
use crate::error::Error;
use crate::lanes::{LaneBreaker, Parts};
use crate::manager::{Failures, Manager};
use crate::names::Meters;
use crate::retry::RetryBudget;
use crate::warm::Warm;
use crate::words::Lane;

/// How often waiters are looked at whose time is over.
const SWEEP: Duration = Duration::from_millis(10);

pub(crate) type Pooled = PooledConnection<'static, Manager>;

/// A timeout-aware pool; see the [crate](crate) documentation. Clones share everything; the last one that is
/// dropped ends the pool's tasks.
#[derive(Debug, Clone)]
pub struct Pool {
    shared: Arc<Shared>,
    _alive: Arc<Alive>,
}

/// What connections and recoveries need of their pool.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) name: Arc<str>,
    pub(crate) meters: Meters,
    pub(crate) timeouts: Timeouts,
    pub(crate) sync_wait: SyncWait,
    pub(crate) permits: Handoff<()>,
    /// Somebody has begun to wait for a permit.
    pub(crate) waiters: Arc<Notify>,
    pub(crate) breakers: [LaneBreaker; 2],
    pub(crate) control: Control,
    pub(crate) runtime: Handle,
    pub(crate) retries: RetryBudget,
    /// Its sender goes with the last clone of the pool.
    pub(crate) closed: watch::Receiver<()>,
    pub(crate) sessions: bb8::Pool<Manager>,
    pub(crate) warm: Arc<Warm>,
    pub(crate) failures: Failures,
    pub(crate) silence: Silence,
    pub(crate) connector: Arc<Connector>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.warm.clear();
    }
}

/// The tasks of a pool.
#[derive(Debug)]
struct Alive {
    tasks: [AbortHandle; 4],
    _open: watch::Sender<()>,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// What a pool is doing; a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStatus {
    /// Connections that are open, in use or not.
    pub connections: usize,
    /// Those that are not in use.
    pub idle: usize,
    /// The read lane.
    pub read: LaneStatus,
    /// The write lane.
    pub write: LaneStatus,
}

/// What a lane is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneStatus {
    /// Permits in use, those of zombies included.
    pub in_flight: usize,
    /// Who waits for one.
    pub waiting: usize,
    /// How many may be in use now.
    pub limit: usize,
    /// The breaker.
    pub breaker: Phase,
}

impl Pool {
    /// A pool with default settings; see [`Builder::parse`] for the connection string. Connects nothing yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind).
    pub fn connect(connection: &str) -> Result<Self, Error> {
        Builder::parse(connection)?.build()
    }

    pub(crate) fn start(builder: &Builder) -> Result<Self, Error> {
        let runtime = Handle::try_current().map_err(Error::config)?;
        let connector = Arc::new(Connector::new(builder));
        let control = Control::new(Arc::clone(&connector));
        let failures = Failures::default();
        let ceilings = [builder.size, builder.write_permits()];
        let permits = permits(ceilings, builder);
        let parts = Parts {
            pool: builder.name.as_str().into(),
            config: builder.breaker,
            permits: permits.clone(),
            ceilings,
            connector: Arc::clone(&connector),
            control: control.clone(),
        };
        let (read, read_task) = LaneBreaker::start(Lane::Read, &parts);
        let (write, write_task) = LaneBreaker::start(Lane::Write, &parts);
        let waiters = Arc::new(Notify::new());
        let sweeper = tokio::spawn(sweep(permits.clone(), Arc::clone(&waiters))).abort_handle();
        let warm = Arc::new(Warm::default());
        let cooler = tokio::spawn(Arc::clone(&warm).cool()).abort_handle();
        let (open, closed) = watch::channel(());
        let shared = Shared {
            meters: Meters::new(&parts.pool),
            name: parts.pool,
            timeouts: builder.timeouts,
            sync_wait: builder.sync_wait,
            permits,
            waiters,
            breakers: [read, write],
            control,
            runtime,
            retries: RetryBudget::default(),
            closed,
            sessions: stock(builder, Manager::new(Arc::clone(&connector)), failures.clone()),
            warm,
            failures,
            silence: Silence::default(),
            connector,
        };
        let alive = Alive { tasks: [read_task, write_task, sweeper, cooler], _open: open };
        Ok(Self { shared: Arc::new(shared), _alive: Arc::new(alive) })
    }

    /// A connection for statements that write nothing.
    ///
    /// The lane is the caller's promise; a write that is sent through the read lane has the read lane's deadline and
    /// breaker, and its outcome is guessed as that of a read.
    ///
    /// # Errors
    /// `BreakerOpen`, `Overloaded`, `Timeout` or `Connect` ([`ErrorKind`](crate::ErrorKind)); nothing was sent.
    ///
    /// # Cancel safety
    /// Dropping it leaves the queue. A connect that it caused goes on and serves the next.
    pub async fn read(&self) -> Result<Connection, Error> {
        self.acquire(Lane::Read).await
    }

    /// A connection for statements that write.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    ///
    /// # Cancel safety
    /// As [`read`](Self::read).
    pub async fn write(&self) -> Result<Connection, Error> {
        self.acquire(Lane::Write).await
    }

    /// A connection in this lane.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    ///
    /// # Cancel safety
    /// As [`read`](Self::read).
    pub async fn acquire(&self, lane: Lane) -> Result<Connection, Error> {
        let start = Instant::now();
        let result = Shared::acquire(&self.shared, lane, start).await;
        self.shared.meters.acquired(lane, result.as_ref().err(), start.elapsed());
        result
    }

    /// Why the lane would refuse now, without asking for a connection. Costs two loads: meant for deciding at the edge
    /// of a service, before any work is done.
    pub fn refusal(&self, lane: Lane) -> Option<Error> {
        let breaker = &self.shared.breakers[lane.index()];
        breaker.admit(Instant::now()).err().map(|refusal| Error::open(lane, refusal))
    }

    /// What the pool is doing.
    pub fn status(&self) -> PoolStatus {
        let state = self.shared.sessions.state();
        let lane = |lane: Lane| {
            let stats = self.shared.permits.stats(lane.index());
            let LaneStats { in_flight, waiting, limit, .. } =
                stats.unwrap_or(LaneStats { in_flight: 0, waiting: 0, limit: 0, waiting_since: None });
            LaneStatus {
                in_flight,
                waiting,
                limit,
                breaker: self.shared.breakers[lane.index()].handle().phase(),
            }
        };
        PoolStatus {
            connections: state.connections as usize,
            idle: state.idle_connections as usize + self.shared.warm.count(),
            read: lane(Lane::Read),
            write: lane(Lane::Write),
        }
    }

    /// Orders the breaker of a lane open or closed, or leaves it to itself again.
    pub fn force(&self, lane: Lane, force: tidegate_layers::breaker::Force) {
        self.shared.breakers[lane.index()].handle().force(force);
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

fn permits(ceilings: [usize; 2], builder: &Builder) -> Handoff<()> {
    let queue = QueueConfig { wait_max: builder.timeouts.acquire, ..builder.queue };
    let permits = Handoff::new(ceilings.map(|ceiling| LaneConfig { ceiling, queue }));
    // Units take no memory, however many there are.
    std::iter::repeat_n((), builder.size).for_each(|()| permits.put(()));
    permits
}

fn stock(builder: &Builder, manager: Manager, failures: Failures) -> bb8::Pool<Manager> {
    // Whoever waits there has a permit and a deadline of its own, which must come first.
    const NEVER: Duration = Duration::from_hours(24);
    bb8::Pool::builder()
        .max_size(u32::try_from(builder.size).unwrap_or(u32::MAX))
        .min_idle(builder.min_idle)
        .idle_timeout(builder.idle_timeout)
        // Each session has its own, with jitter.
        .max_lifetime(None)
        .test_on_check_out(false)
        .retry_connection(false)
        .connection_timeout(NEVER)
        .queue_strategy(QueueStrategy::Lifo)
        .error_sink(Box::new(failures))
        .build_unchecked(manager)
}

/// Sweeps as long as somebody waits. A pool where nobody does has no timer that would wake the process.
async fn sweep(permits: Handoff<()>, waiters: Arc<Notify>) {
    let waiting = |lane: Lane| permits.stats(lane.index()).is_some_and(|stats| stats.waiting > 0);
    loop {
        waiters.notified().await;
        while Lane::ALL.into_iter().any(waiting) {
            sleep(SWEEP).await;
            permits.sweep(Instant::now());
        }
    }
}
