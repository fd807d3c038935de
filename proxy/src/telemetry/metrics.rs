//! Every metric: name, unit, labels, meaning. Counters are registered once and then cost one atomic addition.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use metrics::{Counter, Gauge, Unit, counter, describe_counter, describe_gauge, gauge};

use super::exposition::{Family, Kind};
use crate::config::WebhookKind;
use crate::session::notes::{PIN_REASONS, pin_word};
use crate::sql::PinReason;

/// Handles of the counters that are touched while traffic runs.
#[derive(Debug)]
pub struct Metrics {
    /// Sessions that logged in.
    pub sessions_started: Counter,
    /// Logins that failed.
    pub logins_failed: Counter,
    /// Backends opened.
    pub connects: Counter,
    /// Attempts to open a backend that failed.
    pub connects_failed: Counter,
    /// Backends that ended other than by our own decision.
    pub backends_lost: Counter,
    /// Cancel requests received.
    pub cancels: Counter,
    /// Cancel requests that we sent because a deadline passed.
    pub cancels_sent: Counter,
    /// Reads that turned out to write.
    pub reads_learned: Counter,
    /// Sessions that left in the middle of something.
    pub abandoned: Counter,
    /// Backends that were brought to another session's settings.
    pub settings_replayed: Counter,
    /// Attempts to write the journal that failed, and entries that found the writer's queue full.
    pub journal_failures: Counter,
    /// Decisions that took effect before their record was on disk.
    pub journal_late: Counter,
    /// 1 while the journal is kept in memory only.
    pub journal_in_memory: Gauge,
    /// Alert messages given up because the outbox was full.
    pub alerts_dropped: Counter,
    /// 1 while alerts to be sent are kept in memory only.
    pub alerts_in_memory: Gauge,
    pins: [Counter; PIN_REASONS.len()],
}

/// Name and meaning of what is counted as it happens. README's table is held against this one, [`GAUGES`] and
/// [`STATE`].
pub const COUNTERS: &[(&str, &str)] = &[
    ("tidegate_sessions_total", "Sessions that logged in"),
    ("tidegate_logins_failed_total", "Logins that failed"),
    ("tidegate_backend_connects_total", "Backends opened"),
    ("tidegate_backend_connects_failed_total", "Attempts to open a backend that failed"),
    ("tidegate_backends_lost_total", "Backends that ended other than by our own decision"),
    ("tidegate_cancels_total", "Cancel requests received"),
    ("tidegate_cancels_sent_total", "Cancel requests sent because a deadline passed"),
    ("tidegate_reads_learned_total", "Statements taken for reads that were found waiting as writes"),
    ("tidegate_sessions_abandoned_total", "Sessions that left in the middle of an exchange or transaction"),
    ("tidegate_settings_replayed_total", "Backends brought to another session's settings"),
    ("tidegate_pins_total", "Backends pinned to a session beyond its transaction, by reason"),
    ("tidegate_journal_write_failures_total", "Writes of the journal that failed"),
    ("tidegate_journal_late_total", "Decisions that took effect before their record was on disk"),
    ("tidegate_alerts_sent_total", "Alert messages that their receiver accepted"),
    ("tidegate_alerts_failed_total", "Attempts to send an alert message that failed, each is repeated"),
    ("tidegate_alerts_dropped_total", "Alert messages given up because too many were waiting"),
    ("tidegate_heartbeats_total", "Heartbeats that were due, by what became of them"),
];

/// Name and meaning of what is set as it changes.
pub const GAUGES: &[(&str, &str)] = &[
    ("tidegate_journal_in_memory", "1 while the journal is kept in memory only"),
    ("tidegate_alerts_in_memory", "1 while alert messages that wait are kept in memory only"),
];

const fn family(name: &'static str, kind: Kind, meaning: &'static str) -> Family {
    Family { name, kind, meaning }
}

