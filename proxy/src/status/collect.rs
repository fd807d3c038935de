//! Where the document gets its figures: the one place that asks the parts of the sidecar.

use std::time::{Duration, SystemTime};

use tidegate_layers::breaker::Phase;

use super::advice::{self, Facts};
use super::board::unix_ms;
use super::source::{LaneSource, UpstreamSource};
use super::{
    Alerts, Breaker, Bytes, ConfigSummary, Incident, LaneState, LaneStatus, Lanes, PoolStatus, Sessions,
    Status, Tally, Thread, UpstreamStatus, Watchdog, timeline,
};
use crate::clock::millis;
use crate::config::{Config, ListenAddress, PoolMode};
use crate::exchange::facts::Reach;
use crate::exchange::{Cause, Diagnosis};
use crate::guard::{Guard, Standing};
use crate::pool::{Pool, Upstream};
use crate::server::Shared;
use crate::sql::Lane;
use crate::telemetry::{lanes, metrics};
use crate::upstream::WhyNot;
use crate::watchdog::Who;

/// Pools that are listed one by one; those beyond are summed up, so that users and databases, which applications
/// choose, are no labels without a bound.
const POOLS_MAX: usize = 200;
/// Name of the sum.
const OTHERS: &str = "other";

// ## What the parts know.

/// What is known of a lane: its state as an exchange would meet it, and what is under way on all servers.
pub fn lane_source(shared: &Shared, lane: Lane) -> LaneSource {
    let reach = match lane {
        Lane::Read => Reach::Anywhere,
        Lane::Write => Reach::Primary,
    };
    let server = shared.routes.look(reach);
    let nowhere = server.as_ref().err().copied();
    let lost = matches!(nowhere, Some(WhyNot::NoPrimary { .. }));
    let server = server.unwrap_or_else(|_| shared.routes.primary());
    let standing = server.guard.standing(lane);
    let forced = || Diagnosis::of(Cause::Forced);
    let known = standing.cause.as_deref().cloned();
    let unserved = nowhere.map(|why| Diagnosis { cause: why.cause(), evidence: why.to_string().into() });
    let diagnosis = known.or(unserved).or_else(|| (standing.phase == Phase::ForcedOpen).then(forced));
    let upstreams = shared.routes.upstreams();
    let pools = upstreams.iter().flat_map(|upstream| upstream.pools());
    let states: Vec<_> = pools.map(|pool| pool.state()).collect();
    let lanes = || states.iter().filter_map(|state| state.lanes.get(lane.index()));
    LaneSource {
        state: if nowhere.is_some() { LaneState::Refusing } else { lane_state(standing.phase) },
        phase: standing.phase.name(),
        order: shared.board.orders.of(lane),
        diagnosis,
        nowhere,
        since: lost.then(|| shared.routes.lost_since()).flatten().or(Some(standing.since)),
        in_flight: Some(lanes().map(|lane| lane.in_flight as u64).sum()),
        queued: Some(lanes().map(|lane| lane.waiting as u64).sum()),
        oldest_in_flight: upstreams.iter().filter_map(|upstream| upstream.guard.oldest(lane)).max(),
    }
}

/// What applications meet.
const fn lane_state(phase: Phase) -> LaneState {
    match phase {
        Phase::Closed | Phase::ForcedClosed => LaneState::Serving,
        Phase::Suspect => LaneState::Suspect,
        Phase::Open | Phase::HalfOpen | Phase::ForcedOpen => LaneState::Refusing,
        Phase::Ramp { .. } => LaneState::Recovering,
    }
}

fn upstream_source(shared: &Shared, upstream: &Upstream) -> UpstreamSource {
    let view = shared.routes.view(upstream);
    let known = view.as_ref().and_then(|view| view.observed).map(|(seen, _)| seen);
    let seen = known.or_else(|| upstream.seen());
    let guard = &upstream.guard;
    let probe = |lane| guard.pulse(lane).last_good().map(|good| good.latency);
    let topology = shared.routes.topology();
    let written = topology.primary().and_then(|primary| primary.observed).map(|(seen, _)| seen.lsn.0);
    UpstreamSource {
        role: shared.routes.role(upstream).unwrap_or_default(),
        timeline: seen.map(|seen| seen.timeline.0),
        lsn: seen.map(|seen| seen.lsn.0),
        lag: view.as_ref().and_then(|view| view.lag),
        // The two were seen at different times: what the standby is ahead by is no lag.
        lag_bytes: seen
            .filter(|seen| seen.in_recovery)
            .zip(written)
            .map(|(seen, w)| w.saturating_sub(seen.lsn.0)),
        version: seen.map(|seen| format!("{}.{}", seen.major(), seen.version_num % 10_000)),
        epoch: view.as_ref().map_or(0, |view| view.epoch.0),
        fenced: view.as_ref().is_some_and(|view| view.fenced.is_some()),
        problem: problem(&guard.standing(Lane::Read)),
        breakers: Lane::ALL.map(|lane| breaker(guard, lane)).into(),
        probe_read: probe(Lane::Read),
        probe_write: probe(Lane::Write),
        last_write: guard.last_write().and_then(|age| SystemTime::now().checked_sub(age)),
        zombies: guard.zombies.all() as u64,
    }
}

