//! The thread that waits for the disk, so that nobody else has to.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::file::JournalFile;
use super::{Decision, Durability, Entry, KEPT, Kind, Memory, PATIENCE};
use crate::state_dir::StateDir;
use crate::telemetry::metrics;

/// Between two attempts at a disk that refused.
const RETRY: Duration = Duration::from_secs(5);
/// Entries that one fsync is for, at most.
const BATCH: usize = 64;

/// An entry on its way to the disk.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) entry: Arc<Entry>,
    pub(super) since: Instant,
    /// None when nobody waits.
    pub(super) told: Option<oneshot::Sender<Durability>>,
}

/// Owns the file.
#[derive(Debug)]
pub(super) struct Writer {
    folder: Arc<StateDir>,
    memory: Arc<Memory>,
    file: Option<JournalFile>,
    /// Not on disk yet; bounded like the memory.
    backlog: VecDeque<Arc<Entry>>,
    /// Entries that fell out of the backlog.
    lost: usize,
    disk: Disk,
    /// Entries of earlier processes are read once.
    past: Past,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Past {
    Unread,
    Read,
}

/// What the disk did last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disk {
    Untried,
    Works,
    Refuses,
}

impl Writer {
    pub(super) fn new(folder: Arc<StateDir>, memory: Arc<Memory>) -> Self {
        let backlog = VecDeque::new();
        Self { folder, memory, file: None, backlog, lost: 0, disk: Disk::Untried, past: Past::Unread }
    }

    /// Writes until nobody can record any more.
    pub(super) fn run(mut self, queue: &Receiver<Pending>) {
        let opened = self.open();
        self.judge(&opened);
        loop {
            let mut batch = match self.next(queue) {
                Ok(first) => vec![first],
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            batch.extend(queue.try_iter().take(BATCH));
            self.write(batch);
        }
    }

    fn next(&self, queue: &Receiver<Pending>) -> Result<Pending, RecvTimeoutError> {
        match self.disk {
            Disk::Works => queue.recv().map_err(RecvTimeoutError::from),
            Disk::Untried | Disk::Refuses => queue.recv_timeout(RETRY),
        }
    }

    fn write(&mut self, batch: Vec<Pending>) {
        for pending in &batch {
            self.delay(Arc::clone(&pending.entry));
        }
        let result = self.flush();
        if result.is_err() {
            metrics::get().journal_failures.increment(1);
        }
        self.judge(&result);
        let durability = if result.is_ok() { Durability::Durable } else { Durability::Memory };
        let mut late = None;
        for pending in batch {
            let waited = pending.since.elapsed();
            if waited > PATIENCE && durability == Durability::Durable {
                late = late.max(Some((waited, pending.entry.id)));
            }
            // Who waited may have given up.
            let _ = pending.told.map(|told| told.send(durability));
        }
        if let Some((waited, id)) = late {
            let text = format!("entries up to {id} took effect before they were on disk, after {waited:.1?}");
            self.note("written", "late", &text);
        }
    }

    fn delay(&mut self, entry: Arc<Entry>) {
        if self.backlog.len() == KEPT {
            self.backlog.pop_front();
            self.lost += 1;
        }
        self.backlog.push_back(entry);
    }

    fn open(&mut self) -> io::Result<()> {
        let file = JournalFile::open(self.folder.claim()?)?;
        if self.past == Past::Unread {
            self.memory.remember(file.last_entries()?);
            self.past = Past::Read;
        }
        self.file = Some(file);
        Ok(())
    }

    /// Puts the whole backlog on disk.
    fn flush(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            self.open()?;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut lines = Vec::new();
        self.backlog.iter().for_each(|entry| entry.put_line(&mut lines));
        if let Err(error) = file.append(&lines) {
            // It may have been moved or its disk unmounted: the next attempt opens it anew.
            self.file = None;
            return Err(error);
        }
        self.backlog.clear();
        Ok(())
    }

    /// Says once when the disk begins to refuse, and once when it works again.
    fn judge(&mut self, result: &io::Result<()>) {
        let before = self.disk;
        match result {
            Ok(()) => {
                self.disk = Disk::Works;
                metrics::get().journal_in_memory.set(0.0);
                if before == Disk::Refuses {
                    tracing::info!("the journal is written again");
                    let lost = std::mem::take(&mut self.lost);
                    if lost > 0 {
                        self.note("memory", "disk", &format!("{lost} entries before this one are lost"));
                    }
                }
            }
            Err(error) => {
                self.disk = Disk::Refuses;
                metrics::get().journal_in_memory.set(1.0);
                if before != Disk::Refuses {
                    let folder = self.folder.path().display();
                    tracing::warn!(%folder, %error, "the journal is kept in memory only");
                }
            }
        }
    }

    /// An entry of the journal's own.
    fn note(&mut self, from: &'static str, to: &'static str, text: &str) {
        let entry = self.memory.keep(Decision::new(Kind::Journal).change(from, to).evidence(text));
        self.delay(entry);
        // When this fails the next attempt has it.
        drop(self.flush());
    }
}
