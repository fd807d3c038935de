//! Every figure that an operator was promised is on the page, with its meaning, its type, and a value that moves.

use std::collections::BTreeMap;

use tidegate_chaos::cluster::{Cluster, ClusterOptions, NodeOptions, Programs, Replication};
use tidegate_tests::{ScriptedApp, WebReceiver, wait_for};
use tokio::task::block_in_place;

use crate::rig::{Rig, SOON, pool_of, run, sidecar};

/// What every sidecar before a pair has, after a read, a write and a pin: family, one label of it, its least value.
const PROMISED: &[(&str, (&str, &str), f64)] = &[
    ("tidegate_sessions", ("", ""), 1.0),
    ("tidegate_pool_backends", ("state", "idle"), 0.0),
    ("tidegate_pool_waiting", ("database", "postgres"), 0.0),
    ("tidegate_pool_lane_in_flight", ("lane", "read"), 0.0),
    ("tidegate_lane_in_flight", ("lane", "write"), 0.0),
    ("tidegate_lane_queued", ("lane", "read"), 0.0),
    ("tidegate_queue_wait_seconds_count", ("lane", "read"), 0.0),
    ("tidegate_service_seconds_count", ("lane", "read"), 1.0),
    ("tidegate_service_seconds_count", ("lane", "write"), 1.0),
    ("tidegate_exchanges_total", ("outcome", "answered"), 2.0),
    ("tidegate_exchanges_total", ("outcome", "unknown"), 0.0),
    ("tidegate_exchanges_total", ("outcome", "committed_unreplicated"), 0.0),
    ("tidegate_refusals_total", ("reason", "breaker_open"), 0.0),
    ("tidegate_lane_state", ("state", "serving"), 2.0),
    ("tidegate_breaker_phase", ("phase", "closed"), 4.0),
    ("tidegate_breaker_trips_total", ("lane", "write"), 0.0),
    ("tidegate_lane_oldest_in_flight_seconds", ("lane", "write"), 0.0),
    ("tidegate_probe_seconds", ("lane", "write"), 0.000_001),
    ("tidegate_upstream_zombies", ("", ""), 0.0),
    ("tidegate_cancels_total", ("", ""), 0.0),
    ("tidegate_cancels_sent_total", ("", ""), 0.0),
    ("tidegate_pins_total", ("reason", "listen"), 1.0),
    ("tidegate_upstream_role", ("role", "standby"), 1.0),
    ("tidegate_upstream_timeline", ("", ""), 2.0),
    ("tidegate_upstream_lag_seconds", ("", ""), 0.0),
    ("tidegate_upstream_lag_bytes", ("", ""), 0.0),
    ("tidegate_upstream_epoch", ("", ""), 1.0),
    ("tidegate_last_write_timestamp_seconds", ("", ""), 1.0),
    ("tidegate_alerts_sent_total", ("status", "firing"), 1.0),
    ("tidegate_alerts_failed_total", ("kind", "json"), 1.0),
    ("tidegate_watchdog_stall_seconds", ("thread", "worker-0"), 0.0),
    ("tidegate_bytes_total", ("direction", "received"), 20.0),
    ("tidegate_bytes_total", ("direction", "sent"), 20.0),
    ("process_cpu_seconds_total", ("", ""), 0.001),
    ("process_resident_memory_bytes", ("", ""), 1e6),
    ("process_open_fds", ("", ""), 5.0),
];

/// Units that a name may end with, before `_total`.
const UNITS: [&str; 2] = ["_seconds", "_bytes"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_figure_that_was_promised_has_a_value_a_type_and_a_meaning() {
    // A family without samples is a panel without data, which looks like a quiet night.
    let node = NodeOptions::new(Programs::find().unwrap());
    let options = ClusterOptions { node, standbys: 1, replication: Replication::Asynchronous };
    let cluster = block_in_place(|| Cluster::start(&options)).unwrap();
    let receiver = WebReceiver::start().await;
    receiver.answer_with(&[500]);
    let settings = format!("[alerts]\nwebhooks = [{{ url = \"{}\" }}]\n", receiver.url("/hook"));
    let options = sidecar(&settings).environment("TIDEGATE_DEBUG", "1");
    let options = cluster.nodes().fold(options, |options, node| options.upstream(&node.url()));
    let proxy = options.start().await;
    assert_eq!(proxy.post("/debug/fire?alert=trouble", "").await.status, 202);
    receiver.wait_accepted(1).await;
    let (mut app, _) = ScriptedApp::session(proxy.address(), "postgres", "postgres").await;
    for sql in
        ["CREATE TABLE kept (id int)", "INSERT INTO kept VALUES (1)", "SELECT * FROM kept", "LISTEN news"]
    {
        run(&mut app, sql).await;
    }

    wait_for(SOON, "all figures", async || {
        let metrics = proxy.metrics().await;
        let lacking = PROMISED.iter().filter(|(name, (key, value), least)| {
            let labels = [(*key, *value)];
            let labels = if key.is_empty() { &labels[..0] } else { &labels[..] };
            metrics.get(name, labels).is_none_or(|found| found < *least)
        });
        let lacking: Vec<_> = lacking.collect();
        if !lacking.is_empty() {
            println!("not yet: {lacking:?}");
        }
        lacking.is_empty().then_some(())
    })
    .await;
    described(&proxy.get("/metrics").await.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_alone_says_who_it_is_too() {
    // Most are. Whoever looks at the page of one wants to see its timeline and version as well.
    let rig = Rig::start(pool_of(1)).await;
    let mut app = rig.app().await;
    run(&mut app, "SELECT 1").await;

    wait_for(SOON, "its timeline", async || {
        rig.proxy().metrics().await.get("tidegate_upstream_timeline", &[]).filter(|timeline| *timeline >= 1.0)
    })
    .await;
}

/// Every sample belongs to a family with HELP and TYPE; counters say so in their names, and times and sizes say their unit.
fn described(page: &str) {
    let of = |prefix: &str| -> BTreeMap<String, String> {
        let lines = page.lines().filter_map(|line| line.strip_prefix(prefix)?.split_once(' '));
        lines.map(|(name, rest)| (name.to_owned(), rest.to_owned())).collect()
    };
    let (help, kinds) = (of("# HELP "), of("# TYPE "));
    for (name, kind) in &kinds {
        assert!(help.get(name).is_some_and(|text| !text.is_empty()), "{name} has no HELP");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
        if kind == "histogram" {
            assert!(UNITS.iter().any(|unit| name.ends_with(unit)), "{name} has no unit");
        }
        for foreign in ["_ms", "_millis", "_minutes", "_kb", "_mib"] {
            assert!(!name.contains(foreign), "{name} is in no base unit");
        }
    }
    for line in page.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let base =
            ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        assert!(kinds.contains_key(name) || kinds.contains_key(base), "{line} has no TYPE");
    }
}
