//! The validated configuration: small plain structs, each handed to the part that uses it.
//!
//! A [`Config`] exists only whole and consistent: `file` parses what an operator wrote, `check` holds the
//! rules between fields. Nothing else in the program reads configuration text.
//!
//! [`Config::load`] is the only way in; starting, `tidegate check` and reloading all use it.

mod address;
mod check;
mod file;
mod layers;
mod passfile;
mod problem;
mod resilience;
mod sources;
#[cfg(test)]
mod tests;
mod tree;
mod upstream_url;
mod values;

pub use check::reload_refusals;
pub use problem::{ConfigErrors, Origin, Problem};
pub use resilience::{
    AfterWrite, Alerts, Breaker, Commit, Hold, Read, ReadFrom, Rule, RuleAttribute, RuleTimeouts, Shed,
    SyncWait, Watchdog, Webhook, WebhookKind,
};
pub use sources::Sources;

pub use crate::sql::Priority;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::discovery::patroni::Endpoint;

/// Everything that a running sidecar was told.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where applications connect, and how they prove who they are.
    pub listen: Listen,
    /// The control plane.
    pub admin: Admin,
    /// The PostgreSQL servers behind us.
    pub cluster: Cluster,
    /// How backends are shared.
    pub pool: Pool,
    /// The bound of every wait.
    pub timeouts: Timeouts,
    /// Data workers (OS threads, one single-threaded runtime each).
    pub workers: usize,
    /// Nobody wrote how many, so they follow from the processors that there were at the start.
    pub workers_follow: bool,
    /// What to do when the outcome of a COMMIT is not known.
    pub commit: Commit,
    /// Which servers answer reads.
    pub read: Read,
    /// When a lane of an upstream is taken for stuck.
    pub breaker: Breaker,
    /// Refusing early rather than queueing.
    pub shed: Shed,
    /// Keeping writes waiting through a failover.
    pub hold: Hold,
    /// Who is told.
    pub alerts: Alerts,
    /// When a thread is taken for stuck.
    pub watchdog: Watchdog,
    /// Folder of the journal and of the outbox of alerts.
    pub state_dir: PathBuf,
    /// Other settings for some sessions; the first that matches wins.
    pub rules: Vec<Rule>,
    /// What was accepted but is probably not meant, to be logged once.
    pub warnings: Vec<String>,
}

/// The files that a configuration names whose content is the business of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Of users and secrets.
    pub userlist: Option<PathBuf>,
    /// Of TLS towards applications.
    pub listen_tls: ListenTls,
    /// Of TLS towards PostgreSQL.
    pub upstream_tls: UpstreamTls,
}

impl Config {
    /// The files that it names.
    pub fn files(&self) -> Files {
        Files {
            userlist: self.listen.userlist.clone(),
            listen_tls: self.listen.tls.clone(),
            upstream_tls: self.cluster.tls.clone(),
        }
    }
}

/// `[listen]`
#[derive(Debug, Clone, PartialEq)]
pub struct Listen {
    /// Addresses to accept applications on.
    pub addresses: Vec<ListenAddress>,
    /// Sessions at the same time, logins in progress included.
    pub max_sessions: usize,
    /// How an application proves who it is.
    pub auth: AuthMethod,
    /// `PgBouncer`-format file of users and secrets.
    pub userlist: Option<PathBuf>,
    /// Query that yields (user, secret) for users that are not in the userlist.
    pub auth_query: Option<String>,
    /// TLS towards applications.
    pub tls: ListenTls,
}

/// One place to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// A TCP socket.
    Tcp(SocketAddr),
    /// A unix socket at this path (the whole path, `…/.s.PGSQL.6432`).
    Unix(PathBuf),
}

impl ListenAddress {
    /// Whether only this machine can reach it.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl std::fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// How applications authenticate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuthMethod {
    /// No proof asked. Only on loopback and unix sockets.
    Trust,
    /// SCRAM-SHA-256.
    Scram,
    /// MD5 challenge; users with a SCRAM secret still get SCRAM.
    Md5,
    /// Password in clear text.
    Password,
}

/// Whether applications may, or must, use TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenTls {
    /// Policy.
    pub mode: ListenTlsMode,
    /// Certificate chain (PEM). Needed unless the mode is `Disable`.
    pub cert: Option<PathBuf>,
    /// Private key (PEM).
    pub key: Option<PathBuf>,
    /// When set, applications must present a certificate signed by one of these authorities.
    pub client_ca: Option<PathBuf>,
}

/// See [`ListenTls`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ListenTlsMode {
    /// TLS requests are refused.
    Disable,
    /// Plain and TLS sessions are both welcome.
    Allow,
    /// Plain sessions over TCP are refused (unix sockets stay plain).
    Require,
}

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Where the control plane listens.
    pub address: SocketAddr,
    /// Who may use the admin console; under `trust` anybody may.
    pub users: Vec<String>,
    /// What orders have to show; without one none is taken.
    pub token: Option<Password>,
    /// Where orders may come from.
    pub orders_from: OrdersFrom,
}

