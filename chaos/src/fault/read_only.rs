//! A primary that refuses writes: what a cloud does to a full disk.

use std::sync::Arc;

use crate::cluster::{Node, Result};

use super::Guard;

const PARAMETER: &str = "default_transaction_read_only";

pub(super) fn inject(node: &Arc<Node>) -> Result<Guard> {
    node.set(PARAMETER, "on")?;
    let node = Arc::clone(node);
    Ok(Guard::new(move || node.set(PARAMETER, "off")))
}
