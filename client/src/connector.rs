//! Makes connections: several hosts raced, each under one deadline from name resolution to the last check.
//!
//! The driver's `connect_timeout` covers the TCP connect alone, so a frozen server (its kernel still accepts) would
//! hang the caller in TLS or authentication for ever, and a frozen first host would block the good second one.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_postgres::config::{Host, TargetSessionAttrs};
use tokio_postgres::error::SqlState;

use crate::cancel::{Effect, Record};
use crate::config::{Builder, Sidecar};
use crate::login::{Login, Tls};
use crate::session::Session;
use crate::socket::{Ending, Socket};
use crate::words::Cause;

/// Head start of each host before the next is tried as well ("Connection Attempt Delay" of RFC 8305, section 5, is
/// 250 ms for the Internet; database hosts are near).
const STAGGER: Duration = Duration::from_millis(100);

/// Not a setting, and not to be made one: `PostgreSQL` remembers, and shows, whatever `tidegate.…` an application sets
/// or its connection string has in `options`. It says which of its functions refuses this one; a sidecar has none.
const NO_SETTING: &str = "tidegate.is_here";

/// Why no connection could be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("cannot reach the server")]
    Unreachable(#[source] io::Error),
    #[error("the server accepted the connection and did not answer in time")]
    Silent,
    #[error("the server did not accept the connection in time")]
    NotAccepted,
    #[error("the login was refused")]
    Login(#[source] tokio_postgres::Error),
    #[error("TLS is asked for and not set up: give the builder a TLS configuration")]
    NoTls,
    #[error("the server does not take the role that was asked for (target_session_attrs)")]
    WrongRole,
    #[error(
        "the server takes writes on an older timeline than another one has: it is a primary that was replaced"
    )]
    Replaced,
    #[error("no host to connect to")]
    NoHost,
}

impl ConnectError {
    /// What it says about the server.
    pub(crate) fn cause(&self) -> Cause {
        match self {
            Self::Unreachable(_) | Self::NotAccepted => Cause::Unreachable,
            Self::Silent => Cause::Frozen,
            Self::WrongRole | Self::Replaced => Cause::ReadOnly,
            Self::NoTls | Self::NoHost => Cause::Unknown,
            Self::Login(error) => match error.code() {
                Some(code) if code.code().starts_with("28") => Cause::Auth,
                Some(code) if *code == SqlState::TOO_MANY_CONNECTIONS => Cause::Overload,
                Some(code) if *code == SqlState::CANNOT_CONNECT_NOW => Cause::Unreachable,
                Some(_) | None if error.code().is_none() => Cause::Unreachable,
                Some(_) | None => Cause::Unknown,
            },
        }
    }
}

/// Where one host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Name {
        host: String,
        port: u16,
    },
    Address {
        /// For the certificate.
        host: String,
        address: SocketAddr,
    },
    Unix(PathBuf),
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Connector {
    places: Vec<Place>,
    login: Login,
    limit: Duration,
    attributes: TargetSessionAttrs,
    sidecar: Sidecar,
    lifetime: Duration,
    cancels: Record,
    /// The newest timeline on which a server of ours has taken writes.
    timeline: AtomicU32,
}

impl Connector {
    pub(crate) fn new(builder: &Builder) -> Self {
        let config = &builder.postgres;
        #[cfg(feature = "tls")]
        let tls = Tls::new(builder.tls.clone());
        #[cfg(not(feature = "tls"))]
        let tls = Tls::new();
        Self {
            places: places(config),
            login: Login::new(config.clone(), tls),
            limit: builder.timeouts.connect,
            attributes: config.get_target_session_attrs(),
            sidecar: builder.sidecar,
            lifetime: builder.max_lifetime,
            cancels: Record::default(),
            timeline: AtomicU32::new(0),
        }
    }

    /// The first host that logs us in and has the role asked for. A host that fails lets the next start at once.
    ///
    /// # Cancel safety
    /// Dropping it closes every connection that was begun.
    pub(crate) async fn connect(self: &Arc<Self>) -> Result<Session, ConnectError> {
        let mut waiting = self.places.iter();
        let mut racing = FuturesUnordered::new();
        let mut failure = ConnectError::NoHost;
        loop {
            match waiting.next() {
                Some(place) => racing.push(self.attempt(place)),
                None if racing.is_empty() => return Err(failure),
                None => {}
            }
            let next = sleep(STAGGER);
            tokio::select! {
                Some(result) = racing.next() => match result {
                    Ok(session) => return Ok(session),
                    Err(error) => failure = worse(failure, error),
                },
                () = next, if waiting.len() > 0 => {}
            }
        }
    }

