//! A forgotten transaction holds a lock that many writers need.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::cluster::{Error, Node, Result};
use crate::run::DATABASE;

use super::Guard;
use super::holder::Holder;

const LIMIT: Duration = Duration::from_secs(10);

pub(super) fn inject(node: &Arc<Node>, table: bool) -> Result<Guard> {
    let lock = if table {
        "LOCK TABLE hot IN SHARE ROW EXCLUSIVE MODE"
    } else {
        "SELECT key FROM hot WHERE id = 1 FOR UPDATE"
    };
    let holder = Holder::start(node, DATABASE, &format!("BEGIN; {lock}; SELECT pg_sleep(100000)"))?;
    wait_held(node)?;
    Ok(Guard::new(move || {
        drop(holder);
        Ok(())
    }))
}

fn wait_held(node: &Node) -> Result<()> {
    const HELD: &str =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE 'BEGIN;%'";
    let start = Instant::now();
    while node.sql(HELD)? == "0" {
        if start.elapsed() > LIMIT {
            return Err(Error::Late { what: "the lock".to_owned(), limit: LIMIT });
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
