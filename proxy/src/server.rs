//! The running sidecar: what its threads share, and how it starts, reloads and stops.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::auth::scram::{KeyCache, SaltKey};
use crate::auth::{ScramError, Secret, UserlistError};
use crate::backend::Connector;
use crate::config::{Config, ListenTlsMode, Sources, UpstreamAddress, reload_refusals};
use crate::frontend::listener::Listener;
use crate::frontend::secrets::Secrets;
use crate::pool::upstream::{Limits, enter_worker};
use crate::pool::{PoolKey, Routes, Upstream, Waiter};
use crate::session::registry::{Phase, Registry, Signal};
use crate::tls::{ClientTls, ServerTls, TlsError};

/// Period of the sweep that refuses waiters whose time is over and moves the clock.
const SWEEP: Duration = Duration::from_millis(10);
/// Sweeps between two looks at idle backends and idle sessions.
const SWEEPS_PER_ROUND: u32 = 25;
/// Keys derived from passwords that are remembered.
const KEYS_KEPT: usize = 1024;
/// Questions of `auth_query` at the same time.
const AUTH_QUERIES: usize = 4;

/// Polls of sessions between two looks at the sockets while there is work. Each look is a system call; a batch
/// of events is over long before.
const EVENT_INTERVAL: u32 = 512;

/// What all threads see.
#[derive(Debug)]
pub struct Shared {
    /// The configuration in force.
    pub config: ArcSwap<Config>,
    /// All sessions.
    pub registry: Arc<Registry>,
    /// Which server serves.
    pub routes: Arc<Routes>,
    /// What we know of users.
    pub secrets: ArcSwap<Secrets>,
    /// TLS towards applications.
    pub tls: ArcSwapOption<ServerTls>,
    /// Salts of verifiers that we make.
    pub salts: Arc<SaltKey>,
    keys: Arc<KeyCache>,
    auth_queries: Semaphore,
    workers: Vec<Worker>,
    draining: AtomicBool,
}

/// A data worker.
#[derive(Debug)]
pub struct Worker {
    /// Its number; the first accepts.
    pub index: usize,
    /// Its runtime.
    pub handle: Handle,
    sessions: Arc<AtomicUsize>,
}

/// One session's share of a worker's load.
#[derive(Debug)]
pub struct Load(Arc<AtomicUsize>);

