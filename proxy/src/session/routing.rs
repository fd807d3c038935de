//! Which server runs what the session sends next, and the wait for one that may.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Session;
use super::relay::Hold;
use super::sorting::Sorted;
use crate::clock;
use crate::exchange::Refusal;
use crate::exchange::facts::Reach;
use crate::pool::hold::Ended;
use crate::pool::{Lease, Pool, Upstream};
use crate::sql::Lane;
use crate::upstream::{LastWrite, WhyNot};
use crate::wire::TransactionStatus;

/// When to try again where nobody knows when there will be a server: what discovery takes to find one that is there.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Where a session has been.
#[derive(Debug, Default)]
#[repr(C)]
pub(super) struct Places {
    /// The epoch of the routes in which there was nothing to choose.
    alone_in: Option<u64>,
    last_write: Option<LastWrite>,
    /// Which servers may run what it sends, by what it had at login.
    reach: Reach,
    /// Its pools at other upstreams than the one it uses now.
    others: Vec<Arc<Pool>>,
}

impl Places {
    /// Of a session that has just logged in.
    pub(super) fn within(reach: Reach) -> Self {
        Self { reach, ..Self::default() }
    }

    /// Whether there was nothing to choose in this epoch of the routes.
    #[inline]
    pub(super) fn is_alone_in(&self, epoch: u64) -> bool {
        self.alone_in == Some(epoch)
    }

    /// A write of the session was answered.
    #[inline]
    pub(super) fn wrote(&mut self, at: Instant) {
        self.last_write = Some(LastWrite { at, lsn: None });
    }
}

/// Whether the backend that a session holds may be used for what comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Here,
    /// Another one is for it.
    Elsewhere,
    /// No, and what was begun on it is lost.
    Lost,
}

impl Session {
    /// Turns to the upstream for what is sent next; holds a write while there is no primary. Returns the epoch of the
    /// routes that were followed.
    pub(super) async fn go_where_it_runs(
        &mut self,
        sorted: Sorted,
        deadline: Option<Instant>,
    ) -> Result<u64, Option<Refusal>> {
        let mut until = None;
        loop {
            match self.turn_to_server(sorted) {
                Ok(epoch) => return Ok(epoch),
                Err((why, epoch)) => {
                    self.wait_for_server(sorted.lane, why, epoch, &mut until, deadline).await?;
                }
            }
        }
    }

    /// Turns to the upstream for what is sent next, if there is one now. With the epoch of the routes, either way.
    #[inline]
    pub(super) fn turn_to_server(&mut self, sorted: Sorted) -> Result<u64, (WhyNot, u64)> {
        let epoch = self.routes.epoch();
        if self.places.is_alone_in(epoch) {
            return Ok(epoch);
        }
        self.choose_server(sorted, epoch)
    }

    fn choose_server(&mut self, sorted: Sorted, epoch: u64) -> Result<u64, (WhyNot, u64)> {
        let reach = match self.talk.keeps() {
            Hold::Transaction => sorted.reach().max(self.talk.wanted.reach()).max(self.places.reach),
            Hold::Session => Reach::Primary,
        };
        let upstream =
            self.routes.route(reach, self.places.last_write, clock::now()).map_err(|why| (why, epoch))?;
        self.turn_to(&upstream);
        // Asked after the epoch, which changes after the routes: true for as long as it stays.
        self.places.alone_in = self.routes.has_one().then_some(epoch);
        Ok(epoch)
    }

    /// Whether what was refused may be had elsewhere by now.
    pub(super) fn is_elsewhere_now(&self, refusal: &Refusal, epoch: u64, deadline: Option<Instant>) -> bool {
        refusal.is_about_server()
            && self.routes.epoch() != epoch
            && deadline.is_none_or(|deadline| Instant::now() < deadline)
    }

    #[inline]
    fn turn_to(&mut self, upstream: &Arc<Upstream>) {
        if !Arc::ptr_eq(&self.pool.upstream, upstream) {
            self.move_to(upstream);
        }
    }

    #[cold]
    fn move_to(&mut self, upstream: &Arc<Upstream>) {
        let known = self.places.others.iter().position(|pool| Arc::ptr_eq(&pool.upstream, upstream));
        let pool = if let Some(index) = known {
            self.places.others.swap_remove(index)
        } else {
            let pool = upstream.pool(self.pool.key.clone());
            pool.set_credential(self.pool.credential());
            pool
        };
        let left = std::mem::replace(&mut self.pool, pool);
        // One that was replaced by a reload is not come back to.
        let upstreams = self.routes.upstreams();
        self.places.others.push(left);
        self.places.others.retain(|pool| upstreams.iter().any(|other| Arc::ptr_eq(&pool.upstream, other)));
        self.talk.upstream = Arc::clone(&self.pool.upstream.name);
    }

    /// Waits until something changed that may bring a server.
    #[cold]
    async fn wait_for_server(
        &mut self,
        lane: Lane,
        why: WhyNot,
        epoch: u64,
        until: &mut Option<Instant>,
        deadline: Option<Instant>,
    ) -> Result<(), Option<Refusal>> {
        let refusal = || Err(Some(Refusal::NoServer { lane, why, retry_after: RETRY_AFTER }));
        let routes = Arc::clone(&self.routes);
        let now = Instant::now();
        let (window, max) = routes.hold_policy(now);
        let until = *until.get_or_insert(deadline.map_or(window, |deadline| deadline.min(window)));
        if !why.is_worth_holding() || now >= until {
            return refusal();
        }
        let Some(held) = routes.hold.join(max) else { return refusal() };
        if routes.epoch() != epoch {
            return Ok(());
        }
        let (mut held, mut over) = (pin!(held), pin!(sleep_until(until)));
        let ended = poll_fn(|cx| match (held.as_mut().poll(cx), over.as_mut().poll(cx)) {
            (Poll::Ready(ended), _) => Poll::Ready(Ok(ended)),
            (Poll::Pending, Poll::Ready(())) => Poll::Ready(Ok(Ended::Displaced)),
            (Poll::Pending, Poll::Pending) => self.poll_queued(cx),
        });
        match ended.await? {
            Ended::Look => Ok(()),
            Ended::Displaced => refusal(),
        }
    }

    /// Why a write may not be sent, wherever it would run.
    pub(super) fn forbids(&self, lane: Lane) -> Option<Refusal> {
        let why = (lane == Lane::Write).then(|| self.routes.no_writes()).flatten()?;
        Some(Refusal::NoServer { lane, why, retry_after: RETRY_AFTER })
    }

    /// Whether the backend that the session holds may run what comes next.
    #[inline]
    pub(super) fn place(&self, lease: &Lease, reach: Reach) -> Place {
        if self.talk.status != TransactionStatus::Idle || self.talk.keeps() == Hold::Session {
            return if lease.is_void() { Place::Lost } else { Place::Here };
        }
        if !lease.is_void() && self.routes.may_stay(&self.pool.upstream, reach) {
            Place::Here
        } else {
            Place::Elsewhere
        }
    }
}
