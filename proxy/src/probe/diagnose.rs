//! Finds out why a lane hangs, from a connection that does not hang with it.
//!
//! PostgreSQL is asked what our stuck backends wait for. When it cannot be asked, how the attempt failed is the
//! answer. The verdict is there within a second, and in the usual cases within milliseconds.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_layers::breaker::Diagnose;
use tokio::time::{Instant, timeout_at};

use super::control::Source;
use super::looks::{Look, Looks, Wait, int_array, text};
use super::{Control, ControlError, Pulse, standbys};
use crate::backend::connection::Row;
use crate::exchange::{Cause, Diagnosis};

/// All questions together: less than a second, so that the answer is there when a breaker opens.
const DIAGNOSIS_TIMEOUT: Duration = Duration::from_millis(950);

/// Longer evidence would make DETAIL unreadable.
const EVIDENCE_MAX_CHARS: usize = 300;

/// Blockers that are named.
const BLOCKERS_MAX: usize = 5;

const STANDING: &str =
    "SELECT pg_catalog.pg_is_in_recovery()::text, pg_catalog.current_setting('transaction_read_only')";

const BLOCKERS: &str = "SELECT pid, state, \
    pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - state_change)::pg_catalog.int8 \
    FROM pg_catalog.pg_stat_activity WHERE pid = ANY ($1::pg_catalog.int4[])";

/// Names the cause of a hang.
pub struct Diagnoser {
    control: Arc<Control>,
    looks: Arc<Looks>,
    pulse: Arc<Pulse>,
    stuck: Source<Vec<u32>>,
}

impl std::fmt::Debug for Diagnoser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Diagnoser").field("control", &self.control).finish_non_exhaustive()
    }
}

impl Diagnoser {
    /// `pulse` is that of the lane's probe; `stuck` gives the process ids of backends that work for too long.
    /// What is seen of them goes into `looks` as well.
    pub fn new(control: Arc<Control>, looks: Arc<Looks>, pulse: Arc<Pulse>, stuck: Source<Vec<u32>>) -> Self {
        Self { control, looks, pulse, stuck }
    }

    async fn diagnosis(&self, deadline: Instant) -> Option<Diagnosis> {
        // The probe has been told by the server itself.
        if let Some(cause @ (Cause::ReadOnly | Cause::InRecovery | Cause::Auth | Cause::Overload)) =
            self.pulse.finding()
        {
            return Some(Diagnosis::of(cause));
        }
        let mut pids = (self.stuck)();
        pids.extend(self.pulse.outstanding());
        match self.looks.take(&self.control, &pids, deadline).await {
            Ok(looks) => self.explain(&looks, deadline).await,
            Err(error) => error.cause().map(Diagnosis::of),
        }
    }

    async fn explain(&self, looks: &HashMap<u32, Look>, deadline: Instant) -> Option<Diagnosis> {
        let Some(cause) = verdict(looks.values()) else { return self.standing(deadline).await };
        // A cause without evidence is better than neither.
        let evidence = match cause {
            Cause::SyncStandby => standbys::missing(&self.control, deadline).await.unwrap_or_default(),
            Cause::Lock => self.blockers(looks, deadline).await.unwrap_or_default(),
            _ => String::new(),
        };
        let evidence: String = evidence.chars().take(EVIDENCE_MAX_CHARS).collect();
        Some(Diagnosis { cause, evidence: evidence.into() })
    }

    /// Whether it is a server that takes no writes.
    async fn standing(&self, deadline: Instant) -> Option<Diagnosis> {
        let rows = match self.control.ask(STANDING, &[], deadline).await {
            Ok(rows) => rows,
            Err(error) => return error.cause().map(Diagnosis::of),
        };
        let row = rows.first()?;
        let (in_recovery, read_only) = (text(row.first()?)?, text(row.get(1)?)?);
        match (in_recovery, read_only) {
            ("true", _) => Some(Diagnosis::of(Cause::InRecovery)),
            (_, "on") => Some(Diagnosis::of(Cause::ReadOnly)),
            _ => None,
        }
    }

