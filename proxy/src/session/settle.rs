//! Settings when a backend changes hands: brought along at checkout, read back before the backend goes.

use std::sync::Arc;
use std::time::Duration;

use super::{Flowing, Session};
use crate::backend::settings::{read_back, read_back_with_resets};
use crate::backend::{BackendError, Settings};
use crate::exchange::Refusal;
use crate::exchange::refusal::Outcome;
use crate::pool::{Lease, Welcome};
use crate::telemetry::metrics;
use crate::wire::backend::put_parameter_status;
use crate::wire::error_fields::{ErrorMessage, Severity};
use crate::wire::{SqlState, TransactionStatus};

/// How long the server may take for a question of ours.
const DEADLINE: Duration = Duration::from_secs(1);

/// Why settings could not be brought to a backend.
pub(crate) enum SettingsRefused {
    /// PostgreSQL does not accept a value; the backend is as before.
    Value(SqlState, String),
    /// The connection failed.
    Lost,
}

impl SettingsRefused {
    /// SQLSTATE and message.
    pub(crate) fn words(&self) -> (SqlState, String) {
        match self {
            Self::Value(code, message) => (*code, message.clone()),
            Self::Lost => (SqlState::INSUFFICIENT_RESOURCES, "connection to PostgreSQL lost".to_owned()),
        }
    }

    /// Whether the backend is usable.
    pub(crate) fn is_about_values(&self) -> bool {
        matches!(self, Self::Value(..))
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

impl Session {
    /// Brings the backend from the settings of whoever had it before to those of this session.
    pub(super) async fn bring_settings(&mut self, lease: &mut Lease) -> Result<(), SettingsRefused> {
        bring(lease, &self.talk.wanted).await
    }

    /// A setting that worked before does not work on this backend. Without it the session would not be what
    /// its application believes, so it ends.
    pub(super) async fn settings_refused(&mut self, lease: Lease, refused: SettingsRefused) -> Flowing {
        match refused {
            SettingsRefused::Lost => {
                drop(lease);
                self.refuse(&Refusal::BackendLost { outcome: Outcome::NotSent });
                Flowing::On
            }
            SettingsRefused::Value(code, message) => {
                lease.give_back();
                let error = ErrorMessage {
                    severity: Severity::Fatal,
                    code,
                    message: &message,
                    detail: "reason=settings outcome=not_sent",
                    hint: "A setting of this session is not accepted by the backend that was to serve it.",
                };
                self.to_app.insert(|out| error.put(out));
                self.last_words().await;
                Flowing::Ended
            }
        }
    }

    /// Reads the values of the settings that were touched: what the server says counts, whatever the
    /// statements said, whether they failed or were rolled back.
    pub(super) async fn read_settings_back(&mut self, lease: &mut Lease) -> Result<(), SettingsRefused> {
        let notes = &mut self.talk.notes;
        let mut resets = std::mem::take(&mut notes.resets);
        let mut names = std::mem::take(&mut notes.touched);
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
        let rows = within(lease.query(&read_back_with_resets(names.iter().map(|name| &**name)))).await?;
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
        if restored.is_empty() { Ok(()) } else { self.restore(lease, &restored).await }
    }

    /// RESET goes back to what the session's startup packet said, and the application is told the values of
    /// those parameters that a server reports.
    async fn restore(&mut self, lease: &mut Lease, names: &[Box<str>]) -> Result<(), SettingsRefused> {
        bring(lease, &self.talk.wanted).await?;
        let reported: Vec<Box<str>> = lease
            .reported
            .keys()
            .filter(|key| names.iter().any(|n| n.eq_ignore_ascii_case(key)))
            .cloned()
            .collect();
        if reported.is_empty() {
            return Ok(());
        }
        let rows = within(lease.query(&read_back(reported.iter().map(|name| &**name)))).await?;
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
    let path = lease.applied.path_to(wanted);
    if !path.is_empty() {
        metrics::get().settings_replayed.increment(1);
        within(lease.query(&path)).await?;
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
    Ok(within(Welcome::ask(lease)).await?)
}

/// Questions of our own are answered at once or not at all: a server that takes longer is stuck.
async fn within<T>(asked: impl Future<Output = Result<T, BackendError>>) -> Result<T, BackendError> {
    match tokio::time::timeout(DEADLINE, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(BackendError::Lost(std::io::ErrorKind::TimedOut.into())),
    }
}
