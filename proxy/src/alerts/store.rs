//! The outbox on disk: one small file, replaced as a whole with every change.
//!
//! Waits for the disk happen on blocking threads, one at a time, and are awaited for 100 ms at most: a disk that
//! is full or frozen delays no message. What is not on disk is in memory, and a metric and the log say so.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Inner;
use super::outbox::Saved;
use crate::state_dir::{StateDir, replace_file};
use crate::telemetry::metrics;
use crate::timestamp::Timestamp;

const NAME: &str = "outbox.json";
/// 1,000 messages and 1,000 incidents with the longest summaries stay far below.
const SIZE_MAX: u64 = 16 * 1024 * 1024;
/// How long messages wait until they are on disk.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long messages wait at start until it is known what an earlier process left.
const PATIENCE_AT_START: Duration = Duration::from_secs(1);
/// Between two attempts at a disk that refused.
const RETRY: Duration = Duration::from_secs(5);

/// The file and what is being done with it.
#[derive(Debug)]
pub(super) struct Store {
    folder: Arc<StateDir>,
    stage: Stage,
    job: Option<Job>,
    retry_at: Option<Instant>,
    complained: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// What an earlier process left is not known yet.
    Unread,
    /// The file has this version.
    At(u64),
}

#[derive(Debug)]
struct Job {
    task: JoinHandle<io::Result<Saved>>,
    patience_until: Instant,
    /// What the stage will be.
    version: u64,
}

impl Store {
    pub(super) fn new(folder: Arc<StateDir>) -> Self {
        Self { folder, stage: Stage::Unread, job: None, retry_at: None, complained: false }
    }

    /// Brings file and outbox together, as far as the disk does so in time.
    ///
    /// # Cancel safety
    /// What was begun goes on, and is seen by the next call.
    pub(super) async fn settle(&mut self, inner: &Inner) {
        // Reading, then writing what changed; more can only be asked for by changes in between.
        for _ in 0..2 {
            if self.job.is_none() && !self.begin(inner) {
                return;
            }
            let Some(job) = &mut self.job else { return };
            let until = job.patience_until;
            let Ok(ended) = tokio::time::timeout_at(until, &mut job.task).await else { return };
            let version = job.version;
            self.job = None;
            let result = ended.unwrap_or_else(|error| Err(io::Error::other(error)));
            self.judge(&result);
            if let Ok(saved) = result {
                if self.stage == Stage::Unread {
                    inner.outbox().adopt(saved, Timestamp::now(), Instant::now());
                }
                self.stage = Stage::At(version);
                inner.stored.store(version, Ordering::Release);
            }
        }
    }

    /// When to call `settle` again if nothing changes before; the past while the disk is slow.
    pub(super) fn next(&self) -> Option<Instant> {
        match &self.job {
            Some(_) => Some(Instant::now() + PATIENCE),
            None => self.retry_at,
        }
    }

    /// Whether there was something to do.
    fn begin(&mut self, inner: &Inner) -> bool {
        let now = Instant::now();
        if self.retry_at.is_some_and(|at| at > now) {
            return false;
        }
        let folder = Arc::clone(&self.folder);
        let outbox = inner.outbox();
        let version = outbox.version;
        let (task, patience) = match self.stage {
            // Its version is not ours: what is adopted is written.
            Stage::Unread => (tokio::task::spawn_blocking(move || read(folder.claim()?)), PATIENCE_AT_START),
            Stage::At(written) if written == version => return false,
            Stage::At(_) => {
                let saved = outbox.saved();
                (tokio::task::spawn_blocking(move || write(folder.claim()?, &saved)), PATIENCE)
            }
        };
        self.job = Some(Job { task, patience_until: now + patience, version });
        true
    }

    fn judge(&mut self, result: &io::Result<Saved>) {
        match result {
            Ok(_) => {
                self.retry_at = None;
                metrics::get().alerts_in_memory.set(0.0);
                if std::mem::take(&mut self.complained) {
                    tracing::info!("alerts to be sent are kept on disk again");
                }
            }
            Err(error) => {
                self.retry_at = Some(Instant::now() + RETRY);
                metrics::get().alerts_in_memory.set(1.0);
                if !std::mem::replace(&mut self.complained, true) {
                    let folder = self.folder.path().display();
                    tracing::warn!(%folder, %error, "alerts to be sent are kept in memory only");
                }
            }
        }
    }
}

fn write(folder: &Path, saved: &Saved) -> io::Result<Saved> {
    replace_file(folder, NAME, &serde_json::to_vec(saved)?)?;
    Ok(Saved::default())
}

/// A file that makes no sense is put aside: alerts that are to come matter more than those that are lost.
fn read(folder: &Path) -> io::Result<Saved> {
    let path = folder.join(NAME);
    let length = match std::fs::metadata(&path) {
        Ok(file) => file.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Saved::default()),
        Err(error) => return Err(error),
    };
    let parsed = if length > SIZE_MAX { None } else { serde_json::from_slice(&std::fs::read(&path)?).ok() };
    let Some(saved) = parsed else {
        std::fs::rename(&path, folder.join(format!("{NAME}.bad")))?;
        tracing::warn!(file = %path.display(), "the outbox of alerts is unreadable, and was put aside");
        return Ok(Saved::default());
    };
    Ok(saved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alerts::incident::{Alert, Receiver};
    use crate::alerts::outbox::Outbox;

    fn outbox() -> Outbox {
        let mut outbox = Outbox::new(vec![Receiver("r".into())]);
        outbox.adopt(Saved::default(), Timestamp::now(), Instant::now());
        outbox.fire(Alert::new("x", "y"), "1".into(), Timestamp::now(), Instant::now());
        outbox
    }

    #[test]
    fn what_is_written_is_read() {
        // An alert that loses a field on disk is another alert after a restart.
        let folder = tempfile::tempdir().unwrap();
        let saved = outbox().saved();

        write(folder.path(), &saved).unwrap();

        assert_eq!(read(folder.path()).unwrap(), saved);
        assert_eq!(saved.messages.len(), 1);
    }

    #[test]
    fn a_spoiled_file_is_put_aside() {
        // Refusing to start, or to page, because of yesterday's pages would be worse than losing those.
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(NAME), "{\"incidents\": [").unwrap();

        assert_eq!(read(folder.path()).unwrap(), Saved::default());
        assert!(folder.path().join("outbox.json.bad").exists());
    }
}