    async fn attempt(self: &Arc<Self>, place: &Place) -> Result<Session, ConnectError> {
        let (session, deadline) = self.log_in(place).await?;
        timeout_at(deadline, self.check(session)).await.unwrap_or(Err(ConnectError::Silent))
    }

    /// The server that is there, whatever its role.
    ///
    /// # Cancel safety
    /// Dropping it closes the connection.
    pub(crate) async fn connect_to(self: &Arc<Self>, place: &Place) -> Result<Session, ConnectError> {
        let (mut session, deadline) = self.log_in(place).await?;
        let sidecar = timeout_at(deadline, self.has_sidecar(&session)).await;
        session.set_sidecar(sidecar.map_err(|_| ConnectError::Silent)?);
        Ok(session)
    }

    /// A session that is to be checked until then. Its place is where it is, not only what it is called: who looks at
    /// its backend, or cancels it, must come to the same server.
    async fn log_in(self: &Arc<Self>, place: &Place) -> Result<(Session, Instant), ConnectError> {
        let deadline = Instant::now() + self.limit;
        let ending = Ending::default();
        // The TCP connect has a bound of its own only to tell the two silences apart.
        let (socket, place) = match timeout_at(deadline, open(place, &ending)).await {
            Ok(opened) => opened.map_err(ConnectError::Unreachable)?,
            Err(_) => return Err(ConnectError::NotAccepted),
        };
        let raw = timeout_at(deadline, self.login.log_in(&place, socket, ending)).await;
        let raw = raw.unwrap_or(Err(ConnectError::Silent))?;
        Ok((Session::new(raw, place, Arc::clone(self), self.lifetime), deadline))
    }

    /// How long a connect may take.
    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// Whether there is no other host.
    pub(crate) fn has_one_host(&self) -> bool {
        self.places.len() < 2
    }

    /// Role, timeline and sidecar, in one round trip.
    async fn check(&self, mut session: Session) -> Result<Session, ConnectError> {
        let (role, timeline, sidecar) =
            tokio::join!(self.has_role(&session), self.timeline_of(&session), self.has_sidecar(&session));
        if !role? {
            return Err(ConnectError::WrongRole);
        }
        session.set_timeline(if sidecar { 0 } else { timeline? });
        self.timeline.fetch_max(session.timeline(), Ordering::Relaxed);
        if self.has_outlived(&session) {
            return Err(ConnectError::Replaced);
        }
        session.set_sidecar(sidecar);
        if !sidecar {
            session.shorten_lives().await.map_err(ConnectError::Login)?;
        }
        Ok(session)
    }

    async fn has_role(&self, session: &Session) -> Result<bool, ConnectError> {
        let writable = match self.attributes {
            TargetSessionAttrs::ReadWrite => true,
            TargetSessionAttrs::ReadOnly => false,
            _ => return Ok(true),
        };
        let read_only = session.show("transaction_read_only").await.map_err(ConnectError::Login)?;
        Ok((read_only.as_deref() == Some("off")) == writable)
    }

    /// Asked where one of several hosts is to take writes: two may say that they do, an old primary that was cut off
    /// and the one that was promoted, and the one with the newer timeline is right. Zero where nobody can tell.
    async fn timeline_of(&self, session: &Session) -> Result<u32, ConnectError> {
        const TIMELINE: &str =
            "SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_insert_lsn()) END";
        let sidecar = self.sidecar == Sidecar::Yes;
        // A sidecar sees to that itself.
        if self.has_one_host() || self.attributes != TargetSessionAttrs::ReadWrite || sidecar {
            return Ok(0);
        }
        match session.value(TIMELINE).await {
            // The first eight digits of a WAL file's name.
            Ok(name) => {
                let digits = name.as_deref().and_then(|name| name.get(..8));
                Ok(digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(0))
            }
            // A pooler in between that does not pass it on, say.
            Err(error) if error.as_db_error().is_some() => Ok(0),
            Err(error) => Err(ConnectError::Login(error)),
        }
    }