/// A server that cannot even read is of no use to anybody.
fn problem(reads: &Standing) -> Option<String> {
    let cause = reads.cause.as_deref().map(|diagnosis| diagnosis.cause).unwrap_or_default();
    (!reads.phase.admits()).then(|| cause.sentence().to_owned())
}

fn breaker(guard: &Guard, lane: Lane) -> Breaker {
    let standing = guard.standing(lane);
    Breaker {
        lane: lane.word().to_owned(),
        phase: standing.phase.name().to_owned(),
        cause: standing.cause_word().map(str::to_owned),
        trips: guard.trips(lane),
    }
}

fn alerts(shared: &Shared) -> Alerts {
    let [sent_total, failed_total] = metrics::alert_totals();
    let incident = |incident: crate::alerts::Incident| Incident {
        id: incident.id.to_string(),
        summary: incident.alert.summary.into_string(),
        since_at_ms: incident.at.unix_ms(),
    };
    Alerts {
        pending: shared.alerts.counts().pending as u64,
        sent_total,
        failed_total,
        open: shared.alerts.open().into_iter().map(incident).collect(),
    }
}

fn traffic(shared: &Shared) -> Bytes {
    let figures = shared.databases.all().into_iter().map(|database| database.traffic.figures());
    figures.fold(Bytes::default(), |sum, one| Bytes {
        received: sum.received + one.received,
        sent: sum.sent + one.sent,
    })
}

fn watchdog(shared: &Shared) -> Watchdog {
    let thread = |(who, stalled_for): (Who, Duration)| Thread {
        name: who.to_string(),
        stalled_ms: millis(stalled_for),
    };
    Watchdog { threads: shared.watchdog.stalls().map(thread).collect() }
}

// ## The document.

/// Why a lane cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotReady {
    /// The cause in a word.
    pub cause: &'static str,
    /// Since when, if that is known.
    pub since: Option<SystemTime>,
    /// The same for people.
    pub sentence: String,
}

/// Whether a lane is served.
///
/// # Errors
/// Why not.
pub fn readiness(shared: &Shared, lane: Lane) -> Result<(), NotReady> {
    let plain = |cause, sentence: &str| Err(NotReady { cause, since: None, sentence: sentence.to_owned() });
    if shared.is_draining() {
        return plain("draining", "This sidecar is stopping.");
    }
    if shared.databases.are_paused() {
        return plain("paused", "An operator paused all traffic.");
    }
    let source = lane_source(shared, lane);
    if source.state != LaneState::Refusing {
        return Ok(());
    }
    let cause = source.diagnosis.as_ref().map(|diagnosis| diagnosis.cause);
    Err(NotReady {
        cause: cause.unwrap_or_default().word(),
        since: source.since,
        sentence: advice::lane_sentence(lane, &source),
    })
}

impl Status {
    /// The state now.
    pub fn collect(shared: &Shared) -> Self {
        let config = shared.config.load();
        let board = &shared.board;
        let [read_rates, write_rates] = board.rates();
        let lanes = Lanes {
            read: lane_status(lane_source(shared, Lane::Read), Lane::Read, read_rates),
            write: lane_status(lane_source(shared, Lane::Write), Lane::Write, write_rates),
        };
        let upstreams = shared.routes.upstreams();
        let mut status = Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: board.host.clone(),
            started_at_ms: unix_ms(board.started_at),
            at_ms: unix_ms(SystemTime::now()),
            uptime_ms: millis(board.started.elapsed()),
            draining: shared.is_draining(),
            paused: shared.databases.are_paused(),
            config: summary(&config),
            lanes,
            upstreams: upstreams.iter().map(|upstream| upstream_status(shared, upstream)).collect(),
            pools: pools(&upstreams),
            sessions: Sessions { now: shared.registry.len() as u64, max: config.listen.max_sessions as u64 },
            refusals: tallies(lanes::refusals()),
            outcomes: tallies(lanes::outcomes()),
            traffic: traffic(shared),
            events: timeline::latest(&shared.journal),
            alerts: Some(alerts(shared)),
            watchdog: Some(watchdog(shared)),
            ..Self::default()
        };
        let stalled = shared.watchdog.liveness().err().map(|stalled| stalled.who.to_string());
        status.verdict = status.judge(stalled.as_deref());
        status
    }

    fn judge(&self, stalled: Option<&str>) -> super::Verdict {
        let (read, write) = (&self.lanes.read, &self.lanes.write);
        advice::verdict(&Facts {
            draining: self.draining,
            paused: self.paused,
            states: [read.state, write.state],
            sentences: [&read.sentence, &write.sentence],
            next: [&read.next, &write.next],
            stalled,
        })
    }
}

