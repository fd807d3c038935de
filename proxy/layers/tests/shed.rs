//! Claims of the shed layer as a Tower service, on a paused clock.

use std::time::Duration;

use tidegate_layers::shed::{Admitted, HasPriority, LaneConfig, QueueConfig, Reason};
use tidegate_layers::{Deadline, HasDeadline, Overloaded, Priority, ShedLayer};
use tokio::time::Instant;
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task};
use tower_layer::Layer;
use tower_service::Service;
use tower_test::{assert_request_eq, mock};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, PartialEq)]
struct Request(u32);

impl HasPriority for Request {
    fn priority(&self) -> Priority {
        Priority::Critical
    }
}

impl HasDeadline for Request {
    fn deadline(&self) -> Option<Deadline> {
        None
    }
}

fn layer(ceiling: usize, queue_max: usize) -> ShedLayer {
    ShedLayer::new(LaneConfig { ceiling, queue: QueueConfig { queue_max, ..QueueConfig::default() } })
}

fn reason(error: &BoxError) -> Option<Reason> {
    error.downcast_ref::<Overloaded>().map(|error| error.reason)
}

#[tokio::test(start_paused = true)]
async fn the_permit_lives_in_the_response_until_it_is_dropped() {
    // Freed when the response is there, it would not cover what the response still does (a stream, a lease).
    let layer = layer(1, 0);
    let (mut service, mut handle) = mock::spawn_with(|inner| layer.layer(inner));
    handle.allow(2);
    assert_ready_ok!(service.poll_ready());
    let mut first = task::spawn(service.call(Request(1)));
    assert_request_eq!(handle, Request(1)).send_response("one");
    let Admitted { response, permit } = assert_ready_ok!(first.poll());
    assert_eq!(response, "one");

    assert_ready_ok!(service.poll_ready());
    let refused = assert_ready_err!(task::spawn(service.call(Request(2))).poll());
    assert_eq!(reason(&refused), Some(Reason::Limit));

    drop(permit);
    let _third = service.call(Request(3));
    assert_request_eq!(handle, Request(3)).send_response("three");
}

#[tokio::test(start_paused = true)]
async fn being_ready_reserves_nothing() {
    // A permit parked in `poll_ready` of an idle clone is a permit that nobody can use.
    let layer = layer(1, 0);
    let (inner, mut handle) = mock::pair::<Request, &str>();
    handle.allow(2);
    let mut idle = task::spawn(());
    let mut services = [layer.layer(inner.clone()), layer.layer(inner)];
    for service in &mut services {
        assert_ready_ok!(idle.enter(|cx, _| service.poll_ready(cx)));
    }

    let _response = services[1].call(Request(1));

    assert_request_eq!(handle, Request(1)).send_response("one");
}

#[tokio::test(start_paused = true)]
async fn a_waiting_call_goes_on_when_a_permit_is_freed() {
    // A waiter that nobody wakes hangs although there is room.
    let layer = layer(1, 10);
    let (mut service, mut handle) = mock::spawn_with(|inner| layer.layer(inner));
    handle.allow(3);
    assert_ready_ok!(service.poll_ready());
    let first = service.call(Request(1));
    assert_request_eq!(handle, Request(1));
    assert_ready_ok!(service.poll_ready());
    let mut second = task::spawn(service.call(Request(2)));
    assert_pending!(second.poll());

    drop(first);

    assert!(second.is_woken());
    assert_pending!(second.poll());
    assert_request_eq!(handle, Request(2)).send_response("two");
    assert_ready_ok!(second.poll());
}

#[tokio::test(start_paused = true)]
async fn a_waiting_call_is_refused_at_its_bound_without_anybody_sweeping() {
    // The service has no sweeper of its own: without the timer the wait would be unbounded.
    let layer = layer(1, 10);
    let (mut service, mut handle) = mock::spawn_with::<Request, &str, _, _>(|inner| layer.layer(inner));
    handle.allow(2);
    assert_ready_ok!(service.poll_ready());
    let _stuck = service.call(Request(1));
    assert_ready_ok!(service.poll_ready());
    let start = Instant::now();

    let refused = service.call(Request(2)).await.unwrap_err();

    assert_eq!(reason(&refused), Some(Reason::QueueTimeout));
    assert!(start.elapsed() <= Duration::from_millis(1001));
}
