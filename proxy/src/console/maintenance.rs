//! Commands that change something: pauses, reconnects, ends of sessions, and what the main thread has to do.
//!
//! Each is logged with its user. What touches pools runs on a worker, where their connections live.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::command::Command;
use super::{Console, End, Failure, Outcome, is_console};
use crate::exchange::{Refusal, refusal};
use crate::pool::{Pool, databases::Unchanged};
use crate::server::Shared;
use crate::session::registry::{Phase, Signal};
use crate::status::controls::{self, By, pools};
use crate::wire::SqlState;

/// Between two looks at whether a pause is complete.
const LOOK: Duration = Duration::from_millis(10);

/// The least time that a pause waits for transactions to end, however short the drain is.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// How the wait for a pause ended.
enum Waited {
    /// No backend is left.
    Complete,
    Cancelled,
    Late,
}

/// A pause that is undone when nobody keeps it.
#[must_use]
struct Pause<'a> {
    shared: &'a Arc<Shared>,
    database: Option<&'a str>,
    kept: bool,
}

impl Pause<'_> {
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        if !self.kept {
            controls::undo_pause(self.shared, self.database);
        }
    }
}

fn state_failure(message: String, hint: &str) -> Failure {
    Failure::new(SqlState::NOT_IN_PREREQUISITE_STATE, message, hint)
}

/// A database in a message.
fn called(database: Option<&str>) -> String {
    database.map_or_else(|| "every database".to_owned(), |name| format!("database \"{name}\""))
}

impl Console {
    /// Does what the command says.
    pub(super) async fn maintain(&mut self, command: &Command) -> Result<Result<Outcome, Failure>, End> {
        self.log(command);
        Ok(match command {
            Command::Pause(database) => self.pause(database.as_deref()).await?,
            Command::Resume(database) => self.resume(database.as_deref()).await,
            Command::Reconnect(database) => self.reconnect(database.as_deref()).await,
            Command::Kill(database) => self.kill(database).await,
            Command::Disable(database) => self.set_disabled(database, true).await,
            Command::Enable(database) => self.set_disabled(database, false).await,
            Command::Reload => self.reload().await,
            Command::Shutdown => {
                self.shared.ties.shut_down();
                Ok(Outcome::of("SHUTDOWN"))
            }
            Command::Show(_)
            | Command::Help
            | Command::Deallocate(_)
            | Command::Begin
            | Command::End(_)
            | Command::Nothing(_) => Ok(Outcome::default()),
        })
    }

    fn user(&self) -> &str {
        self.registration.entry.identity.get().map_or("", |identity| &*identity.user)
    }

    fn by(&self) -> By {
        By::Console(self.user().into())
    }

    fn log(&self, command: &Command) {
        let user = self.user();
        tracing::info!(user, ?command, "admin console");
    }

    /// Complete once every backend is closed. Cancelled, overdue, or left by whoever asked, it is undone: a pause
    /// that nobody knows of is an outage.
    async fn pause(&mut self, database: Option<&str>) -> Result<Result<Outcome, Failure>, End> {
        if let Err(failure) = refuse_console(database) {
            return Ok(Err(failure));
        }
        let shared = Arc::clone(&self.shared);
        let known = database.is_none_or(|name| shared.databases.find(name).is_some());
        if controls::pause(&shared, database, &self.by()).await == Err(Unchanged) {
            return Ok(Err(state_failure(
                format!("{} is paused already", called(database)),
                "RESUME ends a pause.",
            )));
        }
        let pause = Pause { shared: &shared, database, kept: false };
        self.registration.entry.enter(Phase::Queued);
        let limit = shared.config.load().timeouts.drain.max(PAUSE_MIN);
        let waited = self.wait_unused(database, limit).await?;
        self.registration.entry.enter(Phase::Active);
        let used = in_use(&shared, database);
        Ok(match waited {
            Waited::Complete => {
                pause.keep();
                let outcome = Outcome::of("PAUSE");
                Ok(if known { outcome } else { outcome.notice("no session has used this database yet") })
            }
            Waited::Cancelled => {
                Err(Failure::new(SqlState::QUERY_CANCELED, "the pause was cancelled and is undone", ""))
            }
            Waited::Late => Err(Failure {
                detail: format!("backends={used} waited_ms={}", limit.as_millis()),
                ..state_failure(
                    format!("{} was not unused in time; the pause is undone", called(database)),
                    "SHOW SERVERS lists the backends. A session in a transaction, pinned or in session mode keeps its own; see timeouts.drain.",
                )
            }),
        })
    }

