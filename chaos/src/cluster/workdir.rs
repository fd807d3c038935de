//! A folder whose inhabitants end with it.
//!
//! Programs started with their working directory inside a [`Workdir`] are killed, and the folder removed,
//! when the value is dropped and also when the process that holds it dies in any way. A small shell waits
//! at the other end of a pipe that only we hold: the kernel closes it with us, so SIGKILL, a panic and a
//! normal drop take the same path. Inhabitants are recognised by their working directory in `/proc`, which
//! finds `PostgreSQL`'s backends too (each is its own process group, and an orphan once its postmaster is
//! gone). What changes its working directory escapes.
//!
//! Rules and namespaces of the kernel's are not in the folder: a process heals its own when it ends, and when it is killed
//! the next one does.
//!
//! Should the shell die as well (the whole session was killed, the machine lost power), the next
//! [`Workdir::create`] finds the folder by its lock, which nobody holds any more, and does the shell's work.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Once;

use super::cable::Cable;
use super::error::{Doing, Result};
use super::owner::Owner;
use crate::fault::packets;

/// Waits for the end of its input, then kills whatever lives below `$1` and removes the folder. Bounded:
/// SIGKILL needs no cooperation, but a process in uninterruptible sleep may never go.
const REAPER: &str = r#"
trap '' INT TERM HUP
cd /
dir=$1
read -r _
living() {
    ls -ln /proc/[0-9]*/cwd 2>/dev/null | while read -r line; do
        case $line in
        *" -> $dir" | *" -> $dir/"* | *" -> $dir "*) pid=${line#*/proc/}; echo "${pid%%/*}" ;;
        esac
    done
}
# A process that waits for a frozen filesystem does not even die.
[ -d "$dir/wal" ] && fsfreeze --unfreeze "$dir/wal" 2>/dev/null
tries=0
while pids=$(living); [ -n "$pids" ] && [ $tries -lt 100 ]; do
    kill -KILL $pids 2>/dev/null
    tries=$((tries + 1))
    sleep 0.02
done
for mount in "$dir/wal" "$dir/state"; do
    [ -d "$mount" ] && umount --lazy "$mount" 2>/dev/null
done
# A server that is killed leaves its System V shared memory behind, and there are only so many segments. Line 7 of
# postmaster.pid is its key and its number; the kernel refuses the removal to nobody but others.
for file in "$dir"/*/postmaster.pid; do
    segment=$(sed -n 7p "$file" 2>/dev/null | { read -r _ id; echo "$id"; })
    [ -n "$segment" ] && ipcrm -m "$segment" 2>/dev/null
done
rm -rf "$dir"
"#;

/// Locked for as long as somebody lives who holds the folder. Its last name says that the lock is taken.
const LOCK: &str = ".held";

/// See the module.
#[derive(Debug)]
pub struct Workdir {
    path: PathBuf,
    reaper: Child,
    /// `Some` until the end; closing it is the signal.
    lifeline: Option<ChildStdin>,
    _held: File,
}

impl Workdir {
    /// Creates a folder for programs that run as `owner`.
    pub fn create(label: &str, owner: &Owner) -> Result<Self> {
        let parent = owner.temp_dir();
        SWEEP.call_once(|| {
            sweep(&parent);
            Cable::sweep();
            packets::sweep();
        });
        let dir = tempfile::Builder::new()
            .prefix(&format!("tidegate-{label}-"))
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir_in(&parent)
            .doing_to("create a folder in", &parent)?;
        let path = fs::canonicalize(dir.path()).doing_to("resolve", dir.path())?;
        let held = hold(&path)?;
        owner.give(&path)?;
        let mut reaper = reaper_of(&path)?;
        let lifeline = reaper.stdin.take();
        // From here on the folder is the reaper's.
        let _ = dir.keep();
        Ok(Self { path, reaper, lifeline, _held: held })
    }

    /// The folder, without symbolic links in its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Processes whose working directory is in this folder.
    pub fn inhabitants(&self) -> Vec<u32> {
        inhabitants(&self.path)
    }
}

impl Drop for Workdir {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        // Bounded by the reaper's own limit.
        let _ = self.reaper.wait();
    }
}

fn reaper_of(dir: &Path) -> Result<Child> {
    Command::new("/bin/sh")
        .args(["-c", REAPER, "tidegate-reaper"])
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .doing(|| "cannot run /bin/sh".to_owned())
}

/// The file gets its name when it is locked: nobody can find it and think that it is free.
fn hold(dir: &Path) -> Result<File> {
    let new = dir.join(".held.new");
    let file = File::create(&new).doing_to("create", &new)?;
    file.lock().doing_to("lock", &new)?;
    let name = dir.join(LOCK);
    fs::rename(&new, &name).doing_to("rename to", &name)?;
    Ok(file)
}

/// Once per process.
static SWEEP: Once = Once::new();

/// Removes folders whose holder and reaper are both gone, with everything that lives in them.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with("tidegate-");
        if ours && is_abandoned(&entry.path()) {
            // Best effort: what belongs to another user stays theirs.
            let _ = reaper_of(&entry.path()).map(|mut reaper| {
                drop(reaper.stdin.take());
                reaper.wait()
            });
        }
    }
}

fn is_abandoned(dir: &Path) -> bool {
    let Ok(file) = File::open(dir.join(LOCK)) else { return false };
    file.try_lock().is_ok()
}

/// Processes whose working directory is `dir` or below.
pub fn inhabitants(dir: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_that_nobody_holds_are_swept() {
        // Taking a folder in use would kill another run's servers.
        let parent = tempfile::tempdir().unwrap();
        let (held, left) = (parent.path().join("tidegate-a"), parent.path().join("tidegate-b"));
        fs::create_dir(&held).unwrap();
        fs::create_dir(&left).unwrap();
        let holder = hold(&held).unwrap();
        drop(hold(&left).unwrap());

        sweep(parent.path());

        assert!(held.exists());
        assert!(!left.exists());
        drop(holder);
    }
}
