//! The turns that a session takes with the two connections and the queue between them: what nearly every exchange
//! needs, and nothing else. They are taken in one poll as long as nothing has to be waited for, without a future for
//! each step: to make one costs more than the step.

use std::cell::Cell;
use std::future::{Future as _, poll_fn};
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tidegate_layers::shed::Ask;
use tokio::time::Instant;
use tower::Service as _;

use super::Session;
use super::front::{Next, Woken};
use super::recover::take_the_blow;
use super::registry::{Phase, Signal};
use super::relay::Relayed;
use super::sorting::Sorted;
use crate::clock;
use crate::exchange::Refusal;
use crate::pool::{Acquire, Lease};
use crate::stack::{Admitting, Checkout};
use crate::telemetry::lanes as meters;

/// So many turns of other sessions, and what the kernel does for them, push a session out of the caches of a processor:
/// with less than that between its turns, looking ahead costs more than it saves.
const MANY_OTHERS: u32 = 64;

thread_local! {
    /// Turns that the sessions of this worker have had.
    static TURNS: Cell<u32> = const { Cell::new(0) };
}

/// When a session had its last turn.
#[derive(Debug, Default)]
pub(super) struct Pace(u32);

impl Pace {
    /// Whether many others had their turns since this one had its last.
    #[inline]
    fn had_many_others(&mut self) -> bool {
        let now = TURNS.get().wrapping_add(1);
        TURNS.set(now);
        now.wrapping_sub(std::mem::replace(&mut self.0, now)) > MANY_OTHERS
    }
}

/// What a session has of a backend.
#[derive(Debug)]
pub(super) enum Tenure {
    /// None, and it asks for none.
    Without,
    /// It waits for one.
    Queued(Queued),
    /// One is its own.
    Holding(Lease),
}

impl Tenure {
    /// Takes the backend away.
    #[cold]
    fn leave(&mut self) -> Option<Lease> {
        match std::mem::replace(self, Self::Without) {
            Self::Holding(lease) => Some(lease),
            Self::Without | Self::Queued(_) => None,
        }
    }
}

/// The wait for a backend.
#[derive(Debug)]
pub(super) struct Queued {
    acquire: Admitting<Acquire>,
    asked: Asked,
    /// Of the routes that were followed.
    epoch: u64,
}

/// What a backend is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    sorted: Sorted,
    /// When the first byte of the exchange came.
    began: Instant,
    /// When a backend was asked for.
    since: Instant,
}

/// Where the turns end for now.
#[derive(Debug)]
pub(super) enum Turn {
    /// The application left while it waited.
    Gone,
    /// It has said goodbye, or left, and is owed nothing but the rest of its answers.
    Farewell,
    /// The session ends, and why.
    Refused(Refusal),
    /// A server has to be found, or waited for. How long a queue was waited in already.
    Search(Asked, Duration),
    /// The backend has other settings than the session. By when it has to have the right ones.
    Settings(Lease, Option<Instant>),
    /// Holding the backend has ended, or has to be interrupted.
    Relayed(Lease, Relayed),
}

/// What becomes of the turns.
pub(super) type Turned = ControlFlow<Turn>;

impl Session {
    /// Takes turns until something is needed that they do not have. Wakes by the sockets, the queue and by signals.
    pub(super) fn poll_turns(
        &mut self,
        cx: &mut Context<'_>,
        mut woken: Woken,
        tenure: &mut Tenure,
    ) -> Poll<Turn> {
        if self.pace.had_many_others() {
            self.warm();
        }
        loop {
            // What it was woken by is what it waits for in its first turn.
            let woken = std::mem::replace(&mut woken, Woken::No);
            let turned = match tenure {
                Tenure::Without => ready!(self.turn_without(cx, woken, tenure)),
                Tenure::Queued(_) => ready!(self.turn_queued(cx, tenure)),
                Tenure::Holding(_) => ready!(self.turn_holding(cx, tenure)),
            };
            if let ControlFlow::Break(turn) = turned {
                return Poll::Ready(turn);
            }
        }
    }

    /// Looks at what a turn is going to need, one field of most lines of the cache. While others had their turns it went
    /// out of the caches of the processor, which fetches lines side by side as long as nothing depends on them; by and by
    /// each of them would be waited for.
    #[inline]
    fn warm(&self) {
        let talk = &self.talk;
        let of_session = self.worker as u64 ^ self.to_db.filled ^ self.to_app.filled ^ self.watch.glance();
        let of_talk = talk.answers ^ talk.sent_values ^ talk.inbound.left as u64;
        let of_bytes = self.to_db.unseen().first().unwrap_or(&0) ^ talk.sent_text.first().unwrap_or(&0);
        let is_any = self.registration.entry.has_any()
            | self.places.is_alone_in(0)
            | talk.ledger.is_empty()
            | talk.terms.is_provisional()
            | talk.tokens.on
            | talk.names.has_local();
        std::hint::black_box(of_session ^ of_talk ^ u64::from(of_bytes) ^ u64::from(is_any));
    }

