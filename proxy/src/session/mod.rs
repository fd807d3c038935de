//! The life of one application connection after login.
//!
//! Without a backend a session waits for a whole exchange (`front`), then checks a backend out, carries bytes
//! (`relay`) and gives the backend back. When a backend is lost it says so (`lost`); when the application is,
//! it cleans up behind itself (`recover`).

mod account;
mod clearing;
mod commits;
pub mod conversation;
mod deferred;
mod ear;
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
mod rollback;
mod routing;
pub(crate) mod settle;
mod sorting;
pub mod terms;
mod tokens;
mod turns;
mod watch;

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use tidegate_layers::breaker::Outcome;

use self::account::Account;
use self::conversation::Conversation;
use self::ear::Ear;
use self::front::{Stage, Woken};
use self::registry::{Phase, Registration, Signal};
use self::relay::{Hold, Relayed};
use self::routing::Places;
use self::terms::SessionTerms;
use self::turns::{Pace, Tenure, Turn};
use self::watch::Watch;
use crate::backend::Settings;
use crate::config::PoolMode;
use crate::exchange::facts::Reach;
use crate::exchange::{Refusal, refusal};
use crate::io::{Flow, Stream};
use crate::pool::{Lease, Pool, Routes};
use crate::stack::Stack;
use crate::telemetry::{lanes as meters, metrics};
use crate::wire::TransactionStatus;

/// How long the last answers may take to write.
const LAST_WORD: Duration = Duration::from_secs(5);

/// See the module documentation. In the order of how often it is looked at, in memory, too: hundreds of sessions do not
/// fit into a cache, and what every exchange needs should be few lines of it.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Session {
    app: Stream,
    pool: Arc<Pool>,
    routes: Arc<Routes>,
    registration: Registration,
    worker: usize,
    phase: Phase,
    stage: Stage,
    ear: Ear,
    pace: Pace,
    /// The application said goodbye.
    terminating: bool,
    stack: Stack,
    /// From the application to the backend. Between exchanges it holds what the application sent early.
    to_db: Flow,
    /// From the backend to the application.
    to_app: Flow,
    watch: Watch,
    account: Account,
    places: Places,
    talk: Conversation,
    /// What a transaction was ended for whose application does not know yet.
    untold: Option<Refusal>,
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
    pub terms: SessionTerms,
    /// Which server is asked.
    pub routes: Arc<Routes>,
    /// Which servers may run what it sends, whatever that is.
    pub reach: Reach,
}

/// Whether the session goes on.
enum Flowing {
    On,
    Ended,
}

impl Session {
    /// A session that has just logged in.
    pub fn new(beginning: Beginning) -> Box<Self> {
        let prepared = beginning.pool.upstream.limits().prepared_statements;
        let mode = match beginning.mode {
            PoolMode::Transaction if beginning.pool.key.replication.is_none() => Hold::Transaction,
            PoolMode::Transaction | PoolMode::Session => Hold::Session,
        };
        let number = u64::from(beginning.registration.entry.process_id);
        Box::new(Self {
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
            ear: Ear::Away,
            pace: Pace::default(),
            untold: None,
            phase: Phase::Login,
            account: Account::default(),
            terminating: false,
            pool: beginning.pool,
            places: Places::within(beginning.reach),
            routes: beginning.routes,
        })
    }

    /// Runs the session to its end.
    ///
    /// # Cancel safety
    /// Dropping it closes both connections; the backend is closed with RST.
    pub async fn run(mut self: Box<Self>) {
        poll_fn(|cx| {
            self.registration.entry.attend(cx.waker());
            Poll::Ready(())
        })
        .await;
        let mut tenure = Tenure::Without;
        self.enter_without();
        loop {
            let mut woken = Woken::No;
            let turn = poll_fn(|cx| {
                let woken = std::mem::replace(&mut woken, Woken::Yes);
                self.poll_turns(cx, woken, &mut tenure)
            })
            .await;
            // Seldom, and large: it must not make every session larger.
            if let Flowing::Ended = Box::pin(self.out_of_turn(turn, &mut tenure)).await {
                return;
            }
        }
    }

    /// What takes more than the two connections and a place in a queue.
    async fn out_of_turn(&mut self, mut turn: Turn, tenure: &mut Tenure) -> Flowing {
        loop {
            let held = match turn {
                Turn::Search(asked, waited) => match self.turn_elsewhere(asked, waited, tenure).await {
                    ControlFlow::Continue(()) => return Flowing::On,
                    ControlFlow::Break(next) => {
                        turn = next;
                        continue;
                    }
                },
                Turn::Settings(lease, deadline) => self.bring_settings(lease, deadline).await,
                Turn::Relayed(lease, end) => self.hold_on(lease, end).await,
                Turn::Gone => Err(Flowing::Ended),
                Turn::Farewell => {
                    self.last_words().await;
                    Err(Flowing::Ended)
                }
                Turn::Refused(refusal) => {
                    self.end_with(&refusal).await;
                    Err(Flowing::Ended)
                }
            };
            return match held {
                Ok(lease) => {
                    self.hold(lease, tenure);
                    Flowing::On
                }
                Err(Flowing::On) => {
                    self.enter_without();
                    Flowing::On
                }
                Err(Flowing::Ended) => Flowing::Ended,
            };
        }
    }

    /// The phase of a session without a backend that waits for none.
    #[inline]
    fn enter_without(&mut self) {
        self.enter(if self.talk.begin.is_empty() { Phase::Idle } else { Phase::IdleInTransaction });
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

    /// What has ended the use of a backend decides whether it is used on.
    async fn hold_on(&mut self, mut lease: Lease, end: Relayed) -> Result<Lease, Flowing> {
        match &end {
            Relayed::Settle => {
                return match self.read_settings_back(&mut lease).await {
                    Ok(()) => Ok(lease),
                    Err(_) => Err(self.end_unsettled(lease).await),
                };
            }
            Relayed::Refused(refusal) if self.talk.status == TransactionStatus::Idle => {
                self.refuse_next(refusal);
                return Ok(lease);
            }
            Relayed::Refused(refusal) if self.talk.keeps() == Hold::Session => {
                self.refuse_in_kept_transaction(&lease, refusal);
                return Ok(lease);
            }
            _ => {}
        }
        self.let_go(&lease, &end);
        Err(match end {
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
        })
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
            tokio::spawn(recover::take_the_blow(lease));
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
