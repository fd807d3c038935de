//! What the database holds in the end.

use std::time::Duration;

use crate::cluster::Result;
use crate::history::RunClock;

use super::Row;
use super::rig::{DATABASE, Rig};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Truth {
    pub(super) rows: Option<Vec<Row>>,
    pub(super) orders: Option<Vec<i64>>,
    pub(super) strays: Option<u64>,
    pub(super) trouble: Option<String>,
}

/// Reads it from the server that is primary now. Blocks.
pub(super) fn read(rig: &Rig, clock: RunClock) -> Truth {
    match rows(rig, clock) {
        Ok(rows) => Truth { rows: Some(rows), orders: orders(rig), strays: strays(rig), trouble: None },
        Err(error) => {
            Truth { trouble: Some(format!("the database could not be read: {error}")), ..Truth::default() }
        }
    }
}

fn rows(rig: &Rig, clock: RunClock) -> Result<Vec<Row>> {
    // A COMMIT that runs late makes a late write of an INSERT that ran in time.
    let sql = "SELECT key, (extract(epoch FROM coalesce(pg_xact_commit_timestamp(xmin), applied_at)) \
               * 1000000)::bigint FROM writes";
    let text = rig.authority()?.sql_in(DATABASE, sql)?;
    Ok(text.lines().filter_map(|line| parse(line, clock.epoch_us())).collect())
}

fn parse(line: &str, epoch_us: i64) -> Option<Row> {
    let (key, applied) = line.split_once('|')?;
    let since = applied.parse::<i64>().ok()?.saturating_sub(epoch_us);
    Some(Row { key: key.parse().ok()?, applied: Duration::from_micros(u64::try_from(since).unwrap_or(0)) })
}

fn strays(rig: &Rig) -> Option<u64> {
    let counted = rig.stranger.as_ref()?.sql_in(DATABASE, "SELECT count(*) FROM writes");
    counted.ok()?.parse().ok()
}

/// The service's table is its own business: a key is found in whatever column holds it.
fn orders(rig: &Rig) -> Option<Vec<i64>> {
    rig.edge.as_ref()?;
    let sql = "SELECT (regexp_match(o::text, 'order-(\\d+)'))[1] FROM orders o";
    let text = rig.authority().ok()?.sql_in(DATABASE, sql).ok()?;
    Some(text.lines().filter_map(|line| line.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_rows_are_counted_from_the_start_of_the_run() {
        // They are compared with answers, which are.
        let row = parse("7|1000250000", 1_000_000_000).unwrap();

        assert_eq!(row, Row { key: 7, applied: Duration::from_millis(250) });
    }
}
