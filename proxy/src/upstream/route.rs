//! Which server gets a statement. A pure function of the snapshot; it allocates nothing.
//!
//! Reads go to the standby with the fewest statements outstanding (*least request*; with the handful of standbys that
//! a cluster has, looking at all of them costs less than the two random choices that larger fleets need). Ties are
//! broken by rotation. Each role stands in for the other as far as it can: reads fall back to the primary where no
//! standby will do, and to standbys where there is no primary that answers.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use super::identity::{Lsn, UpstreamId};
use super::topology::{Health, Topology, UpstreamView, Writes};
use crate::config::{AfterWrite, Read, ReadFrom};
use crate::exchange::Cause;
use crate::sql::Lane;

/// Where reads may go: the part of `[read]` that decides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadPolicy {
    /// The preferred role.
    pub from: ReadFrom,
    /// A standby further behind answers no reads.
    pub max_lag: Duration,
    /// What a session must see of its own writes.
    pub after_write: AfterWrite,
    /// For how long after a write that holds.
    pub after_write_for: Duration,
}

impl From<&Read> for ReadPolicy {
    fn from(read: &Read) -> Self {
        Self {
            from: read.from,
            max_lag: read.max_lag,
            after_write: read.after_write,
            after_write_for: read.after_write_for,
        }
    }
}

/// The last write of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastWrite {
    /// When it was answered.
    pub at: Instant,
    /// A position at or behind its commit, where that is known.
    pub lsn: Option<Lsn>,
}

/// What a session contributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionView {
    /// Now.
    pub now: Instant,
    /// Its last write.
    pub last_write: Option<LastWrite>,
    /// Breaks ties: any number that changes from one checkout to the next.
    pub turn: usize,
}

/// Why there is no server for a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhyNot {
    /// A write, or a read that nothing else may answer, and no primary is known.
    NoPrimary {
        /// What is wrong with the server that should be it.
        cause: Cause,
    },
    /// A write, and none has been seen to commit on the primary yet.
    Unproven {
        /// What the last attempt met.
        failed: Option<Cause>,
    },
    /// A write, and several servers of one timeline take writes.
    SplitBrain,
    /// A read for standbys only, and no standby can be used.
    NoStandby,
    /// A read that a standby has to answer, and those that answer are further behind than it may see.
    Late,
    /// A read that must see a write of its session, and no server that can be used is known to have it.
    NotCaughtUp,
}

impl WhyNot {
    /// Whether waiting for the end of a failover may help. A stall is never waited for, nor is what people must mend.
    pub const fn is_worth_holding(self) -> bool {
        match self {
            Self::NoPrimary { .. } | Self::Unproven { failed: None } => true,
            Self::Unproven { failed: Some(_) }
            | Self::SplitBrain
            | Self::NoStandby
            | Self::Late
            | Self::NotCaughtUp => false,
        }
    }

    /// What is wrong, in the words of breakers.
    pub fn cause(self) -> Cause {
        match self {
            Self::Unproven { failed } => failed.unwrap_or(Cause::Unknown),
            Self::NoPrimary { cause } => cause,
            Self::NoStandby => Cause::Unreachable,
            Self::SplitBrain | Self::Late | Self::NotCaughtUp => Cause::Unknown,
        }
    }

    /// The word that stands in labels and files.
    pub const fn word(self) -> &'static str {
        match self {
            Self::NoPrimary { .. } => "no_primary",
            Self::Unproven { .. } => "unproven",
            Self::SplitBrain => "split_brain",
            Self::NoStandby => "no_standby",
            Self::Late => "late",
            Self::NotCaughtUp => "not_caught_up",
        }
    }
}

impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPrimary { .. } => "no primary is known",
            Self::Unproven { .. } => "no write has been seen to commit on the new primary yet",
            Self::SplitBrain => "several servers take writes on the same timeline",
            Self::NoStandby => "no standby can be used",
            Self::Late => "no standby is recent enough (read.max_lag)",
            Self::NotCaughtUp => "no server is known to have the session's last write",
        })
    }
}

/// Chooses a server. `outstanding` says how many statements one has under way.
///
/// # Errors
/// There is none; see [`WhyNot`].
#[inline]
pub fn route(
    topology: &Topology,
    lane: Lane,
    policy: &ReadPolicy,
    session: &SessionView,
    outstanding: impl Fn(UpstreamId) -> usize,
) -> Result<UpstreamId, WhyNot> {
    match lane {
        Lane::Write => write(topology),
        Lane::Read => read(topology, policy, session, outstanding),
    }
}

