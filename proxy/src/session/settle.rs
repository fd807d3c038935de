//! Settings when a backend changes hands: brought along at checkout, read back before the backend goes.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tidegate_layers::breaker::Outcome as Health;
use tidegate_layers::shed::Reason;
use tokio::time::Instant;

use super::relay::{Relayed, Told};
use super::{Flowing, Session};
use crate::backend::settings::{read_back, read_back_with_resets};
use crate::backend::{BackendError, ConnectError, Settings};
use crate::exchange::Refusal;
use crate::pool::{Lease, Pool, Welcome};
use crate::sql::Lane;
use crate::telemetry::metrics;
use crate::wire::backend::put_parameter_status;
use crate::wire::error_fields::{ErrorMessage, Severity};
use crate::wire::{SqlState, TransactionStatus};

/// How long the server may take for a question of ours, at most.
const DEADLINE: Duration = Duration::from_secs(1);

/// Why settings could not be brought to a backend.
pub(crate) enum SettingsRefused {
    /// PostgreSQL does not accept a value; the backend is as before.
    Value(SqlState, String),
    /// The connection failed.
    Lost,
}

impl SettingsRefused {
    /// What to tell.
    pub(crate) fn reason(self) -> String {
        match self {
            Self::Value(_, message) => message,
            Self::Lost => "connection to PostgreSQL lost".to_owned(),
        }
    }
}

impl From<BackendError> for SettingsRefused {
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::Server(error) => Self::Value(error.code, error.message),
            BackendError::Lost(_) | BackendError::Protocol(_) | BackendError::TooLong => Self::Lost,
        }
    }
}

/// Why an exchange was not sent to the backend that it was to have.
enum Unsent {
    Settings(SettingsRefused),
    /// There is no time left for it.
    Late,
    /// The application has cancelled, or the session has to end.
    Recalled(Refusal),
}

impl Session {
    /// Brings the backend from the settings of whoever had it before to those of this session, within the time of
    /// the exchange that has just begun. Where that fails, the exchange ends here, and the application is told.
    pub(super) async fn bring_settings(
        &mut self,
        mut lease: Lease,
        deadline: Option<Instant>,
    ) -> Result<Lease, Flowing> {
        match self.try_settings(&mut lease, deadline).await {
            Ok(()) => Ok(lease),
            Err(unsent) => Err(self.end_unsent(lease, unsent).await),
        }
    }

    async fn try_settings(&mut self, lease: &mut Lease, deadline: Option<Instant>) -> Result<(), Unsent> {
        let left = deadline.map_or(DEADLINE, |deadline| deadline.saturating_duration_since(Instant::now()));
        let wanted = Arc::clone(&self.talk.wanted);
        let mut nothing = Vec::new();
        let mut bringing = pin!(bring_within(left.min(DEADLINE), lease, &wanted, &mut nothing));
        let brought = poll_fn(|cx| match bringing.as_mut().poll(cx) {
            Poll::Ready(brought) => Poll::Ready(brought.map_err(Unsent::Settings)),
            // What the application sends meanwhile is not read: a goodbye behind a statement does not undo it.
            Poll::Pending => {
                self.recalled().map_or(Poll::Pending, |why| Poll::Ready(Err(Unsent::Recalled(why))))
            }
        });
        match brought.await {
            Err(Unsent::Settings(SettingsRefused::Lost))
                if deadline.is_some_and(|at| at <= Instant::now()) =>
            {
                Err(Unsent::Late)
            }
            brought => brought,
        }
    }

    /// Ends an exchange of which the backend has seen nothing.
    async fn end_unsent(&mut self, lease: Lease, unsent: Unsent) -> Flowing {
        let health = match unsent {
            Unsent::Settings(SettingsRefused::Lost) | Unsent::Late => Health::Failed,
            Unsent::Settings(SettingsRefused::Value(..)) | Unsent::Recalled(_) => Health::Ignored,
        };
        self.break_exchange(&lease, health);
        let refusal = match unsent {
            Unsent::Settings(SettingsRefused::Value(code, message)) => {
                lease.give_back();
                return self.end_without(code, &message).await;
            }
            Unsent::Settings(SettingsRefused::Lost) => self.unsent_for(self.watch.lane()),
            Unsent::Late => {
                let retry_after = self.pool.upstream.limits().codel.target;
                Refusal::Shed { lane: self.watch.lane(), reason: Reason::Deadline, retry_after }
            }
            Unsent::Recalled(refusal) => refusal,
        };
        // Nobody knows how far our question came.
        lease.give_up();
        if refusal.is_fatal() {
            self.end_with(&refusal).await;
            return Flowing::Ended;
        }
        self.refuse(&refusal);
        Flowing::On
    }

    /// Why the server did not answer us, as far as its breaker has found out by now.
    fn unsent_for(&self, lane: Lane) -> Refusal {
        let lost = unsettled(&self.pool, lane);
        let admitted = self.pool.upstream.guard.admit(lane, Instant::now());
        admitted.map_or_else(|open| Refusal::breaker_open(lane, open), |()| lost)
    }

    /// A setting that worked before does not work on this backend. Without it the session would not be what
    /// its application believes, so it ends.
    async fn end_without(&mut self, code: SqlState, message: &str) -> Flowing {
        let error = ErrorMessage {
            severity: Severity::Fatal,
            code,
            message,
            detail: "reason=settings outcome=not_sent",
            hint: "A setting of this session is not accepted by the backend that was to serve it.",
        };
        self.to_app.insert(|out| error.put(out));
        self.last_words().await;
        Flowing::Ended
    }

