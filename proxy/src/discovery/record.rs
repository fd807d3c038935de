//! `topology.json` in `state_dir`: what a sidecar must know after a restart, so that it does not believe a stale primary.
//!
//! Written whole, synced, and renamed over the old one, so that a crash leaves either. It counts only for a cluster
//! that still has one of the addresses it was written for. Deleting it while the sidecar is down forgets everything,
//! which is what to do after a restore that goes back in time.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::decide::Memory;
use crate::config::UpstreamAddress;
use crate::upstream::{Lineage, SystemIdentifier, TimelineId};

const NAME: &str = "topology.json";
/// More than any such file has; what is longer is not ours.
const MAX_LEN: u64 = 64 * 1024;
/// How long a decision waits for the disk, as it does for the journal's.
const PATIENCE: Duration = Duration::from_millis(100);

/// Why the file cannot be used.
#[derive(Debug, Error)]
pub enum RecordError {
    /// It cannot be read or written.
    #[error("cannot access {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what we write.
    #[error("{path} is damaged; delete it to forget which timelines were seen")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How.
        source: serde_json::Error,
    },
}

#[derive(Serialize, Deserialize)]
struct Stored {
    /// Text, since numbers of JSON are not good for 64 bits everywhere.
    system_identifier: String,
    major_version: u32,
    timeline: u32,
    upstreams: Vec<String>,
}

/// The file.
#[derive(Debug)]
pub struct Record {
    path: PathBuf,
}

impl Record {
    /// The file in this folder. Nothing is read yet.
    pub fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join(NAME) }
    }

    /// What was remembered for a cluster with these servers.
    ///
    /// # Errors
    /// When there is a file that cannot be read. Starting without it could mean believing a stale primary: refuse.
    pub fn load(&self, upstreams: &[UpstreamAddress]) -> Result<Option<Memory>, RecordError> {
        let text = match fs::metadata(&self.path).and_then(|file| {
            if file.len() > MAX_LEN { Err(io::ErrorKind::FileTooLarge.into()) } else { fs::read(&self.path) }
        }) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.io(error)),
        };
        let damaged = |source| RecordError::Damaged { path: self.path.clone(), source };
        let stored: Stored = serde_json::from_slice(&text).map_err(damaged)?;
        let system = serde_json::from_str(&stored.system_identifier).map_err(damaged)?;
        let ours = upstreams.iter().any(|address| stored.upstreams.contains(&address.to_string()));
        Ok(ours.then_some(Memory {
            lineage: Lineage { system: SystemIdentifier(system), major: stored.major_version },
            newest: TimelineId(stored.timeline),
        }))
    }

    /// Replaces what was remembered.
    ///
    /// # Errors
    /// When the file cannot be written. The one before it is still there then.
    pub fn save(&self, memory: &Memory, upstreams: &[UpstreamAddress]) -> Result<(), RecordError> {
        let stored = Stored {
            system_identifier: memory.lineage.system.to_string(),
            major_version: memory.lineage.major,
            timeline: memory.newest.0,
            upstreams: upstreams.iter().map(ToString::to_string).collect(),
        };
        self.replace(&stored).map_err(|error| self.io(error))
    }

    fn replace(&self, stored: &Stored) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let new = self.path.with_extension("json.new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec_pretty(stored)?)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        // A rename is durable only when its folder is.
        File::open(folder)?.sync_all()
    }

    fn io(&self, source: io::Error) -> RecordError {
        RecordError::Io { path: self.path.clone(), source }
    }
}

/// What the file is to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) memory: Memory,
    pub(super) upstreams: Vec<UpstreamAddress>,
}

/// Keeps the file up to date. A disk that hangs holds nobody up for longer than [`PATIENCE`].
#[derive(Debug)]
pub(super) struct Scribe {
    wanted: watch::Sender<Option<Content>>,
    /// What was tried last.
    tried: watch::Receiver<Option<Content>>,
}