fn write(topology: &Topology) -> Result<UpstreamId, WhyNot> {
    match topology.writes() {
        Writes::Open => topology.primary().map(|view| view.id).ok_or_else(|| no_primary(topology)),
        Writes::NoPrimary => Err(no_primary(topology)),
        Writes::Unproven { failed } => Err(WhyNot::Unproven { failed }),
        Writes::SplitBrain => Err(WhyNot::SplitBrain),
    }
}

/// What is wrong with the server that was the primary, or else with one that does not answer. Where all answer, none was
/// promoted.
#[cold]
fn no_primary(topology: &Topology) -> WhyNot {
    let all = || topology.upstreams().iter().filter(|view| view.fenced.is_none());
    let silent = || all().filter(|view| !view.health.is_usable());
    let wrote = |view: &&UpstreamView| view.observed.is_some_and(|(seen, _)| !seen.in_recovery);
    let failing =
        silent().find(wrote).or_else(|| silent().find(|view| view.cause.is_some())).or(silent().next());
    let cause = match failing {
        Some(view) if matches!(view.health, Health::Unknown | Health::Proving) => Cause::Unknown,
        Some(view) => view.cause.unwrap_or(Cause::Unreachable),
        None if all().any(|view| wrote(&view)) => Cause::Unknown,
        None => Cause::InRecovery,
    };
    WhyNot::NoPrimary { cause }
}

fn read(
    topology: &Topology,
    policy: &ReadPolicy,
    session: &SessionView,
    outstanding: impl Fn(UpstreamId) -> usize,
) -> Result<UpstreamId, WhyNot> {
    let primary = topology.primary();
    // What was not asked yet is not held against it: with static roles that is how it starts.
    let answering = primary.filter(|view| !matches!(view.health, Health::Silent | Health::Down));
    let recent = session
        .last_write
        .filter(|write| session.now.saturating_duration_since(write.at) < policy.after_write_for);
    let standby = |wanted: Option<Lsn>| least(topology, policy.max_lag, wanted, session.turn, &outstanding);
    match (policy.after_write, recent) {
        (AfterWrite::Primary, Some(_)) => return primary.map(|view| view.id).ok_or(WhyNot::NotCaughtUp),
        (AfterWrite::Lsn, Some(write)) => {
            // Without a position only the primary is known to have it.
            let caught_up = write.lsn.filter(|_| policy.from != ReadFrom::Primary || answering.is_none());
            let chosen = caught_up.and_then(|lsn| standby(Some(lsn)));
            return chosen.or(primary.map(|view| view.id)).ok_or(WhyNot::NotCaughtUp);
        }
        (AfterWrite::Any, _) | (_, None) => {}
    }
    let primary = primary.or_else(|| any_of_several(topology));
    let late = || topology.upstreams().iter().any(UpstreamView::is_standby).then_some(WhyNot::Late);
    let nowhere = || late().unwrap_or_else(|| no_primary(topology));
    match policy.from {
        ReadFrom::Primary => match answering {
            Some(view) => Ok(view.id),
            None => standby(None).or(primary.map(|view| view.id)).ok_or_else(nowhere),
        },
        ReadFrom::PreferStandby => standby(None).or(primary.map(|view| view.id)).ok_or_else(nowhere),
        ReadFrom::Standby => standby(None).ok_or_else(|| late().unwrap_or(WhyNot::NoStandby)),
    }
}

/// Where several take writes and none is the primary, all have what was written before they parted.
fn any_of_several(topology: &Topology) -> Option<&UpstreamView> {
    let writes = |view: &UpstreamView| view.observed.is_some_and(|(seen, _)| !seen.in_recovery);
    let usable = |view: &&UpstreamView| view.fenced.is_none() && view.health.is_usable() && writes(view);
    (topology.writes() == Writes::SplitBrain).then(|| topology.upstreams().iter().find(usable)).flatten()
}

/// The standby with the fewest statements outstanding, of those that answer best.
fn least(
    topology: &Topology,
    max_lag: Duration,
    wanted: Option<Lsn>,
    turn: usize,
    outstanding: impl Fn(UpstreamId) -> usize,
) -> Option<UpstreamId> {
    let upstreams = topology.upstreams();
    let start = turn.checked_rem(upstreams.len())?;
    let (before, after) = upstreams.split_at(start);
    after
        .iter()
        .chain(before)
        .filter(|view| view.reads_within(max_lag) && has(view, wanted))
        .min_by_key(|view| (view.health, outstanding(view.id)))
        .map(|view| view.id)
}

