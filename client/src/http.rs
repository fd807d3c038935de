//! A Tower layer for HTTP servers: the deadline of a request, writes refused at the edge, errors as responses.
//!
//! [`ResilienceLayer`] goes around a router (axum) or a service (hyper).
//!
//! * **Acts** on arrival: fixes the request's deadline (a header, never beyond the cap), opens the
//!   [`deadline`](crate::deadline) scope in which the handler runs, and refuses requests that write while the write
//!   lane is open, before a handler, a body or a permit is touched. And at the deadline: a handler that is not done
//!   shortly after it is dropped, which every future of this crate bears.
//! * **Promises** a response by the deadline plus [`GRACE`], and a refusal within microseconds while the lane is open.
//! * **Does not** bound the number of requests in flight by itself: the permits, the queue's bound and the deadline do.
//!
//! [`response`] maps an [`Error`]; with the feature `axum` it is an `IntoResponse` as well. The body is a problem detail
//! (RFC 9457) with `outcome`, `lane`, `cause` and `safe_to_retry`.
//!
//! | error | status |
//! |---|---|
//! | refused (overload, breaker, no connection, read-only server), nothing was done | 503 with `Retry-After` |
//! | a deadline passed, the connection broke, or the outcome of a COMMIT is unknown | 504 |
//! | lost against another transaction, or rolled back | 409 |
//! | anything else | 500 |

use std::fmt::Write as _;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use pin_project_lite::pin_project;
use tidegate_layers::Deadline;
use tokio::time::{Sleep, sleep_until};
use tower_layer::Layer;
use tower_service::Service;

use crate::deadline::{Scoped, scoped};
use crate::error::{Doing, Error, ErrorKind};
use crate::pool::Pool;
use crate::words::{Lane, Outcome};

/// How long after its deadline a handler may still answer: the pool answers *at* the deadline, and the handler needs a
/// moment to make a response of it.
pub const GRACE: Duration = Duration::from_millis(25);

/// What says how long the caller waits, unless [`ResilienceLayer::header`] names another: Envoy's header, in
/// milliseconds from arrival.
pub const HEADER: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

/// Methods that write nothing (RFC 9110, section 9.2.1).
fn is_safe(method: &Method) -> bool {
    method.is_safe()
}

type Writes = Arc<dyn Fn(&Method, &http::Uri) -> bool + Send + Sync>;

/// See the [module](self).
///
/// ```no_run
/// # fn f(pool: &tidegate_client::Pool) {
/// use std::time::Duration;
/// use tidegate_client::http::ResilienceLayer;
///
/// let layer = ResilienceLayer::new(pool, Duration::from_secs(2));
/// # let _ = layer;
/// # }
/// ```
#[derive(Clone)]
pub struct ResilienceLayer {
    settings: Settings,
}

#[derive(Clone)]
struct Settings {
    pool: Pool,
    cap: Duration,
    header: Option<HeaderName>,
    writes: Writes,
}

impl ResilienceLayer {
    /// No request takes longer than `cap`, whatever its header says. Requests whose method is not safe (RFC 9110)
    /// write.
    pub fn new(pool: &Pool, cap: Duration) -> Self {
        let writes: Writes = Arc::new(|method, _| !is_safe(method));
        Self { settings: Settings { pool: pool.clone(), cap, header: Some(HEADER), writes } }
    }

    /// Which header says how long the caller waits, in milliseconds; `None`: no one says.
    #[must_use]
    pub fn header(mut self, header: Option<HeaderName>) -> Self {
        self.settings.header = header;
        self
    }

    /// Which requests write. A POST that only searches, say, does not.
    #[must_use]
    pub fn writes(mut self, writes: impl Fn(&Method, &http::Uri) -> bool + Send + Sync + 'static) -> Self {
        self.settings.writes = Arc::new(writes);
        self
    }
}

impl std::fmt::Debug for ResilienceLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResilienceLayer").field("cap", &self.settings.cap).finish_non_exhaustive()
    }
}

impl<S> Layer<S> for ResilienceLayer {
    type Service = Resilience<S>;

    fn layer(&self, inner: S) -> Resilience<S> {
        Resilience { inner, settings: self.settings.clone() }
    }
}

/// The service that [`ResilienceLayer`] makes.
#[derive(Clone)]
pub struct Resilience<S> {
    inner: S,
    settings: Settings,
}

impl<S: std::fmt::Debug> std::fmt::Debug for Resilience<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resilience").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Settings {
    fn deadline<B>(&self, request: &Request<B>) -> Deadline {
        let asked = self.header.as_ref().and_then(|name| request.headers().get(name));
        let asked = asked.and_then(|value| value.to_str().ok()).and_then(|value| value.trim().parse().ok());
        Deadline::within(asked.map_or(self.cap, |ms| Duration::from_millis(ms).min(self.cap)))
    }

    fn refusal<B>(&self, request: &Request<B>) -> Option<Error> {
        if (self.writes)(request.method(), request.uri()) { self.pool.refusal(Lane::Write) } else { None }
    }
}

