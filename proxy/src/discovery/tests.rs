//! Claims about who is taken for the primary.

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::hints::Expected;
use super::*;
use crate::config::{Roles, UpstreamAddress};
use crate::exchange::Cause;
use crate::upstream::membership::{Force, Refused};
use crate::upstream::topology::{Health, Role, Topology, Writes};
use crate::upstream::{
    Epoch, Fence, Lineage, Lsn, Observation, SystemIdentifier, TimelineId, UpstreamId, UpstreamView,
};

const SETTLE: Duration = Duration::from_secs(2);
const MS: Duration = Duration::from_millis(1);

fn address(index: u32) -> UpstreamAddress {
    UpstreamAddress::Tcp { host: format!("pg{index}"), port: 5432 }
}

fn addresses(count: u32) -> Vec<UpstreamAddress> {
    (0..count).map(address).collect()
}

fn primary(timeline: u32) -> Observation {
    Observation {
        system: SystemIdentifier(7),
        timeline: TimelineId(timeline),
        in_recovery: false,
        lsn: Lsn(1000),
        lag: None,
        version_num: 180_001,
        read_only: false,
    }
}

fn standby(timeline: u32) -> Observation {
    Observation { in_recovery: true, lag: Some(Duration::ZERO), ..primary(timeline) }
}

/// The rules, with a clock that is moved by hand.
struct Bench {
    state: State,
    now: Instant,
    decisions: Vec<Decision>,
}

impl Bench {
    fn with(rules: Rules, count: u32, memory: Option<Memory>) -> Self {
        let now = Instant::now();
        Self { state: State::new(rules, &addresses(count), memory, now), now, decisions: Vec::new() }
    }

    fn new(count: u32) -> Self {
        Self::with(Rules { roles: Roles::Probe, settle: SETTLE }, count, None)
    }

    /// A primary on timeline 1 that takes writes, and standbys.
    fn running(count: u32) -> Self {
        let mut bench = Self::new(count);
        bench.sees(0, primary(1));
        for index in 1..count {
            bench.sees(index, standby(1));
        }
        bench.commits(0);
        bench.decisions.clear();
        assert_eq!((bench.primary(), bench.writes()), (Some(0), Writes::Open));
        bench
    }

    fn step(&mut self, event: Event) {
        let decisions = self.state.step(event, self.now);
        self.decisions.extend(decisions);
    }

    fn after(&mut self, time: Duration) -> &mut Self {
        self.now += time;
        self
    }

    fn observed(&mut self, index: u32, result: Result<Observation, ObserveError>) {
        let upstream = UpstreamId(index);
        let connection = self.state.wish(upstream, self.now).map_or(Connection::Kept, |wish| wish.connection);
        self.step(Event::Observed { upstream, connection, asked: self.now, result });
    }

    fn sees(&mut self, index: u32, seen: Observation) {
        self.observed(index, Ok(seen));
    }

    fn fails(&mut self, index: u32, error: ObserveError) {
        self.observed(index, Err(error));
    }

    fn dies(&mut self, index: u32) {
        self.fails(index, ObserveError::Unreachable);
    }

    fn commits(&mut self, index: u32) {
        let (upstream, started) = (UpstreamId(index), self.now);
        self.step(Event::WriteCommitted { upstream, started, result: Ok(Lsn(2000)) });
    }

    /// Good answers until it is believed again.
    fn proves(&mut self, index: u32, seen: Observation) {
        for _ in 0..3 {
            self.sees(index, seen);
            self.after(MS * 500);
        }
    }

    fn topology(&self) -> Topology {
        self.state.topology()
    }

    fn view(&self, index: u32) -> UpstreamView {
        self.topology().get(UpstreamId(index)).unwrap().clone()
    }

    fn primary(&self) -> Option<u32> {
        self.topology().primary().map(|view| view.id.0)
    }

    fn writes(&self) -> Writes {
        self.topology().writes()
    }

    fn readers(&self) -> Vec<u32> {
        self.topology().standbys(Duration::from_secs(10)).map(|view| view.id.0).collect()
    }

    fn words(&mut self) -> Vec<(&'static str, &'static str)> {
        self.decisions.drain(..).map(|decision| (decision.what.word(), decision.why.word())).collect()
    }
}

#[test]
fn at_start_one_good_answer_and_one_committed_write_are_enough() {
    // With the rules for servers that come back every start would take a second longer.
    let mut bench = Bench::new(2);

    bench.sees(0, primary(1));
    bench.sees(1, standby(1));
    assert_eq!((bench.primary(), bench.writes()), (Some(0), Writes::Unproven { failed: None }));
    assert_eq!(bench.readers(), [1]);

    bench.commits(0);
    assert_eq!(bench.writes(), Writes::Open);
    assert_eq!(
        bench.words(),
        [
            ("cluster_established", "majority"),
            ("primary_elected", "newest_timeline"),
            ("writes_opened", "committed")
        ]
    );
}

#[test]
fn nobody_is_chosen_while_somebody_was_not_asked() {
    // The one that was not asked yet may be the newer primary, and the first to answer the zombie.
    let mut bench = Bench::new(3);
    bench.sees(0, primary(1));
    bench.sees(1, standby(1));
    assert_eq!(bench.primary(), None);

    bench.sees(2, primary(2));

    assert_eq!(bench.primary(), Some(2));
    assert!(matches!(bench.view(0).fenced, Some(Fence::OlderTimeline { .. })));
}

#[test]
fn what_is_remembered_does_not_cut_the_first_look_short() {
    // The server that was not asked yet may have been promoted while the sidecar was down.
    let memory = Memory { lineage: Lineage::of(&primary(1)), newest: TimelineId(1) };
    let mut bench = Bench::with(Rules { roles: Roles::Probe, settle: SETTLE }, 2, Some(memory));
    bench.sees(0, primary(1));
    assert_eq!(bench.primary(), None);

    bench.sees(1, primary(2));
    assert_eq!(bench.primary(), Some(1));
}

#[test]
fn a_server_that_is_dead_at_start_keeps_nobody_waiting() {
    // "Was asked" must not mean "has answered".
    let mut bench = Bench::new(2);
    bench.sees(0, primary(1));
    bench.dies(1);

    assert_eq!(bench.primary(), Some(0));
}

