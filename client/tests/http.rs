//! The layer for HTTP servers, without a database: none is needed for what it does by itself.

#![expect(clippy::expect_used, reason = "whatever is not as it should be fails the test")]

use std::convert::Infallible;
use std::time::Duration;

use http::{HeaderName, Request, Response, StatusCode};
use tidegate_client::http::{HEADER, ResilienceLayer};
use tidegate_client::{Force, Lane, Pool, deadline};
use tower::{Layer, ServiceExt, service_fn};

const CAP: Duration = Duration::from_secs(2);

fn pool() -> Pool {
    Pool::connect("postgres://nobody@127.0.0.1:1/none").expect("a pool that is not connected")
}

fn request(method: &str, header: Option<(HeaderName, &str)>) -> Request<()> {
    let builder = Request::builder().method(method);
    let builder = header.into_iter().fold(builder, |builder, (name, value)| builder.header(name, value));
    builder.body(()).expect("a request")
}

/// The budget that a handler sees.
async fn budget(layer: &ResilienceLayer, request: Request<()>) -> Duration {
    let service = layer.layer(service_fn(|_: Request<()>| async {
        let remaining = deadline::remaining().expect("a scope");
        Ok::<_, Infallible>(Response::new(remaining.as_millis().to_string()))
    }));
    let response = service.oneshot(request).await.expect("a response");
    Duration::from_millis(response.body().parse().expect("milliseconds"))
}

#[tokio::test]
async fn a_header_tightens_the_deadline_and_never_widens_it() {
    // A caller that asks for an hour would undo the bound of everybody else.
    let layer = ResilienceLayer::new(&pool(), CAP);
    let near = |budget: Duration, expected: Duration| {
        budget <= expected && budget + Duration::from_millis(200) > expected
    };

    assert!(near(budget(&layer, request("GET", None)).await, CAP));
    let tight = request("GET", Some((HEADER, "500")));
    assert!(near(budget(&layer, tight).await, Duration::from_millis(500)));
    let wide = request("GET", Some((HEADER, "3600000")));
    assert!(near(budget(&layer, wide).await, CAP));
    let nonsense = request("GET", Some((HEADER, "soon")));
    assert!(near(budget(&layer, nonsense).await, CAP));
    let unheard = budget(&layer.clone().header(None), request("GET", Some((HEADER, "500")))).await;
    assert!(near(unheard, CAP));
}

#[tokio::test]
async fn writes_are_refused_at_the_edge_while_their_lane_is_shut_and_reads_are_not() {
    // A handler that is called only to learn that it may not write has cost a body, a parse and a task.
    let pool = pool();
    pool.force(Lane::Write, Force::Open);
    while pool.refusal(Lane::Write).is_none() {
        tokio::task::yield_now().await;
    }
    let layer = ResilienceLayer::new(&pool, CAP);
    let service = layer.layer(service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(Response::new("handled".to_owned()))
    }));

    let write = service.clone().oneshot(request("POST", None)).await.unwrap();
    let read = service.oneshot(request("GET", None)).await.unwrap();

    assert_eq!(write.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(write.headers().contains_key("retry-after"));
    assert_eq!(write.headers()["content-type"], "application/problem+json");
    assert_eq!((read.status(), read.body().as_str()), (StatusCode::OK, "handled"));
}

#[tokio::test]
async fn a_handler_that_hangs_is_answered_for() {
    // What waits for something else than the pool is beyond the pool's bounds.
    let layer = ResilienceLayer::new(&pool(), Duration::from_millis(100));
    let service = layer
        .layer(service_fn(|_: Request<()>| std::future::pending::<Result<Response<String>, Infallible>>()));

    let response = service.oneshot(request("GET", None)).await.unwrap();

    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
}
