//! Backends that were given up on and may still be busy on the server: each keeps its place and its lane's
//! permit until the server says that it is gone, so that giving up never makes room for more of the same.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidegate_layers::shed::Charge;
use tokio::time::Instant;

use crate::backend::Backend;
use crate::pool::Pool;
use crate::sql::Lane;

/// A zombie of which nothing can be learned is taken for dead after this: by then the server has noticed that
/// its connection is gone, or the whole server is (`tcp_keepalives` of our backends end within 5 s).
const FORGET_AFTER: Duration = Duration::from_secs(30);

/// One of them. Dropping it frees its place and its permit.
#[derive(Debug)]
#[must_use = "dropping it frees its place"]
pub struct Zombie {
    /// The server process.
    process_id: u32,
    /// The lane that it is charged to.
    lane: Lane,
    /// When its connection was closed.
    since: Instant,
    /// When the server last said that it is there.
    seen: Instant,
    charge: Option<Charge<Box<Backend>>>,
    pool: Arc<Pool>,
}

impl Zombie {
    /// Of a backend of `pool` whose connection was closed just now.
    pub fn new(process_id: u32, lane: Lane, charge: Charge<Box<Backend>>, pool: Arc<Pool>) -> Self {
        let now = Instant::now();
        Self { process_id, lane, since: now, seen: now, charge: Some(charge), pool }
    }
}

impl Drop for Zombie {
    fn drop(&mut self) {
        // The permit first: its place could otherwise be taken by a backend that finds no permit.
        drop(self.charge.take());
        self.pool.buried();
    }
}

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Zombies {
    closed: Mutex<Vec<Zombie>>,
    /// How many of them there are in each lane, for those who only look.
    counts: [AtomicUsize; Lane::ALL.len()],
    left: AtomicUsize,
}

/// One that is left alone: its connection stays, and so do its place and its permit, until it answers.
#[derive(Debug)]
#[must_use = "dropping it says that it is over"]
pub struct LeftAlone(Arc<Pool>);

impl LeftAlone {
    /// A backend of `pool`.
    pub fn new(pool: Arc<Pool>) -> Self {
        pool.upstream.guard.zombies.left.fetch_add(1, Ordering::Relaxed);
        Self(pool)
    }
}

impl Drop for LeftAlone {
    fn drop(&mut self) {
        self.0.upstream.guard.zombies.left.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Zombies {
    /// Takes one in.
    pub fn push(&self, zombie: Zombie) {
        self.counts[zombie.lane.index()].fetch_add(1, Ordering::Relaxed);
        self.lock().push(zombie);
    }

    /// The processes to ask the server about.
    pub fn process_ids(&self) -> Vec<u32> {
        self.lock().iter().map(|zombie| zombie.process_id).collect()
    }

    /// Those that are chosen, and for how long each has been one.
    pub fn ages(&self, chosen: impl Fn(u32) -> bool, now: Instant) -> Vec<(u32, Duration)> {
        let zombies = self.lock();
        let chosen = zombies.iter().filter(|zombie| chosen(zombie.process_id));
        chosen.map(|zombie| (zombie.process_id, now.saturating_duration_since(zombie.since))).collect()
    }

    /// How many there are of both kinds.
    pub fn all(&self) -> usize {
        let closed = Lane::ALL.map(|lane| self.count(lane)).into_iter().sum::<usize>();
        closed + self.left.load(Ordering::Relaxed)
    }

    /// How many there are in a lane whose connections are closed.
    pub fn count(&self, lane: Lane) -> usize {
        self.counts[lane.index()].load(Ordering::Relaxed)
    }

    /// Frees those that the server was `asked` about and that are not among the `alive`, and those of which nothing was
    /// learned for too long.
    pub fn bury(&self, asked: &[u32], alive: impl Fn(u32) -> bool) {
        let now = Instant::now();
        let mut zombies = self.lock();
        let is_gone = |zombie: &mut Zombie| {
            if !asked.contains(&zombie.process_id) {
                return now.saturating_duration_since(zombie.seen) > FORGET_AFTER;
            }
            zombie.seen = now;
            !alive(zombie.process_id)
        };
        let gone: Vec<Zombie> = zombies.extract_if(.., is_gone).collect();
        drop(zombies);
        for zombie in &gone {
            self.counts[zombie.lane.index()].fetch_sub(1, Ordering::Relaxed);
        }
        // Not under the lock: each takes locks of its pool.
        drop(gone);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Zombie>> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
