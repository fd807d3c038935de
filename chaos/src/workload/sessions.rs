//! The sessions of one lane.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tokio_postgres::{Client, Config, NoTls};

/// What an application's connection string often says.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Where and as whom to log in.
#[derive(Debug, Clone)]
pub struct Login {
    /// The subject, or a server.
    pub address: SocketAddr,
    /// Role; it is trusted.
    pub user: String,
    /// Database.
    pub database: String,
    /// `application_name`: what the harness's own sessions are left out by.
    pub name: &'static str,
}

/// Why there is no session.
#[derive(Debug)]
pub(crate) enum ConnectError {
    Refused(tokio_postgres::Error),
    Late,
}

impl Login {
    pub(crate) async fn connect(&self) -> Result<Client, ConnectError> {
        let mut config = Config::new();
        config.host(self.address.ip().to_string()).port(self.address.port());
        config.user(&self.user).dbname(&self.database).application_name(self.name);
        let connected = timeout(CONNECT_WITHIN, config.connect(NoTls)).await;
        let (client, connection) =
            connected.map_err(|_| ConnectError::Late)?.map_err(ConnectError::Refused)?;
        // Its end is seen by whoever uses the client next.
        tokio::spawn(connection);
        Ok(client)
    }
}

/// A fixed number of sessions; who comes when none is free waits in line.
#[derive(Debug)]
pub(crate) struct Sessions {
    login: Login,
    free: Semaphore,
    clients: Mutex<VecDeque<Option<Client>>>,
}

/// A session in use. Goes back when dropped.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    home: &'a Sessions,
    client: Option<Client>,
    _permit: SemaphorePermit<'a>,
}

impl Sessions {
    pub(crate) fn new(login: Login, count: usize) -> Self {
        let clients = Mutex::new((0..count).map(|_| None).collect());
        Self { login, free: Semaphore::new(count), clients }
    }

    fn clients(&self) -> MutexGuard<'_, VecDeque<Option<Client>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs all of them in, before anything is measured. Those that fail try again when they are needed.
    pub(crate) async fn log_in(&self) {
        let count = self.clients().len();
        for _ in 0..count {
            let client = self.login.connect().await.ok();
            let mut clients = self.clients();
            clients.pop_front();
            clients.push_back(client);
        }
    }

    /// The session that has rested longest. `None` when there are none at all.
    pub(crate) async fn take(&self) -> Option<Session<'_>> {
        let permit = self.free.acquire().await.ok()?;
        let client = self.clients().pop_front()?;
        Some(Session { home: self, client, _permit: permit })
    }
}

impl Session<'_> {
    /// Its connection, opened if need be.
    pub(crate) async fn client(&mut self) -> Result<&mut Client, ConnectError> {
        let alive = self.client.take().filter(|client| !client.is_closed());
        let client = match alive {
            Some(client) => client,
            None => self.home.login.connect().await?,
        };
        Ok(self.client.insert(client))
    }

    /// Closes the connection: its state is not known.
    pub(crate) fn discard(&mut self) {
        self.client = None;
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.home.clients().push_back(self.client.take());
    }
}