fn lane_status(source: LaneSource, lane: Lane, rates: super::Rates) -> LaneStatus {
    let (sentence, next) = (advice::lane_sentence(lane, &source), advice::next_of(&source));
    let cause = source.diagnosis.as_ref().map(|diagnosis| diagnosis.cause);
    let evidence = source.diagnosis.map(|diagnosis| diagnosis.evidence.into_string());
    LaneStatus {
        state: source.state,
        phase: if source.phase.is_empty() { "closed" } else { source.phase }.to_owned(),
        order: source.order.word().to_owned(),
        cause: cause.map(|cause| cause.word().to_owned()),
        evidence: evidence.filter(|evidence| !evidence.is_empty()),
        since_at_ms: source.since.map(unix_ms),
        sentence,
        next: next.to_owned(),
        in_flight: source.in_flight,
        queued: source.queued,
        oldest_in_flight_ms: source.oldest_in_flight.map(millis),
        refused_total: lanes::refused_total(lane),
        answered_total: lanes::service(lane).count(),
        rates,
    }
}

fn upstream_status(shared: &Shared, upstream: &Upstream) -> UpstreamStatus {
    let source = upstream_source(shared, upstream);
    let ms = |took: Duration| took.as_secs_f64() * 1e3;
    UpstreamStatus {
        name: upstream.name.to_string(),
        role: if source.role.is_empty() { "unknown" } else { source.role }.to_owned(),
        timeline: source.timeline,
        // As PostgreSQL writes it: LSN_FORMAT_ARGS.
        lsn: source.lsn.map(|lsn| format!("{:X}/{:08X}", lsn >> 32, lsn & 0xffff_ffff)),
        lag_ms: source.lag.map(millis),
        lag_bytes: source.lag_bytes,
        version: source.version,
        epoch: source.epoch,
        fenced: source.fenced,
        problem: source.problem,
        breakers: source.breakers,
        probe_read_ms: source.probe_read.map(ms),
        probe_write_ms: source.probe_write.map(ms),
        last_write_at_ms: source.last_write.map(unix_ms),
        backends: upstream.open() as u64,
        backends_max: upstream.limits().max_per_upstream as u64,
        zombies: source.zombies,
    }
}

fn pools(upstreams: &[std::sync::Arc<Upstream>]) -> Vec<PoolStatus> {
    let all = upstreams.iter().flat_map(|upstream| upstream.pools());
    sum_up(by_name(all.map(|pool| pool_status(&pool)).collect()), POOLS_MAX)
}

/// In order, and each once: those of replication have pools of their own, under the same names.
fn by_name(mut pools: Vec<PoolStatus>) -> Vec<PoolStatus> {
    pools.sort_by(|a, b| names(a).cmp(&names(b)));
    pools.dedup_by(|next, kept| {
        let same = names(next) == names(kept);
        if same {
            kept.add(next);
        }
        same
    });
    pools
}

fn names(pool: &PoolStatus) -> [&str; 3] {
    [&pool.upstream, &pool.database, &pool.user]
}

fn pool_status(pool: &Pool) -> PoolStatus {
    let state = pool.state();
    PoolStatus {
        upstream: pool.upstream.name.to_string(),
        database: pool.key.database.to_string(),
        user: pool.key.user.to_string(),
        idle: state.idle as u64,
        leased: state.leased as u64,
        opening: state.opening as u64,
        waiting: state.waiting as u64,
        longest_wait_ms: millis(state.longest_wait),
        exchanges: pool.exchanges.load(std::sync::atomic::Ordering::Relaxed),
        in_flight_by_lane: state.lanes.map(|lane| lane.in_flight as u64),
        waiting_by_lane: state.lanes.map(|lane| lane.waiting as u64),
    }
}

