//! Storage that stalls: every write to `pg_wal` hangs, and nothing can be cancelled or terminated.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crate::cluster::{Error, Node, Result, WAL_MOUNT, WalStorage, command};

use super::Guard;

const LIMIT: Duration = Duration::from_secs(20);

pub(super) fn inject(node: &Arc<Node>) -> Result<Guard> {
    let WalStorage::Loop { .. } = node.wal() else {
        let what = format!("freezing pg_wal of {}", node.name());
        return Err(Error::Unsupported {
            what,
            why: "the scenario's cluster needs wal = \"loop\"".to_owned(),
        });
    };
    fsfreeze("--freeze", node)?;
    let node = Arc::clone(node);
    Ok(Guard::new(move || fsfreeze("--unfreeze", &node)))
}

fn fsfreeze(action: &str, node: &Node) -> Result<()> {
    let mount = node.socket_dir().join(WAL_MOUNT);
    command::run(Command::new("fsfreeze").arg(action).arg(mount), "", LIMIT).map(drop)
}
