//! What the threads of the running sidecar share, and how it is changed while it runs.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use thiserror::Error;
use tidegate_layers::shed::Ask;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Semaphore, oneshot};
use tokio::time::timeout;

use crate::alerts::Alerts;
use crate::auth::scram::{KeyCache, SaltKey};
use crate::auth::{ScramError, Secret, Userlist, UserlistError};
use crate::backend::{Connector, Login};
use crate::config::{Config, Files, ListenTlsMode, Sources, UpstreamAddress, reload_refusals};
use crate::console::Ties;
use crate::discovery::RecordError;
use crate::exchange::facts::Reach;
use crate::failover::{self, Failover, Told};
use crate::file_limit;
use crate::frontend::secrets::Secrets;
use crate::guard::{Logins, Reporters};
use crate::journal::{Decision, Journal, Kind};
use crate::pool::routes::Policy;
use crate::pool::upstream::Limits;
use crate::pool::{Databases, Pool, PoolKey, Routes, Upstream};
use crate::session::policy::Policies;
use crate::session::registry::{Registry, Signal};
use crate::session::settle::{SettingsRefused, bring};
use crate::sql::Lane;
use crate::state_dir::StateDir;
use crate::status::board::Board;
use crate::tls::{ClientTls, ServerTls, TlsError};
use crate::watchdog::{Watchdog, Who};
use crate::worker::Worker;

/// Keys derived from passwords that are remembered.
const KEYS_KEPT: usize = 1024;
/// Questions of `auth_query` at the same time.
const AUTH_QUERIES: usize = 4;
/// How long a server may take for one: else it is stuck, and others wait for the place.
const AUTH_QUERY_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a reload may take to read what the configuration names: a disk that does not answer is not waited for.
const DISK_TIMEOUT: Duration = Duration::from_secs(5);

/// While sessions are drained, how often it is looked whether they have gone.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What all threads see.
#[derive(Debug)]
pub struct Shared {
    /// The configuration in force.
    pub config: ArcSwap<Config>,
    /// All sessions.
    pub registry: Arc<Registry>,
    /// Which server serves.
    pub routes: Arc<Routes>,
    /// Which terms sessions have.
    pub policies: Arc<Policies>,
    /// What we know of users.
    pub secrets: ArcSwap<Secrets>,
    /// All databases.
    pub databases: Arc<Databases>,
    /// What ties the admin console to the other threads.
    pub ties: Ties,
    /// TLS towards applications.
    pub tls: ArcSwapOption<ServerTls>,
    /// Salts of verifiers that we make.
    pub salts: Arc<SaltKey>,
    /// What was decided.
    pub journal: Arc<Journal>,
    /// Who is told.
    pub alerts: Alerts,
    /// Whether we make progress.
    pub watchdog: Arc<Watchdog>,
    keys: Arc<KeyCache>,
    auth_queries: Semaphore,
    workers: Vec<Worker>,
    draining: AtomicBool,
    /// Held by the thread that reads for a reload: it may hang as long as the disk does.
    reading: Arc<Mutex<()>>,
    /// What the control plane keeps.
    pub board: Board,
    /// The control thread's runtime.
    control: OnceLock<Handle>,
    /// Who asks our own questions.
    logins: Arc<Logins>,
    /// What finds out who is the primary.
    failover: OnceLock<Failover>,
}

