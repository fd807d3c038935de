//! Where `pg_wal` lies: a filesystem of its own can be frozen, or run full.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::command;
use super::error::{Doing, Result};
use super::owner::Owner;

/// Name of the mount point in the server's folder; the reaper thaws and unmounts it.
pub(crate) const MOUNT: &str = "wal";

const LIMIT: Duration = Duration::from_secs(30);

/// Where `pg_wal` lies. All but the first need root.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WalStorage {
    /// In the data directory.
    #[default]
    Inside,
    /// On an ext4 filesystem in a file, which can be frozen.
    Loop {
        /// Its size.
        mib: u32,
    },
    /// On a small filesystem in memory, which can be filled.
    Memory {
        /// Its size.
        mib: u32,
    },
}

/// Mounts the filesystem below the server's folder and moves `pg_wal` there.
pub(super) fn prepare(storage: WalStorage, home: &Path, data: &Path, owner: &Owner) -> Result<()> {
    let mount = home.join(MOUNT);
    match storage {
        WalStorage::Inside => return Ok(()),
        WalStorage::Loop { mib } => mount_loop(mib, &home.join("wal.img"), &mount)?,
        WalStorage::Memory { mib } => {
            fs::create_dir(&mount).doing_to("create", &mount)?;
            let size = format!("size={mib}m");
            let mut command = Command::new("mount");
            command.args(["-t", "tmpfs", "-o", &size, "tidegate-wal"]).arg(&mount);
            command::run(&mut command, "", LIMIT)?;
        }
    }
    let (inside, moved) = (data.join("pg_wal"), mount.join("pg_wal"));
    command::run(Command::new("cp").arg("-a").arg(&inside).arg(&moved), "", LIMIT)?;
    owner.give(&moved)?;
    fs::remove_dir_all(&inside).doing_to("remove", &inside)?;
    symlink(&moved, &inside).doing_to("link", &inside)
}

fn mount_loop(mib: u32, image: &Path, mount: &Path) -> Result<()> {
    fs::create_dir(mount).doing_to("create", mount)?;
    let file = fs::File::create(image).doing_to("create", image)?;
    file.set_len(u64::from(mib) << 20).doing_to("grow", image)?;
    command::run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(image), "", LIMIT)?;
    command::run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(mount), "", LIMIT).map(drop)
}
