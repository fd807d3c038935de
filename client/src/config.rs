//! How a pool is set up.

use std::fmt;
use std::time::Duration;

use tidegate_layers::BreakerConfig;
use tidegate_layers::shed::QueueConfig;

use crate::error::Error;
use crate::pool::Pool;

/// More cannot be added to the time of now everywhere.
const LONGEST: Duration = Duration::from_hours(100 * 365 * 24);

/// A bound for every phase. One budget spans them all where a [`deadline`](crate::deadline) scope or
/// [`total`](Self::total) is set: a phase ends at its own bound or at the end of the budget, whichever comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Waiting for a permit, a connection and its check. Default 1 s.
    pub acquire: Duration,
    /// One host, from name resolution to the end of the login and its checks. Default 1 s.
    pub connect: Duration,
    /// One statement in the read lane. Default 30 s.
    pub read: Duration,
    /// One statement in the write lane, its implicit commit included. Default 5 s.
    pub write: Duration,
    /// An explicit COMMIT. Default 5 s.
    pub commit: Duration,
    /// From asking for a connection to giving it back. Default: no bound of its own.
    pub total: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            acquire: Duration::from_secs(1),
            connect: Duration::from_secs(1),
            read: Duration::from_secs(30),
            write: Duration::from_secs(5),
            commit: Duration::from_secs(5),
            total: None,
        }
    }
}

/// Whether a tidegate sidecar answers at the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sidecar {
    /// Each new connection is asked once, for what `PostgreSQL` and a sidecar refuse each in its own way.
    #[default]
    Auto,
    /// There is one.
    Yes,
    /// There is none.
    No,
}

/// What happens to a write that is found waiting for a synchronous standby when its deadline passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SyncWait {
    /// It is left alone and stays charged to the write lane until it ends: its locks are held, and nobody sees a
    /// commit that a failover may lose. What a sidecar's backend waits for is the sidecar's to see: behind one no write
    /// that commits by itself is cancelled at its deadline.
    #[default]
    Leave,
    /// It is cancelled: its locks are freed, and its commit becomes visible without being replicated
    /// ([`Outcome::CommittedUnreplicated`](crate::Outcome)).
    Cancel,
}

/// Sets up a [`Pool`]. Everything has a default but the connection string.
///
/// ```no_run
/// # async fn f() -> Result<(), tidegate_client::Error> {
/// use std::time::Duration;
/// use tidegate_client::{Builder, Timeouts};
///
/// let pool = Builder::parse("postgres://app@db1,db2/orders?target_session_attrs=read-write")?
///     .size(20)
///     .timeouts(Timeouts { write: Duration::from_secs(2), ..Timeouts::default() })
///     .build()?;
/// # Ok(()) }
/// ```
#[must_use = "a builder does nothing until it is built"]
#[derive(Clone)]
pub struct Builder {
    pub(crate) postgres: tokio_postgres::Config,
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<rustls::ClientConfig>,
    pub(crate) name: String,
    pub(crate) size: usize,
    pub(crate) write_share: f64,
    pub(crate) timeouts: Timeouts,
    pub(crate) sidecar: Sidecar,
    pub(crate) sync_wait: SyncWait,
    pub(crate) min_idle: Option<u32>,
    pub(crate) idle_timeout: Duration,
    pub(crate) max_lifetime: Duration,
    pub(crate) queue: QueueConfig,
    pub(crate) breaker: BreakerConfig,
}

impl Builder {
    /// Takes a connection string of libpq's forms (`postgres://…` or `host=… user=…`), as [`tokio_postgres::Config`]
    /// reads it, with one parameter of our own: `sidecar=auto`, `yes` or `no`.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind) when it cannot be read.
    pub fn parse(connection: &str) -> Result<Self, Error> {
        let (connection, sidecar) = take_sidecar(connection)?;
        let postgres: tokio_postgres::Config = connection.parse().map_err(Error::config)?;
        Ok(Self { sidecar, ..Self::new(postgres) })
    }