/// A configuration of which everything that can fail is done.
struct Ready {
    config: Config,
    secrets: Secrets,
    tls: Option<ServerTls>,
    connectors: Vec<Connector>,
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
    /// What was remembered of the cluster cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Alerts cannot be sent.
    #[error(transparent)]
    Alerts(#[from] crate::alerts::StartError),
}

impl Shared {
    pub(crate) fn new(config: Config, workers: Vec<Worker>) -> Result<Self, ServerError> {
        let keys = Arc::new(KeyCache::new(KEYS_KEPT)?);
        let databases = Arc::default();
        let logins = Arc::default();
        let upstreams = upstreams(&config, &keys, &databases, &logins)?;
        if upstreams.is_empty() {
            return Err(ServerError::NoUpstream);
        }
        let watchdog = Watchdog::new(workers.len(), config.watchdog);
        let folder = Arc::new(StateDir::new(&config.state_dir));
        Ok(Self {
            journal: Journal::start(Arc::clone(&folder))?,
            alerts: Alerts::start(
                &config.alerts,
                config.admin.address.port(),
                folder,
                Arc::clone(&watchdog),
            )?,
            watchdog,
            registry: Arc::default(),
            databases,
            ties: Ties::default(),
            routes: Arc::new(Routes::new(upstreams, Policy::of(&config))),
            logins,
            failover: OnceLock::new(),
            policies: Arc::new(Policies::new(&config)),
            secrets: ArcSwap::from_pointee(Secrets::load(&config)?),
            tls: ArcSwapOption::from(server_tls(&config)?.map(Arc::new)),
            salts: Arc::new(SaltKey::new()?),
            keys,
            auth_queries: Semaphore::new(AUTH_QUERIES),
            workers,
            draining: AtomicBool::new(false),
            reading: Arc::default(),
            board: Board::default(),
            control: OnceLock::new(),
            config: ArcSwap::from_pointee(config),
        })
    }

    /// Lets all threads count, and starts the watchdog.
    pub(crate) fn watch(&self, main: &Handle) -> io::Result<()> {
        for worker in &self.workers {
            worker.handle.spawn(Arc::clone(&self.watchdog).tick(Who::Worker(worker.index)));
        }
        main.spawn(Arc::clone(&self.watchdog).tick(Who::Main));
        self.watchdog.start(self.alerts.clone(), Arc::clone(&self.journal))
    }

    /// The data workers.
    pub fn workers(&self) -> &[Worker] {
        &self.workers
    }

    /// The worker with the fewest sessions.
    pub fn least_loaded(&self) -> &Worker {
        let least = self.workers.iter().min_by_key(|worker| worker.loaded());
        least.unwrap_or_else(|| unreachable!("there is at least one worker"))
    }

    /// Whether `trust` may let this application in. The listening addresses decide, and they are checked at
    /// start; this is the second lock on the same door.
    pub fn may_trust(&self, local: bool) -> bool {
        local || self.config.load().listen.addresses.iter().all(crate::config::ListenAddress::is_local)
    }

    /// Whether we were told to stop.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Whether a lane can be served.
    ///
    /// # Errors
    /// Why not.
    pub fn readiness(&self, lane: Lane) -> Result<(), String> {
        if self.draining.load(Ordering::Relaxed) {
            return Err("draining".to_owned());
        }
        let reach = match lane {
            Lane::Read => Reach::Anywhere,
            Lane::Write => Reach::Primary,
        };
        let upstream = self.routes.route(reach, None, tokio::time::Instant::now());
        let upstream = upstream.map_err(|why| format!("{}s are refused: {why}", lane.word()))?;
        let standing = upstream.guard.standing(lane);
        if standing.phase.admits() {
            return Ok(());
        }
        let cause = standing.cause.as_ref().map_or("unknown", |diagnosis| diagnosis.cause.word());
        Err(format!("{}s are refused, cause={cause}", lane.word()))
    }

