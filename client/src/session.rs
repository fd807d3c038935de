//! One connection: the driver's client, the task that moves its bytes, and what is known of it.

use std::fmt::{self, Write as _};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rand::RngExt;
use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_postgres::{CancelToken, Client, SimpleQueryMessage};

use crate::cancel::Effect;
use crate::connector::{Connector, Place};
use crate::deadline::Priority;
use crate::login::Raw;
use crate::socket::Ending;
use crate::wire::WireState;

/// How long an orderly close may take before the socket is taken away.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// Lets the server notice a client that is gone: while a statement runs (`client_connection_check_interval`, from
/// `PostgreSQL` 14 on) and while it waits for one (its default is two hours).
const SHORT_LIVES: &str = "SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; \
                           SET tcp_keepalives_count = 3; SET tcp_user_timeout = 5000";
const CHECK_CLIENT: &str = "SET client_connection_check_interval = 1000";

/// A connection that is logged in. Dropped idle it says goodbye; dropped busy its task and socket end at once.
pub(crate) struct Session {
    client: Client,
    token: CancelToken,
    wire: Arc<WireState>,
    ending: Ending,
    task: AbortHandle,
    place: Place,
    connector: Arc<Connector>,
    trust: Trust,
    cancelling: Mutex<Option<JoinHandle<Effect>>>,
    /// Set for a statement that may be over by now: who waits until later sets it again when it goes off, so that
    /// statements that are answered in time set none. Of the runtime that moves the bytes.
    alarm: Mutex<Pin<Box<Sleep>>>,
    sidecar: bool,
    told: Told,
    /// The sidecar was told something within a transaction: a ROLLBACK undoes it.
    told_in_transaction: bool,
    /// Of the server, where it was asked for.
    timeline: u32,
    /// Just found to be reusable, and given back since.
    vouched: bool,
    expires: Instant,
    last_used: Instant,
}

/// Whether our own bookkeeping agrees with the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// What was asked has been answered.
    Sound,
    /// Something was asked whose answer nobody took: it may not even be written yet.
    InDoubt,
    /// Not to be used again.
    Lost,
}

/// What the sidecar was told last.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Told {
    deadline_ms: Option<u64>,
    priority: Option<Priority>,
}