fn has(view: &UpstreamView, wanted: Option<Lsn>) -> bool {
    wanted.is_none_or(|lsn| view.observed.is_some_and(|(seen, _)| seen.lsn >= lsn))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::UpstreamAddress;
    use crate::upstream::topology::{Epoch, Role};
    use crate::upstream::{Observation, SystemIdentifier, TimelineId};

    const POLICY: ReadPolicy = ReadPolicy {
        from: ReadFrom::PreferStandby,
        max_lag: Duration::from_secs(10),
        after_write: AfterWrite::Any,
        after_write_for: Duration::from_secs(5),
    };

    fn view(id: u32, role: Role, now: Instant) -> UpstreamView {
        let in_recovery = role == Role::Standby;
        let seen = Observation {
            system: SystemIdentifier(1),
            timeline: TimelineId(1),
            in_recovery,
            lsn: Lsn(100),
            lag: None,
            version_num: 180_000,
            read_only: false,
        };
        UpstreamView {
            id: UpstreamId(id),
            address: UpstreamAddress::Tcp { host: "db".to_owned(), port: 5432 },
            name: "db".into(),
            role: Some(role),
            epoch: Epoch(1),
            health: Health::Up,
            cause: None,
            fenced: None,
            lag: in_recovery.then_some(Duration::ZERO),
            observed: Some((seen, now)),
        }
    }

    const UNREACHABLE: WhyNot = WhyNot::NoPrimary { cause: Cause::Unreachable };

    struct Bench {
        now: Instant,
        views: Vec<UpstreamView>,
        primary: Option<UpstreamId>,
        writes: Writes,
        policy: ReadPolicy,
        last_write: Option<LastWrite>,
        outstanding: [usize; 3],
    }

    impl Bench {
        /// A primary, 0, and two standbys.
        fn new() -> Self {
            let now = Instant::now();
            let roles = [Role::Primary, Role::Standby, Role::Standby];
            Self {
                now,
                views: (0..).zip(roles).map(|(id, role)| view(id, role, now)).collect(),
                primary: Some(UpstreamId(0)),
                writes: Writes::Open,
                policy: POLICY,
                last_write: None,
                outstanding: [0; 3],
            }
        }

        fn without_primary() -> Self {
            let mut bench = Self { primary: None, writes: Writes::NoPrimary, ..Self::new() };
            bench.views[0].role = None;
            bench.views[0].health = Health::Down;
            bench
        }

        fn route(&self, lane: Lane, turn: usize) -> Result<u32, WhyNot> {
            let topology = Topology::new(Epoch(1), self.views.clone(), self.primary, self.writes);
            let session = SessionView { now: self.now, last_write: self.last_write, turn };
            let outstanding = |id: UpstreamId| self.outstanding[id.0 as usize];
            route(&topology, lane, &self.policy, &session, outstanding).map(|id| id.0)
        }

        fn read(&self) -> Result<u32, WhyNot> {
            self.route(Lane::Read, 0)
        }
    }

    #[test]
    fn writes_go_to_the_primary_or_nowhere() {
        // Any other server would refuse them at best, and diverge at worst.
        let mut bench = Bench::new();
        assert_eq!(bench.route(Lane::Write, 0), Ok(0));

        bench.writes = Writes::SplitBrain;
        assert_eq!(bench.route(Lane::Write, 0), Err(WhyNot::SplitBrain));

        bench.writes = Writes::Unproven { failed: None };
        assert_eq!(bench.route(Lane::Write, 0), Err(WhyNot::Unproven { failed: None }));

        assert_eq!(Bench::without_primary().route(Lane::Write, 0), Err(UNREACHABLE));
    }

    #[test]
    fn a_missing_primary_has_the_cause_that_its_server_has() {
        // Seen: after the password of the control user was changed all that anybody was told was "unreachable", and to look
        // at the HA tool.
        let mut bench = Bench::without_primary();
        let cause = |bench: &Bench| bench.route(Lane::Write, 0).map_err(WhyNot::cause);
        for found in [Cause::Auth, Cause::Overload, Cause::Frozen] {
            bench.views[0].cause = Some(found);
            assert_eq!(cause(&bench), Err(found));
        }

        // That of a standby that is down, too, is not that of the primary.
        bench.views[1].health = Health::Down;
        bench.views[1].cause = Some(Cause::Auth);
        bench.views.rotate_left(1);
        assert_eq!(cause(&bench), Err(Cause::Frozen));

        // All are there, and none was promoted.
        let mut demoted = Bench::without_primary();
        demoted.views.remove(0);
        assert_eq!(cause(&demoted), Err(Cause::InRecovery));

        // Nobody was asked yet.
        let mut unasked = Bench::without_primary();
        unasked.views.iter_mut().for_each(|view| (view.health, view.observed) = (Health::Unknown, None));
        assert_eq!(cause(&unasked), Err(Cause::Unknown));
    }

    #[test]
    fn reads_go_on_in_a_split_brain_that_was_there_first() {
        // Seen: after a restart in a split brain no server had a role, and reads were refused though both answered.
        let mut bench = Bench::without_primary();
        bench.writes = Writes::SplitBrain;
        let observed = bench.views[0].observed;
        for view in &mut bench.views[1..] {
            (view.role, view.observed) = (None, observed);
        }
        bench.views[1].health = Health::Down;
        // A standby that is late is none of them.
        bench.views[0] = UpstreamView { lag: Some(POLICY.max_lag * 2), ..view(0, Role::Standby, bench.now) };
        for from in [ReadFrom::Primary, ReadFrom::PreferStandby] {
            bench.policy.from = from;
            assert_eq!(bench.read(), Ok(2));
        }
        assert_eq!(bench.route(Lane::Write, 0), Err(WhyNot::SplitBrain));
    }

    #[test]
    fn reads_go_on_while_writes_are_closed() {
        // A new primary whose commits hang for a standby that is gone still answers reads.
        let mut bench = Bench::new();
        bench.policy.from = ReadFrom::Primary;
        for writes in [Writes::SplitBrain, Writes::Unproven { failed: Some(Cause::SyncStandby) }] {
            bench.writes = writes;
            assert_eq!(bench.read(), Ok(0));
        }
    }

    #[test]
    fn each_preference_falls_back_as_it_says() {
        // Rows: what is left. A read that is refused although a server could have answered it is an outage.
        use ReadFrom::{PreferStandby, Primary, Standby};
        for (primary, standbys, from, expected) in [
            (true, true, Primary, Ok(0)),
            (true, true, PreferStandby, Ok(1)),
            (true, true, Standby, Ok(1)),
            (true, false, Primary, Ok(0)),
            (true, false, PreferStandby, Ok(0)),
            (true, false, Standby, Err(WhyNot::NoStandby)),
            (false, true, Primary, Ok(1)),
            (false, true, PreferStandby, Ok(1)),
            (false, true, Standby, Ok(1)),
            (false, false, Primary, Err(UNREACHABLE)),
            (false, false, PreferStandby, Err(UNREACHABLE)),
            (false, false, Standby, Err(WhyNot::NoStandby)),
        ] {
            let mut bench = if primary { Bench::new() } else { Bench::without_primary() };
            bench.policy.from = from;
            if !standbys {
                bench.views.iter_mut().skip(1).for_each(|view| view.health = Health::Down);
            }
            assert_eq!(bench.read(), expected, "{primary} {standbys} {from:?}");
        }
    }

    #[test]
    fn a_primary_that_does_not_answer_leaves_reads_to_standbys() {
        // It is not given up for being slow, but readers need not wait for it while others answer.
        let mut bench = Bench::new();
        bench.policy.from = ReadFrom::Primary;
        for health in [Health::Silent, Health::Down] {
            bench.views[0].health = health;
            assert_eq!(bench.read(), Ok(1));
        }

        bench.views.truncate(1);
        assert_eq!(bench.read(), Ok(0));
    }

    #[test]
    fn standbys_beyond_the_lag_bound_or_of_unknown_lag_answer_nothing() {
        // Data of yesterday is worse than an error; and "unknown" may be yesterday.
        let mut bench = Bench::new();
        bench.views[1].lag = Some(POLICY.max_lag + Duration::from_millis(1));
        assert_eq!(bench.read(), Ok(2));

        bench.views[2].lag = None;
        assert_eq!(bench.read(), Ok(0));

        bench.views[2].lag = Some(POLICY.max_lag);
        assert_eq!(bench.read(), Ok(2));
    }

    #[test]
    fn a_read_that_finds_only_late_standbys_is_told_so() {
        // Seen: "no standby can be used, cause=unreachable" of one that answered and was 19 s behind. Whoever reads that
        // looks for a fault in the network.
        for (from, mut bench) in [
            (ReadFrom::Standby, Bench::new()),
            (ReadFrom::PreferStandby, Bench::without_primary()),
            (ReadFrom::Primary, Bench::without_primary()),
        ] {
            bench.policy.from = from;
            bench.views.iter_mut().for_each(|view| view.lag = Some(POLICY.max_lag * 2));

            assert_eq!(bench.read(), Err(WhyNot::Late), "{from:?}");
        }
        assert_eq!(WhyNot::Late.cause(), Cause::Unknown);
    }

    #[test]
    fn fenced_and_unproven_standbys_answer_nothing() {
        // A stale primary that was restarted as a standby still has rows that nobody else has.
        let mut bench = Bench::new();
        let fence = crate::upstream::Fence::OlderTimeline { timeline: TimelineId(1), newest: TimelineId(2) };
        bench.views[1].fenced = Some(fence);
        bench.views[2].health = Health::Proving;

        assert_eq!(bench.read(), Ok(0));
    }

    #[test]
    fn the_standby_with_the_fewest_outstanding_is_chosen_and_ties_rotate() {
        // Without rotation the first of two idle standbys gets every read of a quiet hour.
        let mut bench = Bench::new();
        let chosen: Vec<_> = (0..6).map(|turn| bench.route(Lane::Read, turn).unwrap()).collect();
        assert!(chosen.contains(&1) && chosen.contains(&2), "{chosen:?}");

        bench.outstanding = [0, 5, 4];
        assert!((0..6).all(|turn| bench.route(Lane::Read, turn) == Ok(2)));
    }

    #[test]
    fn load_spreads_evenly_when_each_read_is_counted() {
        // Least outstanding must even out whatever the rotation does.
        let mut bench = Bench::new();
        for turn in 0..100 {
            let chosen = bench.route(Lane::Read, turn).unwrap() as usize;
            bench.outstanding[chosen] += 1;
        }

        assert_eq!(bench.outstanding, [0, 50, 50]);
    }

    #[test]
    fn an_unsure_standby_is_the_second_choice() {
        // It missed a question: others first, but it is better than none.
        let mut bench = Bench::new();
        bench.views[1].health = Health::Unsure;
        bench.outstanding = [0, 0, 100];
        assert_eq!(bench.read(), Ok(2));

        bench.views[2].health = Health::Down;
        assert_eq!(bench.read(), Ok(1));
    }

    #[test]
    fn after_its_own_write_a_session_reads_from_the_primary_for_a_while() {
        // A standby may not have the row yet: the user sees his own comment vanish.
        let mut bench = Bench::new();
        bench.policy.after_write = AfterWrite::Primary;
        let write = |ago| Some(LastWrite { at: bench.now - Duration::from_secs(ago), lsn: None });
        let (recent, old) = (write(4), write(5));

        bench.last_write = recent;
        assert_eq!(bench.read(), Ok(0));

        bench.last_write = old;
        assert_eq!(bench.read(), Ok(1));
    }

    #[test]
    fn without_a_primary_such_a_read_is_refused_rather_than_answered_with_old_data() {
        // The application asked for its own writes.
        let mut bench = Bench::without_primary();
        bench.policy.after_write = AfterWrite::Primary;
        bench.last_write = Some(LastWrite { at: bench.now, lsn: None });

        assert_eq!(bench.read(), Err(WhyNot::NotCaughtUp));
    }

    #[test]
    fn by_position_a_standby_answers_when_it_has_the_write() {
        // Position 100 is what standbys were seen at; one byte more they are not known to have.
        let mut bench = Bench::new();
        bench.policy.after_write = AfterWrite::Lsn;
        for (lsn, expected) in [(Some(Lsn(100)), 1), (Some(Lsn(101)), 0), (None, 0)] {
            bench.last_write = Some(LastWrite { at: bench.now, lsn });
            assert_eq!(bench.read(), Ok(expected), "{lsn:?}");
        }

        let mut bench =
            Bench { last_write: bench.last_write, policy: bench.policy, ..Bench::without_primary() };
        bench.last_write = Some(LastWrite { at: bench.now, lsn: Some(Lsn(100)) });
        assert_eq!(bench.read(), Ok(1));
        bench.last_write = Some(LastWrite { at: bench.now, lsn: Some(Lsn(101)) });
        assert_eq!(bench.read(), Err(WhyNot::NotCaughtUp));
    }

    #[test]
    fn only_the_end_of_a_failover_is_worth_waiting_for() {
        // A stall that is held clogs what is in front of us; a split brain ends when people act.
        assert!(UNREACHABLE.is_worth_holding());
        assert!(WhyNot::Unproven { failed: None }.is_worth_holding());
        assert!(!WhyNot::Unproven { failed: Some(Cause::SyncStandby) }.is_worth_holding());
        assert!(!WhyNot::SplitBrain.is_worth_holding());
    }
}
