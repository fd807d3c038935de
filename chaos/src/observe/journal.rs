//! The sidecar's journal: its decisions as they are on disk in the end, and since when.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::history::RunClock;

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// When it was made, to the millisecond.
    #[serde(rename = "at_ms", with = "crate::history::milliseconds")]
    pub at: Duration,
    /// The last look at the file in which it was not there yet. `None`: it was there at the first.
    #[serde(rename = "missing_ms", default, with = "crate::history::optional_milliseconds")]
    pub missing: Option<Duration>,
    /// `breaker`, `configuration`, `topology`, …
    pub kind: String,
    /// The state before.
    pub from: String,
    /// The state after.
    pub to: String,
    /// What was known.
    pub evidence: String,
}

/// A line of the file.
#[derive(Debug, Deserialize)]
struct Line {
    at: String,
    kind: String,
    from: String,
    to: String,
    evidence: String,
}

/// The file that is written to.
const NAME: &str = "journal.jsonl";

/// Between two looks.
const EVERY: Duration = Duration::from_millis(10);

/// When each line was last missed, by the line.
type Missing = HashMap<String, Option<Duration>>;

/// Looks at the file until dropped, on a thread of its own: what keeps the harness busy must not make a line late.
#[derive(Debug)]
pub struct JournalWatch {
    state: PathBuf,
    clock: RunClock,
    missing: Arc<Mutex<Missing>>,
    over: Arc<AtomicBool>,
}

impl JournalWatch {
    /// Starts looking into the folder of the sidecar's state.
    pub fn start(state: PathBuf, clock: RunClock) -> Self {
        let (missing, over) = (Arc::<Mutex<Missing>>::default(), Arc::<AtomicBool>::default());
        let watch =
            Self { state: state.clone(), clock, missing: Arc::clone(&missing), over: Arc::clone(&over) };
        thread::spawn(move || {
            let mut looks = Looks { path: state.join(NAME), last: None, size: 0 };
            while !over.load(Ordering::Relaxed) {
                looks.look(clock.now(), &missing);
                thread::sleep(EVERY);
            }
        });
        watch
    }

    /// All decisions, oldest first.
    pub fn decisions(&self) -> Vec<Decision> {
        let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        read(&self.state, self.clock, &missing)
    }
}

impl Drop for JournalWatch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// What was seen of the file so far.
#[derive(Debug)]
struct Looks {
    path: PathBuf,
    last: Option<Duration>,
    size: u64,
}

impl Looks {
    /// Whatever is new now was missing at the look before.
    fn look(&mut self, now: Duration, missing: &Mutex<Missing>) {
        let size = fs::metadata(&self.path).map_or(0, |meta| meta.len());
        if size != self.size
            && let Ok(text) = fs::read_to_string(&self.path)
        {
            let mut missing = missing.lock().unwrap_or_else(PoisonError::into_inner);
            for line in text.lines() {
                missing.entry(line.to_owned()).or_insert(self.last);
            }
        }
        self.size = size;
        self.last = Some(now);
    }
}

/// What cannot be read is not there: claims about it will say so.
fn read(state: &Path, clock: RunClock, missing: &Missing) -> Vec<Decision> {
    // Rotated files have numbers, the highest is the oldest.
    let names = (1..10).rev().map(|number| format!("{NAME}.{number}")).chain([NAME.to_owned()]);
    let texts = names.filter_map(|name| fs::read_to_string(state.join(name)).ok());
    texts
        .flat_map(|text| text.lines().filter_map(|line| parse(line, clock, missing)).collect::<Vec<_>>())
        .collect()
}

fn parse(line: &str, clock: RunClock, missing: &Missing) -> Option<Decision> {
    let Line { at, kind, from, to, evidence } = serde_json::from_str(line).ok()?;
    let since = humantime::parse_rfc3339(&at).ok()?.duration_since(UNIX_EPOCH).ok()?;
    let start = Duration::from_micros(u64::try_from(clock.epoch_us()).ok()?);
    let missing = missing.get(line).copied().flatten();
    Some(Decision { at: since.saturating_sub(start), missing, kind, from, to, evidence })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_are_read_in_their_order_and_counted_from_the_start_of_the_run() {
        // A rotated file holds the older ones, and a torn last line is no decision.
        let line = |second: u32, to: &str| {
            format!(
                "{{\"id\":1,\"at\":\"2126-01-01T00:00:{second:02}.250Z\",\"kind\":\"breaker\",\"from\":\"a\",\
                 \"to\":\"{to}\",\"evidence\":\"e\"}}\n"
            )
        };
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("journal.jsonl.1"), line(1, "suspect")).unwrap();
        fs::write(dir.path().join("journal.jsonl"), line(2, "open") + "{\"id\": 2").unwrap();

        let decisions = read(dir.path(), RunClock::start(), &Missing::new());

        assert_eq!(decisions.iter().map(|one| one.to.as_str()).collect::<Vec<_>>(), ["suspect", "open"]);
        assert_eq!(decisions[1].at.saturating_sub(decisions[0].at), Duration::from_secs(1));
    }

    #[test]
    fn a_line_is_known_to_be_missing_until_it_is_written() {
        // The time in the line says when it was decided, whenever it reached the file.
        let line = "{\"id\":1,\"at\":\"2126-01-01T00:00:01.250Z\",\"kind\":\"breaker\",\"from\":\"a\",\
                    \"to\":\"open\",\"evidence\":\"e\"}\n";
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let (mut looks, missing) = (Looks { path, last: None, size: 0 }, Mutex::default());
        looks.look(Duration::from_millis(10), &missing);
        looks.look(Duration::from_millis(20), &missing);

        fs::write(dir.path().join(NAME), line).unwrap();
        looks.look(Duration::from_millis(30), &missing);
        fs::write(dir.path().join(NAME), line.to_owned() + "{\"id\": 2").unwrap();
        looks.look(Duration::from_millis(40), &missing);

        let decisions = read(dir.path(), RunClock::start(), &missing.lock().unwrap());
        let missing: Vec<_> = decisions.iter().map(|decision| decision.missing).collect();
        assert_eq!(missing, [Some(Duration::from_millis(20))]);
    }
}
