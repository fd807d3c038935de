//! Scenarios of the chaos harness against this build, with fixed seeds and short phases: all that they claim holds.
//!
//! They measure, so each of them runs alone.

use std::path::PathBuf;

use tidegate_chaos::checker::Verdict;
use tidegate_chaos::cluster::Programs;
use tidegate_chaos::report::Judgement;
use tidegate_chaos::run::{self, RunOptions, RunPrograms};
use tidegate_chaos::scenario::Scenario;
use tidegate_chaos::subject::{Kind, SubjectPrograms};

/// Runs a scenario with these claims of its own or of others.
async fn judge(scenario: Scenario, seed: u64) -> Judgement {
    let claims = scenario.claims.clone();
    let subjects = SubjectPrograms { tidegate: PathBuf::from(crate::TIDEGATE), pgbouncer: PathBuf::new() };
    let options = RunOptions {
        scenario,
        subject: Kind::Tidegate,
        seed,
        quick: true,
        postgres: tokio::task::spawn_blocking(Programs::find).await.unwrap().unwrap(),
        programs: RunPrograms { subjects, service: None, haproxy: None },
    };
    let out = tempfile::tempdir().unwrap();
    let record = run::run(options, out.path()).await.unwrap();
    Judgement::of(record, &claims)
}

/// How often a scenario is run until the machine lets it show something.
const RUNS: usize = 3;

/// Claims about how long something takes. A 99th percentile of these short phases is the third slowest of 300, and the
/// machine may be shared: who misses one of them is measured again, and whoever is slow is slow twice.
const TIMES: &[&str] = &[
    "breaker-opens",
    "refusals-fast",
    "reads-undisturbed",
    "innocent-writes-unharmed",
    "writes-recover",
    "goodput-recovers",
    "no-stampede",
    "answered-in-time",
    "admin-answers",
    "alert-in-time",
];

/// Runs a scenario. No claim about what became of data may be refuted, none about times twice, and what was promised
/// to applications must be shown: a run in which the machine itself was too slow to tell shows nothing.
async fn holds(name: &str, seed: u64, shown: &[&str]) {
    let mut missed = Vec::new();
    for _ in 0..RUNS {
        let judgement = judge(Scenario::load(name).unwrap().quick(), seed).await;
        for judged in &judgement.claims {
            println!("{}: {:?}", judged.claim.name(), judged.verdict);
        }
        let verdicts = judgement.claims.iter().map(|judged| (judged.claim.name(), &judged.verdict));
        let before = missed.len();
        for (name, verdict) in verdicts.clone().filter(|(_, verdict)| matches!(verdict, Verdict::Refuted(_)))
        {
            assert!(TIMES.contains(&name) && !missed.contains(&name), "{name}: {verdict:?}");
            missed.push(name);
        }
        let is_shown =
            |wanted: &&str| verdicts.clone().any(|(name, verdict)| name == *wanted && verdict.holds());
        if missed.len() == before && shown.iter().all(is_shown) {
            return;
        }
    }
    panic!("{RUNS} runs did not show all of {shown:?}; missed once: {missed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_is_paused_and_writes_its_journal_elsewhere_is_refuted() {
    // The claims about pages and about the journal have to notice when there is neither.
    let elsewhere = tempfile::tempdir().unwrap();
    let text = format!(
        "summary = 'broken on purpose'
        [cluster]
        standbys = 0
        [phases]
        quiet = '2s'
        after = '3s'
        [tidegate]
        state_dir = '{}'
        [[step]]
        for = '1s'
        fault = 'subject'
        what = 'torn-config'
        [[step]]
        at = '1s'
        for = '2s'
        fault = 'subject'
        what = 'freeze'
        [[claim]]
        claim = 'admin-answers'
        within = '50ms'
        [[claim]]
        claim = 'changes-refused'
        changes = ['torn configuration']
        ",
        elsewhere.path().display()
    );

    let judgement = judge(Scenario::parse("made-up", &text).unwrap(), 1).await;

    for judged in &judgement.claims {
        assert!(matches!(judged.verdict, Verdict::Refuted(_)), "{judged:?} {:?}", judgement.record.troubles);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_freezes_stops_writes_and_nothing_else() {
    // The outage that this project exists for: if any of its claims is refuted, nothing else matters.
    holds("write-stall", 1, &["breaker-opens", "reads-undisturbed", "acknowledged-writes-present"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_locked_stops_those_who_want_it_and_nobody_else() {
    // A breaker that opens here would be an outage of our own making.
    holds("lock-storm", 1, &["breaker-stays-closed", "innocent-writes-unharmed"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_freezes_is_noticed_and_comes_back() {
    // It accepts connections and says nothing: only a deadline of one's own ends that.
    holds("zombie", 1, &["breaker-opens", "answered-in-time", "writes-recover"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_are_cut_are_never_reported_wrong() {
    // The interesting cuts are between messages; a wrong word about one COMMIT is a lost or a doubled order.
    holds("commit-cut", 1, &["acknowledged-writes-present", "no-duplicates"]).await;
}
