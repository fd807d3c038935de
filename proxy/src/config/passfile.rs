//! libpq's password file: lines of `host:port:database:user:password`.
//!
//! See "The Password File" in PostgreSQL's documentation of libpq; the first line that matches wins.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::{Password, UpstreamAddress};

/// The rights of group and world (`S_IRWXG | S_IRWXO`), which libpq allows none of: `passwordFromFile` in
/// `src/interfaces/libpq/fe-connect.c`.
const OTHERS: u32 = 0o077;

/// Whether anybody but the owner has any right to the file.
pub(super) fn is_open_to_others(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & OTHERS != 0)
}

/// The password for a login, from the text of a password file.
pub(super) fn lookup(text: &str, upstream: &UpstreamAddress, database: &str, user: &str) -> Option<Password> {
    // libpq writes `localhost` for its default socket folder; we take it for every unix socket.
    let (host, port) = match upstream {
        UpstreamAddress::Tcp { host, port } => (host.clone(), port.to_string()),
        UpstreamAddress::Unix(path) => {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            ("localhost".to_owned(), name.rsplit('.').next().unwrap_or_default().to_owned())
        }
    };
    let wanted = [host.as_str(), port.as_str(), database, user];
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| match_line(line, &wanted))
}

fn match_line(line: &str, wanted: &[&str; 4]) -> Option<Password> {
    let mut rest = line;
    for want in wanted {
        let (field, after) = next_field(rest)?;
        // An escaped star is a star, so the raw text decides.
        if rest.starts_with("*:") || field == *want {
            rest = after;
        } else {
            return None;
        }
    }
    let password = next_field(rest).map_or_else(|| unescape(rest), |(field, _)| field);
    (!password.is_empty()).then(|| Password::new(password))
}

/// The text before the next unescaped colon, and what follows the colon.
fn next_field(text: &str) -> Option<(String, &str)> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'\\' if !escaped => escaped = true,
            b':' if !escaped => {
                let (field, rest) = text.split_at(at);
                return Some((unescape(field), rest.strip_prefix(':').unwrap_or_default()));
            }
            _ => escaped = false,
        }
    }
    None
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        let meant = if character == '\\' { characters.next() } else { Some(character) };
        plain.extend(meant);
    }
    plain
}
