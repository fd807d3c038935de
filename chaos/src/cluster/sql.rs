//! SQL on a [`Node`], by the psql of the same installation.

use super::command;
use super::error::Result;
use super::node::{Node, PATIENCE};

/// How a password is kept by the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretKind {
    /// `SCRAM-SHA-256$…`; also right for the `password` method.
    Scram,
    /// `md5…`; also right for the `password` method.
    Md5,
}

impl Node {
    /// Runs SQL as the superuser with psql over the unix socket, whatever the test's `pg_hba.conf` says.
    /// Gives the rows, columns separated by `|`, without the last newline. Stops at the first error.
    pub fn sql(&self, sql: &str) -> Result<String> {
        self.sql_in("postgres", sql)
    }

    /// The same in another database.
    pub fn sql_in(&self, database: &str, sql: &str) -> Result<String> {
        let mut command = self.command("psql");
        command.args(["-XAtq", "--set=ON_ERROR_STOP=1", "--username=postgres", "--file=-"]);
        command.arg("--host").arg(self.socket_dir()).arg(format!("--port={}", self.port()));
        command.arg(format!("--dbname={database}"));
        // Over standard input: a password must not show in the list of processes.
        let printed = command::run(&mut command, sql, PATIENCE)?;
        Ok(printed.trim_end_matches('\n').to_owned())
    }

    /// The first column of a query on a stopped server, one value a line, by a backend of its own
    /// (`postgres --single`). Where it had crashed it recovers first, and it ends with a checkpoint.
    pub fn sql_offline(&self, database: &str, query: &str) -> Result<String> {
        let mut command = self.command("postgres");
        command.arg("--single").arg("-D").arg(self.data_dir()).arg(database);
        let printed = command::run(&mut command, &format!("{query}\n"), PATIENCE)?;
        // "\t 1: key = \"7\"\t(typeid = 20, …)": the lines that describe the columns have no value.
        let values = printed.lines().filter_map(|line| {
            let (_, value) = line.trim_start().strip_prefix("1: ")?.split_once(" = \"")?;
            value.rsplit_once("\"\t").map(|(value, _)| value)
        });
        Ok(values.collect::<Vec<_>>().join("\n"))
    }

    /// Creates a role that may log in, with its password kept as told.
    pub fn create_user(&self, name: &str, password: &str, kind: SecretKind) -> Result<()> {
        let encryption = match kind {
            SecretKind::Scram => "scram-sha-256",
            SecretKind::Md5 => "md5",
        };
        self.sql(&format!(
            "SET password_encryption = '{encryption}'; CREATE ROLE {} LOGIN PASSWORD {}",
            quote_identifier(name),
            quote_literal(password)
        ))
        .map(drop)
    }
}

/// `"name"`, for SQL.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `'text'`, for SQL with `standard_conforming_strings` on.
pub fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
