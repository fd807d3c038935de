//! Somebody else's leak: idle sessions up to `max_connections`.

use std::sync::Arc;

use crate::cluster::{Node, Result};
use crate::run::DATABASE;

use super::Guard;
use super::holder::Holder;

pub(super) fn inject(node: &Arc<Node>, leave: u32) -> Result<Guard> {
    let free = "SELECT current_setting('max_connections')::int - count(*) FROM pg_stat_activity \
                WHERE backend_type = 'client backend'";
    let free: u32 = node.sql(free)?.parse().unwrap_or(0);
    let sleep = "SELECT pg_sleep(100000)";
    let holders: Result<Vec<Holder>> =
        (0..free.saturating_sub(leave)).map(|_| Holder::start(node, DATABASE, sleep)).collect();
    let holders = holders?;
    Ok(Guard::new(move || {
        drop(holders);
        Ok(())
    }))
}
