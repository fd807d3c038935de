//! Claims of the breaker's machine, as tables of what it sees. Time is an argument here.

use std::time::Duration;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tidegate_layers::breaker::{
    BreakerConfig, Change, Counts, Event, Evidence, Force, Machine, Phase, ProbeOutcome, Scan, Session, Sight,
};
use tokio::time::Instant;

const MS: Duration = Duration::from_millis(1);
const TICK: Duration = Duration::from_millis(100);

/// A machine with its clock. Zero jitter, so that times are exact.
struct Bench {
    machine: Machine<&'static str>,
    now: Instant,
    random: SmallRng,
}

impl Bench {
    fn new() -> Self {
        let config = BreakerConfig { jitter: 0, ..BreakerConfig::default() };
        let now = Instant::now();
        Self { machine: Machine::new(config, now), now, random: SmallRng::seed_from_u64(1) }
    }

    fn on(&mut self, event: Event<&'static str>) -> Option<Change<&'static str>> {
        self.machine.on(event, self.now, &mut self.random)
    }

    /// Lets one tick pass in which this is seen.
    fn see(&mut self, sight: Sight) -> Phase {
        self.now += TICK;
        self.on(Event::Tick(sight));
        self.machine.phase()
    }

    fn probe(&mut self, outcome: ProbeOutcome) -> Phase {
        self.probe_on(Session::Fresh, outcome)
    }

    fn probe_on(&mut self, session: Session, outcome: ProbeOutcome) -> Phase {
        self.on(Event::Probed { started: self.now, session, outcome });
        self.machine.phase()
    }

    /// A stall, up to the trip.
    fn trip(&mut self) {
        self.see(stuck(1, 1));
        self.probe(ProbeOutcome::Timeout);
        assert_eq!(self.see(stuck(1, 1)), Phase::Open);
    }

    /// Ticks until the phase is another one.
    fn wait(&mut self) -> (Phase, Duration) {
        let (phase, start) = (self.machine.phase(), self.now);
        while self.machine.phase() == phase {
            self.see(calm());
        }
        (self.machine.phase(), self.now - start)
    }

    /// From open to the ramp.
    fn recover(&mut self) {
        assert_eq!(self.wait().0, Phase::HalfOpen);
        for _ in 0..3 {
            self.probe(ProbeOutcome::Ok);
            self.now += 500 * MS;
        }
        assert_eq!(self.machine.phase(), Phase::Ramp { step: 0 });
    }
}

fn calm() -> Sight {
    Sight { stuck_after: Duration::from_secs(1), ..Sight::default() }
}

fn stuck(stuck: usize, in_flight: usize) -> Sight {
    let scan = Scan { in_flight, suspect: stuck, stuck, oldest: Duration::from_secs(1) };
    Sight { scan, ..calm() }
}

#[test]
fn one_stuck_call_and_a_bad_probe_are_enough() {
    // A service that is called once a second never has three calls in flight when it hangs.
    let mut bench = Bench::new();
    assert_eq!(bench.see(stuck(1, 1)), Phase::Suspect);

    assert_eq!(bench.probe(ProbeOutcome::Timeout), Phase::Suspect);

    assert_eq!(bench.see(stuck(1, 1)), Phase::Open);
}

#[test]
fn a_good_probe_vetoes_everything_but_proof_and_order() {
    // A storm of calls that wait for one lock is not an outage; opening would make it one.
    let mut bench = Bench::new();
    let storm =
        Sight { failures_in_a_row: 50, recent: Counts { ok: 0, slow: 50, failed: 50 }, ..stuck(40, 40) };
    bench.see(storm);

    for _ in 0..1000 {
        bench.probe(ProbeOutcome::Ok);
        for _ in 0..5 {
            assert_eq!(bench.see(storm), Phase::Suspect);
        }
    }

    bench.on(Event::Reported("read_only"));
    assert_eq!(bench.machine.phase(), Phase::Open);
    assert_eq!(bench.machine.cause(), Some(&"read_only"));
}

#[test]
fn nothing_trips_before_the_probe_has_answered() {
    // A verdict from before the suspicion, good or bad, is about another service than the one seen now.
    let mut bench = Bench::new();
    bench.probe(ProbeOutcome::Inconclusive);

    for _ in 0..5 {
        assert_eq!(bench.see(stuck(40, 40)), Phase::Suspect);
    }
}

#[test]
fn a_call_that_finished_meanwhile_vetoes_a_trip_on_stuck_calls() {
    // A probe can fail for its own reasons; while calls get through the service is not gone.
    let mut bench = Bench::new();
    let progress = Sight { since_ok: Some(500 * MS), ..stuck(10, 12) };
    bench.see(progress);
    bench.probe(ProbeOutcome::Timeout);
    bench.probe(ProbeOutcome::Timeout);

    assert_eq!(bench.see(progress), Phase::Suspect);
    assert_eq!(bench.see(Sight { since_ok: Some(1000 * MS), ..progress }), Phase::Open);
}

#[test]
fn calls_that_finish_hide_no_outage_that_four_probes_in_a_row_have_met() {
    // Some calls do not need what all others wait for, and finish for ever. Nor are failed probes an outage as long as nobody hangs.
    let mut bench = Bench::new();
    let progress = Sight { since_ok: Some(50 * MS), ..stuck(1, 12) };
    let slow = Sight { scan: Scan { stuck: 0, ..progress.scan }, ..progress };
    bench.see(progress);
    for _ in 0..3 {
        bench.probe(ProbeOutcome::Timeout);
        assert_eq!(bench.see(progress), Phase::Suspect);
    }
    bench.probe(ProbeOutcome::Timeout);
    assert_eq!(bench.see(slow), Phase::Suspect);

    assert_eq!(bench.see(progress), Phase::Open);
}

#[test]
fn where_probes_cannot_tell_it_takes_most_of_the_calls_on_two_ticks() {
    // Without a second opinion one slow call, or one bad moment, must not be enough.
    for (stuck_calls, in_flight, trips) in [(2, 2, false), (3, 7, false), (3, 3, true), (4, 8, true)] {
        let mut bench = Bench::new();
        bench.see(calm());
        let sight = stuck(stuck_calls, in_flight);
        bench.see(Sight { scan: Scan { stuck: 0, ..sight.scan }, ..sight });
        bench.probe(ProbeOutcome::Inconclusive);

        assert_eq!(bench.see(sight), Phase::Suspect, "first tick");
        assert_eq!(bench.see(sight) == Phase::Open, trips, "{stuck_calls} of {in_flight}");
    }
}

#[test]
fn failures_are_confirmed_by_a_probe() {
    // Rate and row are about completed calls: with a bad probe they trip, alone they only raise suspicion.
    let row = Sight { failures_in_a_row: 5, ..calm() };
    let rate = Sight { recent: Counts { ok: 10, slow: 4, failed: 6 }, since_ok: Some(MS), ..calm() };
    for sight in [row, rate] {
        let mut bench = Bench::new();
        assert_eq!(bench.see(sight), Phase::Suspect);
        assert_eq!(bench.see(sight), Phase::Suspect);

        bench.probe(ProbeOutcome::Failed);

        assert_eq!(bench.see(sight), Phase::Open);
    }
}

#[test]
fn failures_before_anybody_could_be_asked_are_no_outage() {
    // Two hundred first logins at once on a busy machine time out, and nobody is there to log a probe in as. Seen:
    // a breaker that opened by itself, for no known cause.
    let row = Sight { failures_in_a_row: 200, recent: Counts { ok: 0, slow: 0, failed: 200 }, ..calm() };
    let mut bench = Bench::new();
    bench.see(row);
    for _ in 0..100 {
        bench.probe(ProbeOutcome::Unasked);
        assert_eq!(bench.see(row), Phase::Suspect);
    }

    bench.probe(ProbeOutcome::Failed);
    assert_eq!(bench.see(row), Phase::Open);
}

#[test]
fn too_few_calls_have_no_rate() {
    // Four of eight is chance.
    let mut bench = Bench::new();

    let few = Sight { recent: Counts { ok: 9, slow: 0, failed: 10 }, ..calm() };

    assert_eq!(bench.see(few), Phase::Closed);
}

#[test]
fn an_idle_service_trips_on_two_bad_probes() {
    // Nobody would learn of an outage at night until the first user of the morning hangs.
    let mut bench = Bench::new();
    assert_eq!(bench.probe(ProbeOutcome::Timeout), Phase::Suspect);
    assert_eq!(bench.see(calm()), Phase::Suspect);
    bench.probe(ProbeOutcome::Failed);

    assert_eq!(bench.see(calm()), Phase::Open);
}

#[test]
fn a_suspicion_that_is_not_confirmed_is_cleared() {
    // Suspect for ever would probe and diagnose for ever.
    let mut bench = Bench::new();
    bench.see(stuck(1, 5));
    bench.probe(ProbeOutcome::Ok);

    assert_eq!(bench.see(calm()), Phase::Closed);
}

#[test]
fn half_open_wants_three_good_probes_over_a_second_one_of_them_fresh() {
    // Each condition alone lets something through: a lucky moment, a burst of luck, a listener that is gone.
    let cases = [
        (vec![Session::Fresh, Session::Kept], 1000, false),
        (vec![Session::Fresh, Session::Kept, Session::Kept], 400, false),
        (vec![Session::Kept, Session::Kept, Session::Kept], 500, false),
        (vec![Session::Kept, Session::Fresh, Session::Kept], 500, true),
    ];
    for (sessions, apart_ms, ramps) in cases {
        let mut bench = Bench::new();
        bench.trip();
        bench.wait();
        for session in &sessions {
            bench.probe_on(*session, ProbeOutcome::Ok);
            bench.now += apart_ms * MS;
        }
        let ramp = bench.machine.phase() == Phase::Ramp { step: 0 };
        assert_eq!(ramp, ramps, "{sessions:?}, {apart_ms} ms apart");
    }
}

#[test]
fn a_bad_probe_in_half_open_starts_the_count_again() {
    // Two good, one bad, one good is a service that comes and goes.
    let mut bench = Bench::new();
    bench.trip();
    bench.wait();
    let outcomes = [ProbeOutcome::Ok, ProbeOutcome::Ok, ProbeOutcome::Timeout, ProbeOutcome::Ok];

    for outcome in outcomes {
        assert_eq!(bench.probe(outcome), Phase::HalfOpen);
        bench.now += 500 * MS;
    }
}

#[test]
fn what_is_not_asked_because_nobody_wants_its_work_has_not_recovered() {
    // Seen: a lost primary was asked no more, and after a second its writes were let in again: "probes went well". It was
    // still gone.
    let mut bench = Bench::new();
    bench.trip();
    bench.wait();
    for _ in 0..20 {
        assert_eq!(bench.probe(ProbeOutcome::Unwanted), Phase::HalfOpen);
        bench.now += 500 * MS;
    }

    // Nor does it trip what was well.
    let mut idle = Bench::new();
    for _ in 0..20 {
        idle.probe(ProbeOutcome::Unwanted);
        assert_eq!(idle.see(calm()), Phase::Closed);
    }
}

#[test]
fn a_suspicion_that_was_wrong_leaves_no_cause_behind() {
    // Seen: for days after two seconds of a row lock a service that was well had the cause "lock" on all its pages.
    let mut bench = Bench::new();
    bench.see(Sight { scan: Scan { stuck: 0, ..stuck(1, 1).scan }, ..calm() });
    bench.on(Event::Diagnosed("lock"));
    bench.probe(ProbeOutcome::Ok);

    assert_eq!(bench.see(calm()), Phase::Closed);
    assert_eq!(bench.machine.cause(), None);
}

#[test]
fn what_is_expected_of_a_service_from_now_on_is_asked_for_at_once() {
    // A standby that is promoted was asked for writes seconds ago, in vain; whether it takes any is news.
    let mut bench = Bench::new();
    let due = |bench: &mut Bench| bench.machine.probe_due(None, bench.now, &mut bench.random).is_some();
    assert!(due(&mut bench));
    bench.now += TICK;
    assert!(!due(&mut bench));

    bench.on(Event::Expected);

    assert!(due(&mut bench));
}

#[test]
fn probes_that_could_not_tell_are_not_said_to_have_gone_well() {
    // Whoever reads it in the journal looks for what is wrong elsewhere.
    let evidence = |outcome| {
        let mut bench = Bench::new();
        bench.trip();
        bench.wait();
        let mut probes = (0..3).filter_map(|_| {
            bench.now += 500 * MS;
            bench.on(Event::Probed { started: bench.now, session: Session::Fresh, outcome })
        });
        probes.next().map(|change| (change.to, change.evidence))
    };

    assert_eq!(evidence(ProbeOutcome::Ok), Some((Phase::Ramp { step: 0 }, Evidence::ProbesGood)));
    assert_eq!(evidence(ProbeOutcome::Inconclusive), Some((Phase::Ramp { step: 0 }, Evidence::ProbesSilent)));
}

#[test]
fn the_ramp_doubles_each_second_and_then_the_breaker_is_closed() {
    // 10, 20, 40, 80 %: full after four seconds.
    let mut bench = Bench::new();
    bench.trip();
    bench.recover();
    bench.now -= 500 * MS;

    let steps = [(); 4].map(|()| bench.wait());

    let second = Duration::from_secs(1);
    let expected = [Phase::Ramp { step: 1 }, Phase::Ramp { step: 2 }, Phase::Ramp { step: 3 }, Phase::Closed];
    assert_eq!(steps, expected.map(|phase| (phase, second)));
}

#[test]
fn the_hold_doubles_with_each_relapse_up_to_its_bound_and_starts_again_after_quiet_minutes() {
    // A service that falls over each time traffic returns needs longer pauses, not the same one for ever.
    let mut bench = Bench::new();
    bench.trip();
    let mut holds = Vec::new();
    for _ in 0..7 {
        let (phase, hold) = bench.wait();
        assert_eq!(phase, Phase::HalfOpen);
        holds.push(hold.as_secs());
        for _ in 0..3 {
            bench.probe(ProbeOutcome::Ok);
            bench.now += 500 * MS;
        }
        bench.probe(ProbeOutcome::Timeout);
        assert_eq!(bench.see(stuck(1, 1)), Phase::Open, "any trip condition ends a ramp");
    }
    assert_eq!(holds, [1, 2, 4, 8, 16, 30, 30]);

    bench.recover();
    while bench.machine.phase() != Phase::Closed {
        bench.see(calm());
    }
    bench.now += Duration::from_mins(2);
    bench.trip();
    assert_eq!(bench.wait(), (Phase::HalfOpen, Duration::from_secs(1)));
}

#[test]
fn an_incident_after_the_service_has_worked_for_a_while_is_no_relapse() {
    // Seen: each stall of two seconds doubled the pause, though twelve seconds of full service lay between them. At the
    // sixth, writes were refused for half a minute.
    let hold_after = |served| {
        let mut bench = Bench::new();
        let mut hold = Duration::ZERO;
        for _ in 0..6 {
            bench.trip();
            hold = bench.wait().1;
            for _ in 0..3 {
                bench.probe(ProbeOutcome::Ok);
                bench.now += 500 * MS;
            }
            while bench.machine.phase() != Phase::Closed {
                bench.see(calm());
            }
            bench.now += served;
        }
        hold.as_secs()
    };

    assert_eq!(hold_after(Duration::from_secs(12)), 1);
    assert_eq!(hold_after(Duration::from_secs(1)), 30);
}

#[test]
fn a_long_outage_does_not_lengthen_the_hold() {
    // Recovery after an hour must be as quick as after a second: in half-open only probes wait.
    let mut bench = Bench::new();
    bench.trip();
    bench.wait();
    for _ in 0..7200 {
        bench.now += 500 * MS;
        assert_eq!(bench.probe(ProbeOutcome::Timeout), Phase::HalfOpen);
    }

    bench.probe(ProbeOutcome::Ok);
    bench.now += 500 * MS;
    bench.probe(ProbeOutcome::Ok);
    bench.now += 500 * MS;

    assert_eq!(bench.probe(ProbeOutcome::Ok), Phase::Ramp { step: 0 });
}

#[test]
fn orders_hold_whatever_is_seen_and_coming_back_from_open_goes_through_probes() {
    // An operator who closed a breaker must not be overruled; one who reopens traffic still wants the ramp.
    let mut bench = Bench::new();
    bench.on(Event::Forced(Force::Closed));
    bench.on(Event::Reported("read_only"));
    bench.probe(ProbeOutcome::Timeout);
    assert_eq!(bench.see(stuck(9, 9)), Phase::ForcedClosed);

    bench.on(Event::Forced(Force::Open));
    bench.probe(ProbeOutcome::Ok);
    assert_eq!(bench.see(calm()), Phase::ForcedOpen);

    bench.on(Event::Forced(Force::Auto));
    assert_eq!(bench.machine.phase(), Phase::HalfOpen);
}

#[test]
fn the_cause_found_while_suspect_is_that_of_the_trip_and_a_late_one_is_told_after_it() {
    // A trip without its cause pages somebody who then has to find out by hand.
    let mut bench = Bench::new();
    bench.see(stuck(1, 1));
    assert_eq!(bench.on(Event::Diagnosed("storage")), None);
    bench.probe(ProbeOutcome::Timeout);
    bench.see(stuck(1, 1));
    assert_eq!(bench.machine.cause(), Some(&"storage"));

    let mut bench = Bench::new();
    bench.trip();
    assert_eq!(bench.machine.cause(), None);
    let told = bench.on(Event::Diagnosed("storage")).map(|change| (change.to, change.cause, change.evidence));
    assert_eq!(told, Some((Phase::Open, Some("storage"), Evidence::Diagnosed)));
}

#[test]
fn a_cause_from_an_earlier_suspicion_is_not_blamed_for_a_later_trip() {
    // A lock storm that goes over into a stall would be reported as a lock.
    let mut bench = Bench::new();
    bench.see(stuck(3, 40));
    bench.on(Event::Diagnosed("lock"));
    for _ in 0..100 {
        bench.probe(ProbeOutcome::Ok);
        bench.see(stuck(3, 40));
    }
    bench.probe(ProbeOutcome::Timeout);

    assert_eq!(bench.see(stuck(40, 40)), Phase::Open);
    assert_eq!(bench.machine.cause(), None);
}

#[test]
fn succeeding_traffic_spares_the_probe_while_closed_and_only_then() {
    // Probes cost the service; but in half-open there is no other witness.
    let mut bench = Bench::new();
    let due = |bench: &mut Bench, since_ok| {
        let (now, random) = (bench.now, &mut bench.random);
        bench.machine.probe_due(since_ok, now, random).is_some()
    };
    assert!(!due(&mut bench, Some(10 * MS)));
    assert!(!due(&mut bench, None), "the cadence holds all the same");
    bench.now += Duration::from_secs(5);
    assert!(due(&mut bench, None));

    bench.trip();
    bench.wait();
    assert!(due(&mut bench, Some(10 * MS)));
}

fn event() -> impl Strategy<Value = Event<&'static str>> {
    let outcome = prop_oneof![
        Just(ProbeOutcome::Ok),
        Just(ProbeOutcome::Timeout),
        Just(ProbeOutcome::Failed),
        Just(ProbeOutcome::Inconclusive),
        Just(ProbeOutcome::Unasked),
        Just(ProbeOutcome::Unwanted)
    ];
    let started = Instant::now();
    let probed = (outcome, any::<bool>()).prop_map(move |(outcome, fresh)| {
        let session = if fresh { Session::Fresh } else { Session::Kept };
        Event::Probed { started, session, outcome }
    });
    let sight = (0..10_usize, 0..10_usize, 0..10_u32, 0..40_u64, 0..3000_u64).prop_map(
        |(stuck_calls, others, failures_in_a_row, failed, since_ok)| Sight {
            failures_in_a_row,
            recent: Counts { ok: 20, slow: 0, failed },
            since_ok: Some(Duration::from_millis(since_ok)),
            ..stuck(stuck_calls, stuck_calls + others)
        },
    );
    prop_oneof![
        6 => sight.prop_map(Event::Tick),
        6 => probed,
        1 => Just(Event::Diagnosed("cause")),
        1 => Just(Event::Reported("proof")),
    ]
}

proptest! {
    #[test]
    fn traffic_returns_only_by_way_of_half_open_and_each_return_is_a_new_epoch(
        events in proptest::collection::vec((event(), 1..2000_u32), 1..300),
    ) {
        // A shortcut would send users to a service that nobody has asked; an old epoch would let stragglers in.
        let mut bench = Bench::new();
        for (event, pause) in events {
            bench.now += pause * MS;
            let (before, epoch) = (bench.machine.phase(), bench.machine.epoch());
            let change = bench.on(event);
            let after = bench.machine.phase();

            let legal = matches!(
                (before, after),
                (Phase::Closed, Phase::Suspect | Phase::Open)
                    | (Phase::Suspect, Phase::Closed | Phase::Open)
                    | (Phase::Open, Phase::HalfOpen)
                    | (Phase::HalfOpen, Phase::Ramp { step: 0 })
                    | (Phase::Ramp { .. }, Phase::Ramp { .. } | Phase::Closed | Phase::Open)
            );
            prop_assert!(before == after || legal, "{before:?} => {after:?}");
            prop_assert_eq!(bench.machine.epoch() > epoch, before.admits() != after.admits());
            if let Some(change) = change {
                prop_assert_eq!((change.from, change.to), (before, after));
            }
        }
    }
}
