//! Short runs against real servers: that faults bite, that the record tells, and that claims are refuted where
//! nothing protects the application.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tidegate_chaos::checker::{Claim, NAMES, Verdict};
use tidegate_chaos::cli::on_path;
use tidegate_chaos::cluster::Programs;
use tidegate_chaos::fault::Fault;
use tidegate_chaos::report::{self, Judgement};
use tidegate_chaos::run::{self, RunOptions, RunPrograms, Service};
use tidegate_chaos::scenario::Scenario;
use tidegate_chaos::subject::{Kind, SubjectPrograms};

/// A subject that is `direct`, or one that is broken in this way.
fn subject(way: &str) -> Kind {
    let program = env!("CARGO_BIN_EXE_tidegate-chaos");
    if way == "direct" { Kind::Direct } else { Kind::Command(format!("{program} broken {way}")) }
}

async fn judge(scenario: &str) -> (Judgement, tempfile::TempDir) {
    judge_subject("direct", scenario, None).await
}

#[expect(clippy::unwrap_used, reason = "a helper of tests")]
async fn judge_subject(
    way: &str,
    scenario: &str,
    haproxy: Option<PathBuf>,
) -> (Judgement, tempfile::TempDir) {
    let scenario = Scenario::parse("made-up", scenario).unwrap();
    let claims = scenario.claims.clone();
    let nowhere = SubjectPrograms { tidegate: PathBuf::new(), pgbouncer: PathBuf::new() };
    let program = PathBuf::from(env!("CARGO_BIN_EXE_tidegate-chaos"));
    let plain = Service { program, arguments: vec!["service".to_owned()] };
    let options = RunOptions {
        scenario,
        subject: subject(way),
        seed: 1,
        quick: false,
        postgres: tokio::task::spawn_blocking(Programs::find).await.unwrap().unwrap(),
        programs: RunPrograms { subjects: nowhere, service: Some(plain), haproxy },
    };
    let out = tempfile::tempdir().unwrap();
    let record = run::run(options, out.path()).await.unwrap();
    (Judgement::of(record, &claims), out)
}

#[track_caller]
#[expect(clippy::unwrap_used, reason = "a helper of tests")]
fn verdict(judgement: &Judgement, claim: &str) -> Verdict {
    let found = judgement.claims.iter().find(|judged| judged.claim.name() == claim);
    found.unwrap().verdict.clone()
}

const LOAD: &str = "
summary = 'a short run'
[phases]
quiet = '2s'
after = '4s'
linger = '5s'
[workload]
readers = 4
writers = 8
";

