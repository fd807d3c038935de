//! The cable to a server is pulled: no FIN, no RST, and nobody answers.

use std::sync::Arc;

use crate::cluster::{Cable, Result};

use super::Guard;

pub(super) fn inject(cable: &Arc<Cable>) -> Result<Guard> {
    cable.pull()?;
    let cable = Arc::clone(cable);
    Ok(Guard::new(move || cable.plug()))
}