impl Worker {
    /// Counts a session in.
    pub fn load(&self) -> Load {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        Load(Arc::clone(&self.sessions))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why the sidecar cannot run.
#[derive(Debug, Error)]
pub enum ServerError {
    /// A listening address cannot be opened.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The userlist cannot be read.
    #[error(transparent)]
    Userlist(#[from] UserlistError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The system has no randomness.
    #[error("no randomness")]
    Randomness(#[from] ScramError),
    /// Threads, signals or runtimes cannot be set up.
    #[error("cannot start")]
    Start(#[from] io::Error),
    /// No upstream is configured.
    #[error("no upstream is configured")]
    NoUpstream,
}

impl Shared {
    fn new(config: Config, workers: Vec<Worker>) -> Result<Self, ServerError> {
        let keys = Arc::new(KeyCache::new(KEYS_KEPT)?);
        let mut upstreams = upstreams(&config, &keys)?.into_iter();
        let primary = upstreams.next().ok_or(ServerError::NoUpstream)?;
        Ok(Self {
            registry: Arc::default(),
            routes: Arc::new(Routes::new(primary, upstreams)),
            secrets: ArcSwap::from_pointee(Secrets::load(&config)?),
            tls: ArcSwapOption::from(server_tls(&config)?.map(Arc::new)),
            salts: Arc::new(SaltKey::new()?),
            keys,
            auth_queries: Semaphore::new(AUTH_QUERIES),
            workers,
            draining: AtomicBool::new(false),
            config: ArcSwap::from_pointee(config),
        })
    }

    /// The worker with the fewest sessions.
    pub fn least_loaded(&self) -> &Worker {
        let least = self.workers.iter().min_by_key(|worker| worker.sessions.load(Ordering::Relaxed));
        least.unwrap_or_else(|| unreachable!("there is at least one worker"))
    }

    /// Whether `trust` may let this application in. The listening addresses decide, and they are checked at
    /// start; this is the second lock on the same door.
    pub fn may_trust(&self, local: bool) -> bool {
        local || self.config.load().listen.addresses.iter().all(crate::config::ListenAddress::is_local)
    }

    /// Whether sessions can be served.
    ///
    /// # Errors
    /// Why not.
    pub fn readiness(&self) -> Result<(), &'static str> {
        if self.draining.load(Ordering::Relaxed) { Err("draining") } else { Ok(()) }
    }

    /// Asks PostgreSQL for the secret of a user, as the user in `[cluster]`.
    ///
    /// # Errors
    /// When it cannot be asked. `Ok(None)`: there is no `auth_query`, or no such user.
    pub async fn query_secret(&self, user: &str, worker: usize) -> Result<Option<Secret>, ()> {
        let config = self.config.load_full();
        let (Some(query), Some(cluster_user)) = (&config.listen.auth_query, &config.cluster.user) else {
            return Ok(None);
        };
        let _place = self.auth_queries.acquire().await.map_err(drop)?;
        let key = PoolKey {
            database: config.cluster.database.as_str().into(),
            user: cluster_user.as_str().into(),
            replication: None,
        };
        let pool = self.routes.primary().pool(key);
        pool.set_credential(self.secrets.load().credential(cluster_user));
        let waiter = Arc::new(Waiter::default());
        let asked = async {
            let mut lease =
                pool.acquire(&waiter, worker).await.map_err(|refusal| refusal.reason().to_owned())?;
            let none = crate::backend::Settings::none();
            crate::session::settle::bring(&mut lease, &none).await.map_err(|refused| refused.words().1)?;
            let rows = lease.query_with(query, &[user]).await.map_err(|error| error.to_string())?;
            lease.give_back();
            Ok::<_, String>(rows)
        };
        match asked.await {
            Ok(rows) => {
                let secret = rows.into_iter().next().and_then(|row| row.into_iter().nth(1)).flatten();
                Ok(secret.and_then(|secret| String::from_utf8(secret).ok()).map(|text| Secret::parse(&text)))
            }
            Err(error) => {
                tracing::warn!(%error, "auth_query failed");
                Err(())
            }
        }
    }

    /// Takes a new configuration over, all or nothing.
    fn reload(&self, sources: &Sources) {
        match self.try_reload(sources) {
            Ok(warnings) => {
                for warning in warnings {
                    tracing::warn!("{warning}");
                }
                tracing::info!("configuration reloaded");
            }
            Err(reasons) => {
                for reason in reasons {
                    tracing::error!("configuration not reloaded: {reason}");
                }
            }
        }
    }

    fn try_reload(&self, sources: &Sources) -> Result<Vec<String>, Vec<String>> {
        let one = |error: &dyn std::error::Error| vec![describe(error)];
        let new = Config::load(sources)
            .map_err(|errors| errors.problems.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        let old = self.config.load_full();
        let refusals = reload_refusals(&old, &new);
        if !refusals.is_empty() {
            return Err(refusals);
        }
        let secrets = Secrets::load(&new).map_err(|error| one(&error))?;
        let tls = server_tls(&new).map_err(|error| one(&error))?;
        let connectors = connectors(&new, &self.keys).map_err(|error| one(&error))?;
        self.secrets.store(Arc::new(secrets));
        self.tls.store(tls.map(Arc::new));
        self.take_over(connectors, Limits::of(&new), old.cluster.upstreams == new.cluster.upstreams);
        let warnings = new.warnings.clone();
        self.config.store(Arc::new(new));
        Ok(warnings)
    }

    fn take_over(&self, connectors: Vec<Connector>, limits: Limits, same: bool) {
        let current = self.routes.upstreams();
        if same {
            for (upstream, connector) in current.iter().zip(connectors) {
                upstream.reload(connector, limits);
            }
            return;
        }
        let mut upstreams = connectors.into_iter().map(|connector| {
            let name = connector.address.to_string();
            match current.iter().find(|upstream| upstream.name == name) {
                Some(upstream) => {
                    upstream.reload(connector, limits);
                    Arc::clone(upstream)
                }
                None => Arc::new(Upstream::new(connector, limits)),
            }
        });
        if let Some(primary) = upstreams.next() {
            tracing::info!(primary = %primary.name, "upstreams replaced");
            self.routes.replace(primary, upstreams);
        }
    }

    /// Refuses waiters, ends idle sessions, closes old backends.
    async fn sweep(&self) {
        let mut ticks = tokio::time::interval(SWEEP);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut round = 0;
        loop {
            ticks.tick().await;
            crate::clock::tick();
            let now = Instant::now();
            let upstreams = self.routes.tended();
            for upstream in &upstreams {
                for pool in upstream.pools() {
                    pool.sweep_waiters(now);
                }
            }
            round = (round + 1) % SWEEPS_PER_ROUND;
            if round == 0 {
                self.sweep_round(&upstreams);
            }
        }
    }

    fn sweep_round(&self, upstreams: &[Arc<Upstream>]) {
        for upstream in upstreams {
            for pool in upstream.pools() {
                pool.sweep_idle();
            }
            upstream.drop_unused_pools();
        }
        self.routes.wind_down();
        let timeouts = self.config.load().timeouts;
        for entry in self.registry.all() {
            let (phase, since) = entry.phase();
            let limit = match phase {
                Phase::Idle => timeouts.idle_session,
                Phase::IdleInTransaction => timeouts.idle_in_transaction,
                Phase::Login | Phase::Queued | Phase::Active => Duration::ZERO,
            };
            if limit > Duration::ZERO && crate::clock::since(since) > limit {
                entry.signal(Signal::Overdue);
            }
        }
    }

    /// Waits until the last session has ended, or until `deadline`.
    async fn drain(&self, deadline: Duration) {
        self.draining.store(true, Ordering::Relaxed);
        tracing::info!(sessions = self.registry.len(), "draining");
        let end = Instant::now() + deadline;
        while !self.registry.is_empty() && Instant::now() < end {
            // Repeated: a session may just have logged in.
            self.registry.signal_all(Signal::Drain);
            tokio::time::sleep(SWEEP).await;
        }
        self.registry.signal_all(Signal::Kill);
        let end = Instant::now() + Duration::from_secs(1);
        while !self.registry.is_empty() && Instant::now() < end {
            tokio::time::sleep(SWEEP).await;
        }
    }
}

/// An error and what caused it, in one line.
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn connectors(config: &Config, keys: &Arc<KeyCache>) -> Result<Vec<Connector>, TlsError> {
    let tls = ClientTls::new(&config.cluster.tls)?.map(Arc::new);
    let connector = |address: &UpstreamAddress| Connector {
        address: address.clone(),
        ssl_mode: config.cluster.tls.mode,
        tls: tls.clone(),
        keys: Arc::clone(keys),
    };
    Ok(config.cluster.upstreams.iter().map(connector).collect())
}

fn upstreams(config: &Config, keys: &Arc<KeyCache>) -> Result<Vec<Arc<Upstream>>, TlsError> {
    let limits = Limits::of(config);
    Ok(connectors(config, keys)?.into_iter().map(|c| Arc::new(Upstream::new(c, limits))).collect())
}

fn server_tls(config: &Config) -> Result<Option<ServerTls>, TlsError> {
    let tls = &config.listen.tls;
    match (tls.mode, &tls.cert, &tls.key) {
        (ListenTlsMode::Allow | ListenTlsMode::Require, Some(cert), Some(key)) => {
            ServerTls::load(cert, key, tls.client_ca.as_deref()).map(Some)
        }
        _ => Ok(None),
    }
}

/// Reads the files that a configuration names, keeps nothing, and says what is wrong with them.
pub fn file_problems(config: &Config) -> Vec<String> {
    let userlist = Secrets::load(config).err().map(|error| describe(&error));
    let ours = server_tls(config).err().map(|error| describe(&error));
    let theirs = ClientTls::new(&config.cluster.tls).err().map(|error| describe(&error));
    [userlist, ours, theirs].into_iter().flatten().collect()
}

/// Runs the sidecar until it is told to stop.
///
/// # Errors
/// When it cannot start.
pub fn run(config: Config, sources: &Sources) -> Result<(), ServerError> {
    let exporter = crate::telemetry::metrics::install();
    raise_file_limit(config.listen.max_sessions, config.pool.max_per_upstream);
    let workers = (0..config.workers.max(1)).map(start_worker).collect::<io::Result<Vec<_>>>()?;
    let admin = config.admin.address;
    let shared = Arc::new(Shared::new(config, workers)?);
    let listeners = open_listeners(&shared.config.load())?;
    let admin = std::net::TcpListener::bind(admin)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .map_err(|source| ServerError::Listen { address: admin.to_string(), source })?;
    let admin_address = admin.local_addr()?;
    crate::telemetry::admin::start(admin, Arc::clone(&shared), exporter)?;
    let addresses: Vec<String> = listeners.iter().map(Listener::address).collect();
    let acceptors = Acceptors::start(&shared, listeners);
    tracing::info!(listen = addresses.join(", "), admin = %admin_address, "ready");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(tend(&shared, sources, acceptors))
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
            shared.workers.first().map(|worker| worker.handle.spawn(task))
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

/// Sweeps, and obeys signals, until the end.
async fn tend(shared: &Arc<Shared>, sources: &Sources, acceptors: Acceptors) -> Result<(), ServerError> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        () = shared.sweep() => {}
        () = reload_on(&mut hangup, shared, sources) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    acceptors.stop().await;
    let deadline = shared.config.load().timeouts.drain;
    tokio::select! {
        () = shared.drain(deadline) => {}
        () = shared.sweep() => {}
        _ = terminate.recv() => tracing::warn!("told twice, ending at once"),
        _ = interrupt.recv() => tracing::warn!("told twice, ending at once"),
    }
    tracing::info!("stopped");
    Ok(())
}

async fn reload_on(hangup: &mut SignalStream, shared: &Arc<Shared>, sources: &Sources) {
    while hangup.recv().await.is_some() {
        shared.reload(sources);
    }
}

fn start_worker(index: usize) -> io::Result<Worker> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(EVENT_INTERVAL)
        .global_queue_interval(EVENT_INTERVAL)
        .build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new().name(format!("tidegate-worker-{index}")).spawn(move || {
        enter_worker(index);
        runtime.block_on(std::future::pending::<()>());
    })?;
    Ok(Worker { index, handle, sessions: Arc::default() })
}

/// Every session needs a file descriptor, every backend one, and some are for ourselves.
fn raise_file_limit(max_sessions: usize, max_backends: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const OURS: u64 = 128;
    let needed = u64::try_from(max_sessions.saturating_add(max_backends)).unwrap_or(u64::MAX) + OURS;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return;
    }
    // With the right to do so even the hard limit is raised.
    let maximum = limit.maximum.map(|maximum| maximum.max(needed));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum });
    let raised = raised.or_else(|_| setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }));
    let reached = getrlimit(Resource::Nofile).current;
    if raised.is_err() || reached.is_some_and(|reached| reached < needed) {
        tracing::warn!(
            limit = reached,
            needed,
            "not enough file descriptors for listen.max_sessions; raise the limit (ulimit -n, LimitNOFILE=)"
        );
    }
}
