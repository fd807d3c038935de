//! How a breaker sees its server, and who is told when it changes.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tidegate_layers::breaker::{Change, Diagnose, Events, Phase, Probe, ProbeOutcome, Session};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{Duty, reports};
use crate::exchange::{Cause, Diagnosis};
use crate::pool::Upstream;
use crate::probe::{Diagnoser, ReadProbe, WriteProbe};
use crate::sql::Lane;

/// Asks the server to do what the lane does.
#[derive(Debug)]
pub(super) enum LaneProbe {
    /// For reads.
    Read(ReadProbe),
    /// For writes, of the primary.
    Write(WriteProbe, Weak<Upstream>),
}

impl Probe for LaneProbe {
    async fn probe(&self, session: Session) -> ProbeOutcome {
        match self {
            Self::Read(probe) => probe.probe(session).await,
            Self::Write(probe, upstream) => match upstream.upgrade().map(|upstream| upstream.guard.duty()) {
                Some(Duty::Writes) => probe.probe(session).await,
                Some(Duty::Vacant) => ProbeOutcome::Unwanted,
                Some(Duty::Reads) | None => ProbeOutcome::Inconclusive,
            },
        }
    }
}

/// Finds out why the server hangs.
#[derive(Debug)]
pub(super) struct Examiner {
    diagnoser: Diagnoser,
    findings: Arc<Findings>,
}

/// What was found out about the server as a whole, for both lanes: they hang together, and ask at the same time.
#[derive(Debug, Default)]
pub(super) struct Findings(Mutex<Option<(Instant, Arc<Diagnosis>)>>);

/// A write that committed so short a time ago is proof against what reads have found.
const PROGRESS: Duration = Duration::from_millis(500);

/// For how long one lane's finding answers the other.
const FINDING_FRESH: Duration = Duration::from_millis(500);

impl Examiner {
    pub(super) fn new(diagnoser: Diagnoser, findings: &Arc<Findings>) -> Self {
        Self { diagnoser, findings: Arc::clone(findings) }
    }
}

impl Diagnose<Arc<Diagnosis>> for Examiner {
    async fn diagnose(&self) -> Option<Arc<Diagnosis>> {
        let mut finding = self.findings.0.lock().await;
        if let Some((at, known)) = &*finding
            && at.elapsed() < FINDING_FRESH
        {
            return Some(Arc::clone(known));
        }
        let found = self.diagnoser.diagnose().await?;
        // What one lane waits for says nothing about the other.
        *finding = found.cause.is_of_server().then(|| (Instant::now(), Arc::clone(&found)));
        Some(found)
    }
}

/// Puts a change into effect in the pools, and says so.
#[derive(Debug)]
pub(super) struct Announcer {
    upstream: Weak<Upstream>,
    lane: Lane,
}

impl Announcer {
    pub(super) fn new(upstream: &Weak<Upstream>, lane: Lane) -> Self {
        Self { upstream: Weak::clone(upstream), lane }
    }
}

impl Events<Arc<Diagnosis>> for Announcer {
    /// The journal has it first. A disk that hangs holds a refusal up no longer than `journal::PATIENCE`.
    fn record(&mut self, change: &Change<Arc<Diagnosis>>) -> impl Future<Output = ()> + Send {
        let recorded = self.upstream.upgrade().and_then(|upstream| {
            let reporters = upstream.guard.reporters.get()?;
            Some(reports::record(reporters, &upstream.name, self.lane, change))
        });
        async move {
            if let Some(recorded) = recorded {
                recorded.settled().await;
            }
        }
    }

    fn changed(&mut self, change: &Change<Arc<Diagnosis>>) {
        let Some(upstream) = self.upstream.upgrade() else { return };
        upstream.guard.changed(self.lane, change);
        if let Some(reporters) = upstream.guard.reporters.get() {
            reports::page(reporters, &upstream, self.lane, change);
        }
        for pool in upstream.pools() {
            pool.obey(self.lane, change.to);
            if matches!(change.to, Phase::Open | Phase::ForcedOpen) {
                pool.flush(self.lane);
            }
        }
        if let (Lane::Read, Phase::Open, Some(found)) = (self.lane, change.to, &change.cause)
            && matches!(found.cause, Cause::Frozen | Cause::Unreachable)
            && upstream.guard.is_primary()
            && upstream.guard.last_write().is_none_or(|ago| ago >= PROGRESS)
        {
            // Who answers nothing takes no writes, whether somebody has tried or not.
            upstream.guard.breaker(Lane::Write).report(Arc::clone(found));
        }
        let cause = change.cause.as_ref().map(|diagnosis| diagnosis.cause.word());
        // A suspicion that nothing came of is a slow statement, of which there may be many.
        let is_passing =
            change.to == Phase::Suspect || (change.from, change.to) == (Phase::Suspect, Phase::Closed);
        let (from, to, evidence) = (change.from.name(), change.to.name(), reports::evidence(change));
        if is_passing {
            tracing::debug!(upstream = %upstream.name, lane = self.lane.word(), from, to, cause, evidence, "breaker");
        } else {
            tracing::info!(upstream = %upstream.name, lane = self.lane.word(), from, to, cause, evidence, "breaker");
        }
    }
}
