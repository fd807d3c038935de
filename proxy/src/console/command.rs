//! The console's language: what the words of a statement ask for.

use thiserror::Error;

use super::words::{self, Word};
use crate::wire::SqlState;

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    /// Show a table.
    Show(Show),
    /// Show what there is.
    Help,
    /// Lend no backends of a database, or of any, and wait until those that are lent are back.
    Pause(Option<String>),
    /// The end of it.
    Resume(Option<String>),
    /// Replace backends at their next idle moment.
    Reconnect(Option<String>),
    /// End all sessions of a database, and pause it.
    Kill(String),
    /// Refuse new sessions of a database.
    Disable(String),
    /// Let them in again.
    Enable(String),
    /// Read the configuration again.
    Reload,
    /// Drain, then end.
    Shutdown,
    /// Forget a prepared statement, or all.
    Deallocate(Option<String>),
    /// Drivers want a transaction around everything; there is nothing to roll back.
    Begin,
    /// The end of such a transaction, with its tag.
    End(&'static str),
    /// What drivers say at the beginning, and what means nothing here; with its tag.
    Nothing(&'static str),
}

/// A table to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    Pools,
    Clients,
    Servers,
    Stats,
    StatsTotals,
    StatsAverages,
    Totals,
    Databases,
    Users,
    Config,
    Version,
    Lists,
    Lanes,
    Breakers,
    Upstreams,
    Events,
}

/// Each with its name.
pub(super) const SHOWS: [(&str, Show); 16] = [
    ("POOLS", Show::Pools),
    ("CLIENTS", Show::Clients),
    ("SERVERS", Show::Servers),
    ("STATS", Show::Stats),
    ("STATS_TOTALS", Show::StatsTotals),
    ("STATS_AVERAGES", Show::StatsAverages),
    ("TOTALS", Show::Totals),
    ("DATABASES", Show::Databases),
    ("USERS", Show::Users),
    ("CONFIG", Show::Config),
    ("VERSION", Show::Version),
    ("LISTS", Show::Lists),
    ("LANES", Show::Lanes),
    ("BREAKERS", Show::Breakers),
    ("UPSTREAMS", Show::Upstreams),
    ("EVENTS", Show::Events),
];

/// Settings that drivers make when they connect; they change nothing here.
const DRIVER_SETTINGS: [&str; 12] = [
    "APPLICATION_NAME",
    "BYTEA_OUTPUT",
    "CLIENT_ENCODING",
    "CLIENT_MIN_MESSAGES",
    "DATESTYLE",
    "EXTRA_FLOAT_DIGITS",
    "INTERVALSTYLE",
    "LOCK_TIMEOUT",
    "SEARCH_PATH",
    "STANDARD_CONFORMING_STRINGS",
    "STATEMENT_TIMEOUT",
    "TIMEZONE",
];

/// Why a text is no command.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum CommandError {
    #[error("unterminated quote or comment")]
    Unterminated,
    #[error("this is the admin console of tidegate: it does not run SQL")]
    Sql,
    #[error("no such command{0}")]
    Unknown(Shown),
    #[error("there is nothing to SHOW{0}")]
    UnknownShow(Shown),
    #[error("{0} needs the name of a database")]
    NoDatabase(&'static str),
    #[error("unexpected words behind {0}")]
    Behind(&'static str),
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    #[error("settings cannot be changed here")]
    Setting,
}

/// A word that may be shown in an error: a typing mistake, not a piece of SQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown {
    word: Option<String>,
    similar: Option<&'static str>,
}

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.word {
            Some(word) => write!(f, ": \"{word}\""),
            None => Ok(()),
        }
    }
}

impl CommandError {
    /// The SQLSTATE.
    pub(super) fn code(&self) -> SqlState {
        match self {
            Self::Unsupported(_) => SqlState::FEATURE_NOT_SUPPORTED,
            Self::Setting => SqlState::CANT_CHANGE_PARAMETER,
            _ => SqlState::SYNTAX_ERROR,
        }
    }

    /// What to do instead.
    pub(super) fn hint(&self) -> String {
        match self {
            Self::Unknown(Shown { similar: Some(similar), .. }) => format!("Did you mean {similar}?"),
            Self::UnknownShow(Shown { similar: Some(similar), .. }) => {
                format!("Did you mean SHOW {similar}?")
            }
            Self::Setting => {
                "Change the configuration and send RELOAD; SHOW CONFIG says which keys that takes.".to_owned()
            }
            _ => "SHOW HELP lists the commands.".to_owned(),
        }
    }
}

/// Reads all statements of a text; none of an empty one.
pub(super) fn parse(text: &str) -> Result<Vec<Command>, CommandError> {
    let statements = words::split(text).map_err(|words::Unterminated| CommandError::Unterminated)?;
    statements.iter().map(|statement| parse_one(statement)).collect()
}

