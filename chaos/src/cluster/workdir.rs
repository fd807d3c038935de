//! A folder whose inhabitants end with it.
//!
//! Programs started with their working directory inside a [`Workdir`] are killed, and the folder removed,
//! when the value is dropped and also when the process that holds it dies in any way. A small shell waits
//! at the other end of a pipe that only we hold: the kernel closes it with us, so SIGKILL, a panic and a
//! normal drop take the same path. Inhabitants are recognised by their working directory in `/proc`, which
//! finds `PostgreSQL`'s backends too (each is its own process group, and an orphan once its postmaster is
//! gone). What changes its working directory escapes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use super::error::{Doing, Result};
use super::owner::Owner;

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
tries=0
while pids=$(living); [ -n "$pids" ] && [ $tries -lt 100 ]; do
    kill -KILL $pids 2>/dev/null
    tries=$((tries + 1))
    sleep 0.02
done
rm -rf "$dir"
"#;

/// See the module.
#[derive(Debug)]
pub struct Workdir {
    path: PathBuf,
    reaper: Child,
    /// `Some` until the end; closing it is the signal.
    lifeline: Option<ChildStdin>,
}

impl Workdir {
    /// Creates a folder for programs that run as `owner`.
    pub fn create(label: &str, owner: &Owner) -> Result<Self> {
        let parent = owner.temp_dir();
        let dir = tempfile::Builder::new()
            .prefix(&format!("tidegate-{label}-"))
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir_in(&parent)
            .doing_to("create a folder in", &parent)?;
        let path = fs::canonicalize(dir.path()).doing_to("resolve", dir.path())?;
        owner.give(&path)?;
        let mut reaper = Command::new("/bin/sh")
            .args(["-c", REAPER, "tidegate-reaper"])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .doing(|| "cannot run /bin/sh".to_owned())?;
        let lifeline = reaper.stdin.take();
        // From here on the folder is the reaper's.
        let _ = dir.keep();
        Ok(Self { path, reaper, lifeline })
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

/// Processes whose working directory is `dir` or below.
pub fn inhabitants(dir: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir)))
        .collect()
}
