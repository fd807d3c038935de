//! `PgBouncer` in transaction mode; in session mode where its version cannot prepare statements otherwise.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::environment::Environment;
use crate::postgres::USER;
use crate::process::{find_program, version_of};

use super::{Demand, POOL_SIZE, unprivileged};

/// The first version with `max_prepared_statements` (its changelog, 1.21.0).
const FIRST_WITH_PREPARED: (u32, u32) = (1, 21);
/// Its default since 1.24.
const PREPARED_STATEMENTS_MAX: u32 = 200;

/// How it pools.
enum Mode {
    Transaction,
    TransactionPrepared,
    /// A backend for each session.
    Session {
        pool_size: u32,
    },
}

impl Mode {
    fn choose(demand: Demand, version: (u32, u32)) -> Self {
        match demand {
            Demand::Plain => Self::Transaction,
            Demand::Prepared { .. } if version >= FIRST_WITH_PREPARED => Self::TransactionPrepared,
            Demand::Prepared { sessions } => Self::Session { pool_size: sessions.max(POOL_SIZE) },
        }
    }

    fn settings(&self) -> String {
        match self {
            Self::Transaction => format!("pool_mode = transaction\ndefault_pool_size = {POOL_SIZE}\n"),
            Self::TransactionPrepared => format!(
                "pool_mode = transaction\ndefault_pool_size = {POOL_SIZE}\n\
                 max_prepared_statements = {PREPARED_STATEMENTS_MAX}\n"
            ),
            Self::Session { pool_size } => {
                format!("pool_mode = session\ndefault_pool_size = {pool_size}\n")
            }
        }
    }

    fn note(&self) -> Option<String> {
        match self {
            Self::Transaction | Self::TransactionPrepared => None,
            Self::Session { pool_size } => Some(format!("session mode, {pool_size} backends")),
        }
    }
}

/// How to run it on `port`, and what to tell the reader.
pub(super) fn command(
    environment: &Environment,
    port: u16,
    demand: Demand,
) -> Result<(Command, Option<String>)> {
    let mode = Mode::choose(demand, version()?);
    let users = environment.write("pgbouncer-users.txt", &format!("\"{USER}\" \"\"\n"))?;
    let text = format!(
        "[databases]
{USER} = host=127.0.0.1 port={upstream}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
max_client_conn = {sessions}
log_connections = 0
log_disconnections = 0
{settings}",
        upstream = environment.postgres.port(),
        users = users.display(),
        sessions = environment.sessions_max,
        settings = mode.settings(),
    );
    let file = environment.write("pgbouncer.ini", &text)?;
    Ok((unprivileged(environment, "pgbouncer", &[], &file)?, mode.note()))
}

fn version() -> Result<(u32, u32)> {
    let program = find_program("pgbouncer").context("pgbouncer is not installed")?;
    let line = version_of(&program, "--version").context("pgbouncer --version failed")?;
    parse_version(&line).with_context(|| format!("unknown version {line}"))
}

/// From `PgBouncer 1.18.0`.
fn parse_version(line: &str) -> Option<(u32, u32)> {
    let mut numbers = line.split_whitespace().nth(1)?.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prepared_rows_need_session_mode_before_1_21() {
        // 1.18 in transaction mode answers pgbench -M prepared with "prepared statement does not exist".
        let demand = Demand::Prepared { sessions: 64 };

        let old = Mode::choose(demand, parse_version("PgBouncer 1.18.0").unwrap());
        let new = Mode::choose(demand, parse_version("PgBouncer 1.21.0").unwrap());

        assert!(matches!(old, Mode::Session { pool_size: 64 }));
        assert!(matches!(new, Mode::TransactionPrepared));
    }
}
