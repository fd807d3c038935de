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

/// Runs a scenario; nothing that it claims may be refuted, and what was promised to applications must be shown.
async fn holds(name: &str, seed: u64, shown: &[&str]) {
    let judgement = judge(Scenario::load(name).unwrap().quick(), seed).await;

    for judged in &judgement.claims {
        println!("{}: {:?}", judged.claim.name(), judged.verdict);
    }
    for judged in &judgement.claims {
        let (name, verdict) = (judged.claim.name(), &judged.verdict);
        assert!(!matches!(verdict, Verdict::Refuted(_)), "{name}: {verdict:?}");
        let must = shown.contains(&name);
        assert!(!must || matches!(verdict, Verdict::Holds(_)), "{name}: {verdict:?}");
    }
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
