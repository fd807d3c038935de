//! What keeps a server that hangs from hanging those who use it: per upstream, a breaker for each lane, the
//! deadlines of what runs, and the zombies: backends that were given up on and may still be busy over there.
//!
//! The data path touches atomics here and decides nothing; decisions are made on the control thread, by the
//! watchers that [`Guard::new`] returns.

pub mod hot;
mod pager;
mod reports;
mod senses;
pub mod slots;
mod watcher;
pub mod zombies;

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use rand::SeedableRng as _;
use tidegate_layers::breaker::{
    BreakerConfig, Change, CircuitOpen, Force, Handle, Outcome, Phase, Senses, Ticket, Watchdog,
};
use tokio::sync::Notify;
use tokio::time::Instant;

pub use hot::Hot;
pub(crate) use reports::stall;
pub use slots::{SlotId, Slots};
pub use zombies::{LeftAlone, Zombie, Zombies};

use crate::alerts::Alerts;
use crate::backend::{Connector, Login};
use crate::clock;
use crate::config;
use crate::exchange::{Cause, Diagnosis};
use crate::journal::Journal;
use crate::pool::{Learned, Upstream};
use crate::probe::{Control, Diagnoser, Pulse, ReadProbe, WriteProbe};
pub use crate::probe::{Look, Looks, Wait};
use crate::sql::Lane;

/// A breaker whose causes are diagnoses.
pub type Breaker = Handle<Arc<Diagnosis>>;

/// What a breaker says when it refuses.
pub type Refused = CircuitOpen<Arc<Diagnosis>>;

/// A task that has to run on the control thread.
pub type Watcher = Pin<Box<dyn Future<Output = ()> + Send>>;

/// See the module documentation.
#[derive(Debug)]
pub struct Guard {
    breakers: [Breaker; Lane::ALL.len()],
    /// What is in flight, by backend.
    pub slots: Arc<Slots>,
    /// Backends that were given up on.
    pub zombies: Zombies,
    /// What those that are slow wait for.
    pub looks: Arc<Looks>,
    /// Reads that turned out to write.
    pub learned: Learned,
    /// Writes that wait for locks.
    pub hot: Hot,
    /// Our own connections to the server.
    pub control: Arc<Control>,
    /// Asks the server for a write.
    pub write_probe: WriteProbe,
    /// Asks the server for a read.
    pub read_probe: ReadProbe,
    changes: [ArcSwap<Standing>; Lane::ALL.len()],
    made: Instant,
    /// Somebody wants a look, or an answer.
    asked: Notify,
    /// The processes that a look was asked for at.
    asked_for: Mutex<Vec<u32>>,
    doubted: AtomicBool,
    duty: AtomicU8,
    /// How often each breaker opened.
    trips: [AtomicU64; Lane::ALL.len()],
    /// When an application's write committed last, on the clock.
    wrote_ms: AtomicU64,
    reporters: OnceLock<Reporters>,
    /// Only the control thread's.
    paging: Mutex<reports::Paging>,
}

/// Who is told of what happens to a lane.
#[derive(Debug, Clone)]
pub struct Reporters {
    /// Keeps it.
    pub journal: Arc<Journal>,
    /// Pages somebody.
    pub alerts: Alerts,
}

/// Whether writes are expected of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Duty {
    /// It is the primary, or the only server.
    #[default]
    Writes,
    /// Another is the primary: its write lane is of no concern.
    Reads,
    /// There is no primary. Whether it would take writes is not to be tried, but if it refused them, it still does.
    Vacant,
}

/// Since when a lane is as it is, and why.
#[derive(Debug, Clone)]
pub struct Standing {
    /// The phase.
    pub phase: Phase,
    /// Since when the lane is served, refused or recovering, as the phase says.
    pub since: SystemTime,
    /// What is wrong.
    pub cause: Option<Arc<Diagnosis>>,
}

/// How to reach the server, and as whom.
pub struct Access {
    /// Where it is, as of now.
    pub connector: Arc<ArcSwap<Connector>>,
    /// Who asks.
    pub logins: Arc<Logins>,
}

