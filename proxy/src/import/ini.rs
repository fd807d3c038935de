//! PgBouncer's files as they are written: sections, settings with their place, and what `%include` brings in.

use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::config::{Origin, Problem};

/// As in the configuration of our own: more is the wrong file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Files inside files. A file that includes itself ends here.
const DEPTH_MAX: usize = 10;

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    path: Rc<Path>,
    line: usize,
}

impl Place {
    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A problem with what stands there.
    pub(super) fn problem(&self, key: &str, reason: impl Into<String>, advice: &str) -> Problem {
        Problem {
            origin: Origin::File { path: self.path.to_path_buf(), line: self.line },
            key: key.to_owned(),
            reason: reason.into(),
            advice: advice.to_owned(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str());
        write!(f, "{}:{}", name.display(), self.line)
    }
}

/// One `key = value`.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    /// Where it stands.
    pub(super) place: Place,
    /// The name of its section.
    pub(super) section: String,
    /// What is before the equals sign, without quotes.
    pub(super) key: String,
    /// What is behind it.
    pub(super) value: String,
}

/// All settings of a file and of those that it includes, in order.
pub(super) fn read(path: &Path, problems: &mut Vec<Problem>) -> Vec<Setting> {
    let mut reader = Reader { settings: Vec::new(), section: None, problems };
    reader.file(path, None, 0);
    reader.settings
}

struct Reader<'a> {
    settings: Vec<Setting>,
    /// It outlives the file: an included one goes on where it was included.
    section: Option<String>,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    fn file(&mut self, path: &Path, from: Option<&Place>, depth: usize) {
        let named: Rc<Path> = Rc::from(path);
        let text = match text(path) {
            Ok(text) => text,
            Err(reason) => {
                let here = Place { path: named, line: 1 };
                let place = from.unwrap_or(&here);
                let reason = format!("{} {reason}", path.display());
                return self.problems.push(place.problem("", reason, "name a file that can be read"));
            }
        };
        for (index, line) in text.lines().enumerate() {
            let place = Place { path: Rc::clone(&named), line: index + 1 };
            self.line(line.trim(), place, depth);
        }
    }

    fn line(&mut self, line: &str, place: Place, depth: usize) {
        if line.is_empty() || line.starts_with([';', '#']) {
            return;
        }
        if let Some(name) = line.strip_prefix("%include") {
            return self.include(name.trim(), &place, depth);
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            self.section = Some(name.trim().to_owned());
            return;
        }
        let Some((key, value)) = pair(line) else {
            let advice = "write a setting as `key = value`, a section as `[name]`, a comment as `; text`";
            return self.problems.push(place.problem("", "this line is none of these", advice));
        };
        match &self.section {
            Some(section) => {
                self.settings.push(Setting { place, section: section.clone(), key, value });
            }
            None => self.problems.push(place.problem(
                &key,
                "it stands before the first section",
                "put it below [pgbouncer]",
            )),
        }
    }

    fn include(&mut self, name: &str, place: &Place, depth: usize) {
        if depth >= DEPTH_MAX {
            let reason = format!("more than {DEPTH_MAX} files include each other");
            return self.problems.push(place.problem("%include", reason, "does a file include itself?"));
        }
        // PgBouncer starts from its working folder, which is not known here: first from the file's own.
        let beside = place.path.parent().unwrap_or(Path::new("")).join(name);
        let path = if beside.is_file() { beside } else { PathBuf::from(name) };
        self.file(&path, Some(place), depth + 1);
    }
}

/// The text of a file, or why there is none.
fn text(path: &Path) -> Result<String, String> {
    use std::io::Read as _;

    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err("is larger than 1 MiB".to_owned());
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())
}

/// Key and value of a line. A key may be quoted as an SQL identifier is.
fn pair(line: &str) -> Option<(String, String)> {
    let (key, rest) = if let Some(quoted) = line.strip_prefix('"') {
        quoted_key(quoted)?
    } else {
        let (key, rest) = line.split_at(line.find('=')?);
        (key.trim().to_owned(), rest)
    };
    let value = rest.trim_start().strip_prefix('=')?.trim();
    let plain = !key.is_empty() && (line.starts_with('"') || !key.contains(char::is_whitespace));
    plain.then(|| (key, value.to_owned()))
}

/// What stands between quotes, doubled ones inside are one; and what follows.
fn quoted_key(text: &str) -> Option<(String, &str)> {
    let mut key = String::new();
    let mut rest = text;
    loop {
        let (part, after) = rest.split_once('"')?;
        key.push_str(part);
        match after.strip_prefix('"') {
            Some(more) => {
                key.push('"');
                rest = more;
            }
            None => return Some((key, after)),
        }
    }
}

/// The `key=value` pairs of a connect string; values may be quoted with apostrophes. `None` when it is torn.
pub(super) fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let key = key.trim_end();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return None;
        }
        let (value, after) = value(after.trim_start())?;
        pairs.push((key.to_owned(), value));
        rest = after.trim_start();
    }
    Some(pairs)
}

fn value(text: &str) -> Option<(String, &str)> {
    let Some(mut rest) = text.strip_prefix('\'') else {
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        let (value, after) = text.split_at(end);
        return Some((value.to_owned(), after));
    };
    let mut value = String::new();
    loop {
        let (part, after) = rest.split_once('\'')?;
        value.push_str(part);
        match after.strip_prefix('\'') {
            Some(more) => {
                value.push('\'');
                rest = more;
            }
            None => return Some((value, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn connect_strings_are_read_as_pgbouncer_reads_them() {
        // A quote that is taken for a part of a password locks everybody out.
        let text = "host = db  port=5432 password='it''s = secret' connect_query='SELECT 1' dbname=";

        let read = pairs(text).unwrap();

        let wanted = [
            ("host", "db"),
            ("port", "5432"),
            ("password", "it's = secret"),
            ("connect_query", "SELECT 1"),
            ("dbname", ""),
        ];
        assert_eq!(read, owned(&wanted));
        assert_eq!(pairs(""), Some(vec![]));
        assert_eq!(pairs("host"), None);
        assert_eq!(pairs("password='torn"), None);
    }

    #[test]
    fn a_comment_sign_inside_a_value_belongs_to_it() {
        // A password that ends at its first semicolon is another password.
        assert_eq!(pair("a = b ; c # d"), Some(("a".into(), "b ; c # d".into())));
        assert_eq!(pair("\"my \"\"db\" = host=x"), Some(("my \"db".into(), "host=x".into())));
        assert_eq!(pair("*=host=x"), Some(("*".into(), "host=x".into())));
        assert_eq!(pair("two words = x"), None);
        assert_eq!(pair("nothing"), None);
    }
}
