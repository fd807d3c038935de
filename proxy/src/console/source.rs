//! What the console shows of lanes, breakers, upstreams and events: plain rows, gathered in this one file. A value
//! that nobody knows is `None`, and is shown as NULL.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tidegate_layers::breaker::Phase;
use tokio::time::Instant;

use crate::journal::Entry;
use crate::pool::{LaneState, Upstream};
use crate::server::Shared;
use crate::sql::Lane;
use crate::upstream::topology::Health;

/// A lane of an upstream.
#[derive(Debug, Clone, Default)]
pub(super) struct LaneRow {
    pub(super) upstream: String,
    /// `read` or `write`.
    pub(super) lane: &'static str,
    /// In words, such as `open`.
    pub(super) state: Option<String>,
    pub(super) cause: Option<String>,
    pub(super) since: Option<SystemTime>,
    /// Backends that it has lent.
    pub(super) in_flight: Option<usize>,
    /// Backends that it may lend, in each pool.
    pub(super) limit: Option<usize>,
    pub(super) waiting: Option<usize>,
    /// Age of the oldest statement that has no answer.
    pub(super) oldest: Option<Duration>,
}

/// A breaker.
#[derive(Debug, Clone, Default)]
pub(super) struct BreakerRow {
    pub(super) upstream: String,
    pub(super) lane: &'static str,
    pub(super) state: String,
    pub(super) cause: Option<String>,
    pub(super) since: Option<SystemTime>,
    /// How often it opened.
    pub(super) trips: Option<u64>,
    /// When the next attempt is made.
    pub(super) retry_after: Option<Duration>,
    /// How long the last probe took.
    pub(super) probe: Option<Duration>,
}

/// A server.
#[derive(Debug, Clone, Default)]
pub(super) struct UpstreamRow {
    pub(super) upstream: String,
    pub(super) role: Option<String>,
    pub(super) state: Option<String>,
    pub(super) timeline: Option<u64>,
    pub(super) lag: Option<Duration>,
    /// As in [`crate::status::UpstreamStatus::epoch`].
    pub(super) epoch: u64,
    pub(super) backends: usize,
    pub(super) backends_max: usize,
    pub(super) waiting: usize,
}

/// A decision.
#[derive(Debug, Clone)]
pub(super) struct EventRow {
    pub(super) at: SystemTime,
    pub(super) event: String,
    pub(super) lane: Option<String>,
    pub(super) upstream: Option<String>,
    pub(super) cause: Option<String>,
    pub(super) before: Option<String>,
    pub(super) after: Option<String>,
}

/// All lanes.
pub(super) fn lanes(shared: &Shared) -> Vec<LaneRow> {
    let upstreams = shared.routes.upstreams();
    upstreams.iter().flat_map(|upstream| Lane::ALL.map(|lane| lane_row(upstream, lane))).collect()
}

fn lane_row(upstream: &Upstream, lane: Lane) -> LaneRow {
    let guard = &upstream.guard;
    let standing = guard.standing(lane);
    let states: Vec<_> = upstream.pools().iter().map(|pool| pool.state()).collect();
    let sum = |figure: fn(&LaneState) -> usize| {
        states.iter().filter_map(|state| state.lanes.get(lane.index())).map(figure).sum()
    };
    LaneRow {
        upstream: upstream.name.to_string(),
        lane: lane.word(),
        state: Some(standing.words().to_owned()),
        cause: standing.cause_word().map(str::to_owned),
        since: Some(standing.since),
        in_flight: Some(sum(|lane| lane.in_flight)),
        limit: Some(upstream.limits().ceiling(lane)),
        waiting: Some(sum(|lane| lane.waiting)),
        oldest: guard.oldest(lane),
    }
}

/// All breakers.
pub(super) fn breakers(shared: &Shared) -> Vec<BreakerRow> {
    let row = |upstream: &Upstream, lane| {
        let standing = upstream.guard.standing(lane);
        BreakerRow {
            upstream: upstream.name.to_string(),
            lane: lane.word(),
            state: standing.phase.name().to_owned(),
            cause: standing.cause_word().map(str::to_owned),
            since: Some(standing.since),
            trips: Some(upstream.guard.trips(lane)),
            retry_after: upstream.guard.admit(lane, Instant::now()).err().map(|refused| refused.retry_after),
            probe: upstream.guard.pulse(lane).last_good().map(|good| good.latency),
        }
    };
    shared.routes.upstreams().iter().flat_map(|upstream| Lane::ALL.map(|lane| row(upstream, lane))).collect()
}

/// All servers that are configured.
pub(super) fn upstreams(shared: &Shared) -> Vec<UpstreamRow> {
    let row = |upstream: &Arc<Upstream>| {
        let view = shared.routes.view(upstream);
        UpstreamRow {
            upstream: upstream.name.to_string(),
            role: shared.routes.role(upstream).map(str::to_owned),
            state: view.as_ref().map(|view| {
                view.fenced.map_or_else(
                    || health(upstream, view.health).word().to_owned(),
                    |fence| format!("fenced: {}", fence.word()),
                )
            }),
            timeline: view
                .as_ref()
                .and_then(|view| view.observed)
                .map(|(seen, _)| seen)
                .or_else(|| upstream.seen())
                .map(|seen| seen.timeline.0.into()),
            lag: view.as_ref().and_then(|view| view.lag),
            epoch: view.as_ref().map_or(0, |view| view.epoch.0),
            backends: upstream.open(),
            backends_max: upstream.limits().max_per_upstream,
            waiting: upstream.pools().iter().map(|pool| pool.state().waiting).sum(),
        }
    };
    shared.routes.upstreams().iter().map(row).collect()
}

/// Nobody asks one that is alone, or whose role is listed, whether it answers; its breaker knows.
fn health(upstream: &Upstream, asked: Health) -> Health {
    let guard = &upstream.guard;
    let answered = || upstream.seen().is_some() || guard.pulse(Lane::Read).last_good().is_some();
    match (asked, guard.phase(Lane::Read)) {
        (Health::Unknown, Phase::Suspect) => Health::Unsure,
        (Health::Unknown, Phase::Open | Phase::HalfOpen) => Health::Silent,
        (Health::Unknown, _) if answered() => Health::Up,
        (asked, _) => asked,
    }
}

/// The latest decisions, oldest first.
pub(super) fn events(shared: &Shared) -> Vec<EventRow> {
    let row = |entry: &Arc<Entry>| {
        let decision = &entry.decision;
        EventRow {
            at: SystemTime::UNIX_EPOCH + Duration::from_millis(entry.at.unix_ms()),
            event: decision.kind.word().to_owned(),
            lane: decision.subject.lane.map(|lane| lane.word().to_owned()),
            upstream: decision.subject.upstream.as_deref().map(str::to_owned),
            cause: decision.cause.map(|cause| cause.word().to_owned()),
            before: Some(decision.from.clone().into_owned()),
            after: Some(decision.to.clone().into_owned()),
        }
    };
    shared.journal.recent().iter().map(row).collect()
}
