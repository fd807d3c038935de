//! `HAProxy` in TCP mode: one thread, one process, unprivileged.

use std::process::Command;

use anyhow::Result;

use crate::environment::Environment;

use super::unprivileged;

/// How to run it on `port`.
pub(super) fn command(environment: &Environment, port: u16) -> Result<Command> {
    let file = environment.write("haproxy.cfg", &configuration(environment, port))?;
    // -db: in the foreground and without a master process.
    unprivileged(environment, "haproxy", &["-db", "-f"], &file)
}

fn configuration(environment: &Environment, port: u16) -> String {
    format!(
        "global
    nbthread 1
    maxconn {sessions}
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen postgres
    bind 127.0.0.1:{port}
    maxconn {sessions}
    server primary 127.0.0.1:{upstream}
",
        sessions = environment.sessions_max,
        upstream = environment.postgres.port(),
    )
}
