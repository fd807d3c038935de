//! What the sidecar decided, when, and on what evidence: [`Journal`].
//!
//! A decision is recorded *before* it takes effect. It is in memory at once (the last 256, for whoever looks, without
//! suspicions that came to nothing) and is told to subscribers; a thread of its own writes it to `state_dir/journal.jsonl`, one JSON object a line, and
//! calls fsync. Who decides waits for that with [`Recorded::settled`], for at most [`PATIENCE`]: a disk that is
//! full or frozen must not stop a decision. Then the decision takes effect, a metric counts, and when the disk is
//! back the journal says what was late or is missing.
//!
//! Not on the data path: nothing in here is called per exchange.

mod decision;
mod file;
mod writer;

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, oneshot};

pub use decision::{Decision, Entry, Kind, Subject};

use self::writer::{Pending, Writer};
use crate::state_dir::StateDir;
use crate::telemetry::metrics;
use crate::timestamp::Timestamp;

/// Entries that are kept in memory.
pub const KEPT: usize = 256;
/// How long a decision waits for the disk. Tests are about what happens, not about how fast their disk is.
pub const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 10_000 } else { 100 });
/// Entries that wait for the writer. More than this many decisions while a disk is frozen are in memory only.
const QUEUE: usize = 1024;

/// The record of all decisions.
#[derive(Debug)]
pub struct Journal {
    memory: Arc<Memory>,
    queue: Option<SyncSender<Pending>>,
}

/// The part that needs no disk.
#[derive(Debug)]
pub(crate) struct Memory {
    kept: Mutex<VecDeque<Arc<Entry>>>,
    next_id: AtomicU64,
    live: broadcast::Sender<Arc<Entry>>,
}

/// What became of an entry when its decision had to take effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It is on disk.
    Durable,
    /// The disk refuses, or there is none: it is in memory only, for now.
    Memory,
    /// The disk did not answer in time; it may still be written.
    Late,
}

/// A decision that is recorded but perhaps not durable yet.
#[derive(Debug)]
#[must_use = "a decision takes effect after its record is settled; `forget` says that nobody waits"]
pub struct Recorded {
    done: Option<oneshot::Receiver<Durability>>,
}

impl Journal {
    /// Starts the writer.
    ///
    /// # Errors
    /// When there can be no further thread. A folder that cannot be used is not an error: it is logged, and
    /// tried again.
    pub fn start(folder: Arc<StateDir>) -> io::Result<Arc<Self>> {
        let memory = Arc::new(Memory::new());
        let (queue, entries) = sync_channel(QUEUE);
        let writer = Writer::new(folder, Arc::clone(&memory));
        std::thread::Builder::new()
            .name("tidegate-journal".to_owned())
            .spawn(move || writer.run(&entries))?;
        Ok(Arc::new(Self { memory, queue: Some(queue) }))
    }

    /// A journal without a disk.
    pub fn in_memory() -> Arc<Self> {
        Arc::new(Self { memory: Arc::new(Memory::new()), queue: None })
    }

    /// Records a decision, to be called before it takes effect. Never blocks.
    pub fn record(&self, decision: Decision) -> Recorded {
        let entry = self.memory.keep(decision);
        let Some(queue) = &self.queue else { return Recorded { done: None } };
        let (told, done) = oneshot::channel();
        let pending = Pending { entry, since: Instant::now(), told: Some(told) };
        if queue.try_send(pending).is_err() {
            metrics::get().journal_failures.increment(1);
            return Recorded { done: None };
        }
        Recorded { done: Some(done) }
    }

    /// The last entries, oldest first; those of earlier processes included.
    pub fn recent(&self) -> Vec<Arc<Entry>> {
        self.memory.kept().iter().cloned().collect()
    }

    /// Entries as they are recorded from now on. A subscriber that is 256 behind misses some and is told so.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Entry>> {
        self.memory.live.subscribe()
    }
}

