//! A restart, which the guard has nothing to add to.

use std::sync::Arc;

use crate::cluster::{Node, Result, StopMode};

use super::Guard;

pub(super) fn inject(node: &Arc<Node>, immediate: bool) -> Result<Guard> {
    node.restart(if immediate { StopMode::Immediate } else { StopMode::Fast })?;
    Ok(Guard::new(|| Ok(())))
}