#[test]
fn a_promoted_standby_takes_over_with_one_good_answer_and_one_commit() {
    // Any wait here is downtime of all writes.
    let mut bench = Bench::running(3);
    bench.after(MS * 100).dies(0);
    assert_eq!((bench.primary(), bench.writes()), (None, Writes::NoPrimary));
    assert_eq!(bench.readers(), [1, 2]);

    bench.after(MS * 100).sees(1, primary(2));
    assert_eq!((bench.primary(), bench.writes()), (Some(1), Writes::Unproven { failed: None }));
    bench.commits(1);

    assert_eq!(bench.writes(), Writes::Open);
    assert_eq!(bench.readers(), [2]);
    assert_eq!(
        bench.words(),
        [("primary_lost", "dead"), ("primary_elected", "newest_timeline"), ("writes_opened", "committed")]
    );
}

#[test]
fn losing_the_primary_does_not_start_the_hold_down() {
    // The brief second of a crash and a promotion would become settle plus that.
    let mut bench = Bench::running(2);
    bench.dies(0);
    bench.sees(1, primary(2));

    assert_eq!(bench.primary(), Some(1));
}

#[test]
fn a_commit_that_began_before_the_promotion_proves_nothing() {
    // A straggler of the old primary, or of the time before, would open writes that hang.
    let mut bench = Bench::running(2);
    let before = bench.now;
    bench.after(MS * 10).dies(0);
    bench.sees(1, primary(2));

    bench.step(Event::WriteCommitted { upstream: UpstreamId(1), started: before, result: Ok(Lsn(1)) });
    assert_eq!(bench.writes(), Writes::Unproven { failed: None });

    bench.step(Event::WriteCommitted { upstream: UpstreamId(0), started: bench.now, result: Ok(Lsn(1)) });
    assert_eq!(bench.writes(), Writes::Unproven { failed: None });
}

#[test]
fn a_new_primary_whose_commits_hang_answers_reads_and_says_why_it_takes_no_writes() {
    // The outage that this product is about: failover, reads work, each write waits for a standby that is gone.
    let mut bench = Bench::running(2);
    bench.dies(0);
    bench.sees(1, primary(2));
    let cause = Cause::SyncStandby;
    bench.step(Event::WriteCommitted { upstream: UpstreamId(1), started: bench.now, result: Err(cause) });

    assert_eq!(bench.primary(), Some(1));
    assert_eq!(bench.writes(), Writes::Unproven { failed: Some(cause) });

    bench.commits(1);
    assert_eq!(bench.writes(), Writes::Open);
}

#[test]
fn a_primary_that_refuses_writes_says_so() {
    // `default_transaction_read_only`: waiting for a commit that nobody can make would look like a failover for ever.
    let mut bench = Bench::new(1);
    bench.sees(0, Observation { read_only: true, ..primary(1) });

    assert_eq!(bench.writes(), Writes::Unproven { failed: Some(Cause::ReadOnly) });
    assert_eq!(bench.state.wish(UpstreamId(0), bench.now).unwrap().trial, Trial::None);

    bench.sees(0, primary(1));
    bench.commits(0);
    assert_eq!(bench.writes(), Writes::Open);
}

#[test]
fn a_promotion_next_to_a_primary_that_still_answers_fences_the_old_one() {
    // A partition between the two: both take writes, and only the newer one is followed by standbys.
    let mut bench = Bench::running(3);
    bench.after(MS * 500).sees(1, primary(2));

    assert_eq!(bench.primary(), Some(1));
    assert_eq!(
        bench.words()[..3],
        [("fenced", "identity"), ("primary_lost", "fenced"), ("primary_elected", "newest_timeline")]
    );
}

#[test]
fn a_zombie_that_returns_never_gets_a_write_nor_a_read() {
    // The stale primary restarted as a stand-alone server looks perfectly healthy.
    let mut bench = Bench::running(2);
    bench.dies(0);
    bench.sees(1, primary(2));
    bench.commits(1);
    bench.after(MS * 5000).proves(0, primary(1));
    assert!(matches!(bench.view(0).fenced, Some(Fence::OlderTimeline { .. })));

    // Nor does the death of the new primary make it welcome.
    bench.dies(1);
    bench.after(SETTLE * 10).proves(0, primary(1));

    assert_eq!((bench.primary(), bench.readers()), (None, vec![]));
}

#[test]
fn a_zombie_that_rejoins_as_a_standby_of_the_new_timeline_is_admitted_after_proof() {
    // After pg_rewind it is a standby like any other; three answers over a second, as for all that were gone.
    let mut bench = Bench::running(2);
    bench.dies(0);
    bench.sees(1, primary(2));
    bench.commits(1);
    bench.proves(0, primary(1));
    bench.sees(0, standby(1));
    assert!(bench.view(0).fenced.is_some(), "in recovery, but on the timeline that was left");

    bench.sees(0, standby(2));
    assert_eq!((bench.view(0).fenced, bench.view(0).health), (None, Health::Proving));
    bench.dies(0);
    bench.proves(0, standby(2));

    assert_eq!(bench.readers(), [0]);
}

#[test]
fn a_restart_of_the_sidecar_does_not_make_it_believe_a_zombie() {
    // Without memory the only server in sight is taken for the primary.
    let mut before = Bench::running(2);
    before.sees(1, primary(2));
    let memory = before.state.memory();
    assert_eq!(memory.as_ref().map(|memory| memory.newest), Some(TimelineId(2)));

    let mut after = Bench::with(Rules { roles: Roles::Probe, settle: SETTLE }, 2, memory);
    after.sees(0, primary(1));
    after.dies(1);

    assert_eq!(after.primary(), None);
    assert!(after.view(0).fenced.is_some());
}

#[test]
fn two_writable_servers_of_one_timeline_close_writes_and_leave_reads() {
    // Each may have rows that the other lacks; choosing one loses those of the other.
    let mut bench = Bench::running(3);
    bench.after(MS * 500).sees(1, primary(1));

    assert_eq!(bench.writes(), Writes::SplitBrain);
    assert_eq!((bench.primary(), bench.readers()), (Some(0), vec![2]));
    let decision = bench.decisions.last().unwrap();
    assert!(decision.what.is_alarming());
    assert_eq!(
        decision.to_string(),
        "pg0:5432 and pg1:5432 take writes on the same timeline: writes are refused"
    );

    bench.dies(1);
    assert_eq!((bench.primary(), bench.writes()), (Some(0), Writes::Open));
}

