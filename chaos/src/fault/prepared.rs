//! A transaction that was prepared and forgotten: its locks outlive its session, and even a restart.

use std::sync::Arc;

use crate::cluster::{Node, Result};
use crate::run::DATABASE;

use super::Guard;

pub(super) fn inject(node: &Arc<Node>) -> Result<Guard> {
    let prepare = "BEGIN; SELECT key FROM hot WHERE id = 1 FOR UPDATE; PREPARE TRANSACTION 'orphan'";
    node.sql_in(DATABASE, prepare)?;
    let node = Arc::clone(node);
    Ok(Guard::new(move || node.sql_in(DATABASE, "ROLLBACK PREPARED 'orphan'").map(drop)))
}