#[tokio::test(flavor = "multi_thread")]
async fn a_write_stall_bites_and_refutes_who_has_no_breaker() {
    // A fault that does nothing would leave every claim undecided; a harness that loses rows would refute the wrong one.
    let (judgement, out) = judge(&format!(
        "{LOAD}
        [cluster]
        synchronous = true
        [[step]]
        for = '3s'
        fault = 'freeze'
        node = 's1'
        what = 'walreceiver'
        [[claim]]
        claim = 'breaker-opens'
        within = '1500ms'
        [[claim]]
        claim = 'answered-in-time'
        read = '2s'
        write = '1s'
        [[claim]]
        claim = 'acknowledged-writes-present'
        [[claim]]
        claim = 'no-duplicates'
        "
    ))
    .await;

    assert!(matches!(verdict(&judgement, "breaker-opens"), Verdict::Refuted(_)), "{:?}", judgement.claims);
    assert!(matches!(verdict(&judgement, "answered-in-time"), Verdict::Refuted(_)), "{:?}", judgement.claims);
    assert!(verdict(&judgement, "acknowledged-writes-present").holds(), "{:?}", judgement.claims);
    assert!(verdict(&judgement, "no-duplicates").holds(), "{:?}", judgement.claims);
    let waits = judgement.record.servers.iter().flat_map(|sample| sample.waits.iter().flatten());
    assert!(waits.into_iter().any(|wait| wait.event == "IPC/SyncRep"));
    assert!(std::fs::metadata(out.path().join("history.jsonl")).unwrap().len() > 10_000);
    let page = report::write(std::slice::from_ref(&judgement), out.path()).unwrap();
    assert!(std::fs::read_to_string(page).unwrap().contains("breaker-opens"));
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_replies_to_commit_are_unknown_and_the_rows_are_there() {
    // Calling them failed would refute a subject that did nothing wrong.
    let (judgement, _out) = judge(&format!(
        "{LOAD}
        write_style = 'transaction'
        [cluster]
        standbys = 0
        relay = true
        [[step]]
        for = '2s'
        fault = 'link'
        node = 'primary'
        link = 'cut'
        message = 'command-complete'
        statement = 'COMMIT'
        when = 'before'
        [[claim]]
        claim = 'refused-writes-absent'
        if_any = true
        [[claim]]
        claim = 'acknowledged-writes-present'
        "
    ))
    .await;

    let record = &judgement.record;
    let unknown: Vec<i64> = record
        .writes()
        .filter(|write| matches!(write.outcome, Some(tidegate_chaos::history::Outcome::Unknown(_))))
        .filter_map(|write| write.key)
        .collect();
    assert!(unknown.len() > 10, "{unknown:?}");
    let rows = record.rows.as_ref().unwrap();
    assert!(unknown.iter().all(|key| rows.iter().any(|row| row.key == *key)));
    assert!(judgement.holds(), "{:?} {:?}", judgement.claims, record.troubles);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_brain_that_loses_writes_is_refuted() {
    // The real thing, not a made-up history: what the old primary acknowledged after the promotion is gone.
    let (judgement, _out) = judge(&format!(
        "{LOAD}
        [cluster]
        standbys = 1
        [[step]]
        for = '3s'
        fault = 'split-brain'
        from = 'primary'
        to = 's1'
        [[claim]]
        claim = 'acknowledged-writes-present'
        "
    ))
    .await;

    let lost = verdict(&judgement, "acknowledged-writes-present");
    assert!(matches!(lost, Verdict::Refuted(_)), "{lost:?} {:?}", judgement.record.troubles);
}

/// A run against a subject that is broken on purpose, and the claims that it must refute.
struct Trial {
    way: &'static str,
    /// Steps and load.
    scenario: &'static str,
    claims: &'static str,
    refuted: &'static [&'static str],
}

const STALL: &str = "
summary = 'commits hang for a while'
pool = 2
[phases]
quiet = '4s'
after = '5s'
linger = '5s'
[workload]
readers = 6
writers = 8
http_reads_per_second = 20.0
http_writes_per_second = 60.0
[cluster]
synchronous = true
[[step]]
for = '3s'
fault = 'freeze'
node = 's1'
what = 'walreceiver'
";

/// What protects nobody.
const DIRECT: Trial = Trial {
    way: "direct",
    scenario: STALL,
    claims: "
[[claim]]
claim = 'breaker-opens'
within = '1500ms'
[[claim]]
claim = 'refusals-fast'
p99 = '5ms'
cause = 'sync_standby'
[[claim]]
claim = 'answered-in-time'
read = '2s'
write = '1s'
[[claim]]
claim = 'backends-bounded'
control = 1
[[claim]]
claim = 'alert-in-time'
within = '5s'
[[claim]]
claim = 'alert-named'
alert = 'write_stalled'
within = '5s'
",
    refuted: &[
        "breaker-opens",
        "refusals-fast",
        "answered-in-time",
        "backends-bounded",
        "alert-in-time",
        "alert-named",
    ],
};

/// The same with the service behind its reverse proxy.
const CLOGGED: Trial = Trial {
    way: "direct",
    scenario: STALL,
    claims: "
[[claim]]
claim = 'service-refuses'
queue = 32
[[claim]]
claim = 'health-answers'
within = '50ms'
",
    refuted: &["service-refuses", "health-answers"],
};

const LYING: Trial = Trial {
    way: "lying",
    scenario: "
summary = 'nothing is wrong but the subject'
[phases]
quiet = '3s'
after = '2s'
[cluster]
standbys = 0
[[step]]
for = '1s'
fault = 'lock-storm'
node = 'primary'
",
    claims: "
[[claim]]
claim = 'acknowledged-writes-present'
[[claim]]
claim = 'refused-writes-absent'
[[claim]]
claim = 'no-duplicates'
[[claim]]
claim = 'no-late-execution'
[[claim]]
claim = 'verdicts-right'
",
    refuted: &[
        "acknowledged-writes-present",
        "refused-writes-absent",
        "no-duplicates",
        "no-late-execution",
        "verdicts-right",
    ],
};

const SULKING: Trial = Trial {
    way: "sulking",
    scenario: STALL,
    claims: "
[[claim]]
claim = 'breaker-stays-closed'
[[claim]]
claim = 'writes-recover'
within = '2s'
[[claim]]
claim = 'goodput-recovers'
within = '1s'
share = 0.95
[[claim]]
claim = 'outages-short'
within = '4s'
[[claim]]
claim = 'journal-ahead'
",
    refuted: &[
        "breaker-stays-closed",
        "writes-recover",
        "goodput-recovers",
        "outages-short",
        "journal-ahead",
    ],
};

const LIMPING: Trial = Trial {
    way: "limping",
    scenario: "
summary = 'a lock makes some wait, and the subject all'
[phases]
quiet = '5s'
after = '5s'
linger = '5s'
[workload]
hot_writers = 2
hot_writes_per_second = 4.0
[cluster]
standbys = 0
[[step]]
for = '4s'
fault = 'lock-storm'
node = 'primary'
",
    claims: "
[[claim]]
claim = 'reads-undisturbed'
factor = 1.25
floor = '5ms'
[[claim]]
claim = 'writes-undisturbed'
factor = 1.25
floor = '5ms'
[[claim]]
claim = 'innocent-writes-unharmed'
factor = 1.25
floor = '5ms'
[[claim]]
claim = 'no-stampede'
span = '4s'
factor = 1.25
floor = '5ms'
",
    refuted: &["reads-undisturbed", "writes-undisturbed", "innocent-writes-unharmed", "no-stampede"],
};

const QUEUEING: Trial = Trial {
    way: "queueing",
    scenario: "
summary = 'more reads than can be served, and a queue for all of them'
pool = 4
[phases]
quiet = '2s'
after = '2s'
linger = '2s'
[workload]
readers = 20
reads_per_second = 20.0
read_ms = 100
[cluster]
standbys = 0
[[step]]
for = '5s'
fault = 'burst'
reads_per_second = 100.0
sessions = 200
",
    claims: "
[[claim]]
claim = 'overload-served'
capacity = 40.0
share = 0.9
within = '1s'
",
    refuted: &["overload-served"],
};

const STRAYING: Trial = Trial {
    way: "straying",
    scenario: "
summary = 'one of the servers belongs to another cluster'
[phases]
quiet = '2s'
after = '1s'
linger = '2s'
[cluster]
standbys = 0
stranger = true
[[step]]
for = '1s'
fault = 'lock-storm'
node = 'primary'
",
    claims: "
[[claim]]
claim = 'no-strays'
",
    refuted: &["no-strays"],
};

/// `PostgreSQL`'s own timeout names nobody.
const MUTE: Trial = Trial {
    way: "direct",
    scenario: "
summary = 'those who wait for a lock give up, and do not know for whom they waited'
[phases]
quiet = '2s'
after = '2s'
linger = '3s'
[workload]
hot_writers = 4
hot_writes_per_second = 10.0
[cluster]
standbys = 0
settings = { lock_timeout = '700ms' }
[[step]]
for = '3s'
fault = 'lock-storm'
node = 'primary'
",
    claims: "
[[claim]]
claim = 'lock-waiters-told'
",
    refuted: &["lock-waiters-told"],
};

const TRIALS: [&Trial; 8] = [&DIRECT, &CLOGGED, &LYING, &SULKING, &LIMPING, &QUEUEING, &STRAYING, &MUTE];

/// Refuted against the sidecar itself, in a state that it cannot answer for: `tests/e2e/smoke.rs`.
const ELSEWHERE: [&str; 2] = ["admin-answers", "changes-refused"];

impl Trial {
    async fn run(&self, haproxy: Option<PathBuf>) {
        let scenario = format!("{}{}", self.scenario, self.claims);
        let (judgement, _out) = judge_subject(self.way, &scenario, haproxy).await;

        for claim in self.refuted {
            let verdict = verdict(&judgement, claim);
            assert!(
                matches!(verdict, Verdict::Refuted(_)),
                "{claim}: {verdict:?} {:?}",
                judgement.record.troubles
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_proxy_is_refuted_in_a_write_stall() {
    // It has no breaker, no bound and nobody to tell.
    DIRECT.run(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_queues_is_refuted() {
    // The requests behind the hung writes fill the reverse proxy, and the health checks wait among them.
    let Some(haproxy) = on_path("haproxy") else { return println!("HAProxy is not installed") };
    CLOGGED.run(Some(haproxy)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_lies_about_writes_is_refuted_by_every_claim_about_them() {
    // In the numbers all looks well: every insert is answered, soon.
    LYING.run(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_never_comes_back_is_refuted() {
    // It stops the stall's damage, and then goes on stopping.
    SULKING.run(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_drags_all_into_the_trouble_of_some_is_refuted() {
    // Nothing fails: it is only slow, during the trouble and after it.
    LIMPING.run(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_without_end_is_refuted_under_overload() {
    // It works at full capacity, for readers who have left.
    QUEUEING.run(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_writes_to_another_cluster_is_refuted() {
    // Whoever accepts writes looks like a primary.
    STRAYING.run(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_that_names_nobody_is_refuted() {
    // The application learns that it waited, not for whom.
    MUTE.run(None).await;
}

#[test]
fn every_claim_is_refuted_by_a_run_against_a_subject_that_is_broken_on_purpose() {
    // A new claim without such a run may be one that nothing can refute.
    let tried = TRIALS.iter().flat_map(|trial| trial.refuted).chain(&ELSEWHERE);
    let tried: std::collections::BTreeSet<&str> = tried.copied().collect();

    assert_eq!(tried, NAMES.iter().copied().collect());
}

#[test]
fn every_claim_has_a_name_of_its_own() {
    // Scenarios that extend others put claims together by name.
    let names: Vec<&str> = tidegate_chaos::scenario::names()
        .into_iter()
        .filter_map(|name| Scenario::load(name).ok())
        .flat_map(|scenario| scenario.claims)
        .map(|claim: Claim| claim.name())
        .collect();

    let distinct: std::collections::BTreeSet<&str> = names.iter().copied().collect();

    assert!(distinct.len() >= 15, "{distinct:?}");
    assert!(distinct.iter().all(|name| NAMES.contains(name)), "{distinct:?}");
}

#[test]
fn a_run_that_is_terminated_heals_its_faults() {
    // SIGTERM used to end the process on the spot, and the port stayed unreachable.
    let fault = Fault::DropPackets { node: "primary".to_owned(), larger_than: None, both_ways: false };
    if let Some(why) = fault.obstacle() {
        eprintln!("skipped: {why}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let scenario = dir.path().join("cut-off.toml");
    let text = "summary = 'cut off'\n[cluster]\nstandbys = 0\n[phases]\nquiet = '0s'\n\
                [[step]]\nfor = '60s'\nfault = 'drop-packets'\nnode = 'primary'\n";
    std::fs::write(&scenario, text).unwrap();
    let mut run = Command::new(env!("CARGO_BIN_EXE_tidegate-chaos"));
    run.arg("run").arg(&scenario).args(["--subject", "direct"]).arg("--out").arg(dir.path().join("out"));
    let mut run = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(run.id()).unwrap()).unwrap();
    let table = format!("tidegate_{}_", run.id());
    let in_force = || {
        let listed = Command::new("nft").args(["list", "tables"]).output().unwrap();
        String::from_utf8_lossy(&listed.stdout).contains(&table)
    };
    let start = Instant::now();
    while !in_force() {
        assert!(start.elapsed() < Duration::from_mins(1), "the fault was never injected");
        std::thread::sleep(Duration::from_millis(50));
    }

    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let status = run.wait().unwrap();

    assert!(!in_force());
    assert_eq!(status.code(), Some(1), "{status}");
}
