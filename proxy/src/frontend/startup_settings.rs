//! The parameters of a startup packet.

use std::collections::BTreeMap;
use std::sync::Arc;

use thiserror::Error;

use crate::backend::Settings;
use crate::sql::terms::{Assignment, PREFIX, Setting, SettingError};

/// What a startup packet asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct StartupParameters {
    /// Who.
    pub user: String,
    /// Where; the user's name when the packet does not say.
    pub database: String,
    /// A replication connection is wanted, and which kind.
    pub replication: Option<String>,
    /// Settings for the session, those of ours left out.
    pub settings: Arc<Settings>,
    /// Settings of ours.
    pub terms: Vec<Assignment>,
    /// `application_name`, for people.
    pub application_name: String,
    /// Protocol options that we do not know.
    pub unknown_options: Vec<Vec<u8>>,
}

/// A startup packet that makes no sense.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum StartupError {
    /// No user.
    #[error("no PostgreSQL user name specified in startup packet")]
    NoUser,
    /// Not text.
    #[error("startup parameter {0} is not valid UTF-8")]
    NotText(&'static str),
    /// `options` has something that is not a setting.
    #[error("unsupported command-line argument in startup options (only -c name=value and --name=value are)")]
    BadOptions,
    /// Too many settings for one session.
    #[error("too many startup parameters")]
    TooMany,
    /// A setting of ours that does not exist, or with a value that it cannot have.
    #[error(transparent)]
    Setting(#[from] SettingError),
}

/// Settings that one startup packet may have.
const SETTINGS_MAX: usize = 128;

impl StartupParameters {
    /// Sorts the parameters of a packet.
    pub fn read(parameters: &[(Vec<u8>, Vec<u8>)]) -> Result<Self, StartupError> {
        let (mut user, mut database, mut replication) = (None, None, None);
        let mut options = String::new();
        let mut named = BTreeMap::<Box<str>, Box<[u8]>>::new();
        let mut unknown_options = Vec::new();
        for (name, value) in parameters {
            match name.as_slice() {
                b"user" => user = Some(text("user", value)?),
                b"database" => database = Some(text("database", value)?),
                b"replication" => replication = replication_kind(&text("replication", value)?),
                b"options" => options = text("options", value)?,
                name if name.starts_with(b"_pq_.") => unknown_options.push(name.to_vec()),
                name => {
                    let name = std::str::from_utf8(name).map_err(|_| StartupError::NotText("name"))?;
                    named.insert(name.to_ascii_lowercase().into(), value.as_slice().into());
                }
            }
        }
        // Parameters of their own count more, wherever they stand (`process_startup_options` in PostgreSQL).
        let mut settings = read_options(&options)?;
        settings.append(&mut named);
        if settings.len() > SETTINGS_MAX {
            return Err(StartupError::TooMany);
        }
        let user = user.filter(|user| !user.is_empty()).ok_or(StartupError::NoUser)?;
        let database = database.filter(|name| !name.is_empty()).unwrap_or_else(|| user.clone());
        let application_name = settings
            .get("application_name")
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .unwrap_or_default();
        let terms = take_terms(&mut settings)?;
        let settings = Settings::intern(settings);
        Ok(Self { user, database, replication, settings, terms, application_name, unknown_options })
    }
}

/// Takes the settings of ours out: no server shall see them.
fn take_terms(settings: &mut BTreeMap<Box<str>, Box<[u8]>>) -> Result<Vec<Assignment>, SettingError> {
    let ours = settings.extract_if(.., |name, _| name.starts_with(PREFIX));
    ours.map(|(name, value)| Setting::parse(name.as_bytes()).ok_or(SettingError::Unknown(name))?.read(&value))
        .collect()
}

fn text(name: &'static str, value: &[u8]) -> Result<String, StartupError> {
    std::str::from_utf8(value).map(str::to_owned).map_err(|_| StartupError::NotText(name))
}

/// `replication` is a boolean, or `database` (`ProcessStartupPacket` in PostgreSQL).
fn replication_kind(value: &str) -> Option<String> {
    let off = ["false", "off", "no", "0", "f", "n"];
    (!off.iter().any(|word| value.eq_ignore_ascii_case(word))).then(|| value.to_owned())
}

/// `-c name=value`, `-cname=value` and `--name=value`, split at blanks; a backslash takes the next character
/// as it is (`pg_split_opts` in PostgreSQL).
fn read_options(options: &str) -> Result<BTreeMap<Box<str>, Box<[u8]>>, StartupError> {
    let mut settings = BTreeMap::new();
    let mut words = split_options(options).into_iter();
    while let Some(word) = words.next() {
        let assignment = match word.strip_prefix("--") {
            Some(assignment) => assignment.to_owned(),
            None => match word.strip_prefix("-c") {
                Some("") => words.next().ok_or(StartupError::BadOptions)?,
                Some(assignment) => assignment.to_owned(),
                None => return Err(StartupError::BadOptions),
            },
        };
        let (name, value) = assignment.split_once('=').ok_or(StartupError::BadOptions)?;
        settings.insert(name.to_ascii_lowercase().replace('-', "_").into(), value.as_bytes().into());
    }
    Ok(settings)
}

fn split_options(options: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut chars = options.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => word.extend(chars.next()),
            c if c.is_ascii_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(parameters: &[(&str, &str)]) -> Result<StartupParameters, StartupError> {
        let owned: Vec<_> =
            parameters.iter().map(|(n, v)| (n.as_bytes().to_vec(), v.as_bytes().to_vec())).collect();
        StartupParameters::read(&owned)
    }

    #[test]
    fn options_become_settings() {
        // Losing one would give the session other settings than it asked for.
        let read = read(&[
            ("user", "u"),
            ("options", r"-c statement_timeout=5s -csearch_path=a\ b --work-mem=4MB"),
            ("TimeZone", "UTC"),
        ])
        .unwrap();

        let settings: Vec<_> =
            read.settings.iter().map(|(n, v)| format!("{n}={}", String::from_utf8_lossy(v))).collect();
        assert_eq!(settings, ["search_path=a b", "statement_timeout=5s", "timezone=UTC", "work_mem=4MB"]);
        assert_eq!((read.database.as_str(), read.replication), ("u", None));
    }

    #[test]
    fn a_parameter_of_its_own_counts_more_than_options_in_any_order() {
        // PostgreSQL applies `options` first. Else settings would depend on the order that a driver happens to have.
        let (own, options) =
            (("TimeZone", "UTC"), ("options", "-c timezone=Asia/Tokyo -c tidegate.lane=read"));
        let lane = ("tidegate.lane", "write");

        for order in [[own, options, lane], [options, lane, own], [lane, own, options]] {
            let read = read(&[&[("user", "u")], &order[..]].concat()).unwrap();

            assert_eq!(read.settings.get("timezone"), Some(&b"UTC"[..]), "{order:?}");
            assert_eq!(read.terms, [Setting::Lane.read(b"write").unwrap()], "{order:?}");
        }
    }

    #[test]
    fn settings_of_ours_are_kept_from_the_server() {
        // In the server's settings they would tie the session to backends that have them, to no effect.
        let read = read(&[
            ("user", "u"),
            ("options", "-c tidegate.priority=sheddable --tidegate.write-timeout=250ms"),
            ("Tidegate.Lane", "read"),
        ])
        .unwrap();

        assert!(read.settings.is_empty());
        let names: Vec<_> = read.terms.iter().map(|term| term.setting().name()).collect();
        assert_eq!(names, ["tidegate.lane", "tidegate.priority", "tidegate.write_timeout"]);
    }

    #[test]
    fn senseless_packets_are_refused() {
        // PostgreSQL refuses them; accepting them would fail later and less clearly.
        assert_eq!(read(&[("database", "d")]), Err(StartupError::NoUser));
        assert_eq!(read(&[("user", "u"), ("options", "-d 5")]), Err(StartupError::BadOptions));
        assert_eq!(read(&[("user", "u"), ("options", "-c")]), Err(StartupError::BadOptions));
        let unknown = SettingError::Unknown("tidegate.x".into());
        assert_eq!(read(&[("user", "u"), ("tidegate.x", "1")]), Err(StartupError::Setting(unknown)));
    }
}