    /// Waits for an exchange, and asks for a backend.
    #[inline(never)]
    fn turn_without(&mut self, cx: &mut Context<'_>, woken: Woken, tenure: &mut Tenure) -> Poll<Turned> {
        match ready!(self.poll_exchange(cx, woken)) {
            Next::Exchange => {}
            Next::Ended => return Poll::Ready(ControlFlow::Break(Turn::Farewell)),
            Next::Refused(refusal) => return Poll::Ready(ControlFlow::Break(Turn::Refused(refusal))),
        }
        let asked = self.sort_next(clock::now());
        let Ok(epoch) = self.turn_to_server(asked.sorted) else {
            return Poll::Ready(ControlFlow::Break(Turn::Search(asked, Duration::ZERO)));
        };
        let ask = self.ask(asked.sorted, asked.began);
        let lane = asked.sorted.lane;
        let checkout = Checkout { pool: &self.pool, lane, ask, now: asked.since, worker: self.worker };
        if let Some(lease) = self.stack.at_once(checkout) {
            return Poll::Ready(self.take_up(lease, asked, asked.since, tenure));
        }
        *tenure = Tenure::Queued(Queued { acquire: self.stack.queue(checkout), asked, epoch });
        Poll::Ready(ControlFlow::Continue(()))
    }

    /// What the exchange at the front asks for, and since when.
    #[inline]
    fn sort_next(&mut self, now: Instant) -> Asked {
        let sorted = self.talk.sort(self.to_db.unseen(), &self.pool);
        let began = self.watch.take_began(now);
        self.watch.asks(sorted.lane);
        Asked { sorted, began, since: now }
    }

    /// Waits for a backend.
    fn turn_queued(&mut self, cx: &mut Context<'_>, tenure: &mut Tenure) -> Poll<Turned> {
        let Tenure::Queued(queued) = tenure else { return Poll::Ready(ControlFlow::Continue(())) };
        let acquired = match Pin::new(&mut queued.acquire).poll(cx) {
            Poll::Ready(acquired) => acquired.map_err(Some),
            Poll::Pending => ready!(self.poll_queued(cx)),
        };
        let (asked, epoch) = (queued.asked, queued.epoch);
        Poll::Ready(match self.acquired(acquired, asked) {
            Ok(lease) if self.routes.epoch() != epoch && self.forbids(asked.sorted.lane).is_some() => {
                lease.give_back();
                *tenure = Tenure::Without;
                ControlFlow::Break(Turn::Search(asked, asked.since.elapsed()))
            }
            // The wait for it is not part of the service.
            Ok(lease) => self.take_up(lease, asked, clock::now(), tenure),
            Err(None) => ControlFlow::Break(Turn::Gone),
            Err(Some(refusal)) => {
                *tenure = Tenure::Without;
                if self.is_elsewhere_now(&refusal, epoch, self.deadline(asked)) {
                    ControlFlow::Break(Turn::Search(asked, asked.since.elapsed()))
                } else {
                    self.turn_away(refusal)
                }
            }
        })
    }

    /// The wait for a backend is over.
    fn acquired(
        &self,
        acquired: Result<Lease, Option<Refusal>>,
        asked: Asked,
    ) -> Result<Lease, Option<Refusal>> {
        let lane = asked.sorted.lane;
        match &acquired {
            Err(Some(Refusal::NoUpstream { .. })) => self.pool.upstream.guard.failed(lane, Instant::now()),
            Ok(_) if self.phase == Phase::Queued => {
                meters::waited(lane, clock::now().saturating_duration_since(asked.since));
            }
            Ok(_) | Err(_) => {}
        }
        acquired
    }

    /// Carries bytes, and gives the backend back.
    #[inline(never)]
    fn turn_holding(&mut self, cx: &mut Context<'_>, tenure: &mut Tenure) -> Poll<Turned> {
        let Tenure::Holding(lease) = tenure else { return Poll::Ready(ControlFlow::Continue(())) };
        let end = ready!(self.poll_relay(cx, lease));
        if matches!(end, Relayed::Over) && !self.talk.notes.has_settings() {
            self.let_go(lease, &end);
            self.pool.exchanges.fetch_add(1, Ordering::Relaxed);
            if !lease.cancel_target.is_threatened() {
                lease.put_back();
                *tenure = Tenure::Without;
            } else if let Some(lease) = tenure.leave() {
                tokio::spawn(take_the_blow(lease));
            }
            self.enter_without();
            return Poll::Ready(ControlFlow::Continue(()));
        }
        Poll::Ready(match tenure.leave() {
            Some(lease) => ControlFlow::Break(Turn::Relayed(lease, end)),
            None => ControlFlow::Continue(()),
        })
    }

