//! `tidegate import pgbouncer.ini`: what PgBouncer was told, as a `tidegate.toml`.
//!
//! Every setting of the file is carried over or named with the reason why not; none is dropped silently. Where a
//! default of PgBouncer's matters and is not ours it is written out. What is printed is loaded again before.

mod databases;
mod ini;
mod left;
mod listen;
mod pool;
mod source;
mod target;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::cli;
use crate::config::{Config, Problem};
use source::Source;
use target::Target;

/// A translation under way.
struct Draft {
    source: Source,
    target: Target,
    problems: Vec<Problem>,
}

/// What came of a file.
#[derive(Debug)]
pub struct Imported {
    /// The whole `tidegate.toml`.
    pub text: String,
    /// How many keys it has.
    pub set: usize,
    /// How many settings are named in it as not carried over.
    pub left: usize,
}

/// Translates a file.
///
/// # Errors
/// What stands in it that cannot be, each with its place.
pub fn translate(path: &Path) -> Result<Imported, Vec<Problem>> {
    let mut problems = Vec::new();
    let source = source::read(path, &mut problems);
    let mut draft = Draft { source, target: Target::default(), problems };
    draft.translate();
    if !draft.problems.is_empty() {
        return Err(draft.problems);
    }
    let (set, left) = draft.target.counts();
    Ok(Imported { text: draft.target.text(&path.display().to_string()), set, left })
}

/// The command: prints the translation. Exit 0 when `tidegate check` would accept it, 2 when not, or when the file
/// makes no sense.
pub fn run(path: &Path) -> ExitCode {
    let imported = match translate(path) {
        Ok(imported) => imported,
        Err(problems) => return refused(&problems),
    };
    if print(&imported.text).is_err() {
        return ExitCode::FAILURE;
    }
    eprintln!("{} key(s) written; {} setting(s) not carried over, see the end", imported.set, imported.left);
    // Relative paths in it start from the folder where it is put, which is likely this one.
    match cli::with_files(Config::parse(Path::new("tidegate.toml"), &imported.text)) {
        Ok(config) => {
            for warning in &config.warnings {
                eprintln!("warning: {warning}");
            }
            ExitCode::SUCCESS
        }
        Err(errors) => refused(&errors.problems),
    }
}

fn refused<T: std::fmt::Display>(problems: &[T]) -> ExitCode {
    for problem in problems {
        eprintln!("error: {problem}");
    }
    ExitCode::from(2)
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

impl Draft {
    fn translate(&mut self) {
        let databases = self.databases();
        self.listen();
        self.authentication(&databases);
        self.server_tls();
        self.admin();
        self.pool(&databases);
        let waits = self.timeouts();
        self.rules(&databases, waits);
        self.leave_the_rest();
    }

    /// Every setting that nothing above has taken.
    fn leave_the_rest(&mut self) {
        for peer in std::mem::take(&mut self.source.peers) {
            self.target.left("[peers]", &peer, "a sidecar knows the cancel keys of all its sessions");
        }
        for setting in std::mem::take(&mut self.source.pgbouncer).rest() {
            let why = left::reason(&setting.key).unwrap_or("it is not known here; look it up");
            self.target.left(&setting.key, &setting.place, why);
        }
    }

    /// A file that PgBouncer was told: as it is when absolute. PgBouncer starts from its working folder, which is
    /// not known; the folder of its configuration is the best guess.
    fn path(&mut self, file: &source::Taken<String>) -> String {
        let path = Path::new(&file.value);
        if path.is_absolute() {
            return file.value.clone();
        }
        let beside = file.place.path().parent().unwrap_or(Path::new("")).join(path);
        if let Ok(found) = std::path::absolute(&beside)
            && found.is_file()
        {
            return found.display().to_string();
        }
        self.target.attention(format!(
            "{}: {} is relative to PgBouncer's working folder there, and to the folder of this file here.",
            file.from(),
            file.value
        ));
        file.value.clone()
    }
}

/// The flags of `tidegate import`.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// PgBouncer's configuration file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}
