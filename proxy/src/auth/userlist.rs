//! The userlist: `"user" "secret"` per line, in `PgBouncer`'s format.
//!
//! A doubled quote inside a field stands for one quote. Blank lines and lines that start with `;` are
//! skipped, and so is whatever follows the second field. Of two lines for one user the later counts.
//! Stricter than `PgBouncer` in two ways: a field ends on the line where it began, and only blanks may
//! stand between the two (both are broken files in practice, and quietly wrong users there).

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Secret;

/// Users and their secrets, as one file gave them. To reload, load again.
#[derive(Debug, Clone, Default)]
pub struct Userlist {
    users: HashMap<String, Arc<Secret>>,
}

/// Why a userlist could not be used. Never shows what the file holds.
#[derive(Debug, thiserror::Error)]
pub enum UserlistError {
    /// The file could not be read.
    #[error("cannot read the userlist {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line is not `"user" "secret"`.
    #[error("{}:{line}: {what}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl Userlist {
    /// Reads a file, whole.
    pub fn load(path: &Path) -> Result<Self, UserlistError> {
        let bytes =
            std::fs::read(path).map_err(|source| UserlistError::Read { path: path.into(), source })?;
        Self::parse(&bytes).map_err(|(line, what)| UserlistError::Line { path: path.into(), line, what })
    }

    /// The secret of a user.
    pub fn get(&self, user: &str) -> Option<&Arc<Secret>> {
        self.users.get(user)
    }

    /// All users, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<Secret>)> {
        self.users.iter().map(|(user, secret)| (user.as_str(), secret))
    }

    /// Number of users.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether nobody is listed.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    fn parse(bytes: &[u8]) -> Result<Self, (usize, &'static str)> {
        let mut users = HashMap::new();
        for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
            let at_line = |what| (index + 1, what);
            let line = str::from_utf8(line).map_err(|_| at_line("not UTF-8"))?.trim_start();
            if line.is_empty() || line.starts_with(';') {
                continue;
            }
            let (user, secret) = fields(line).map_err(at_line)?;
            users.insert(user, Arc::new(Secret::parse(&secret)));
        }
        Ok(Self { users })
    }
}

fn fields(line: &str) -> Result<(String, String), &'static str> {
    let (user, rest) = field(line).ok_or("expected \"user\" \"secret\", the user in double quotes")?;
    let (secret, _ignored) =
        field(rest.trim_start()).ok_or("expected \"user\" \"secret\", the secret in double quotes")?;
    if user.is_empty() {
        return Err("the user is empty");
    }
    if user.contains('\0') || secret.contains('\0') {
        return Err("a zero byte, which the protocol cannot carry");
    }
    Ok((user, secret))
}

/// One quoted field without its quotes, and what follows it.
fn field(text: &str) -> Option<(String, &str)> {
    let mut rest = text.strip_prefix('"')?;
    let mut value = String::new();
    loop {
        let (part, after) = rest.split_once('"')?;
        value.push_str(part);
        match after.strip_prefix('"') {
            Some(more) => {
                value.push('"');
                rest = more;
            }
            None => return Some((value, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Password;
    use proptest::prelude::*;

    fn plain(text: &str) -> Secret {
        Secret::Plain(Password::new(text.to_owned()))
    }

    #[test]
    fn reads_what_pgbouncer_reads() {
        // Every line has its own trap: quotes, comments, blanks, extra text, CR, repeated and empty.
        let table = [
            (r#""alice" "secret""#, "alice", "secret"),
            (r#"  "bob"    "s p a c e"  "extra" ; text"#, "bob", "s p a c e"),
            (r#""quo""ted" """""#, "quo\"ted", "\""),
            ("; comment\n\n \t\n\"carol\"\t\"x\"\r\n", "carol", "x"),
            ("\"dave\" \"old\"\n\"dave\" \"new\"", "dave", "new"),
            (r#""eve" """#, "eve", ""),
            (r#""zoë" "pä;ss""#, "zoë", "pä;ss"),
            (r#""tight""x""#, "", ""),
        ];
        for (text, user, secret) in table {
            let list = Userlist::parse(text.as_bytes());

            if user.is_empty() {
                assert_eq!(list.unwrap_err().0, 1, "{text}");
            } else {
                let list = list.unwrap();
                assert_eq!(list.get(user).map(|secret| &**secret), Some(&plain(secret)), "{text}");
                assert_eq!(list.len(), 1, "{text}");
            }
        }
    }

    #[test]
    fn an_error_names_file_and_line_and_never_the_content() {
        // An operator needs the place; a log must not get the secret next to it.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("users.txt");
        for broken in ["hunter2 hunter2", "\"hunter2\" hunter2", "\"hunter2\" \"hunter2", "\"\" \"hunter2\""]
        {
            std::fs::write(&path, format!("; ok\n\"a\" \"b\"\n{broken}\n")).unwrap();

            let error = Userlist::load(&path).unwrap_err();

            assert!(error.to_string().starts_with(&format!("{}:3: ", path.display())), "{error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn a_missing_file_is_an_error_with_its_path() {
        // An empty list instead would refuse every user without a reason.
        let error = Userlist::load(Path::new("no/such/file")).unwrap_err();

        assert_eq!(error.to_string(), "cannot read the userlist no/such/file");
    }

    proptest! {
        #[test]
        fn parsing_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            // A file may hold anything; its lines are sliced at quotes.
            let _ = Userlist::parse(&bytes);
        }

        #[test]
        fn quoting_round_trips(user in "[^\\x00\\r\\n]{1,20}", secret in "[^\\x00\\r\\n]{0,20}") {
            // Fails if any character but the quote had a meaning inside a field.
            let line = format!("\"{}\" \"{}\"", user.replace('"', "\"\""), secret.replace('"', "\"\""));
            let list = Userlist::parse(line.as_bytes()).unwrap();
            prop_assert_eq!(&**list.get(&user).unwrap(), &Secret::parse(&secret));
        }
    }
}
