//! How a pool gets backends: as many as its waiters can use, and a few ahead of need; few at a time, with pauses after
//! failures.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::RngExt as _;
use tidegate_layers::backoff::Backoff;

use super::{Limits, Pool, PoolState, upstream};
use crate::backend::{Backend, ConnectError, Login};
use crate::exchange::Refusal;
use crate::sql::Lane;
use crate::telemetry::metrics;

/// Pause before a connect is tried again after a failure: full jitter up to this, doubling.
const BACKOFF_BASE: Duration = Duration::from_millis(100);
/// The pause never exceeds this.
const BACKOFF_CAP: Duration = Duration::from_secs(5);

/// So many backends are kept ready while writes take one after the other and give none back: one for the next write, and
/// one for the read that comes before there is another.
const SPARE: usize = 2;

/// How the writes of a pool get on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WritePace {
    Steady,
    /// Some take long, and keep their backends meanwhile.
    Slow,
}

/// What is known of a pool's connects.
#[derive(Debug)]
pub(super) struct Openings {
    trouble: Option<Trouble>,
    backoff: Backoff,
    /// Parameters that the last backend reported at login.
    reported: BTreeMap<Box<str>, Box<[u8]>>,
}

/// Connects fail.
#[derive(Debug, Clone)]
struct Trouble {
    since: Instant,
    retry_at: Instant,
    cause: Arc<ConnectError>,
}

impl Default for Openings {
    fn default() -> Self {
        Self { trouble: None, backoff: Backoff::new(BACKOFF_BASE, BACKOFF_CAP), reported: BTreeMap::new() }
    }
}

impl Pool {
    /// No code under this lock can panic half-way through a change, so a poisoned lock is still sound.
    fn openings(&self) -> MutexGuard<'_, Openings> {
        self.openings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no backend exists, only connects that do not succeed.
    fn has_none(&self) -> bool {
        self.open.load(Ordering::Relaxed) == self.opening.load(Ordering::Relaxed)
    }

    /// As [`Pool::has_none`]; those that were given up on do not count, either: they serve nobody again.
    fn has_none_alive(&self) -> bool {
        let PoolState { idle, leased, .. } = self.state();
        idle + leased == 0
    }

    /// Why there is no backend, if connects fail and there is none.
    pub(super) fn trouble(&self, lane: Lane) -> Option<Refusal> {
        let openings = self.openings();
        let trouble = openings.trouble.as_ref().filter(|_| self.has_none())?;
        Some(trouble.refusal(lane, Instant::now()))
    }

    /// As [`Pool::trouble`], once it has lasted for so long that waiting makes no sense.
    pub(super) fn hopeless(&self, lane: Lane) -> Option<Refusal> {
        if !self.has_none() {
            return None;
        }
        let openings = self.openings();
        let trouble = openings.trouble.as_ref().filter(|_| self.has_none())?;
        let now = Instant::now();
        let patience = self.upstream.limits().queue_timeout;
        let lasting = now.duration_since(trouble.since) > patience && now < trouble.retry_at;
        lasting.then(|| trouble.refusal(lane, now))
    }

    /// Starts as many connects as the waiters need and the limits allow. Inside a runtime of a worker, or of
    /// the main thread.
    pub(super) fn open_as_needed(self: &Arc<Self>) {
        let limits = self.upstream.limits();
        // No lock for a pool that is full. Who closes a backend looks here afterwards, and whoever waits was counted under
        // the lock that `wanted` takes: one of the two sees the other.
        if self.open.load(Ordering::Relaxed) >= limits.size {
            return;
        }
        let openings = self.openings();
        while self.backends.wanted() > self.opening.load(Ordering::Relaxed)
            && self.may_open(&openings, &limits)
        {
            if !self.start_opening() {
                return;
            }
        }
    }

    /// Keeps spare backends ready for reads while writes are slow. Called with every sweep, inside a runtime.
    pub(super) fn prepare_for(self: &Arc<Self>, pace: WritePace) {
        let spare = match pace {
            WritePace::Steady => 0,
            WritePace::Slow => SPARE,
        };
        self.spare.store(spare, Ordering::Relaxed);
        if spare > 0 {
            self.keep_ready(&self.upstream.limits());
        }
    }

    /// How many backends a pool in use has ready, idle or opening, before anybody needs them.
    pub(super) fn ready(&self, limits: &Limits) -> usize {
        limits.min_idle.max(self.spare.load(Ordering::Relaxed))
    }