    /// What a session has set cannot be read back. Everything was answered; but settings that were reported as set
    /// would silently be others from now on, so the session ends.
    pub(super) async fn end_unsettled(&mut self, lease: Lease) -> Flowing {
        self.let_go(&lease, &Relayed::BackendGone { told: Told::No });
        lease.give_up();
        self.end_with(&Refusal::SessionLost).await;
        Flowing::Ended
    }

    /// Reads the values of the settings that were touched: what the server says counts, whatever the
    /// statements said, whether they failed or were rolled back.
    pub(super) async fn read_settings_back(&mut self, lease: &mut Lease) -> Result<(), SettingsRefused> {
        let notes = &mut self.talk.notes;
        let (mut names, mut resets) = notes.take_settings();
        if std::mem::take(&mut notes.reset_all) {
            let known = [&lease.applied, &self.talk.startup, &self.talk.wanted];
            resets.extend(known.iter().flat_map(|set| set.iter()).map(|(name, _)| name.into()));
        }
        names.extend(resets.iter().cloned());
        names.sort();
        names.dedup();
        if names.is_empty() {
            return Ok(());
        }
        // The session may listen.
        let mut heard = Vec::new();
        let question = read_back_with_resets(names.iter().map(|name| &**name));
        let rows = within(DEADLINE, lease.query_for(&question, &mut heard)).await?;
        let mut wanted = Arc::clone(&self.talk.wanted);
        let mut restored = Vec::new();
        for (name, row) in names.iter().zip(&rows) {
            let value = row.first().and_then(Option::as_deref);
            let at_reset = row.get(1).and_then(Option::as_deref) == Some(b"t");
            if at_reset && resets.contains(name) {
                let startup = self.talk.startup.get(name);
                restored.extend(startup.map(|_| name.clone()));
                wanted = wanted.with([(&**name, startup)]);
                lease.applied = lease.applied.with([(&**name, None)]);
            } else {
                wanted = wanted.with([(&**name, value)]);
                lease.applied = lease.applied.with([(&**name, value)]);
            }
        }
        self.talk.wanted = wanted;
        if !restored.is_empty() {
            self.restore(lease, &restored, &mut heard).await?;
        }
        self.to_app.insert(|out| out.append(&mut heard));
        Ok(())
    }

    /// RESET goes back to what the session's startup packet said, and the application is told the values of
    /// those parameters that a server reports.
    async fn restore(
        &mut self,
        lease: &mut Lease,
        names: &[Box<str>],
        heard: &mut Vec<u8>,
    ) -> Result<(), SettingsRefused> {
        bring_within(DEADLINE, lease, &self.talk.wanted, heard).await?;
        let reported: Vec<Box<str>> = lease
            .reported
            .keys()
            .filter(|key| names.iter().any(|n| n.eq_ignore_ascii_case(key)))
            .cloned()
            .collect();
        if reported.is_empty() {
            return Ok(());
        }
        let question = read_back(reported.iter().map(|name| &**name));
        let rows = within(DEADLINE, lease.query_for(&question, heard)).await?;
        let values = rows.into_iter().next().unwrap_or_default();
        for (name, value) in reported.iter().zip(values) {
            let value = value.unwrap_or_default();
            if name.eq_ignore_ascii_case("application_name") {
                self.talk.terms.renamed(&value);
            }
            self.to_app.insert(|out| put_parameter_status(out, name.as_bytes(), &value));
        }
        Ok(())
    }
}

/// Brings a backend to these settings.
pub(crate) async fn bring(lease: &mut Lease, wanted: &Arc<Settings>) -> Result<(), SettingsRefused> {
    bring_within(DEADLINE, lease, wanted, &mut Vec::new()).await
}

async fn bring_within(
    limit: Duration,
    lease: &mut Lease,
    wanted: &Arc<Settings>,
    heard: &mut Vec<u8>,
) -> Result<(), SettingsRefused> {
    let path = lease.applied.path_to(wanted);
    if !path.is_empty() {
        metrics::get().settings_replayed.increment(1);
        within(limit, lease.query_for(&path, heard)).await?;
    }
    lease.applied = Arc::clone(wanted);
    debug_assert_eq!(lease.status, TransactionStatus::Idle);
    Ok(())
}

/// Brings a backend to the settings of a session that logs in, and asks what that session is to be told.
pub(crate) async fn introduce(
    lease: &mut Lease,
    startup: &Arc<Settings>,
) -> Result<Arc<Welcome>, SettingsRefused> {
    if !Arc::ptr_eq(&lease.applied, startup) {
        bring(lease, startup).await?;
    }
    Ok(within(DEADLINE, Welcome::ask(lease)).await?)
}

/// The connection was lost before it was as a session needs it: a matter of the server, which another may do better.
pub(crate) fn unsettled(pool: &Pool, lane: Lane) -> Refusal {
    pool.upstream.trouble();
    let retry_after = pool.upstream.limits().codel.target;
    Refusal::NoUpstream { lane, cause: Arc::new(ConnectError::Unsettled), retry_after }
}

/// Questions of our own are answered at once or not at all: a server that takes longer is stuck.
async fn within<T>(
    limit: Duration,
    asked: impl Future<Output = Result<T, BackendError>>,
) -> Result<T, BackendError> {
    match tokio::time::timeout(limit, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(BackendError::Lost(std::io::ErrorKind::TimedOut.into())),
    }
}
