//! Synthetic traffic for the breakers: does the lane do its work?

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidegate_layers::breaker::{Probe, ProbeOutcome, Session as Which};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::error::DbError;

use crate::connector::Connector;
use crate::detail::Detail;
use crate::lanes::Gate;
use crate::session::Session;
use crate::words::Lane;

/// A real commit that needs no table and no grant: a transactional message writes WAL, so its commit is flushed and
/// waits for synchronous standbys like any other (`src/backend/access/transam/xact.c`, `RecordTransactionCommit`).
/// `NULL` when the server answers but takes no writes: there the function would not do, or not say so.
const WRITE: &str = "SELECT CASE WHEN pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on' \
    THEN NULL ELSE pg_logical_emit_message(true, 'tidegate', '') END";
const READ: &str = "SELECT 1";
/// Answered by the sidecar itself. What is behind it is its own business.
const SIDECAR: &str = "SHOW tidegate.deadline_ms";
/// The same, but for a lane that it refuses, as it says then. All our permits may be held by statements that it does not
/// answer yet, so nobody else would hear of it. The bound is that of its queue: a lane that is full is not refused.
const SIDECAR_WRITE: &str = "/*tidegate:lane=write,deadline_ms=200*/ SELECT 1";

/// A probe that hangs is left alone this long: ended sooner, each would leave a backend behind that hangs, too. It
/// doubles up to the second with each that hung.
const PATIENCE_MIN: Duration = Duration::from_secs(5);
const PATIENCE_MAX: Duration = Duration::from_mins(1);

/// How long a cancelled probe may take to end.
const DRAIN_MAX: Duration = Duration::from_millis(500);

/// Probes of one lane, at most one under way: one that hangs is waited for, not repeated.
#[derive(Debug)]
pub(crate) struct LaneProbe {
    asker: Arc<Asker>,
    /// The probe that is under way. It outlives the watchdog's patience.
    asked: Mutex<Option<Asked>>,
}

#[derive(Debug)]
struct Asker {
    lane: Lane,
    connector: Arc<Connector>,
    gate: Arc<Gate>,
    kept: Mutex<Option<Session>>,
    patience_ms: AtomicU64,
}

#[derive(Debug)]
struct Asked(JoinHandle<ProbeOutcome>);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl LaneProbe {
    pub(crate) fn new(lane: Lane, connector: Arc<Connector>, gate: Arc<Gate>) -> Self {
        let patience_ms = AtomicU64::new(0);
        let asker = Asker { lane, connector, gate, kept: Mutex::default(), patience_ms };
        Self { asker: Arc::new(asker), asked: Mutex::default() }
    }
}

impl Probe for LaneProbe {
    /// # Cancel safety
    /// A probe that is dropped goes on, and the next call waits for it.
    async fn probe(&self, which: Which) -> ProbeOutcome {
        let mut asked = self.asked.lock().await;
        let asker = Arc::clone(&self.asker);
        let under_way =
            asked.get_or_insert_with(|| Asked(tokio::spawn(async move { asker.ask(which).await })));
        let outcome = (&mut under_way.0).await.unwrap_or(ProbeOutcome::Failed);
        *asked = None;
        outcome
    }
}

impl Asker {
    async fn ask(&self, which: Which) -> ProbeOutcome {
        let kept = match which {
            Which::Kept => self.kept.lock().await.take().filter(Session::is_idle),
            Which::Fresh => None,
        };
        let mut session = match kept {
            Some(session) => session,
            None => match Box::pin(self.connector.connect()).await {
                Ok(session) => session,
                Err(_) => return ProbeOutcome::Failed,
            },
        };
        let outcome = self.run(&mut session).await;
        if session.is_idle() {
            *self.kept.lock().await = Some(session);
        }
        outcome
    }

    async fn run(&self, session: &mut Session) -> ProbeOutcome {
        let sql = match (session.has_sidecar(), self.lane) {
            (true, Lane::Read) => SIDECAR,
            (true, Lane::Write) => SIDECAR_WRITE,
            (false, Lane::Read) => READ,
            (false, Lane::Write) => WRITE,
        };
        let wire = Arc::clone(session.wire());
        session.asking();
        let answer = timeout(self.patience(), session.value(sql)).await;
        match answer {
            Ok(Ok(value)) => {
                session.answered();
                self.patience_ms.store(0, Ordering::Relaxed);
                if value.is_some() { ProbeOutcome::Ok } else { ProbeOutcome::Failed }
            }
            Ok(Err(error)) => {
                session.answered();
                if self.heard_from_sidecar(&error) {
                    return ProbeOutcome::Ok;
                }
                // The server answers, but we may not ask: then probes cannot tell.
                let cannot = error.code().is_some_and(|code| code.code().starts_with("42"));
                if cannot { ProbeOutcome::Inconclusive } else { ProbeOutcome::Failed }
            }
            Err(_) => {
                // A cancelled probe that waits for a standby leaves an empty commit: nobody misses it.
                session.start_cancel();
                session.cancelled().await;
                if timeout(DRAIN_MAX, wire.settle()).await.is_ok() {
                    session.answered();
                }
                ProbeOutcome::Timeout
            }
        }
    }

    /// A sidecar that refuses does its work; what it refuses is not asked for in vain for a while.
    fn heard_from_sidecar(&self, error: &tokio_postgres::Error) -> bool {
        let detail = error.as_db_error().and_then(DbError::detail).and_then(Detail::parse);
        let Some(detail) = detail else { return false };
        if let (true, Some(after)) = (detail.refuses_lane(), detail.retry_after) {
            self.gate.pause(after, detail.cause);
        }
        true
    }

    /// How long this probe may hang; the next one may hang twice as long.
    fn patience(&self) -> Duration {
        let least = PATIENCE_MIN.as_millis();
        let now = Duration::from_millis(self.patience_ms.load(Ordering::Relaxed)).max(PATIENCE_MIN);
        let next = (now * 2).min(PATIENCE_MAX).as_millis().max(least);
        self.patience_ms.store(u64::try_from(next).unwrap_or(u64::MAX), Ordering::Relaxed);
        now.min(PATIENCE_MAX)
    }
}