#[test]
fn the_other_claimant_does_not_inherit_when_the_primary_of_a_split_brain_dies() {
    // It takes over as any server would: by the one rule that is left, being alone on the newest timeline.
    let mut bench = Bench::running(2);
    bench.sees(1, primary(1));
    bench.dies(0);

    assert_eq!(bench.primary(), Some(1));
    assert_eq!(bench.writes(), Writes::Unproven { failed: None });
}

#[test]
fn a_split_brain_at_start_has_no_primary_at_all() {
    // The order of the list would decide otherwise.
    let mut bench = Bench::new(2);
    bench.sees(0, primary(1));
    bench.sees(1, primary(1));

    assert_eq!((bench.primary(), bench.writes()), (None, Writes::SplitBrain));
}

#[test]
fn a_foreign_server_is_named_and_fenced_whatever_its_timeline() {
    // Three instances of an old version came back: a hybrid. The higher timeline must not win.
    let mut bench = Bench::running(3);
    let foreign = Observation { system: SystemIdentifier(8), ..primary(9) };
    bench.sees(2, foreign);

    assert_eq!(bench.primary(), Some(0));
    let decision = bench.decisions.last().unwrap();
    assert_eq!(decision.upstream.as_deref(), Some("pg2:5432"));
    assert_eq!(
        decision.to_string(),
        "pg2:5432 is fenced: its system identifier is 8, that of the cluster is 7"
    );

    let old = Observation { version_num: 150_020, ..standby(1) };
    bench.sees(1, old);
    assert!(matches!(bench.view(1).fenced, Some(Fence::ForeignVersion { major: 15, established: 18 })));
    assert_eq!(bench.readers(), [0_u32; 0]);
}

#[test]
fn at_start_the_majority_says_which_cluster_it_is_and_a_tie_is_nobody() {
    // One wrong server that answers first must not make strangers of the right ones.
    let foreign = Observation { system: SystemIdentifier(8), ..primary(9) };
    let mut bench = Bench::new(3);
    bench.sees(0, foreign);
    bench.sees(1, primary(1));
    bench.sees(2, standby(1));
    assert_eq!(bench.primary(), Some(1));
    assert!(bench.view(0).fenced.is_some());

    let mut tie = Bench::new(2);
    tie.sees(0, foreign);
    tie.sees(1, primary(1));
    assert_eq!(tie.primary(), None);
    assert_eq!(tie.words(), [("undecided", "majority")]);

    tie.dies(0);
    assert_eq!(tie.primary(), None, "the dead have a vote, too");
    tie.sees(1, standby(1));
    assert_eq!(tie.readers(), [0_u32; 0], "nor are there reads: of which cluster?");
}

#[test]
fn a_cluster_that_was_replaced_as_a_whole_is_accepted() {
    // A database made anew behind the same address would be refused for ever, with nothing left to protect.
    let mut bench = Bench::running(1);
    bench.dies(0);
    let new = Observation { system: SystemIdentifier(8), ..primary(1) };
    bench.after(SETTLE).proves(0, new);

    assert_eq!(bench.primary(), Some(0));
    assert!(bench.words().contains(&("cluster_established", "unanimous")));
}

#[test]
fn a_primary_that_comes_back_proves_itself_and_gets_a_new_epoch() {
    // Connections of before may be half open, and one good moment may be that of a restart loop.
    let mut bench = Bench::running(1);
    let epoch = bench.view(0).epoch;
    bench.dies(0);
    bench.after(MS * 100);
    for _ in 0..2 {
        bench.sees(0, primary(1));
        bench.after(MS * 500);
        assert_eq!(bench.primary(), None);
    }
    bench.sees(0, primary(1));

    assert_eq!((bench.primary(), bench.writes()), (Some(0), Writes::Unproven { failed: None }));
    assert!(bench.view(0).epoch > epoch);
}

#[test]
fn a_commit_while_it_proves_itself_counts() {
    // Else the trial would come after the second of proof, and recovery would take longer than promised.
    let mut bench = Bench::running(1);
    bench.dies(0);
    bench.sees(0, primary(1));
    assert_eq!(bench.state.wish(UpstreamId(0), bench.now).unwrap().trial, Trial::Commit);
    bench.commits(0);
    bench.after(MS * 1000);
    bench.sees(0, primary(1));
    bench.sees(0, primary(1));

    assert_eq!(bench.writes(), Writes::Open);
}

#[test]
fn a_frozen_primary_stays_while_there_is_no_other() {
    // Writes to it are the breaker's; giving it up would refuse reads that it may still answer.
    let mut bench = Bench::running(2);
    for _ in 0..20 {
        bench.after(MS * 700).fails(0, ObserveError::Silent);
    }

    assert_eq!((bench.primary(), bench.view(0).health), (Some(0), Health::Silent));

    bench.sees(1, primary(2));
    assert_eq!(bench.primary(), Some(1));
}

#[test]
fn slow_standbys_are_given_up_but_not_the_last_one() {
    // When all are slow the cause is elsewhere, and no standby at all is worse.
    let mut bench = Bench::running(3);
    for _ in 0..3 {
        bench.after(MS * 200).fails(1, ObserveError::Silent);
        bench.fails(2, ObserveError::Silent);
    }
    for _ in 0..20 {
        bench.after(MS * 200).fails(2, ObserveError::Silent);
    }

    assert_eq!((bench.view(1).health, bench.view(2).health), (Health::Down, Health::Silent));
    assert_eq!(bench.readers(), [2]);
}

#[test]
fn a_primary_demoted_in_place_is_none_and_its_connections_are_void() {
    // It answers 25006 to each write, which to an application looks like an outage without end.
    let mut bench = Bench::running(2);
    let epoch = bench.view(0).epoch;
    bench.sees(0, standby(1));

    assert_eq!((bench.primary(), bench.writes()), (None, Writes::NoPrimary));
    assert!(bench.view(0).epoch > epoch);
    assert_eq!(bench.words(), [("primary_lost", "in_recovery")]);
}

