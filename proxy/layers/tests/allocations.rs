//! Claims about the steady state: what happens for every request allocates nothing.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

use allocation_counter::measure;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tidegate_layers::breaker::{
    BreakerConfig, Change, NoDiagnosis, Outcome, Probe, ProbeOutcome, Senses, Session, Watchdog,
};
use tidegate_layers::shed::{Ask, Handoff, LaneConfig, QueueConfig};
use tokio::time::Instant;

struct Fine;

impl Probe for Fine {
    async fn probe(&self, _: Session) -> ProbeOutcome {
        ProbeOutcome::Ok
    }
}

fn handoff(queue: QueueConfig) -> Handoff<u64> {
    let handoff = Handoff::new([LaneConfig { ceiling: 1, queue }]);
    handoff.put(1);
    handoff
}

/// Polls a checkout once, and keeps what it got for no longer.
fn check_out(handoff: &Handoff<u64>) {
    let mut checkout = pin!(handoff.checkout(0, Ask::default()));
    let _ = checkout.as_mut().poll(&mut Context::from_waker(Waker::noop()));
}

#[test]
fn a_checkout_of_an_idle_item_allocates_nothing() {
    // Per exchange, the allocator would cost more than all the rest.
    let handoff = handoff(QueueConfig::default());
    check_out(&handoff);

    let counted = measure(|| (0..1000).for_each(|_| check_out(&handoff)));

    assert_eq!(counted.count_total, 0);
}

#[test]
fn waiting_and_being_refused_allocate_nothing_either() {
    // Under overload the path that refuses is the busiest: it must be the cheapest.
    for queue_max in [0, 1] {
        let handoff = handoff(QueueConfig { queue_max, ..QueueConfig::default() });
        let lease = handoff.try_checkout(0, &Ask::default());
        assert!(lease.is_ok());
        check_out(&handoff);

        let counted = measure(|| (0..1000).for_each(|_| check_out(&handoff)));

        assert_eq!(counted.count_total, 0, "queue of {queue_max}");
    }
}

#[tokio::test]
async fn admission_and_completion_by_the_breaker_allocate_nothing() {
    // They stand in the path of every call, also of those that are refused.
    let senses = Senses {
        probe: Fine,
        diagnose: NoDiagnosis,
        events: |_: &Change<u8>| {},
        random: SmallRng::seed_from_u64(1),
    };
    let (handle, watchdog) = Watchdog::new(BreakerConfig::default(), 8, senses);
    let call = || {
        let now = Instant::now();
        if let Ok(ticket) = handle.admit(now) {
            handle.slots().begin(3, now);
            handle.slots().end(3);
            handle.complete(ticket, Outcome::Ok, Instant::now());
        }
    };

    assert_eq!(measure(|| (0..1000).for_each(|_| call())).count_total, 0);

    handle.report(1);
    let _ = tokio::time::timeout(Duration::from_millis(50), watchdog.run()).await;
    assert!(handle.admit(Instant::now()).is_err());
    assert_eq!(measure(|| (0..1000).for_each(|_| call())).count_total, 0);
}
