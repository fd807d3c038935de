//! Control connections to one upstream.
//!
//! There are at most three: one that the write probe keeps, one that the read probe keeps, and the *desk*, on
//! which everything else is asked. They are kept open, since a server in trouble often has no room for new ones.
//! A connection whose position is in doubt is closed with RST, never repaired.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as Lock, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tidegate_layers::breaker::ProbeOutcome;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use super::door::{Attempt, Begin, Door};
use super::looks;
use crate::backend::connection::Row;
use crate::backend::{Backend, BackendError, ConnectError, Connector, Login, ServerError};
use crate::exchange::Cause;
use crate::io::Buffer;
use crate::wire::{SqlState, frontend};

/// Control connections to one upstream at the same time.
pub const CONNECTIONS_MAX: usize = 3;

/// TCP, TLS, startup and authentication of a control connection, together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// A connection that was kept and does not answer a question within this is replaced by a new one. Less than
/// half of a second, so that a new one still fits into a diagnosis.
const KEPT_TIMEOUT: Duration = Duration::from_millis(250);

/// How long a server may take to close a connection after we said goodbye.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(100);

/// A worker that does not exist: these connections never go into a pool.
const NO_WORKER: usize = usize::MAX;

/// Kept connections are replaced by fresh probes; this only has to be longer.
const LIFETIME: Duration = Duration::from_hours(1);

/// Shows operators in `pg_stat_activity` whose connection it is.
const APPLICATION_NAME: &str = "tidegate control";

/// `read_only_sql_transaction` (`errcodes.txt`).
const READ_ONLY: &[u8; 5] = b"25006";

/// `disk_full` (`errcodes.txt`).
const DISK_FULL: &[u8; 5] = b"53100";

/// Gives the current value of something that a reload or a login may change.
pub type Source<T> = Box<dyn Fn() -> T + Send + Sync>;

/// Why a question of ours got no answer.
#[derive(Debug, Error)]
pub enum ControlError {
    /// Nobody has logged in yet, and no user is configured: there is no identity to ask with.
    #[error("no user to log in with is known yet")]
    NoLogin,
    /// All control connections are in use.
    #[error("all control connections are busy")]
    Busy,
    /// No connection could be made, it broke, or the server says that it takes none now.
    #[error("the server cannot be reached")]
    Unreachable,
    /// No handshake in time: its machine, or the way there, is gone. A server that is merely down refuses.
    #[error("the server's machine does not answer")]
    Missing,
    /// TCP connects, and PostgreSQL says nothing.
    #[error("the server accepts connections and does not answer")]
    Silent,
    /// It logged us in and then took too long over the question.
    #[error("the answer takes too long")]
    Late,
    /// The server does not let us in, or TLS does not let us trust it.
    #[error("the server does not let us in")]
    Auth,
    /// The server has no room for us.
    #[error("the server has no room for another connection")]
    Overload,
    /// The server answered with an error.
    #[error("the server refused: {0}")]
    Refused(ServerError),
    /// The answer makes no sense.
    #[error("the server gave an answer that cannot be understood")]
    Protocol,
}

impl ControlError {
    /// What it says about the server.
    pub fn cause(&self) -> Option<Cause> {
        match self {
            Self::Unreachable | Self::Missing => Some(Cause::Unreachable),
            Self::Silent => Some(Cause::Frozen),
            Self::Auth => Some(Cause::Auth),
            Self::Overload => Some(Cause::Overload),
            Self::Refused(error) => match error.code.as_bytes() {
                READ_ONLY => Some(Cause::ReadOnly),
                DISK_FULL => Some(Cause::Storage),
                [b'5', b'3', ..] => Some(Cause::Overload),
                _ => None,
            },
            Self::NoLogin | Self::Busy | Self::Late | Self::Protocol => None,
        }
    }

    /// What a probe that ended with it has found. Lacking rights or room says nothing about writes.
    pub fn outcome(&self) -> ProbeOutcome {
        match self {
            Self::NoLogin => ProbeOutcome::Unasked,
            Self::Busy | Self::Auth | Self::Overload => ProbeOutcome::Inconclusive,
            Self::Silent | Self::Late => ProbeOutcome::Timeout,
            Self::Unreachable | Self::Missing | Self::Protocol => ProbeOutcome::Failed,
            Self::Refused(error) if error.code == SqlState::QUERY_CANCELED => ProbeOutcome::Timeout,
            Self::Refused(error) => match error.code.as_bytes() {
                DISK_FULL => ProbeOutcome::Failed,
                [b'4', b'2', ..] | [b'5', b'3', ..] => ProbeOutcome::Inconclusive,
                _ => ProbeOutcome::Failed,
            },
        }
    }
}

