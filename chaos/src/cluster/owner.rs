//! The operating system user that servers run as.
//!
//! `PostgreSQL` refuses to run as root (`check_root` in its `main.c`), so root hands its servers to `postgres`
//! or, where that user does not exist, to `nobody`. Anybody else runs them as themselves.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::error::{Doing, Error, Result};

/// Who runs the servers and owns their folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    name: String,
    uid: u32,
    gid: u32,
    switch: Switch,
}

/// Whether a child must change its user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Switch {
    Stay,
    FromRoot,
}

impl Owner {
    /// The caller itself: for programs that do not mind root.
    pub fn caller() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        let name = lookup(|_, id| id == uid).map_or_else(|| uid.to_string(), |entry| entry.name);
        Self { name, uid, gid, switch: Switch::Stay }
    }

    /// Who runs `PostgreSQL` on this machine.
    pub fn of_servers() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self::caller());
        }
        let entry = ["postgres", "nobody"].iter().find_map(|wanted| lookup(|name, _| name == *wanted));
        let entry = entry.ok_or(Error::NoUser)?;
        Ok(Self { name: entry.name, uid: entry.uid, gid: entry.gid, switch: Switch::FromRoot })
    }

    /// Name in the user database, or the number when it has none.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run as this user, with nothing to read, in a process group of its own (a Ctrl-C
    /// in the terminal is for us: we decide who stops when), and without libpq's environment variables.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.stdin(Stdio::null()).process_group(0).current_dir("/").env("LC_ALL", "C").env("HOME", "/");
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        if self.switch == Switch::FromRoot {
            // The standard library drops the supplementary groups as well.
            command.uid(self.uid).gid(self.gid);
        }
        command
    }

    /// Makes this user the owner of a file or folder.
    pub fn give(&self, path: &Path) -> Result<()> {
        match self.switch {
            Switch::Stay => Ok(()),
            Switch::FromRoot => chown(path, Some(self.uid), Some(self.gid)).doing_to("change owner of", path),
        }
    }

    /// Whether this user can enter a folder: every folder on the way is open to them.
    pub fn can_enter(&self, dir: &Path) -> bool {
        self.switch == Switch::Stay || dir.ancestors().all(|part| self.may_search(part))
    }

    fn may_search(&self, dir: &Path) -> bool {
        let Ok(meta) = fs::metadata(dir) else {
            // What does not exist yet will be made by us, open to others.
            return !dir.exists();
        };
        let bit = if meta.uid() == self.uid { 0o100 } else { 0o001 };
        meta.mode() & bit != 0
    }

    /// A folder for temporary files which this user can reach and whose path leaves room for the name of a
    /// unix socket (at most 107 bytes on Linux).
    pub fn temp_dir(&self) -> PathBuf {
        let wanted = std::env::temp_dir();
        let wanted = fs::canonicalize(&wanted).unwrap_or(wanted);
        let fits = wanted.as_os_str().len() <= 50;
        if fits && self.can_enter(&wanted) { wanted } else { PathBuf::from("/tmp") }
    }

    /// A folder of the caller's inside [`Owner::temp_dir`] that outlives the process: templates, locks.
    pub fn shared_dir(&self, name: &str) -> Result<PathBuf> {
        let caller = rustix::process::geteuid().as_raw();
        let base = self.temp_dir().join(format!("tidegate-{caller}"));
        let dir = base.join(name);
        fs::create_dir_all(&dir).doing_to("create", &dir)?;
        let meta = fs::symlink_metadata(&base).doing_to("look at", &base)?;
        if meta.uid() != caller || !meta.is_dir() {
            let source = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
            return Err(source).doing(|| format!("{} belongs to somebody else", base.display()));
        }
        // A strict umask must not keep the servers' user out.
        for part in [&base, &dir] {
            fs::set_permissions(part, Permissions::from_mode(0o755)).doing_to("open", part)?;
        }
        Ok(dir)
    }
}

struct Entry {
    name: String,
    uid: u32,
    gid: u32,
}

/// The first line of the user database that matches.
fn lookup(matches: impl Fn(&str, u32) -> bool) -> Option<Entry> {
    let text = fs::read_to_string("/etc/passwd").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        matches(name, uid).then(|| Entry { name: name.to_owned(), uid, gid })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_folder_is_open_whatever_the_umask_was() {
        // Under umask 077 root's servers, which run as somebody else, could not reach their own template.
        let owner = Owner::caller();
        let dir = owner.shared_dir("closed").unwrap();
        fs::set_permissions(&dir, Permissions::from_mode(0o700)).unwrap();

        let again = owner.shared_dir("closed").unwrap();

        assert_eq!(fs::metadata(&again).unwrap().mode() & 0o777, 0o755);
        fs::remove_dir(again).unwrap();
    }
}
