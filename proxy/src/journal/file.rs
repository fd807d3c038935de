//! The file: lines appended and synced, rotated by size.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::Entry;
use crate::state_dir::{FILE_MODE, sync_folder};

/// A file that would grow beyond this is put aside.
pub(super) const SIZE_MAX: u64 = 8 * 1024 * 1024;
/// Files put aside that are kept: `journal.jsonl.1` is the youngest.
pub(super) const OLD_KEPT: usize = 4;
/// The most of the file that is read at start: enough for 256 lines of the usual size.
const TAIL: u64 = 256 * 1024;

const NAME: &str = "journal.jsonl";

/// The journal's file, open for appending.
#[derive(Debug)]
pub(super) struct JournalFile {
    folder: PathBuf,
    file: File,
    len: u64,
}

impl JournalFile {
    /// Opens or makes the file. A line without an end, left by a crash, gets one.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let options = options.read(true).append(true).create(true).mode(FILE_MODE);
        let mut file = options.open(folder.join(NAME))?;
        sync_folder(folder)?;
        let mut len = file.metadata()?.len();
        if len > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                len += 1;
            }
        }
        Ok(Self { folder: folder.to_owned(), file, len })
    }

    /// Appends whole lines and waits until they are on disk: all of them, or none.
    pub(super) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let more = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        if self.len > 0 && self.len.saturating_add(more) > SIZE_MAX {
            self.rotate()?;
        }
        let written = self.file.write_all(lines).and_then(|()| self.file.sync_data());
        match written {
            Ok(()) => self.len += more,
            // The lines will be tried again: what did get through would stand there twice. A disk that takes
            // no lines may still give room back; where it does not, the reader skips half a line.
            Err(_) => drop(self.file.set_len(self.len)),
        }
        written
    }

    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |number: usize| self.folder.join(format!("{NAME}.{number}"));
        for number in (1..OLD_KEPT).rev() {
            match std::fs::rename(numbered(number), numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        std::fs::rename(self.folder.join(NAME), numbered(1))?;
        *self = Self::open(&self.folder)?;
        Ok(())
    }

    /// The last entries of the file, oldest first. Lines that are no entries are left out.
    pub(super) fn last_entries(&self) -> io::Result<Vec<Entry>> {
        let mut file = File::open(self.folder.join(NAME))?;
        file.seek(SeekFrom::Start(self.len.saturating_sub(TAIL)))?;
        let mut entries = Vec::new();
        for line in BufReader::new(file.take(TAIL)).split(b'\n') {
            entries.extend(serde_json::from_slice::<Entry>(&line?).ok());
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn length(folder: &Path, name: &str) -> Option<u64> {
        std::fs::metadata(folder.join(name)).ok().map(|file| file.len())
    }

    #[test]
    fn size_and_number_of_files_are_bounded() {
        // Without an end the journal would fill the disk that the database may share.
        let folder = tempfile::tempdir().unwrap();
        let mut file = JournalFile::open(folder.path()).unwrap();
        let lines = vec![b'\n'; usize::try_from(SIZE_MAX / 2).unwrap()];

        for _ in 0..2 * (OLD_KEPT + 3) {
            file.append(&lines).unwrap();
        }

        assert_eq!(length(folder.path(), NAME), Some(SIZE_MAX));
        assert_eq!(length(folder.path(), &format!("{NAME}.{OLD_KEPT}")), Some(SIZE_MAX));
        assert_eq!(length(folder.path(), &format!("{NAME}.{}", OLD_KEPT + 1)), None);
    }

    #[test]
    fn half_a_line_does_not_spoil_the_next_one() {
        // Power may fail in the middle of a write; the first entry after that must be readable.
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(NAME), "{\"id\": 1, \"at").unwrap();
        let entry = Entry::new(
            2,
            crate::timestamp::Timestamp::now(),
            super::super::Decision::new(super::super::Kind::Process),
        );
        let mut line = Vec::new();
        entry.put_line(&mut line);

        let mut file = JournalFile::open(folder.path()).unwrap();
        file.append(&line).unwrap();

        assert_eq!(JournalFile::open(folder.path()).unwrap().last_entries().unwrap(), [entry]);
    }
}