impl From<ConnectError> for ControlError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Server(error) if error.code.class() == *b"53" => Self::Overload,
            error if error.is_permanent() => Self::Auth,
            // 57P01 and 57P03: it is going down or coming up. Both end by themselves.
            ConnectError::Server(error) if error.code.class() == *b"57" => Self::Unreachable,
            ConnectError::Server(error) => Self::Refused(error),
            ConnectError::Protocol(_) => Self::Protocol,
            _ => Self::Unreachable,
        }
    }
}

impl From<BackendError> for ControlError {
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::Server(error) => Self::Refused(error),
            BackendError::Lost(_) => Self::Unreachable,
            BackendError::Protocol(_) | BackendError::TooLong => Self::Protocol,
        }
    }
}

/// How to ask one upstream; shared by everything that asks it.
pub struct Control {
    connector: Source<Arc<Connector>>,
    login: Source<Option<Login>>,
    places: Arc<Semaphore>,
    desk: Mutex<Option<Connection>>,
    door: Door,
    abandoned: Arc<Abandoned>,
}

/// Connections that were given up on, whose servers may not hear of it for long: behind a middlebox that says nothing, each
/// would be one more that waits there.
#[derive(Debug, Default)]
struct Abandoned(Lock<Vec<(u32, Instant)>>);

impl Abandoned {
    fn push(&self, pid: u32) {
        const KEPT: usize = 64;
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < KEPT {
            all.push((pid, Instant::now()));
        }
    }

    /// All of them, and for how long each has been.
    fn take(&self) -> Vec<(u32, Duration)> {
        let all = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        all.into_iter().map(|(pid, since)| (pid, since.elapsed())).collect()
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("free", &self.places.available_permits()).finish_non_exhaustive()
    }
}

impl Control {
    /// `connector` is asked for each connection, so that a reload is followed. `login` gives the user of
    /// control connections, or else one of an application; `None` as long as there is neither.
    pub fn new(connector: Source<Arc<Connector>>, login: Source<Option<Login>>) -> Self {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Self {
            connector,
            login,
            places,
            desk: Mutex::new(None),
            door: Door::default(),
            abandoned: Arc::default(),
        }
    }

    /// Asks one question at the desk, with text parameters. A kept connection that fails is replaced once.
    ///
    /// # Errors
    /// See [`ControlError`]; at the latest at the deadline.
    ///
    /// # Cancel safety
    /// Dropping it closes the connection; the next question opens another.
    pub async fn ask(
        &self,
        sql: &str,
        parameters: &[&str],
        deadline: Instant,
    ) -> Result<Vec<Row>, ControlError> {
        let mut desk = timeout_at(deadline, self.desk.lock()).await.map_err(|_| ControlError::Busy)?;
        if let Some(mut kept) = desk.take().filter(|kept| self.is_current(kept)) {
            let until = deadline.min(Instant::now() + KEPT_TIMEOUT);
            match timeout_at(until, kept.query_with(sql, parameters)).await {
                Ok(answer @ (Ok(_) | Err(ControlError::Refused(_)))) => {
                    *desk = Some(kept);
                    return answer;
                }
                // What an old connection does not say, a new one may.
                Ok(Err(_)) | Err(_) => drop(kept),
            }
        }
        let fresh = timeout_at(deadline, self.open(CONNECT_TIMEOUT, || ())).await;
        let mut fresh = fresh.map_err(|_| ControlError::Late)??;
        let answer = timeout_at(deadline, fresh.query_with(sql, parameters)).await;
        let answer = answer.map_err(|_| ControlError::Late)?;
        if matches!(answer, Ok(_) | Err(ControlError::Refused(_)))
            && self.end_abandoned(&mut fresh, deadline).await
        {
            *desk = Some(fresh);
        }
        answer
    }

    /// Ends those of our own that are idle at the server, now that it can be talked to. Whether the connection is still
    /// good.
    async fn end_abandoned(&self, connection: &mut Connection, deadline: Instant) -> bool {
        let abandoned = self.abandoned.take();
        if abandoned.is_empty() {
            return true;
        }
        let [pids, ages] = looks::end_idle_parameters(&abandoned);
        let ended = timeout_at(deadline, connection.query_with(looks::END_IDLE, &[&pids, &ages])).await;
        matches!(ended, Ok(Ok(_) | Err(ControlError::Refused(_))))
    }

