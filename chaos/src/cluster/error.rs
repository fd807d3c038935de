//! What can go wrong while servers are set up.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a server could not be found, started, or told something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No usable `PostgreSQL`, and what to install.
    #[error("no PostgreSQL {wanted}: {why}")]
    NoPrograms {
        /// "server programs" or a major version.
        wanted: String,
        /// What was tried, what would help.
        why: String,
    },
    /// The folder named by `PG_BIN` is not a `PostgreSQL`.
    #[error("{} is not a PostgreSQL program folder: {missing} is missing", dir.display())]
    NotPrograms {
        /// The folder.
        dir: PathBuf,
        /// The first program that it lacks.
        missing: &'static str,
    },
    /// A program ended with a failure.
    #[error("{program} failed ({status}): {output}")]
    Failed {
        /// Its name.
        program: String,
        /// Exit status.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// A program or a condition took too long.
    #[error("{what} took longer than {limit:?}")]
    Late {
        /// What we waited for.
        what: String,
        /// How long.
        limit: Duration,
    },
    /// The server ended while it was being started.
    #[error("PostgreSQL ended during its start ({status}); its log ends with:\n{log}")]
    Died {
        /// Exit status.
        status: String,
        /// The end of its log.
        log: String,
    },
    /// The operation needs a running server, or a stopped one.
    #[error("PostgreSQL node {node} is {state}")]
    WrongState {
        /// Name of the node.
        node: String,
        /// What it is.
        state: &'static str,
    },
    /// Every port of the range is taken.
    #[error("no free port between {first} and {last}")]
    NoPort {
        /// First port of the range.
        first: u16,
        /// Last port of the range.
        last: u16,
    },
    /// When root, servers must run as somebody else.
    #[error("PostgreSQL refuses to run as root, and there is neither a user postgres nor a user nobody")]
    NoUser,
    /// This machine, or this cluster, cannot do it.
    #[error("{what} is not possible here: {why}")]
    Unsupported {
        /// What was asked.
        what: String,
        /// What is missing.
        why: String,
    },
    /// A file or process operation failed.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

/// Short for results of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Names the operation that failed.
pub(crate) trait Doing<T> {
    /// Attaches what was being done.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
    /// Attaches an operation on a path.
    fn doing_to(self, verb: &str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io { what: what(), source: source.into() })
    }

    fn doing_to(self, verb: &str, path: &Path) -> Result<T> {
        self.doing(|| format!("cannot {verb} {}", path.display()))
    }
}
