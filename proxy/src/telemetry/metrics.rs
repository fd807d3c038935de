//! Every metric: name, unit, labels, meaning. Counters are registered once and then cost one atomic addition.

use std::sync::LazyLock;

use metrics::{Counter, Unit, counter, describe_counter, describe_gauge, gauge};

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
    /// Sessions that left in the middle of something.
    pub abandoned: Counter,
    /// Backends that were brought to another session's settings.
    pub settings_replayed: Counter,
    pins: [Counter; PIN_REASONS.len()],
}

/// Name, unit, meaning. README's table is held against this one.
pub const COUNTERS: [(&str, &str); 10] = [
    ("tidegate_sessions_total", "Sessions that logged in"),
    ("tidegate_logins_failed_total", "Logins that failed"),
    ("tidegate_backend_connects_total", "Backends opened"),
    ("tidegate_backend_connects_failed_total", "Attempts to open a backend that failed"),
    ("tidegate_backends_lost_total", "Backends that ended other than by our own decision"),
    ("tidegate_cancels_total", "Cancel requests received"),
    ("tidegate_sessions_abandoned_total", "Sessions that left in the middle of an exchange or transaction"),
    ("tidegate_settings_replayed_total", "Backends brought to another session's settings"),
    ("tidegate_pins_total", "Backends pinned to a session beyond its transaction, by reason"),
    ("tidegate_refusals_total", "Statements and logins that were refused, by reason"),
];

/// Name, meaning. Set when somebody asks for the metrics.
pub const GAUGES: [(&str, &str); 6] = [
    ("tidegate_sessions", "Sessions, logins in progress included"),
    ("tidegate_pool_backends", "Backends of a pool by state"),
    ("tidegate_pool_waiting", "Sessions that wait for a backend"),
    ("tidegate_pool_longest_wait_seconds", "How long the first of them has waited"),
    ("tidegate_pool_exchanges", "Exchanges answered since the pool was made"),
    ("tidegate_upstream_backends", "Backends of an upstream, opening ones included"),
];

static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    for (name, meaning) in COUNTERS {
        describe_counter!(name, Unit::Count, meaning);
    }
    for (name, meaning) in GAUGES {
        describe_gauge!(name, meaning);
    }
    Metrics {
        sessions_started: counter!("tidegate_sessions_total"),
        logins_failed: counter!("tidegate_logins_failed_total"),
        connects: counter!("tidegate_backend_connects_total"),
        connects_failed: counter!("tidegate_backend_connects_failed_total"),
        backends_lost: counter!("tidegate_backends_lost_total"),
        cancels: counter!("tidegate_cancels_total"),
        abandoned: counter!("tidegate_sessions_abandoned_total"),
        settings_replayed: counter!("tidegate_settings_replayed_total"),
        pins: PIN_REASONS.map(|(_, word)| counter!("tidegate_pins_total", "reason" => word)),
    }
});

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
    tracing::debug!(reason = pin_word(reason), "backend pinned to its session");
}

/// An application was refused.
pub fn refused(reason: &'static str) {
    counter!("tidegate_refusals_total", "reason" => reason).increment(1);
}

/// Brings the gauges up to date.
pub fn observe(state: &crate::server::Shared) {
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let as_f64 = |n: usize| n as f64;
    gauge!("tidegate_sessions").set(as_f64(state.registry.len()));
    for upstream in state.routes.upstreams().iter() {
        gauge!("tidegate_upstream_backends", "upstream" => upstream.name.clone())
            .set(as_f64(upstream.open()));
        for pool in upstream.pools() {
            let now = pool.state();
            let labels = [
                ("upstream", upstream.name.clone()),
                ("database", pool.key.database.to_string()),
                ("user", pool.key.user.to_string()),
            ];
            for (word, count) in [("idle", now.idle), ("leased", now.leased), ("opening", now.opening)] {
                let mut labels = labels.to_vec();
                labels.push(("state", word.to_owned()));
                gauge!("tidegate_pool_backends", &labels).set(as_f64(count));
            }
            gauge!("tidegate_pool_waiting", &labels).set(as_f64(now.waiting));
            gauge!("tidegate_pool_longest_wait_seconds", &labels).set(now.longest_wait.as_secs_f64());
            let exchanges = pool.exchanges.load(std::sync::atomic::Ordering::Relaxed);
            #[expect(clippy::cast_precision_loss, reason = "good to one in 2^52")]
            gauge!("tidegate_pool_exchanges", &labels).set(exchanges as f64);
        }
    }
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
