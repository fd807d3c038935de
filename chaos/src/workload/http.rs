//! Requests to the service, and to pages about health. Each has a connection of its own.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST, RETRY_AFTER};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::history::{Failure, Outcome};

/// A browser would have given up long before.
const LIMIT: Duration = Duration::from_mins(2);

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its body.
    pub body: Bytes,
    /// When to try again, as it says.
    pub retry_after: Option<String>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request was never sent.
    #[error("cannot connect")]
    Connect(#[from] std::io::Error),
    /// It was sent, or may have been.
    #[error("no answer")]
    Broken(#[from] hyper::Error),
    /// The request could not be put together.
    #[error("not a request")]
    Request(#[from] hyper::http::Error),
    /// It took too long.
    #[error("no answer within {0:?}")]
    Late(Duration),
}

/// Sends one request.
///
/// # Cancel safety
///
/// Dropping the future closes the connection; the service may still act on the request.
pub async fn send(target: SocketAddr, request: Request<Full<Bytes>>) -> Result<Answer, Error> {
    timeout(LIMIT, exchange(target, request)).await.map_err(|_| Error::Late(LIMIT))?
}

async fn exchange(target: SocketAddr, request: Request<Full<Bytes>>) -> Result<Answer, Error> {
    let stream = TcpStream::connect(target).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the sender.
    tokio::spawn(connection);
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let retry_after =
        answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let body = answer.into_body().collect().await?.to_bytes();
    Ok(Answer { status, body, retry_after })
}

/// A request without a body.
pub fn request(target: SocketAddr, method: Method, path: &str) -> Result<Request<Full<Bytes>>, Error> {
    let request = Request::builder().method(method).uri(path).header(HOST, target.to_string());
    Ok(request.body(Full::default())?)
}

/// Asks for a page.
pub(super) async fn get(target: SocketAddr, path: &str) -> Outcome {
    let answer = match request(target, Method::GET, path) {
        Ok(request) => send(target, request).await,
        Err(error) => Err(error),
    };
    outcome_of(answer)
}

/// Creates one order; the key makes it idempotent, and can be found in the database.
pub(super) async fn post_order(target: SocketAddr, key: i64) -> Outcome {
    let body = format!("{{\"item\":\"order-{key}\",\"quantity\":1}}");
    let request = Request::builder()
        .method(Method::POST)
        .uri("/orders")
        .header(HOST, target.to_string())
        .header(CONTENT_TYPE, "application/json")
        .header("idempotency-key", key.to_string())
        .body(Full::from(body));
    let answer = match request {
        Ok(request) => send(target, request).await,
        Err(error) => Err(error.into()),
    };
    outcome_of(answer)
}

/// 4xx and 503 are promises that nothing was done (503: RFC 9110 section 15.6.4, from a service that says
/// so); other 5xx come from whoever gave up on a request that may still run.
fn outcome_of(answer: Result<Answer, Error>) -> Outcome {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error @ (Error::Connect(_) | Error::Request(_))) => {
            return Outcome::Fail(Failure::local(error.to_string()));
        }
        Err(error @ (Error::Broken(_) | Error::Late(_))) => {
            return Outcome::Unknown(Failure::local(error.to_string()));
        }
    };
    let status = answer.status;
    let detail = answer.retry_after.map(|when| format!("retry_after={when}"));
    let failure = Failure { status: Some(status.as_u16()), detail, ..Failure::local(text_of(&answer.body)) };
    match status {
        _ if status.is_success() => Outcome::Ok,
        StatusCode::SERVICE_UNAVAILABLE => Outcome::Fail(failure),
        _ if status.is_client_error() => Outcome::Fail(failure),
        _ => Outcome::Unknown(failure),
    }
}

/// The start of a body, for people.
fn text_of(body: &Bytes) -> String {
    String::from_utf8_lossy(body).trim().chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16) -> Outcome {
        outcome_of(Ok(Answer {
            status: StatusCode::from_u16(status).unwrap(),
            body: Bytes::new(),
            retry_after: None,
        }))
    }

    #[test]
    fn a_gateway_that_gave_up_says_nothing_about_the_order() {
        // 504 counted as a failure would accuse a service that did its work late.
        assert!(matches!(answer(504), Outcome::Unknown(_)));
        assert!(matches!(answer(500), Outcome::Unknown(_)));
        assert!(matches!(answer(503), Outcome::Fail(_)));
        assert_eq!(answer(201), Outcome::Ok);
    }
}
