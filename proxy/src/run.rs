//! The life of the process: it starts, obeys signals and orders, drains, and ends.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::task::JoinHandle;

use crate::config::{Config, Sources};
use crate::console::Order;
use crate::file_limit;
use crate::frontend::listener::Listener;
use crate::journal::{Decision, Kind};
use crate::server::{ServerError, Shared};
use crate::sweep;
use crate::watchdog::systemd;
use crate::worker::Worker;

/// How long the process waits at its end for alerts that are being sent; what is left is sent at the next start.
const LAST_ALERTS: Duration = Duration::from_millis(500);

/// Runs the sidecar until it is told to stop.
///
/// # Errors
/// When it cannot start.
pub fn run(config: Config, sources: &Sources) -> Result<(), ServerError> {
    let exporter = crate::telemetry::metrics::install();
    file_limit::raise_for(&config);
    let workers = (0..config.workers.max(1)).map(Worker::start).collect::<io::Result<Vec<_>>>()?;
    let admin = config.admin.address;
    let shared = Arc::new(Shared::new(config, workers)?);
    let listeners = open_listeners(&shared.config.load())?;
    let admin = std::net::TcpListener::bind(admin)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .map_err(|source| ServerError::Listen { address: admin.to_string(), source })?;
    let admin_address = admin.local_addr()?;
    let control = crate::telemetry::admin::start(admin, Arc::clone(&shared), exporter)?;
    shared.take_control(control);
    shared.discover()?;
    let addresses: Vec<String> = listeners.iter().map(Listener::address).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Before anybody is told that we are here: who is told to stop right then must drain, not die.
    let signals = runtime.block_on(async { Signals::catch() })?;
    let acceptors = Acceptors::start(&shared, listeners);
    tracing::info!(listen = addresses.join(", "), admin = %admin_address, "ready");
    systemd::ready();
    shared.watch(runtime.handle())?;
    sweep::start(&shared, runtime.handle().clone())?;
    let ended = runtime.block_on(tend(&shared, sources, acceptors, signals));
    // A look-up of a name may hang for as long as its resolver does.
    runtime.shutdown_background();
    ended
}

/// What the process can be told by its supervisor.
struct Signals {
    hangup: SignalStream,
    terminate: SignalStream,
    interrupt: SignalStream,
}

impl Signals {
    /// From now on these signals do not end the process by themselves. Called within a runtime.
    fn catch() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }
}

fn open_listeners(config: &Config) -> Result<Vec<Listener>, ServerError> {
    let open = |address: &crate::config::ListenAddress| {
        Listener::open(address).map_err(|source| ServerError::Listen { address: address.to_string(), source })
    };
    config.listen.addresses.iter().map(open).collect()
}

/// The tasks that accept; they end when told.
struct Acceptors(Vec<JoinHandle<io::Result<()>>>);

impl Acceptors {
    fn start(shared: &Arc<Shared>, listeners: Vec<Listener>) -> Self {
        let spawn = |listener: Listener| {
            let task = listener.run(Arc::clone(shared));
            shared.workers().first().map(|worker| worker.handle.spawn(task))
        };
        Self(listeners.into_iter().filter_map(spawn).collect())
    }

    /// Closes the sockets and removes their files.
    async fn stop(self) {
        for acceptor in &self.0 {
            acceptor.abort();
        }
        for acceptor in self.0 {
            // Over once the task is dropped, and with it the socket; a worker that is stuck is not waited for.
            let _ = tokio::time::timeout(Duration::from_secs(1), acceptor).await;
        }
    }
}

/// Obeys signals and orders until the end.
async fn tend(
    shared: &Arc<Shared>,
    sources: &Sources,
    acceptors: Acceptors,
    signals: Signals,
) -> Result<(), ServerError> {
    let Signals { mut hangup, mut terminate, mut interrupt } = signals;
    let evidence = format!("version {}, process {}", env!("CARGO_PKG_VERSION"), std::process::id());
    shared
        .journal
        .record(Decision::new(Kind::Process).change("starting", "serving").evidence(&evidence))
        .forget();
    tokio::select! {
        () = reload_on(&mut hangup, shared, sources) => {}
        () = obey(shared, sources) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    systemd::stopping();
    let evidence = format!("told to stop, with {} sessions", shared.registry.len());
    shared
        .journal
        .record(Decision::new(Kind::Process).change("serving", "draining").evidence(&evidence))
        .settled()
        .await;
    acceptors.stop().await;
    let deadline = shared.config.load().timeouts.drain;
    tokio::select! {
        () = shared.drain(deadline) => {}
        _ = terminate.recv() => tracing::warn!("told twice, ending at once"),
        _ = interrupt.recv() => tracing::warn!("told twice, ending at once"),
    }
    let evidence = format!("{} sessions were left", shared.registry.len());
    shared
        .journal
        .record(Decision::new(Kind::Process).change("draining", "stopped").evidence(&evidence))
        .settled()
        .await;
    shared.alerts.settle(LAST_ALERTS).await;
    tracing::info!("stopped");
    Ok(())
}

async fn reload_on(hangup: &mut SignalStream, shared: &Arc<Shared>, sources: &Sources) {
    while hangup.recv().await.is_some() {
        // Its outcome is in the log.
        let _ = shared.reload(sources).await;
    }
}

/// Does what operators say in the console, until they say stop.
async fn obey(shared: &Arc<Shared>, sources: &Sources) {
    loop {
        match shared.ties.next_order().await {
            // A console that has left in the meantime needs no answer.
            Order::Reload(answer) => drop(answer.send(shared.reload(sources).await)),
            Order::Shutdown => return,
        }
    }
}
