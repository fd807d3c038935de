//! Asks the server that takes writes what became of a transaction, until it says so or time is up.
//!
//! It runs on the control thread, over the control connections: a data path that is stuck does not hold it up, nor does
//! it hold up a data worker.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::verdict::{Asked, Evidence, Judged, Status, judge};
use super::{Token, Verdict};
use crate::backend::connection::Row;
use crate::config::SyncWait;
use crate::pool::{Routes, Upstream};
use crate::probe::{Control, ControlError};
use crate::wire::SqlState;

/// Transactions that are asked about at the same time. A server that lost hundreds of connections at once is busy;
/// each question takes well under a millisecond, so whoever waits here waits little.
const AT_A_TIME: usize = 16;

/// How long one question may take.
const ANSWER_WITHIN: Duration = Duration::from_millis(400);

/// The first pause between two questions; each is twice as long as the one before.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// The longest pause: a server that comes back is asked within this.
const PAUSE_MAX: Duration = Duration::from_millis(80);

/// The state of the server, for a verdict about `$1`; an empty text asks about no id, for where `txid_status` is an error.
/// A standby is not asked about ids: every one that it has not replayed yet is "in the future".
const QUESTION: &str = "SELECT s.standby::text, pg_catalog.pg_last_wal_replay_lsn()::text, \
    (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - pg_catalog.pg_postmaster_start_time()) \
        * 1000)::pg_catalog.int8, \
    (pg_catalog.current_setting('synchronous_standby_names') <> '')::text, \
    CASE WHEN NOT s.standby THEN pg_catalog.txid_status(NULLIF($1::text, '')::pg_catalog.int8) END \
    FROM (SELECT pg_catalog.pg_is_in_recovery() AS standby) s";

/// Ends the process `$1`, if it still runs the transaction `$2` (its lower half, as `pg_stat_activity` has it) and may
/// be ended: its connection is closed on our side, so nobody waits for it. What waits for a synchronous standby is
/// spared unless `$3`: ending it would make an unreplicated commit visible.
const END: &str = "SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity a \
    WHERE a.pid = $1::pg_catalog.int4 AND a.backend_xid::text = $2 \
    AND (a.wait_event IS DISTINCT FROM 'SyncRep' OR $3::pg_catalog.bool)";

/// What is asked about.
#[derive(Debug, Clone)]
pub struct Case {
    /// The transaction.
    pub token: Token,
    /// Where it ran.
    pub origin: Arc<Upstream>,
    /// When the answer is of no use any more.
    pub until: Instant,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Resolver {
    control: OnceLock<Handle>,
    places: Arc<Semaphore>,
}

impl Default for Resolver {
    fn default() -> Self {
        Self { control: OnceLock::new(), places: Arc::new(Semaphore::new(AT_A_TIME)) }
    }
}

impl Resolver {
    /// From now on questions are asked on this runtime.
    pub fn run_on(&self, control: Handle) {
        // The first one stays.
        let _ = self.control.set(control);
    }

    /// What became of a transaction; [`Verdict::Unknown`] at the end of its time.
    ///
    /// # Cancel safety
    /// Cancel safe: the questions end.
    pub async fn resolve(&self, case: Case, routes: &Arc<Routes>) -> Verdict {
        let Some(control) = self.control.get() else { return Verdict::Unknown };
        let (places, routes, until) = (Arc::clone(&self.places), Arc::clone(routes), case.until);
        let inquiry = async move {
            let Ok(_place) = places.acquire().await else { return Verdict::Unknown };
            inquire(&case, &routes).await
        };
        let task =
            Ended(control.spawn(async move { timeout_at(until, inquiry).await.unwrap_or(Verdict::Unknown) }));
        // Its own bound, in case that the control thread is stuck.
        timeout_at(until, task).await.unwrap_or(Verdict::Unknown)
    }
}

/// A task that ends when nobody waits for it.
struct Ended(tokio::task::JoinHandle<Verdict>);

impl Future for Ended {
    type Output = Verdict;

    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Verdict> {
        std::pin::Pin::new(&mut self.0).poll(cx).map(|ended| ended.unwrap_or(Verdict::Unknown))
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn inquire(case: &Case, routes: &Routes) -> Verdict {
    let mut pause = PAUSE_MIN;
    loop {
        if let Some(server) = routes.heir(&case.origin)
            && let Ok(evidence) = ask(case, &server).await
        {
            match judge(&case.token, &evidence) {
                Judged::Is(verdict) => return verdict,
                // In the first round it may be about to end by itself.
                Judged::Runs if pause > PAUSE_MIN => end(case, &server).await,
                Judged::Runs | Judged::NotYet => {}
            }
        }
        sleep_until(Instant::now() + pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

async fn ask(case: &Case, server: &Arc<Upstream>) -> Result<Evidence, ControlError> {
    let (control, at): (&Control, _) = (&server.guard.control, Instant::now());
    let deadline = case.until.min(at + ANSWER_WITHIN);
    let asked = if Arc::ptr_eq(server, &case.origin) { Asked::Origin } else { Asked::Successor };
    let (rows, known) = match control.ask(QUESTION, &[&case.token.xid.to_string()], deadline).await {
        Err(ControlError::Refused(error)) if error.code == SqlState::INVALID_PARAMETER_VALUE => {
            (control.ask(QUESTION, &[""], deadline).await?, Some(Status::Future))
        }
        rows => (rows?, None),
    };
    rows.first().and_then(|row| read(row, asked, at, known)).ok_or(ControlError::Protocol)
}

fn read(row: &Row, asked: Asked, at: Instant, known: Option<Status>) -> Option<Evidence> {
    let [standby, recovered, uptime, synchronous, status] = row.as_slice() else { return None };
    let text = crate::probe::looks::text;
    let recovered = match text(recovered) {
        Some(lsn) => Some(lsn.parse().ok()?),
        None => None,
    };
    let status = match (known, text(status)) {
        (Some(known), _) => known,
        (None, Some("committed")) => Status::Committed,
        (None, Some("aborted")) => Status::Aborted,
        (None, Some("in progress")) => Status::InProgress,
        (None, Some(_)) => return None,
        (None, None) => Status::Forgotten,
    };
    // A clock that was set back makes it negative.
    let uptime = text(uptime)?.parse::<i64>().ok()?;
    Some(Evidence {
        asked,
        at,
        in_recovery: text(standby)? == "true",
        recovered,
        uptime: Duration::from_millis(u64::try_from(uptime).unwrap_or(0)),
        synchronous: text(synchronous)? == "true",
        status,
    })
}

/// Ends what runs a transaction whose connection is gone. Without the right to do so it is waited for.
async fn end(case: &Case, server: &Upstream) {
    let (pid, xid) = (case.token.process_id.to_string(), (case.token.xid & u64::from(u32::MAX)).to_string());
    let also_waiting = server.limits().sync_wait == SyncWait::Cancel;
    let deadline = case.until.min(Instant::now() + ANSWER_WITHIN);
    let parameters = [pid.as_str(), xid.as_str(), if also_waiting { "true" } else { "false" }];
    if let Err(error) = server.guard.control.ask(END, &parameters, deadline).await {
        tracing::debug!(
            error = &error as &dyn std::error::Error,
            "cannot end a backend that was given up on"
        );
    }
}