    /// Asks PostgreSQL for the secret of a user, as the user in `[cluster]`. A server that does not answer keeps nobody
    /// from being let in by another.
    ///
    /// # Errors
    /// When none can be asked. `Ok(None)`: there is no `auth_query`, or no such user.
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
        for upstream in self.routes.for_login() {
            let pool = upstream.pool(key.clone());
            pool.set_credential(self.secrets.load().credential(cluster_user));
            let asked = timeout(AUTH_QUERY_TIMEOUT, ask_secret(&pool, query, user, worker)).await;
            match asked.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
                Ok(secret) => return Ok(secret),
                Err(error) => tracing::warn!(upstream = %upstream.name, %error, "auth_query failed"),
            }
        }
        Err(())
    }

    /// From now on the guards of all upstreams are watched, on the control thread.
    pub(crate) fn take_control(&self, control: Handle) {
        self.routes.resolver.run_on(control.clone());
        let control = self.control.get_or_init(|| control);
        self.board.orders.apply(&self.routes);
        self.name_upstreams();
        if let Some(worker) = self.workers.first() {
            for upstream in self.routes.upstreams() {
                let (journal, alerts) = (Arc::clone(&self.journal), self.alerts.clone());
                upstream.guard.report_to(Reporters { journal, alerts });
                upstream.watch(control, &worker.handle);
            }
        }
        self.introduce();
    }

    /// From now on it is found out who is the primary.
    pub(crate) fn discover(&self) -> Result<(), ServerError> {
        let Some(control) = self.control.get() else { return Ok(()) };
        let settings = failover::settings(&self.config.load())?;
        let told = Told { journal: Arc::clone(&self.journal), alerts: self.alerts.clone() };
        let failover = Failover::start(settings, control, &self.routes, Arc::clone(&self.logins), told);
        // There is one start.
        let _ = self.failover.set(failover);
        Ok(())
    }

    /// Tells the guards of all upstreams who asks our own questions.
    /// Incidents may be about these, and no others.
    fn name_upstreams(&self) {
        let names = self.routes.upstreams().into_iter().map(|upstream| Box::from(&*upstream.name));
        self.alerts.set_upstreams(names);
    }

    fn introduce(&self) {
        let config = self.config.load();
        let secrets = self.secrets.load();
        let login = config.cluster.user.as_ref().map(|user| {
            Arc::new(Login {
                user: user.clone(),
                database: config.cluster.database.clone(),
                replication: None,
                application_name: None,
                credential: secrets.credential(user),
            })
        });
        self.logins.cluster.store(login);
    }

    /// Takes a new configuration over, all or nothing. The journal has it first.
    pub(crate) async fn reload(self: &Arc<Self>, sources: &Sources) -> Result<Vec<String>, Vec<String>> {
        let decision = Decision::new(Kind::Configuration);
        match self.prepare(sources).await {
            Ok(ready) => {
                let evidence = format!("read anew, with {} warning(s)", ready.config.warnings.len());
                self.journal.record(decision.change("old", "new").evidence(&evidence)).settled().await;
                let warnings = ready.config.warnings.clone();
                for warning in &warnings {
                    tracing::warn!("{warning}");
                }
                self.put_in_force(ready);
                tracing::info!("configuration reloaded");
                Ok(warnings)
            }
            Err(reasons) => {
                let decision = decision.change("old", "old").evidence(&reasons.join("; "));
                self.journal.record(decision).forget();
                for reason in &reasons {
                    tracing::error!("configuration not reloaded: {reason}");
                }
                Err(reasons)
            }
        }
    }

    /// Everything that can fail; discovery has the new list of upstreams then.
    async fn prepare(self: &Arc<Self>, sources: &Sources) -> Result<Ready, Vec<String>> {
        let ready = self.read_anew(sources).await?;
        if let Some(failover) = self.failover.get() {
            failover.reload(&ready.config).await.map_err(|refused| vec![refused.to_string()])?;
        }
        Ok(ready)
    }

    /// Reads on a thread of its own: the main thread has more to do than to wait for a disk.
    async fn read_anew(self: &Arc<Self>, sources: &Sources) -> Result<Ready, Vec<String>> {
        let turn = timeout(DISK_TIMEOUT, Arc::clone(&self.reading).lock_owned()).await;
        let turn = turn.map_err(|_| vec!["an earlier reload still waits for the disk".to_owned()])?;
        let (answer, read) = oneshot::channel();
        let (shared, sources) = (Arc::clone(self), sources.clone());
        let read_files = move || {
            let ready = shared.try_reload(&sources);
            drop(turn);
            // Nobody may wait for it any more.
            let _ = answer.send(ready);
        };
        let started = std::thread::Builder::new().name("tidegate-reload".to_owned()).spawn(read_files);
        started.map_err(|error| vec![describe(&error)])?;
        match timeout(DISK_TIMEOUT, read).await {
            Ok(Ok(ready)) => ready,
            Ok(Err(_)) => Err(vec!["reading it failed; the log says how".to_owned()]),
            Err(_) => Err(vec!["the disk does not answer; what was in force stays".to_owned()]),
        }
    }

    fn try_reload(&self, sources: &Sources) -> Result<Ready, Vec<String>> {
        let one = |error: &dyn std::error::Error| vec![describe(error)];
        let mut new = Config::load(sources)
            .map_err(|errors| errors.problems.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        let old = self.config.load_full();
        new.keep_unwritten(&old);
        let refusals = reload_refusals(&old, &new);
        if !refusals.is_empty() {
            return Err(refusals);
        }
        let secrets = Secrets::load(&new).map_err(|error| one(&error))?;
        let tls = server_tls(&new).map_err(|error| one(&error))?;
        let connectors = connectors(&new, &self.keys).map_err(|error| one(&error))?;
        Ok(Ready { config: new, secrets, tls, connectors })
    }

    fn put_in_force(&self, ready: Ready) {
        let Ready { config, secrets, tls, connectors } = ready;
        self.secrets.store(Arc::new(secrets));
        self.tls.store(tls.map(Arc::new));
        self.take_over(connectors, &config);
        self.policies.replace(&config);
        self.alerts.reload(&config.alerts);
        self.watchdog.reload(config.watchdog);
        file_limit::raise_for(&config);
        self.config.store(Arc::new(config));
        self.introduce();
    }

    fn take_over(&self, connectors: Vec<Connector>, config: &Config) {
        let (current, limits) = (self.routes.upstreams(), Limits::of(config));
        let upstreams = connectors.into_iter().map(|connector| {
            let name = connector.address.to_string();
            match current.iter().find(|upstream| *upstream.name == *name) {
                Some(upstream) => {
                    upstream.reload(connector, &limits);
                    Arc::clone(upstream)
                }
                None => Upstream::new(connector, &limits, &self.databases, &self.logins),
            }
        });
        self.routes.replace(upstreams.collect(), Policy::of(config));
        self.name_upstreams();
        if self.config.load().cluster.upstreams != config.cluster.upstreams {
            tracing::info!("upstreams replaced");
            if let Some(control) = self.control.get() {
                self.take_control(control.clone());
            }
        }
    }

    /// Waits until the last session has ended, or until `deadline`.
    pub(crate) async fn drain(&self, deadline: Duration) {
        self.draining.store(true, Ordering::Relaxed);
        tracing::info!(sessions = self.registry.len(), "draining");
        let end = Instant::now() + deadline;
        while !self.registry.is_empty() && Instant::now() < end {
            // Repeated: a session may just have logged in.
            self.registry.signal_all(Signal::Drain);
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        self.registry.signal_all(Signal::Kill);
        let end = Instant::now() + Duration::from_secs(1);
        while !self.registry.is_empty() && Instant::now() < end {
            tokio::time::sleep(LOOK_AGAIN).await;
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

async fn ask_secret(
    pool: &Arc<Pool>,
    query: &str,
    user: &str,
    worker: usize,
) -> Result<Option<Secret>, String> {
    let acquired = pool.acquire(Lane::Read, Ask::default(), worker).await;
    let mut lease = acquired.map_err(|refusal| refusal.reason().to_owned())?;
    let none = crate::backend::Settings::none();
    bring(&mut lease, &none).await.map_err(SettingsRefused::reason)?;
    let rows = lease.query_with(query, &[user]).await.map_err(|error| error.to_string())?;
    lease.give_back();
    let secret = rows.into_iter().next().and_then(|row| row.into_iter().nth(1)).flatten();
    Ok(secret.and_then(|secret| String::from_utf8(secret).ok()).map(|text| Secret::parse(&text)))
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

fn upstreams(
    config: &Config,
    keys: &Arc<KeyCache>,
    databases: &Arc<Databases>,
    logins: &Arc<Logins>,
) -> Result<Vec<Arc<Upstream>>, TlsError> {
    let limits = Limits::of(config);
    Ok(connectors(config, keys)?.into_iter().map(|c| Upstream::new(c, &limits, databases, logins)).collect())
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

/// Reads the files that a configuration names, keeps nothing, and says all that is wrong with them.
pub fn file_problems(files: &Files) -> Vec<String> {
    let userlist = files.userlist.as_deref().and_then(|path| Userlist::load(path).err());
    let ours = ServerTls::problems(&files.listen_tls);
    let theirs = ClientTls::problems(&files.upstream_tls);
    let tls = ours.iter().chain(&theirs).map(|error| describe(error));
    userlist.iter().map(|error| describe(error)).chain(tls).collect()
}
