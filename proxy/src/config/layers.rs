//! The layers of precedence: a flag hides an environment variable, which hides the file, which hides the default.
//!
//! A layer is a map of raw values. [`Layers::take`] reads one key through all of them with its type, notes
//! where it came from, and collects every problem instead of stopping at the first. Keys that nobody took at
//! the end are keys that do not exist.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeValue, ValueDeserializer};

use super::file::{File, Setting};
use super::problem::{Origin, Problem};
use crate::telemetry::logs;

/// Every variable of ours starts so.
const PREFIX: &str = "TIDEGATE_";

/// Variables that are no configuration keys: they belong to the command line and tests.
const NOT_KEYS: [&str; 3] = ["CONFIG", "DEBUG", "LOG_FORMAT"];

/// What is logged; no key either, since logs begin before the configuration is read.
const LOG: &str = "LOG";

/// Letters of a name for each that may be wrong: a suggestion further away would confuse more than it helps.
const LETTERS_PER_MISTAKE: usize = 3;

/// All that was written, by layer, and what was found in it so far.
pub(super) struct Layers<'a> {
    file: Option<File<'a>>,
    environment: BTreeMap<String, &'a str>,
    flags: BTreeMap<&'static str, (&'static str, DeValue<'a>)>,
    known: BTreeSet<&'static str>,
    failed: BTreeSet<&'static str>,
    origins: BTreeMap<&'static str, Origin>,
    /// What is wrong so far.
    pub(super) problems: Vec<Problem>,
    /// What is odd so far.
    pub(super) warnings: Vec<String>,
}

impl<'a> Layers<'a> {
    /// Layers without flags. An empty environment variable counts as unset.
    pub(super) fn new(file: Option<File<'a>>, environment: &'a BTreeMap<String, OsString>) -> Self {
        let mut layers = Self {
            file,
            environment: BTreeMap::new(),
            flags: BTreeMap::new(),
            known: BTreeSet::new(),
            failed: BTreeSet::new(),
            origins: BTreeMap::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
        };
        for (name, value) in environment {
            layers.add_variable(name, value);
        }
        layers
    }

    fn add_variable(&mut self, name: &str, value: &'a OsString) {
        let Some(key) = name.strip_prefix(PREFIX).filter(|key| !NOT_KEYS.contains(key)) else { return };
        match value.to_str() {
            Some("") => {}
            Some(text) if key == LOG => self.check_filter(name, text),
            Some(text) => drop(self.environment.insert(key.to_owned(), text)),
            None => self.problems.push(Problem {
                origin: Origin::Environment(name.to_owned()),
                key: String::new(),
                reason: "the value is not UTF-8 text".to_owned(),
                advice: "set it again, or put the value into the file".to_owned(),
            }),
        }
    }

    fn check_filter(&mut self, name: &str, text: &str) {
        if let Err(reason) = logs::filter(text) {
            self.problems.push(Problem {
                origin: Origin::Environment(name.to_owned()),
                key: String::new(),
                reason,
                advice: "write info, debug, or tidegate::pool=debug,info".to_owned(),
            });
        }
    }

    /// Puts a value from the command line on top of everything else.
    pub(super) fn set_flag(&mut self, key: &'static str, flag: &'static str, value: DeValue<'a>) {
        self.flags.insert(key, (flag, value));
    }

    /// Takes what was written under another name of a key for that key.
    pub(super) fn alias(&mut self, other: &'static str, key: &'static str) {
        let variable = |key: &str| key.replace('.', "_").to_uppercase();
        if let Some(text) = self.environment.remove(&variable(other)) {
            self.environment.entry(variable(key)).or_insert(text);
        }
        let Some(file) = &mut self.file else { return };
        let Some(setting) = file.settings.remove(other) else { return };
        if file.settings.contains_key(key) {
            let origin = file.origin(setting.line);
            let reason = format!("it is another name of {key}, which is written as well");
            let advice = "remove one of them".to_owned();
            self.problems.push(Problem { origin, key: other.to_owned(), reason, advice });
            return;
        }
        file.settings.insert(key.to_owned(), setting);
    }

    /// Whether there is a configuration file.
    pub(super) fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// Reads a key. `None` when nobody wrote it, and when what was written is wrong (then it is a problem).
    pub(super) fn take<T: DeserializeOwned>(&mut self, key: &'static str) -> Option<T> {
        self.known.insert(key);
        // Lower layers are emptied as well: a value that is hidden is still a key that exists.
        let in_file = self.file.as_mut().and_then(|file| file.settings.remove(key));
        let variable = key.replace('.', "_").to_uppercase();
        let in_environment = self.environment.remove(&variable);
        if let Some((flag, value)) = self.flags.remove(key) {
            self.origins.insert(key, Origin::Flag(flag));
            return self.accept(key, typed(Spanned::new(0..0, value)));
        }
        if let Some(text) = in_environment {
            self.origins.insert(key, Origin::Environment(format!("{PREFIX}{variable}")));
            return self.accept(key, typed_text(text));
        }
        in_file.and_then(|setting| self.take_from_file(key, setting))
    }

    fn take_from_file<T: DeserializeOwned>(&mut self, key: &'static str, setting: Setting<'a>) -> Option<T> {
        let file = self.file.as_ref()?;
        let result = typed(setting.value);
        // The value may be a list or table of many lines: the error knows best which one is meant.
        let span = result.as_ref().err().and_then(toml::de::Error::span);
        let line = span.map_or(setting.line, |span| file.line(&span).max(setting.line));
        self.origins.insert(key, file.origin(line));
        self.accept(key, result)
    }

