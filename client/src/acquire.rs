//! Getting a connection: breaker, permit, connection, check, in this order and under one budget.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use bb8::RunError;
use tidegate_layers::breaker::{Outcome as Health, Phase};
use tidegate_layers::shed::{Ask, Lease};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout, timeout_at};

use crate::connection::Connection;
use crate::connector::ConnectError;
use crate::deadline::{Deadline, Scope};
use crate::error::{Doing, Error, ErrorKind};
use crate::pool::{Pooled, Shared};
use crate::session::Session;
use crate::words::{Lane, Outcome};

/// A connection used this recently is not checked before it is handed out (as in `HikariCP`, `aliveBypassWindowMs`).
const ALIVE: Duration = Duration::from_millis(500);

/// How long a check may take: it is one empty query.
const CHECK_MAX: Duration = Duration::from_millis(250);

impl Shared {
    /// Breaker, then permit, then connection: a refusal must cost nothing, and who waits for a permit must not hold a
    /// connection.
    pub(crate) async fn acquire(self: &Arc<Self>, lane: Lane, start: Instant) -> Result<Connection, Error> {
        let breaker = &self.breakers[lane.index()];
        let ticket = breaker.admit(start).map_err(|refusal| Error::open(lane, refusal))?;
        let scope = Scope::current();
        let total = self.timeouts.total.map(|total| Deadline::after(start, total));
        let budget = [scope.deadline, total].into_iter().flatten().reduce(Deadline::min);
        let until = Deadline::after(start, self.timeouts.acquire);
        let until = budget.map_or(until, |budget| budget.min(until)).instant();
        let ask =
            Ask { priority: scope.priority.unwrap_or_default(), deadline: Some(until), ..Ask::default() };
        let lease = match self.permits.try_checkout(lane.index(), &ask) {
            Ok(lease) => lease,
            // It may be one that goes away.
            Err(_) => self.permit(lane, ask, until).await?,
        };
        match in_time(until, self.session()).await {
            Ok(Ok(session)) => Ok(Connection::new(Arc::clone(self), session, lease, lane, budget)),
            Ok(Err(error)) => {
                breaker.complete(ticket, Health::Failed, Instant::now());
                let cause = error.cause();
                let error =
                    Error::new(ErrorKind::Connect, Doing::Connecting, Outcome::NotSent).because(error);
                Err(error.in_lane(lane).caused_by(Some(cause)))
            }
            Err(_) => {
                // A caller in a hurry says nothing about the server.
                let now = Instant::now();
                let patient = now.saturating_duration_since(start) >= self.timeouts.connect;
                breaker.complete(ticket, if patient { Health::Failed } else { Health::Ignored }, now);
                Err(Error::too_late(lane, Doing::Connecting))
            }
        }
    }

    async fn permit(&self, lane: Lane, ask: Ask, until: Instant) -> Result<Lease<()>, Error> {
        let mut waiting = pin!(self.permits.checkout(lane.index(), ask));
        let at_once = poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx))).await;
        let answer = match at_once {
            Poll::Ready(answer) => Ok(answer),
            Poll::Pending => {
                self.waiters.notify_one();
                timeout_at(until, waiting).await
            }
        };
        match answer {
            Ok(Ok(lease)) => Ok(lease),
            // The breaker opened while we waited: say so.
            Ok(Err(refusal)) => match self.breakers[lane.index()].admit(Instant::now()) {
                Err(open) => Err(Error::open(lane, open)),
                Ok(_) => Err(Error::overloaded(lane, refusal)),
            },
            Err(_) => {
                let late = Error::new(ErrorKind::Overloaded, Doing::Waiting, Outcome::NotSent);
                Err(late.in_lane(lane).for_reason("queue_timeout").retry_in(self.timeouts.acquire))
            }
        }
    }

    /// A connection that is fit for use.
    ///
    /// # Cancel safety
    /// A connection whose check is dropped is discarded.
    async fn session(&self) -> Result<Pooled, ConnectError> {
        let _waiting = loop {
            match self.warm.take() {
                Ok(mut session) => {
                    if self.is_fit(&mut session).await {
                        return Ok(session);
                    }
                }
                Err(waiting) => break waiting,
            }
        };
        loop {
            let mut session = tokio::select! {
                biased;
                got = self.sessions.get_owned() => match got {
                    Ok(session) => session,
                    Err(RunError::User(error)) => return Err(error),
                    // Its own timeout is longer than ours.
                    Err(RunError::TimedOut) => continue,
                },
                error = self.failures.next() => return Err(error),
            };
            if self.is_fit(&mut session).await {
                return Ok(session);
            }
        }
    }

    async fn is_fit(&self, session: &mut Session) -> bool {
        let now = Instant::now();
        let stale = self.silence.is_since(session.last_used()) || session.is_outlived();
        if stale || session.is_lost() {
            session.doom();
            return false;
        }
        now.saturating_duration_since(session.last_used()) < ALIVE || self.check(session).await
    }

    async fn check(&self, session: &mut Session) -> bool {
        session.asking();
        match timeout(CHECK_MAX, session.client().check_connection()).await {
            Ok(Ok(())) => {
                session.answered();
                session.touch(Instant::now());
                return true;
            }
            Ok(Err(_)) => {}
            Err(_) => self.silence.note(Instant::now()),
        }
        session.doom();
        false
    }

    /// Nobody acts on cancels, and the lane is shut: the socket is all that can be taken away.
    pub(crate) fn cancels_are_futile(&self, lane: Lane) -> bool {
        let shut = matches!(self.breakers[lane.index()].handle().phase(), Phase::Open | Phase::HalfOpen);
        shut && self.connector.cancels().is_bad()
    }
}

/// As `timeout_at`, without a timer for what is ready at once.
///
/// # Cancel safety
/// That of `future`.
async fn in_time<F: Future>(until: Instant, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    match poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
        Poll::Ready(output) => Ok(output),
        Poll::Pending => timeout_at(until, future).await,
    }
}

/// When a check was last not answered: what was idle before is not worth a check of its own.
#[derive(Debug)]
pub(crate) struct Silence {
    base: Instant,
    /// Microseconds since `base`; zero: never.
    at: AtomicU64,
}

impl Default for Silence {
    fn default() -> Self {
        Self { base: Instant::now(), at: AtomicU64::new(0) }
    }
}

impl Silence {
    fn note(&self, now: Instant) {
        self.at.store(self.micros(now), Ordering::Relaxed);
    }

    fn is_since(&self, used: Instant) -> bool {
        match self.at.load(Ordering::Relaxed) {
            0 => false,
            at => self.micros(used) < at,
        }
    }

    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.base).as_micros()).unwrap_or(u64::MAX).max(1)
    }
}
