//! What the journal keeps and who is paged when a lane changes; and what the heartbeat and the incidents of an
//! earlier process need to know while nothing changes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidegate_layers::breaker::{Change, Counts, Evidence, Phase, ProbeOutcome, Scan};
use tokio::time::Instant;

use super::Reporters;
use super::pager::{Extent, Pager};
use crate::alerts::{Alert, Alerts, Health, Key};
use crate::exchange::{Cause, Diagnosis};
use crate::journal::{Decision, Kind, Recorded, Subject};
use crate::pool::Upstream;
use crate::sql::Lane;

fn cause_of(change: &Change<Arc<Diagnosis>>) -> (Cause, &str) {
    change.cause.as_ref().map_or((Cause::Unknown, ""), |diagnosis| (diagnosis.cause, &*diagnosis.evidence))
}

/// What was known when a breaker changed, for people.
pub(super) fn evidence(change: &Change<Arc<Diagnosis>>) -> String {
    let (_, seen) = cause_of(change);
    format!("{}{}{seen}", words(&change.evidence), if seen.is_empty() { "" } else { "; " })
}

/// Writes a change down that is about to take effect.
pub(super) fn record(
    reporters: &Reporters,
    upstream: &str,
    lane: Lane,
    change: &Change<Arc<Diagnosis>>,
) -> Recorded {
    let (cause, _) = cause_of(change);
    let decision = Decision::new(Kind::Breaker)
        .about(Subject { upstream: Some(upstream.into()), lane: Some(lane) })
        .change(change.from.name(), change.to.name())
        .evidence(&evidence(change));
    reporters.journal.record(if cause == Cause::Unknown { decision } else { decision.cause(cause) })
}

/// Opens an incident when a lane is refused, and ends it when the lanes are as before.
pub(super) fn page(reporters: &Reporters, upstream: &Upstream, lane: Lane, change: &Change<Arc<Diagnosis>>) {
    let (cause, seen) = cause_of(change);
    match change.to {
        // While the cause is being looked for the page waits for it: the change that brings it comes within a
        // second, or the follower pages without one.
        Phase::Open if cause != Cause::Unknown || change.from == Phase::Open => {
            refused(reporters, upstream, lane, cause, seen);
        }
        Phase::ForcedOpen => refused(reporters, upstream, lane, Cause::Forced, seen),
        Phase::HalfOpen => refused(reporters, upstream, lane, cause, seen),
        Phase::Closed | Phase::ForcedClosed if change.from != Phase::Suspect => {
            let over = upstream.guard.paging().pager.served(lane);
            over.for_each(|lane| reporters.alerts.resolve(&stall(&upstream.name, lane)));
        }
        Phase::Open | Phase::Closed | Phase::ForcedClosed | Phase::Suspect | Phase::Ramp { .. } => {}
    }
}

fn refused(reporters: &Reporters, upstream: &Upstream, lane: Lane, cause: Cause, seen: &str) {
    let extent = if cause.is_of_server() { Extent::Server } else { Extent::Lane };
    let alert = alert(&upstream.name, lane, cause, seen);
    let mut paging = upstream.guard.paging();
    if paging.pager.refused(lane, extent, Instant::now()) {
        reporters.alerts.fire(alert);
    } else {
        paging.waits = Some(alert);
    }
}

/// When somebody is paged, and with what if not at once.
#[derive(Debug, Default)]
pub(super) struct Paging {
    pager: Pager,
    waits: Option<Alert>,
}

impl Paging {
    /// Pages for what has waited long enough.
    fn follow(&mut self, alerts: &Alerts) {
        if self.pager.is_due(Instant::now())
            && let Some(alert) = self.waits.take()
        {
            alerts.fire(alert);
        }
    }
}