/// Who asks our own questions: the user of `[cluster]`, or else whoever logged in last.
#[derive(Debug, Default)]
pub struct Logins {
    /// The configured one.
    pub cluster: ArcSwapOption<Login>,
    /// Of the backend that was opened last.
    last: ArcSwapOption<Login>,
    arrived: Notify,
}

impl Logins {
    /// An application's login worked.
    pub fn worked(&self, login: Login) {
        if self.last.swap(Some(Arc::new(login))).is_none() {
            self.arrived.notify_one();
        }
    }

    /// Waits until somebody is known to ask as.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn first(&self) {
        self.arrived.notified().await;
    }

    fn get(&self) -> Option<Login> {
        let login = self.cluster.load_full().or_else(|| self.last.load_full());
        login.map(|login| Login::clone(&login))
    }
}

/// An exchange that was admitted and runs.
#[derive(Debug, Clone, Copy)]
#[must_use = "tell how it ended: Guard::end"]
pub struct Running {
    ticket: Option<Ticket>,
    /// The lane that it is charged to.
    pub lane: Lane,
    /// Since when.
    pub since: Instant,
}

impl Guard {
    /// For `upstream`, with closed breakers, and the tasks that watch them.
    pub fn new(
        config: &BreakerConfig,
        slots: usize,
        access: Access,
        upstream: &Weak<Upstream>,
    ) -> (Self, Vec<Watcher>) {
        let Access { connector, logins } = access;
        let control =
            Arc::new(Control::new(Box::new(move || connector.load_full()), Box::new(move || logins.get())));
        let slots_len = slots;
        let slots = Arc::new(Slots::new(slots));
        let looks = Arc::new(Looks::default());
        let write_probe = WriteProbe::new(Arc::clone(&control));
        let read_probe = ReadProbe::new(Arc::clone(&control));
        let findings = Arc::<senses::Findings>::default();
        let mut watchers: Vec<Watcher> = vec![Box::pin(watcher::watch(Weak::clone(upstream)))];
        let breakers = Lane::ALL.map(|lane| {
            let (probe, pulse) = match lane {
                Lane::Read => (senses::LaneProbe::Read(read_probe.clone()), read_probe.pulse()),
                Lane::Write => {
                    let probe = senses::LaneProbe::Write(write_probe.clone(), Weak::clone(upstream));
                    (probe, write_probe.pulse())
                }
            };
            let stuck = Arc::clone(&slots);
            let stuck = move || stuck.running_longer_than(STUCK_LOOK);
            let diagnoser =
                Diagnoser::new(Arc::clone(&control), Arc::clone(&looks), Arc::clone(pulse), Box::new(stuck));
            let senses = Senses {
                probe,
                diagnose: senses::Examiner::new(diagnoser, &findings),
                events: senses::Announcer::new(upstream, lane),
                random: rand::rngs::StdRng::from_rng(&mut rand::rng()),
            };
            let (breaker, watchdog) = Watchdog::new(*config, slots_len, senses);
            watchers.push(Box::pin(watchdog.run()));
            breaker
        });
        let guard = Self {
            breakers,
            slots,
            zombies: Zombies::default(),
            looks,
            learned: Learned::default(),
            hot: Hot::default(),
            control,
            write_probe,
            read_probe,
            made: Instant::now(),
            changes: Lane::ALL.map(|_| ArcSwap::from_pointee(Standing::closed())),
            asked: Notify::new(),
            asked_for: Mutex::default(),
            doubted: AtomicBool::new(false),
            duty: AtomicU8::new(Duty::Writes as u8),
            trips: Default::default(),
            wrote_ms: AtomicU64::new(0),
            reporters: OnceLock::new(),
            paging: Mutex::default(),
        };
        (guard, watchers)
    }

    /// Closes our own connections to the server.
    pub fn hang_up(&self) {
        self.read_probe.hang_up();
        self.write_probe.hang_up();
        self.control.leave();
    }

    /// Takes new rules for its breakers over.
    pub fn configure(&self, config: &BreakerConfig) {
        for breaker in &self.breakers {
            breaker.configure(*config);
        }
    }