/// The first `max` pools, and one that stands for the rest.
fn sum_up(mut pools: Vec<PoolStatus>, max: usize) -> Vec<PoolStatus> {
    if pools.len() <= max {
        return pools;
    }
    let mut others =
        PoolStatus { database: OTHERS.to_owned(), user: OTHERS.to_owned(), ..PoolStatus::default() };
    for pool in pools.split_off(max - 1) {
        others.add(&pool);
        others.upstream = pool.upstream;
    }
    pools.push(others);
    pools
}

impl PoolStatus {
    fn add(&mut self, other: &Self) {
        self.idle += other.idle;
        self.leased += other.leased;
        self.opening += other.opening;
        self.waiting += other.waiting;
        self.longest_wait_ms = self.longest_wait_ms.max(other.longest_wait_ms);
        self.exchanges += other.exchanges;
        for lane in Lane::ALL.map(Lane::index) {
            self.in_flight_by_lane[lane] += other.in_flight_by_lane[lane];
            self.waiting_by_lane[lane] += other.waiting_by_lane[lane];
        }
    }
}

fn tallies(counts: Vec<(&str, &str, u64)>) -> Vec<Tally> {
    let tally = |(lane, word, total): (&str, &str, u64)| Tally {
        lane: lane.to_owned(),
        word: word.to_owned(),
        total,
    };
    counts.into_iter().filter(|(_, _, total)| *total > 0).map(tally).collect()
}

fn summary(config: &Config) -> ConfigSummary {
    ConfigSummary {
        listen: config.listen.addresses.iter().map(ListenAddress::to_string).collect(),
        admin: config.admin.address.to_string(),
        workers: config.workers as u64,
        pool_mode: match config.pool.mode {
            PoolMode::Transaction => "transaction",
            PoolMode::Session => "session",
        }
        .to_owned(),
        pool_size: config.pool.size as u64,
        write_slots: config.pool.write_slots() as u64,
        queue_ms: millis(config.timeouts.queue),
        read_ms: millis(config.timeouts.read),
        write_ms: millis(config.timeouts.write),
        commit_ms: millis(config.timeouts.commit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stalled_lane_says_what_why_and_since_when() {
        // The page shows nothing but this document.
        let since = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        let source = LaneSource {
            state: LaneState::Refusing,
            phase: "open",
            diagnosis: Some(Diagnosis { cause: Cause::SyncStandby, evidence: "missing: s1".into() }),
            since: Some(since),
            ..LaneSource::default()
        };

        let lane = lane_status(source, Lane::Write, super::super::Rates::default());

        assert_eq!((lane.phase.as_str(), lane.cause.as_deref()), ("open", Some("sync_standby")));
        assert_eq!((lane.evidence.as_deref(), lane.since_at_ms), (Some("missing: s1"), Some(1000)));
        assert!(lane.sentence.starts_with("Writes are refused at once, because"), "{}", lane.sentence);
        assert!(lane.next.contains("synchronous_standby_names"), "{}", lane.next);
    }

    #[test]
    fn pools_beyond_the_limit_are_one_and_none_is_lost() {
        // Anybody who may log in chooses a database name; each would be a series of its own.
        let pool = |n: u64| PoolStatus {
            database: format!("db{n}"),
            leased: 1,
            longest_wait_ms: n,
            ..PoolStatus::default()
        };

        let listed = sum_up((0..1000).map(pool).collect(), 10);

        assert_eq!(listed.len(), 10);
        assert_eq!(listed[9].database, OTHERS);
        assert_eq!(listed.iter().map(|pool| pool.leased).sum::<u64>(), 1000);
        assert_eq!(listed[9].longest_wait_ms, 999);
        assert_eq!(sum_up((0..10).map(pool).collect(), 10).len(), 10);
    }

    #[test]
    fn a_pool_for_replication_is_counted_with_the_other_of_its_name() {
        // Two series with the same labels: Prometheus refuses the whole page.
        let pool = |user: &str, leased| PoolStatus { user: user.into(), leased, ..PoolStatus::default() };

        let listed = by_name(vec![pool("b", 1), pool("a", 2), pool("b", 4)]);

        assert_eq!(listed, [pool("a", 2), pool("b", 5)]);
    }

    #[test]
    fn the_document_survives_json() {
        // The terminal reads what the server wrote; an older or newer one may lack or add fields.
        let status = Status { at_ms: 1, lanes: Lanes::default(), ..Status::default() };

        let read: Status = serde_json::from_str(&super::super::board::json(&status)).unwrap();
        let sparse: Status = serde_json::from_str(r#"{"version":"9","tomorrow":[1]}"#).unwrap();

        assert_eq!(read, status);
        assert_eq!(sparse.version, "9");
    }
}
