//! Claims of the admission policy: bounds, order, priorities, `CoDel`. Time is an argument here.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use tidegate_layers::shed::{Admission, AdmitQueue, Ask, Fared, Overloaded, Priority, QueueConfig, Reason};
use tokio::time::Instant;

const MS: Duration = Duration::from_millis(1);

fn ask(priority: Priority) -> Ask {
    Ask { priority, ..Ask::default() }
}

/// A queue whose permits are all taken.
fn full(ceiling: usize, config: QueueConfig, now: Instant) -> AdmitQueue<u32> {
    let mut queue = AdmitQueue::new(ceiling, config);
    for _ in 0..ceiling {
        assert_eq!(queue.try_admit(&Ask::default(), now), Admission::Admitted);
    }
    queue
}

fn join(queue: &mut AdmitQueue<u32>, waiter: u32, priority: Priority, now: Instant) -> Option<u32> {
    queue.enqueue(waiter, &ask(priority), now).unwrap().evicted.map(|(evicted, _)| evicted)
}

/// One permit comes back and is given to the next, if any.
fn pass_on(queue: &mut AdmitQueue<u32>, now: Instant) -> Option<u32> {
    queue.release(Fared::Unknown);
    queue.next(now, &mut |_, _| {})
}

fn swept(queue: &mut AdmitQueue<u32>, now: Instant) -> Vec<(u32, Reason)> {
    let mut refused = Vec::new();
    queue.sweep(now, &mut |waiter, Overloaded { reason, .. }| refused.push((waiter, reason)));
    refused
}

fn refusal(admission: Admission) -> Option<Reason> {
    match admission {
        Admission::Refused(refusal) => Some(refusal.reason),
        Admission::Admitted | Admission::MustWait => None,
    }
}

#[test]
fn permits_are_handed_on_in_order_of_arrival() {
    // Taking the newest while nothing is overloaded would make the wait of the unlucky unbounded.
    let now = Instant::now();
    let mut queue = full(1, QueueConfig::default(), now);
    for waiter in 1..=3 {
        join(&mut queue, waiter, Priority::Critical, now);
    }

    assert_eq!([(); 4].map(|()| pass_on(&mut queue, now)), [Some(1), Some(2), Some(3), None]);
    assert_eq!(queue.in_flight(), 0);
}

#[test]
fn a_newcomer_does_not_overtake_those_who_wait() {
    // A free permit with waiters present exists between release and hand-over; a newcomer must not take it.
    let now = Instant::now();
    let mut queue = full(1, QueueConfig::default(), now);
    join(&mut queue, 1, Priority::Critical, now);
    queue.release(Fared::Unknown);

    assert_eq!(queue.try_admit(&ask(Priority::Critical), now), Admission::MustWait);
    assert_eq!(queue.try_admit(&ask(Priority::CriticalPlus), now), Admission::Admitted);
}

#[test]
fn important_waiters_go_first() {
    // If arrival alone decided, a backlog of batch work would stand before every user.
    let now = Instant::now();
    let mut queue = full(1, QueueConfig::default(), now);
    for (waiter, priority) in Priority::ALL.into_iter().rev().enumerate() {
        join(&mut queue, u32::try_from(waiter).unwrap(), priority, now);
    }

    assert_eq!([(); 4].map(|()| pass_on(&mut queue, now)), [Some(3), Some(2), Some(1), Some(0)]);
}

#[test]
fn the_queue_refuses_what_is_beyond_its_bound() {
    // An unbounded queue is memory and latency without end.
    let now = Instant::now();
    let config = QueueConfig { queue_max: 2, ..QueueConfig::default() };
    let mut queue = full(1, config, now);
    join(&mut queue, 1, Priority::CriticalPlus, now);
    join(&mut queue, 2, Priority::CriticalPlus, now);

    assert_eq!(refusal(queue.try_admit(&ask(Priority::CriticalPlus), now)), Some(Reason::QueueFull));
    let (given_back, refusal) = queue.enqueue(3, &ask(Priority::CriticalPlus), now).unwrap_err();
    assert_eq!((given_back, refusal.reason, queue.waiting()), (3, Reason::QueueFull, 2));
}