    /// As [`Pool::open_as_needed`], for those that a pool in use keeps ready: one more with each look. What nobody waits for
    /// takes no place that another pool has or waits for, and is not tried again where connects fail.
    pub(super) fn keep_ready(self: &Arc<Self>, limits: &Limits) {
        let openings = self.openings();
        let may = openings.trouble.is_none() && self.may_open(&openings, limits);
        if self.lacks_ready(limits) && may && !self.upstream.is_starved() && self.upstream.take_place() {
            self.open_in_place();
        }
    }

    fn lacks_ready(&self, limits: &Limits) -> bool {
        let in_use = self.open.load(Ordering::Relaxed) > 0;
        let there = self.backends.idle() + self.opening.load(Ordering::Relaxed);
        in_use && there < self.ready(limits)
    }

    fn may_open(&self, openings: &Openings, limits: &Limits) -> bool {
        self.open.load(Ordering::Relaxed) < limits.size
            && openings.trouble.as_ref().is_none_or(|trouble| Instant::now() >= trouble.retry_at)
            && !self.database.is_paused()
    }

    /// Takes a place and opens a backend for it; false when there is no place. Under the lock of `openings`, so
    /// that two threads do not both take the last one.
    fn start_opening(self: &Arc<Self>) -> bool {
        let reserved = self.upstream.reserve(self, self.open.load(Ordering::Relaxed));
        if reserved {
            self.open_in_place();
        }
        reserved
    }

    /// Opens a backend in a place that was taken. Under the lock of `openings`, too.
    fn open_in_place(self: &Arc<Self>) {
        self.open.fetch_add(1, Ordering::AcqRel);
        self.opening.fetch_add(1, Ordering::AcqRel);
        let generation = self.generation.load(Ordering::Relaxed);
        tokio::spawn(Arc::clone(self).open(generation, upstream::current_worker()));
    }

    /// Opens one backend, within the connect deadline and the upstream's limit of connects at a time.
    async fn open(self: Arc<Self>, generation: u64, worker: usize) {
        let opening = Opening(Some(Arc::clone(&self)));
        let Ok(_place) = self.upstream.connects.acquire().await else { return };
        if !self.is_wanted() {
            return;
        }
        let (lifetime, patience) = {
            let limits = self.upstream.limits();
            (limits.max_lifetime.mul_f64(rand::rng().random_range(0.9..=1.1)), limits.connect_timeout)
        };
        let login = self.login();
        let connector = self.upstream.connector();
        let connect = connector.connect(&login, worker, lifetime, &|| ());
        let opened = match tokio::time::timeout(patience, connect).await {
            Ok(opened) => opened,
            Err(_) => Err(ConnectError::Timeout),
        };
        match opened {
            Ok(mut backend) => {
                backend.generation = generation;
                if login.replication.is_none() {
                    self.upstream.logins.worked(login);
                }
                backend.slot = self.upstream.guard.slots.take(backend.cancel_target.process_id, self.number);
                if backend.slot.is_none() {
                    // Backends that are being closed have it still. The next look at idle ones opens another.
                    return drop(tokio::spawn(backend.terminate()));
                }
                opening.succeeded(backend);
            }
            Err(error) => opening.failed(error),
        }
    }

    /// How its backends log in.
    pub fn login(&self) -> Login {
        Login {
            user: self.key.user.to_string(),
            database: self.key.database.to_string(),
            replication: self.key.replication.as_deref().map(str::to_owned),
            application_name: None,
            credential: self.credential(),
        }
    }

    /// Whether a connect that is about to start still has a purpose.
    fn is_wanted(&self) -> bool {
        self.backends.wanted() > 0 || self.backends.idle() < self.ready(&self.upstream.limits())
    }

