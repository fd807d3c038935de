//! Ready-made data directories.
//!
//! `initdb` takes half a second and more; a copy of its result takes a tenth of that. One template per
//! version is kept in the folder for temporary files, built beside its place and renamed. Copies share
//! their `system_identifier`: see [`Identity::Own`].

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::command;
use super::error::{Doing, Result};
use super::owner::Owner;
use super::programs::Programs;

const LIMIT: Duration = Duration::from_mins(2);

/// Whose `system_identifier` a new server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Identity {
    /// That of the template: fast, the same for all servers of one version.
    #[default]
    Shared,
    /// Its own: runs `initdb`. For tests that tell one database cluster from another.
    Own,
}

/// Makes a data directory at `data`, which must not exist, with the superuser `postgres`.
pub(crate) fn create(programs: &Programs, owner: &Owner, identity: Identity, data: &Path) -> Result<()> {
    if identity == Identity::Own {
        return initdb(programs, owner, data);
    }
    let templates = owner.shared_dir("templates")?;
    let template = templates.join(format!("{}-{}", programs.full_version(), owner.name()));
    if !template.is_dir() {
        let new = tempfile::Builder::new().prefix(".new-").tempdir_in(&templates);
        let new = new.doing_to("create a folder in", &templates)?;
        owner.give(new.path())?;
        let fresh = new.path().join("data");
        initdb(programs, owner, &fresh)?;
        // Losing a race is fine: the winner's is as good.
        if let Err(error) = fs::rename(&fresh, &template)
            && !template.is_dir()
        {
            return Err(error).doing_to("rename to", &template);
        }
    }
    // As ourselves: "-a" keeps the owner when root copies.
    command::run(Command::new("cp").arg("-a").arg(&template).arg(data), "", LIMIT).map(drop)
}

fn initdb(programs: &Programs, owner: &Owner, data: &Path) -> Result<()> {
    let mut command = owner.command(programs.program("initdb"));
    command.arg("--pgdata").arg(data);
    command.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]);
    command::run(&mut command, "", LIMIT).map(drop)
}
