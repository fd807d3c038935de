//! The connection that was given back last, at hand for whoever comes next.
//!
//! Most users come one after the other, and the same connection serves them all; to take it from the stock and to put
//! it back, with the stock's lock, queue and timer, would be most of what the pool costs them. So one connection stays
//! here for a while. It is in use as far as the stock is concerned, and goes back there as soon as somebody waits for
//! one, or when nobody has wanted it for a second.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::pool::Pooled;

/// How long it stays without being used. Then the idle timeout of the stock begins.
const COOLS_IN: Duration = Duration::from_secs(1);

/// See the [module](self).
#[derive(Default)]
pub(crate) struct Warm {
    place: Mutex<Place>,
    taken_up: Notify,
}

#[derive(Default)]
struct Place {
    session: Option<Pooled>,
    /// Who waits for one of the stock: to keep one from them could make them wait for a connect.
    waiting: usize,
    /// Whether [`Warm::cool`] will look.
    watched: bool,
}

impl Warm {
    /// The connection, or the right to wait for one of the stock.
    pub(crate) fn take(&self) -> Result<Pooled, Waiting<'_>> {
        let mut place = self.place();
        let mut session = place.session.take().ok_or_else(|| {
            place.waiting += 1;
            Waiting(self)
        })?;
        drop(place);
        session.doubt();
        Ok(session)
    }

    /// Keeps a connection that is fit for use, or returns it.
    pub(crate) fn keep(&self, session: Pooled) -> Option<Pooled> {
        let mut place = self.place();
        if place.waiting > 0 || place.session.is_some() {
            return Some(session);
        }
        place.session = Some(session);
        if !std::mem::replace(&mut place.watched, true) {
            drop(place);
            self.taken_up.notify_one();
        }
        None
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        usize::from(self.place().session.is_some())
    }

    /// The pool ends.
    pub(crate) fn clear(&self) {
        let session = self.place().session.take();
        drop(session);
    }

    /// Gives back what nobody uses, for as long as the pool lives. Without a connection here it has no timer that would
    /// wake the process.
    pub(crate) async fn cool(self: Arc<Self>) {
        loop {
            self.taken_up.notified().await;
            // In steady use nearly every look but this late one would find it taken.
            sleep(COOLS_IN).await;
            while let Some(left) = self.rest(Instant::now()) {
                sleep(left).await;
            }
        }
    }

    /// How long to wait before the next look; `None` once the place is empty.
    fn rest(&self, now: Instant) -> Option<Duration> {
        let mut place = self.place();
        let unused = place.session.as_ref().map(|session| now.saturating_duration_since(session.last_used()));
        if let Some(left) = unused.and_then(|unused| COOLS_IN.checked_sub(unused))
            && !left.is_zero()
        {
            return Some(left);
        }
        place.watched = false;
        let session = place.session.take();
        drop(place);
        if let Some(mut session) = session {
            // What was true of it a second ago has to be looked at again.
            session.doubt();
        }
        None
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody waits for a connection of the stock.
#[must_use = "as long as it lives"]
pub(crate) struct Waiting<'a>(&'a Warm);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.place().waiting -= 1;
    }
}

impl fmt::Debug for Warm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Warm").field("count", &self.count()).finish_non_exhaustive()
    }
}