    /// Closes the connection that is kept at the desk: the next question opens one.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn hang_up(&self) {
        drop(self.desk.lock().await.take());
    }

    /// Closes the connection that is kept at the desk, unless somebody is asking there.
    pub fn leave(&self) {
        if let Ok(mut desk) = self.desk.try_lock() {
            drop(desk.take());
        }
    }

    /// Whatever is under way may be to another server than the one that is meant now.
    pub fn moved(&self) {
        self.door.moved();
    }

    /// Whether the connection has the identity that we would log in with now.
    fn is_current(&self, connection: &Connection) -> bool {
        (self.login)().is_some_and(|login| login.user == connection.user)
    }

    /// Opens a connection; see [`Door::open`].
    ///
    /// # Cancel safety
    /// Cancel safe: the next who asks goes on with the same login.
    pub(super) async fn open(
        &self,
        patience: Duration,
        silent: impl Fn() + Send,
    ) -> Result<Connection, ControlError> {
        self.door.open(self, patience, silent).await
    }
}

impl Begin for Control {
    fn user(&self) -> Option<String> {
        (self.login)().map(|login| login.user)
    }

    async fn begin(&self, moves: u64, deadline: Instant) -> Result<Attempt, ControlError> {
        let place = timeout_at(deadline, Arc::clone(&self.places).acquire_owned()).await;
        let place = place.ok().and_then(Result::ok).ok_or(ControlError::Busy)?;
        let login = (self.login)();
        let user = login.as_ref().map(|login| login.user.clone());
        let reached = Arc::<AtomicBool>::default();
        let coming =
            come_in((self.connector)(), login, place, Arc::clone(&self.abandoned), Arc::clone(&reached));
        Ok(Attempt { login: Box::pin(coming), reached, user, since: Instant::now(), moves })
    }
}

/// Logs in. Where nobody is known to log in as it only knocks: a server that is frozen or gone must be found out also
/// when it was so before anybody came.
async fn come_in(
    connector: Arc<Connector>,
    login: Option<Login>,
    place: OwnedSemaphorePermit,
    abandoned: Arc<Abandoned>,
    reached: Arc<AtomicBool>,
) -> Result<Connection, ControlError> {
    let reached = || reached.store(true, Ordering::Relaxed);
    let Some(login) = login else {
        connector.knock(&reached).await?;
        return Err(ControlError::NoLogin);
    };
    let login = Login { application_name: Some(APPLICATION_NAME), ..login };
    let backend = connector.connect(&login, NO_WORKER, LIFETIME, &reached).await?;
    Ok(Connection { backend: Some(Box::new(backend)), user: login.user, abandoned, _place: place })
}

/// A control connection, and the right to have it. Dropping it closes with RST.
#[derive(Debug)]
pub(super) struct Connection {
    /// Taken only at the end.
    backend: Option<Box<Backend>>,
    user: String,
    abandoned: Arc<Abandoned>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    /// Process id at the server.
    pub(super) fn pid(&self) -> u32 {
        self.backend.as_ref().map_or(0, |backend| backend.cancel_target.process_id)
    }

    /// Runs a simple query.
    ///
    /// # Cancel safety
    /// Not cancel safe: drop the connection as well.
    pub(super) async fn query(&mut self, sql: &[u8]) -> Result<Vec<Row>, ControlError> {
        let backend = self.backend.as_mut().ok_or(ControlError::Unreachable)?;
        Ok(backend.query(sql).await?)
    }

    async fn query_with(&mut self, sql: &str, parameters: &[&str]) -> Result<Vec<Row>, ControlError> {
        let backend = self.backend.as_mut().ok_or(ControlError::Unreachable)?;
        Ok(backend.query_with(sql, parameters).await?)
    }

    /// Says goodbye and waits until the server has closed, so that the next connection does not meet this one
    /// there. For idle connections only.
    pub(super) async fn close(mut self) {
        let goodbye = [frontend::TERMINATE, 0, 0, 0, 4];
        let Some(backend) = self.backend.as_mut() else { return };
        let ended = async {
            if backend.stream.write_all(&goodbye).await.is_err() {
                return;
            }
            let mut rest = Buffer::lend();
            while matches!(backend.stream.fill(&mut rest).await, Ok(1..)) {
                rest.consume(rest.unread().len());
            }
        };
        // One that does not end in time is reset.
        let _ = timeout(GOODBYE_TIMEOUT, ended).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(mut backend) = self.backend.take() {
            if !backend.is_closed() {
                self.abandoned.push(backend.cancel_target.process_id);
            }
            backend.reset();
        }
    }
}