    /// The breaker of a lane.
    #[inline]
    pub fn breaker(&self, lane: Lane) -> &Breaker {
        let [read, write] = &self.breakers;
        match lane {
            Lane::Read => read,
            Lane::Write => write,
        }
    }

    /// Whether exchanges of a lane are let through now.
    ///
    /// # Errors
    /// Why not.
    #[inline]
    pub fn admit(&self, lane: Lane, now: Instant) -> Result<(), Refused> {
        self.breaker(lane).admit(now).map(drop).map_err(|open| self.explain(lane, open))
    }

    /// What is refused by order has no other cause.
    #[cold]
    fn explain(&self, lane: Lane, mut open: Refused) -> Refused {
        static FORCED: LazyLock<Arc<Diagnosis>> = LazyLock::new(|| Arc::new(Diagnosis::of(Cause::Forced)));
        if open.cause.is_none() && self.phase(lane) == Phase::ForcedOpen {
            open.cause = Some(Arc::clone(&FORCED));
        }
        open
    }

    /// An exchange begins on the backend of a slot.
    ///
    /// # Errors
    /// The breaker of the lane is open.
    #[inline]
    pub fn begin(&self, slot: Option<&SlotId>, lane: Lane, now: Instant) -> Result<Running, Refused> {
        let ticket = self.breaker(lane).admit(now).map_err(|open| self.explain(lane, open))?;
        Ok(self.watch(slot, lane, now, Some(ticket)))
    }

    /// As [`Guard::begin`], for an exchange that is let through whatever the breaker says.
    pub fn begin_anyway(&self, slot: Option<&SlotId>, lane: Lane, now: Instant) -> Running {
        let ticket = self.breaker(lane).admit(now).ok();
        self.watch(slot, lane, now, ticket)
    }

    /// What runs goes on in this lane, if that is a higher one: from now on it is watched there.
    ///
    /// # Errors
    /// The breaker of the lane is open.
    #[inline]
    pub fn upgrade(
        &self,
        slot: Option<&SlotId>,
        running: Running,
        lane: Lane,
        now: Instant,
    ) -> Result<Running, Refused> {
        if lane <= running.lane {
            return Ok(running);
        }
        let upgraded = self.begin(slot, lane, now)?;
        let left = self.breaker(running.lane);
        if let Some(slot) = slot {
            left.slots().end(slot.index());
        }
        if let Some(ticket) = running.ticket {
            left.complete(ticket, Outcome::Ignored, now);
        }
        Ok(upgraded)
    }

    #[inline]
    fn watch(&self, slot: Option<&SlotId>, lane: Lane, now: Instant, ticket: Option<Ticket>) -> Running {
        if let Some(slot) = slot {
            self.breaker(lane).slots().begin(slot.index(), now);
            slot.begin(now);
        }
        Running { ticket, lane, since: now }
    }

    /// Bytes moved: the exchange is not stuck, however long it takes.
    pub fn progress(&self, slot: Option<&SlotId>, running: &Running, now: Instant) {
        if let Some(slot) = slot {
            self.breaker(running.lane).slots().progress(slot.index(), now);
        }
    }

    /// The exchange has ended. Returns how long it took.
    #[inline]
    pub fn end(&self, slot: Option<&SlotId>, running: Running, outcome: Outcome, now: Instant) -> Duration {
        let breaker = self.breaker(running.lane);
        if let Some(slot) = slot {
            breaker.slots().end(slot.index());
            slot.end();
        }
        let took = now.saturating_duration_since(running.since);
        if let Some(ticket) = running.ticket {
            breaker.complete_after(ticket, took, outcome, now);
        }
        took
    }

    /// Something failed in a lane before it got a backend.
    pub fn failed(&self, lane: Lane, now: Instant) {
        let breaker = self.breaker(lane);
        if let Ok(ticket) = breaker.admit(now) {
            breaker.complete(ticket, Outcome::Failed, now);
        }
    }

    /// A server refused a write: whether it can take any is to be found out at once.
    pub fn doubt(&self) {
        self.doubted.store(true, Ordering::Release);
        self.asked.notify_one();
    }