impl Recorded {
    /// Waits until the record is on disk, for at most [`PATIENCE`]. Needs a tokio runtime with time.
    ///
    /// # Cancel safety
    /// The entry is written whether or not somebody waits.
    pub async fn settled(self) -> Durability {
        let Some(done) = self.done else { return Durability::Memory };
        let Ok(told) = tokio::time::timeout(PATIENCE, done).await else {
            metrics::get().journal_late.increment(1);
            return Durability::Late;
        };
        told.unwrap_or(Durability::Memory)
    }

    /// Does not wait: for what already happened, and for threads that must not.
    pub fn forget(self) {}
}

impl Memory {
    fn new() -> Self {
        // Grows over restarts, and is exact in JavaScript: microseconds since 1970 stay below 2^53 until 2255.
        let first = Timestamp::now().unix_ms().saturating_mul(1000);
        Self {
            kept: Mutex::new(VecDeque::with_capacity(KEPT)),
            next_id: AtomicU64::new(first),
            live: broadcast::channel(KEPT).0,
        }
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Arc<Entry>>> {
        // A queue of shared entries is whole between any two of its operations.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Numbers a decision, keeps it and tells subscribers.
    pub(crate) fn keep(&self, decision: Decision) -> Arc<Entry> {
        let mut kept = self.kept();
        // Under the lock, so that numbers and order agree.
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let entry = Arc::new(Entry::new(id, Timestamp::now(), decision));
        push(&mut kept, Arc::clone(&entry));
        // Nobody may be listening.
        let _ = self.live.send(Arc::clone(&entry));
        entry
    }

    /// Puts entries of earlier processes before those of this one.
    pub(crate) fn remember(&self, earlier: Vec<Entry>) {
        let mut kept = self.kept();
        let mut all = VecDeque::with_capacity(KEPT);
        let earlier = earlier.into_iter().map(Arc::new);
        earlier.chain(kept.drain(..)).for_each(|entry| push(&mut all, entry));
        *kept = all;
    }
}

/// Keeps an entry. A suspicion that came to nothing goes, together with the entry that says so: there is a pair of
/// them for each statement that is slow, and many would push out what did happen.
fn push(kept: &mut VecDeque<Arc<Entry>>, entry: Arc<Entry>) {
    let subject = &entry.decision.subject;
    let of_same =
        |kept: &Arc<Entry>| kept.decision.kind == Kind::Breaker && kept.decision.subject == *subject;
    if let Some(index) = kept.iter().rposition(of_same)
        && kept.get(index).is_some_and(|before| entry.decision.clears(&before.decision))
    {
        kept.remove(index);
        return;
    }
    if kept.len() == KEPT {
        kept.pop_front();
    }
    kept.push_back(entry);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::Cause;
    use crate::sql::Lane;

    fn decision(evidence: &str) -> Decision {
        Decision::new(Kind::Breaker)
            .about(Subject { upstream: Some("db:5432".into()), lane: Some(Lane::Write) })
            .change("closed", "open")
            .cause(Cause::SyncStandby)
            .evidence(evidence)
    }

    fn lines(folder: &std::path::Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(folder.join("journal.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[tokio::test]
    async fn a_settled_decision_is_on_disk() {
        // Were it written later, a crash right after the decision took effect would leave no trace of it.
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::start(Arc::new(StateDir::new(folder.path()))).unwrap();

        let durability = journal.record(decision("s1 is missing")).settled().await;

        assert_eq!(durability, Durability::Durable);
        let [line] = &lines(folder.path())[..] else { panic!("one line") };
        for (key, value) in [
            ("kind", "breaker"),
            ("upstream", "db:5432"),
            ("lane", "write"),
            ("from", "closed"),
            ("to", "open"),
            ("cause", "sync_standby"),
            ("evidence", "s1 is missing"),
        ] {
            assert_eq!(line[key], value);
        }
        assert!(line["id"].is_u64() && line["at"].as_str().unwrap().ends_with('Z'), "{line}");
    }

    #[tokio::test]
    async fn without_a_disk_decisions_are_taken_and_kept_in_memory() {
        // A folder that cannot be made must neither fail a decision nor delay it to the limit.
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("file");
        std::fs::write(&blocked, "").unwrap();
        let journal = Journal::start(Arc::new(StateDir::new(blocked.join("x")))).unwrap();

        let durability = journal.record(decision("x")).settled().await;

        assert_eq!(durability, Durability::Memory);
        assert_eq!(journal.recent().len(), 1);
    }

    #[tokio::test]
    async fn what_a_disk_refused_is_written_when_it_is_back() {
        // The outage of a disk would otherwise leave a hole that nobody can tell from a quiet time.
        let folder = tempfile::tempdir().unwrap();
        let blocker = folder.path().join("state");
        std::fs::write(&blocker, "").unwrap();
        let journal = Journal::start(Arc::new(StateDir::new(&blocker))).unwrap();
        assert_eq!(journal.record(decision("first")).settled().await, Durability::Memory);

        std::fs::remove_file(&blocker).unwrap();
        let durability = journal.record(decision("second")).settled().await;

        assert_eq!(durability, Durability::Durable);
        let evidence: Vec<_> = lines(&blocker).iter().map(|line| line["evidence"].clone()).collect();
        assert_eq!(evidence[..2], ["first", "second"]);
    }

    #[tokio::test]
    async fn the_past_is_remembered_over_a_restart() {
        // The page that an engineer opens after a restart must show why there was one.
        let folder = tempfile::tempdir().unwrap();
        {
            let journal = Journal::start(Arc::new(StateDir::new(folder.path()))).unwrap();
            journal.record(decision("before")).settled().await;
        }
        // The first writer lets the folder go when its queue is closed.
        let journal = loop {
            let journal = Journal::start(Arc::new(StateDir::new(folder.path()))).unwrap();
            if journal.record(decision("after")).settled().await == Durability::Durable {
                break journal;
            }
        };

        let recent = journal.recent();
        let evidence: Vec<_> = recent.iter().map(|entry| &*entry.decision.evidence).collect();
        assert_eq!(evidence, ["before", "after"]);
        assert!(recent[0].id < recent[1].id);
    }

    #[test]
    fn memory_is_bounded_and_in_order() {
        // A flapping upstream must not fill the memory; the newest entries are those that matter.
        let journal = Journal::in_memory();
        let mut live = journal.subscribe();
        for n in 0..KEPT + 3 {
            journal.record(decision(&n.to_string())).forget();
        }

        let recent = journal.recent();
        assert_eq!(recent.len(), KEPT);
        assert_eq!(&*recent[0].decision.evidence, "3");
        assert!(recent.windows(2).all(|pair| pair[0].id < pair[1].id));
        assert!(matches!(live.try_recv(), Err(broadcast::error::TryRecvError::Lagged(3))));
    }

    #[test]
    fn suspicions_that_came_to_nothing_do_not_push_out_what_did_happen() {
        // Each slow statement makes a pair of them; a hundred would leave nothing else to look at.
        let journal = Journal::in_memory();
        let of = |lane, from, to| {
            let subject = Subject { upstream: Some("db:5432".into()), lane: Some(lane) };
            journal.record(Decision::new(Kind::Breaker).about(subject).change(from, to)).forget();
        };
        of(Lane::Write, "closed", "suspect");
        of(Lane::Write, "suspect", "open");
        for _ in 0..KEPT {
            of(Lane::Read, "closed", "suspect");
            of(Lane::Read, "suspect", "closed");
        }
        of(Lane::Read, "closed", "suspect");
        of(Lane::Write, "open", "half_open");
        of(Lane::Read, "suspect", "closed");

        let kept: Vec<_> = journal.recent().iter().map(|entry| entry.decision.to.to_string()).collect();

        assert_eq!(kept, ["suspect", "open", "half_open"]);
    }
}
