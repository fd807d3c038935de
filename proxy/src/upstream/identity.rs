//! What makes a server the one it is: system identifier, timeline, position, and whether it is in recovery.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

/// One configured server, for the life of the process: an address that is removed and added again gets a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UpstreamId(pub u32);

/// `system_identifier` of `pg_control`: made by initdb, shared by a primary and all its physical standbys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemIdentifier(pub u64);

impl FromStr for SystemIdentifier {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        // SQL has no unsigned integers.
        text.parse::<i64>().map(|signed| Self(signed.cast_unsigned()))
    }
}

impl fmt::Display for SystemIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A history of the write-ahead log. Each promotion starts a new one with a higher number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimelineId(pub u32);

impl TimelineId {
    /// The first eight digits of a WAL file's name (`XLogFileName` in `xlog_internal.h`).
    pub(crate) fn of_wal_file(name: &str) -> Option<Self> {
        u32::from_str_radix(name.get(..8)?, 16).ok().map(Self)
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A position in the write-ahead log, in bytes. Written as PostgreSQL's `pg_lsn`: two hexadecimal halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// A text is no position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LsnError {
    /// The slash is missing.
    #[error("a WAL position has a slash")]
    NoSlash,
    /// A half has another character than hexadecimal digits, or has no or more than eight of them.
    #[error("half of a WAL position is no hexadecimal number of 32 bits")]
    Half,
}

impl FromStr for Lsn {
    type Err = LsnError;

    fn from_str(text: &str) -> Result<Self, LsnError> {
        let (high, low) = text.split_once('/').ok_or(LsnError::NoSlash)?;
        let half = |text: &str| {
            // The standard parser takes signs, too.
            let digits = text.len() <= 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            u64::from_str_radix(text, 16).ok().filter(|_| digits).ok_or(LsnError::Half)
        };
        Ok(Self(half(high)? << 32 | half(low)?))
    }
}

/// What a server said about itself at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// Which cluster it belongs to.
    pub system: SystemIdentifier,
    /// The timeline that it writes, or replays. On a standby it may be reported late, never early.
    pub timeline: TimelineId,
    /// Whether it is a standby (`pg_is_in_recovery()`).
    pub in_recovery: bool,
    /// Insert position of a primary, replayed position of a standby.
    pub lsn: Lsn,
    /// How far a standby says it is behind; `None` on a primary, and where it cannot tell.
    pub lag: Option<Duration>,
    /// `server_version_num`, as 180001.
    pub version_num: u32,
    /// `transaction_read_only` of a fresh transaction.
    pub read_only: bool,
}

impl Observation {
    /// The major version: 18 of 180001. Servers before 10 had two parts and are not supported.
    pub const fn major(&self) -> u32 {
        self.version_num / 10_000
    }
}

impl fmt::Display for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = if self.in_recovery { "standby" } else { "primary" };
        write!(
            f,
            "{role} of system {} on timeline {} at {}, version {}",
            self.system, self.timeline, self.lsn, self.version_num
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_position_is_written_as_postgresql_writes_it() {
        // Leading zeros or lower case would not compare equal with what is in a server's log.
        assert_eq!(Lsn(0x0000_0016_B374_D848).to_string(), "16/B374D848");
        assert_eq!(Lsn(0).to_string(), "0/0");
    }

    #[test]
    fn what_is_no_position_is_refused() {
        // A lenient parser would make position zero of it, which every standby has reached.
        for text in ["", "/", "16", "16/", "/1", "16/100000000", "x/1", "1/2/3", "-1/1", "+1/1"] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_major_version_is_all_but_the_last_four_digits() {
        // Comparing whole versions would fence a standby that was patched first.
        let seen = |version_num| Observation {
            system: SystemIdentifier(1),
            timeline: TimelineId(1),
            in_recovery: false,
            lsn: Lsn(1),
            lag: None,
            version_num,
            read_only: false,
        };

        assert_eq!((seen(180_001).major(), seen(150_020).major()), (18, 15));
    }

    #[test]
    fn a_system_identifier_above_half_of_the_range_is_not_negative() {
        // SQL shows it as a signed number.
        assert_eq!("-1".parse(), Ok(SystemIdentifier(u64::MAX)));
    }

    proptest! {
        #[test]
        fn every_position_survives_its_text(position in any::<u64>()) {
            // Swapped halves or a lost digit would come back different.
            prop_assert_eq!(Lsn(position).to_string().parse::<Lsn>().unwrap(), Lsn(position));
        }
    }
}