#[test]
fn another_server_behind_the_primarys_address_is_a_change_of_primary() {
    // A virtual IP moved by someone else: connections to the old server must not be used any more.
    let mut bench = Bench::running(1);
    let epoch = bench.view(0).epoch;
    bench.after(SETTLE).sees(0, primary(2));

    assert_eq!((bench.primary(), bench.writes()), (Some(0), Writes::Unproven { failed: None }));
    assert!(bench.view(0).epoch > epoch);
}

#[test]
fn after_a_change_of_primary_the_next_one_waits_for_settle() {
    // Two changes in a row are more likely a flapping view than two promotions.
    let mut bench = Bench::running(3);
    bench.dies(0);
    bench.sees(1, primary(2));
    assert_eq!(bench.primary(), Some(1));

    bench.after(MS * 100).sees(2, primary(3));
    assert_eq!(bench.primary(), None, "fenced at once, replaced later");

    bench.after(MS * 1899).step(Event::Tick);
    assert_eq!(bench.primary(), None);
    bench.after(MS).step(Event::Tick);
    assert_eq!(bench.primary(), Some(2));
}

#[test]
fn a_moved_name_drains_the_old_server_and_asks_the_new_one_first() {
    // An answer of the old server that arrives late must not be taken for the new one's.
    let mut bench = Bench::running(2);
    let (epoch, asked) = (bench.view(0).epoch, bench.now);
    bench.after(MS * 10).step(Event::Moved { upstream: UpstreamId(0) });
    assert_eq!((bench.primary(), bench.view(0).health), (None, Health::Unknown));
    assert!(bench.view(0).epoch > epoch);

    let late = Event::Observed {
        upstream: UpstreamId(0),
        connection: Connection::Kept,
        asked,
        result: Ok(primary(1)),
    };
    bench.step(late);
    assert_eq!(bench.primary(), None);

    bench.sees(0, primary(2));
    assert_eq!(bench.primary(), Some(0));
    assert_eq!(bench.words()[0], ("address_changed", "moved"));
}

#[test]
fn a_fenced_server_whose_name_leads_elsewhere_is_announced_as_fenced_no_more() {
    // Seen: the fence was forgotten without a word, and somebody went on being paged for a stale primary that was gone.
    let mut bench = Bench::running(2);
    bench.sees(1, primary(2));
    assert!(bench.view(0).fenced.is_some());
    bench.decisions.clear();

    bench.step(Event::Moved { upstream: UpstreamId(0) });

    assert_eq!(bench.view(0).fenced, None);
    assert_eq!(bench.words(), [("address_changed", "moved"), ("unfenced", "moved")]);
}

#[test]
fn hints_and_doubt_make_it_ask_more_often_and_calm_less() {
    // Asking five times a second for ever, times a fleet, is a load of its own.
    let mut bench = Bench::running(2);
    let pace = |bench: &Bench, index| bench.state.wish(UpstreamId(index), bench.now).unwrap().pace;
    assert_eq!((pace(&bench, 0), pace(&bench, 1)), (Pace::Quiet, Pace::Quiet));

    bench.step(Event::Hint { upstream: UpstreamId(1) });
    assert_eq!((pace(&bench, 0), pace(&bench, 1)), (Pace::Quiet, Pace::Doubt));
    bench.after(MS * 2000);
    assert_eq!(pace(&bench, 1), Pace::Quiet);

    bench.dies(0);
    assert_eq!((pace(&bench, 0), pace(&bench, 1)), (Pace::Doubt, Pace::Doubt), "any of them may be promoted");
    bench.after(MS * 10_001);
    assert_eq!((pace(&bench, 0), pace(&bench, 1)), (Pace::Long, Pace::Long));
}

#[test]
fn one_alone_is_calm_until_something_hints_that_it_is_not_well() {
    // Seen: nobody asks it, so it was never up, and in doubt for ever: its name was looked up every second, not every
    // 30 s. But after a move by DNS from a server that died nobody must wait for those.
    let mut bench = Bench::with(Rules { roles: Roles::Static, settle: SETTLE }, 1, None);
    bench.step(Event::Tick);
    let pace = |bench: &Bench| bench.state.wish(UpstreamId(0), bench.now).unwrap().pace;
    assert_eq!(pace(&bench), Pace::Quiet);
    assert_eq!(bench.state.expected(UpstreamId(0)), Expected::Either, "each login would be a hint");

    bench.step(Event::Hint { upstream: UpstreamId(0) });
    assert_eq!(pace(&bench), Pace::Doubt);
    bench.after(MS * 2000);
    assert_eq!(pace(&bench), Pace::Quiet);

    reload(&mut bench, addresses(2), Force::No);
    assert_eq!(pace(&bench), Pace::Doubt, "it has company, and is to be asked");
    assert_eq!(bench.state.expected(UpstreamId(0)), Expected::Nothing);
}

#[test]
fn a_standby_that_follows_nobody_is_as_late_as_the_primary_is_ahead() {
    // It says of itself that it has replayed all that it received, which is true and useless.
    let mut bench = Bench::running(2);
    for second in 1..=20 {
        bench.after(MS * 1000).sees(0, Observation { lsn: Lsn(1000 + second), ..primary(1) });
        let replayed = Lsn(1000 + second.min(5));
        bench.sees(1, Observation { lsn: replayed, ..standby(1) });
    }

    assert_eq!(bench.view(1).lag, Some(Duration::from_secs(15)));
    assert_eq!(bench.readers(), [0_u32; 0]);
}

#[test]
fn a_standby_that_has_followed_nobody_for_long_answers_no_reads_however_short_the_memory() {
    // Seen: behind all positions that were remembered it was called as late as the oldest of them. So after each start
    // it answered reads until that was older than `max_lag`, and for ever where that is longer than the memory.
    let mut bench = Bench::new(2);
    let within = |bench: &Bench, max_lag| bench.topology().standbys(max_lag).count();
    for second in 0..200 {
        bench.sees(0, Observation { lsn: Lsn(1000 + second), ..primary(1) });
        bench.sees(1, Observation { lsn: Lsn(10), ..standby(1) });
        if second > 2 {
            assert_eq!(within(&bench, Duration::from_hours(1)), 0, "after {second} s");
        }
        bench.after(MS * 1000);
    }

    // One that says how old the last is that it has replayed is known to be no later than that.
    bench.sees(1, Observation { lsn: Lsn(10), lag: Some(Duration::from_mins(5)), ..standby(1) });
    assert_eq!(within(&bench, Duration::from_mins(4)), 0);
    assert_eq!(within(&bench, Duration::from_mins(6)), 1);
}

