//! Bodies, both ways.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;

use super::Response;
use super::problem::Problem;

/// Bytes of a request's body. No request needs one.
pub(super) const MAX: usize = 4 * 1024;
/// How long a client may take to send it.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Body of an answer.
pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Reads the body of a request.
///
/// # Errors
/// When it is too long, too slow or torn.
///
/// # Cancel safety
/// The connection is useless after a drop.
pub(super) async fn read(head: &Parts, incoming: Incoming) -> Result<Bytes, Problem> {
    let announced = head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: usize| length > MAX) {
        return Err(too_long());
    }
    match tokio::time::timeout(TIMEOUT, Limited::new(incoming, MAX).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_long()),
        Ok(Err(_)) => Err(Problem::new(StatusCode::BAD_REQUEST, "the body is not what its headers say")),
        Err(_) => Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not come within 5 s")),
    }
}

fn too_long() -> Problem {
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "a body may have 4096 bytes")
}

/// An answer with a whole body.
pub(super) fn whole(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    with(status, content_type, Full::new(body.into()).boxed_unsync())
}

/// An answer with any body.
pub(super) fn with(status: StatusCode, content_type: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    harden(headers);
    response
}

/// JSON.
pub(super) fn json(status: StatusCode, value: &impl serde::Serialize) -> Response {
    let text = crate::status::board::json(value);
    whole(status, "application/json", format!("{text}\n"))
}

/// No copy anywhere, no guessing of types, no reading by pages of other sites.
fn harden(headers: &mut HeaderMap) {
    for (name, value) in [
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("x-content-type-options"), "nosniff"),
        (HeaderName::from_static("referrer-policy"), "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}
