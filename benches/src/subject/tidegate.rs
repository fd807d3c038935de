//! tidegate, as an operator without a configuration file runs it.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::environment::Environment;
use crate::postgres::USER;
use crate::process::{free_port, service};

use super::POOL_SIZE;

/// How to run it on `port`, and the port of its control plane.
pub(super) fn command(environment: &Environment, port: u16) -> Result<(Command, u16)> {
    let program = &environment.tidegate;
    ensure!(program.is_file(), "there is no {}", program.display());
    let mut command = service(program);
    command.arg("run");
    command.args(["--listen", &format!("127.0.0.1:{port}")]);
    let admin = free_port()?;
    command.args(["--admin", &format!("127.0.0.1:{admin}")]);
    let upstream = environment.postgres.port();
    command.args(["--upstream", &format!("postgres://{USER}@127.0.0.1:{upstream}/{USER}")]);
    command.env("TIDEGATE_POOL_SIZE", POOL_SIZE.to_string());
    command.env("TIDEGATE_POOL_MAX_PER_UPSTREAM", (3 * POOL_SIZE).to_string());
    command.env("TIDEGATE_LISTEN_MAX_SESSIONS", environment.sessions_max.to_string());
    command.env("TIDEGATE_STATE_DIR", environment.folder().join("state"));
    // 500 clients on 20 backends queue on purpose; the peers wait without a limit or for minutes.
    for setting in ["TIMEOUTS_QUEUE", "SHED_CODEL_TARGET", "SHED_CODEL_INTERVAL"] {
        command.env(format!("TIDEGATE_{setting}"), "5s");
    }
    Ok((command, admin))
}
