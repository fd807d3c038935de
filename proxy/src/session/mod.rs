//! The life of one application connection after login.
//!
//! Without a backend a session waits for a whole exchange (`front`), then checks a backend out, carries bytes
//! (`relay`) and gives the backend back. When a backend is lost it says so (`lost`); when the application is,
//! it cleans up behind itself (`recover`).

pub mod conversation;
mod front;
pub mod inbound;
mod lost;
pub mod names;
pub mod notes;
pub mod outbound;
mod recover;
pub mod registry;
pub mod relay;
mod renaming;
pub(crate) mod settle;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use tower::Service as _;

use self::conversation::Conversation;
use self::front::{Next, Stage};
use self::registry::{Phase, Registration, Signal};
use self::relay::{Hold, Relayed};
use crate::backend::Settings;
use crate::config::PoolMode;
use crate::exchange::Refusal;
use crate::exchange::refusal::Outcome;
use crate::io::{Flow, Stream};
use crate::pool::{Lease, Pool, Routes, Waiter};
use crate::stack::{Checkout, Stack};
use crate::telemetry::metrics;

/// How long the last answers may take to write.
const LAST_WORD: Duration = Duration::from_secs(5);

/// See the module documentation.
#[derive(Debug)]
pub struct Session {
    app: Stream,
    registration: Registration,
    pool: Arc<Pool>,
    stack: Stack,
    worker: usize,
    waiter: Arc<Waiter>,
    talk: Conversation,
    /// From the application to the backend. Between exchanges it holds what the application sent early.
    to_db: Flow,
    /// From the backend to the application.
    to_app: Flow,
    stage: Stage,
    phase: Phase,
    /// The application said goodbye.
    terminating: bool,
    routes: Arc<Routes>,
    /// The epoch of the routes that `pool` is from.
    epoch: u64,
}

/// What a session starts with.
#[derive(Debug)]
pub struct Beginning {
    /// The application's connection, after login.
    pub app: Stream,
    /// What was already read from it.
    pub early: Flow,
    /// The session's place in the registry.
    pub registration: Registration,
    /// Where its backends come from.
    pub pool: Arc<Pool>,
    /// How they are asked for.
    pub stack: Stack,
    /// The thread that it runs on.
    pub worker: usize,
    /// What it holds a backend for.
    pub mode: PoolMode,
    /// Settings of its startup packet.
    pub startup: Arc<Settings>,
    /// Which server is asked.
    pub routes: Arc<Routes>,
}

/// Whether the session goes on.
enum Flowing {
    On,
    Ended,
}

impl Session {
    /// A session that has just logged in.
    pub fn new(beginning: Beginning) -> Self {
        let prepared = beginning.pool.upstream.limits().prepared_statements;
        let mode = match beginning.mode {
            PoolMode::Transaction if beginning.pool.key.replication.is_none() => Hold::Transaction,
            PoolMode::Transaction | PoolMode::Session => Hold::Session,
        };
        let number = u64::from(beginning.registration.entry.process_id);
        Self {
            app: beginning.app,
            registration: beginning.registration,
            pool: beginning.pool,
            stack: beginning.stack,
            worker: beginning.worker,
            waiter: Arc::default(),
            talk: Conversation::new(number, beginning.startup, prepared, mode),
            to_db: beginning.early,
            to_app: Flow::default(),
            stage: Stage::Ready,
            phase: Phase::Login,
            terminating: false,
            epoch: beginning.routes.epoch(),
            routes: beginning.routes,
        }
    }

    /// Runs the session to its end.
    ///
    /// # Cancel safety
    /// Dropping it closes both connections; the backend is closed with RST.
    pub async fn run(mut self) {
        poll_fn(|cx| {
            self.registration.entry.attend(cx.waker());
            Poll::Ready(())
        })
        .await;
        loop {
            self.enter(Phase::Idle);
            match self.next_exchange().await {
                Next::Exchange => {}
                Next::Ended => return self.last_words().await,
                Next::Refused(refusal) => return self.end_with(&refusal).await,
            }
            let lease = match self.checkout().await {
                Ok(lease) => lease,
                Err(None) => return,
                Err(Some(refusal)) if refusal.is_fatal() => return self.end_with(&refusal).await,
                Err(Some(refusal)) => {
                    self.refuse(&refusal);
                    continue;
                }
            };
            match self.hold_backend(lease).await {
                Flowing::On => {}
                Flowing::Ended => return,
            }
        }
    }

    fn enter(&mut self, phase: Phase) {
        if phase != self.phase {
            self.phase = phase;
            let entry = &self.registration.entry;
            entry.enter(phase);
            if entry.has_any() {
                // It was about the phase before.
                entry.clear(Signal::Overdue);
            }
        }
    }

    /// Asks the stack for a backend. `Err(None)`: the application left while it waited.
    async fn checkout(&mut self) -> Result<Lease, Option<Refusal>> {
        if self.routes.epoch() != self.epoch {
            self.epoch = self.routes.epoch();
            let pool = self.routes.primary().pool(self.pool.key.clone());
            pool.set_credential(self.pool.credential());
            self.pool = pool;
        }
        let checkout = Checkout { pool: &self.pool, waiter: &self.waiter, worker: self.worker };
        let mut acquire = pin!(self.stack.call(checkout));
        poll_fn(|cx| match acquire.as_mut().poll(cx) {
            Poll::Ready(acquired) => Poll::Ready(acquired.map_err(Some)),
            Poll::Pending => self.poll_queued(cx),
        })
        .await
    }

