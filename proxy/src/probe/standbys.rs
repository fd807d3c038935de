//! Reads `synchronous_standby_names`, and tells which of them do not confirm.

use super::looks::text;
use super::{Control, ControlError};
use crate::backend::connection::Row;
use tokio::time::Instant;

/// Roles without `pg_read_all_stats` see the names of standbys, but not how far they are.
const STATEMENT: &str = "SELECT pg_catalog.current_setting('synchronous_standby_names'), r.application_name \
    FROM (SELECT 1) one LEFT JOIN pg_catalog.pg_stat_replication r ON true";

/// What commits wait for, in one sentence for people.
pub(super) async fn missing(control: &Control, deadline: Instant) -> Result<String, ControlError> {
    let rows = control.ask(STATEMENT, &[], deadline).await?;
    let (wanted, connected) = read(&rows).ok_or(ControlError::Protocol)?;
    Ok(sentence(&wanted, &connected))
}

fn read(rows: &[Row]) -> Option<(Vec<String>, Vec<&str>)> {
    let setting = text(rows.first()?.first()?)?;
    let connected = rows.iter().filter_map(|row| text(row.get(1)?)).collect();
    Some((names(setting), connected))
}

/// The names in the setting's order. The grammar is that of `syncrep_gram.y`: a list of names, or
/// `[FIRST|ANY] n (list)`; names with other characters are in double quotes.
fn names(setting: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = setting.trim_start();
    while let Some(first) = rest.chars().next() {
        let tail = &rest[first.len_utf8()..];
        rest = match first {
            // What came before was the method and the number.
            '(' => {
                names.clear();
                tail
            }
            '"' => {
                let (name, tail) = quoted(tail);
                names.push(name);
                tail
            }
            ',' | ')' => tail,
            first if first.is_whitespace() => tail,
            _ => {
                let end = rest.find(|c: char| c.is_whitespace() || ",()\"".contains(c)).unwrap_or(rest.len());
                names.push(rest[..end].to_owned());
                &rest[end..]
            }
        };
    }
    names
}

/// The name up to the closing quote, and what follows it. Two quotes are one.
fn quoted(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut rest = text;
    loop {
        let Some((head, tail)) = rest.split_once('"') else {
            name.push_str(rest);
            return (name, "");
        };
        name.push_str(head);
        match tail.strip_prefix('"') {
            Some(more) => {
                name.push('"');
                rest = more;
            }
            None => return (name, tail),
        }
    }
}

fn sentence(wanted: &[String], connected: &[&str]) -> String {
    // As the server compares them (`SyncRepGetStandbyPriority` in `syncrep.c`).
    let is_wanted = |name: &&str| wanted.iter().any(|it| it == "*" || it.eq_ignore_ascii_case(name));
    let is_missing = |name: &&str| *name != "*" && !connected.iter().any(|it| it.eq_ignore_ascii_case(name));
    let missing: Vec<&str> = wanted.iter().map(String::as_str).filter(is_missing).collect();
    let mute: Vec<&str> = connected.iter().copied().filter(is_wanted).collect();
    let parts = [("not connected", missing), ("connected without confirming", mute)];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| format!("{what}: {}", names.join(", ")))
        .collect();
    if parts.is_empty() {
        return "commits wait for synchronous standbys; none is connected".to_owned();
    }
    format!("commits wait for synchronous standbys; {}", parts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_the_setting_gives_its_names() {
        // A method or a number taken for a standby would be named as missing.
        let expected: [(&str, &[&str]); 8] = [
            ("", &[]),
            ("s1", &["s1"]),
            ("s1, s2", &["s1", "s2"]),
            ("2 (s1,s2)", &["s1", "s2"]),
            ("FIRST 1 (s1, \"s 2\")", &["s1", "s 2"]),
            ("any 2(\"a\"\"(b\" , c)", &["a\"(b", "c"]),
            ("*", &["*"]),
            ("\"open", &["open"]),
        ];

        for (setting, wanted) in expected {
            assert_eq!(names(setting), wanted, "{setting}");
        }
    }

    #[test]
    fn those_that_are_gone_are_told_from_those_that_are_silent() {
        // The first needs a look at the standby, the second perhaps at the network; a frozen one stays
        // connected until wal_sender_timeout.
        let wanted = ["s1".to_owned(), "s2".to_owned()];

        assert_eq!(
            sentence(&wanted, &["S1", "backup"]),
            "commits wait for synchronous standbys; not connected: s2; connected without confirming: S1"
        );
    }

    #[test]
    fn any_standby_is_missing_when_none_is_there() {
        // The star is no name: "not connected: *" helps nobody.
        let any = ["*".to_owned()];

        assert_eq!(sentence(&any, &[]), "commits wait for synchronous standbys; none is connected");
        assert!(sentence(&any, &["s9"]).ends_with("connected without confirming: s9"));
    }
}
