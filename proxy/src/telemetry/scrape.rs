//! The page that Prometheus reads: the counters of the traffic, then what is read off the state.

use std::time::Instant;

use metrics_exporter_prometheus::PrometheusHandle;

use super::exposition::{Family, Page};
use super::lanes;
use super::logs;
use super::metrics::STATE;
use super::process::{ProcessFigures, start_seconds};
use crate::exchange::Cause;
use crate::server::Shared;
use crate::sql::Lane;
use crate::status::{LaneState, LaneStatus, PoolStatus, Status, UpstreamStatus};

/// Phases of a breaker, the values of a label.
const PHASES: [&str; 7] = ["closed", "suspect", "open", "half_open", "ramp", "forced_open", "forced_closed"];
/// Roles of an upstream, the values of a label.
const ROLES: [&str; 3] = ["primary", "standby", "unknown"];

/// The whole page.
pub fn page(shared: &Shared, counters: &PrometheusHandle) -> String {
    let start = Instant::now();
    let status = Status::collect(shared);
    let mut page = Families { page: Page::after(counters.render()) };
    page.sidecar(&status);
    page.pools(&status.pools);
    page.lanes(&status);
    page.breakers(&status.upstreams);
    page.upstreams(&status.upstreams);
    page.alerts(&status);
    page.one("tidegate_log_lines_lost_total", as_f64(logs::lost()));
    page.one("tidegate_events_subscribers", as_f64(shared.board.listeners() as u64));
    page.one("tidegate_collect_seconds", start.elapsed().as_secs_f64());
    // Without /proc there are no series: zeros would be figures.
    if let Some(figures) = ProcessFigures::read() {
        page.process(figures);
    }
    page.one("process_start_time_seconds", start_seconds(shared.board.started_at));
    page.page.into_text()
}

/// The families of [`STATE`], in its order.
struct Families {
    page: Page,
}

type Labels<'a> = [(&'a str, &'a str)];

impl Families {
    fn begin(&mut self, name: &'static str) {
        let family = STATE.iter().find(|family: &&Family| family.name == name);
        debug_assert!(family.is_some(), "{name} is in no table");
        if let Some(family) = family {
            self.page.family(family);
        }
    }

    fn one(&mut self, name: &'static str, value: f64) {
        self.begin(name);
        self.page.sample(name, &[], value);
    }

    fn sidecar(&mut self, status: &Status) {
        self.begin("tidegate_build_info");
        self.page.sample("tidegate_build_info", &[("version", &status.version)], 1.0);
        self.one("tidegate_sessions", as_f64(status.sessions.now));
        self.one("tidegate_sessions_max", as_f64(status.sessions.max));
        self.begin("tidegate_bytes_total");
        for (direction, bytes) in [("received", status.traffic.received), ("sent", status.traffic.sent)] {
            self.page.sample("tidegate_bytes_total", &[("direction", direction)], as_f64(bytes));
        }
        self.one("tidegate_draining", flag(status.draining));
        self.one("tidegate_paused", flag(status.paused));
    }

    fn pools(&mut self, pools: &[PoolStatus]) {
        const BACKENDS: &str = "tidegate_pool_backends";
        self.begin(BACKENDS);
        for pool in pools {
            for (word, count) in [("idle", pool.idle), ("leased", pool.leased), ("opening", pool.opening)] {
                let [upstream, database, user] = pool_labels(pool);
                self.page.sample(BACKENDS, &[upstream, database, user, ("state", word)], as_f64(count));
            }
        }
        self.each_pool("tidegate_pool_waiting", pools, |pool| as_f64(pool.waiting));
        self.each_pool("tidegate_pool_longest_wait_seconds", pools, |pool| seconds(pool.longest_wait_ms));
        self.each_pool("tidegate_pool_exchanges", pools, |pool| as_f64(pool.exchanges));
        self.each_pool_and_lane("tidegate_pool_lane_in_flight", pools, |pool| pool.in_flight_by_lane);
        self.each_pool_and_lane("tidegate_pool_lane_waiting", pools, |pool| pool.waiting_by_lane);
    }