    /// What may end the wait for a backend: the application leaves, cancels, or is told to go.
    #[cold]
    fn poll_queued<T>(&mut self, cx: &mut Context<'_>) -> Poll<Result<T, Option<Refusal>>> {
        self.enter(Phase::Queued);
        let entry = Arc::clone(&self.registration.entry);
        if entry.has(Signal::Cancel) {
            entry.clear(Signal::Cancel);
            return Poll::Ready(Err(Some(Refusal::Cancelled)));
        }
        if entry.has(Signal::Kill) {
            return Poll::Ready(Err(Some(Refusal::Killed)));
        }
        while self.to_db.has_room() {
            match self.to_db.poll_fill(cx, &mut self.app) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(None)),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => break,
            }
        }
        Poll::Pending
    }

    /// Uses a backend until it is free again, or something ends.
    async fn hold_backend(&mut self, mut lease: Lease) -> Flowing {
        if !Arc::ptr_eq(&lease.applied, &self.talk.wanted)
            && let Err(refused) = self.bring_settings(&mut lease).await
        {
            return self.settings_refused(lease, refused).await;
        }
        self.registration.entry.serve(Some(Arc::clone(&lease.cancel_target)));
        let end = loop {
            match poll_fn(|cx| self.poll_relay(cx, &mut lease)).await {
                Relayed::Settle => {
                    if self.read_settings_back(&mut lease).await.is_err() {
                        break Relayed::BackendGone { told: relay::Told::No };
                    }
                }
                end => break end,
            }
        };
        self.registration.entry.serve(None);
        match end {
            Relayed::Over | Relayed::Settle => self.give_back(lease).await,
            Relayed::Terminated => {
                self.leave(lease);
                self.last_words().await;
                Flowing::Ended
            }
            Relayed::AppGone => {
                metrics::get().abandoned.increment(1);
                self.leave(lease);
                Flowing::Ended
            }
            Relayed::AppViolation(violation) => {
                self.leave(lease);
                self.end_with(&Refusal::Protocol(violation.to_string())).await;
                Flowing::Ended
            }
            Relayed::BackendViolation(violation) => {
                tracing::error!(
                    upstream = %self.pool.upstream.name, %violation,
                    "unexpected message of PostgreSQL, closing that connection"
                );
                self.backend_gone(lease, relay::Told::No).await
            }
            Relayed::BackendGone { told } => self.backend_gone(lease, told).await,
            Relayed::Signalled(signal) => {
                let refusal = self.signalled(signal);
                self.leave(lease);
                self.end_with(&refusal).await;
                Flowing::Ended
            }
        }
    }

    /// The backend is idle and nothing is owed.
    async fn give_back(&mut self, mut lease: Lease) -> Flowing {
        self.pool.exchanges.fetch_add(1, Ordering::Relaxed);
        if self.talk.notes.has_settings() && self.read_settings_back(&mut lease).await.is_err() {
            // Settings that were reported as set would silently be others from now on.
            drop(lease);
            self.end_with(&Refusal::BackendLost { outcome: Outcome::RolledBack }).await;
            return Flowing::Ended;
        }
        if lease.cancel_target.is_threatened() {
            tokio::spawn(recover::quarantine(lease));
        } else {
            lease.give_back();
        }
        Flowing::On
    }

    /// The session does not need the backend any more, whatever state it is in.
    fn leave(&mut self, lease: Lease) {
        let unsent = self.to_db.is_pending() || !self.to_app.unseen().is_empty();
        let plan = recover::Plan::of(&self.talk, unsent);
        tokio::spawn(recover::recover(lease, plan));
    }

    /// Why the session ends at a signal.
    fn signalled(&self, signal: Signal) -> Refusal {
        match (signal, self.phase) {
            (Signal::Drain, _) => Refusal::Drain,
            (Signal::Overdue, Phase::IdleInTransaction) => Refusal::IdleInTransaction,
            (Signal::Overdue, _) => Refusal::IdleSession,
            (Signal::Kill | Signal::Cancel, _) => Refusal::Killed,
        }
    }

    /// Says why, and closes. Says nothing in the middle of a message.
    async fn end_with(&mut self, refusal: &Refusal) {
        metrics::refused(refusal.reason());
        if self.talk.answer_is_torn() {
            return;
        }
        let upstream = &self.pool.upstream.name;
        self.to_app.insert(|out| refusal.put_fatal(upstream, out));
        self.last_words().await;
    }

    /// Writes what is still to be written, and closes.
    async fn last_words(&mut self) {
        let farewell = async {
            if poll_fn(|cx| self.to_app.poll_write_to(cx, &mut self.app)).await.is_ok() {
                self.app.shutdown().await;
            }
        };
        // A peer that does not read its last word is not waited for.
        let _ = tokio::time::timeout(LAST_WORD, farewell).await;
    }
}
