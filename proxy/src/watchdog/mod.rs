//! Whether the process makes progress: [`Watchdog`].
//!
//! A plain OS thread, which no runtime can block, pokes a task on each runtime four times a second, which counts that
//! up, and looks at the counts. It alone says that the process is alive: to `/livez`, to systemd, and to the heartbeat.
//! The tasks have no timers: a runtime with a timer arms one in the kernel each time it waits for its sockets. A runtime that
//! does not count for [`stall`](crate::config::Watchdog::stall) is stalled: that is logged, journaled and alerted;
//! after [`exit_after`](crate::config::Watchdog::exit_after) the process ends, so that its supervisor starts it anew.
//!
//! Time is counted in rounds of the watchdog itself. A process that as a whole did not run (a stopped or migrated
//! machine, SIGSTOP) has not stalled.

mod rounds;
pub mod systemd;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::alerts::Alerts;
use crate::clock::millis;
use crate::config;
use crate::journal::Journal;

/// Between two rounds of the watchdog.
pub(crate) const PERIOD: Duration = Duration::from_millis(250);

/// Who is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Who {
    /// A data worker, by number.
    Worker(usize),
    /// The runtime of the control plane.
    Control,
    /// The main thread: signals, orders.
    Main,
    /// The thread that sweeps.
    Sweep,
    /// The watchdog itself.
    Watchdog,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Worker(number) => write!(f, "worker-{number}"),
            Self::Control => f.write_str("control"),
            Self::Main => f.write_str("main"),
            Self::Sweep => f.write_str("sweep"),
            Self::Watchdog => f.write_str("watchdog"),
        }
    }
}

/// A thread that makes no progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{who} has made no progress for {stalled_for:.1?}")]
pub struct Stalled {
    /// Which.
    pub who: Who,
    /// For how long.
    pub stalled_for: Duration,
}

/// What the threads tell, and what the watchdog made of it. Read and written without locks.
#[derive(Debug)]
pub struct Watchdog {
    watched: Vec<Watched>,
    origin: Instant,
    /// When the watchdog made its last round, in milliseconds since `origin`; 0 before the first.
    round_ms: AtomicU64,
    stall_ms: AtomicU64,
    exit_after_ms: AtomicU64,
}

#[derive(Debug)]
struct Watched {
    who: Who,
    /// Wakes the task that counts.
    poke: Notify,
    ticks: AtomicU64,
    stalled_ms: AtomicU64,
}

impl Watched {
    fn new(who: Who) -> Self {
        Self { who, poke: Notify::new(), ticks: AtomicU64::new(0), stalled_ms: AtomicU64::new(0) }
    }
}

impl Watchdog {
    /// Watches this many data workers, and the threads that there is one of.
    pub fn new(workers: usize, config: config::Watchdog) -> Arc<Self> {
        let all = (0..workers).map(Who::Worker).chain([Who::Control, Who::Main, Who::Sweep]);
        let watchdog = Self {
            watched: all.map(Watched::new).collect(),
            origin: Instant::now(),
            round_ms: AtomicU64::new(0),
            stall_ms: AtomicU64::new(0),
            exit_after_ms: AtomicU64::new(0),
        };
        watchdog.reload(config);
        Arc::new(watchdog)
    }

    /// Takes over new settings.
    pub fn reload(&self, config: config::Watchdog) {
        self.stall_ms.store(millis(config.stall), Ordering::Relaxed);
        self.exit_after_ms.store(millis(config.exit_after), Ordering::Relaxed);
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// When there can be no further thread.
    pub fn start(self: &Arc<Self>, alerts: Alerts, journal: Arc<Journal>) -> io::Result<()> {
        let rounds = rounds::Rounds::new(Arc::clone(self), alerts, journal);
        let name = "tidegate-watchdog".to_owned();
        std::thread::Builder::new().name(name).spawn(move || rounds.run()).map(drop)
    }

    /// Counts up for ever, once a round; to be spawned on the runtime that is watched.
    pub async fn tick(self: Arc<Self>, who: Who) {
        let Some(watched) = self.watched(who) else { return };
        loop {
            watched.ticks.fetch_add(1, Ordering::Relaxed);
            watched.poke.notified().await;
        }
    }

    /// Somebody who has no runtime makes progress.
    pub fn count(&self, who: Who) {
        if let Some(watched) = self.watched(who) {
            watched.ticks.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn watched(&self, who: Who) -> Option<&Watched> {
        self.watched.iter().find(|watched| watched.who == who)
    }

    /// Whoever makes progress will have counted by the next round. One who does not is poked once: it is woken already.
    fn poke_all(&self) {
        for watched in &self.watched {
            watched.poke.notify_one();
        }
    }

    /// Whether everything makes progress, the watchdog included.
    ///
    /// # Errors
    /// Who has stalled for longest.
    pub fn liveness(&self) -> Result<(), Stalled> {
        let limit = self.stall();
        let worst = self.stalls().max_by_key(|(_, stalled_for)| *stalled_for);
        match worst {
            Some((who, stalled_for)) if stalled_for >= limit => Err(Stalled { who, stalled_for }),
            Some(_) | None => Ok(()),
        }
    }

    /// Who is watched, and for how long each has made no progress; near zero when all is well.
    pub fn stalls(&self) -> impl Iterator<Item = (Who, Duration)> + '_ {
        let load = |watched: &Watched| {
            (watched.who, Duration::from_millis(watched.stalled_ms.load(Ordering::Relaxed)))
        };
        self.watched.iter().map(load).chain([(Who::Watchdog, self.own_stall())])
    }

    fn own_stall(&self) -> Duration {
        let now = millis(self.origin.elapsed());
        let round = self.round_ms.load(Ordering::Relaxed);
        Duration::from_millis(now.saturating_sub(round)).saturating_sub(PERIOD)
    }

    fn stall(&self) -> Duration {
        Duration::from_millis(self.stall_ms.load(Ordering::Relaxed))
    }

    /// `None` is never.
    fn exit_after(&self) -> Option<Duration> {
        let exit_after = self.exit_after_ms.load(Ordering::Relaxed);
        (exit_after > 0).then_some(Duration::from_millis(exit_after))
    }
}