/// What made a breaker change, for people.
fn words(evidence: &Evidence) -> String {
    match *evidence {
        Evidence::Stuck(Scan { in_flight, suspect, stuck, oldest }) => format!(
            "{stuck} of {in_flight} in flight are stuck, {suspect} slow, the oldest without progress for {oldest:.1?}"
        ),
        Evidence::ConsecutiveFailures(count) => format!("{count} failures in a row"),
        Evidence::FailureRate(Counts { ok, slow, failed }) => {
            format!("of the latest calls {failed} failed, {slow} were slow, {ok} went well")
        }
        Evidence::Probe(ProbeOutcome::Timeout) => "a probe was not answered in time".to_owned(),
        Evidence::Probe(ProbeOutcome::Failed) => "a probe failed".to_owned(),
        Evidence::Probe(ProbeOutcome::Ok) => "a probe went well".to_owned(),
        Evidence::Probe(ProbeOutcome::Inconclusive) => "a probe could not tell".to_owned(),
        Evidence::Probe(ProbeOutcome::Unasked) => "a probe could not be made".to_owned(),
        Evidence::Probe(ProbeOutcome::Unwanted) => "no probe was made".to_owned(),
        Evidence::Reported => "it was proven".to_owned(),
        Evidence::Forced(_) => "an operator ordered it".to_owned(),
        Evidence::Diagnosed => "the cause was found".to_owned(),
        Evidence::Cleared => "what was suspected was not so".to_owned(),
        Evidence::HoldOver(hold) => format!("the {hold:.1?} to stay open are over"),
        Evidence::ProbesGood => "probes went well".to_owned(),
        Evidence::ProbesSilent => "no probe could tell, and none spoke against it".to_owned(),
        Evidence::Renewed => "it is another server now, and was seen to work".to_owned(),
        Evidence::RampStep => "all went well so far".to_owned(),
    }
}

fn alert(upstream: &str, lane: Lane, cause: Cause, seen: &str) -> Alert {
    let why = if seen.is_empty() { cause.sentence() } else { seen };
    let summary = format!("{}s to {upstream} are refused: {why}", lane.word());
    let name = match lane {
        Lane::Read => "read_stalled",
        Lane::Write => "write_stalled",
    };
    Alert {
        lane: Some(lane),
        upstream: Some(upstream.into()),
        cause: Some(cause),
        ..Alert::new(name, summary)
    }
}

/// The incident of a lane that is refused.
pub(crate) fn stall(upstream: &str, lane: Lane) -> Key {
    alert(upstream, lane, Cause::Unknown, "").key()
}

/// How long the page about a lane waits for the cause: it may never be found.
const CAUSE_PATIENCE: Duration = Duration::from_secs(1);

/// Tells of what goes well, and of what nobody was told.
#[derive(Debug, Default)]
pub(super) struct Follower {
    /// Since when a lane is refused without a page, by lane.
    untold: [Option<Instant>; Lane::ALL.len()],
    wrote_ms: u64,
    probed: Option<Instant>,
    /// Incidents of an earlier process are settled, by lane.
    settled: [bool; Lane::ALL.len()],
}

impl Follower {
    /// Called a few times per second.
    pub(super) fn follow(&mut self, upstream: &Upstream) {
        let guard = &upstream.guard;
        let Some(reporters) = guard.reporters.get() else { return };
        for (lane, since) in Lane::ALL.into_iter().zip(&mut self.untold) {
            if guard.phase(lane) != Phase::Open || guard.paging().pager.knows(lane) {
                *since = None;
            } else if since.get_or_insert_with(Instant::now).elapsed() >= CAUSE_PATIENCE {
                refused(reporters, upstream, lane, Cause::Unknown, "");
            }
        }
        guard.paging().follow(&reporters.alerts);
        let wrote_ms = guard.wrote_ms.load(Ordering::Relaxed);
        let probed = guard.write_probe.pulse().last_good().map(|good| good.at);
        if wrote_ms != self.wrote_ms || probed != self.probed {
            (self.wrote_ms, self.probed) = (wrote_ms, probed);
            reporters.alerts.last_write().committed();
        }
        for (lane, settled) in Lane::ALL.into_iter().zip(&mut self.settled) {
            let proven = match lane {
                Lane::Read => guard.pulse(lane).last_good().is_some(),
                Lane::Write => wrote_ms != 0 || probed.is_some(),
            };
            if !*settled && proven && guard.phase(lane) == Phase::Closed {
                *settled = true;
                reporters.alerts.reconcile(&stall(&upstream.name, lane), Health::Healthy);
            }
        }
    }
}
