//! Claims of the deadline layer, on a paused clock.

use std::time::Duration;

use tidegate_layers::deadline::Progress;
use tidegate_layers::{Deadline, DeadlineExceeded, EnforceDeadlineLayer, HasDeadline};
use tokio::time::{Instant, advance};
use tower_test::{assert_request_eq, mock};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, PartialEq)]
struct Due(Option<Deadline>);

impl HasDeadline for Due {
    fn deadline(&self) -> Option<Deadline> {
        self.0
    }
}

fn progress(error: &BoxError) -> Option<Progress> {
    error.downcast_ref::<DeadlineExceeded>().map(|error| error.progress)
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_is_answered_at_its_deadline() {
    // Without the bound this future is pending for ever.
    let (mut service, mut handle) = mock::spawn_layer::<Due, (), _>(EnforceDeadlineLayer);
    handle.allow(1);
    assert!(service.poll_ready().is_ready());
    let start = Instant::now();

    let result = service.call(Due(Some(Deadline::within(Duration::from_millis(250))))).await;

    assert_eq!(progress(&result.unwrap_err()), Some(Progress::Started));
    assert_eq!(start.elapsed().as_millis(), 250);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_late_on_arrival_never_reaches_the_service() {
    // The mock would hold the request, and the caller would not know that sending again is safe.
    let (mut service, mut handle) = mock::spawn_layer::<Due, (), _>(EnforceDeadlineLayer);
    handle.allow(1);
    assert!(service.poll_ready().is_ready());
    let due = Deadline::within(Duration::from_millis(1));
    advance(Duration::from_millis(2)).await;

    let result = service.call(Due(Some(due))).await;

    assert_eq!(progress(&result.unwrap_err()), Some(Progress::NotStarted));
    assert!(handle.poll_request().is_pending(), "the service was called");
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_ready_beats_a_timer_that_fired() {
    // Polling the timer first would throw away an answer that the caller could have had.
    let (mut service, mut handle) = mock::spawn_layer::<Due, (), _>(EnforceDeadlineLayer);
    handle.allow(1);
    assert!(service.poll_ready().is_ready());
    let due = Deadline::within(Duration::from_millis(5));
    let response = service.call(Due(Some(due)));
    assert_request_eq!(handle, Due(Some(due))).send_response(());
    advance(Duration::from_millis(50)).await;

    assert!(response.await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_deadline_may_take_for_ever() {
    // A default deadline would be a policy that nobody asked for.
    let (mut service, mut handle) = mock::spawn_layer::<Due, (), _>(EnforceDeadlineLayer);
    handle.allow(1);
    assert!(service.poll_ready().is_ready());
    let response = service.call(Due(None));
    advance(Duration::from_hours(24)).await;
    assert_request_eq!(handle, Due(None)).send_response(());

    assert!(response.await.is_ok());
}