    fn is_doubted(&self) -> bool {
        self.doubted.swap(false, Ordering::AcqRel)
    }

    /// What a server process was seen waiting for since its exchange began.
    pub fn look(&self, process_id: u32, began: Instant) -> Option<Look> {
        self.looks.since(began, process_id)
    }

    /// Asks for a look at this server process now, however short a time it has run for.
    pub fn ask_for_look(&self, process_id: u32) {
        // More than that means that nobody looks, and whoever asks goes on without it.
        const ASKED_MAX: usize = 1024;
        let mut asked_for = self.asked_for.lock().unwrap_or_else(PoisonError::into_inner);
        if asked_for.len() < ASKED_MAX {
            asked_for.push(process_id);
        }
        drop(asked_for);
        self.asked.notify_one();
    }

    /// Whether writes are expected of the server from now on.
    pub fn assign(&self, duty: Duty) {
        let before = self.duty.swap(duty as u8, Ordering::AcqRel);
        if duty == Duty::Writes && before != duty as u8 {
            self.breaker(Lane::Write).expect();
        }
    }

    /// See [`Guard::assign`].
    pub fn duty(&self) -> Duty {
        let duty = self.duty.load(Ordering::Acquire);
        [Duty::Writes, Duty::Reads, Duty::Vacant]
            .into_iter()
            .find(|known| *known as u8 == duty)
            .unwrap_or_default()
    }

    /// Whether it is the server that takes writes.
    pub fn is_primary(&self) -> bool {
        self.duty() == Duty::Writes
    }

    /// A write of an application is committed.
    #[inline]
    pub fn wrote(&self) {
        self.wrote_ms.store(clock::now_ms(), Ordering::Relaxed);
    }

    /// How long ago a write was seen to commit, an application's or a probe's.
    pub fn last_write(&self) -> Option<Duration> {
        let wrote_ms = self.wrote_ms.load(Ordering::Relaxed);
        let wrote = (wrote_ms > 0).then(|| clock::since(wrote_ms));
        let probed = self.write_probe.pulse().last_good().map(|good| good.at.elapsed());
        wrote.into_iter().chain(probed).min()
    }

    /// From now on these are told.
    pub fn report_to(&self, reporters: Reporters) {
        // The first ones stay.
        let _ = self.reporters.set(reporters);
    }

    fn paging(&self) -> MutexGuard<'_, reports::Paging> {
        self.paging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often the breaker of a lane has opened.
    pub fn trips(&self, lane: Lane) -> u64 {
        self.trips.get(lane.index()).map_or(0, |trips| trips.load(Ordering::Relaxed))
    }

    /// What the probes of a lane found.
    pub fn pulse(&self, lane: Lane) -> &Arc<Pulse> {
        match lane {
            Lane::Read => self.read_probe.pulse(),
            Lane::Write => self.write_probe.pulse(),
        }
    }

    /// How long the oldest exchange of a lane has run without progress. `None` if nothing runs.
    pub fn oldest(&self, lane: Lane) -> Option<Duration> {
        let slots = self.breaker(lane).slots();
        let scan = slots.scan(self.made, Instant::now(), Duration::MAX);
        (scan.in_flight > 0).then_some(scan.oldest)
    }

    /// The numbers of the pools of which a write has run for so long without progress. As long as nothing has it costs what
    /// a sweep does.
    pub fn pools_with_slow_writes(&self, slow: &Range<Duration>, now: Instant) -> Vec<u64> {
        let writes = self.breaker(Lane::Write).slots();
        let is_slow_write = |slot| writes.age(slot, now).is_some_and(|age| slow.contains(&age));
        self.slots.pools_running_longer_than(slow.start, now, is_slow_write)
    }

    /// Whether backends that are opened ahead of need can be of use: more writes are let in, which may hang, too, and
    /// reads get answers. Where these hang, connects do so as well.
    pub fn spares_help(&self) -> bool {
        let reads_go_on = match self.phase(Lane::Read) {
            Phase::Closed | Phase::Ramp { .. } | Phase::ForcedClosed => true,
            Phase::Suspect | Phase::Open | Phase::HalfOpen | Phase::ForcedOpen => false,
        };
        reads_go_on && self.phase(Lane::Write).admits()
    }

