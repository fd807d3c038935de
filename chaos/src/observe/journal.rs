//! The sidecar's journal: its decisions, as they are on disk in the end.

use std::fs;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::history::RunClock;

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// When it was made, to the millisecond.
    #[serde(rename = "at_ms", with = "crate::history::milliseconds")]
    pub at: Duration,
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

/// Reads it from the folder of the sidecar's state, oldest first. What cannot be read is not there: claims about it
/// will say so.
pub fn read(state: &Path, clock: RunClock) -> Vec<Decision> {
    // Rotated files have numbers, the highest is the oldest.
    let names =
        (1..10).rev().map(|number| format!("journal.jsonl.{number}")).chain(["journal.jsonl".to_owned()]);
    let texts = names.filter_map(|name| fs::read_to_string(state.join(name)).ok());
    texts.flat_map(|text| text.lines().filter_map(|line| parse(line, clock)).collect::<Vec<_>>()).collect()
}

fn parse(line: &str, clock: RunClock) -> Option<Decision> {
    let Line { at, kind, from, to, evidence } = serde_json::from_str(line).ok()?;
    let since = humantime::parse_rfc3339(&at).ok()?.duration_since(UNIX_EPOCH).ok()?;
    let start = Duration::from_micros(u64::try_from(clock.epoch_us()).ok()?);
    Some(Decision { at: since.saturating_sub(start), kind, from, to, evidence })
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

        let decisions = read(dir.path(), RunClock::start());

        assert_eq!(decisions.iter().map(|one| one.to.as_str()).collect::<Vec<_>>(), ["suspect", "open"]);
        assert_eq!(decisions[1].at.saturating_sub(decisions[0].at), Duration::from_secs(1));
    }
}