impl<S, B, R> Service<Request<B>> for Resilience<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: From<String>,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if let Some(error) = self.settings.refusal(&request) {
            return ResponseFuture { state: State::Refused { response: Some(response(&error)) } };
        }
        let deadline = self.settings.deadline(&request);
        // `call` itself may look at the scope: axum's handlers start there.
        let inner = scoped(deadline, || self.inner.call(request));
        let timer = sleep_until(deadline.instant() + GRACE);
        ResponseFuture { state: State::Running { inner, timer } }
    }
}

pin_project! {
    /// Response of [`Resilience`].
    ///
    /// # Cancel safety
    /// Dropping it drops the handler.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, R> {
        #[pin]
        state: State<F, R>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, R> {
        Running { #[pin] inner: Scoped<F>, #[pin] timer: Sleep },
        Refused { response: Option<Response<R>> },
    }
}

impl<F, R> std::fmt::Debug for ResponseFuture<F, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ResponseFuture")
    }
}

impl<F, R, E> Future for ResponseFuture<F, R>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: From<String>,
{
    type Output = Result<Response<R>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Refused { response } => {
                response.take().map_or(Poll::Pending, |it| Poll::Ready(Ok(it)))
            }
            StateProj::Running { inner, timer } => {
                if let Poll::Ready(result) = inner.poll(cx) {
                    return Poll::Ready(result);
                }
                ready!(timer.poll(cx));
                Poll::Ready(Ok(response(&Error::new(ErrorKind::Timeout, Doing::Running, Outcome::Unknown))))
            }
        }
    }
}

/// The status that says what a caller can do.
pub fn status(error: &Error) -> StatusCode {
    match error.kind() {
        ErrorKind::Overloaded | ErrorKind::BreakerOpen | ErrorKind::Connect | ErrorKind::ReadOnly => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        ErrorKind::Timeout | ErrorKind::ConnectionLost | ErrorKind::CommitUnknown => {
            StatusCode::GATEWAY_TIMEOUT
        }
        ErrorKind::Conflict | ErrorKind::RolledBack => StatusCode::CONFLICT,
        ErrorKind::Database | ErrorKind::Conversion | ErrorKind::Config => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// An error as a response, with a problem detail as its body. Says nothing of statements or data.
pub fn response<R: From<String>>(error: &Error) -> Response<R> {
    let status = status(error);
    let mut response = Response::new(R::from(problem(error, status)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        // Whole seconds (RFC 9110, section 10.2.3), at least one: zero would invite a storm.
        let seconds = error.retry_after().map_or(1, |after| after.as_millis().div_ceil(1000).max(1));
        if let Ok(value) = HeaderValue::from_str(&seconds.to_string()) {
            headers.insert(RETRY_AFTER, value);
        }
    }
    response
}

/// All values are words of ours or numbers, so nothing needs to be escaped; what a sidecar says is left out.
fn problem(error: &Error, status: StatusCode) -> String {
    let mut json = format!(
        "{{\"type\":\"about:blank\",\"title\":\"{}\",\"status\":{},\"kind\":\"{}\",\"outcome\":\"{}\",\"safe_to_retry\":{}",
        status.canonical_reason().unwrap_or_default(),
        status.as_u16(),
        error.kind().word(),
        error.outcome(),
        error.is_safe_to_retry(),
    );
    // Writing to a String cannot fail.
    if let Some(lane) = error.lane() {
        let _ = write!(json, ",\"lane\":\"{lane}\"");
    }
    if let Some(cause) = error.cause() {
        let _ = write!(json, ",\"cause\":\"{cause}\"");
    }
    if let Some(after) = error.retry_after() {
        let _ = write!(json, ",\"retry_after_ms\":{}", after.as_millis());
    }
    json.push('}');
    json
}

#[cfg(feature = "axum")]
impl axum_core::response::IntoResponse for Error {
    fn into_response(self) -> axum_core::response::Response {
        response(&self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_the_status_that_tells_what_to_do() {
        // A client that gets 500 for a refusal does not try again; one that gets 503 for a lost COMMIT does, twice.
        let status_of = |kind| status(&Error::new(kind, Doing::Running, Outcome::Unknown)).as_u16();

        assert_eq!(status_of(ErrorKind::BreakerOpen), 503);
        assert_eq!(status_of(ErrorKind::Overloaded), 503);
        assert_eq!(status_of(ErrorKind::Timeout), 504);
        assert_eq!(status_of(ErrorKind::CommitUnknown), 504);
        assert_eq!(status_of(ErrorKind::Conflict), 409);
        assert_eq!(status_of(ErrorKind::Database), 500);
    }

    #[test]
    fn a_refusal_says_when_to_come_back() {
        // Without Retry-After a herd comes back at once; with zero, too.
        let error = Error::new(ErrorKind::BreakerOpen, Doing::Waiting, Outcome::NotSent)
            .in_lane(Lane::Write)
            .caused_by(Some(crate::Cause::SyncStandby))
            .retry_in(Duration::from_millis(1200));

        let response: Response<String> = response(&error);

        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[RETRY_AFTER], "2");
        let body: serde_json::Value = serde_json::from_str(response.body()).unwrap();
        assert_eq!((&body["outcome"], &body["cause"]), (&"not_sent".into(), &"sync_standby".into()));
        assert_eq!((&body["safe_to_retry"], &body["retry_after_ms"]), (&true.into(), &1200.into()));
    }
}
