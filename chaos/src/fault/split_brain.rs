//! Two primaries: the old one never learned of the promotion.

use std::sync::Arc;

use crate::cluster::{Node, Result, StopMode};
use crate::run::{DATABASE, Fallen};

use super::Guard;

pub(super) fn inject(from: &Arc<Node>, to: &Arc<Node>, fallen: &Arc<Fallen>) -> Result<Guard> {
    to.promote()?;
    let (from, to, fallen) = (Arc::clone(from), Arc::clone(to), Arc::clone(fallen));
    Ok(Guard::new(move || {
        fallen.add(&from.sql_in(DATABASE, "SELECT key FROM writes")?);
        from.stop(StopMode::Fast)?;
        from.rewind(&to)
    }))
}
