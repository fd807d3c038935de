//! What happens to a backend whose session left: cancelled, drained, rolled back, cleaned, and only then
//! given to others. Where that does not work in time it is given up on, and its place is free when the server says that
//! its process is gone: an application that leaves what is stuck must not make room for more of the same.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::conversation::{Conversation, Position};
use super::relay::Hold;
use crate::backend::connection::{DrainScan, UnnamedOwner};
use crate::backend::{BackendError, Settings};
use crate::config::SyncWait;
use crate::exchange::refusal::Outcome;
use crate::guard::{LOOK_WITHIN, LeftAlone, Wait};
use crate::pool::Lease;
use crate::wire::frame::put_frame;
use crate::wire::{SqlState, TransactionStatus, frontend};

/// From the end of the cancel to the last `ReadyForQuery`.
const DRAIN: Duration = Duration::from_secs(1);
/// ROLLBACK, or `DISCARD ALL`.
const CLEAN: Duration = Duration::from_millis(500);
/// How often whoever asked for a look sees whether it is there.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Until a cancel of somebody else has landed: its own deadline and some.
const SETTLE: Duration = Duration::from_secs(1);

/// What has to be done. Taken from the session before it ends.
#[derive(Debug)]
pub(super) struct Plan {
    position: Position,
    ready_owed: usize,
    wants_sync: bool,
    copying_in: bool,
    inbound_left: usize,
    hold: Hold,
    /// Whether what runs may be committing.
    commits: bool,
}

impl Plan {
    /// For a session that leaves at this point. `unsent`: bytes for the backend were not written yet.
    pub(super) fn of(talk: &Conversation, unsent: bool) -> Self {
        // Nobody will read back what was set, or find out what was skipped; `DISCARD ALL` undoes it.
        let is_doubtful = talk.notes.has_settings() || talk.leaves_doubt();
        let hold = if is_doubtful { Hold::Session } else { talk.keeps() };
        Self {
            position: if unsent || talk.sync_would_commit() { Position::Torn } else { talk.position() },
            ready_owed: talk.ledger.ready_owed(),
            wants_sync: talk.owes_sync(),
            copying_in: talk.is_copying_in(),
            inbound_left: talk.inbound_left(),
            hold,
            commits: talk.outcome() == Outcome::Unknown,
        }
    }
}

impl Plan {
    /// Whether a single exchange runs, whole: nothing would run after it.
    pub(super) fn is_single(&self) -> bool {
        self.position == Position::Owing && self.ready_owed == 1 && !self.wants_sync && !self.copying_in
    }
}

/// Watches a backend whose exchange must not be disturbed, however long it takes, until it can go to others.
pub(super) async fn see_off(mut lease: Lease, plan: Plan) {
    let scan = DrainScan { body_left: plan.inbound_left };
    if lease.drain(scan, plan.ready_owed).await.is_err() || clean(&mut lease, plan.hold).await.is_err() {
        return lease.give_up();
    }
    quarantine(lease).await;
}

/// Makes the backend fit for other sessions, or closes it.
pub(super) async fn recover(mut lease: Lease, plan: Plan) {
    // Half a message was sent: nothing that we could add would be understood.
    let torn = plan.position == Position::Torn;
    if !torn && lease.pool().key.replication.is_some() {
        return lease.terminate().await;
    }
    if plan.commits && plan.is_single() && waits_at_its_end(&lease).await {
        let _left = LeftAlone::new(Arc::clone(lease.pool()));
        return see_off(lease, plan).await;
    }
    if torn || end_work(&mut lease, &plan).await.is_err() {
        return lease.give_up();
    }
    quarantine(lease).await;
}