    async fn blockers(&self, looks: &HashMap<u32, Look>, deadline: Instant) -> Result<String, ControlError> {
        let ours = |pid: &u32| looks.contains_key(pid);
        let mut pids: Vec<u32> = looks.values().flat_map(|look| look.blocked_by.iter().copied()).collect();
        pids.sort_unstable();
        pids.dedup();
        // Those at the front of the queue; the others of ours only stand behind them.
        pids.retain(|pid| !ours(pid));
        pids.truncate(BLOCKERS_MAX);
        let rows = self.control.ask(BLOCKERS, &[&int_array(&pids)], deadline).await?;
        let states: HashMap<u32, String> = rows.iter().filter_map(state).collect();
        Ok(blocked_by(&pids, &states))
    }
}

impl Diagnose<Arc<Diagnosis>> for Diagnoser {
    /// # Cancel safety
    /// Cancel safe; the connection in use is closed.
    async fn diagnose(&self) -> Option<Arc<Diagnosis>> {
        let deadline = Instant::now() + DIAGNOSIS_TIMEOUT;
        timeout_at(deadline, self.diagnosis(deadline)).await.ok().flatten().map(Arc::new)
    }
}

/// One that waits for a standby or for storage is enough: others may wait for its locks. Locks are the cause
/// only when nothing else is.
fn verdict<'a>(looks: impl Iterator<Item = &'a Look>) -> Option<Cause> {
    let busy: Vec<Wait> = looks.map(|look| look.wait).filter(|&wait| wait != Wait::Idle).collect();
    if busy.contains(&Wait::SyncRep) {
        return Some(Cause::SyncStandby);
    }
    if busy.contains(&Wait::Storage) || busy.contains(&Wait::DataFile) {
        return Some(Cause::Storage);
    }
    (!busy.is_empty() && busy.iter().all(|&wait| wait == Wait::Lock)).then_some(Cause::Lock)
}

fn state(row: &Row) -> Option<(u32, String)> {
    let [pid, state, seconds] = row.as_slice() else { return None };
    Some((text(pid)?.parse().ok()?, format!("{} for {} s", text(state)?, text(seconds)?)))
}

fn blocked_by(pids: &[u32], states: &HashMap<u32, String>) -> String {
    let named: Vec<String> = pids
        .iter()
        .map(|pid| match (pid, states.get(pid)) {
            // As `pg_blocking_pids` is documented.
            (0, _) => "a prepared transaction".to_owned(),
            (pid, Some(state)) => format!("pid {pid} ({state})"),
            (pid, None) => format!("pid {pid}"),
        })
        .collect();
    if named.is_empty() { String::new() } else { format!("blocked by {}", named.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(waits: &[Wait]) -> Option<Cause> {
        let looks: Vec<Look> =
            waits.iter().map(|&wait| Look { wait, has_written: false, blocked_by: vec![] }).collect();
        verdict(looks.iter())
    }

    #[test]
    fn one_waiter_for_a_standby_explains_a_queue_of_lock_waiters() {
        // They wait for the row that the unconfirmed commit still holds.
        assert_eq!(of(&[Wait::Lock, Wait::Lock, Wait::SyncRep]), Some(Cause::SyncStandby));
        assert_eq!(of(&[Wait::Storage, Wait::SyncRep]), Some(Cause::SyncStandby));
        assert_eq!(of(&[Wait::Lock, Wait::Storage]), Some(Cause::Storage));
    }

    #[test]
    fn locks_are_the_cause_only_when_they_are_everybodys() {
        // One that waits for something unknown may be the reason of them all.
        assert_eq!(of(&[Wait::Lock, Wait::Idle]), Some(Cause::Lock));
        assert_eq!(of(&[Wait::Lock, Wait::Other]), None);
        assert_eq!(of(&[Wait::Idle]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn blockers_are_named_with_what_they_do() {
        // A number alone does not say whether to wait, to end a session or to resolve a prepared transaction.
        let states = HashMap::from([(7, "idle in transaction for 12 s".to_owned())]);

        let evidence = blocked_by(&[0, 7, 8], &states);

        assert_eq!(
            evidence,
            "blocked by a prepared transaction, pid 7 (idle in transaction for 12 s), pid 8"
        );
    }
}
