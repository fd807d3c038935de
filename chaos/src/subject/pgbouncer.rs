//! `PgBouncer` as most people run it: transaction mode, no timeouts but its own defaults.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use crate::cluster::{Doing, Owner, PortLease, Result, Workdir};
use crate::daemon::{Daemon, Recipe};

use super::{Kind, Subject, SubjectOptions, first_upstream, loopback, version_of};

pub(super) fn start(program: &Path, options: &SubjectOptions) -> Result<Subject> {
    let version = version_of(program)?;
    // PgBouncer refuses to run as root.
    let owner = Owner::of_servers()?;
    let workdir = Workdir::create("pgbouncer", &owner)?;
    let listen = PortLease::take()?;
    let config = workdir.path().join("pgbouncer.ini");
    let upstream = first_upstream(options)?;
    fs::write(&config, ini(upstream, listen.port(), options.pool)).doing_to("write", &config)?;
    let users = workdir.path().join("users.txt");
    fs::write(&users, "\"app\" \"\"\n").doing_to("write", &users)?;
    let recipe = Recipe {
        program: program.to_owned(),
        arguments: vec![config.to_string_lossy().into_owned()],
        environment: Vec::new(),
        listens: loopback(listen.port()),
    };
    let address = recipe.listens;
    let daemon = Some(Arc::new(Daemon::start(recipe, owner, workdir)?));
    Ok(Subject { kind: Kind::PgBouncer, version, address, admin: None, daemon, _ports: vec![listen] })
}

fn ini(upstream: SocketAddr, listen: u16, pool: usize) -> String {
    let (host, port) = (upstream.ip(), upstream.port());
    format!(
        "[databases]\n* = host={host} port={port}\n\n\
         [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {listen}\nunix_socket_dir =\n\
         auth_type = trust\nauth_file = users.txt\nadmin_users = pgbouncer\npool_mode = transaction\n\
         default_pool_size = {pool}\nmax_client_conn = 1000\n"
    )
}
