//! Which servers must not be used, whatever they say: stale primaries and servers of another cluster.
//!
//! The rules need no agreement between sidecars: a promotion raises the timeline, so of two servers that both take
//! writes the one with the higher timeline was promoted later, and the other one is a leftover ("zombie"). The
//! identity to fence on is (system identifier, timeline, not in recovery); `TimeLineID` in `access/xlogdefs.h` and
//! `findNewestTimeLine` in `timeline.c` of PostgreSQL are what makes timelines rise.

use std::fmt;

use super::identity::{Observation, SystemIdentifier, TimelineId};

/// What a physical cluster has in common. Replication does not work across either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lineage {
    /// Made by initdb.
    pub system: SystemIdentifier,
    /// Major version.
    pub major: u32,
}

impl Lineage {
    /// That of an observed server.
    pub const fn of(seen: &Observation) -> Self {
        Self { system: seen.system, major: seen.major() }
    }
}

/// Why a server is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fence {
    /// It takes writes on a timeline that was left.
    OlderTimeline {
        /// The timeline that it writes.
        timeline: TimelineId,
        /// The newest that was seen.
        newest: TimelineId,
    },
    /// It belongs to another cluster.
    ForeignSystem {
        /// Its system identifier.
        system: SystemIdentifier,
        /// The one of the cluster.
        established: SystemIdentifier,
    },
    /// Its major version differs.
    ForeignVersion {
        /// Its major version.
        major: u32,
        /// The one of the cluster.
        established: u32,
    },
}

impl Fence {
    /// The word that stands in labels and files.
    pub const fn word(self) -> &'static str {
        match self {
            Self::OlderTimeline { .. } => "older_timeline",
            Self::ForeignSystem { .. } => "foreign_system",
            Self::ForeignVersion { .. } => "foreign_version",
        }
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OlderTimeline { timeline, newest } => {
                write!(f, "it takes writes on timeline {timeline}, and timeline {newest} has been seen")
            }
            Self::ForeignSystem { system, established } => {
                write!(f, "its system identifier is {system}, that of the cluster is {established}")
            }
            Self::ForeignVersion { major, established } => {
                write!(f, "its major version is {major}, that of the cluster is {established}")
            }
        }
    }
}

/// What an observed server is to be fenced for, given the cluster's lineage and the newest timeline that took writes.
///
/// `fenced` is what it was fenced for before: a stale primary that comes back in recovery is believed only when it
/// follows the newest timeline, since until then it may be replaying what it wrote alone.
pub fn judge(
    seen: &Observation,
    established: Lineage,
    newest: TimelineId,
    fenced: Option<Fence>,
) -> Option<Fence> {
    if seen.system != established.system {
        return Some(Fence::ForeignSystem { system: seen.system, established: established.system });
    }
    if seen.major() != established.major {
        return Some(Fence::ForeignVersion { major: seen.major(), established: established.major });
    }
    let stale = matches!(fenced, Some(Fence::OlderTimeline { .. })) || !seen.in_recovery;
    (stale && seen.timeline < newest).then_some(Fence::OlderTimeline { timeline: seen.timeline, newest })
}

/// The lineage that more than half of these servers have. A tie has none: guessing could be wrong for good.
pub fn majority(mut seen: impl Iterator<Item = Lineage> + Clone) -> Option<Lineage> {
    let all = seen.clone();
    let of = all.clone().count();
    seen.find(|candidate| all.clone().filter(|other| other == candidate).count() * 2 > of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::Lsn;

    const CLUSTER: Lineage = Lineage { system: SystemIdentifier(7), major: 18 };
    const NEWEST: TimelineId = TimelineId(5);

    fn seen(system: u64, timeline: u32, in_recovery: bool, version_num: u32) -> Observation {
        Observation {
            system: SystemIdentifier(system),
            timeline: TimelineId(timeline),
            in_recovery,
            lsn: Lsn(1),
            lag: None,
            version_num,
            read_only: false,
        }
    }

    #[test]
    fn a_stale_primary_is_fenced_and_a_late_standby_is_not() {
        // A standby reports its timeline only at its next restart point; fencing it would end reads at each failover.
        let zombie = judge(&seen(7, 4, false, 180_001), CLUSTER, NEWEST, None);
        let late = judge(&seen(7, 4, true, 180_001), CLUSTER, NEWEST, None);

        assert_eq!(zombie, Some(Fence::OlderTimeline { timeline: TimelineId(4), newest: NEWEST }));
        assert_eq!(late, None);
    }

    #[test]
    fn a_stale_primary_stays_fenced_in_recovery_until_it_follows_the_newest_timeline() {
        // Restarted as a standby it still has the rows that it accepted alone; reads there would show them.
        let fence = Fence::OlderTimeline { timeline: TimelineId(4), newest: NEWEST };

        assert_eq!(judge(&seen(7, 4, true, 180_001), CLUSTER, NEWEST, Some(fence)), Some(fence));
        assert_eq!(judge(&seen(7, 5, true, 180_001), CLUSTER, NEWEST, Some(fence)), None);
    }

    #[test]
    fn another_cluster_is_fenced_whatever_its_timeline_and_role() {
        // A higher timeline of a foreign cluster must not win, and its standbys must answer no reads.
        for (timeline, in_recovery) in [(1, false), (9, false), (9, true)] {
            let fence = judge(&seen(8, timeline, in_recovery, 180_001), CLUSTER, NEWEST, None);
            assert!(matches!(fence, Some(Fence::ForeignSystem { .. })), "{fence:?}");
        }
    }

    #[test]
    fn another_major_version_is_fenced_and_another_minor_is_not() {
        // Minor versions differ during every rolling update.
        let major = judge(&seen(7, 5, true, 150_020), CLUSTER, NEWEST, None);

        assert!(matches!(major, Some(Fence::ForeignVersion { major: 15, established: 18 })));
        assert_eq!(judge(&seen(7, 5, true, 180_009), CLUSTER, NEWEST, None), None);
    }

    #[test]
    fn a_majority_is_more_than_half() {
        // With "at least half" the order of the list would decide a tie.
        let other = Lineage { system: SystemIdentifier(8), major: 18 };

        assert_eq!(majority([CLUSTER, other, CLUSTER].into_iter()), Some(CLUSTER));
        assert_eq!(majority([CLUSTER].into_iter()), Some(CLUSTER));
        assert_eq!(majority([CLUSTER, other].into_iter()), None);
        assert_eq!(majority([].into_iter()), None);
    }
}