#[test]
fn without_a_queue_the_limit_is_the_reason() {
    // "Queue full" would send an operator looking for a queue that was never there.
    let now = Instant::now();
    let mut queue = full(1, QueueConfig { queue_max: 0, ..QueueConfig::default() }, now);

    assert_eq!(refusal(queue.try_admit(&Ask::default(), now)), Some(Reason::Limit));
}

#[test]
fn unimportant_work_leaves_room_in_the_queue_and_makes_way_in_a_full_one() {
    // Were the whole queue open to all, batch work arriving first would lock out every user.
    let now = Instant::now();
    let mut queue = full(1, QueueConfig { queue_max: 4, ..QueueConfig::default() }, now);
    join(&mut queue, 1, Priority::Sheddable, now);
    join(&mut queue, 2, Priority::Sheddable, now);
    assert_eq!(refusal(queue.try_admit(&ask(Priority::Sheddable), now)), Some(Reason::QueueFull));

    let evicted = [3, 4, 5, 6].map(|waiter| join(&mut queue, waiter, Priority::Critical, now));

    // The youngest of the least important first: it has lost the least.
    assert_eq!(evicted, [None, None, Some(2), Some(1)]);
    assert_eq!(refusal(queue.try_admit(&ask(Priority::Critical), now)), Some(Reason::QueueFull));
}

#[test]
fn nobody_outstays_the_bound_or_the_deadline() {
    // The sweep skips its full pass while nobody can have expired: a wrong skip leaves somebody waiting.
    let now = Instant::now();
    let mut queue = full(1, QueueConfig::default(), now);
    join(&mut queue, 1, Priority::Critical, now);
    assert_eq!(swept(&mut queue, now + 10 * MS), []);
    let near = Ask { deadline: Some(now + 30 * MS), ..Ask::default() };
    queue.enqueue(2, &near, now + 10 * MS).map(|joined| joined.id).unwrap();

    assert_eq!(swept(&mut queue, now + 29 * MS), []);
    assert_eq!(swept(&mut queue, now + 30 * MS), [(2, Reason::Deadline)]);
    assert_eq!(swept(&mut queue, now + 999 * MS), []);
    assert_eq!(swept(&mut queue, now + 1000 * MS), [(1, Reason::QueueTimeout)]);
}

#[test]
fn a_deadline_that_cannot_be_met_is_refused_on_arrival() {
    // Serving it would spend a permit on an answer that nobody waits for.
    let now = Instant::now();
    let mut queue = AdmitQueue::<u32>::new(1, QueueConfig { headroom: 5 * MS, ..QueueConfig::default() });
    let due = |after| Ask { deadline: Some(now + after), ..Ask::default() };

    assert_eq!(refusal(queue.try_admit(&due(5 * MS), now)), Some(Reason::Deadline));
    assert_eq!(queue.try_admit(&due(6 * MS), now), Admission::Admitted);
}

/// One permit per 100 ms and one arrival per 20 ms, until the queue has stood for long enough.
fn overload(priority: Priority) -> (AdmitQueue<u32>, Instant) {
    let mut now = Instant::now();
    let mut queue = full(1, QueueConfig { wait_max: 5000 * MS, ..QueueConfig::default() }, now);
    for step in 0..100 {
        join(&mut queue, step, priority, now);
        if step % 5 == 0 {
            pass_on(&mut queue, now);
        }
        now += 20 * MS;
        swept(&mut queue, now);
    }
    (queue, now)
}

#[test]
fn under_overload_the_newest_goes_first_and_the_old_are_refused() {
    // First come, first served would serve only requests that have waited as long as anybody can bear.
    let (mut queue, now) = overload(Priority::Critical);
    assert!(queue.overloaded_for(Priority::Critical));
    let oldest = now.duration_since(queue.waiting_since().unwrap());
    assert!(oldest <= 400 * MS, "twice the target at most, not {oldest:?}");

    join(&mut queue, 1000, Priority::Critical, now);

    assert_eq!(pass_on(&mut queue, now), Some(1000));
}