    /// A lane's breaker changed.
    fn changed(&self, lane: Lane, change: &Change<Arc<Diagnosis>>) {
        if change.to == Phase::Open
            && change.from != Phase::Open
            && let Some(trips) = self.trips.get(lane.index())
        {
            trips.fetch_add(1, Ordering::Relaxed);
        }
        let [read, write] = &self.changes;
        let standing = match lane {
            Lane::Read => read,
            Lane::Write => write,
        };
        let old = standing.load_full();
        let mut new = Standing { phase: change.to, since: old.since, cause: change.cause.clone() };
        // Probes in between, or the next step of a ramp, are not a new state for those who are refused or let in.
        if new.words() != old.words() {
            new.since = SystemTime::now();
        }
        standing.store(Arc::new(new));
    }

    /// Since when a lane is as it is, and why.
    pub fn standing(&self, lane: Lane) -> Arc<Standing> {
        let [read, write] = &self.changes;
        match lane {
            Lane::Read => read.load_full(),
            Lane::Write => write.load_full(),
        }
    }

    /// Orders a lane's breaker.
    pub fn force(&self, lane: Lane, force: Force) {
        self.breaker(lane).force(force);
    }

    /// Whether a lane is under suspicion not just for some of what runs there: it may not have room soon.
    pub fn hangs(&self, lane: Lane, config: &BreakerConfig, now: Instant) -> bool {
        let breaker = self.breaker(lane);
        breaker.phase() == Phase::Suspect && {
            let scan = breaker.slots().scan(self.made, now, config.stuck_min);
            scan.suspect * 100 >= scan.in_flight * usize::from(config.stuck_share)
        }
    }

    /// What the breaker of a lane is doing.
    pub fn phase(&self, lane: Lane) -> Phase {
        self.breaker(lane).phase()
    }
}

impl Standing {
    fn closed() -> Self {
        Self { phase: Phase::Closed, since: SystemTime::now(), cause: None }
    }

    /// The state of the lane, for people.
    pub const fn words(&self) -> &'static str {
        match self.phase {
            Phase::Closed => "served",
            Phase::Suspect => "served, under suspicion",
            Phase::Open | Phase::HalfOpen => "refused",
            Phase::Ramp { .. } => "recovering",
            Phase::ForcedOpen => "refused by order",
            Phase::ForcedClosed => "served by order",
        }
    }

    /// What is wrong, in a word.
    pub fn cause_word(&self) -> Option<&'static str> {
        self.cause.as_ref().map(|diagnosis| diagnosis.cause.word())
    }
}

/// The breaker's settings from the configuration.
pub fn breaker_config(config: &config::Breaker) -> BreakerConfig {
    let percent = |share: f64| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share is in (0, 1]")]
        let percent = (share * 100.0).round() as u8;
        percent
    };
    BreakerConfig {
        stuck_min: config.stuck_min,
        stuck_max: config.stuck_max,
        stuck_calls: config.stuck_count,
        stuck_share: percent(config.stuck_share),
        consecutive_failures: u32::try_from(config.consecutive_failures).unwrap_or(u32::MAX),
        rate_window: config.rate_window,
        rate_calls: u64::try_from(config.rate_calls).unwrap_or(u64::MAX),
        rate_share: percent(config.rate_share),
        probe_closed: config.probe_interval,
        probe_other: config.probe_open_interval,
        probe_timeout: config.probe_timeout,
        good_probes: u32::try_from(config.probe_successes).unwrap_or(u32::MAX),
        hold_min: config.open_min,
        hold_max: config.open_max,
        ..BreakerConfig::default()
    }
}

/// A backend is asked about by a diagnosis when its exchange has run for so long.
const STUCK_LOOK: Duration = Duration::from_millis(100);

/// Latest time at which the look at a backend that was asked for must be there.
pub const LOOK_WITHIN: Duration = Duration::from_millis(150);
