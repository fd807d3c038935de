//! Hints that an application writes into its statements: `/*tidegate:lane=write, priority=critical*/`.
//!
//! A hint is a block comment whose content starts with `tidegate:`, anywhere between two tokens. Line comments
//! and comments within comments are not read. Among several hints the write lane wins, and the last
//! priority. What we do not know is ignored, but reported.

use super::lane::Lane;

/// How many unknown hints are reported; the rest is ignored without a report.
const UNKNOWN_MAX: usize = 8;

/// The hints of one text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hints<'a> {
    /// `lane=read` or `lane=write`.
    pub lane: Option<Lane>,
    /// `priority=...`.
    pub priority: Option<Priority>,
    /// Entries whose key or value we do not know, as written; at most eight.
    pub unknown: Vec<&'a [u8]>,
}

/// How much an exchange matters when not all can be served (Google's criticality classes, from
/// "Site Reliability Engineering", chapter 21).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Refused first.
    Sheddable,
    /// Refused second.
    SheddablePlus,
    /// What users wait for.
    Critical,
    /// Refused last.
    CriticalPlus,
}

impl Priority {
    /// Reads `critical_plus`, `critical`, `sheddable_plus` or `sheddable`, in any case.
    pub fn parse(text: &[u8]) -> Option<Self> {
        const NAMES: [(&[u8], Priority); 4] = [
            (b"critical_plus", Priority::CriticalPlus),
            (b"critical", Priority::Critical),
            (b"sheddable_plus", Priority::SheddablePlus),
            (b"sheddable", Priority::Sheddable),
        ];
        NAMES.iter().find(|(name, _)| text.eq_ignore_ascii_case(name)).map(|&(_, priority)| priority)
    }
}

impl<'a> Hints<'a> {
    /// Reads one block comment, without its delimiters.
    pub(super) fn comment(&mut self, content: &'a [u8]) {
        let Some(entries) = content.trim_ascii_start().strip_prefix(b"tidegate:") else {
            return;
        };
        for entry in entries.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            if !entry.is_empty() && self.entry(entry).is_none() && self.unknown.len() < UNKNOWN_MAX {
                self.unknown.push(entry);
            }
        }
    }

    fn entry(&mut self, entry: &'a [u8]) -> Option<()> {
        let equals = entry.iter().position(|&byte| byte == b'=')?;
        let (key, value) = entry.split_at(equals);
        let (key, value) = (key.trim_ascii(), value.get(1..)?.trim_ascii());
        if key.eq_ignore_ascii_case(b"lane") {
            self.lane = self.lane.max(Some(Lane::parse(value)?));
        } else if key.eq_ignore_ascii_case(b"priority") {
            self.priority = Some(Priority::parse(value)?);
        } else {
            return None;
        }
        Some(())
    }
}
