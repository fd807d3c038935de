//! A small service that stays up while its database hangs.
//!
//! `POST /orders` (JSON `{"item": "…", "quantity": 1}`, header `Idempotency-Key`), `GET /orders/{id}`, `GET /orders`,
//! `GET /healthz`. Environment: `DATABASE_URL`, `LISTEN` (default 127.0.0.1:8080), `POOL_SIZE`, `REQUEST_TIMEOUT_MS`.
//!
//! The key makes the one write idempotent, so a client may repeat it after any error, an unknown outcome included: the
//! second request finds what the first one did, if it did anything.

use std::env;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tidegate_client::http::ResilienceLayer;
use tidegate_client::tokio_postgres::Row;
use tidegate_client::{Builder, Error, Pool, Retry, Timeouts, TxOptions};
use tokio::net::TcpListener;

const TABLE: &str = "CREATE TABLE IF NOT EXISTS orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    idempotency_key text NOT NULL UNIQUE,
    item text NOT NULL,
    quantity int NOT NULL
)";

#[derive(Debug, Deserialize)]
struct NewOrder {
    item: String,
    quantity: i32,
}

#[derive(Debug, Serialize)]
struct Order {
    id: i64,
    idempotency_key: String,
    item: String,
    quantity: i32,
}

impl Order {
    fn of(row: &Row) -> Self {
        Self { id: row.get(0), idempotency_key: row.get(1), item: row.get(2), quantity: row.get(3) }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let url = env::var("DATABASE_URL").map_err(|_| "DATABASE_URL says where the database is")?;
    let listen = env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:8080".to_owned());
    let timeout = Duration::from_millis(number("REQUEST_TIMEOUT_MS")?.unwrap_or(2000));
    let size = usize::try_from(number("POOL_SIZE")?.unwrap_or(20))?;

    let pool = Builder::parse(&url)?.size(size).timeouts(timeouts(timeout)).build()?;
    let table = tokio::spawn(create_table(pool.clone()));
    let listener = TcpListener::bind(&listen).await?;
    println!("listening on {}", listener.local_addr()?);
    axum::serve(listener, router(pool, timeout)).with_graceful_shutdown(stop()).await?;
    table.abort();
    Ok(())
}

fn number(name: &str) -> Result<Option<u64>, Box<dyn std::error::Error>> {
    match env::var(name) {
        Ok(text) => Ok(Some(text.parse().map_err(|error| format!("{name}: {error}"))?)),
        Err(_) => Ok(None),
    }
}

/// Nothing below may take longer than a request may.
fn timeouts(request: Duration) -> Timeouts {
    let defaults = Timeouts::default();
    Timeouts {
        acquire: defaults.acquire.min(request),
        connect: defaults.connect.min(request),
        read: request,
        write: request,
        commit: request,
        total: None,
    }
}

/// A service whose database is down must start nevertheless: it would not come back by itself.
async fn create_table(pool: Pool) {
    let create = async || pool.write().await?.batch_execute(TABLE).await;
    while let Err(error) = create().await {
        tracing::warn!(error = &error as &dyn std::error::Error, "the table cannot be created yet");
        tokio::time::sleep(error.retry_after().unwrap_or(Duration::from_secs(1))).await;
    }
}

fn router(pool: Pool, timeout: Duration) -> Router {
    let layer = ResilienceLayer::new(&pool, timeout);
    Router::new()
        .route("/orders", post(create).get(list))
        .route("/orders/{id}", get(one))
        .layer(layer)
        // Alive means alive: a dead database is no reason to restart this process.
        .route("/healthz", get(|| async { "ok" }))
        .with_state(pool)
}

async fn create(
    State(pool): State<Pool>,
    headers: HeaderMap,
    Json(order): Json<NewOrder>,
) -> Result<Response, Error> {
    let Some(key) = headers.get("Idempotency-Key").and_then(|key| key.to_str().ok()) else {
        return Ok((StatusCode::BAD_REQUEST, "the header Idempotency-Key is missing").into_response());
    };
    let options = TxOptions::write().retry(Retry::Safe);
    let (created, order) =
        pool.transaction(options, async |mut tx| insert(&mut tx, key, &order).await).await.into_result()?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(order)).into_response())
}

async fn insert(
    tx: &mut tidegate_client::Transaction,
    key: &str,
    order: &NewOrder,
) -> Result<(bool, Order), Error> {
    const INSERT: &str = "INSERT INTO orders (idempotency_key, item, quantity) VALUES ($1, $2, $3)
        ON CONFLICT (idempotency_key) DO NOTHING RETURNING id, idempotency_key, item, quantity";
    const SELECT: &str = "SELECT id, idempotency_key, item, quantity FROM orders WHERE idempotency_key = $1";
    match tx.query_opt(INSERT, &[&key, &order.item, &order.quantity]).await? {
        Some(row) => Ok((true, Order::of(&row))),
        None => Ok((false, Order::of(&tx.query_one(SELECT, &[&key]).await?))),
    }
}

async fn one(State(pool): State<Pool>, Path(id): Path<i64>) -> Result<Response, Error> {
    let sql = "SELECT id, idempotency_key, item, quantity FROM orders WHERE id = $1";
    let row = pool.read().await?.query_opt(sql, &[&id]).await?;
    Ok(row.map_or_else(|| StatusCode::NOT_FOUND.into_response(), |row| Json(Order::of(&row)).into_response()))
}

async fn list(State(pool): State<Pool>) -> Result<Json<Vec<Order>>, Error> {
    let sql = "SELECT id, idempotency_key, item, quantity FROM orders ORDER BY id DESC LIMIT 100";
    let rows = pool.read().await?.query(sql, &[]).await?;
    Ok(Json(rows.iter().map(Order::of).collect()))
}

/// SIGTERM or Ctrl-C: requests under way are finished; their deadlines bound that.
async fn stop() {
    let terminated = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = terminated => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
