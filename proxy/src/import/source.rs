//! What the file says, by name, to be taken out piece by piece; what nobody takes is left over.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use super::ini::{self, Place, Setting};
use crate::config::Problem;

/// The longest bound of ours.
const LONGEST: Duration = Duration::from_hours(366 * 24);

/// A value, and where it is from.
#[derive(Debug, Clone)]
pub(super) struct Taken<T> {
    pub(super) value: T,
    pub(super) key: String,
    pub(super) place: Place,
}

impl<T> Taken<T> {
    /// `key (file:line)`, for a comment.
    pub(super) fn from(&self) -> String {
        format!("{} ({})", self.key, self.place)
    }

    fn with<U>(&self, value: U) -> Taken<U> {
        Taken { value, key: self.key.clone(), place: self.place.clone() }
    }
}

/// A set of `key = value`, each taken once.
#[derive(Debug, Default)]
pub(super) struct Settings(BTreeMap<String, Taken<String>>);

impl Settings {
    /// Of two for one key the later counts, as there.
    pub(super) fn insert(&mut self, place: Place, key: String, value: String) {
        self.0.insert(key.clone(), Taken { value, key, place });
    }

    /// What stands there, left where it is.
    pub(super) fn peek(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(|taken| &*taken.value)
    }

    /// A text; an empty one is none.
    pub(super) fn text(&mut self, key: &str) -> Option<Taken<String>> {
        self.any_text(key).filter(|taken| !taken.value.is_empty())
    }

    /// A text, also an empty one.
    pub(super) fn any_text(&mut self, key: &str) -> Option<Taken<String>> {
        self.0.remove(key)
    }

    /// A whole number.
    pub(super) fn number(&mut self, key: &str, problems: &mut Vec<Problem>) -> Option<Taken<usize>> {
        self.parsed(key, "it is no whole number", problems)
    }

    /// Seconds, as PgBouncer counts time; `-1` is "not set" to it.
    pub(super) fn seconds(&mut self, key: &str, problems: &mut Vec<Problem>) -> Option<Taken<Duration>> {
        let seconds = self.parsed::<f64>(key, "it is no number of seconds", problems)?;
        if seconds.value.to_bits() == (-1.0_f64).to_bits() {
            return None;
        }
        let duration = Duration::try_from_secs_f64(seconds.value).ok();
        if duration.is_none() {
            problems.push(seconds.place.problem(key, "it is no number of seconds", "correct it"));
        }
        // Beyond milliseconds nobody means it.
        let whole = |duration: Duration| {
            Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)).min(LONGEST)
        };
        duration.map(|duration| seconds.with(whole(duration)))
    }

    fn parsed<T: FromStr>(
        &mut self,
        key: &str,
        reason: &str,
        problems: &mut Vec<Problem>,
    ) -> Option<Taken<T>> {
        let text = self.text(key)?;
        let Ok(value) = text.value.parse() else {
            problems.push(text.place.problem(key, reason, "correct it"));
            return None;
        };
        Some(text.with(value))
    }

    /// What nobody has taken.
    pub(super) fn rest(self) -> impl Iterator<Item = Taken<String>> {
        self.0.into_values()
    }
}

/// A line of `[databases]` or `[users]`.
#[derive(Debug)]
pub(super) struct Item {
    /// Its name; of databases `*` is any.
    pub(super) name: String,
    pub(super) place: Place,
    /// What it consists of.
    pub(super) settings: Settings,
}

/// The whole file.
#[derive(Debug, Default)]
pub(super) struct Source {
    pub(super) pgbouncer: Settings,
    pub(super) databases: Vec<Item>,
    pub(super) users: Vec<Item>,
    /// Processes that answer each other's cancel requests.
    pub(super) peers: Vec<Place>,
}

/// Reads a file with all that it includes.
pub(super) fn read(path: &Path, problems: &mut Vec<Problem>) -> Source {
    let mut source = Source::default();
    for setting in ini::read(path, problems) {
        source.take(setting, problems);
    }
    source
}

impl Source {
    fn take(&mut self, setting: Setting, problems: &mut Vec<Problem>) {
        let Setting { place, section, key, value } = setting;
        let list = match section.as_str() {
            "pgbouncer" => return self.pgbouncer.insert(place, key, value),
            "peers" => return self.peers.push(place),
            "databases" => &mut self.databases,
            "users" => &mut self.users,
            _ => {
                let reason = format!("PgBouncer knows no section [{section}]");
                let advice = "there are [databases], [users], [peers] and [pgbouncer]";
                return problems.push(place.problem(&key, reason, advice));
            }
        };
        let Some(pairs) = ini::pairs(&value) else {
            let advice = "write key=value pairs; quote values with apostrophes";
            // The text may hold a password.
            return problems.push(place.problem(&key, "its parameters cannot be read", advice));
        };
        let mut settings = Settings::default();
        for (key, value) in pairs {
            settings.insert(place.clone(), key, value);
        }
        list.retain(|item| item.name != key);
        list.push(Item { name: key, place, settings });
    }
}
