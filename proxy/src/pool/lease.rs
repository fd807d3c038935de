//! The right to use one backend.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use tidegate_layers::shed;
use tokio::time::Instant;

use super::Pool;
use crate::backend::Backend;
use crate::exchange::Refusal;
use crate::guard::Zombie;
use crate::sql::Lane;

/// A backend on loan; [`Lease::give_back`] returns it. Dropping the lease closes the backend with RST, because nobody
/// vouches for its protocol position. Unless the server has closed it, too, its place and permit are kept until the server
/// says that the process is gone: it may still be busy there.
#[derive(Debug)]
#[must_use]
pub struct Lease {
    inner: Option<shed::Lease<Box<Backend>>>,
    pool: Arc<Pool>,
}

impl Lease {
    pub(super) fn new(inner: shed::Lease<Box<Backend>>, pool: Arc<Pool>) -> Self {
        pool.upstream.lent();
        Self { inner: Some(inner), pool }
    }

    /// Returns a backend that is idle, unpinned and that no cancel may hit any more.
    #[inline]
    pub fn give_back(mut self) {
        self.put_back();
    }

    /// As [`Lease::give_back`], where the lease lies. What is left of it is only good to be dropped.
    #[inline]
    pub fn put_back(&mut self) {
        if let Some(inner) = self.inner.take() {
            self.pool.put_back(inner);
        }
    }

    /// The pool that it is from.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Whether its server must not be used any more as it was when the backend was opened.
    #[inline]
    pub fn is_void(&self) -> bool {
        self.pool.upstream.is_void() && self.generation != self.pool.generation.load(Ordering::Relaxed)
    }

    /// The lane that it is charged to.
    #[inline]
    pub fn lane(&self) -> Lane {
        self.inner.as_ref().map_or(Lane::Read, lane_of)
    }

    /// Charges it to another lane, at once or when there is room. Nothing bounds the wait but the caller, and the breaker
    /// of that lane when it opens.
    pub fn poll_move(&mut self, lane: Lane, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(Ok(())) };
        inner.poll_move(lane.index(), cx).map_err(|refused| self.pool.refusal(lane, refused))
    }

    /// How many others go to the lane that it waits for before it does.
    pub fn moves_before(&self) -> usize {
        self.inner.as_ref().and_then(shed::Lease::moves_before).unwrap_or(0)
    }

    /// Stops waiting for another lane.
    pub fn stay(&mut self) {
        if let Some(inner) = &mut self.inner {
            inner.stay();
        }
    }

    /// Its exchange was served in time.
    #[inline]
    pub fn fared_well(&mut self) {
        if let Some(inner) = &mut self.inner {
            inner.fared_well();
        }
    }

    /// Its exchange took too long: the lane's limit shrinks at once, except in session mode.
    pub fn fared_badly(&mut self, at: Instant) {
        if let Some(inner) = &mut self.inner {
            inner.fared_badly(at);
        }
    }

    /// What dropping does, said aloud.
    pub fn give_up(self) {
        drop(self);
    }

    /// Closes the backend with a goodbye: it is idle, but not fit for others.
    pub async fn terminate(mut self) {
        if let Some(backend) = self.inner.take().and_then(shed::Lease::discard) {
            self.pool.lost();
            backend.terminate().await;
        }
    }
}

#[inline]
fn lane_of(lease: &shed::Lease<Box<Backend>>) -> Lane {
    if lease.lane() == Lane::Write.index() { Lane::Write } else { Lane::Read }
}

impl Deref for Lease {
    type Target = Backend;

    #[inline]
    fn deref(&self) -> &Backend {
        match &self.inner {
            Some(backend) => backend,
            None => unreachable!("the backend leaves only with the lease"),
        }
    }
}

impl DerefMut for Lease {
    #[inline]
    fn deref_mut(&mut self) -> &mut Backend {
        match &mut self.inner {
            Some(backend) => backend,
            None => unreachable!("the backend leaves only with the lease"),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.upstream.returned();
        let Some(mut inner) = self.inner.take() else { return };
        if inner.is_closed() {
            if let Some(backend) = inner.discard() {
                backend.reset();
                self.pool.lost();
            }
            return;
        }
        let lane = lane_of(&inner);
        let (backend, charge) = inner.detach();
        let Some(backend) = backend else { return };
        let process_id = backend.cancel_target.process_id;
        backend.reset();
        self.pool.given_up();
        let zombie = Zombie::new(process_id, lane, charge, Arc::clone(&self.pool));
        self.pool.upstream.guard.zombies.push(zombie);
    }
}
