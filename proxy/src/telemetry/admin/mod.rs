//! The control plane: health, metrics, state and orders over HTTP, on a thread and a runtime of its own, so that
//! nothing on the data path can keep it from answering.
//!
//! Every request is small and bounded: [`HEADER_MAX`] of headers within [`HEADER_TIMEOUT`], [`body::MAX`] of body,
//! [`CONNECTIONS_MAX`] at a time, one request per connection. A client that stops reading is dropped by the kernel. When
//! all places are taken, who has said nothing for longest makes room: connections that idle must not keep a health check out.

mod body;
mod events;
mod guard;
mod health;
mod orders;
pub mod page;
mod problem;
mod router;
mod silent;

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use self::silent::Silent;
use crate::server::Shared;
use crate::telemetry::debug;
use crate::watchdog::Who;

/// Requests at the same time.
const CONNECTIONS_MAX: usize = 64;
/// How long a client may take to send its request line and headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of request line and headers: the least that hyper can be told.
const HEADER_MAX: usize = 8 * 1024;
/// A client that acknowledges nothing for this long is gone (`TCP_USER_TIMEOUT`, RFC 5482).
const USER_TIMEOUT: Duration = Duration::from_secs(15);

type Response = hyper::Response<body::Body>;

/// What every request may look at.
#[derive(Debug)]
struct Context {
    shared: Arc<Shared>,
    counters: PrometheusHandle,
    /// Places of listeners of events.
    listeners: Arc<Semaphore>,
}

/// Both ends of the connection that a request came on.
#[derive(Debug, Clone, Copy)]
struct Ends {
    ours: SocketAddr,
    peer: SocketAddr,
}

/// Starts the control plane on a thread of its own; returns its runtime.
///
/// # Errors
/// When the thread or its runtime cannot be made.
pub fn start(
    listener: StdListener,
    shared: Arc<Shared>,
    counters: PrometheusHandle,
) -> io::Result<tokio::runtime::Handle> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let control = runtime.handle().clone();
    shared.ties.start(&control, &shared);
    std::thread::Builder::new().name("tidegate-admin".to_owned()).spawn(move || {
        let served = runtime.block_on(async {
            tokio::spawn(crate::status::board::watch(Arc::clone(&shared)));
            serve(listener, shared, counters).await
        });
        if let Err(error) = served {
            tracing::error!(error = &error as &dyn std::error::Error, "control plane ended");
        }
    })?;
    Ok(control)
}

async fn serve(listener: StdListener, shared: Arc<Shared>, counters: PrometheusHandle) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    tokio::spawn(Arc::clone(&shared.watchdog).tick(Who::Control));
    let listeners = Arc::new(Semaphore::new(events::LISTENERS_MAX));
    let context = Arc::new(Context { shared, counters, listeners });
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let silent = Arc::new(Silent::default());
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        if places.available_permits() == 0 {
            silent.close_oldest();
        }
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return Ok(()) };
        let context = Arc::clone(&context);
        silent.spawn(|seat| async move {
            let _place = place;
            if let Err(error) = converse(stream, peer, context, seat).await {
                tracing::debug!(error = &*error as &dyn std::error::Error, "control plane request failed");
            }
        });
    }
}

/// One request and its answer.
async fn converse(
    stream: TcpStream,
    peer: SocketAddr,
    context: Arc<Context>,
    seat: silent::Seat,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let socket = socket2::SockRef::from(&stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    let ends = Ends { ours: stream.local_addr()?, peer };
    let service = service_fn(move |request| {
        seat.leave();
        let context = Arc::clone(&context);
        async move { Ok::<_, Infallible>(respond(request, ends, &context).await) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await?;
    Ok(())
}

async fn respond(request: Request<Incoming>, ends: Ends, context: &Context) -> Response {
    let (head, incoming) = request.into_parts();
    if let Some((status, text)) = debug::answer(&head.method, &head.uri, &context.shared) {
        return body::whole(status, "text/plain; charset=utf-8", text);
    }
    let answered = match body::read(&head, incoming).await {
        // No request needs its body; it is read so that none is left to confuse the connection.
        Ok(_) => router::answer(&head, ends, context).await,
        Err(problem) => Err(problem),
    };
    answered.unwrap_or_else(problem::Problem::into_response)
}
