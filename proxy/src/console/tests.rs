//! Claims about the console's language.

use super::command::{Command, CommandError, SHOWS, Show, parse};
use super::{columns, words};
use crate::wire::SqlState;

fn one(text: &str) -> Result<Command, CommandError> {
    let mut commands = parse(text)?;
    assert_eq!(commands.len(), 1, "{text}");
    Ok(commands.remove(0))
}

#[test]
fn commands_are_read_in_any_case_with_blanks_comments_and_semicolons() {
    // What operators type and exporters send differs in all of these; each must mean the same.
    for text in ["SHOW POOLS", "show pools;", "  Show\n\tpOOLS ; ;", "/* a /* b */ */ show -- x\n pools"] {
        assert_eq!(one(text), Ok(Command::Show(Show::Pools)), "{text}");
    }
    for (name, show) in SHOWS {
        assert_eq!(one(&format!("SHOW {name}")), Ok(Command::Show(show)));
        assert_eq!(one(&format!("show {};", name.to_lowercase())), Ok(Command::Show(show)));
    }
    assert_eq!(one("SHOW HELP;"), Ok(Command::Help));
}

#[test]
fn names_of_databases_are_taken_as_written() {
    // Folding a name to lower case, as SQL does, would pause another database.
    assert_eq!(one("PAUSE"), Ok(Command::Pause(None)));
    assert_eq!(one("pause Shop"), Ok(Command::Pause(Some("Shop".to_owned()))));
    assert_eq!(one("RESUME \"odd \"\"name\""), Ok(Command::Resume(Some("odd \"name".to_owned()))));
    assert_eq!(one("KILL 'a;b'"), Ok(Command::Kill("a;b".to_owned())));
    assert_eq!(one("RECONNECT shop-eu-1"), Ok(Command::Reconnect(Some("shop-eu-1".to_owned()))));
}

#[test]
fn several_statements_are_all_read_and_one_that_is_wrong_spoils_them() {
    // As in PostgreSQL: nothing of a text runs when a part of it cannot be understood.
    let both = parse("PAUSE shop; SHOW POOLS;").unwrap();
    assert_eq!(both, [Command::Pause(Some("shop".to_owned())), Command::Show(Show::Pools)]);
    assert_eq!(parse(" ; ; -- nothing"), Ok(Vec::new()));

    assert!(parse("KILL shop; SHOW NONSENSE").is_err());
}

#[test]
fn words_that_belong_nowhere_are_errors() {
    // A command that ignores what it does not understand does something else than it was told.
    for text in [
        "PAUSE a b",
        "KILL",
        "RELOAD now",
        "SHOW POOLS shop",
        "SHOW",
        "RESUME a.b 'c'",
        "KILL a -",
        "KILL - a",
    ] {
        let error = one(text).err();
        assert_eq!(error.map(|error| error.code()), Some(SqlState::SYNTAX_ERROR), "{text}");
    }
    assert_eq!(one("PAUSE 'a"), Err(CommandError::Unterminated));
    assert_eq!(one("/* SHOW POOLS"), Err(CommandError::Unterminated));
}

#[test]
fn typing_mistakes_are_answered_with_what_was_meant() {
    // An operator in a hurry should not have to look up the manual.
    assert_eq!(one("SHOW POLS").unwrap_err().hint(), "Did you mean SHOW POOLS?");
    assert_eq!(one("PUASE shop").unwrap_err().hint(), "Did you mean PAUSE?");
    assert_eq!(one("FROBNICATE").unwrap_err().to_string(), "no such command: \"FROBNICATE\"");
}

#[test]
fn sql_is_not_repeated_in_errors() {
    // psql completes names by queries that hold what was typed so far; texts like that end in logs.
    for text in ["SELECT secret FROM pg_catalog.pg_class", "SHOW 'secret'", "secret1=2", "SHOW secret1"] {
        let error = one(text).unwrap_err();

        assert!(!format!("{error} {}", error.hint()).contains("secret"), "{text}");
        assert_eq!(error.code(), SqlState::SYNTAX_ERROR, "{text}");
    }
}

#[test]
fn settings_of_drivers_are_taken_and_others_refused() {
    // Drivers set these when they connect and give up on an error; a setting that is refused must not seem to hold.
    let taken = [
        "SET extra_float_digits = 3",
        "SET client_encoding TO 'UTF8'",
        "SET SESSION application_name = 'x'",
        "SET DateStyle=ISO",
        "SET TIME ZONE 'UTC'",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    ];
    for text in taken {
        assert_eq!(one(text), Ok(Command::Nothing("SET")), "{text}");
    }
    for text in ["SET default_pool_size = 5", "SET pool.size = 5", "SET"] {
        let error = one(text).unwrap_err();
        assert_eq!(error.code(), SqlState::CANT_CHANGE_PARAMETER, "{text}");
        assert!(error.hint().contains("RELOAD"), "{text}");
    }
}

#[test]
fn what_is_not_supported_says_so() {
    // Silence or success would let a script believe that clients are suspended.
    for text in ["SUSPEND", "WAIT_CLOSE shop"] {
        assert_eq!(one(text).unwrap_err().code(), SqlState::FEATURE_NOT_SUPPORTED, "{text}");
    }
}

#[test]
fn no_two_columns_of_a_table_have_the_same_name() {
    // Programs read columns by name; the second of a pair could not be reached.
    for (name, show) in SHOWS {
        let columns = columns::of(show);
        let names: std::collections::BTreeSet<_> = columns.iter().map(|(name, _)| *name).collect();
        assert_eq!(names.len(), columns.len(), "{name}");
    }
}

#[test]
fn any_text_is_split_without_a_panic() {
    // The text comes from a peer.
    for text in ["'", "\"", "/*", "*/", "--", "é'é", ";;;", "/*/", "''''", "\u{0}", "-", "/"] {
        let _ = words::split(text);
        let _ = parse(text);
    }
}
