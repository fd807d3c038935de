//! `make run`: a primary, a synchronous standby and a sidecar, for a look at them; SIGUSR1 makes commits hang, and
//! again work; Ctrl-C removes everything.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep};
use url::Url;

use crate::cli::on_path;
use crate::cluster::{
    self, Cluster, ClusterOptions, Node, NodeOptions, Owner, Programs, Replication, Workdir, quote_identifier,
};

/// How long a sidecar may take to serve.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// How long it drains after Ctrl-C, unless told otherwise. Nobody's data is at stake here.
const DRAIN: &str = "2s";
/// A sidecar that has not ended by then never will.
const STOP_MAX: Duration = Duration::from_mins(5);

/// What to start.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The sidecar's binary [default: `tidegate` beside this program].
    #[arg(long)]
    pub tidegate: Option<PathBuf>,
    /// An existing database to stand in front of, instead of a throwaway one. May be repeated.
    #[arg(long)]
    pub upstream: Vec<Url>,
    /// Where the sidecar listens.
    #[arg(long, default_value = "127.0.0.1:6432")]
    pub listen: SocketAddr,
    /// Where its admin page is.
    #[arg(long, default_value = "127.0.0.1:6433")]
    pub admin: SocketAddr,
}

/// Why there is nothing to look at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody else listens there.
    #[error("cannot listen on {address}: stop what listens there, or choose another --{flag}")]
    PortTaken {
        /// Where.
        address: SocketAddr,
        /// The flag that moves it.
        flag: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The servers did not start.
    #[error("cannot start PostgreSQL")]
    Cluster(#[from] cluster::Error),
    /// The sidecar did not start.
    #[error("cannot run {}", program.display())]
    NoSidecar {
        /// Its binary.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The sidecar ended by itself.
    #[error("the sidecar ended ({0}); its messages are above")]
    SidecarEnded(ExitStatus),
    /// The sidecar does not accept connections.
    #[error("the sidecar did not listen within {0:?}")]
    NotReady(Duration),
    /// Signals or children could not be waited for.
    #[error("cannot wait for signals or processes")]
    Wait(#[from] io::Error),
}

/// Starts everything and stays until Ctrl-C, SIGTERM, or the sidecar's end.
///
/// # Cancel safety
///
/// When dropped, processes are killed and folders removed.
pub async fn run(options: Options) -> Result<(), Error> {
    check_free(options.listen, "listen")?;
    check_free(options.admin, "admin")?;
    let mut end = End::new()?;
    let mut toggles = signal(SignalKind::user_defined1())?;
    let behind = tokio::select! {
        behind = behind(options.upstream.clone()) => behind?,
        () = end.told() => return Ok(()),
    };
    let mut sidecar = Sidecar::start(&options, &behind)?;
    let ended = async {
        sidecar.wait_ready(options.listen).await?;
        println!("{}", banner(&options, &behind)?);
        Err(Error::SidecarEnded(sidecar.child.wait().await?))
    };
    let outcome = tokio::select! {
        outcome = ended => outcome,
        outcome = obey(&mut toggles, behind.standby()) => outcome,
        () = end.told() => Ok(()),
    };
    if outcome.is_ok() {
        println!("\nremoving everything");
        sidecar.stop(&mut end).await?;
    }
    outcome
}

/// Ctrl-C or SIGTERM.
struct End {
    interrupted: Signal,
    terminated: Signal,
}

impl End {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupted: signal(SignalKind::interrupt())?,
            terminated: signal(SignalKind::terminate())?,
        })
    }

    async fn told(&mut self) {
        tokio::select! {
            _ = self.interrupted.recv() => {}
            _ = self.terminated.recv() => {}
        }
    }
}

/// Freezes what commits wait for, and lets it go on, by turns. Without a standby of ours nothing happens.
async fn obey(toggles: &mut Signal, standby: Option<Arc<Node>>) -> Result<(), Error> {
    let mut now = Standby::Goes;
    loop {
        toggles.recv().await;
        let Some(standby) = standby.clone() else { continue };
        now = tokio::task::spawn_blocking(move || now.other(&standby)).await.map_err(io::Error::other)??;
        println!("\n  {}\n", now.words());
    }
}

/// What commits wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standby {
    Goes,
    Frozen,
    /// It has lost its connection, and makes another within seconds.
    Reconnects,
}

impl Standby {
    fn other(self, standby: &Node) -> cluster::Result<Self> {
        if self == Self::Frozen {
            return standby.thaw().map(|()| Self::Goes);
        }
        let frozen = standby.freeze_only("walreceiver")?;
        Ok(if frozen > 0 { Self::Frozen } else { Self::Reconnects })
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Goes => "the standby goes on: commits work again",
            Self::Frozen => "the standby is frozen: commits hang",
            Self::Reconnects => "the standby is connecting to the primary; try again in a few seconds",
        }
    }
}

/// Before anything is started: the message must not come after a minute of set-up.
fn check_free(address: SocketAddr, flag: &'static str) -> Result<(), Error> {
    let probe = TcpListener::bind(address);
    probe.map(drop).map_err(|source| Error::PortTaken { address, flag, source })
}

/// The databases behind the sidecar.
struct Behind {
    urls: Vec<String>,
    user: String,
    database: String,
    /// How to call it.
    psql: String,
    /// Our own servers, which live as long as this.
    cluster: Option<Cluster>,
}

