//! When a stall pages somebody: once for a server, whatever it takes of its lanes.
//!
//! Writes page at once. Reads that stop because the server as a whole does wait a moment for the writes, which stop
//! too: they are one incident, named after the writes, and it is over when both lanes are as before.

use std::time::Duration;

use tokio::time::Instant;

use crate::sql::Lane;

/// How long reads wait for writes. A server that answers nothing is found out by the probes of both lanes, which are a
/// second apart at most.
const TOGETHER: Duration = Duration::from_secs(2);

/// Whether something stops one lane or all of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    Lane,
    Server,
}

/// What of one lane somebody was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Known {
    refused: bool,
    /// Of what the page speaks, as of now.
    told: Option<Extent>,
}

/// The incident of one server. Pure: says what is to be done.
#[derive(Debug, Default)]
pub(super) struct Pager {
    read: Known,
    write: Known,
    /// Since when a page about reads waits.
    waits: Option<Instant>,
}

impl Pager {
    /// A lane is refused, or still is, for a reason that may have become known. Whether it pages now; again is no harm.
    pub(super) fn refused(&mut self, lane: Lane, extent: Extent, now: Instant) -> bool {
        match lane {
            Lane::Write => {
                self.write = Known { refused: true, told: Some(extent) };
                let untold = self.read.refused && self.read.told.is_none() && !self.covers_reads();
                self.waits = untold.then(|| self.waits.unwrap_or(now));
                true
            }
            Lane::Read => {
                self.read.refused = true;
                if self.covers_reads() && self.read.told.is_none() {
                    return false;
                }
                if extent == Extent::Server && self.read.told.is_none() {
                    self.waits.get_or_insert(now);
                    return false;
                }
                self.read.told = Some(extent);
                true
            }
        }
    }

    /// Whether reads that stop are part of what was told about writes.
    fn covers_reads(&self) -> bool {
        self.write.told == Some(Extent::Server)
    }

    /// Whether it was said that the lane is refused, since it was served last.
    pub(super) fn knows(&self, lane: Lane) -> bool {
        match lane {
            Lane::Read => self.read.refused,
            Lane::Write => self.write.refused,
        }
    }

    /// Whether a page about reads has waited long enough.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        let due = self.waits.is_some_and(|since| now.duration_since(since) >= TOGETHER);
        if due {
            self.waits = None;
            self.read.told = Some(Extent::Server);
        }
        due
    }

    /// A lane is served again: the lanes whose incidents are over. One of an earlier process may be among them.
    pub(super) fn served(&mut self, lane: Lane) -> impl Iterator<Item = Lane> + use<> {
        let stands_for_reads = self.covers_reads() && self.read.refused && self.read.told.is_none();
        let (read, write) = match lane {
            Lane::Read => {
                self.waits = None;
                self.read = Known::default();
                (true, self.write.told.is_some() && !self.write.refused)
            }
            Lane::Write => {
                self.write.refused = false;
                (false, !stands_for_reads)
            }
        };
        self.write.told = self.write.told.filter(|_| !write);
        [(Lane::Read, read), (Lane::Write, write)].into_iter().filter_map(|(lane, over)| over.then_some(lane))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(pager: &mut Pager, lane: Lane) -> Vec<Lane> {
        pager.served(lane).collect()
    }

    #[test]
    fn a_server_that_stops_as_a_whole_pages_once_and_is_over_when_both_lanes_are() {
        // Two pages for one dead server: somebody looks for a second one.
        let (mut pager, now) = (Pager::default(), Instant::now());

        assert!(!pager.refused(Lane::Read, Extent::Server, now));
        assert!(pager.refused(Lane::Write, Extent::Server, now + TOGETHER / 2));
        assert!(!pager.refused(Lane::Read, Extent::Server, now + TOGETHER));
        assert!(!pager.is_due(now + 2 * TOGETHER));

        assert!(over(&mut pager, Lane::Write).is_empty());
        assert_eq!(over(&mut pager, Lane::Read), [Lane::Read, Lane::Write]);
        // The other way round, too.
        assert!(pager.refused(Lane::Write, Extent::Server, now));
        assert!(!pager.refused(Lane::Read, Extent::Server, now));
        assert_eq!(over(&mut pager, Lane::Read), [Lane::Read]);
        assert_eq!(over(&mut pager, Lane::Write), [Lane::Write]);
    }

    #[test]
    fn reads_that_stop_alone_page_too() {
        // Nobody writes to a standby: to wait for its writes for ever would be to page nobody.
        let (mut pager, now) = (Pager::default(), Instant::now());

        assert!(!pager.refused(Lane::Read, Extent::Server, now));
        assert!(!pager.is_due(now + TOGETHER / 2));
        assert!(pager.is_due(now + TOGETHER));
        assert!(!pager.is_due(now + 2 * TOGETHER));

        assert_eq!(over(&mut pager, Lane::Read), [Lane::Read]);
        assert!(pager.refused(Lane::Read, Extent::Lane, now));
    }

    #[test]
    fn writes_that_stop_after_reads_are_an_incident_of_their_own() {
        // Whoever was told of reads alone must hear that it got worse.
        let (mut pager, now) = (Pager::default(), Instant::now());
        assert!(pager.refused(Lane::Read, Extent::Lane, now));

        assert!(pager.refused(Lane::Write, Extent::Lane, now));

        assert_eq!(over(&mut pager, Lane::Write), [Lane::Write]);
        assert_eq!(over(&mut pager, Lane::Read), [Lane::Read]);
    }

    #[test]
    fn reads_that_stop_in_an_incident_of_writes_alone_page_too() {
        // Seen in review: writes hung for a standby, and half an hour later the server froze. Nobody was told that reads had
        // stopped, too.
        let (mut pager, now) = (Pager::default(), Instant::now());
        assert!(pager.refused(Lane::Write, Extent::Lane, now));

        assert!(!pager.refused(Lane::Read, Extent::Server, now));
        assert!(pager.is_due(now + TOGETHER));

        assert_eq!(over(&mut pager, Lane::Write), [Lane::Write]);
        assert_eq!(over(&mut pager, Lane::Read), [Lane::Read]);

        // Also if the incident was about the server before.
        let mut narrower = Pager::default();
        narrower.refused(Lane::Write, Extent::Server, now);
        assert!(!narrower.refused(Lane::Read, Extent::Server, now));
        assert!(narrower.refused(Lane::Write, Extent::Lane, now));
        assert!(narrower.is_due(now + TOGETHER));

        // Unless writes are found to stop for that reason, too, before reads have paged.
        assert!(pager.refused(Lane::Write, Extent::Lane, now));
        assert!(!pager.refused(Lane::Read, Extent::Server, now));
        assert!(pager.refused(Lane::Write, Extent::Server, now));
        assert!(!pager.is_due(now + TOGETHER));
        assert!(over(&mut pager, Lane::Write).is_empty());
        assert_eq!(over(&mut pager, Lane::Read), [Lane::Read, Lane::Write]);
    }

    #[test]
    fn reads_that_are_back_before_the_page_page_nobody() {
        // A hiccup of a second is nobody's business at night.
        let (mut pager, now) = (Pager::default(), Instant::now());
        assert!(!pager.refused(Lane::Read, Extent::Server, now));

        assert_eq!(over(&mut pager, Lane::Read), [Lane::Read]);

        assert!(!pager.is_due(now + TOGETHER));
    }
}
