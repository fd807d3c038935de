//! Claims of the hand-over: nothing is lost, nobody is forgotten, whatever is dropped when.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use proptest::prelude::*;
use tidegate_layers::shed::{
    Ask, Checkout, Handoff, LaneConfig, Lease, Overloaded, Priority, QueueConfig, Reason,
};
use tokio::time::{Instant, advance};

const READ: usize = 0;
const WRITE: usize = 1;

fn lane(ceiling: usize) -> LaneConfig {
    LaneConfig { ceiling, queue: QueueConfig::default() }
}

fn stocked(ceilings: &[usize], items: u32) -> Handoff<u32> {
    let handoff = Handoff::new(ceilings.iter().map(|ceiling| lane(*ceiling)));
    for item in 0..items {
        handoff.put(item);
    }
    handoff
}

fn poll(checkout: &mut Checkout<u32>) -> Poll<Result<Lease<u32>, Overloaded>> {
    Pin::new(checkout).poll(&mut Context::from_waker(Waker::noop()))
}

fn take(handoff: &Handoff<u32>, lane: usize) -> Lease<u32> {
    handoff.try_checkout(lane, &Ask::default()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_returned_item_goes_to_the_waiter_and_not_to_a_newcomer() {
    // Between wake and poll a newcomer could take it; the beaten waiter would queue again, for ever under load.
    let handoff = stocked(&[2], 1);
    let lease = take(&handoff, READ);
    let mut waiter = handoff.checkout(READ, Ask::default());
    assert!(poll(&mut waiter).is_pending());

    drop(lease);

    assert_eq!(handoff.try_checkout(READ, &Ask::default()).unwrap_err().reason, Reason::Limit);
    assert!(matches!(poll(&mut waiter), Poll::Ready(Ok(lease)) if *lease == 0));
}

#[tokio::test(start_paused = true)]
async fn items_put_back_unused_keep_their_order_and_are_lent_last() {
    // Whoever looks at idle items would make the coldest the next to be lent, so that none of them ever gets old.
    let handoff = stocked(&[5], 4);
    let unused = handoff.take_idle(|item| *item < 3);
    handoff.put(4);

    handoff.put_unused(unused);

    let lent: Vec<_> = (0..5).map(|_| take(&handoff, READ)).collect();
    assert_eq!(lent.iter().map(|lease| **lease).collect::<Vec<_>>(), [4, 3, 2, 1, 0]);
}

#[tokio::test(start_paused = true)]
async fn an_item_put_back_unused_goes_to_the_waiter() {
    // The waiter came while the item was looked at: it would wait beside an idle item.
    let handoff = stocked(&[1], 1);
    let unused = handoff.take_idle(|_| true);
    let mut waiter = handoff.checkout(READ, Ask::default());
    assert!(poll(&mut waiter).is_pending());

    handoff.put_unused(unused);

    assert!(poll(&mut waiter).is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_waiter_dropped_after_the_hand_over_passes_the_item_on() {
    // The item would be in nobody's hands: lost, with its permit.
    let handoff = stocked(&[1], 1);
    let lease = take(&handoff, READ);
    let mut first = handoff.checkout(READ, Ask::default());
    let mut second = handoff.checkout(READ, Ask::default());
    assert!(poll(&mut first).is_pending() && poll(&mut second).is_pending());

    drop(lease);
    drop(first);

    assert!(poll(&mut second).is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_waiter_dropped_before_the_hand_over_leaves_at_once() {
    // A dead waiter at the head would swallow the next item.
    let handoff = stocked(&[1], 1);
    let lease = take(&handoff, READ);
    let mut waiter = handoff.checkout(READ, Ask::default());
    assert!(poll(&mut waiter).is_pending());

    drop(waiter);

    assert_eq!(handoff.stats(READ).unwrap().waiting, 0);
    drop(lease);
    assert_eq!(handoff.idle(), 1);
}

#[tokio::test(start_paused = true)]
async fn of_idle_items_the_warmest_goes_first_unless_another_is_preferred() {
    // The oldest first would keep every item of a burst in use, and cold; a preference must not refuse.
    let handoff = stocked(&[4], 4);

    let by = |wanted: u32| {
        *handoff.try_checkout_by(READ, &Ask::default(), Instant::now(), |item| *item == wanted).unwrap()
    };

    assert_eq!(*take(&handoff, READ), 3);
    assert_eq!(by(1), 1);
    assert_eq!(*take(&handoff, READ), 1, "the last returned");
    assert_eq!(by(77), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stuck_lane_cannot_take_the_items_of_another() {
    // One limit for both would let three stuck writes leave nothing to read with.
    let handoff = stocked(&[4, 3], 4);
    let stuck = [(); 3].map(|()| take(&handoff, WRITE));
    let mut write = handoff.checkout(WRITE, Ask::default());

    assert!(poll(&mut write).is_pending());
    let read = take(&handoff, READ);
    drop(read);
    assert!(poll(&mut write).is_pending(), "an idle item must not lift the ceiling of a lane");
    drop(stuck);
    assert!(poll(&mut write).is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_ceiling_of_its_own_holds_for_a_request_that_had_to_wait_for_an_item() {
    // While no item is idle everything waits for a moment: batch work that is to have a part of the lane would take
    // all of it. Left in the queue until there are fewer, it would hold up those behind it.
    let handoff = stocked(&[4], 0);
    let capped = Ask { ceiling: Some(2), ..Ask::default() };
    let mut waiting: Vec<_> = (0..4).map(|_| handoff.checkout(READ, capped)).collect();
    waiting.push(handoff.checkout(READ, Ask::default()));
    assert!(waiting.iter_mut().all(|checkout| poll(checkout).is_pending()));

    (0..4).for_each(|item| handoff.put(item));

    let answers: Vec<_> = waiting.iter_mut().map(poll).collect();
    let refused = |answer: &Poll<Result<Lease<u32>, Overloaded>>| match answer {
        Poll::Ready(Err(refusal)) => Some(refusal.reason),
        Poll::Ready(Ok(_)) | Poll::Pending => None,
    };
    assert_eq!([2, 3].map(|waiter| refused(&answers[waiter])), [Some(Reason::Priority); 2]);
    assert!([0, 1, 4].into_iter().all(|waiter| matches!(answers[waiter], Poll::Ready(Ok(_)))));
    assert_eq!((handoff.stats(READ).unwrap().waiting, handoff.idle()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_loss_counts_at_once_and_is_not_made_up_for_by_what_ends_well_afterwards() {
    // Each transaction that an overload breaks is rolled back in no time: the limit would never learn of it. And an
    // item that is given up on, or kept for hours, comes back when nobody wants to know any more.
    let handoff = stocked(&[10], 10);
    let limit = || handoff.stats(READ).unwrap().limit;
    let mut leases: Vec<_> = (0..10).map(|_| take(&handoff, READ)).collect();

    for lease in &mut leases {
        lease.fared_badly(Instant::now());
    }
    assert_eq!(limit(), 7);

    advance(Duration::from_secs(1)).await;
    leases.iter_mut().for_each(Lease::fared_well);
    drop(leases);
    assert_eq!(limit(), 7);
}

#[tokio::test(start_paused = true)]
async fn an_item_given_up_on_stays_charged_until_it_is_known_to_be_gone() {
    // Freed at once, each abandoned connection would be replaced, and the service would hold more than agreed.
    let handoff = stocked(&[2, 1], 2);
    let (item, charge) = take(&handoff, WRITE).detach();
    assert!(item.is_some());
    assert_eq!(handoff.try_checkout(WRITE, &Ask::default()).unwrap_err().reason, Reason::Limit);

    drop(charge);

    assert_eq!(handoff.stats(WRITE).unwrap().in_flight, 0);
    assert_eq!(handoff.idle(), 1, "the item itself must not come back");
    drop(take(&handoff, WRITE));
}

#[tokio::test(start_paused = true)]
async fn it_says_how_many_items_it_could_use_and_hands_over_those_that_come() {
    // Too few and waiters wait for ever; too many and a burst opens connections that nobody uses.
    let handoff = stocked(&[3], 0);
    let mut waiters: Vec<_> = (0..5).map(|_| handoff.checkout(READ, Ask::default())).collect();
    for waiter in &mut waiters {
        assert!(poll(waiter).is_pending());
    }
    assert_eq!(handoff.wanted(), 3);

    handoff.put(7);

    assert_eq!(handoff.wanted(), 2);
    assert!(matches!(poll(&mut waiters[0]), Poll::Ready(Ok(lease)) if *lease == 7));
}

#[tokio::test(start_paused = true)]
async fn a_sweep_wakes_those_it_refuses() {
    // Refused without a wake-up, a task would sleep on although its answer is there.
    let handoff = stocked(&[1], 0);
    let waiting = tokio::spawn(handoff.checkout(READ, Ask::default()));
    tokio::task::yield_now().await;
    advance(Duration::from_secs(1)).await;

    handoff.sweep(Instant::now());

    assert_eq!(waiting.await.unwrap().unwrap_err().reason, Reason::QueueTimeout);
}

#[tokio::test(start_paused = true)]
async fn the_ramp_bounds_what_is_in_flight_and_lifting_it_serves_who_waits() {
    // A limit that grows without serving anybody leaves waiters until the next return.
    let handoff = stocked(&[4], 4);
    handoff.set_ramp(READ, Some(1));
    let _first = take(&handoff, READ);
    let mut second = handoff.checkout(READ, Ask::default());
    assert!(poll(&mut second).is_pending());

    handoff.set_ramp(READ, None);

    assert!(poll(&mut second).is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_sweep_serves_those_whose_share_no_longer_binds() {
    // No item comes back that could wake them: they would wait beside an idle one.
    let queue = QueueConfig { wait_max: Duration::from_secs(5), ..QueueConfig::default() };
    let handoff = Handoff::new([LaneConfig { ceiling: 2, queue }]);
    (0..2).for_each(|item| handoff.put(item));
    let taken = [(); 2].map(|()| take(&handoff, READ));
    let ask = |priority| Ask { priority, ..Ask::default() };
    let mut important = handoff.checkout(READ, ask(Priority::Critical));
    let mut batch = handoff.checkout(READ, ask(Priority::Sheddable));
    assert!(poll(&mut important).is_pending() && poll(&mut batch).is_pending());
    advance(Duration::from_millis(201)).await;
    drop(taken);
    let _lease = poll(&mut important);
    assert!(poll(&mut batch).is_pending(), "one of two is the share of sheddable work");

    advance(Duration::from_millis(1001)).await;
    handoff.sweep(Instant::now());

    assert!(poll(&mut batch).is_ready());
}

/// What became of one request under load.
struct Served {
    priority: Priority,
    waited: Duration,
    result: Result<(), Reason>,
}

/// Offers `per_ms` requests each millisecond, every tenth of them critical, to ten permits of 10 ms each (one
/// request per millisecond is the capacity).
async fn load(handoff: &Handoff<u32>, per_ms: usize, lasts_ms: usize) -> Vec<Served> {
    let mut tasks = Vec::new();
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    for ms in 0..lasts_ms {
        ticks.tick().await;
        for n in 0..per_ms {
            let critical = (ms * per_ms + n).is_multiple_of(10);
            let priority = if critical { Priority::Critical } else { Priority::Sheddable };
            let handoff = handoff.clone();
            tasks.push(tokio::spawn(async move {
                let start = Instant::now();
                let lease = handoff.checkout(READ, Ask { priority, ..Ask::default() }).await;
                let waited = start.elapsed();
                if lease.is_ok() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Served { priority, waited, result: lease.map(drop).map_err(|refusal| refusal.reason) }
            }));
        }
        if ms % 10 == 0 {
            handoff.sweep(Instant::now());
        }
    }
    let sweeper = handoff.clone();
    let sweeping = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(10)).await;
            sweeper.sweep(Instant::now());
        }
    });
    let mut served = Vec::new();
    for task in tasks {
        served.push(task.await.unwrap());
    }
    sweeping.abort();
    served
}

#[tokio::test(start_paused = true)]
async fn three_times_the_load_costs_no_goodput_and_no_critical_request() {
    // A queue without bounds serves only those who have given up; a shedder that sheds too much serves too few.
    let handoff = stocked(&[10], 10);

    let burst = load(&handoff, 3, 5000).await;

    let goodput = burst.iter().filter(|served| served.result.is_ok()).count();
    assert!(goodput >= 4500, "{goodput} of a capacity of 5000");
    let longest = burst.iter().map(|served| served.waited).max().unwrap();
    assert!(longest <= Duration::from_millis(1011), "waited {longest:?}");
    let critical: Vec<_> = burst.iter().filter(|served| served.priority == Priority::Critical).collect();
    assert!(critical.iter().all(|served| served.result.is_ok()));
    let slowest = critical.iter().map(|served| served.waited).max().unwrap();
    assert!(slowest <= Duration::from_millis(20), "a critical request waited {slowest:?}");

    // After the burst everything is as before: half the capacity is served without a wait.
    let after = load(&handoff, 1, 1000).await;
    assert!(after.iter().all(|served| served.result.is_ok() && served.waited <= Duration::from_millis(10)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn threads_that_share_it_lose_nothing_and_never_exceed_the_ceiling() {
    // A place freed in one thread and answered in another would hand one waiter's item to a stranger, or nobody.
    let handoff = stocked(&[3, 2], 4);
    let in_use = std::sync::Arc::new([const { std::sync::atomic::AtomicUsize::new(0) }; 2]);
    let tasks: Vec<_> = (0..16_usize)
        .map(|task| {
            let (handoff, in_use) = (handoff.clone(), in_use.clone());
            tokio::spawn(async move {
                let lane = task % 2;
                for round in 0..500_usize {
                    let checkout = handoff.checkout(lane, Ask::default());
                    if (round + task) % 7 == 0 {
                        let _ = tokio::time::timeout(Duration::from_micros(50), checkout).await;
                        continue;
                    }
                    let lease = checkout.await.unwrap();
                    let before = in_use[lane].fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    assert!(before < [3, 2][lane], "the ceiling was exceeded");
                    tokio::task::yield_now().await;
                    in_use[lane].fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    drop(lease);
                }
            })
        })
        .collect();

    for task in tasks {
        task.await.unwrap();
    }

    assert_eq!(handoff.idle(), 4);
    for lane in [READ, WRITE] {
        let stats = handoff.stats(lane).unwrap();
        assert_eq!((stats.in_flight, stats.waiting), (0, 0));
    }
}

#[derive(Debug, Clone)]
enum Step {
    Ask { lane: usize, priority: usize, budget_ms: u64 },
    Poll(usize),
    Abandon(usize),
    Return(usize),
    Discard(usize),
    Detach(usize),
    Put,
    Ramp { lane: usize, ramp: Option<usize> },
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let index = 0..32_usize;
    prop_oneof![
        6 => (0..2_usize, 0..4_usize, 1..2000_u64)
            .prop_map(|(lane, priority, budget_ms)| Step::Ask { lane, priority, budget_ms }),
        3 => index.clone().prop_map(Step::Poll),
        2 => index.clone().prop_map(Step::Abandon),
        5 => index.clone().prop_map(Step::Return),
        1 => index.clone().prop_map(Step::Discard),
        1 => index.prop_map(Step::Detach),
        2 => Just(Step::Put),
        1 => (0..2_usize, proptest::option::of(1..6_usize)).prop_map(|(lane, ramp)| Step::Ramp { lane, ramp }),
        3 => (1..300_u64).prop_map(Step::Pass),
    ]
}

/// What a test knows beside the [`Handoff`] itself.
struct Model {
    handoff: Handoff<u32>,
    waiting: Vec<(Instant, usize, Checkout<u32>)>,
    leases: Vec<Lease<u32>>,
    charges: Vec<tidegate_layers::shed::Charge<u32>>,
    items: usize,
}

impl Model {
    async fn apply(&mut self, step: Step) {
        match step {
            Step::Ask { lane, priority, budget_ms } => {
                let due = Instant::now() + Duration::from_millis(budget_ms);
                let ask = Ask {
                    priority: Priority::ALL[priority],
                    deadline: Some(due),
                    ceiling: None,
                    wait_max: None,
                };
                let mut checkout = self.handoff.checkout(lane, ask);
                let bound = due.min(Instant::now() + Duration::from_secs(1));
                match poll(&mut checkout) {
                    Poll::Ready(result) => self.leases.extend(result),
                    Poll::Pending => self.waiting.push((bound, lane, checkout)),
                }
            }
            Step::Poll(i) if i < self.waiting.len() => self.collect(i),
            Step::Abandon(i) if i < self.waiting.len() => drop(self.waiting.swap_remove(i)),
            Step::Return(i) if i < self.leases.len() => drop(self.leases.swap_remove(i)),
            Step::Discard(i) if i < self.leases.len() => {
                self.leases.swap_remove(i).discard();
                self.items -= 1;
            }
            Step::Detach(i) if i < self.leases.len() => {
                self.charges.push(self.leases.swap_remove(i).detach().1);
                self.items -= 1;
            }
            Step::Put => {
                self.handoff.put(0);
                self.items += 1;
            }
            Step::Ramp { lane, ramp } => self.handoff.set_ramp(lane, ramp),
            Step::Pass(ms) => {
                advance(Duration::from_millis(ms)).await;
                self.handoff.sweep(Instant::now());
            }
            Step::Poll(_) | Step::Abandon(_) | Step::Return(_) | Step::Discard(_) | Step::Detach(_) => {}
        }
    }

    fn collect(&mut self, i: usize) {
        if let Poll::Ready(result) = poll(&mut self.waiting[i].2) {
            drop(self.waiting.swap_remove(i));
            self.leases.extend(result);
        }
    }

    /// Lets every waiter take its answer, then compares.
    fn check(&mut self) {
        for i in (0..self.waiting.len()).rev() {
            self.collect(i);
        }
        let now = Instant::now();
        assert!(self.waiting.iter().all(|(bound, ..)| *bound > now), "a waiter outstayed its bound");
        assert_eq!(self.handoff.idle() + self.leases.len(), self.items, "an item was lost or made up");
        let stats = [READ, WRITE].map(|lane| self.handoff.stats(lane).unwrap());
        let in_flight: usize = stats.iter().map(|stats| stats.in_flight).sum();
        assert_eq!(in_flight, self.leases.len() + self.charges.len(), "a permit was lost or made up");
        for (lane, ceiling) in [(READ, 6), (WRITE, 3)] {
            assert!(stats[lane].in_flight <= ceiling, "a ceiling was exceeded");
            assert!(stats[lane].waiting <= 8, "a queue outgrew its bound");
            let known = self.waiting.iter().filter(|(_, waits_in, _)| *waits_in == lane).count();
            assert_eq!(stats[lane].waiting, known, "a waiter was forgotten");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn nothing_is_lost_and_bounds_hold_whatever_happens(steps in proptest::collection::vec(step(), 1..150)) {
        // Each assertion of `check` names what would be broken.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
        runtime.block_on(async {
            let queue = QueueConfig { queue_max: 8, ..QueueConfig::default() };
            let lanes = [LaneConfig { ceiling: 6, queue }, LaneConfig { ceiling: 3, queue }];
            let handoff = Handoff::new(lanes);
            let (waiting, leases, charges) = (Vec::new(), Vec::new(), Vec::new());
            let mut model = Model { handoff, waiting, leases, charges, items: 0 };
            for step in steps {
                model.apply(step).await;
                model.check();
            }
            // Nobody starves: once all bounds have passed, one sweep answers everybody.
            advance(Duration::from_secs(2)).await;
            model.handoff.sweep(Instant::now());
            model.check();
            assert!(model.waiting.is_empty(), "a waiter starves");
        });
    }
}

fn poll_move(lease: &mut Lease<u32>) -> Poll<Result<(), Overloaded>> {
    lease.poll_move(WRITE, &mut Context::from_waker(Waker::noop()))
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_moves_is_charged_to_one_lane_at_a_time() {
    // Charged to both it would take two places; to neither, none, and the bulkhead would leak.
    let handoff = stocked(&[2, 1], 2);
    let mut lease = take(&handoff, READ);

    assert!(matches!(poll_move(&mut lease), Poll::Ready(Ok(()))));

    let in_flight = |lane| handoff.stats(lane).unwrap().in_flight;
    assert_eq!((lease.lane(), in_flight(READ), in_flight(WRITE)), (WRITE, 0, 1));
    drop(lease);
    assert_eq!((in_flight(READ), in_flight(WRITE), handoff.idle()), (0, 0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_lease_waits_for_a_full_lane_and_goes_before_who_waits_for_an_item() {
    // It holds an item that others need: the sooner it goes on, the sooner that comes back.
    let handoff = stocked(&[2, 1], 2);
    let writer = take(&handoff, WRITE);
    let mut lease = take(&handoff, READ);
    let mut newcomer = handoff.checkout(WRITE, Ask::default());
    assert!(poll(&mut newcomer).is_pending());
    assert!(poll_move(&mut lease).is_pending());

    drop(writer);

    assert!(matches!(poll_move(&mut lease), Poll::Ready(Ok(()))));
    assert!(poll(&mut newcomer).is_pending());
    drop(lease);
    assert!(poll(&mut newcomer).is_ready());
}

#[tokio::test]
async fn a_sweep_says_that_somebody_waits_also_of_a_lease_that_moves() {
    // Whoever sweeps would look less often, and it would wait longer than others for what lifts its lane's bound.
    let handoff = stocked(&[2, 1], 2);
    assert!(!handoff.sweep(Instant::now()));
    let _full = take(&handoff, WRITE);
    let mut lease = take(&handoff, READ);

    assert!(poll_move(&mut lease).is_pending());

    assert!(handoff.sweep(Instant::now()));
    lease.stay();
    assert!(!handoff.sweep(Instant::now()));
}

#[tokio::test(start_paused = true)]
async fn a_move_that_is_given_up_or_flushed_leaves_the_lease_where_it_was() {
    // The permit of the new lane would be lost, for good.
    let handoff = stocked(&[3, 1], 3);
    let writer = take(&handoff, WRITE);
    let mut first = take(&handoff, READ);
    let mut second = take(&handoff, READ);
    assert!(poll_move(&mut first).is_pending() && poll_move(&mut second).is_pending());

    first.stay();
    drop(writer);
    second.stay();
    let in_flight = |lane| handoff.stats(lane).unwrap().in_flight;
    assert_eq!((in_flight(READ), in_flight(WRITE)), (2, 0));

    let writer = take(&handoff, WRITE);
    assert!(poll_move(&mut first).is_pending());
    handoff.flush(WRITE);
    assert!(matches!(poll_move(&mut first), Poll::Ready(Err(refusal)) if refusal.reason == Reason::Flushed));
    drop(writer);
    assert_eq!((in_flight(READ), in_flight(WRITE)), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_moves_is_not_shed_and_is_the_first_to_be_served() {
    // It is in the middle of something: refused, all that it has done would be done in vain, and done again.
    let handoff = stocked(&[3, 1], 3);
    let writer = take(&handoff, WRITE);
    let mut lease = take(&handoff, READ);
    let ask = |priority| Ask { priority, ..Ask::default() };
    let mut waiting = [Priority::Sheddable, Priority::Critical, Priority::CriticalPlus]
        .map(|priority| handoff.checkout(WRITE, ask(priority)));
    assert!(waiting.iter_mut().all(|checkout| poll(checkout).is_pending()));
    assert!(poll_move(&mut lease).is_pending());

    for _ in 0..100 {
        advance(Duration::from_millis(100)).await;
        handoff.sweep(Instant::now());
    }

    assert!(waiting.iter_mut().all(|checkout| matches!(poll(checkout), Poll::Ready(Err(_)))), "all are shed");
    let mut newest = handoff.checkout(WRITE, ask(Priority::CriticalPlus));
    assert!(poll(&mut newest).is_pending());
    drop(writer);
    assert!(poll(&mut newest).is_pending());
    assert!(matches!(poll_move(&mut lease), Poll::Ready(Ok(()))));
}

#[tokio::test(start_paused = true)]
async fn leases_that_wait_for_a_lane_know_how_many_go_before_them() {
    // Whoever bounds their number would refuse the wrong ones, or all at once.
    let handoff = stocked(&[4, 1], 4);
    let writer = take(&handoff, WRITE);
    let [mut first, mut second, mut third] = [READ; 3].map(|lane| take(&handoff, lane));
    assert_eq!(first.moves_before(), None);
    for lease in [&mut first, &mut second, &mut third] {
        assert!(poll_move(lease).is_pending());
    }
    let before = |leases: [&Lease<u32>; 3]| leases.map(Lease::moves_before);
    assert_eq!(before([&first, &second, &third]), [Some(0), Some(1), Some(2)]);

    second.stay();
    assert_eq!(before([&first, &second, &third]), [Some(0), None, Some(1)]);

    drop(writer);
    assert_eq!(third.moves_before(), Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_pause_lets_leases_move_and_nobody_in() {
    // Whoever pauses waits for those to end that are under way; one that has to move first would never end.
    let handoff = stocked(&[3, 2], 3);
    let writer = take(&handoff, WRITE);
    let mut waits = take(&handoff, READ);
    let mut moves = take(&handoff, READ);
    handoff.set_ramp(READ, Some(0));
    handoff.set_ramp(WRITE, Some(0));

    assert!(matches!(poll_move(&mut moves), Poll::Ready(Ok(()))));
    assert!(poll_move(&mut waits).is_pending(), "the ceiling still holds");
    drop(writer);

    assert!(matches!(poll_move(&mut waits), Poll::Ready(Ok(()))));
    for lane in [READ, WRITE] {
        assert_eq!(handoff.try_checkout(lane, &Ask::default()).unwrap_err().reason, Reason::Limit);
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_an_item_can_be_refused_without_those_that_have_one() {
    // That no new item can be had is nothing to a lease that only changes lanes.
    let handoff = stocked(&[2, 1], 2);
    let writer = take(&handoff, WRITE);
    let mut lease = take(&handoff, READ);
    let mut newcomer = handoff.checkout(WRITE, Ask::default());
    assert!(poll(&mut newcomer).is_pending() && poll_move(&mut lease).is_pending());

    handoff.flush_queue(WRITE);

    assert!(matches!(poll(&mut newcomer), Poll::Ready(Err(refusal)) if refusal.reason == Reason::Flushed));
    assert!(poll_move(&mut lease).is_pending());
    drop(writer);
    assert!(matches!(poll_move(&mut lease), Poll::Ready(Ok(()))));
}
