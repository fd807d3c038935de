//! tidegate, as an operator without a configuration file runs it.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::environment::Environment;
use crate::postgres::USER;
use crate::process::free_port;

use super::POOL_SIZE;

/// How to run it on `port`.
pub(super) fn command(environment: &Environment, port: u16) -> Result<Command> {
    let program = &environment.tidegate;
    ensure!(program.is_file(), "there is no {}", program.display());
    let mut command = Command::new(program);
    command.arg("run");
    command.args(["--listen", &format!("127.0.0.1:{port}")]);
    command.args(["--admin", &format!("127.0.0.1:{}", free_port()?)]);
    let upstream = environment.postgres.port();
    command.args(["--upstream", &format!("postgres://{USER}@127.0.0.1:{upstream}/{USER}")]);
    command.env("TIDEGATE_POOL_SIZE", POOL_SIZE.to_string());
    command.env("TIDEGATE_POOL_MAX_PER_UPSTREAM", (3 * POOL_SIZE).to_string());
    command.env("TIDEGATE_LISTEN_MAX_SESSIONS", environment.sessions_max.to_string());
    // 500 clients on 20 backends queue on purpose; the peers wait without a limit or for minutes.
    command.env("TIDEGATE_TIMEOUTS_QUEUE", "5s");
    Ok(command)
}