    fn each_pool_and_lane(
        &mut self,
        name: &'static str,
        pools: &[PoolStatus],
        values: impl Fn(&PoolStatus) -> [u64; Lane::ALL.len()],
    ) {
        self.begin(name);
        for pool in pools {
            for (lane, value) in Lane::ALL.into_iter().zip(values(pool)) {
                let [upstream, database, user] = pool_labels(pool);
                self.page.sample(name, &[upstream, database, user, ("lane", lane.word())], as_f64(value));
            }
        }
    }

    fn each_pool(&mut self, name: &'static str, pools: &[PoolStatus], value: impl Fn(&PoolStatus) -> f64) {
        self.begin(name);
        for pool in pools {
            self.page.sample(name, &pool_labels(pool), value(pool));
        }
    }

    fn lanes(&mut self, status: &Status) {
        let each = status.lanes.each();
        self.begin("tidegate_lane_state");
        for (name, lane) in each {
            let words = LaneState::ALL.map(LaneState::word);
            self.choice("tidegate_lane_state", &[("lane", name)], "state", &words, lane.state.word());
        }
        self.begin("tidegate_lane_cause");
        for (name, lane) in each {
            // Words of ours only: the label is bounded by them.
            let cause = lane.cause.as_deref().filter(|cause| Cause::ALL.iter().any(|c| c.word() == *cause));
            if let Some(cause) = cause {
                self.page.sample("tidegate_lane_cause", &[("lane", name), ("cause", cause)], 1.0);
            }
        }
        self.each_lane("tidegate_lane_in_flight", each, |lane| lane.in_flight.map(as_f64));
        self.each_lane("tidegate_lane_queued", each, |lane| lane.queued.map(as_f64));
        self.each_lane("tidegate_lane_oldest_in_flight_seconds", each, |lane| {
            Some(seconds(lane.oldest_in_flight_ms.unwrap_or(0)))
        });
        self.exchanges(status);
        self.begin("tidegate_refusals_total");
        // Zeros too: what begins with its first count has not increased yet, and no alert would fire.
        for (lane, reason, total) in lanes::refusals() {
            let labels = [("lane", lane), ("reason", reason)];
            self.page.sample("tidegate_refusals_total", &labels, as_f64(total));
        }
        self.begin("tidegate_service_seconds");
        for lane in Lane::ALL {
            let labels = [("lane", lane.word())];
            self.page.histogram("tidegate_service_seconds", &labels, &lanes::service(lane));
        }
        self.begin("tidegate_queue_wait_seconds");
        for lane in Lane::ALL {
            let labels = [("lane", lane.word())];
            self.page.histogram("tidegate_queue_wait_seconds", &labels, &lanes::queue_wait(lane));
        }
    }

