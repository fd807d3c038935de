//! What happens to a connection whose user left midway.
//!
//! It is taken behind the user's back through: cancel, wait for the end of the cancel, wait for the answer, ROLLBACK;
//! each under a bound. If it is provably idle then, it goes back into the pool; else its socket is reset. Its
//! permit stays taken all the while, also after a reset until its backend is seen to be gone, so the server never
//! has more of our backends than the pool has permits (but for the control connections).
//!
//! A COMMIT is not cancelled, nor is a write that waits for a synchronous standby (unless the pool is told to), nor one
//! behind a sidecar that has had all its time: it is left alone and watched until it ends. The bound of the lane keeps
//! such zombies few.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tidegate_layers::shed::Charge;
use tokio::time::{Instant, sleep, timeout};

use crate::config::SyncWait;
use crate::connection::Held;
use crate::connector::Place;
use crate::control::BackendState;
use crate::names;
use crate::pool::Shared;
use crate::session::Session;
use crate::words::Lane;

/// A statement that ends this soon needs no cancel.
const GRACE: Duration = Duration::from_millis(20);
/// After a cancel, the answer must come within this time.
const DRAIN_MAX: Duration = Duration::from_secs(1);
const ROLLBACK_MAX: Duration = Duration::from_millis(500);

/// How often a zombie is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Without a look at the server, a backend counts as gone after this long: with the settings made at login it notices
/// a client that is gone within two seconds, or its keepalive does in eleven.
const BLIND_MAX: Duration = Duration::from_secs(10);

/// What its user left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// A COMMIT.
    Commit,
    /// A write that commits by itself and has had all its time: a sidecar ends it, and sees what it waits for.
    LateWrite,
    /// Whatever else.
    Statement,
}

/// What became of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Idle,
    Broken,
}

/// Recovers in a task of the pool's runtime.
pub(crate) fn start(shared: &Arc<Shared>, held: Held, lane: Lane, left: Left) {
    shared.runtime.spawn(recover(Arc::clone(shared), held, lane, left));
}

async fn recover(shared: Arc<Shared>, held: Held, lane: Lane, left: Left) {
    let Held { mut session, lease } = held;
    let end = settle(&shared, &mut session, lane, left).await;
    let (place, pid, sidecar) = (session.place().clone(), session.pid(), session.has_sidecar());
    if end == End::Idle && session.is_idle() {
        names::recovered(&shared.name, lane, "reused");
        drop(session);
        drop(lease);
        return;
    }
    tracing::warn!(pool = &*shared.name, lane = lane.word(), pid, "connection discarded");
    names::recovered(&shared.name, lane, "discarded");
    session.doom();
    drop(session);
    let (_, charge) = lease.detach();
    // A sidecar looks after its backends itself.
    if !sidecar {
        outlive(&shared, lane, &place, pid).await;
    }
    release(&shared, charge);
}

fn release(shared: &Shared, charge: Charge<()>) {
    drop(charge);
    shared.permits.put(());
}

async fn settle(shared: &Shared, session: &mut Session, lane: Lane, left: Left) -> End {
    session.cancelled().await;
    if session.is_lost() {
        return End::Broken;
    }
    // Answers come in order: when this one is answered, everything before it is, written or not.
    if end_of_statement(shared, session, lane, left).await == End::Broken {
        return End::Broken;
    }
    session.cancelled().await;
    let wire = Arc::clone(session.wire());
    if wire.is_idle() {
        session.answered();
        // The next user is not to be charged with it.
        wire.forget();
        return End::Idle;
    }
    match timeout(ROLLBACK_MAX, session.client().batch_execute("ROLLBACK")).await {
        Ok(Ok(())) if wire.is_idle() => {
            session.forget_hints();
            session.answered();
            wire.forget();
            End::Idle
        }
        Ok(_) | Err(_) => End::Broken,
    }
}

async fn end_of_statement(shared: &Shared, session: &Session, lane: Lane, left: Left) -> End {
    let barrier = session.client().batch_execute("");
    let mut barrier = std::pin::pin!(barrier.map(|answer| match answer {
        Ok(()) => End::Idle,
        // A cancel may hit the barrier itself: that is an answer, too.
        Err(error) if error.as_db_error().is_some() && !error.is_closed() => End::Idle,
        Err(_) => End::Broken,
    }));
    if let Ok(end) = timeout(GRACE, barrier.as_mut()).await {
        return end;
    }
    if is_left_alone(shared, session, lane, left).await {
        return watch_zombie(shared, session, lane, barrier).await;
    }
    if shared.cancels_are_futile(lane) {
        return End::Broken;
    }
    session.start_cancel();
    timeout(DRAIN_MAX, barrier).await.unwrap_or(End::Broken)
}

async fn is_left_alone(shared: &Shared, session: &Session, lane: Lane, left: Left) -> bool {
    if left == Left::Commit {
        return true;
    }
    if lane == Lane::Read || shared.sync_wait == SyncWait::Cancel {
        return false;
    }
    if session.has_sidecar() {
        return left == Left::LateWrite;
    }
    shared.control.backend(session.place(), session.pid()).await == BackendState::WaitsForStandby
}

/// Waits for the end of a statement that nobody may cancel, however long it takes, as long as there is one.
async fn watch_zombie(
    shared: &Shared,
    session: &Session,
    lane: Lane,
    mut barrier: impl Future<Output = End> + Unpin,
) -> End {
    let _zombie = Zombie::new(shared, lane);
    names::recovered(&shared.name, lane, "left");
    let mut closed = shared.closed.clone();
    let mut unsure_since = None;
    loop {
        tokio::select! {
            end = &mut barrier => return end,
            _ = closed.changed() => return End::Broken,
            () = sleep(LOOK_EVERY) => {}
        }
        let state = if session.has_sidecar() {
            BackendState::Unknown
        } else {
            shared.control.backend(session.place(), session.pid()).await
        };
        match state {
            BackendState::Gone => return End::Broken,
            BackendState::WaitsForStandby | BackendState::Busy => unsure_since = None,
            // It has answered, and the answer got lost; or nobody can look. A frozen server cannot be told from a
            // lost answer, so this ends as well; the backend is charged until it is seen to be gone.
            BackendState::Idle | BackendState::Unknown => {
                let since = *unsure_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= BLIND_MAX {
                    return End::Broken;
                }
            }
        }
    }
}

/// Waits until the backend of a connection that was reset is gone.
async fn outlive(shared: &Shared, lane: Lane, place: &Place, pid: i32) {
    let _zombie = Zombie::new(shared, lane);
    let mut closed = shared.closed.clone();
    let mut blind_since = None;
    loop {
        match shared.control.backend(place, pid).await {
            BackendState::Gone => return,
            BackendState::WaitsForStandby | BackendState::Busy | BackendState::Idle => blind_since = None,
            BackendState::Unknown => {
                let since = *blind_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= BLIND_MAX {
                    return;
                }
            }
        }
        tokio::select! {
            _ = closed.changed() => return,
            () = sleep(LOOK_EVERY) => {}
        }
    }
}

/// Counts as a zombie while it lives.
struct Zombie<'a>(&'a Shared, Lane);

impl<'a> Zombie<'a> {
    fn new(shared: &'a Shared, lane: Lane) -> Self {
        names::zombies(&shared.name, lane, 1.0);
        Self(shared, lane)
    }
}

impl Drop for Zombie<'_> {
    fn drop(&mut self) {
        names::zombies(&self.0.name, self.1, -1.0);
    }
}
