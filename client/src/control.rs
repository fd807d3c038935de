//! Looks at the server from a connection of its own, and says what our statements wait for.

use std::sync::Arc;
use std::time::Duration;

use tidegate_layers::breaker::Diagnose;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::connector::{ConnectError, Connector, Place};
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
    /// It let us in and does not answer now.
    Silent,
    /// Its answer was an error, or would be that of a sidecar.
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
    view: Arc<Mutex<View>>,
}

/// Where to look.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    /// Any host that the pool would take.
    Any,
    /// That one: process ids mean nothing elsewhere.
    At(Place),
}

#[derive(Debug, Default)]
struct View {
    kept: Option<(Host, Session)>,
    connecting: Option<Connecting>,
}

/// A connect that goes on when the look that it is for has no time for it any more, and serves the next.
#[derive(Debug)]
struct Connecting {
    to: Host,
    task: JoinHandle<Result<Session, ConnectError>>,
}

impl Drop for Connecting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Control {
    pub(crate) fn new(connector: Arc<Connector>) -> Self {
        Self { connector, view: Arc::default() }
    }

    /// What a backend of ours is doing. Behind a sidecar process ids mean nothing.
    ///
    /// # Cancel safety
    /// Dropping it closes the connection for looking.
    pub(crate) async fn backend(&self, place: &Place, pid: i32) -> BackendState {
        let sql = format!(
            "SELECT CASE state WHEN 'active' THEN coalesce(wait_event, '') ELSE 'idle' END \
             FROM pg_stat_activity WHERE pid = {pid}"
        );
        let (host, limit) = (Host::At(place.clone()), self.connector.limit() + LOOK_MAX);
        match timeout(limit, self.look(&host, &sql)).await {
            Ok(Look::Seen(None)) => BackendState::Gone,
            Ok(Look::Seen(Some(wait))) if wait == "SyncRep" => BackendState::WaitsForStandby,
            Ok(Look::Seen(Some(wait))) if wait == "idle" => BackendState::Idle,
            Ok(Look::Seen(Some(_))) => BackendState::Busy,
            Ok(Look::Silent | Look::Unanswered | Look::Failed(_)) | Err(_) => BackendState::Unknown,
        }
    }

    async fn look(&self, host: &Host, sql: &str) -> Look {
        let mut view = self.view.lock().await;
        // Taken out: a session whose look was dropped midway must not be looked through again.
        let kept = view.kept.take();
        let kept = kept.filter(|(of, session)| session.is_idle() && self.is_seen(of, session, host));
        let (of, session) = match kept {
            Some(kept) => kept,
            None => match self.connect(&mut view.connecting, host).await {
                Ok(session) => (host.clone(), session),
                Err(error) => return Look::Failed(error),
            },
        };
        if session.has_sidecar() {
            return Look::Unanswered;
        }
        match timeout(LOOK_MAX, session.value(sql)).await {
            Ok(Ok(value)) => {
                view.kept = Some((of, session));
                Look::Seen(value)
            }
            Ok(Err(_)) => Look::Unanswered,
            Err(_) => Look::Silent,
        }
    }

    /// Whether what is wanted can be seen through this session.
    fn is_seen(&self, of: &Host, session: &Session, wanted: &Host) -> bool {
        match wanted {
            Host::Any => *of == Host::Any || self.connector.has_one_host(),
            Host::At(place) => session.place() == place,
        }
    }

    async fn connect(
        &self,
        connecting: &mut Option<Connecting>,
        host: &Host,
    ) -> Result<Session, ConnectError> {
        let under_way = match connecting {
            Some(under_way) if under_way.to == *host => under_way,
            _ => connecting.insert(self.start(host.clone())),
        };
        let connected = (&mut under_way.task).await;
        *connecting = None;
        // It is aborted only together with what waits for it.
        connected.unwrap_or(Err(ConnectError::NoHost))
    }

    fn start(&self, to: Host) -> Connecting {
        let (connector, host) = (Arc::clone(&self.connector), to.clone());
        let task = tokio::spawn(async move {
            match host {
                Host::Any => connector.connect().await,
                Host::At(place) => connector.connect_to(&place).await,
            }
        });
        Connecting { to, task }
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
        // With time for a connect as well: what is not done then goes on, and serves the next look.
        match timeout(LOOK_MAX * 2, self.look(&Host::Any, WAITS)).await {
            Ok(Look::Seen(wait)) => meaning(&wait?),
            Ok(Look::Failed(error)) => Some(error.cause()).filter(|cause| *cause != Cause::Unknown),
            Ok(Look::Unanswered) => None,
            // It takes bytes and gives none.
            Ok(Look::Silent) | Err(_) => Some(Cause::Frozen),
        }
    }
}