/// What is read off the state when somebody asks, in the order of the page.
pub const STATE: &[Family] = &[
    family("tidegate_build_info", Kind::Gauge, "1; the label is the version"),
    family("tidegate_sessions", Kind::Gauge, "Sessions, logins in progress included"),
    family("tidegate_sessions_max", Kind::Gauge, "Sessions that there may be"),
    family("tidegate_bytes_total", Kind::Counter, "Bytes of exchanges, from and to applications"),
    family("tidegate_draining", Kind::Gauge, "1 from the order to stop on"),
    family("tidegate_paused", Kind::Gauge, "1 while an operator has paused all traffic"),
    family("tidegate_pool_backends", Kind::Gauge, "Backends of a pool by state"),
    family("tidegate_pool_waiting", Kind::Gauge, "Sessions that wait for a backend"),
    family("tidegate_pool_longest_wait_seconds", Kind::Gauge, "How long the first of them has waited"),
    family("tidegate_pool_exchanges", Kind::Gauge, "Leases that ended well since the pool was made"),
    family(
        "tidegate_pool_lane_in_flight",
        Kind::Gauge,
        "Backends of a pool that a lane has, zombies included",
    ),
    family("tidegate_pool_lane_waiting", Kind::Gauge, "Sessions that wait for a backend of a pool in a lane"),
    family("tidegate_lane_state", Kind::Gauge, "1 for the state that a lane is in, else 0"),
    family(
        "tidegate_lane_cause",
        Kind::Gauge,
        "1 for the cause of a lane's trouble; no series while there is none",
    ),
    family("tidegate_lane_in_flight", Kind::Gauge, "Backends lent to a lane, those given up on included"),
    family("tidegate_lane_queued", Kind::Gauge, "Sessions that wait for a backend, by lane"),
    family(
        "tidegate_lane_oldest_in_flight_seconds",
        Kind::Gauge,
        "Age of the oldest exchange without an answer; 0 when there is none",
    ),
    family("tidegate_exchanges_total", Kind::Counter, "Exchanges by what became of them"),
    family("tidegate_refusals_total", Kind::Counter, "Statements and logins that were refused, by reason"),
    family(
        "tidegate_service_seconds",
        Kind::Histogram,
        "From the first byte sent to PostgreSQL to the last of its answer",
    ),
    family("tidegate_queue_wait_seconds", Kind::Histogram, "Wait for a backend, of those that had to wait"),
    family("tidegate_breaker_phase", Kind::Gauge, "1 for the phase that a breaker is in"),
    family("tidegate_breaker_trips_total", Kind::Counter, "How often a breaker has opened"),
    family("tidegate_upstream_backends", Kind::Gauge, "Backends of an upstream, opening ones included"),
    family("tidegate_upstream_backends_max", Kind::Gauge, "Backends that there may be"),
    family("tidegate_upstream_role", Kind::Gauge, "1 for the role that an upstream has"),
    family(
        "tidegate_upstream_fenced",
        Kind::Gauge,
        "1 when it is kept out because a newer timeline was seen",
    ),
    family("tidegate_upstream_timeline", Kind::Gauge, "Timeline of its WAL"),
    family("tidegate_upstream_lag_seconds", Kind::Gauge, "How far a standby is behind, in time"),
    family("tidegate_upstream_lag_bytes", Kind::Gauge, "How far a standby is behind, in WAL"),
    family(
        "tidegate_upstream_epoch",
        Kind::Gauge,
        "Epoch of its latest change; backends of an older one are not used again",
    ),
    family("tidegate_upstream_zombies", Kind::Gauge, "Backends given up on and not yet known dead"),
    family("tidegate_probe_seconds", Kind::Gauge, "How long the last probe that succeeded took"),
    family("tidegate_last_write_timestamp_seconds", Kind::Gauge, "When a write was last seen to commit"),
    family("tidegate_alerts_pending", Kind::Gauge, "Alert messages that wait to be sent"),
    family("tidegate_alerts_open", Kind::Gauge, "Incidents that are firing"),
    family("tidegate_watchdog_stall_seconds", Kind::Gauge, "How long a thread has made no progress"),
    family(
        "tidegate_log_lines_lost_total",
        Kind::Counter,
        "Lines of the log that standard error did not take",
    ),
    family("tidegate_events_subscribers", Kind::Gauge, "Listeners of /events"),
    family("tidegate_collect_seconds", Kind::Gauge, "Time to collect this page"),
    family("process_cpu_seconds_total", Kind::Counter, "Processor time of all threads"),
    family("process_resident_memory_bytes", Kind::Gauge, "Memory in use"),
    family("process_threads", Kind::Gauge, "Threads"),
    family("process_open_fds", Kind::Gauge, "Open file descriptors"),
    family("process_max_fds", Kind::Gauge, "File descriptors that there may be"),
    family("process_start_time_seconds", Kind::Gauge, "When the process was started, since the Unix epoch"),
];

