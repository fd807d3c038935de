//! Looks at the server from a connection of its own, and says what our statements wait for.

use std::sync::Arc;
use std::time::Duration;

use tidegate_layers::breaker::Diagnose;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::connector::{ConnectError, Connector};
use crate::session::Session;
use crate::words::Cause;

/// A server that works answers this look in a millisecond or two.
const LOOK_MAX: Duration = Duration::from_millis(300);

/// What the active backends of our role in our database wait for, the most frequent first. Backends of one's own
/// role can be seen without any grant.
const WAITS: &str = "SELECT wait_event_type || '/' || wait_event FROM pg_stat_activity \
    WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid() \
    AND state = 'active' AND wait_event_type IN ('IPC', 'LWLock', 'IO', 'Lock') \
    GROUP BY 1 ORDER BY count(*) DESC LIMIT 1";

/// What a look found.
#[derive(Debug)]
pub(crate) enum Look {
    /// The server answered: the value, or no row.
    Seen(Option<String>),
    /// It let us in some time ago and does not answer now, or its answer was an error.
    Unanswered,
    /// No connection can be made.
    Failed(ConnectError),
}

/// What is known of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BackendState {
    /// Its process has ended.
    Gone,
    /// Its commit waits for a synchronous standby.
    WaitsForStandby,
    /// It runs something else.
    Busy,
    /// It waits for us.
    Idle,
    /// Nobody can tell.
    Unknown,
}

/// One connection for looking, opened when it is needed. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    connector: Arc<Connector>,
    session: Arc<Mutex<Option<Session>>>,
}

impl Control {
    pub(crate) fn new(connector: Arc<Connector>) -> Self {
        Self { connector, session: Arc::default() }
    }

    /// What a backend of ours is doing. Behind a sidecar process ids mean nothing.
    ///
    /// # Cancel safety
    /// Dropping it closes the connection for looking.
    pub(crate) async fn backend(&self, pid: i32) -> BackendState {
        let sql = format!(
            "SELECT CASE state WHEN 'active' THEN coalesce(wait_event, '') ELSE 'idle' END \
             FROM pg_stat_activity WHERE pid = {pid}"
        );
        match timeout(LOOK_MAX, self.look(&sql)).await {
            Ok(Look::Seen(None)) => BackendState::Gone,
            Ok(Look::Seen(Some(wait))) if wait == "SyncRep" => BackendState::WaitsForStandby,
            Ok(Look::Seen(Some(wait))) if wait == "idle" => BackendState::Idle,
            Ok(Look::Seen(Some(_))) => BackendState::Busy,
            Ok(Look::Unanswered | Look::Failed(_)) | Err(_) => BackendState::Unknown,
        }
    }

    async fn look(&self, sql: &str) -> Look {
        let mut kept = self.session.lock().await;
        // Taken out: a session whose look was dropped midway must not be looked through again.
        let session = match kept.take().filter(Session::is_idle) {
            Some(session) => session,
            None => match Box::pin(self.connector.connect()).await {
                Ok(session) => session,
                Err(error) => return Look::Failed(error),
            },
        };
        if session.has_sidecar() {
            return Look::Unanswered;
        }
        let answer = session.value(sql).await;
        match answer {
            Ok(value) => {
                *kept = Some(session);
                Look::Seen(value)
            }
            Err(_) => Look::Unanswered,
        }
    }
}

/// What a wait event means (`PostgreSQL` documentation, tables "Wait Events of Type …").
fn meaning(wait: &str) -> Option<Cause> {
    match wait {
        "IPC/SyncRep" => Some(Cause::SyncStandby),
        "LWLock/WALWrite" => Some(Cause::Storage),
        wait if wait.starts_with("IO/") => Some(Cause::Storage),
        wait if wait.starts_with("Lock/") => Some(Cause::Lock),
        _ => None,
    }
}

impl Diagnose<Cause> for Control {
    async fn diagnose(&self) -> Option<Cause> {
        match timeout(LOOK_MAX, self.look(WAITS)).await {
            Ok(Look::Seen(wait)) => meaning(&wait?),
            Ok(Look::Failed(error)) => Some(error.cause()).filter(|cause| *cause != Cause::Unknown),
            Ok(Look::Unanswered) => None,
            // It takes bytes and gives none.
            Err(_) => Some(Cause::Frozen),
        }
    }
}