    async fn wait_unused(&mut self, database: Option<&str>, limit: Duration) -> Result<Waited, End> {
        let deadline = Instant::now() + limit;
        loop {
            if in_use(&self.shared, database) == 0 {
                return Ok(Waited::Complete);
            }
            let entry = &self.registration.entry;
            if entry.has(Signal::Cancel) {
                entry.clear(Signal::Cancel);
                return Ok(Waited::Cancelled);
            }
            if entry.has(Signal::Kill) {
                let outcome = refusal::Outcome::NotSent;
                return Err(End::Told(Refusal::Killed { outcome }));
            }
            if Instant::now() >= deadline {
                return Ok(Waited::Late);
            }
            self.look_for_end().await?;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether whoever asked is still there; what it says next is kept for later.
    async fn look_for_end(&mut self) -> Result<(), End> {
        poll_fn(|cx| {
            if !self.flow.has_room() {
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(match self.flow.poll_fill(cx, &mut self.stream) {
                Poll::Ready(Ok(0) | Err(_)) => Err(End::Left),
                Poll::Ready(Ok(_)) | Poll::Pending => Ok(()),
            })
        })
        .await
    }

    async fn resume(&self, database: Option<&str>) -> Result<Outcome, Failure> {
        refuse_console(database)?;
        if controls::resume(&self.shared, database, &self.by()).await == Err(Unchanged) {
            let what =
                database.map_or_else(|| "no database".to_owned(), |name| format!("database \"{name}\""));
            let not = if database.is_some() { "not " } else { "" };
            return Err(state_failure(format!("{what} is {not}paused"), "SHOW DATABASES says which are."));
        }
        Ok(Outcome::of("RESUME"))
    }

    async fn reconnect(&self, database: Option<&str>) -> Result<Outcome, Failure> {
        refuse_console(database)?;
        self.known(database)?;
        controls::reconnect(&self.shared, database, &self.by()).await;
        Ok(Outcome::of("RECONNECT"))
    }

    /// As PgBouncer: whoever comes next waits until RESUME.
    async fn kill(&self, database: &str) -> Result<Outcome, Failure> {
        refuse_console(Some(database))?;
        self.known(Some(database))?;
        controls::note(&self.shared, "killed", Some(database), &self.by()).await;
        // Paused or not, its sessions end.
        let _ = self.shared.databases.pause(Some(database));
        controls::tell_pools(&self.shared, Some(database), Pool::close_backends);
        for entry in self.shared.registry.all() {
            if entry.identity.get().is_some_and(|identity| &*identity.database == database) {
                entry.signal(Signal::Kill);
            }
        }
        Ok(Outcome::of("KILL"))
    }

    async fn set_disabled(&self, database: &str, disabled: bool) -> Result<Outcome, Failure> {
        refuse_console(Some(database))?;
        let to = if disabled { "disabled" } else { "enabled" };
        controls::note(&self.shared, to, Some(database), &self.by()).await;
        self.shared.databases.get(database).set_disabled(disabled);
        Ok(Outcome::of(if disabled { "DISABLE" } else { "ENABLE" }))
    }

    fn known(&self, database: Option<&str>) -> Result<(), Failure> {
        if database.is_none_or(|name| self.shared.databases.find(name).is_some()) {
            return Ok(());
        }
        let message = format!("no session has used {}", called(database));
        Err(Failure::new(
            SqlState::INVALID_CATALOG_NAME,
            message,
            "SHOW DATABASES lists those in use; upper and lower case count.",
        ))
    }

    async fn reload(&self) -> Result<Outcome, Failure> {
        match self.shared.ties.reload().await {
            Some(Ok(warnings)) => Ok(warnings.into_iter().fold(Outcome::of("RELOAD"), Outcome::notice)),
            Some(Err(reasons)) => Err(Failure {
                detail: reasons.join("\n"),
                ..Failure::new(
                    SqlState::CONFIG_FILE_ERROR,
                    "the configuration was not reloaded",
                    "The configuration of before stays in force.",
                )
            }),
            None => {
                Err(state_failure("nobody reloads: the sidecar is shutting down, or busy".to_owned(), ""))
            }
        }
    }
}

/// Backends of a database, or of all.
fn in_use(shared: &Shared, database: Option<&str>) -> usize {
    let states = pools(shared, database);
    states.iter().map(|pool| pool.state()).map(|state| state.idle + state.leased + state.opening).sum()
}

/// The console is not a database that can be paused.
fn refuse_console(database: Option<&str>) -> Result<(), Failure> {
    match database {
        Some(name) if is_console(name) => {
            Err(Failure::new(SqlState::FEATURE_NOT_SUPPORTED, "this database is the admin console", ""))
        }
        _ => Ok(()),
    }
}
