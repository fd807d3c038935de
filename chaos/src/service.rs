//! A plain HTTP service: `GET /orders`, `POST /orders`, `GET /healthz`, and a pool of sessions.
//!
//! It is written as most services are: no deadline, no breaker, no bound on who waits for a session. The only
//! thing it knows is that SQLSTATE class 53 means "not now" and becomes 503 with Retry-After. What it survives is
//! the merit of what stands between it and the database.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::RETRY_AFTER;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_postgres::types::Type;
use url::Url;

use crate::workload::sessions::{ConnectError, Login, Sessions};

/// Sessions of its pool.
const SESSIONS: usize = 20;

const BODY_LIMIT: usize = 64 << 10;

const TABLE: &str = "CREATE TABLE IF NOT EXISTS orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, \
                     idempotency_key text NOT NULL UNIQUE, item text NOT NULL, quantity int NOT NULL)";

/// Why the service cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot listen.
    #[error("cannot listen")]
    Listen(#[from] std::io::Error),
    /// The database cannot be used.
    #[error("cannot use the database")]
    Database(#[from] tokio_postgres::Error),
    /// The URL names no address.
    #[error("the database URL names no address")]
    Url,
    /// The database takes too long.
    #[error("the database does not answer")]
    Late,
}

impl From<ConnectError> for Error {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Refused(error) => Self::Database(error),
            ConnectError::Late => Self::Late,
        }
    }
}

#[derive(Debug, Deserialize, Serialize)]
struct Order {
    item: String,
    quantity: i32,
}

/// Serves until the process ends.
pub async fn serve(database: &Url, listen: SocketAddr) -> Result<(), Error> {
    let sessions = Arc::new(Sessions::new(login(database)?, SESSIONS));
    if let Some(mut session) = sessions.take().await {
        session.client().await?.batch_execute(TABLE).await?;
    }
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let sessions = Arc::clone(&sessions);
        let service = service_fn(move |request| answer(request, Arc::clone(&sessions)));
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

fn login(database: &Url) -> Result<Login, Error> {
    let address = format!("{}:{}", database.host_str().ok_or(Error::Url)?, database.port().unwrap_or(5432));
    Ok(Login {
        address: address.parse().map_err(|_| Error::Url)?,
        user: database.username().to_owned(),
        database: database.path().trim_start_matches('/').to_owned(),
        name: "orders",
    })
}

type Answer = Result<Response<Full<Bytes>>, hyper::http::Error>;

async fn answer(request: Request<Incoming>, sessions: Arc<Sessions>) -> Answer {
    let (parts, body) = request.into_parts();
    let done = match (&parts.method, parts.uri.path()) {
        (&Method::GET, "/healthz") => Ok((StatusCode::OK, "ok".to_owned())),
        (&Method::GET, "/orders") => list(&sessions).await,
        (&Method::POST, "/orders") => {
            let key = parts.headers.get("idempotency-key").and_then(|key| key.to_str().ok());
            let body =
                Limited::new(body, BODY_LIMIT).collect().await.map(http_body_util::Collected::to_bytes);
            let order = body.ok().and_then(|bytes| serde_json::from_slice::<Order>(&bytes).ok());
            match key.zip(order) {
                Some((key, order)) => create(&sessions, key, &order).await,
                None => Ok((StatusCode::BAD_REQUEST, "an order and an Idempotency-Key".to_owned())),
            }
        }
        _ => Ok((StatusCode::NOT_FOUND, "no such page".to_owned())),
    };
    match done {
        Ok((status, text)) => Response::builder().status(status).body(Full::from(text)),
        Err(error) => refused(&error),
    }
}

async fn list(sessions: &Sessions) -> Result<(StatusCode, String), Error> {
    let mut session = sessions.take().await.ok_or(Error::Late)?;
    let sql = "SELECT item, quantity FROM orders ORDER BY id DESC LIMIT 100";
    let rows = session.client().await?.query_typed(sql, &[]).await?;
    let orders: Vec<Order> =
        rows.iter().map(|row| Order { item: row.get(0), quantity: row.get(1) }).collect();
    Ok((StatusCode::OK, serde_json::to_string(&orders).unwrap_or_default()))
}

async fn create(sessions: &Sessions, key: &str, order: &Order) -> Result<(StatusCode, String), Error> {
    let mut session = sessions.take().await.ok_or(Error::Late)?;
    let sql = "INSERT INTO orders (idempotency_key, item, quantity) VALUES ($1, $2, $3) \
               ON CONFLICT (idempotency_key) DO NOTHING";
    let client = session.client().await?;
    let values: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 3] =
        [(&key, Type::TEXT), (&order.item, Type::TEXT), (&order.quantity, Type::INT4)];
    client.execute_typed(sql, &values).await?;
    Ok((StatusCode::CREATED, "created".to_owned()))
}

fn refused(error: &Error) -> Answer {
    let code = match error {
        Error::Database(error) => error.code().map(tokio_postgres::error::SqlState::code),
        Error::Listen(_) | Error::Url | Error::Late => None,
    };
    let text = format!("{error}: {}", code.unwrap_or("no answer"));
    if code.is_some_and(|code| code.starts_with("53")) {
        let response = Response::builder().status(StatusCode::SERVICE_UNAVAILABLE).header(RETRY_AFTER, "1");
        return response.body(Full::from(text));
    }
    Response::builder().status(StatusCode::INTERNAL_SERVER_ERROR).body(Full::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_says_everything_that_a_login_needs() {
        // The harness builds it from the subject's address.
        let login = login(&"postgres://app@127.0.0.1:6432/orders".parse().unwrap()).unwrap();

        assert_eq!(login.address, "127.0.0.1:6432".parse().unwrap());
        assert_eq!((login.user.as_str(), login.database.as_str()), ("app", "orders"));
    }
}
