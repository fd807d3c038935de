//! A failover as high-availability tools do it: the old primary is dead, a standby takes over, and the old one
//! comes back as its standby. Where commits were synchronous before, they are again in the end.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::cluster::{Error, Node, Result, quote_literal};
use crate::run::{DATABASE, Fallen};

use super::Guard;

/// A standby that was just rewound needs a moment.
const IN_SYNC_WITHIN: Duration = Duration::from_secs(20);

const PARAMETER: &str = "synchronous_standby_names";

pub(super) fn inject(from: &Arc<Node>, to: &Arc<Node>, fallen: &Arc<Fallen>) -> Result<Guard> {
    let synchronous = from.setting(PARAMETER).is_some_and(|names| !names.is_empty());
    if synchronous {
        wait_in_sync(from, to)?;
    }
    from.kill()?;
    // What it waited for as a primary of earlier days is not there now.
    to.set(PARAMETER, "")?;
    to.promote()?;
    let (from, to, fallen) = (Arc::clone(from), Arc::clone(to), Arc::clone(fallen));
    Ok(Guard::new(move || {
        // The rewind undoes what nobody else has.
        fallen.add(&from.sql_offline(DATABASE, "SELECT key FROM writes")?);
        from.rewind(&to)?;
        if synchronous { to.set(PARAMETER, from.name()) } else { Ok(()) }
    }))
}

/// A tool that promises not to lose what was acknowledged promotes nobody else.
fn wait_in_sync(from: &Node, to: &Node) -> Result<()> {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_replication WHERE application_name = {} AND sync_state = 'sync'",
        quote_literal(to.name())
    );
    let start = Instant::now();
    while from.sql(&sql)? != "1" {
        if start.elapsed() > IN_SYNC_WITHIN {
            return Err(Error::Late { what: format!("{} in sync", to.name()), limit: IN_SYNC_WITHIN });
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
