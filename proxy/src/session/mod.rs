//! The life of one application connection after login.
//!
//! Without a backend a session waits for a whole exchange (`front`), then checks a backend out, carries bytes
//! (`relay`) and gives the backend back. When a backend is lost it says so (`lost`); when the application is,
//! it cleans up behind itself (`recover`).

mod account;
mod commits;
pub mod conversation;
mod deferred;
mod front;
pub mod inbound;
pub mod lanes;
mod local;
pub(crate) mod local_frames;
mod lost;
pub mod names;
pub mod notes;
pub mod outbound;
mod plain;
pub mod policy;
mod recover;
pub mod registry;
pub mod relay;
mod renaming;
mod routing;
pub(crate) mod settle;
mod sorting;
pub mod terms;
mod tokens;
mod watch;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use tidegate_layers::breaker::Outcome;
use tidegate_layers::shed::Ask;
use tokio::time::Instant;
use tower::Service as _;

use self::account::Account;
use self::conversation::{Conversation, Gate};
use self::front::{Next, Stage, Woken};
use self::registry::{Phase, Registration, Signal};
use self::relay::{Hold, Relayed};
use self::routing::Places;
use self::sorting::Sorted;
use self::terms::SessionTerms;
use self::watch::Watch;
use crate::backend::Settings;
use crate::clock;
use crate::config::PoolMode;
use crate::exchange::{Refusal, refusal};
use crate::io::{Flow, Stream};
use crate::pool::{Lease, Pool, Routes};
use crate::sql::Lane;
use crate::stack::{Checkout, Stack};
use crate::telemetry::{lanes as meters, metrics};
use crate::wire::TransactionStatus;

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
    talk: Conversation,
    /// From the application to the backend. Between exchanges it holds what the application sent early.
    to_db: Flow,
    /// From the backend to the application.
    to_app: Flow,
    stage: Stage,
    /// What a transaction was ended for whose application does not know yet.
    untold: Option<Refusal>,
    phase: Phase,
    account: Account,
    /// The application said goodbye.
    terminating: bool,
    watch: Watch,
    routes: Arc<Routes>,
    places: Places,
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
    /// The terms that its statements have.
    pub terms: Box<SessionTerms>,
    /// Which server is asked.
    pub routes: Arc<Routes>,
}