impl Scribe {
    /// Starts the task that writes; it ends with the scribe.
    pub(super) fn start(record: Record) -> Self {
        let (wanted, wishes) = watch::channel(None);
        let (done, tried) = watch::channel(None);
        tokio::spawn(write(Arc::new(record), wishes, done));
        Self { wanted, tried }
    }

    /// Has it written, and waits for that, unless it was asked for before.
    ///
    /// # Cancel safety
    /// It is written whether or not somebody waits.
    pub(super) async fn remember(&self, content: Content) {
        // Not again until it changes: a disk that is full or hangs would be waited for with each answer of a server.
        if self.wanted.borrow().as_ref() == Some(&content) {
            return;
        }
        self.wanted.send_replace(Some(content.clone()));
        let mut tried = self.tried.clone();
        let written = timeout(PATIENCE, tried.wait_for(|tried| tried.as_ref() == Some(&content))).await;
        if written.is_err() {
            tracing::warn!(
                "the disk of state_dir does not answer: what was seen of the cluster is written later"
            );
        }
    }
}

/// Writes what is wanted last, one at a time.
async fn write(
    record: Arc<Record>,
    mut wanted: watch::Receiver<Option<Content>>,
    tried: watch::Sender<Option<Content>>,
) {
    while wanted.changed().await.is_ok() {
        let Some(content) = wanted.borrow_and_update().clone() else { continue };
        let (record, job) = (Arc::clone(&record), content.clone());
        let saved = spawn_blocking(move || record.save(&job.memory, &job.upstreams)).await;
        if let Ok(Err(error)) = saved {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "what was seen of the cluster will be forgotten at a restart"
            );
        }
        tried.send_replace(Some(content));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: Memory =
        Memory { lineage: Lineage { system: SystemIdentifier(u64::MAX), major: 18 }, newest: TimelineId(4) };

    fn addresses(hosts: &[&str]) -> Vec<UpstreamAddress> {
        hosts.iter().map(|host| UpstreamAddress::Tcp { host: (*host).to_owned(), port: 5432 }).collect()
    }

    #[test]
    fn what_is_saved_is_loaded() {
        // A system identifier beyond 2^53 is what a number of JSON would round.
        let folder = tempfile::tempdir().unwrap();
        let record = Record::new(&folder.path().join("state"));

        assert_eq!(record.load(&addresses(&["a"])).unwrap(), None);
        record.save(&MEMORY, &addresses(&["a", "b"])).unwrap();

        assert_eq!(record.load(&addresses(&["b", "c"])).unwrap(), Some(MEMORY));
    }

    #[test]
    fn what_was_remembered_of_another_cluster_does_not_count() {
        // A sidecar that is given another database would fence it as foreign.
        let folder = tempfile::tempdir().unwrap();
        let record = Record::new(folder.path());
        record.save(&MEMORY, &addresses(&["a", "b"])).unwrap();

        assert_eq!(record.load(&addresses(&["c"])).unwrap(), None);
    }

    #[test]
    fn a_damaged_file_is_an_error_and_not_an_empty_memory() {
        // Taken for empty it would let a stale primary in after the next restart.
        let folder = tempfile::tempdir().unwrap();
        let record = Record::new(folder.path());
        record.save(&MEMORY, &addresses(&["a"])).unwrap();
        let path = folder.path().join(NAME);
        let whole = fs::read(&path).unwrap();

        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(matches!(record.load(&addresses(&["a"])), Err(RecordError::Damaged { .. })), "{cut}");
        }
    }

    #[test]
    fn a_save_that_fails_leaves_the_old_file() {
        // Writing in place would leave half a file when the disk is full.
        let folder = tempfile::tempdir().unwrap();
        let record = Record::new(folder.path());
        record.save(&MEMORY, &addresses(&["a"])).unwrap();
        fs::create_dir(folder.path().join("topology.json.new")).unwrap();

        let newer = Memory { newest: TimelineId(5), ..MEMORY };
        assert!(record.save(&newer, &addresses(&["a"])).is_err());

        assert_eq!(record.load(&addresses(&["a"])).unwrap(), Some(MEMORY));
    }
}
