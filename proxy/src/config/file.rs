//! TOML as an operator writes it, cut into settings that know their line.
//!
//! This layer knows syntax only. Which keys exist, and which type each has, is said once, in `tree`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Origin, Problem};

/// The largest file that is read. A configuration is a few KiB; more is the wrong file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// One `key = value`.
pub(super) struct Setting<'a> {
    /// The line of the key.
    pub(super) line: usize,
    /// The value, with its place in the text.
    pub(super) value: Spanned<DeValue<'a>>,
}

/// The settings of one file by `section.key`.
pub(super) struct File<'a> {
    path: PathBuf,
    text: &'a str,
    /// Settings that nobody has read yet.
    pub(super) settings: BTreeMap<String, Setting<'a>>,
    /// The sections by name, each with its line.
    pub(super) sections: BTreeMap<String, usize>,
}

impl<'a> File<'a> {
    /// Cuts `text`, the content of the file at `path`. An empty file and a syntax error are problems.
    pub(super) fn parse(path: &Path, text: &'a str) -> Result<Self, Problem> {
        let mut file =
            Self { path: path.to_owned(), text, settings: BTreeMap::new(), sections: BTreeMap::new() };
        let table = match DeTable::parse(text) {
            Ok(table) => table.into_inner(),
            Err(error) => return Err(file.syntax(&error)),
        };
        if table.is_empty() {
            return Err(file.empty());
        }
        for (key, value) in table {
            file.insert(&key, value);
        }
        Ok(file)
    }

    fn insert(&mut self, key: &Spanned<std::borrow::Cow<'a, str>>, value: Spanned<DeValue<'a>>) {
        let line = self.line(&key.span());
        let name = key.get_ref().to_string();
        let span = value.span();
        match value.into_inner() {
            DeValue::Table(section) => {
                for (inner, value) in section {
                    let line = self.line(&inner.span());
                    self.settings.insert(format!("{name}.{}", inner.get_ref()), Setting { line, value });
                }
                self.sections.insert(name, line);
            }
            other => {
                self.settings.insert(name, Setting { line, value: Spanned::new(span, other) });
            }
        }
    }

    /// The origin of something at this line.
    pub(super) fn origin(&self, line: usize) -> Origin {
        Origin::File { path: self.path.clone(), line }
    }

    /// The line, from 1, at which a span of the text starts.
    pub(super) fn line(&self, span: &Range<usize>) -> usize {
        let before = self.text.as_bytes().get(..span.start).unwrap_or(self.text.as_bytes());
        1 + memchr::memchr_iter(b'\n', before).count()
    }

    /// The folder that relative paths in the file start from.
    pub(super) fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    fn syntax(&self, error: &toml::de::Error) -> Problem {
        let line = error.span().map_or(1, |span| self.line(&span));
        Problem {
            origin: self.origin(line),
            key: String::new(),
            reason: format!("this is not TOML: {}", error.message()),
            advice: "correct the line; if the file was being written just now, load it again".to_owned(),
        }
    }

    fn empty(&self) -> Problem {
        Problem {
            origin: Origin::WholeFile(self.path.clone()),
            key: String::new(),
            reason: "the file is empty, so there are no upstreams".to_owned(),
            advice: "write at least `cluster.upstreams = [\"host:5432\"]`; if the file was being written just now, load it again"
                .to_owned(),
        }
    }
}

/// Reads the whole file as text. Anything but a regular or piped UTF-8 file of modest size is a problem.
pub(super) fn read(path: &Path) -> Result<String, Problem> {
    use std::io::Read as _;

    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| unreadable(path, &format!("cannot be read: {error}")))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(unreadable(path, "is larger than 1 MiB"));
    }
    String::from_utf8(bytes).map_err(|_| unreadable(path, "is not UTF-8 text"))
}

fn unreadable(path: &Path, reason: &str) -> Problem {
    Problem {
        origin: Origin::WholeFile(path.to_owned()),
        key: String::new(),
        reason: format!("the configuration file {reason}"),
        advice: "name a readable TOML file with --config or TIDEGATE_CONFIG".to_owned(),
    }
}
