//! Sessions, backends and pools, counted the way PgBouncer's console counts them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::backend::CancelTarget;
use crate::backend::cancel::Peer;
use crate::clock;
use crate::config::PoolMode;
use crate::pool::Pool;
use crate::server::Shared;
use crate::session::registry::{Entry, Identity, Kind, Phase};

/// Database and user.
pub(super) type Owner = (Box<str>, Box<str>);

/// Sessions and backends of one user in one database, at all upstreams together.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tenancy {
    pub(super) console: bool,
    pub(super) active_sessions: usize,
    pub(super) waiting_sessions: usize,
    pub(super) active_backends: usize,
    pub(super) idle_backends: usize,
    pub(super) opening_backends: usize,
    pub(super) longest_wait: Duration,
}

/// One end of a connection.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    pub(super) user: Box<str>,
    pub(super) database: Box<str>,
    pub(super) state: &'static str,
    pub(super) address: String,
    pub(super) port: Option<u16>,
    pub(super) local: Option<SocketAddr>,
    pub(super) since: SystemTime,
    pub(super) request: SystemTime,
    pub(super) wait: Duration,
    pub(super) id: u32,
    /// The other end, while they belong together.
    pub(super) link: Option<u32>,
    /// The server's process.
    pub(super) process_id: Option<u32>,
    pub(super) tls: Box<str>,
    pub(super) application_name: Box<str>,
}

/// Everything that is counted, taken once per command.
#[derive(Debug)]
pub(super) struct Census {
    entries: Vec<Arc<Entry>>,
    pools: Vec<Arc<Pool>>,
}

impl Census {
    pub(super) fn take(shared: &Shared) -> Self {
        let mut entries = shared.registry.all();
        entries.sort_by_key(|entry| entry.started);
        let pools = shared.routes.tended().iter().flat_map(|upstream| upstream.pools()).collect();
        Self { entries, pools }
    }

    fn sessions(&self) -> impl Iterator<Item = (&Arc<Entry>, &Identity)> {
        self.entries.iter().filter_map(|entry| Some((entry, entry.identity.get()?)))
    }

    /// Logins in progress.
    pub(super) fn logins(&self) -> usize {
        self.entries.len() - self.sessions().count()
    }

    /// Sessions that have logged in.
    pub(super) fn session_count(&self) -> usize {
        self.sessions().count()
    }

    /// Backends: those that serve nobody, and all others.
    pub(super) fn backends(&self) -> (usize, usize) {
        let states = self.pools.iter().map(|pool| pool.state());
        states.fold((0, 0), |(idle, used), state| (idle + state.idle, used + state.leased + state.opening))
    }

    /// Backends of a database, at all upstreams.
    pub(super) fn backends_of(&self, database: &str) -> usize {
        let pools = self.pools.iter().filter(|pool| &*pool.key.database == database);
        let states = pools.map(|pool| pool.state());
        states.map(|state| state.idle + state.leased + state.opening).sum()
    }

    /// Users that have a session or a pool.
    pub(super) fn users(&self) -> BTreeSet<Box<str>> {
        let of_pools = self.pools.iter().map(|pool| pool.key.user.clone());
        of_pools.chain(self.sessions().map(|(_, identity)| identity.user.clone())).collect()
    }

    /// A row for each user of each database.
    pub(super) fn tenancies(&self) -> BTreeMap<Owner, Tenancy> {
        let mut all = BTreeMap::<Owner, Tenancy>::new();
        for pool in &self.pools {
            let state = pool.state();
            let row = all.entry((pool.key.database.clone(), pool.key.user.clone())).or_default();
            row.active_backends += state.leased;
            row.idle_backends += state.idle;
            row.opening_backends += state.opening;
            row.longest_wait = row.longest_wait.max(state.longest_wait);
        }
        for (entry, identity) in self.sessions() {
            let row = all.entry((identity.database.clone(), identity.user.clone())).or_default();
            row.console |= identity.kind == Kind::Console;
            match entry.phase().0 {
                Phase::Queued if identity.kind == Kind::Application => row.waiting_sessions += 1,
                _ => row.active_sessions += 1,
            }
        }
        all
    }

    /// The applications' ends.
    pub(super) fn clients(&self) -> Vec<Connection> {
        self.sessions().map(|(entry, identity)| client(entry, identity)).collect()
    }

    /// The servers' ends: backends that serve a session, and idle ones. Those that are being opened or cleaned
    /// up are only counted.
    pub(super) fn servers(&self) -> Vec<Connection> {
        let serving = self.sessions().filter_map(|(entry, identity)| {
            let target = entry.served_by()?;
            let (_, since) = entry.phase();
            Some(Connection {
                link: Some(entry.process_id),
                application_name: identity.application_name.clone(),
                ..server(&target, &identity.user, &identity.database, "active", since)
            })
        });
        let idle = self.pools.iter().flat_map(|pool| {
            let key = &pool.key;
            let row = |(target, since): (Arc<CancelTarget>, u64)| {
                server(&target, &key.user, &key.database, "idle", since)
            };
            pool.idle_backends().into_iter().map(row).collect::<Vec<_>>()
        });
        serving.chain(idle).collect()
    }
}

fn client(entry: &Entry, identity: &Identity) -> Connection {
    let (phase, since) = entry.phase();
    let (state, wait) = match phase {
        Phase::Queued => ("waiting", clock::since(since)),
        Phase::Login | Phase::Idle | Phase::Active | Phase::IdleInTransaction => ("active", Duration::ZERO),
    };
    Connection {
        user: identity.user.clone(),
        database: identity.database.clone(),
        state,
        address: entry.peer.map_or_else(|| "unix".to_owned(), |peer| peer.ip().to_canonical().to_string()),
        port: entry.peer.map(|peer| peer.port()),
        local: identity.local,
        since: ago(entry.started.elapsed()),
        request: ago(clock::since(since)),
        wait,
        id: entry.process_id,
        link: entry.served_by().map(|target| target.process_id),
        process_id: None,
        tls: identity.tls.clone(),
        application_name: identity.application_name.clone(),
    }
}

fn server(
    target: &CancelTarget,
    user: &str,
    database: &str,
    state: &'static str,
    since_ms: u64,
) -> Connection {
    let (address, port) = match &target.peer {
        Peer::Tcp(address) => (address.ip().to_string(), Some(address.port())),
        Peer::Unix(_) => ("unix".to_owned(), None),
    };
    Connection {
        user: user.into(),
        database: database.into(),
        state,
        address,
        port,
        local: None,
        since: ago(clock::since(target.opened_at_ms)),
        request: ago(clock::since(since_ms)),
        wait: Duration::ZERO,
        id: target.process_id,
        link: None,
        process_id: Some(target.process_id),
        tls: if target.tls.is_some() { "TLS".into() } else { Box::default() },
        application_name: Box::default(),
    }
}

fn ago(duration: Duration) -> SystemTime {
    let now = SystemTime::now();
    now.checked_sub(duration).unwrap_or(now)
}

/// The configuration's word.
pub(super) fn mode_word(mode: PoolMode) -> &'static str {
    match mode {
        PoolMode::Transaction => "transaction",
        PoolMode::Session => "session",
    }
}
