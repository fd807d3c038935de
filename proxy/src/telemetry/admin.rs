//! The control plane's HTTP endpoints, on a thread and runtime of their own.
//!
//! Reads state only through atomics, snapshots and short locks; never awaits the data path.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::server::Shared;

/// Requests at the same time.
const CONNECTIONS_MAX: usize = 64;
/// How long a client may take to send its request line and headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of request line and headers.
const HEADER_MAX: usize = 16 * 1024;

/// Starts the control plane on a thread of its own.
///
/// # Errors
/// When the thread or its runtime cannot be made.
pub fn start(listener: StdListener, shared: Arc<Shared>, metrics: PrometheusHandle) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("tidegate-admin".to_owned()).spawn(move || {
        if let Err(error) = runtime.block_on(serve(listener, shared, metrics)) {
            tracing::error!(error = &error as &dyn std::error::Error, "control plane ended");
        }
    })?;
    Ok(())
}

async fn serve(listener: StdListener, shared: Arc<Shared>, metrics: PrometheusHandle) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return Ok(()) };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (shared, metrics) = (Arc::clone(&shared), metrics.clone());
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(move |request| {
                let response = respond(&request, &shared, &metrics);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(HEADER_MAX)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(error = &error as &dyn std::error::Error, "control plane request failed");
            }
        });
    }
}

fn respond<B>(request: &Request<B>, shared: &Shared, metrics: &PrometheusHandle) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/livez" => plain(StatusCode::OK, "alive\n"),
        "/readyz" | "/readyz/write" => match shared.readiness() {
            Ok(()) => plain(StatusCode::OK, "ready\n"),
            Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, &format!("not ready: {why}\n")),
        },
        "/metrics" => {
            crate::telemetry::metrics::observe(shared);
            plain(StatusCode::OK, &metrics.render())
        }
        _ => plain(StatusCode::NOT_FOUND, "GET /livez, /readyz, /readyz/write or /metrics\n"),
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
