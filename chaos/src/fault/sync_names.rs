//! Commits wait for a standby that is not there: what a failover leaves behind that keeps the old primary's
//! configuration.

use std::sync::Arc;

use crate::cluster::{Node, Result};

use super::Guard;

const PARAMETER: &str = "synchronous_standby_names";

pub(super) fn inject(node: &Arc<Node>) -> Result<Guard> {
    let before = node.sql(&format!("SHOW {PARAMETER}"))?;
    node.set(PARAMETER, "gone")?;
    let node = Arc::clone(node);
    Ok(Guard::new(move || node.set(PARAMETER, &before)))
}
