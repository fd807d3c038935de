//! A session of ours that holds something until it is told to let go.

use std::process::{Child, Command, Stdio};

use crate::cluster::{Doing, Node, Result};

/// A psql that runs a statement which never ends by itself.
#[derive(Debug)]
pub(super) struct Holder {
    child: Child,
}

impl Holder {
    /// Starts the statements, of which the last should sleep, and returns at once.
    pub(super) fn start(node: &Node, database: &str, statements: &str) -> Result<Self> {
        let mut command: Command = node.command("psql");
        // With the postmaster's way of noticing a dead client, the session ends soon after psql does.
        command.env("PGOPTIONS", "-c client_connection_check_interval=100");
        command.args(["-XAtq", "--username=postgres", "--command", statements]);
        command.arg("--host").arg(node.socket_dir()).arg(format!("--port={}", node.port()));
        command.arg(format!("--dbname={database}")).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().doing(|| "cannot run psql".to_owned())?;
        Ok(Self { child })
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
