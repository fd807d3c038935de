//! Settings when a backend changes hands: brought along at checkout, read back before the backend goes.

use std::sync::Arc;
use std::time::Duration;

use super::relay::Told;
use super::{Flowing, Session};
use crate::backend::settings::read_back;
use crate::backend::{BackendError, Settings};
use crate::exchange::Refusal;
use crate::pool::{Lease, Welcome};
use crate::telemetry::metrics;
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

    /// A setting that worked before (or came with the startup packet) does not work on this backend.
    pub(super) async fn settings_refused(&mut self, lease: Lease, refused: SettingsRefused) -> Flowing {
        match refused {
            SettingsRefused::Lost => {
                drop(lease);
                self.refuse(&Refusal::BackendLost { outcome: crate::exchange::refusal::Outcome::NotSent });
            }
            SettingsRefused::Value(code, message) => {
                self.give_back(lease).await;
                let error = ErrorMessage {
                    severity: Severity::Error,
                    code,
                    message: &message,
                    detail: "reason=settings outcome=not_sent",
                    hint: "A setting of this session is not accepted by the backend that was to serve it.",
                };
                self.refuse_with(&error);
            }
        }
        Flowing::On
    }

    /// Reads the values of the settings that were touched: what the server says counts, whatever the
    /// statements said, whether they failed or were rolled back.
    pub(super) async fn read_settings_back(&mut self, lease: &mut Lease) -> Result<(), Told> {
        let notes = std::mem::take(&mut self.talk.notes);
        let mut wanted =
            if notes.reset_all { Arc::clone(&self.talk.startup) } else { Arc::clone(&self.talk.wanted) };
        if notes.reset_all {
            lease.applied = Settings::none();
        }
        for name in &notes.resets {
            wanted = wanted.with([(&**name, self.talk.startup.get(name))]);
            lease.applied = lease.applied.with([(&**name, None)]);
        }
        let names: Vec<&str> = notes
            .touched
            .iter()
            .map(|name| &**name)
            .filter(|name| !notes.resets.iter().any(|reset| **reset == **name))
            .collect();
        if !names.is_empty() {
            let asked = within(lease.query(&read_back(names.iter().copied()))).await;
            let Ok(rows) = asked else { return Err(Told::No) };
            let values = rows.into_iter().next().unwrap_or_default();
            for (name, value) in names.iter().zip(&values) {
                let change = [(*name, value.as_deref())];
                wanted = wanted.with(change);
                lease.applied = lease.applied.with(change);
            }
        }
        self.talk.wanted = wanted;
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