#[test]
fn a_standby_that_is_a_moment_behind_its_new_primary_answers_reads() {
    // Without a moment of patience the only standby would answer none after each election under load.
    let mut bench = Bench::running(2);
    bench.sees(0, Observation { lsn: Lsn(1001), ..primary(1) });
    bench.after(MS).sees(1, standby(1));

    assert_eq!(bench.readers(), [1]);
}

#[test]
fn a_position_counts_from_when_it_was_asked_for() {
    // Seen: a write that committed between the server's look at its position and our look at the answer was taken to be
    // before that position, and with `read.after_write = "lsn"` a standby answered its session without it.
    let mut bench = Bench::running(2);
    let asked = bench.now;
    bench.after(MS * 50);

    let (upstream, connection) = (UpstreamId(0), Connection::Kept);
    bench.step(Event::Observed { upstream, connection, asked, result: Ok(primary(1)) });

    assert_eq!(bench.view(0).observed, Some((primary(1), asked)));
}

#[test]
fn a_standby_of_an_idle_primary_is_not_late() {
    // Its last transaction was long ago because there was none.
    let mut bench = Bench::running(2);
    for _ in 0..100 {
        bench.after(MS * 1000).sees(0, primary(1));
        bench.sees(1, Observation { lag: Some(Duration::from_hours(1)), ..standby(1) });
    }

    assert_eq!(bench.readers(), [1]);
}

fn patroni(count: u32) -> Bench {
    let mut bench = Bench::with(Rules { roles: Roles::Patroni, settle: SETTLE }, count, None);
    bench.sees(0, primary(1));
    for index in 1..count {
        bench.sees(index, standby(1));
    }
    assert_eq!(bench.primary(), None, "Patroni has not been asked");
    bench
}

fn confirm(bench: &mut Bench, index: u32) {
    bench.step(Event::Patroni(PatroniAnswer::Confirmed(UpstreamId(index))));
}

#[test]
fn with_patroni_the_primary_is_the_one_that_holds_the_lock() {
    // A server that takes writes without the lock is about to be demoted, or was promoted by hand.
    let mut bench = patroni(2);
    confirm(&mut bench, 0);
    assert_eq!(bench.primary(), Some(0));

    bench.step(Event::Patroni(PatroniAnswer::Nobody));
    assert_eq!(bench.primary(), None);
    bench.sees(1, primary(2));
    assert_eq!(bench.primary(), None);

    confirm(&mut bench, 1);
    assert_eq!(bench.primary(), Some(1));
}

#[test]
fn a_lock_that_is_named_but_not_confirmed_moves_nothing_and_takes_writes_away() {
    // Members cut off from the store go on naming the leader they knew.
    let mut bench = patroni(2);
    bench.step(Event::Patroni(PatroniAnswer::Named(UpstreamId(0))));
    assert_eq!(bench.primary(), None);

    confirm(&mut bench, 0);
    bench.step(Event::Patroni(PatroniAnswer::Named(UpstreamId(0))));
    assert_eq!(bench.primary(), Some(0), "its Patroni may only be restarting");
    bench.step(Event::Patroni(PatroniAnswer::Named(UpstreamId(1))));
    assert_eq!(bench.primary(), None);
}

#[test]
fn when_patroni_is_silent_its_last_word_holds_for_its_ttl_and_then_probing_decides() {
    // Patroni restarts during upgrades; and a sidecar that can be stopped by it is one more thing that fails.
    let mut bench = patroni(2);
    confirm(&mut bench, 0);
    bench.after(Duration::from_secs(30)).step(Event::Patroni(PatroniAnswer::Unreachable));
    bench.sees(1, primary(2));
    assert_eq!(
        bench.primary(),
        None,
        "the old one is fenced, the new one is not the leader of the last word"
    );

    bench.after(MS).step(Event::Tick);
    assert_eq!(bench.primary(), Some(1));

    confirm(&mut bench, 1);
    let words = bench.words();
    assert!(words.contains(&("patroni_lost", "expired")) && words.contains(&("patroni_back", "answered")));
}

#[test]
fn an_old_word_of_patroni_elects_nobody() {
    // Within the ttl another leader may have been chosen that we have not heard of.
    let mut bench = patroni(2);
    confirm(&mut bench, 0);
    bench.after(MS * 1).dies(0);
    bench.after(Duration::from_secs(15)).proves(0, primary(1));

    assert_eq!(bench.primary(), None);
    confirm(&mut bench, 0);
    assert_eq!(bench.primary(), Some(0));
}

#[test]
fn patroni_that_never_answered_leaves_probing() {
    // There is no last word to keep.
    let mut bench = patroni(2);
    bench.step(Event::Patroni(PatroniAnswer::Unreachable));

    assert_eq!(bench.primary(), Some(0));
}

#[test]
fn patronis_word_does_not_lift_a_fence() {
    // A lock without the data of the newest timeline is a mistake of somebody's.
    let mut bench = patroni(2);
    bench.sees(1, primary(2));
    confirm(&mut bench, 0);

    assert_eq!(bench.primary(), None);
}

#[test]
fn with_static_roles_the_first_of_the_list_is_the_primary_whatever_is_seen() {
    // For servers that cannot be asked: what the operator wrote holds.
    let mut bench = Bench::with(Rules { roles: Roles::Static, settle: SETTLE }, 2, None);
    bench.step(Event::Tick);
    assert_eq!((bench.primary(), bench.writes()), (Some(0), Writes::Open));

    bench.dies(0);
    bench.sees(1, standby(1));
    assert_eq!((bench.primary(), bench.readers()), (Some(0), vec![1]));
}

fn reload(bench: &mut Bench, upstreams: Vec<UpstreamAddress>, force: Force) {
    let rules = Rules { roles: Roles::Probe, settle: SETTLE };
    bench.step(Event::Reloaded { upstreams, force, rules });
}