    /// Takes a driver's configuration. Of it, `connect_timeout`, the keepalives, `tcp_user_timeout` and
    /// `load_balance_hosts` are not used: [`Timeouts`] bounds the whole of a connect, the sockets have fixed
    /// keepalives of 5 s, and hosts are raced.
    pub fn new(postgres: tokio_postgres::Config) -> Self {
        Self {
            postgres,
            #[cfg(feature = "tls")]
            tls: None,
            name: "default".to_owned(),
            size: 20,
            write_share: 0.7,
            timeouts: Timeouts::default(),
            sidecar: Sidecar::default(),
            sync_wait: SyncWait::default(),
            min_idle: None,
            idle_timeout: Duration::from_mins(10),
            max_lifetime: Duration::from_mins(30),
            queue: QueueConfig::default(),
            breaker: BreakerConfig::default(),
        }
    }

    /// How TLS is done when `sslmode` asks for it: whom to trust, and with which certificate. A server that the
    /// configuration does not trust is refused also under `sslmode=prefer`.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, config: rustls::ClientConfig) -> Self {
        self.tls = Some(config);
        self
    }

    /// The label `pool` of the metrics. Default `default`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Connections in all. Default 20. The pool's own probes and diagnosis use up to three more.
    pub fn size(mut self, size: usize) -> Self {
        self.size = size;
        self
    }

    /// The part of the connections that the write lane may hold, above zero and up to one. Default 0.7: stuck writes
    /// never take the last third from the readers.
    pub fn write_share(mut self, share: f64) -> Self {
        self.write_share = share;
        self
    }

    /// The bound of every phase.
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// Whether a sidecar answers at the address.
    pub fn sidecar(mut self, sidecar: Sidecar) -> Self {
        self.sidecar = sidecar;
        self
    }

    /// What happens to writes that wait for a synchronous standby at their deadline.
    pub fn sync_wait(mut self, sync_wait: SyncWait) -> Self {
        self.sync_wait = sync_wait;
        self
    }

    /// Connections to keep ready. Default: none.
    pub fn min_idle(mut self, connections: u32) -> Self {
        self.min_idle = Some(connections);
        self
    }

    /// After how long without use a connection is closed. Default 10 min.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = timeout;
        self
    }

    /// After how long a connection is replaced, give or take a tenth. Default 30 min.
    pub fn max_lifetime(mut self, lifetime: Duration) -> Self {
        self.max_lifetime = lifetime;
        self
    }

    /// The queue for permits: its length, `CoDel`, the shares of the priorities. Its `wait_max` is
    /// [`Timeouts::acquire`].
    pub fn queue(mut self, queue: QueueConfig) -> Self {
        self.queue = queue;
        self
    }

    /// When the breakers of the lanes trip, and how they come back.
    pub fn breaker(mut self, breaker: BreakerConfig) -> Self {
        self.breaker = breaker;
        self
    }

    /// Starts the pool. Connects nothing yet, unless there is a [`min_idle`](Self::min_idle). Must be called within a
    /// tokio runtime with I/O and time; the tasks of the pool run there and end with its last clone.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind) when values contradict each other, or outside of a runtime.
    pub fn build(self) -> Result<Pool, Error> {
        self.check().map_err(Error::config)?;
        Pool::start(&self)
    }

    /// How many connections the write lane may hold.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a small number"
    )]
    pub(crate) fn write_permits(&self) -> usize {
        ((self.size as f64 * self.write_share) as usize).clamp(1, self.size)
    }

    fn check(&self) -> Result<(), Contradiction> {
        let Timeouts { acquire, connect, read, write, commit, total } = self.timeouts;
        let shortest = read.min(write);
        let (breaker, given) = (&self.breaker, [acquire, connect, read, write, commit]);
        let durations =
            [self.idle_timeout, self.max_lifetime, breaker.tick].into_iter().chain(given).chain(total);
        if self.size == 0 || u32::try_from(self.size).is_err() {
            Err(Contradiction("size must be at least 1"))
        } else if self.min_idle.is_some_and(|idle| idle as usize > self.size) {
            Err(Contradiction("min_idle must not be above size"))
        } else if !(self.write_share > 0.0 && self.write_share <= 1.0) {
            Err(Contradiction("write_share must be above 0 and at most 1"))
        } else if durations.clone().any(|duration| duration.is_zero()) {
            Err(Contradiction("a timeout, lifetime or tick of zero can never be met"))
        } else if durations.clone().any(|duration| duration > LONGEST) {
            Err(Contradiction("a timeout, lifetime or tick must not be longer than 100 years"))
        } else if breaker.stuck_min > breaker.stuck_max {
            Err(Contradiction("stuck_min must not be longer than stuck_max"))
        } else if acquire > shortest || connect > shortest {
            Err(Contradiction("acquire and connect must not be longer than read and write"))
        } else if self.postgres.get_hosts().is_empty() && self.postgres.get_hostaddrs().is_empty() {
            Err(Contradiction("the connection string names no host"))
        } else {
            Ok(())
        }
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("name", &self.name)
            .field("hosts", &self.postgres.get_hosts())
            .field("size", &self.size)
            .field("timeouts", &self.timeouts)
            .finish_non_exhaustive()
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Contradiction(&'static str);

/// Takes our own parameter out of a connection string: the driver refuses those it does not know.
fn take_sidecar(connection: &str) -> Result<(String, Sidecar), Error> {
    let is_url = connection.starts_with("postgres://") || connection.starts_with("postgresql://");
    let (head, parameters, separator) = match connection.split_once('?') {
        Some((head, parameters)) if is_url => (format!("{head}?"), parameters, "&"),
        Some(_) | None if is_url => return Ok((connection.to_owned(), Sidecar::Auto)),
        Some(_) | None => (String::new(), connection, " "),
    };
    let (own, others): (Vec<&str>, Vec<&str>) =
        parameters.split(separator).partition(|parameter| parameter.starts_with("sidecar="));
    let sidecar = match own.last().map(|own| &own["sidecar=".len()..]) {
        None | Some("auto") => Sidecar::Auto,
        Some("yes") => Sidecar::Yes,
        Some("no") => Sidecar::No,
        Some(_) => return Err(Error::config(Contradiction("sidecar must be auto, yes or no"))),
    };
    Ok((head + &others.join(separator), sidecar))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sidecar_parameter_is_ours_in_both_forms() {
        // Left in, the driver would refuse the whole string.
        for (text, sidecar) in [
            ("postgres://a@h/d?sidecar=yes&application_name=x", Sidecar::Yes),
            ("postgres://a@h/d?sidecar=no", Sidecar::No),
            ("postgresql://a@h/d", Sidecar::Auto),
            ("host=h user=a sidecar=no application_name=x", Sidecar::No),
        ] {
            let builder = Builder::parse(text).unwrap();

            assert_eq!(builder.sidecar, sidecar, "{text}");
            let name = text.contains("application_name").then_some("x");
            assert_eq!(builder.postgres.get_application_name(), name, "{text}");
        }
        Builder::parse("host=h user=a sidecar=perhaps").unwrap_err();
    }

    #[test]
    fn contradictions_are_refused_before_anything_is_connected() {
        // A bound that can never be met, or a lane without permits, would look like a broken database.
        let good = Builder::parse("postgres://a@h/d").unwrap();
        let zero = Timeouts { write: Duration::ZERO, ..Timeouts::default() };
        let longer = Timeouts { acquire: Duration::from_mins(1), ..Timeouts::default() };

        for bad in [
            good.clone().size(0),
            good.clone().write_share(0.0),
            good.clone().write_share(f64::NAN),
            good.clone().timeouts(zero),
            good.clone().timeouts(longer),
            Builder::parse("user=a").unwrap(),
            // bb8, tokio and the clock panic at these.
            good.clone().size(2).min_idle(3),
            good.clone().idle_timeout(Duration::ZERO),
            good.clone().max_lifetime(Duration::MAX),
            good.clone().timeouts(Timeouts { read: Duration::MAX, ..Timeouts::default() }),
            good.clone().timeouts(Timeouts { total: Some(Duration::MAX), ..Timeouts::default() }),
            good.clone().breaker(BreakerConfig { tick: Duration::ZERO, ..BreakerConfig::default() }),
            good.clone()
                .breaker(BreakerConfig { stuck_min: Duration::from_mins(1), ..BreakerConfig::default() }),
        ] {
            bad.check().unwrap_err();
        }
        good.check().unwrap();
    }

    #[test]
    fn the_write_lane_has_at_least_one_permit_and_at_most_all() {
        // Rounding down to none would refuse every write of a small pool.
        let permits = |size, share| {
            Builder::parse("postgres://a@h/d").unwrap().size(size).write_share(share).write_permits()
        };
        assert_eq!([permits(20, 0.7), permits(1, 0.1), permits(3, 1.0)], [14, 1, 3]);
    }

    #[test]
    fn what_is_printed_has_no_password() {
        // A Debug of the whole would end up in somebody's log.
        let builder = Builder::parse("postgres://a:hunter2@h/d").unwrap();

        assert!(!format!("{builder:?}").contains("hunter2"));
    }
}
