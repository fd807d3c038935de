//! A primary becomes a standby where it stands: sessions end with 57P01, then come 57P03, refused
//! connections, and reads that work while writes fail with 25006.

use std::fs;
use std::sync::Arc;

use crate::cluster::{Doing, Node, Result, StopMode};

use super::Guard;

pub(super) fn inject(node: &Arc<Node>) -> Result<Guard> {
    node.stop(StopMode::Fast)?;
    let signal = node.data_dir().join("standby.signal");
    fs::write(&signal, "").doing_to("write", &signal)?;
    node.resume()?;
    let node = Arc::clone(node);
    Ok(Guard::new(move || node.promote()))
}