#[test]
fn what_was_held_against_servers_is_said_to_be_over_when_roles_are_listed() {
    // Seen: claims, fences and doubts were forgotten without a word, and their incidents stayed open for good.
    let listed = |bench: &mut Bench| {
        let rules = Rules { roles: Roles::Static, settle: SETTLE };
        bench.decisions.clear();
        bench.step(Event::Reloaded { upstreams: addresses(3), force: Force::No, rules });
        bench.words()
    };
    let foreign = Observation { system: SystemIdentifier(8), ..standby(1) };

    let mut split = Bench::running(3);
    split.sees(1, primary(1));
    split.sees(2, foreign);
    assert_eq!(listed(&mut split), [("roles_listed", "reloaded"), ("unfenced", "reloaded")]);

    let mut undecided = Bench::new(3);
    undecided.sees(0, primary(1));
    undecided.sees(1, foreign);
    undecided.sees(2, Observation { system: SystemIdentifier(9), ..standby(1) });
    assert_eq!(listed(&mut undecided)[0], ("roles_listed", "reloaded"));
    assert!(listed(&mut undecided).is_empty());
}

/// One server that takes everything, is asked nothing, and gets a standby.
fn grown() -> Bench {
    let mut bench = Bench::with(Rules { roles: Roles::Static, settle: SETTLE }, 1, None);
    bench.step(Event::Tick);
    bench.decisions.clear();
    reload(&mut bench, addresses(2), Force::No);
    bench
}

#[test]
fn a_primary_that_gets_its_first_standby_by_a_reload_is_not_lost() {
    // Seen: a server alone is never asked, and was taken for dead as soon as there were two. All transactions got an
    // error, and the journal said that a healthy primary was lost.
    let mut bench = grown();
    let epoch = bench.view(0).epoch;
    assert_eq!((bench.primary(), bench.writes()), (Some(0), Writes::Open));

    bench.sees(1, standby(4));
    bench.sees(0, primary(4));

    assert_eq!((bench.primary(), bench.writes()), (Some(0), Writes::Open));
    assert_eq!((bench.view(0).epoch, bench.readers()), (epoch, vec![1]));
    assert_eq!(bench.words(), [("members_changed", "reloaded"), ("cluster_established", "majority")]);
    bench.after(SETTLE).sees(0, primary(5));
    assert!(bench.words().contains(&("primary_lost", "identity")), "from then on it is held to its timeline");
}

#[test]
fn a_primary_of_a_list_is_lost_as_soon_as_something_speaks_against_it() {
    // Who has never been asked is not dead, but must not stay the primary whatever is found out.
    let lost = |bench: &mut Bench, why| {
        assert!(bench.words().contains(&("primary_lost", why)), "{why}");
        assert_ne!(bench.primary(), Some(0));
    };

    let mut dead = grown();
    dead.dies(0);
    lost(&mut dead, "dead");

    let mut demoted = grown();
    demoted.sees(0, standby(1));
    lost(&mut demoted, "in_recovery");

    let mut stale = grown();
    stale.sees(1, primary(2));
    stale.sees(0, primary(1));
    lost(&mut stale, "fenced");
}

#[test]
fn a_primary_that_gets_its_first_standby_while_it_is_frozen_full_or_lets_us_not_in_is_not_lost() {
    // Seen: it had never been asked, so the first question without an answer made it dead: of a server that served all
    // along every connection was closed under its transactions, and where the login was denied it never came back.
    for error in [ObserveError::Silent, ObserveError::Overloaded, ObserveError::Denied] {
        let mut bench = grown();
        let epoch = bench.view(0).epoch;
        bench.sees(1, standby(4));
        for _ in 0..20 {
            bench.after(MS * 700).fails(0, error);
            assert_eq!((bench.primary(), bench.writes()), (Some(0), Writes::Open), "{error}");
        }
        assert_eq!((bench.view(0).epoch, bench.view(0).health), (epoch, Health::Silent), "{error}");
        assert!(bench.words().iter().all(|(what, _)| *what != "primary_lost"), "{error}");

        bench.sees(0, primary(4));
        assert_eq!((bench.primary(), bench.writes(), bench.readers()), (Some(0), Writes::Open, vec![1]));
        assert_eq!(bench.view(0).epoch, epoch, "{error}");
    }
}

#[test]
fn a_primary_that_was_never_heard_and_whose_machine_is_gone_is_lost() {
    // What spares one that is slow must not keep writes at one that is not there.
    let mut bench = grown();
    bench.sees(1, standby(4));
    for _ in 0..2 {
        bench.after(MS * 500).fails(0, ObserveError::Missing);
        assert_eq!(bench.primary(), Some(0));
    }
    bench.after(MS * 500).fails(0, ObserveError::Missing);

    assert_eq!(bench.primary(), None);
    assert!(bench.words().contains(&("primary_lost", "dead")));
}

#[test]
fn a_frozen_primary_that_was_never_heard_makes_way_for_a_promoted_standby() {
    // It cannot be fenced, as nobody knows its timeline: writes would hang at it although there is a new primary.
    let mut bench = grown();
    bench.sees(1, standby(1));
    for _ in 0..3 {
        assert_eq!(bench.primary(), Some(0));
        bench.after(MS * 700).fails(0, ObserveError::Silent);
    }
    assert_eq!((bench.primary(), bench.readers()), (Some(0), vec![1]));

    bench.sees(1, primary(2));
    bench.commits(1);

    assert_eq!((bench.primary(), bench.writes()), (Some(1), Writes::Open));
    assert!(bench.words().contains(&("primary_lost", "silent")));
    bench.sees(0, primary(1));
    assert!(bench.view(0).fenced.is_some());
}

#[test]
fn one_question_without_an_answer_makes_no_stranger_of_the_primary_of_a_list() {
    // A wrong server that is added would say alone which cluster it is, and the right one would be fenced.
    let mut bench = grown();
    bench.sees(1, Observation { system: SystemIdentifier(8), ..standby(1) });
    bench.fails(0, ObserveError::Silent);
    assert_eq!(bench.state.memory(), None);

    bench.sees(0, primary(1));

    assert_eq!((bench.primary(), bench.view(0).fenced), (Some(0), None));
    assert_eq!(bench.words().last(), Some(&("undecided", "majority")));
}