    fn accept<T>(&mut self, key: &'static str, result: Result<T, toml::de::Error>) -> Option<T> {
        result.map_err(|error| self.fail(key, error.message(), "")).ok()
    }

    /// Reads a path; one in the file is relative to the file's folder.
    pub(super) fn take_path(&mut self, key: &'static str) -> Option<PathBuf> {
        let path: PathBuf = self.take(key)?;
        if path.as_os_str().is_empty() {
            self.fail(key, "the path is empty", "name a file, or remove the key");
            return None;
        }
        Some(self.base(key).join(path))
    }

    /// The folder that relative paths of this key start from.
    pub(super) fn base(&self, key: &str) -> &Path {
        match (&self.file, self.origins.get(key)) {
            (Some(file), Some(Origin::File { .. })) => file.folder(),
            _ => Path::new(""),
        }
    }

    /// Where a key was written.
    pub(super) fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }

    /// All keys that exist.
    #[cfg(test)]
    pub(super) fn known(&self) -> &BTreeSet<&'static str> {
        &self.known
    }

    /// Notes that the value of a key is refused.
    pub(super) fn fail(&mut self, key: &'static str, reason: impl Into<String>, advice: impl Into<String>) {
        let origin = self.origin(key);
        self.failed.insert(key);
        self.problems.push(Problem {
            origin,
            key: key.to_owned(),
            reason: reason.into(),
            advice: advice.into(),
        });
    }

    /// Whether the value of a key is refused.
    pub(super) fn has_failed(&self, key: &str) -> bool {
        self.failed.contains(key)
    }

    /// Notes that a flag is refused before it became a value.
    pub(super) fn fail_flag(&mut self, key: &'static str, flag: &'static str, reason: &str, advice: &str) {
        self.origins.insert(key, Origin::Flag(flag));
        self.fail(key, reason, advice);
    }

    /// Notes that a key is allowed but probably not meant.
    pub(super) fn warn(&mut self, key: &str, what: &str) {
        self.warnings.push(format!("{}: {key}: {what}", self.origin(key)));
    }

    /// Notes that keys contradict each other, unless one of them is already refused for itself.
    pub(super) fn contradict(&mut self, keys: &[&'static str], reason: String, advice: &str) {
        if keys.iter().any(|key| self.failed.contains(key)) {
            return;
        }
        let main = keys.iter().find(|key| self.origins.contains_key(*key)).or(keys.first());
        self.problems.push(Problem {
            origin: main.map_or(Origin::Default, |key| self.origin(key)),
            key: keys.first().copied().unwrap_or_default().to_owned(),
            reason,
            advice: advice.to_owned(),
        });
    }

    /// Reports every key that exists in no version of the tree. Call it after the last `take`.
    pub(super) fn refuse_unknown(&mut self) {
        let mut found = Vec::new();
        if let Some(file) = &self.file {
            for (key, setting) in &file.settings {
                found.push(self.unknown(file.origin(setting.line), key.clone(), key));
            }
            for (name, line) in &file.sections {
                if !self.is_section(name) && !found.iter().any(|p| p.key.starts_with(&format!("{name}."))) {
                    found.push(self.unknown(file.origin(*line), name.clone(), name));
                }
            }
        }
        for variable in self.environment.keys() {
            let guess = variable.to_lowercase().replacen('_', ".", 1);
            found.push(self.unknown(
                Origin::Environment(format!("{PREFIX}{variable}")),
                String::new(),
                &guess,
            ));
        }
        self.problems.append(&mut found);
    }

    fn is_section(&self, name: &str) -> bool {
        self.known.iter().any(|known| known.split_once('.').is_some_and(|(section, _)| section == name))
    }

    fn unknown(&self, origin: Origin, key: String, guess: &str) -> Problem {
        let last = guess.rsplit('.').next().unwrap_or(guess);
        let mistakes_max = (last.chars().count() / LETTERS_PER_MISTAKE).max(1);
        let closest = self
            .known
            .iter()
            .map(|known| (strsim::damerau_levenshtein(known, guess), *known))
            .min()
            .filter(|(mistakes, _)| *mistakes <= mistakes_max);
        let reason = match origin {
            Origin::Environment(_) => "there is no such variable",
            Origin::Default | Origin::File { .. } | Origin::WholeFile(_) | Origin::Flag(_) => "unknown key",
        };
        let advice = match (&origin, closest) {
            (Origin::Environment(_), Some((_, known))) => {
                format!("did you mean {PREFIX}{}?", known.replace('.', "_").to_uppercase())
            }
            (_, _) if self.is_section(guess) => format!("{guess} is a section: write it as [{guess}]"),
            (_, Some((_, known))) => format!("did you mean `{known}`?"),
            (_, None) => "remove it".to_owned(),
        };
        Problem { origin, key, reason: reason.to_owned(), advice }
    }
}

fn typed<T: DeserializeOwned>(value: Spanned<DeValue<'_>>) -> Result<T, toml::de::Error> {
    T::deserialize(ValueDeserializer::from(value))
}

/// A variable has no quotes to tell `"30"` from `30`: text first, then what TOML would make of it.
fn typed_text<T: DeserializeOwned>(text: &str) -> Result<T, toml::de::Error> {
    let as_text = typed(Spanned::new(0..0, DeValue::String(text.into())));
    if as_text.is_ok() {
        return as_text;
    }
    match DeValue::parse(text.trim()) {
        Ok(value)
            if value.get_ref().is_integer() || value.get_ref().is_float() || value.get_ref().is_bool() =>
        {
            typed(value)
        }
        _ => as_text,
    }
}