static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    for &(name, meaning) in COUNTERS {
        describe_counter!(name, Unit::Count, meaning);
    }
    for &(name, meaning) in GAUGES {
        describe_gauge!(name, meaning);
    }
    begin_at_zero();
    Metrics {
        sessions_started: counter!("tidegate_sessions_total"),
        logins_failed: counter!("tidegate_logins_failed_total"),
        connects: counter!("tidegate_backend_connects_total"),
        connects_failed: counter!("tidegate_backend_connects_failed_total"),
        backends_lost: counter!("tidegate_backends_lost_total"),
        cancels: counter!("tidegate_cancels_total"),
        cancels_sent: counter!("tidegate_cancels_sent_total"),
        reads_learned: counter!("tidegate_reads_learned_total"),
        abandoned: counter!("tidegate_sessions_abandoned_total"),
        settings_replayed: counter!("tidegate_settings_replayed_total"),
        journal_failures: counter!("tidegate_journal_write_failures_total"),
        journal_late: counter!("tidegate_journal_late_total"),
        journal_in_memory: gauge!("tidegate_journal_in_memory"),
        alerts_dropped: counter!("tidegate_alerts_dropped_total"),
        alerts_in_memory: gauge!("tidegate_alerts_in_memory"),
        pins: PIN_REASONS.map(|(_, word)| counter!("tidegate_pins_total", "reason" => word)),
    }
});

/// A series that begins with its first count has not increased, and an alert about it would stay silent.
fn begin_at_zero() {
    for kind in WebhookKind::ALL.map(WebhookKind::word) {
        for status in ["firing", "resolved"] {
            counter!("tidegate_alerts_sent_total", "kind" => kind, "status" => status).increment(0);
        }
        counter!("tidegate_alerts_failed_total", "kind" => kind).increment(0);
    }
    for outcome in ["sent", "failed", "withheld"] {
        heartbeats(outcome, 0);
    }
}

/// The handles. The exporter must be installed before the first call.
#[inline]
pub fn get() -> &'static Metrics {
    &METRICS
}

/// A backend was pinned.
pub fn pinned(reason: PinReason) {
    let index = PIN_REASONS.iter().position(|(r, _)| *r == reason);
    if let Some(counter) = index.and_then(|index| get().pins.get(index)) {
        counter.increment(1);
    }
    tracing::info!(reason = pin_word(reason), "backend pinned to its session");
}

/// Alert messages that their receivers accepted, and attempts that failed.
static ALERTS: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

/// A receiver accepted an alert message.
pub fn alert_sent(kind: &'static str, status: &'static str) {
    ALERTS[0].fetch_add(1, Ordering::Relaxed);
    counter!("tidegate_alerts_sent_total", "kind" => kind, "status" => status).increment(1);
}

/// An attempt to send an alert message failed.
pub fn alert_failed(kind: &'static str) {
    ALERTS[1].fetch_add(1, Ordering::Relaxed);
    counter!("tidegate_alerts_failed_total", "kind" => kind).increment(1);
}

/// How many alert messages were accepted, and how many attempts failed.
pub fn alert_totals() -> [u64; 2] {
    ALERTS.each_ref().map(|count| count.load(Ordering::Relaxed))
}

/// A heartbeat was due.
pub fn heartbeat(outcome: &'static str) {
    heartbeats(outcome, 1);
}

fn heartbeats(outcome: &'static str, count: u64) {
    counter!("tidegate_heartbeats_total", "outcome" => outcome).increment(count);
}

/// Installs the exporter. A second one in the same process is of no consequence: the first one counts.
pub fn install() -> metrics_exporter_prometheus::PrometheusHandle {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    // Fails only when there is a recorder already.
    let _ = metrics::set_global_recorder(recorder);
    get();
    handle
}