    fn open_failed(self: &Arc<Self>, error: ConnectError) {
        metrics::get().connects_failed.increment(1);
        let error = Arc::new(error);
        let now = Instant::now();
        let mut openings = self.openings();
        self.opening.fetch_sub(1, Ordering::AcqRel);
        self.closed();
        let pause = openings.backoff.next(&mut rand::rng());
        let since = openings.trouble.as_ref().map_or(now, |trouble| trouble.since);
        openings.trouble = Some(Trouble { since, retry_at: now + pause, cause: Arc::clone(&error) });
        drop(openings);
        if !error.is_permanent() {
            self.upstream.trouble();
        } else if self.has_none_alive() {
            self.refuse_newcomers();
        }
        let pool = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            pool.open_as_needed();
        });
        tracing::warn!(
            upstream = %self.upstream.name, database = %self.key.database, user = %self.key.user,
            error = error.in_full(), "cannot open a backend"
        );
    }

    fn opened(self: &Arc<Self>, backend: Backend) {
        metrics::get().connects.increment(1);
        let mut openings = self.openings();
        self.opening.fetch_sub(1, Ordering::AcqRel);
        openings.trouble = None;
        openings.backoff.reset();
        if let Some(value) = backend.reported.get("in_hot_standby") {
            self.upstream.hinted(&**value == b"on");
        }
        if openings.reported != backend.reported {
            openings.reported = backend.reported.clone();
            self.welcomes.clear();
        }
        drop(openings);
        self.take_in(Box::new(backend));
        self.open_as_needed();
    }

    /// A new backend is there for whoever waits.
    fn take_in(self: &Arc<Self>, mut backend: Box<Backend>) {
        if backend.generation != self.generation.load(Ordering::Relaxed) || self.owes_place() {
            return self.retire(backend);
        }
        backend.idle_since_ms = crate::clock::now_ms();
        self.backends.put(backend);
    }
}

impl Trouble {
    fn refusal(&self, lane: Lane, now: Instant) -> Refusal {
        let retry_after = self.retry_at.saturating_duration_since(now).max(BACKOFF_BASE);
        if self.cause.is_permanent() {
            return Refusal::LoginRefused(Arc::clone(&self.cause));
        }
        Refusal::NoUpstream { lane, cause: Arc::clone(&self.cause), retry_after }
    }
}

/// The place of a backend that is being opened; dropping it gives the place back.
struct Opening(Option<Arc<Pool>>);

impl Opening {
    fn succeeded(mut self, backend: Backend) {
        if let Some(pool) = self.0.take() {
            pool.opened(backend);
        }
    }

