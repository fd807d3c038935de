//! Hints that an application writes into its statements: `/*tidegate:lane=write, write_timeout=250ms*/`.
//!
//! A hint is a block comment whose content starts with `tidegate:`, anywhere between two tokens. Line comments
//! and comments within comments are not read. Its keys are the settings of [`super::terms`], but for those that
//! outlast a statement. Among several hints the write lane wins, and the last of everything else. What we do not
//! know is ignored, but reported.

use serde::Deserialize;

use super::lane::Lane;
use super::terms::{Assignment, DurationSetting, LaneChoice, Overrides, SETTINGS, Setting};

/// How many unknown hints are reported; the rest is ignored without a report.
const UNKNOWN_MAX: usize = 8;

/// The hints of one text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hints<'a> {
    /// What is asked for.
    pub terms: Overrides,
    /// Entries whose key or value we do not know, as written; at most eight.
    pub unknown: Vec<&'a [u8]>,
}

/// How much an exchange matters when not all can be served (Google's criticality classes, from
/// "Site Reliability Engineering", chapter 21).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
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

/// All priorities with their names.
const PRIORITIES: [(&str, Priority); 4] = [
    ("critical_plus", Priority::CriticalPlus),
    ("critical", Priority::Critical),
    ("sheddable_plus", Priority::SheddablePlus),
    ("sheddable", Priority::Sheddable),
];

impl Priority {
    /// Reads `critical_plus`, `critical`, `sheddable_plus` or `sheddable`, in any case.
    pub fn parse(text: &[u8]) -> Option<Self> {
        PRIORITIES
            .iter()
            .find(|(name, _)| text.eq_ignore_ascii_case(name.as_bytes()))
            .map(|&(_, priority)| priority)
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        PRIORITIES.iter().find(|(_, priority)| *priority == self).map_or("", |(name, _)| name)
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
        match setting(key)?.read(value).ok()? {
            // The write lane wins.
            Assignment::Lane(LaneChoice::Fixed(Lane::Read))
                if self.terms.lane == Some(LaneChoice::Fixed(Lane::Write)) => {}
            Assignment::Lane(LaneChoice::Auto) => return None,
            assignment => self.terms.set(assignment),
        }
        Some(())
    }
}

/// The setting that a key of a hint is for.
fn setting(key: &[u8]) -> Option<Setting> {
    let named = |name: &str| {
        name.strip_prefix(super::terms::PREFIX).is_some_and(|name| key.eq_ignore_ascii_case(name.as_bytes()))
    };
    match SETTINGS.iter().find(|(name, _)| named(name))?.1 {
        Setting::Duration(DurationSetting::Transaction | DurationSetting::IdleInTransaction) => None,
        setting => Some(setting),
    }
}
