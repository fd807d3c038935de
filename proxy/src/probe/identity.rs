//! Which server it is: cluster, timeline, role, position.

use std::time::Duration;

use tokio::time::Instant;

use super::looks::text;
use super::{Control, ControlError};
use crate::backend::connection::Row;
pub use crate::upstream::{Lsn, SystemIdentifier, TimelineId};

/// All of it is open to every role. `pg_is_in_recovery` is evaluated once, in a subquery that its volatility
/// keeps apart: a promotion in between must not mix two answers.
///
/// A primary's timeline is taken from the name of the WAL file that it writes, since the control file keeps
/// the old one until the first checkpoint after a promotion. A standby's is the larger of the two that its
/// control file knows, for the same reason.
const STATEMENT: &str = "SELECT s.standby::text, \
    (SELECT system_identifier FROM pg_catalog.pg_control_system()), \
    CASE WHEN NOT s.standby THEN pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()) END, \
    (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()), \
    (SELECT min_recovery_end_timeline FROM pg_catalog.pg_control_recovery()), \
    CASE WHEN s.standby THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END, \
    CASE WHEN s.standby THEN pg_catalog.pg_last_wal_receive_lsn() END, \
    (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() \
        - CASE WHEN s.standby THEN pg_catalog.pg_last_xact_replay_timestamp() END) \
        * 1000)::pg_catalog.int8, \
    pg_catalog.current_setting('server_version_num'), \
    pg_catalog.current_setting('transaction_read_only') \
    FROM (SELECT pg_catalog.pg_is_in_recovery() AS standby) s";

/// Role and position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Not in recovery.
    Primary {
        /// Where it writes.
        written: Lsn,
    },
    /// In recovery.
    Standby {
        /// Up to where it shows what was done.
        replayed: Lsn,
        /// Age of what it shows. Zero when all that was received is replayed, even if nothing is received any
        /// more; `None` when it has replayed no transaction since its start.
        lag: Option<Duration>,
    },
}

/// What a server says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Of which cluster it is.
    pub system: SystemIdentifier,
    /// Which history it follows.
    pub timeline: TimelineId,
    /// Role and position.
    pub standing: Standing,
    /// `server_version_num`: 150004 is 15.4.
    pub version: u32,
    /// Whether transactions are read-only unless they ask for more; always so on a standby.
    pub read_only: bool,
}

impl Identity {
    /// Asks the server, in one query.
    ///
    /// # Errors
    /// As [`Control::ask`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn ask(control: &Control, deadline: Instant) -> Result<Self, ControlError> {
        let rows = control.ask(STATEMENT, &[], deadline).await?;
        rows.first().and_then(read).ok_or(ControlError::Protocol)
    }

    /// Whether it is a standby.
    pub fn is_in_recovery(&self) -> bool {
        matches!(self.standing, Standing::Standby { .. })
    }

    /// What is written on a primary, replayed on a standby.
    pub fn lsn(&self) -> Lsn {
        match self.standing {
            Standing::Primary { written: lsn } | Standing::Standby { replayed: lsn, .. } => lsn,
        }
    }

    /// The major version: 15.
    pub fn major(&self) -> u32 {
        // As documented at PQserverVersion.
        self.version / 10_000
    }
}

fn read(row: &Row) -> Option<Identity> {
    let [standby, system, wal_file, checkpoint, recovery, lsn, received, age, version, read_only] =
        row.as_slice()
    else {
        return None;
    };
    let lsn: Lsn = text(lsn)?.parse().ok()?;
    let (standing, timeline) = if text(standby)? == "true" {
        let received = text(received).and_then(|text| text.parse::<Lsn>().ok());
        let age = text(age).and_then(|text| text.parse::<i64>().ok());
        // The clocks of two machines differ: an age below zero is none.
        let age = age.map(|age| Duration::from_millis(u64::try_from(age).unwrap_or(0)));
        let lag = if received == Some(lsn) { Some(Duration::ZERO) } else { age };
        let known = [checkpoint, recovery].map(|column| text(column).and_then(|it| it.parse().ok()));
        let timeline = known.into_iter().flatten().max().map(TimelineId)?;
        (Standing::Standby { replayed: lsn, lag }, timeline)
    } else {
        (Standing::Primary { written: lsn }, TimelineId::of_wal_file(text(wal_file)?)?)
    };
    Some(Identity {
        system: text(system)?.parse().ok()?,
        timeline,
        standing,
        version: text(version)?.parse().ok()?,
        read_only: text(read_only)? == "on",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(columns: [Option<&str>; 10]) -> Row {
        columns.map(|column| column.map(|text| text.as_bytes().to_vec())).to_vec()
    }

    fn standby(replayed: &str, received: Option<&str>, age: Option<&str>) -> Option<Identity> {
        let standby = Some("true");
        let version = Some("150020");
        read(&row([
            standby,
            Some("7"),
            None,
            Some("2"),
            Some("3"),
            Some(replayed),
            received,
            age,
            version,
            Some("on"),
        ]))
    }

    #[test]
    fn a_primary_is_on_the_timeline_that_it_writes() {
        // Right after a promotion the control file still names the old one, and the new primary would be
        // fenced.
        let row = row([
            Some("false"),
            Some("7"),
            Some("0000000A0000000000000003"),
            Some("9"),
            Some("0"),
            Some("0/3000148"),
            None,
            None,
            Some("180001"),
            Some("off"),
        ]);

        let identity = read(&row).unwrap();

        assert_eq!(identity.timeline, TimelineId(10));
        assert_eq!(identity.standing, Standing::Primary { written: Lsn(0x300_0148) });
        assert_eq!((identity.major(), identity.read_only), (18, false));
    }

    #[test]
    fn a_standby_is_on_the_newest_timeline_that_it_knows() {
        // Its last restart point may be older than the switch.
        assert_eq!(standby("0/5", None, None).unwrap().timeline, TimelineId(3));
    }

    #[test]
    fn a_standby_that_has_replayed_everything_has_no_lag() {
        // On a quiet primary the last transaction may be hours old.
        let lag = |identity: Option<Identity>| match identity.unwrap().standing {
            Standing::Standby { lag, .. } => lag,
            Standing::Primary { .. } => panic!("a standby"),
        };

        assert_eq!(lag(standby("0/5", Some("0/5"), Some("3600000"))), Some(Duration::ZERO));
        assert_eq!(lag(standby("0/5", Some("0/6"), Some("1500"))), Some(Duration::from_millis(1500)));
        assert_eq!(lag(standby("0/5", Some("0/6"), Some("-3"))), Some(Duration::ZERO));
        assert_eq!(lag(standby("0/5", None, None)), None);
    }
}