    /// The exchange at the front has a backend.
    #[inline]
    fn take_up(&mut self, lease: Lease, asked: Asked, now: Instant, tenure: &mut Tenure) -> Turned {
        // Before it has a deadline: one that passes while its settings are brought must find somebody.
        if let Some(slot) = &lease.slot {
            slot.serve(&self.registration.entry);
        }
        if let Err(refusal) = self.begin_exchange(&lease, asked.sorted, asked.began, now) {
            lease.give_back();
            *tenure = Tenure::Without;
            return self.turn_away(refusal);
        }
        self.talk.admitted(asked.sorted.looked_at);
        if !Arc::ptr_eq(&lease.applied, &self.talk.wanted) {
            *tenure = Tenure::Without;
            return ControlFlow::Break(Turn::Settings(lease, self.deadline(asked)));
        }
        self.hold(lease, tenure);
        ControlFlow::Continue(())
    }

    /// The backend has what the session expects of it.
    #[inline]
    pub(super) fn hold(&mut self, mut lease: Lease, tenure: &mut Tenure) {
        self.registration.entry.serve(&lease.cancel_target);
        self.talk.tokens.on =
            lease.knows_tokens && self.pool.upstream.resolves() && self.pool.key.replication.is_none();
        self.send_begin(&mut lease);
        *tenure = Tenure::Holding(lease);
    }

    /// There is no backend for the exchange at the front.
    #[cold]
    fn turn_away(&mut self, refusal: Refusal) -> Turned {
        if refusal.is_fatal() {
            return ControlFlow::Break(Turn::Refused(refusal));
        }
        self.refuse(&refusal);
        self.enter_without();
        ControlFlow::Continue(())
    }

    /// Finds a server, and a backend at it; waits for both.
    pub(super) async fn turn_elsewhere(
        &mut self,
        asked: Asked,
        waited: Duration,
        tenure: &mut Tenure,
    ) -> Turned {
        match self.search(asked, waited).await {
            Ok(lease) => self.take_up(lease, asked, clock::now(), tenure),
            Err(None) => ControlFlow::Break(Turn::Gone),
            Err(Some(refusal)) => self.turn_away(refusal),
        }
    }

    /// By when the exchange has to be answered.
    fn deadline(&self, asked: Asked) -> Option<Instant> {
        self.ask(asked.sorted, asked.began).deadline
    }

    /// `Err(None)`: the application left while it waited.
    async fn search(&mut self, mut asked: Asked, waited: Duration) -> Result<Lease, Option<Refusal>> {
        let mut ask = self.ask(asked.sorted, asked.began);
        // In all it waits no longer than in one queue.
        ask.wait_max = ask.wait_max.map(|most| most.saturating_sub(waited));
        let until = ask.wait_max.map(|most| Instant::now() + most);
        loop {
            let epoch = self.go_where_it_runs(asked.sorted, ask.deadline).await?;
            // How many write the same row there is another matter at each server.
            ask.ceiling = self.ask(asked.sorted, asked.began).ceiling;
            asked.since = clock::now();
            match self.acquire(asked, ask).await {
                Err(Some(refusal)) if self.is_elsewhere_now(&refusal, epoch, ask.deadline) => {
                    ask.wait_max = until.map(|until| until.saturating_duration_since(Instant::now()));
                }
                acquired => return acquired,
            }
        }
    }

    async fn acquire(&mut self, asked: Asked, ask: Ask) -> Result<Lease, Option<Refusal>> {
        let lane = asked.sorted.lane;
        let checkout = Checkout { pool: &self.pool, lane, ask, now: asked.since, worker: self.worker };
        let mut acquire = pin!(self.stack.call(checkout));
        let acquired = poll_fn(|cx| match acquire.as_mut().poll(cx) {
            Poll::Ready(acquired) => Poll::Ready(acquired.map_err(Some)),
            Poll::Pending => self.poll_queued(cx),
        })
        .await;
        self.acquired(acquired, asked)
    }

    /// What may end the wait for a backend: the application leaves, cancels, or is told to go.
    #[cold]
    pub(super) fn poll_queued<T>(&mut self, cx: &mut Context<'_>) -> Poll<Result<T, Option<Refusal>>> {
        if let Some(refusal) = self.recalled() {
            return Poll::Ready(Err(Some(refusal)));
        }
        while self.to_db.has_room() {
            match self.ear.poll_listen(cx, &mut self.app, &mut self.to_db) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(None)),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => break,
            }
        }
        Poll::Pending
    }

    /// Whether whoever waits is told not to.
    pub(super) fn recalled(&mut self) -> Option<Refusal> {
        self.enter(Phase::Queued);
        let entry = &self.registration.entry;
        if entry.has(Signal::Cancel) {
            entry.clear(Signal::Cancel);
            return Some(Refusal::Cancelled);
        }
        entry.has(Signal::Kill).then(|| self.signalled(Signal::Kill))
    }
}