/// See [`Admin::orders_from`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OrdersFrom {
    /// This machine.
    Loopback,
    /// Whoever has the token.
    Anywhere,
}

/// `[cluster]`
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// The servers; the first is the primary (roles by probing come with the topology).
    pub upstreams: Vec<UpstreamAddress>,
    /// How the role of each is found.
    pub roles: Roles,
    /// User of control connections.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<Password>,
    /// The file that the password was looked up in, unless it was written out.
    pub passfile: Option<PathBuf>,
    /// Database of control connections and of `auth_query`.
    pub database: String,
    /// TLS towards PostgreSQL.
    pub tls: UpstreamTls,
    /// Nothing changes twice within this time.
    pub settle: Duration,
    /// Patroni's REST APIs; when empty and roles are Patroni's, port 8008 of the upstreams' hosts.
    pub patroni: Vec<Endpoint>,
    /// Whether a reload may remove every upstream of a role, or more than half of all.
    pub force: bool,
}

/// See [`Cluster::roles`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Roles {
    /// Each server is asked.
    Probe,
    /// The first is the primary.
    Static,
    /// Patroni's REST API is asked.
    Patroni,
}

/// The address of one PostgreSQL server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum UpstreamAddress {
    /// Host name or IP address, and port.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// Path of the unix socket (the whole path, `…/.s.PGSQL.5432`).
    Unix(PathBuf),
}

impl std::fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A password that never shows itself in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// Wraps a password.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The password itself. Only for proving who we are.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(…)")
    }
}

/// TLS towards PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Policy, in libpq's words.
    pub mode: SslMode,
    /// Authorities to trust (PEM); the system's when absent.
    pub ca: Option<PathBuf>,
    /// Our certificate (PEM), when the server asks for one.
    pub cert: Option<PathBuf>,
    /// Its private key (PEM).
    pub key: Option<PathBuf>,
}

/// libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// Plain first; TLS when the server refuses plain.
    Allow,
    /// TLS when the server has it.
    Prefer,
    /// TLS, whoever the server is (unless `ca` is given: then as `VerifyCa`, as libpq does).
    Require,
    /// TLS with a certificate from a trusted authority.
    VerifyCa,
    /// As `VerifyCa`, and the certificate is for the host name that we connect to.
    VerifyFull,
}

/// `[pool]`
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// What a session holds a backend for.
    pub mode: PoolMode,
    /// Backends per (upstream, database, user).
    pub size: usize,
    /// Backends kept open per pool that is in use, even when idle.
    pub min_idle: usize,
    /// Backends of all pools of one upstream, control connections included.
    pub max_per_upstream: usize,
    /// Share of `size` that the write lane may hold, in (0, 1].
    pub write_share: f64,
    /// An idle backend is closed after this long.
    pub idle_timeout: Duration,
    /// A backend is closed at its next idle moment after this long, give or take a tenth.
    pub max_lifetime: Duration,
    /// Prepared statements kept per backend.
    pub prepared_statements: usize,
}

impl Pool {
    /// Backends of one pool that the write lane may hold.
    pub fn write_slots(&self) -> usize {
        write_slots(self.size, self.write_share)
    }
}

/// Backends of a pool of this size that the write lane may hold; at least one, else no write could ever run.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "size is at most 262,143 and the share is in (0, 1]"
)]
pub fn write_slots(size: usize, share: f64) -> usize {
    // The addend undoes binary rounding: 0.29 × 100 is 28.999… in floating point.
    ((size as f64 * share + 1e-9) as usize).max(1)
}

/// See [`Pool::mode`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoolMode {
    /// For one transaction.
    Transaction,
    /// For its whole life.
    Session,
}

/// `[timeouts]`: zero means off where the documentation says that a wait may be unbounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// From accept to the end of authentication.
    pub login: Duration,
    /// TCP, TLS, startup and authentication towards PostgreSQL, together.
    pub connect: Duration,
    /// Waiting for a backend.
    pub queue: Duration,
    /// One exchange in the read lane.
    pub read: Duration,
    /// One exchange in the write lane.
    pub write: Duration,
    /// A COMMIT.
    pub commit: Duration,
    /// A whole transaction; zero is off.
    pub transaction: Duration,
    /// Idle inside a transaction; zero is off.
    pub idle_in_transaction: Duration,
    /// Idle outside a transaction; zero is off.
    pub idle_session: Duration,
    /// The longest bound that an application may set for itself; zero is no limit.
    pub max: Duration,
    /// From SIGTERM to the end of the last session.
    pub drain: Duration,
}
