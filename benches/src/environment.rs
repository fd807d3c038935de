//! What all measurements of a run share: the folder, the server, who runs what.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::postgres::Server;
use crate::process::{RunAs, raise_open_files};

/// Dropped in the order of its fields: the server is stopped before the folder is removed.
#[derive(Debug)]
pub struct Environment {
    /// The server behind every subject.
    pub postgres: Server,
    /// Who runs what refuses to run as root.
    pub run_as: RunAs,
    /// Path of the tidegate binary, whether it exists or not.
    pub tidegate: PathBuf,
    /// Sessions that each subject must accept.
    pub sessions_max: u32,
    folder: TempDir,
}

impl Environment {
    /// Starts the server in a temporary folder.
    pub fn start(tidegate: PathBuf, sessions_max: u32) -> Result<Self> {
        raise_open_files()?;
        let run_as = RunAs::find()?;
        let folder = TempDir::with_prefix("tidegate-bench-").context("no temporary folder")?;
        run_as.own(folder.path())?;
        let postgres = Server::start(folder.path(), run_as)?;
        Ok(Self { postgres, run_as, tidegate, sessions_max, folder })
    }

    /// Where configuration files and logs go.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file that the unprivileged user may read.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder().join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        self.run_as.own(&path)?;
        Ok(path)
    }
}