    fn each_lane(
        &mut self,
        name: &'static str,
        each: [(&'static str, &LaneStatus); 2],
        value: impl Fn(&LaneStatus) -> Option<f64>,
    ) {
        self.begin(name);
        for (lane, status) in each {
            if let Some(value) = value(status) {
                self.page.sample(name, &[("lane", lane)], value);
            }
        }
    }

    fn exchanges(&mut self, status: &Status) {
        const NAME: &str = "tidegate_exchanges_total";
        self.begin(NAME);
        for (lane, one) in status.lanes.each() {
            self.page.sample(NAME, &[("lane", lane), ("outcome", "answered")], as_f64(one.answered_total));
        }
        for (lane, outcome, total) in lanes::outcomes() {
            self.page.sample(NAME, &[("lane", lane), ("outcome", outcome)], as_f64(total));
        }
    }

    fn breakers(&mut self, upstreams: &[UpstreamStatus]) {
        const NAME: &str = "tidegate_breaker_phase";
        self.begin(NAME);
        for upstream in upstreams {
            for breaker in &upstream.breakers {
                let labels = [("upstream", upstream.name.as_str()), ("lane", breaker.lane.as_str())];
                self.choice(NAME, &labels, "phase", &PHASES, &breaker.phase);
            }
        }
        self.begin("tidegate_breaker_trips_total");
        for upstream in upstreams {
            for breaker in &upstream.breakers {
                let labels = [("upstream", upstream.name.as_str()), ("lane", breaker.lane.as_str())];
                self.page.sample("tidegate_breaker_trips_total", &labels, as_f64(breaker.trips));
            }
        }
    }

    fn upstreams(&mut self, upstreams: &[UpstreamStatus]) {
        self.each_upstream("tidegate_upstream_backends", upstreams, |one| Some(as_f64(one.backends)));
        self.each_upstream("tidegate_upstream_backends_max", upstreams, |one| Some(as_f64(one.backends_max)));
        self.begin("tidegate_upstream_role");
        for one in upstreams {
            self.choice("tidegate_upstream_role", &[("upstream", &one.name)], "role", &ROLES, &one.role);
        }
        self.each_upstream("tidegate_upstream_fenced", upstreams, |one| Some(flag(one.fenced)));
        self.each_upstream("tidegate_upstream_timeline", upstreams, |one| one.timeline.map(f64::from));
        self.each_upstream("tidegate_upstream_lag_seconds", upstreams, |one| one.lag_ms.map(seconds));
        self.each_upstream("tidegate_upstream_lag_bytes", upstreams, |one| one.lag_bytes.map(as_f64));
        self.each_upstream("tidegate_upstream_epoch", upstreams, |one| Some(as_f64(one.epoch)));
        self.each_upstream("tidegate_upstream_zombies", upstreams, |one| Some(as_f64(one.zombies)));
        self.begin("tidegate_probe_seconds");
        for one in upstreams {
            for (lane, took) in [("read", one.probe_read_ms), ("write", one.probe_write_ms)] {
                let labels = [("upstream", one.name.as_str()), ("lane", lane)];
                if let Some(ms) = took {
                    self.page.sample("tidegate_probe_seconds", &labels, ms / 1e3);
                }
            }
        }
        self.each_upstream("tidegate_last_write_timestamp_seconds", upstreams, |one| {
            one.last_write_at_ms.map(seconds)
        });
    }

    fn each_upstream(
        &mut self,
        name: &'static str,
        upstreams: &[UpstreamStatus],
        value: impl Fn(&UpstreamStatus) -> Option<f64>,
    ) {
        self.begin(name);
        for upstream in upstreams {
            if let Some(value) = value(upstream) {
                self.page.sample(name, &[("upstream", &upstream.name)], value);
            }
        }
    }

    fn alerts(&mut self, status: &Status) {
        let alerts = status.alerts.clone().unwrap_or_default();
        self.one("tidegate_alerts_pending", as_f64(alerts.pending));
        self.one("tidegate_alerts_open", as_f64(alerts.open.len() as u64));
        self.begin("tidegate_watchdog_stall_seconds");
        for thread in status.watchdog.iter().flat_map(|watchdog| &watchdog.threads) {
            let labels = [("thread", thread.name.as_str())];
            self.page.sample("tidegate_watchdog_stall_seconds", &labels, seconds(thread.stalled_ms));
        }
    }

    fn process(&mut self, figures: ProcessFigures) {
        self.one("process_cpu_seconds_total", figures.cpu_seconds);
        self.one("process_resident_memory_bytes", figures.resident_bytes);
        self.one("process_threads", figures.threads);
        self.one("process_open_fds", figures.open_fds);
        self.one("process_max_fds", figures.max_fds);
    }

    /// One series per word: 1 for the one that holds.
    fn choice(&mut self, name: &str, labels: &Labels<'_>, key: &str, words: &[&str], holds: &str) {
        for word in words {
            let labels: Vec<_> = labels.iter().copied().chain([(key, *word)]).collect();
            self.page.sample(name, &labels, flag(*word == holds));
        }
    }
}

fn pool_labels(pool: &PoolStatus) -> [(&str, &str); 3] {
    [("upstream", &pool.upstream), ("database", &pool.database), ("user", &pool.user)]
}

fn flag(holds: bool) -> f64 {
    if holds { 1.0 } else { 0.0 }
}

fn seconds(ms: u64) -> f64 {
    as_f64(ms) / 1e3
}

#[expect(clippy::cast_precision_loss, reason = "good to one in 2^52")]
fn as_f64(number: u64) -> f64 {
    number as f64
}