impl Session {
    pub(crate) fn new(raw: Raw, place: Place, connector: Arc<Connector>, lifetime: Duration) -> Self {
        let now = Instant::now();
        // A tenth either way, or what was connected together would be replaced together.
        let percent = rand::rng().random_range(90..=110);
        Self {
            token: raw.client.cancel_token(),
            client: raw.client,
            wire: raw.wire,
            ending: raw.ending,
            task: raw.task,
            place,
            connector,
            trust: Trust::Sound,
            cancelling: Mutex::default(),
            alarm: Mutex::new(Box::pin(sleep_until(now))),
            sidecar: false,
            told: Told::default(),
            told_in_transaction: false,
            timeline: 0,
            vouched: false,
            expires: now + lifetime / 100 * percent,
            last_used: now,
        }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn wire(&self) -> &Arc<WireState> {
        &self.wire
    }

    pub(crate) fn pid(&self) -> i32 {
        self.wire.pid()
    }

    /// Where its server is.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Whether a sidecar answers.
    pub(crate) fn has_sidecar(&self) -> bool {
        self.sidecar
    }

    pub(crate) fn set_sidecar(&mut self, sidecar: bool) {
        self.sidecar = sidecar;
    }

    pub(crate) fn timeline(&self) -> u32 {
        self.timeline
    }

    /// Of a primary that was replaced.
    pub(crate) fn is_outlived(&self) -> bool {
        self.connector.has_outlived(self)
    }

    pub(crate) fn set_timeline(&mut self, timeline: u32) {
        self.timeline = timeline;
    }

    pub(crate) fn last_used(&self) -> Instant {
        self.last_used
    }

    pub(crate) fn touch(&mut self, now: Instant) {
        self.last_used = now;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Proof that the next user finds nothing of the last one: all answered, no transaction, no cancel under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.trust == Trust::Sound && self.cancelling().is_none() && !self.is_closed() && self.wire.is_idle()
    }

    /// Idle, young enough to be kept, and of a server that is still the one.
    pub(crate) fn is_reusable(&self) -> bool {
        self.is_idle() && !self.is_outlived() && self.last_used < self.expires
    }

    /// As [`is_reusable`](Self::is_reusable); the next [`is_broken`](Self::is_broken) need not look again.
    pub(crate) fn vouch(&mut self) -> bool {
        self.vouched = self.is_reusable();
        self.vouched
    }

    /// [`vouch`](Self::vouch) was long ago, or for somebody else.
    pub(crate) fn doubt(&mut self) {
        self.vouched = false;
    }

    /// Not to be kept.
    pub(crate) fn is_broken(&mut self) -> bool {
        !std::mem::take(&mut self.vouched) && !self.is_reusable()
    }

    /// Something is about to be asked. Until [`answered`](Self::answered) the connection is in doubt: the future that
    /// asks may be dropped at any time.
    pub(crate) fn asking(&mut self) {
        self.vouched = false;
        if self.trust == Trust::Sound {
            self.trust = Trust::InDoubt;
        }
    }

    /// The answer was taken, to its end or to its error.
    pub(crate) fn answered(&mut self) {
        if self.trust == Trust::InDoubt {
            self.trust = Trust::Sound;
        }
    }

    /// Not to be used again.
    pub(crate) fn doom(&mut self) {
        self.vouched = false;
        self.trust = Trust::Lost;
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.trust == Trust::Lost || self.is_closed()
    }

    /// A setting as the server shows it.
    ///
    /// # Cancel safety
    /// The session must not be used again when it is dropped.
    pub(crate) async fn show(&self, setting: &str) -> Result<Option<String>, tokio_postgres::Error> {
        self.value(&format!("SHOW {setting}")).await
    }

    /// The first value of a statement.
    ///
    /// # Cancel safety
    /// As above.
    pub(crate) async fn value(&self, sql: &str) -> Result<Option<String>, tokio_postgres::Error> {
        let messages = self.client.simple_query(sql).await?;
        Ok(messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        }))
    }

    /// Asks the server to notice when we are gone. One that cannot (an old one, or a pooler that refuses) is as good
    /// as it can be.
    ///
    /// # Cancel safety
    /// As above.
    pub(crate) async fn shorten_lives(&self) -> Result<(), tokio_postgres::Error> {
        let both =
            tokio::join!(self.client.batch_execute(SHORT_LIVES), self.client.batch_execute(CHECK_CLIENT));
        match both {
            (Err(error), _) | (_, Err(error)) if error.code().is_none() => Err(error),
            _ => Ok(()),
        }
    }

    /// Sends a cancel request in the background, at most one at a time. The session is not idle again before
    /// [`cancelled`](Self::cancelled) has seen its end.
    pub(crate) fn start_cancel(&self) {
        self.cancelling().get_or_insert_with(|| {
            let (connector, place, token) =
                (Arc::clone(&self.connector), self.place.clone(), self.token.clone());
            tokio::spawn(async move { connector.cancel(&place, &token).await })
        });
    }

    /// Waits until then. One at a time: who polls last is woken.
    pub(crate) fn poll_until(&self, until: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let mut alarm = self.alarm.lock().unwrap_or_else(PoisonError::into_inner);
        if alarm.deadline() > until {
            alarm.as_mut().reset(until);
        }
        loop {
            ready!(alarm.as_mut().poll(cx));
            if alarm.deadline() >= until {
                return Poll::Ready(());
            }
            alarm.as_mut().reset(until);
        }
    }

    fn cancelling(&self) -> MutexGuard<'_, Option<JoinHandle<Effect>>> {
        self.cancelling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a cancel request is under way, or its end not yet seen.
    pub(crate) fn is_cancelling(&mut self) -> bool {
        self.cancelling.get_mut().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Waits until the cancel request has had its effect. One whose end was not seen may hit any later statement, so
    /// the session is lost.
    ///
    /// # Cancel safety
    /// The session is not idle until this was awaited to its end.
    pub(crate) async fn cancelled(&mut self) {
        let cancelling = self.cancelling.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(under_way) = cancelling {
            let effect = under_way.await.unwrap_or(Effect::Unseen);
            *cancelling = None;
            if effect == Effect::Unseen {
                self.doom();
            }
        }
    }

    /// What the sidecar must be told before the next statement: nothing while it knows.
    pub(crate) fn hints(
        &mut self,
        remaining: Option<Duration>,
        priority: Option<Priority>,
    ) -> Option<String> {
        if !self.sidecar {
            return None;
        }
        let in_transaction = self.wire.is_in_transaction();
        if self.told_in_transaction && !in_transaction {
            // Whoever ended it may have rolled it back.
            self.forget_hints();
        }
        let mut sql = String::new();
        let deadline_ms = remaining.map(coarse_ms);
        // Writing to a String cannot fail.
        match (deadline_ms, self.told.deadline_ms) {
            (None, None) => {}
            (None, Some(_)) => sql.push_str("RESET tidegate.deadline_ms;"),
            (Some(new), Some(old)) if new <= old && old - new <= old / 4 => {}
            (Some(new), _) => {
                let _ = write!(sql, "SET tidegate.deadline_ms = {new};");
            }
        }
        if !sql.is_empty() {
            self.told.deadline_ms = deadline_ms;
        }
        if priority != self.told.priority {
            self.told.priority = priority;
            match priority {
                None => sql.push_str("RESET tidegate.priority;"),
                Some(priority) => {
                    let _ = write!(sql, "SET tidegate.priority = '{}';", priority.name());
                }
            }
        }
        self.told_in_transaction |= in_transaction && !sql.is_empty();
        (!sql.is_empty()).then_some(sql)
    }

    /// A COMMIT made lasting what was told in its transaction.
    pub(crate) fn keep_hints(&mut self) {
        self.told_in_transaction = false;
    }

    /// A rollback undid the settings that were made in the transaction: tell the sidecar again.
    pub(crate) fn forget_hints(&mut self) {
        self.told_in_transaction = false;
        if self.told != Told::default() {
            // Values that no statement has: both are told again.
            self.told = Told { deadline_ms: Some(0), priority: None };
        }
    }
}

/// Rounded up to one of eight steps between powers of two: budgets shrink all the time, and each value sent costs
/// both sides some work. The exact deadline is kept here.
fn coarse_ms(remaining: Duration) -> u64 {
    let ms = u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX / 16).max(1);
    let step = (ms.next_power_of_two() / 16).max(1);
    ms.div_ceil(step) * step
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("wire", &self.wire)
            .field("trust", &self.trust)
            .field("sidecar", &self.sidecar)
            .finish_non_exhaustive()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let runtime = Handle::try_current();
        match runtime {
            // The client's end lets the task say goodbye and end by itself. On a dead network it would not.
            Ok(runtime) if self.is_idle() => {
                let task = self.task.clone();
                runtime.spawn(async move {
                    sleep(CLOSE_MAX).await;
                    task.abort();
                });
            }
            Ok(_) | Err(_) => {
                self.ending.make_abrupt();
                self.task.abort();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_rounded_up_and_never_by_more_than_an_eighth() {
        // Rounded down, the sidecar would cut a statement that still has time.
        for ms in 1..10_000 {
            let coarse = coarse_ms(Duration::from_millis(ms));

            assert!(coarse >= ms && coarse <= ms + ms.div_ceil(8), "{ms} became {coarse}");
        }
    }
}
