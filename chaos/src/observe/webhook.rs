//! A receiver of alerts.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::history::RunClock;

use super::Alert;

type Alerts = Arc<Mutex<Vec<Alert>>>;

/// Answers 200 to every POST and keeps what it said, until dropped.
#[derive(Debug)]
pub struct Webhook {
    address: SocketAddr,
    alerts: Alerts,
    deaf: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Webhook {
    /// Listens on a free port of 127.0.0.1.
    pub async fn start(clock: RunClock) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let alerts = Alerts::default();
        let deaf = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(accept(listener, clock, Arc::clone(&alerts), Arc::clone(&deaf)));
        Ok(Self { address, alerts, deaf, task })
    }

    /// While this is set, everything is answered with 503, and forgotten.
    pub(crate) fn deaf(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.deaf)
    }

    /// What to configure.
    pub fn url(&self) -> String {
        format!("http://{}/alerts", self.address)
    }

    /// What came so far.
    pub fn alerts(&self) -> Vec<Alert> {
        self.alerts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, clock: RunClock, alerts: Alerts, deaf: Arc<AtomicBool>) {
    loop {
        // Accept fails only when the process runs out of descriptors; the sender tries again.
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (alerts, deaf) = (Arc::clone(&alerts), Arc::clone(&deaf));
        let service =
            service_fn(move |request| receive(request, clock, Arc::clone(&alerts), Arc::clone(&deaf)));
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn receive(
    request: Request<Incoming>,
    clock: RunClock,
    alerts: Alerts,
    deaf: Arc<AtomicBool>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let at = clock.now();
    let bytes = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
    let body = bytes.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let status = match body {
        _ if deaf.load(Ordering::Relaxed) => StatusCode::SERVICE_UNAVAILABLE,
        Some(body) => {
            alerts.lock().unwrap_or_else(PoisonError::into_inner).push(Alert { at, body });
            StatusCode::OK
        }
        None => StatusCode::BAD_REQUEST,
    };
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    Ok(response)
}