fn parse_one(statement: &[Word]) -> Result<Command, CommandError> {
    let Some((verb, rest)) = statement.split_first() else { return Ok(Command::Nothing("")) };
    let Word::Bare(text) = verb else { return Err(CommandError::Sql) };
    match text.to_ascii_uppercase().as_str() {
        "SHOW" => show(rest),
        "HELP" => alone(Command::Help, "HELP", rest),
        "PAUSE" => database("PAUSE", rest).map(Command::Pause),
        "RESUME" => database("RESUME", rest).map(Command::Resume),
        "RECONNECT" => database("RECONNECT", rest).map(Command::Reconnect),
        "KILL" => needed_database("KILL", rest).map(Command::Kill),
        "DISABLE" => needed_database("DISABLE", rest).map(Command::Disable),
        "ENABLE" => needed_database("ENABLE", rest).map(Command::Enable),
        "RELOAD" => alone(Command::Reload, "RELOAD", rest),
        "SHUTDOWN" => alone(Command::Shutdown, "SHUTDOWN", rest),
        "SUSPEND" => Err(CommandError::Unsupported("SUSPEND")),
        "WAIT_CLOSE" => Err(CommandError::Unsupported("WAIT_CLOSE")),
        "SET" => set(rest),
        "RESET" => Ok(Command::Nothing("RESET")),
        "DISCARD" => Ok(Command::Deallocate(None)),
        "DEALLOCATE" => Ok(deallocate(rest)),
        "BEGIN" | "START" => Ok(Command::Begin),
        "COMMIT" | "END" => Ok(Command::End("COMMIT")),
        "ROLLBACK" | "ABORT" => Ok(Command::End("ROLLBACK")),
        upper if is_sql(upper) => Err(CommandError::Sql),
        _ => Err(CommandError::Unknown(shown(text, &VERBS))),
    }
}

/// For suggestions.
const VERBS: [&str; 11] = [
    "SHOW",
    "PAUSE",
    "RESUME",
    "RECONNECT",
    "KILL",
    "DISABLE",
    "ENABLE",
    "RELOAD",
    "SHUTDOWN",
    "HELP",
    "SET",
];

/// Whether somebody takes this for a database, such as psql when it completes a name.
fn is_sql(verb: &str) -> bool {
    const VERBS: [&str; 18] = [
        "SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "WITH", "VALUES", "TABLE", "CREATE", "ALTER",
        "DROP", "COPY", "EXPLAIN", "CALL", "DO", "LISTEN", "VACUUM", "DECLARE",
    ];
    VERBS.contains(&verb)
}

fn show(rest: &[Word]) -> Result<Command, CommandError> {
    let (what, rest) = match rest {
        [] => return Err(CommandError::UnknownShow(Shown { word: None, similar: None })),
        [what, rest @ ..] => (what, rest),
    };
    let Word::Bare(text) = what else { return Err(CommandError::Sql) };
    if what.is("HELP") {
        return alone(Command::Help, "SHOW HELP", rest);
    }
    match SHOWS.iter().find(|(name, _)| what.is(name)) {
        Some((_, show)) => alone(Command::Show(*show), "SHOW", rest),
        None => Err(CommandError::UnknownShow(shown(text, &SHOWS.map(|(name, _)| name)))),
    }
}

/// Only plain short words are repeated to whoever wrote them: they may end up in a log.
fn shown(text: &str, known: &[&'static str]) -> Shown {
    let plain = text.len() <= 32 && text.bytes().all(|b| b.is_ascii_alphabetic() || b == b'_');
    let upper = text.to_ascii_uppercase();
    let distance = |name: &&'static str| (strsim::damerau_levenshtein(name, &upper), *name);
    let similar = known.iter().map(distance).min().filter(|(distance, _)| *distance <= 2 && plain);
    Shown { word: plain.then(|| text.to_owned()), similar: similar.map(|(_, name)| name) }
}

fn alone(command: Command, what: &'static str, rest: &[Word]) -> Result<Command, CommandError> {
    if rest.is_empty() { Ok(command) } else { Err(CommandError::Behind(what)) }
}

/// Names are taken as they are written: nothing is folded to lower case, as in PgBouncer.
fn database(command: &'static str, rest: &[Word]) -> Result<Option<String>, CommandError> {
    match rest {
        [] => Ok(None),
        [Word::Bare(name) | Word::Quoted(name)] => Ok(Some(name.clone())),
        _ => Err(CommandError::Behind(command)),
    }
}

fn needed_database(command: &'static str, rest: &[Word]) -> Result<String, CommandError> {
    database(command, rest)?.ok_or(CommandError::NoDatabase(command))
}

fn set(rest: &[Word]) -> Result<Command, CommandError> {
    let rest = match rest {
        [scope, rest @ ..] if scope.is("LOCAL") || scope.is("SESSION") => rest,
        rest => rest,
    };
    let known = rest.first().and_then(Word::name).is_some_and(|name| {
        let two_words = ["TIME", "NAMES", "CHARACTERISTICS", "TRANSACTION"];
        DRIVER_SETTINGS.iter().chain(&two_words).any(|known| name.eq_ignore_ascii_case(known))
    });
    if known { Ok(Command::Nothing("SET")) } else { Err(CommandError::Setting) }
}

fn deallocate(rest: &[Word]) -> Command {
    let rest = match rest {
        [prepare, rest @ ..] if prepare.is("PREPARE") => rest,
        rest => rest,
    };
    let name = rest.first().filter(|name| !name.is("ALL")).and_then(Word::name);
    Command::Deallocate(name.map(str::to_owned))
}