/// Two servers of which one may be dead, and one is taken off the list.
fn shrunk_to(index: u32, dead: Option<u32>) -> Bench {
    let mut bench = Bench::running(2);
    if let Some(dead) = dead {
        bench.dies(dead);
    }
    let rules = Rules { roles: Roles::Static, settle: SETTLE };
    bench.step(Event::Reloaded { upstreams: vec![address(index)], force: Force::Yes, rules });
    assert_eq!((bench.primary(), bench.writes()), (Some(index), Writes::Open));
    bench.decisions.clear();
    bench
}

#[test]
fn what_a_server_said_before_it_was_alone_is_not_held_against_it_when_it_gets_company() {
    // Seen: the standby that was left was promoted, and lost a day later with the next reload for having been in recovery:
    // nobody is asked while there is one. So it was with one that had been down then, or on another timeline.
    for (index, dead) in [(1, Some(0)), (1, Some(1)), (0, None)] {
        let mut bench = shrunk_to(index, dead);
        let epoch = bench.view(index).epoch;
        // An answer that was on its way.
        bench.sees(index, standby(1));
        bench.dies(index);
        bench.after(Duration::from_hours(24));

        reload(&mut bench, vec![address(index), address(2)], Force::No);
        bench.sees(2, standby(2));
        assert_eq!((bench.primary(), bench.writes()), (Some(index), Writes::Open));
        bench.sees(index, primary(2));

        assert_eq!((bench.primary(), bench.writes()), (Some(index), Writes::Open));
        assert_eq!((bench.view(index).epoch, bench.readers()), (epoch, vec![2]));
        assert_eq!(bench.words(), [("members_changed", "reloaded"), ("cluster_established", "majority")]);
    }
}

#[test]
fn the_fence_of_a_server_that_is_left_alone_is_said_to_be_over() {
    // It takes everything from then on: whoever was paged for it would be so for ever.
    let mut bench = Bench::running(2);
    bench.sees(1, primary(2));
    bench.decisions.clear();
    let rules = Rules { roles: Roles::Static, settle: SETTLE };
    bench.step(Event::Reloaded { upstreams: vec![address(0)], force: Force::Yes, rules });

    assert_eq!((bench.primary(), bench.view(0).fenced), (Some(0), None));
    assert!(bench.words().contains(&("unfenced", "reloaded")));
}

#[test]
fn a_reload_that_would_remove_the_primary_changes_nothing_unless_forced() {
    // The torn map: no active node in it, and everything moved at once.
    let mut bench = Bench::running(3);
    reload(&mut bench, vec![address(1), address(2)], Force::No);
    assert_eq!((bench.primary(), bench.topology().upstreams().len()), (Some(0), 3));
    let refused = &bench.decisions.last().unwrap().what;
    assert_eq!(*refused, What::MembersRefused(Refused::WholeRole(Role::Primary)));

    reload(&mut bench, vec![address(1), address(2)], Force::Yes);
    assert_eq!((bench.primary(), bench.topology().upstreams().len()), (None, 2));
}

#[test]
fn a_reload_keeps_what_is_known_of_servers_that_stay() {
    // Starting anew would close writes for as long as it takes to ask everybody.
    let mut bench = Bench::running(2);
    let before = (bench.view(0), bench.view(1));
    reload(&mut bench, vec![address(9), address(1), address(0)], Force::No);

    assert_eq!((bench.primary(), bench.writes()), (Some(0), Writes::Open));
    assert_eq!((bench.view(0), bench.view(1)), before);
    assert_eq!(bench.words(), [("members_changed", "reloaded")]);
}

#[test]
fn observed_death_of_everything_needs_no_leave_and_heals_by_itself() {
    // Guards are for texts; the dead are dead.
    let mut bench = Bench::running(3);
    for index in 0..3 {
        bench.dies(index);
    }
    assert_eq!((bench.primary(), bench.readers()), (None, vec![]));

    let first = bench.now;
    bench.proves(0, primary(1));
    bench.commits(0);
    assert_eq!(bench.writes(), Writes::Open);
    assert!(bench.now - first < Duration::from_secs(2));
}

#[test]
fn each_decision_says_what_why_and_on_what_evidence() {
    // The journal is all that is left to learn from after an outage.
    let mut bench = Bench::running(2);
    bench.dies(0);
    bench.sees(1, primary(2));

    let elected = bench.decisions.last().unwrap().to_json();

    assert_eq!(elected["what"], "primary_elected");
    assert_eq!(elected["why"], "newest_timeline");
    assert_eq!(elected["upstream"], "pg1:5432");
    assert_eq!(elected["primary_before"], "pg0:5432");
    assert_eq!(elected["newest_timeline"], 2);
    assert_eq!(elected["now"]["system_identifier"], "7");
    assert_eq!(elected["epoch"], bench.topology().epoch().0);
}

// Sequences that nobody thought of.

#[derive(Debug, Clone)]
enum Move {
    Sees { index: u32, timeline: u32, in_recovery: bool, foreign: bool },
    Fails { index: u32, error: ObserveError },
    Commits { index: u32 },
    Patroni(PatroniAnswer),
    Moved { index: u32 },
    Hint { index: u32 },
    Reload { mask: u8 },
    Passes { ms: u32 },
}

fn moves() -> impl Strategy<Value = Move> {
    let index = 0_u32..4;
    let answers = prop_oneof![
        (0_u32..4).prop_map(|id| PatroniAnswer::Confirmed(UpstreamId(id))),
        (0_u32..4).prop_map(|id| PatroniAnswer::Named(UpstreamId(id))),
        Just(PatroniAnswer::Nobody),
        Just(PatroniAnswer::Unreachable),
    ];
    let errors = prop_oneof![
        Just(ObserveError::Unreachable),
        Just(ObserveError::Missing),
        Just(ObserveError::NotReady),
        Just(ObserveError::Silent),
        Just(ObserveError::Denied),
    ];
    prop_oneof![
        10 => (index.clone(), 1_u32..5, any::<bool>(), prop::bool::weighted(0.05))
            .prop_map(|(index, timeline, in_recovery, foreign)| Move::Sees { index, timeline, in_recovery, foreign }),
        4 => (index.clone(), errors).prop_map(|(index, error)| Move::Fails { index, error }),
        4 => index.clone().prop_map(|index| Move::Commits { index }),
        1 => answers.prop_map(Move::Patroni),
        1 => index.clone().prop_map(|index| Move::Moved { index }),
        1 => index.prop_map(|index| Move::Hint { index }),
        1 => (1_u8..16).prop_map(|mask| Move::Reload { mask }),
        6 => (1_u32..1500).prop_map(|ms| Move::Passes { ms }),
    ]
}