impl Behind {
    fn standby(&self) -> Option<Arc<Node>> {
        self.cluster.as_ref()?.standbys().first().map(Arc::clone)
    }
}

async fn behind(given: Vec<Url>) -> Result<Behind, Error> {
    let Some(first) = given.first() else {
        let started = tokio::task::spawn_blocking(start_cluster).await;
        return started.map_err(io::Error::other)?;
    };
    let caller = Owner::caller().name().to_owned();
    let user = Some(first.username()).filter(|name| !name.is_empty()).map_or(caller, str::to_owned);
    let database = first.path().trim_start_matches('/');
    let database = if database.is_empty() { user.clone() } else { database.to_owned() };
    let urls = given.iter().map(Url::to_string).collect();
    Ok(Behind { urls, user, database, psql: "psql".to_owned(), cluster: None })
}

fn start_cluster() -> Result<Behind, Error> {
    let programs = Programs::find()?;
    println!("starting PostgreSQL {}: a primary and a synchronous standby", programs.full_version());
    let psql = psql_of(&programs, on_path("psql").is_some());
    let options = ClusterOptions {
        node: NodeOptions::new(programs),
        standbys: 1,
        replication: Replication::Synchronous,
    };
    let cluster = Cluster::start(&options)?;
    let caller = Owner::caller().name().to_owned();
    if caller != "postgres" {
        // So that a plain psql, which asks for the caller's own name, works too.
        let name = quote_identifier(&caller);
        cluster.primary().sql(&format!("CREATE ROLE {name} SUPERUSER LOGIN"))?;
        cluster.primary().sql(&format!("CREATE DATABASE {name} OWNER {name}"))?;
    }
    let standbys = cluster.standbys().iter().map(|standby| standby.url());
    let urls = std::iter::once(cluster.primary().url()).chain(standbys).collect();
    let postgres = || "postgres".to_owned();
    Ok(Behind { urls, user: postgres(), database: postgres(), psql, cluster: Some(cluster) })
}

/// The banner's command must work where it is pasted.
fn psql_of(programs: &Programs, on_path: bool) -> String {
    if on_path { "psql".to_owned() } else { programs.program("psql").display().to_string() }
}

fn banner(options: &Options, behind: &Behind) -> Result<String, Error> {
    let (host, port, admin) = (options.listen.ip(), options.listen.port(), options.admin);
    let Behind { user, database, psql, .. } = behind;
    let stall = behind.standby().map_or_else(String::new, |_| {
        format!(
            "\n  stall:    kill -USR1 {}   (commits hang; once more: they work again)",
            std::process::id()
        )
    });
    let tidegate = binary(options)?;
    Ok(format!(
        "\n  connect:  {psql} -h {host} -p {port} -U {user} {database}\n  \
           admin:    http://{admin}/\n  \
           status:   {} status --watch --admin {admin}{stall}\n  \
           Ctrl-C removes everything\n",
        tidegate.display()
    ))
}

/// The sidecar's process, which ends with its folder.
struct Sidecar {
    child: Child,
    _workdir: Workdir,
}

impl Sidecar {
    fn start(options: &Options, behind: &Behind) -> Result<Self, Error> {
        let workdir = Workdir::create("run", &Owner::caller())?;
        let program = binary(options)?;
        let mut command = Command::new(&program);
        command.arg("run").arg("--listen").arg(options.listen.to_string());
        command.arg("--admin").arg(options.admin.to_string());
        for url in &behind.urls {
            command.arg("--upstream").arg(url);
        }
        // A process group of its own: Ctrl-C reaches us alone, and we stop things in order.
        command.current_dir(workdir.path()).stdin(Stdio::null()).process_group(0);
        // Unless told otherwise: what is removed at the end is of no use to a later one.
        if std::env::var_os("TIDEGATE_STATE_DIR").is_none() {
            command.env("TIDEGATE_STATE_DIR", workdir.path().join("state"));
        }
        if std::env::var_os("TIDEGATE_TIMEOUTS_DRAIN").is_none() {
            command.env("TIDEGATE_TIMEOUTS_DRAIN", DRAIN);
        }
        let child = command.spawn().map_err(|source| Error::NoSidecar { program, source })?;
        Ok(Self { child, _workdir: workdir })
    }

    async fn wait_ready(&mut self, address: SocketAddr) -> Result<(), Error> {
        let start = Instant::now();
        while start.elapsed() < READY_WITHIN {
            if let Some(status) = self.child.try_wait()? {
                return Err(Error::SidecarEnded(status));
            }
            if TcpStream::connect(address).await.is_ok() {
                return Ok(());
            }
            sleep(Duration::from_millis(20)).await;
        }
        Err(Error::NotReady(READY_WITHIN))
    }

    /// SIGTERM, so that it drains and tells its sessions. Who has no patience says so once more.
    async fn stop(&mut self, end: &mut End) -> Result<(), Error> {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            // It may just have ended.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        tokio::select! {
            ended = self.child.wait() => drop(ended?),
            () = end.told() => self.child.kill().await?,
            () = sleep(STOP_MAX) => self.child.kill().await?,
        }
        Ok(())
    }
}

/// As an absolute path: the sidecar runs in a folder of its own.
fn binary(options: &Options) -> Result<PathBuf, Error> {
    let program = match &options.tidegate {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("tidegate"),
    };
    std::fs::canonicalize(&program).map_err(|source| Error::NoSidecar { program, source })
}