/// Whether what runs has written and waits for a standby or for the log. A cancel would make its commit visible though no standby
/// has it, or not stop it at all: nobody waits for it any more, but that is no reason to do so.
async fn waits_at_its_end(lease: &Lease) -> bool {
    let upstream = &lease.pool().upstream;
    if upstream.limits().sync_wait != SyncWait::Leave {
        return false;
    }
    let (pid, asked) = (lease.cancel_target.process_id, Instant::now());
    upstream.guard.ask_for_look(pid);
    while asked.elapsed() < LOOK_WITHIN {
        tokio::time::sleep(LOOK_EVERY).await;
        if let Some(look) = upstream.guard.look(pid, asked) {
            return matches!(look.wait, Wait::SyncRep | Wait::Storage);
        }
    }
    false
}

async fn end_work(lease: &mut Lease, plan: &Plan) -> Result<(), ()> {
    if plan.position == Position::Owing && plan.ready_owed > 1 {
        // A cancel ends the first of several exchanges; the others must not run either.
        let _ = lease.cancel_target.announce().send().await;
        return Err(());
    }
    if plan.position == Position::Owing && !stop(lease, plan).await {
        return Err(());
    }
    clean(lease, plan.hold).await
}

/// Cancels what runs and reads what is still to come.
async fn stop(lease: &mut Lease, plan: &Plan) -> bool {
    let mut last_words = Vec::new();
    if plan.copying_in {
        put_frame(&mut last_words, frontend::COPY_FAIL, |out| out.extend_from_slice(b"session ended\0"));
    }
    if plan.wants_sync {
        put_frame(&mut last_words, frontend::SYNC, |_| {});
    }
    let cancelled = lease.cancel_target.announce().send().await.is_ok();
    let ready = plan.ready_owed + usize::from(plan.wants_sync);
    let drain = async {
        if !last_words.is_empty() {
            lease.stream.write_all(&last_words).await?;
        }
        lease.drain(DrainScan { body_left: plan.inbound_left }, ready).await
    };
    cancelled && matches!(tokio::time::timeout(DRAIN, drain).await, Ok(Ok(())))
}

/// Ends the transaction and removes session state.
async fn clean(lease: &mut Lease, hold: Hold) -> Result<(), ()> {
    // It may be of a Parse that was skipped.
    lease.unnamed = Some(UnnamedOwner::NOBODY);
    if lease.status != TransactionStatus::Idle {
        run(lease, b"ROLLBACK").await?;
    }
    if hold == Hold::Session {
        run(lease, b"DISCARD ALL").await?;
        lease.prepared.clear();
        lease.unnamed = None;
        lease.applied = Settings::none();
    }
    if lease.status == TransactionStatus::Idle { Ok(()) } else { Err(()) }
}

/// Runs a statement of ours. A cancel that was on its way may hit it: once is forgiven.
async fn run(lease: &mut Lease, sql: &[u8]) -> Result<(), ()> {
    for _ in 0..2 {
        match tokio::time::timeout(CLEAN, lease.query(sql)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(BackendError::Server(error))) if error.code == SqlState::QUERY_CANCELED => {}
            Ok(Err(_)) | Err(_) => return Err(()),
        }
    }
    Err(())
}

/// Gives a backend back that is idle, once no cancel can hit it any more.
pub(super) async fn quarantine(lease: Lease) {
    if lease.cancel_target.is_threatened() {
        take_the_blow(lease).await;
    } else {
        lease.give_back();
    }
}

/// Waits until the cancel that threatens the backend cannot hit it any more, then gives it back. Not to be asked again: one
/// that has come to its end meanwhile may be the very one that hits.
pub(super) async fn take_the_blow(mut lease: Lease) {
    let target = std::sync::Arc::clone(&lease.cancel_target);
    if tokio::time::timeout(SETTLE, target.settled()).await.is_err() || target.is_doomed() {
        return lease.give_up();
    }
    // The signal was sent before the server closed the cancel's connection, but a backend acts on it a
    // moment later: an empty query takes the blow for the next session.
    if run(&mut lease, b"").await.is_err() {
        return lease.give_up();
    }
    lease.give_back();
}