fn apply(bench: &mut Bench, one: &Move, roles: Roles) {
    match *one {
        Move::Sees { index, timeline, in_recovery, foreign } => {
            let seen = if in_recovery { standby(timeline) } else { primary(timeline) };
            let system = SystemIdentifier(if foreign { 8 } else { 7 });
            bench.sees(index, Observation { system, ..seen });
        }
        Move::Fails { index, error } => bench.fails(index, error),
        Move::Commits { index } => bench.commits(index),
        Move::Patroni(answer) => bench.step(Event::Patroni(answer)),
        Move::Moved { index } => bench.step(Event::Moved { upstream: UpstreamId(index) }),
        Move::Hint { index } => bench.step(Event::Hint { upstream: UpstreamId(index) }),
        Move::Reload { mask } => {
            let upstreams = (0..4).filter(|index| mask & (1 << index) != 0).map(address).collect();
            let rules = Rules { roles, settle: SETTLE };
            bench.step(Event::Reloaded { upstreams, force: Force::No, rules });
        }
        Move::Passes { ms } => {
            bench.after(MS * ms).step(Event::Tick);
        }
    }
}

/// What must hold after any event, whatever came before.
struct Invariants {
    epoch: Epoch,
    elections: Vec<Instant>,
    /// The newest timeline that was announced as a primary's, per cluster.
    newest: HashMap<Lineage, TimelineId>,
}

impl Invariants {
    fn check(&mut self, bench: &mut Bench) -> Result<(), TestCaseError> {
        let topology = bench.topology();
        let primaries = topology.upstreams().iter().filter(|view| view.role == Some(Role::Primary)).count();
        prop_assert!(primaries <= 1);
        prop_assert_eq!(primaries == 1, topology.primary().is_some());
        prop_assert!(topology.epoch() >= self.epoch);
        prop_assert!(topology.upstreams().iter().all(|view| view.epoch <= topology.epoch()));
        if let Some(view) = topology.primary() {
            prop_assert_eq!(view.fenced, None);
            prop_assert!(view.observed.is_some_and(|(seen, _)| !seen.in_recovery));
            prop_assert!(view.health.is_usable());
        } else {
            prop_assert!(topology.writes() != Writes::Open);
        }
        let elected = bench.decisions.iter().any(|decision| decision.what == What::PrimaryElected);
        prop_assert!(!elected || topology.epoch() > self.epoch, "an election raises the epoch");
        self.elections(bench)?;
        last_reader(bench)?;
        let again = bench.state.clone().step(Event::Tick, bench.now);
        prop_assert!(again.is_empty(), "not settled after one step: {again:?}");
        self.epoch = topology.epoch();
        bench.decisions.clear();
        Ok(())
    }

    fn elections(&mut self, bench: &Bench) -> Result<(), TestCaseError> {
        for decision in &bench.decisions {
            if let What::ClusterEstablished(_) = decision.what {
                self.newest.clear();
            }
            if decision.what != What::PrimaryElected {
                continue;
            }
            let seen = decision.evidence.now.unwrap();
            let newest = self.newest.entry(Lineage::of(&seen)).or_insert(seen.timeline);
            prop_assert!(seen.timeline >= *newest, "a primary of an older timeline than one before");
            *newest = seen.timeline;
            self.elections.push(decision.at);
        }
        // The first one of all is no change.
        let changes = self.elections.get(1..).unwrap_or_default();
        prop_assert!(changes.windows(2).all(|pair| pair[1] - pair[0] >= SETTLE), "changed within settle");
        Ok(())
    }
}

/// The last standby goes when it dies, is fenced, moves, is promoted or removed: not for being slow.
fn last_reader(bench: &Bench) -> Result<(), TestCaseError> {
    let readers = bench.topology().upstreams().iter().filter(|view| view.is_standby()).count();
    let slow = bench
        .decisions
        .iter()
        .any(|decision| matches!(decision.what, What::Ejected(Role::Standby)) && decision.why == Why::Silent);
    // Before it is known which cluster it is, nobody reads.
    let known = bench.state.memory().is_some();
    prop_assert!(!(slow && known && readers == 0), "the last standby was ejected for being slow");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_sequence_of_events_breaks_the_promises(
        sequence in prop::collection::vec(moves(), 1..150), by_patroni in any::<bool>(),
    ) {
        // Two primaries, an epoch that falls, a fenced server that serves, a change within settle, or a last standby
        // ejected for being slow would each fail an assertion above.
        let roles = if by_patroni { Roles::Patroni } else { Roles::Probe };
        let mut bench = Bench::with(Rules { roles, settle: SETTLE }, 4, None);
        let mut invariants = Invariants {
            epoch: Epoch(0), elections: Vec::new(), newest: HashMap::new(),
        };
        for one in &sequence {
            apply(&mut bench, one, roles);
            invariants.check(&mut bench)?;
        }
    }

    #[test]
    fn after_any_mess_a_cluster_that_is_well_is_served_within_its_time(
        sequence in prop::collection::vec(moves(), 1..80),
    ) {
        // A state that cannot be left by good answers would need a restart.
        let mut bench = Bench::new(4);
        for one in sequence.iter().filter(|one| !matches!(one, Move::Reload { .. })) {
            apply(&mut bench, one, Roles::Probe);
        }

        // One was promoted beyond all that was seen, and the others follow it.
        for _ in 0..((SETTLE + Duration::from_secs(2)).as_millis() / 200) {
            bench.after(MS * 200);
            bench.sees(0, primary(9));
            bench.commits(0);
            (1..4).for_each(|index| bench.sees(index, standby(9)));
        }

        prop_assert_eq!((bench.primary(), bench.writes()), (Some(0), Writes::Open));
        prop_assert_eq!(bench.readers(), [1, 2, 3]);
    }
}
