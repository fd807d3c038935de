//! The folder of what outlives the process: the journal and the outbox of alerts.
//!
//! It is taken for one process by a lock (flock(2), which ends with the process however that ends), so that
//! two sidecars with the same setting do not write into each other's files. All calls may block for as long as
//! the disk does: none of them belongs on a runtime.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Nobody but the owner and the group has to read what was decided.
const FOLDER_MODE: u32 = 0o750;
/// As for the folder.
pub(crate) const FILE_MODE: u32 = 0o640;

/// The folder, whether it can be used or not.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    lock: Mutex<Option<File>>,
}

impl StateDir {
    /// Names the folder; touches nothing.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), lock: Mutex::new(None) }
    }

    /// Its path, usable or not.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the folder, and takes it for this process for good. May be called again and again.
    ///
    /// # Errors
    /// When it cannot be made or written, and when another process has it. A later call may succeed.
    pub fn claim(&self) -> io::Result<&Path> {
        // What is guarded is whole whatever happened to who held it.
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if lock.is_none() {
            DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(&self.path)?;
            let mut options = OpenOptions::new();
            let file = options.write(true).create(true).mode(FILE_MODE).open(self.path.join("lock"))?;
            file.try_lock().map_err(|error| match error {
                TryLockError::Error(error) => error,
                TryLockError::WouldBlock => {
                    io::Error::new(io::ErrorKind::ResourceBusy, "another process has this folder")
                }
            })?;
            *lock = Some(file);
        }
        Ok(&self.path)
    }
}

/// Writes a file so that after a crash at any moment the old or the new one is there, whole: a second file,
/// fsync, rename(2), fsync of the folder.
///
/// # Errors
/// When any of that fails; then the old file is still in place.
pub(crate) fn replace_file(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let new = folder.join(format!("{name}.new"));
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(FILE_MODE).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, folder.join(name))?;
    sync_folder(folder)
}

/// Makes renames and new files in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_serves_one_owner_at_a_time() {
        // Two processes that rotate one journal, or rewrite one outbox, lose each other's entries.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let first = StateDir::new(&path);
        let second = StateDir::new(&path);

        assert!(first.claim().is_ok() && first.claim().is_ok());
        assert_eq!(second.claim().unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        drop(first);
        assert!(second.claim().is_ok());
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        // Writing in place would leave the end of a longer predecessor.
        let folder = tempfile::tempdir().unwrap();

        replace_file(folder.path(), "x", b"long text").unwrap();
        replace_file(folder.path(), "x", b"new").unwrap();

        assert_eq!(std::fs::read(folder.path().join("x")).unwrap(), b"new");
    }
}