    fn failed(mut self, error: ConnectError) {
        if let Some(pool) = self.0.take() {
            pool.open_failed(error);
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(pool) = self.0.take() {
            pool.opening.fetch_sub(1, Ordering::AcqRel);
            pool.closed();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use tidegate_layers::breaker::{Force, Phase};
    use tidegate_layers::shed::Ask;
    use tidegate_tests::wait_until;
    use tokio::net::UnixStream;
    use tokio::runtime::Handle;
    use tokio::time::Instant;

    use super::super::tests::{pool, pool_within, put};
    use super::super::{Acquire, Lease, PoolKey};
    use super::*;
    use crate::guard::{Running, SlotId};

    const SOON: Duration = Duration::from_secs(10);
    const ANYWHERE: usize = 0;
    /// Longer than a write takes, and shorter than one that makes a breaker suspect anything.
    const LONG: Duration = Duration::from_millis(40);

    /// A pool whose only backend runs a statement.
    struct Busy {
        pool: Arc<Pool>,
        began: Instant,
        slot: SlotId,
        running: Running,
        _lease: Lease,
        _server: UnixStream,
    }

    impl Busy {
        fn new(pool: Arc<Pool>, lane: Lane) -> Self {
            let server = put(&pool, 1);
            let began = Instant::now();
            let lease = pool.acquire_at_once(lane, &Ask::default(), began, ANYWHERE).unwrap();
            let guard = &pool.upstream.guard;
            let slot = guard.slots.take(1, pool.number).unwrap();
            let running = guard.begin(Some(&slot), lane, began).unwrap();
            Self { pool, began, slot, running, _lease: lease, _server: server }
        }

        /// Looks three times, so long after the statement began; gives how many backends are being opened after each look.
        fn look(&self, after: Duration) -> [usize; 3] {
            std::array::from_fn(|_| {
                self.pool.upstream.keep_spares(self.began + after);
                self.pool.state().opening
            })
        }
    }

    /// Another pool of the same server.
    fn sibling(pool: &Arc<Pool>) -> Arc<Pool> {
        pool.upstream.pool(PoolKey { database: "other".into(), ..pool.key.clone() })
    }

    #[tokio::test]
    async fn a_pool_whose_write_is_slow_has_two_backends_ready_and_its_neighbours_have_none() {
        // Seen: in the first moments of a stall each write kept one of the few backends that were idle, and the reads behind
        // them waited for connects. More than two, or in every pool, would be a burst at a server that is ill already.
        let writes = Busy::new(pool(), Lane::Write);
        let reads = Busy::new(sibling(&writes.pool), Lane::Read);

        assert_eq!(writes.look(Duration::ZERO), [0, 0, 0]);
        assert_eq!(writes.look(LONG), [1, 2, 2]);
        assert_eq!(reads.pool.state().opening, 0);

        writes.pool.upstream.guard.progress(Some(&writes.slot), &writes.running, writes.began + LONG);
        assert!(!writes.pool.upstream.keep_spares(writes.began + LONG), "a long COPY is not slow");
        assert_eq!(writes.pool.ready(&writes.pool.upstream.limits()), 0);
    }

    #[tokio::test]
    async fn a_write_that_has_run_for_seconds_and_a_walsender_are_no_beginning_of_a_stall() {
        // Both may go on for hours, and have the backend that they need; the sweep would hurry all the time.
        let long = Busy::new(pool(), Lane::Write);
        let key = PoolKey { replication: Some("database".into()), ..long.pool.key.clone() };
        let walsender = Busy::new(long.pool.upstream.pool(key), Lane::Write);

        assert_eq!(walsender.look(LONG), [0, 0, 0]);
        assert!(long.pool.upstream.keep_spares(long.began + LONG));
        assert!(!long.pool.upstream.keep_spares(long.began + Duration::from_secs(3)));
        assert_eq!(long.pool.ready(&long.pool.upstream.limits()), 0);
    }

    #[tokio::test]
    async fn what_nobody_waits_for_takes_only_a_place_that_is_free_and_wanted_by_nobody() {
        // The spare of one pool would be the only backend of another; and of a paused database there must be none.
        let small = Busy::new(pool_within(|limits| limits.size = 2), Lane::Write);
        assert_eq!(small.look(LONG), [1, 1, 1]);

        let full = Busy::new(pool_within(|limits| limits.max_per_upstream = 2), Lane::Write);
        assert_eq!(full.look(LONG), [0, 0, 0]);
        assert!(!full.pool.upstream.is_starved());

        let paused = Busy::new(pool(), Lane::Write);
        paused.pool.upstream.databases.pause(None).unwrap();
        assert_eq!(paused.look(LONG), [0, 0, 0]);
    }

    #[tokio::test]
    async fn nothing_is_opened_ahead_where_connects_fail() {
        // Each look of the sweep would be another connect to a server that has trouble enough: the pause after a failure is
        // for those who wait.
        let busy = Busy::new(pool(), Lane::Write);
        assert_eq!(busy.look(LONG), [1, 2, 2]);
        let pool = &busy.pool;
        wait_until(SOON, "nobody listens there", || pool.state().opening == 0).await;

        assert_eq!(busy.look(LONG), [0, 0, 0]);
        tokio::time::sleep(BACKOFF_BASE * 2).await;
        assert_eq!(busy.look(LONG), [0, 0, 0]);
    }

    #[tokio::test]
    async fn a_login_that_is_refused_sends_those_away_whom_no_backend_will_serve_and_nobody_else() {
        // After a change of the password the backends that are open go on, and serve whoever waits; without any, each
        // would wait in vain for as long as it may.
        let pool = pool();
        let _server = put(&pool, 1);
        let lease = pool.acquire_at_once(Lane::Read, &Ask::default(), Instant::now(), ANYWHERE).unwrap();
        let look = |acquire: &mut Acquire| Pin::new(acquire).poll(&mut Context::from_waker(Waker::noop()));
        let mut first = pool.enqueue(Lane::Read, Ask::default(), ANYWHERE);
        let mut second = pool.enqueue(Lane::Write, Ask::default(), ANYWHERE);
        assert!(look(&mut first).is_pending() && look(&mut second).is_pending());
        assert_eq!(pool.state().opening, 2);

        pool.open_failed(ConnectError::NoCredential("a password"));
        lease.give_back();

        let Poll::Ready(Ok(lease)) = look(&mut first) else { panic!("its backend has come back") };
        lease.give_up();
        pool.open_failed(ConnectError::NoCredential("a password"));
        assert!(matches!(look(&mut second), Poll::Ready(Err(_))));
    }

    #[tokio::test]
    async fn nothing_is_opened_ahead_where_reads_hang_or_writes_are_refused() {
        // A server that answers nothing takes connects and does not finish them; and writes that are not let in take nothing.
        for lane in Lane::ALL {
            let busy = Busy::new(pool(), Lane::Write);
            let upstream = &busy.pool.upstream;
            upstream.watch(&Handle::current(), &Handle::current());
            upstream.guard.force(lane, Force::Open);
            wait_until(SOON, "the order", || upstream.guard.phase(lane) == Phase::ForcedOpen).await;

            assert_eq!(busy.look(LONG), [0, 0, 0], "{lane:?}");
        }
    }
}