#[test]
fn the_most_important_are_neither_overtaken_nor_refused_by_codel() {
    // An overload of others is no reason to reorder or drop what must not be lost.
    let (mut queue, now) = overload(Priority::CriticalPlus);
    assert!(now.duration_since(queue.waiting_since().unwrap()) > 400 * MS);

    join(&mut queue, 1000, Priority::CriticalPlus, now);

    assert_ne!(pass_on(&mut queue, now), Some(1000));
}

#[test]
fn the_queue_of_one_priority_does_not_put_another_in_overload() {
    // Users would be served in reverse order because batch work piles up.
    let (queue, _) = overload(Priority::Sheddable);

    assert!(queue.overloaded_for(Priority::Sheddable));
    assert!(!queue.overloaded_for(Priority::Critical));
}

#[test]
fn after_the_burst_everything_is_as_before() {
    // Overload that outlives its queue keeps refusing although nothing stands in the way.
    let (mut queue, now) = overload(Priority::Critical);
    while pass_on(&mut queue, now).is_some() {}

    swept(&mut queue, now + 10 * MS);

    assert!(!queue.overloaded_for(Priority::Critical));
    assert_eq!(queue.try_admit(&Ask::default(), now + 10 * MS), Admission::Admitted);
}

#[test]
fn shares_bind_only_after_someone_important_had_to_wait() {
    // Always binding, they would halve a service that has nothing but unimportant work; never binding, every
    // important request would wait for an unimportant one to end.
    let now = Instant::now();
    let mut queue = AdmitQueue::<u32>::new(10, QueueConfig::default());
    let admitted = |queue: &mut AdmitQueue<u32>, now| {
        (0..10).take_while(|_| queue.try_admit(&ask(Priority::Sheddable), now) == Admission::Admitted).count()
    };
    assert_eq!(admitted(&mut queue, now), 10);

    join(&mut queue, 1, Priority::Critical, now);
    let later = now + 201 * MS;
    assert_eq!(pass_on(&mut queue, later), Some(1));
    for _ in 0..10 {
        queue.release(Fared::Unknown);
    }

    assert_eq!(admitted(&mut queue, later), 5);
    assert_eq!(refusal(queue.try_admit(&ask(Priority::Sheddable), later)), Some(Reason::Priority));
    assert_eq!(queue.try_admit(&ask(Priority::Critical), later), Admission::Admitted);
    assert_eq!(admitted(&mut queue, later + 1001 * MS), 4);
}

#[test]
fn a_waiter_that_left_cannot_be_removed_twice() {
    // Its place in the store is reused: a stale name must not throw out a stranger.
    let now = Instant::now();
    let mut queue = full(1, QueueConfig::default(), now);
    let first = queue.enqueue(1, &Ask::default(), now).unwrap().id;
    assert_eq!(queue.remove(first), Some(1));
    join(&mut queue, 2, Priority::Critical, now);

    assert_eq!(queue.remove(first), None);
    assert_eq!(queue.waiting(), 1);
}

#[test]
fn a_flush_refuses_everybody_at_once() {
    // Waiters left behind would wait out their bound for a service that is known to be gone.
    let now = Instant::now();
    let mut queue = full(1, QueueConfig::default(), now);
    for (waiter, priority) in Priority::ALL.into_iter().enumerate() {
        join(&mut queue, u32::try_from(waiter).unwrap(), priority, now);
    }
    let mut refused = Vec::new();

    queue.flush(&mut |waiter, refusal| refused.push((waiter, refusal.reason)));

    assert_eq!(refused, (0..4).map(|waiter| (waiter, Reason::Flushed)).collect::<Vec<_>>());
    assert_eq!(queue.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_with_a_ceiling_of_its_own_is_refused_above_it_and_does_not_wait() {
    // Waiting at the head of the queue it would hold up those that may use the rest.
    let mut queue = AdmitQueue::<u32>::new(4, QueueConfig::default());
    let now = Instant::now();
    let capped = Ask { ceiling: Some(2), ..Ask::default() };
    assert_eq!(queue.try_admit(&capped, now), Admission::Admitted);
    assert_eq!(queue.try_admit(&capped, now), Admission::Admitted);

    let refused = queue.try_admit(&capped, now);

    assert!(matches!(refused, Admission::Refused(refusal) if refusal.reason == Reason::Priority));
    assert_eq!(queue.try_admit(&Ask::default(), now), Admission::Admitted);
}