/// A backend, or why there is none; nothing to say when the application left.
type Leased = Result<Lease, Option<Refusal>>;

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
            stack: beginning.stack,
            worker: beginning.worker,
            talk: Conversation::new(
                number,
                beginning.startup,
                prepared,
                mode,
                Arc::clone(&beginning.pool.upstream.name),
                beginning.terms,
            ),
            watch: Watch::default(),
            to_db: beginning.early,
            to_app: Flow::default(),
            stage: Stage::Ready,
            untold: None,
            phase: Phase::Login,
            account: Account::default(),
            terminating: false,
            pool: beginning.pool,
            places: Places::default(),
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
            self.enter(if self.talk.begin.is_empty() { Phase::Idle } else { Phase::IdleInTransaction });
            // What nearly every exchange needs happens here, without the futures of all that may have to be waited for:
            // to make one costs more than the rest.
            let mut woken = Woken::No;
            match poll_fn(|cx| self.poll_exchange(cx, std::mem::replace(&mut woken, Woken::Yes))).await {
                Next::Exchange => {}
                Next::Ended => return self.last_words().await,
                Next::Refused(refusal) => return self.end_with(&refusal).await,
            }
            let now = clock::now();
            let (sorted, began, ask) = self.sort_next(now);
            let leased = match self.checkout_at_once(sorted, began, ask, now) {
                Some(leased) => leased,
                None => self.checkout(sorted, began, ask).await,
            };
            let mut lease = match leased {
                Ok(lease) => lease,
                Err(None) => return,
                Err(Some(refusal)) if refusal.is_fatal() => return self.end_with(&refusal).await,
                Err(Some(refusal)) => {
                    self.refuse(&refusal);
                    continue;
                }
            };
            if !Arc::ptr_eq(&lease.applied, &self.talk.wanted) {
                // Seldom, and large: it must not make every session larger.
                lease = match Box::pin(self.bring_settings(lease, ask.deadline)).await {
                    Ok(lease) => lease,
                    Err(Flowing::On) => continue,
                    Err(Flowing::Ended) => return,
                };
            }
            self.serve(&lease);
            self.talk.tokens.on =
                lease.knows_tokens && self.pool.upstream.resolves() && self.pool.key.replication.is_none();
            self.send_begin(&mut lease);
            let end = poll_fn(|cx| self.poll_relay(cx, &mut lease)).await;
            if matches!(end, Relayed::Over) && !self.talk.notes.has_settings() {
                self.let_go(&lease, &end);
                self.give_back_idle(lease);
            } else if let Flowing::Ended = Box::pin(self.hold_on(lease, end)).await {
                return;
            }
        }
    }

    #[inline]
    fn enter(&mut self, phase: Phase) {
        if phase != self.phase {
            self.change_to(phase);
        }
    }

    fn change_to(&mut self, phase: Phase) {
        let left = std::mem::replace(&mut self.phase, phase);
        self.account_for(left);
        let entry = &self.registration.entry;
        entry.enter(phase);
        if entry.has_any() {
            // It was about the phase before.
            entry.clear(Signal::Overdue);
        }
    }

    /// What the exchange at the front asks for, and since when.
    #[inline]
    fn sort_next(&mut self, now: Instant) -> (Sorted, Instant, Ask) {
        self.talk.terms.refresh();
        let sorted = self.talk.sort(self.to_db.unseen(), &self.pool);
        let began = self.watch.take_began(now);
        self.watch.asks(sorted.lane);
        let ask = self.ask(sorted, began);
        (sorted, began, ask)
    }

    /// A backend that is there; `None`: ask for one by [`Session::checkout`].
    #[inline]
    fn checkout_at_once(&mut self, sorted: Sorted, began: Instant, ask: Ask, now: Instant) -> Option<Leased> {
        if !self.has_one_place() {
            return None;
        }
        let checkout = Checkout { pool: &self.pool, lane: sorted.lane, ask, now, worker: self.worker };
        let lease = self.stack.at_once(checkout)?;
        Some(self.begin_with(lease, sorted, began, now))
    }

    /// Asks the stack for a backend. `Err(None)`: the application left while it waited.
    async fn checkout(&mut self, sorted: Sorted, began: Instant, mut ask: Ask) -> Leased {
        let until = ask.wait_max.map(|most| Instant::now() + most);
        let (lease, now) = loop {
            let epoch = self.go_where_it_runs(sorted, ask.deadline).await?;
            match self.acquire(sorted.lane, ask, clock::now()).await {
                Err(Some(refusal)) if self.is_elsewhere_now(&refusal, epoch, ask.deadline) => {
                    // In all it waits no longer than in one queue.
                    ask.wait_max = until.map(|until| until.saturating_duration_since(Instant::now()));
                }
                // The wait for it is not part of the service.
                acquired => break (acquired?, clock::now()),
            }
        };
        self.begin_with(lease, sorted, began, now)
    }

    #[inline]
    fn begin_with(&mut self, lease: Lease, sorted: Sorted, began: Instant, now: Instant) -> Leased {
        match self.begin_exchange(&lease, sorted, began, now) {
            Ok(()) => {
                self.talk.gate = Gate::Open;
                Ok(lease)
            }
            Err(refusal) => {
                lease.give_back();
                Err(Some(refusal))
            }
        }
    }

    async fn acquire(&mut self, lane: Lane, ask: Ask, now: Instant) -> Result<Lease, Option<Refusal>> {
        let checkout = Checkout { pool: &self.pool, lane, ask, now, worker: self.worker };
        let mut acquire = pin!(self.stack.call(checkout));
        let acquired = poll_fn(|cx| match acquire.as_mut().poll(cx) {
            Poll::Ready(acquired) => Poll::Ready(acquired.map_err(Some)),
            Poll::Pending => self.poll_queued(cx),
        })
        .await;
        if let Err(Some(Refusal::NoUpstream { .. })) = &acquired {
            self.pool.upstream.guard.failed(lane, Instant::now());
        }
        if acquired.is_ok() && self.phase == Phase::Queued {
            meters::waited(lane, now.elapsed());
        }
        acquired
    }

    /// What may end the wait for a backend: the application leaves, cancels, or is told to go.
    #[cold]
    fn poll_queued<T>(&mut self, cx: &mut Context<'_>) -> Poll<Result<T, Option<Refusal>>> {
        if let Some(refusal) = self.recalled() {
            return Poll::Ready(Err(Some(refusal)));
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

    /// Whether whoever waits is told not to.
    fn recalled(&mut self) -> Option<Refusal> {
        self.enter(Phase::Queued);
        let entry = &self.registration.entry;
        if entry.has(Signal::Cancel) {
            entry.clear(Signal::Cancel);
            return Some(Refusal::Cancelled);
        }
        entry.has(Signal::Kill).then(|| self.signalled(Signal::Kill))
    }

    /// Uses a backend until it is free again, or something ends. `end`: what has ended its use for now.
    async fn hold_on(&mut self, mut lease: Lease, mut end: Relayed) -> Flowing {
        loop {
            match end {
                Relayed::Settle => {
                    if self.read_settings_back(&mut lease).await.is_err() {
                        return self.end_unsettled(lease).await;
                    }
                }
                Relayed::Refused(refusal) if self.talk.status == TransactionStatus::Idle => {
                    self.refuse_next(&refusal);
                }
                _ => break,
            }
            end = poll_fn(|cx| self.poll_relay(cx, &mut lease)).await;
        }
        self.let_go(&lease, &end);
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
            Relayed::Refused(refusal) => self.refuse_in_transaction(lease, &refusal),
            Relayed::Overdue(fate, refusal) => self.end_overdue(lease, fate, refusal).await,
            Relayed::TransactionOverdue(refusal) => self.end_transaction(lease, refusal).await,
            Relayed::Signalled(signal) => {
                let refusal = self.signalled(signal);
                self.leave(lease);
                self.end_with(&refusal).await;
                Flowing::Ended
            }
        }
    }

    /// Names the backend that serves the session, so that cancels and deadlines find their way.
    #[inline]
    fn serve(&self, lease: &Lease) {
        let entry = &self.registration.entry;
        entry.serve(&lease.cancel_target);
        if let Some(slot) = &lease.slot {
            slot.serve(entry);
        }
    }

    /// The backend does not serve the session any more.
    #[inline]
    fn let_go(&mut self, lease: &Lease, end: &Relayed) {
        self.registration.entry.let_go();
        let health = match end {
            Relayed::Overdue(..) | Relayed::BackendGone { .. } => Outcome::Failed,
            _ => Outcome::Ignored,
        };
        if matches!(end, Relayed::BackendGone { .. }) {
            self.pool.upstream.trouble();
        }
        self.break_exchange(lease, health);
        if let Some(slot) = &lease.slot {
            slot.let_go();
        }
        self.settle_account();
    }

    /// The backend is idle and nothing is owed.
    async fn give_back(&mut self, mut lease: Lease) -> Flowing {
        if self.talk.notes.has_settings() && self.read_settings_back(&mut lease).await.is_err() {
            return self.end_unsettled(lease).await;
        }
        self.give_back_idle(lease);
        Flowing::On
    }

    /// Nothing is owed, and nothing is to be looked after.
    #[inline]
    fn give_back_idle(&mut self, lease: Lease) {
        self.pool.exchanges.fetch_add(1, Ordering::Relaxed);
        if lease.cancel_target.is_threatened() {
            tokio::spawn(recover::quarantine(lease));
        } else {
            lease.give_back();
        }
    }

    /// The session does not need the backend any more, whatever state it is in.
    fn leave(&mut self, lease: Lease) {
        let plan = self.plan();
        tokio::spawn(recover::recover(lease, plan));
    }

    /// What has to be done for the backend to be fit for others.
    fn plan(&self) -> recover::Plan {
        let unsent = self.to_db.is_pending() || !self.to_app.unseen().is_empty();
        recover::Plan::of(&self.talk, unsent)
    }

    /// Why the session ends at a signal.
    fn signalled(&self, signal: Signal) -> Refusal {
        let outcome = match self.phase {
            Phase::Login | Phase::Idle | Phase::Queued => refusal::Outcome::NotSent,
            Phase::IdleInTransaction => refusal::Outcome::RolledBack,
            Phase::Active => self.talk.outcome(),
        };
        match (signal, self.phase) {
            (Signal::Drain, _) => Refusal::Drain { outcome },
            (Signal::Overdue, Phase::IdleInTransaction) => Refusal::IdleInTransaction,
            (Signal::Overdue, _) => Refusal::IdleSession,
            // Who has to go because a drain is over was told to drain before.
            (Signal::Kill, _) if self.registration.entry.has(Signal::Drain) => Refusal::Drain { outcome },
            (Signal::Kill | Signal::Cancel | Signal::Due | Signal::Learn, _) => Refusal::Killed { outcome },
        }
    }

    /// Says why, and closes. Says nothing in the middle of a message.
    async fn end_with(&mut self, refusal: &Refusal) {
        match refusal.lane() {
            Some(lane) => meters::told(lane, refusal),
            None => meters::refused(None, refusal.reason()),
        }
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