    async fn has_sidecar(&self, session: &Session) -> bool {
        match self.sidecar {
            Sidecar::Yes => true,
            Sidecar::No => false,
            Sidecar::Auto => match session.show(NO_SETTING).await {
                Ok(_) => true,
                Err(error) => {
                    let answer = error.as_db_error();
                    answer.is_some_and(|answer| {
                        *answer.code() == SqlState::UNDEFINED_OBJECT && answer.routine().is_none()
                    })
                }
            },
        }
    }

    /// Sends a `CancelRequest` for the backend that `token` names and waits for the server to close, so that it cannot
    /// hit whatever runs there next (libpq does the same, `src/interfaces/libpq/fe-cancel.c`).
    ///
    /// # Cancel safety
    /// Dropping it closes its connection; the request may have been sent.
    pub(crate) async fn cancel(&self, place: &Place, token: &tokio_postgres::CancelToken) -> Effect {
        let request = async {
            let (socket, _) = open(place, &Ending::default()).await?;
            self.login.cancel(place, socket, token).await
        };
        self.cancels.make(request).await
    }

    /// How the cancel requests fared lately.
    pub(crate) fn cancels(&self) -> &Record {
        &self.cancels
    }

    /// Whether a server of ours has taken writes on a newer timeline than this session's: then it is of a primary
    /// that was replaced.
    pub(crate) fn has_outlived(&self, session: &Session) -> bool {
        (1..self.timeline.load(Ordering::Relaxed)).contains(&session.timeline())
    }
}

/// Of two failures the one that says more: a refusal, then a wrong role, then silence.
fn worse(before: ConnectError, after: ConnectError) -> ConnectError {
    let weight = |error: &ConnectError| match error {
        ConnectError::Login(_) | ConnectError::NoTls => 4,
        ConnectError::WrongRole | ConnectError::Replaced => 3,
        ConnectError::Silent => 2,
        ConnectError::NotAccepted | ConnectError::Unreachable(_) => 1,
        ConnectError::NoHost => 0,
    };
    if weight(&before) > weight(&after) { before } else { after }
}

/// A socket, and which of the addresses it has reached.
///
/// # Cancel safety
/// Dropping it closes what was opened.
async fn open(place: &Place, ending: &Ending) -> io::Result<(Socket, Place)> {
    match place {
        Place::Unix(path) => {
            Socket::connect_unix(path, ending.clone()).await.map(|socket| (socket, place.clone()))
        }
        Place::Address { address, .. } => {
            Socket::connect_tcp(*address, ending.clone()).await.map(|socket| (socket, place.clone()))
        }
        Place::Name { host, port } => {
            let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
            for address in tokio::net::lookup_host((host.as_str(), *port)).await? {
                match Socket::connect_tcp(address, ending.clone()).await {
                    Ok(socket) => return Ok((socket, Place::Address { host: host.clone(), address })),
                    Err(error) => failure = error,
                }
            }
            Err(failure)
        }
    }
}

/// Pairs hosts, addresses and ports as libpq does (its documentation, "Specifying Multiple Hosts").
fn places(config: &tokio_postgres::Config) -> Vec<Place> {
    let (hosts, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    let port = |index: usize| ports.get(index).or(ports.first()).copied().unwrap_or(5432);
    (0..hosts.len().max(addresses.len()))
        .map(|index| place(hosts.get(index), addresses.get(index), port(index)))
        .collect()
}

fn place(host: Option<&Host>, address: Option<&IpAddr>, port: u16) -> Place {
    match (host, address) {
        #[cfg(unix)]
        (Some(Host::Unix(folder)), _) => Place::Unix(folder.join(format!(".s.PGSQL.{port}"))),
        (Some(Host::Tcp(host)), Some(address)) => {
            Place::Address { host: host.clone(), address: (*address, port).into() }
        }
        (Some(Host::Tcp(host)), None) => Place::Name { host: host.clone(), port },
        (None, Some(address)) => {
            Place::Address { host: address.to_string(), address: (*address, port).into() }
        }
        (None, None) => Place::Name { host: "localhost".to_owned(), port },
    }
}
