//! How a server becomes another's standby (again).

use std::fs;

use super::command;
use super::error::{Doing, Result};
use super::node::{Node, PATIENCE};

impl Node {
    /// Makes the stopped or running server a standby of another from its next start on.
    pub(super) fn point_at(&self, primary: &Self) -> Result<()> {
        let (port, name) = (primary.port(), self.name());
        let info = format!("host=127.0.0.1 port={port} user=postgres application_name={name}");
        self.configure("primary_conninfo", &info)?;
        self.write("standby.signal", "")
    }

    /// Has a running standby stream from another primary.
    pub fn follow(&self, primary: &Self) -> Result<()> {
        self.point_at(primary)?;
        self.reload()
    }

    /// Undoes what a stopped former primary wrote after the other was promoted (`pg_rewind`), and starts it as
    /// the other's standby.
    pub fn rewind(&self, primary: &Self) -> Result<()> {
        // Until then its control file names the old timeline, and there would seem to be nothing to undo.
        primary.sql("CHECKPOINT")?;
        let mut rewind = self.command("pg_rewind");
        rewind.arg("--target-pgdata").arg(self.data_dir()).arg("--no-sync");
        rewind.arg(format!("--source-server=host=127.0.0.1 port={} user=postgres", primary.port()));
        // It copies the source's files, its configuration among them.
        let configured =
            ["postgresql.conf", "tidegate.conf", "pg_hba.conf"].map(|name| self.data_dir().join(name));
        let kept: Vec<Option<String>> = configured.iter().map(|path| fs::read_to_string(path).ok()).collect();
        command::run(&mut rewind, "", PATIENCE)?;
        for (path, text) in configured.iter().zip(kept) {
            if let (Some(text), Some(name)) = (text, path.file_name()) {
                self.write(&name.to_string_lossy(), &text)?;
            }
        }
        self.point_at(primary)?;
        self.resume()
    }

    /// Throws the stopped server's data away and starts it as a fresh copy and standby of another. For servers
    /// whose `pg_wal` lies in the data directory.
    pub fn reclone(&self, primary: &Self) -> Result<()> {
        let data = self.data_dir();
        fs::remove_dir_all(&data).doing_to("remove", &data)?;
        primary.base_backup(self)?;
        // The copy has the primary's port in its configuration.
        self.write_settings()?;
        self.point_at(primary)?;
        self.resume()
    }
}
