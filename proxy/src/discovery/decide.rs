//! From what is observed to who serves: the rules, as one pure state machine with time as an argument.
//!
//! * **Promises:** there is never more than one primary; a server that was fenced is not used while it says the same of
//!   itself; after a change of primary there is none for `settle`; the last server of a role is not given up for
//!   being slow; the epoch never falls. The rules hold for any order of events.
//! * **Does not** agree with other sidecars: each reads the same facts (timelines, Patroni's lease), and those are what
//!   makes a fleet agree.
//! * **Overflow:** nothing grows with events; the history of positions has 64 entries.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::decision::{Decision, Evidence, What, Why};
use super::leader::{Leader, PatroniAnswer};
use super::member::{Member, Peers, Proof, Standing};
use super::observe::{Connection, ObserveError};
use crate::config::{Roles, UpstreamAddress};
use crate::exchange::Cause;
use crate::upstream::membership::{self, Force};
use crate::upstream::topology::{Epoch, Role};
use crate::upstream::{Lineage, Lsn, Observation, TimelineId, UpstreamId};

/// How long a server is asked more often after something hinted that it changed.
const HINT: Duration = Duration::from_secs(2);
/// Positions of the primary that are remembered, to tell how far standbys are behind ...
const POSITIONS: usize = 64;
/// ... at this distance at least. With the pace of one second they reach back a minute.
const POSITION_EVERY: Duration = Duration::from_millis(250);

/// For so long after the first of them a standby's own word counts: what was just written may be on its way.
const ON_ITS_WAY: Duration = Duration::from_secs(2);

/// What the rules depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Who says which server is the primary.
    pub roles: Roles,
    /// The least time from one change of primary to the next.
    pub settle: Duration,
}

/// What a sidecar remembers beyond its end: see [`Record`](super::record).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// Which cluster it is.
    pub lineage: Lineage,
    /// The newest timeline that was seen to take writes.
    pub newest: TimelineId,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A server was asked who it is.
    Observed {
        /// Which.
        upstream: UpstreamId,
        /// On which connection.
        connection: Connection,
        /// When the question was asked.
        asked: Instant,
        /// What it said.
        result: Result<Observation, ObserveError>,
    },
    /// A write was tried, by us or by a session.
    WriteCommitted {
        /// Where.
        upstream: UpstreamId,
        /// When it was begun.
        started: Instant,
        /// A position at or behind its commit, or why it did not commit.
        result: Result<Lsn, Cause>,
    },
    /// A session saw something that does not fit what is known: `in_hot_standby` changed, 25006, a lost connection.
    Hint {
        /// Whose session.
        upstream: UpstreamId,
    },
    /// The name of a server leads to other addresses than before, and not to all of the old ones.
    Moved {
        /// Whose.
        upstream: UpstreamId,
    },
    /// Patroni was asked.
    Patroni(PatroniAnswer),
    /// There is a new configuration.
    Reloaded {
        /// The servers that it lists.
        upstreams: Vec<UpstreamAddress>,
        /// Whether guards are overruled.
        force: Force,
        /// The rules that it sets.
        rules: Rules,
    },
    /// Time passed.
    Tick,
}

/// Which cluster it is, and how far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Established {
    pub(super) lineage: Lineage,
    pub(super) newest: TimelineId,
}

/// The primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Elected {
    pub(super) id: UpstreamId,
    /// What it wrote when it was elected; `None` where roles are static, and until it says so where they were.
    pub(super) timeline: Option<TimelineId>,
    /// Whether it was announced that writes may go there.
    pub(super) opened: bool,
}

/// Whether several servers take writes on the newest timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claims {
    One,
    Several,
}

/// All that is known. See the [module](self).
#[derive(Debug, Clone)]
pub struct State {
    pub(super) rules: Rules,
    pub(super) members: Vec<Member>,
    next_id: u32,
    pub(super) epoch: Epoch,
    pub(super) established: Option<Established>,
    /// Whether it was announced that no cluster has a majority.
    pub(super) undecided: bool,
    pub(super) primary: Option<Elected>,
    /// The last primary, for evidence.
    pub(super) former: Option<Arc<str>>,
    /// When the primary changed last; the first one of all is no change.
    pub(super) changed_at: Option<Instant>,
    /// Whether there ever was one.
    pub(super) elected_before: bool,
    pub(super) claims: Claims,
    pub(super) leader: Leader,
    pub(super) members_settled_at: Option<Instant>,
    /// Since when writes are not open.
    pub(super) closed_since: Option<Instant>,
    /// Positions of the primary.
    pub(super) positions: VecDeque<(Instant, Lsn)>,
}

impl State {
    /// Nothing is known yet, but for what an earlier process remembered.
    pub fn new(rules: Rules, upstreams: &[UpstreamAddress], memory: Option<Memory>, now: Instant) -> Self {
        let mut state = Self {
            rules,
            members: Vec::new(),
            next_id: 0,
            epoch: Epoch::default(),
            established: memory.map(|Memory { lineage, newest }| Established { lineage, newest }),
            undecided: false,
            primary: None,
            former: None,
            changed_at: None,
            elected_before: false,
            claims: Claims::One,
            leader: Leader::new(),
            members_settled_at: None,
            closed_since: Some(now),
            positions: VecDeque::with_capacity(POSITIONS),
        };
        state.members = upstreams.iter().map(|address| state.join(address)).collect();
        state
    }

    /// Takes in what happened at `now`. Returns what follows from it, in order; the caller announces that before it
    /// publishes [`topology`](Self::topology).
    pub fn step(&mut self, event: Event, now: Instant) -> Vec<Decision> {
        let mut out = Vec::new();
        match event {
            // That answer was on its way when the others were taken off the list.
            Event::Observed { .. } if self.is_one_alone() => {}
            Event::Observed { upstream, connection, asked, result } => match result {
                Ok(seen) => self.answered(upstream, connection, asked, seen, now, &mut out),
                Err(error) => self.failed(upstream, asked, error, now, &mut out),
            },
            Event::WriteCommitted { upstream, started, result } => self.tried(upstream, started, result),
            Event::Hint { upstream } => self.doubt(upstream, now),
            Event::Moved { upstream } => self.moved(upstream, now, &mut out),
            Event::Patroni(answer) => self.patroni(answer, now, &mut out),
            Event::Reloaded { upstreams, force, rules } => {
                self.reload(&upstreams, force, rules, now, &mut out);
            }
            Event::Tick => {}
        }
        self.reconcile(now, &mut out);
        out
    }

    pub(super) fn member(&self, id: UpstreamId) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }

    pub(super) fn member_mut(&mut self, id: UpstreamId) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| member.id == id)
    }

    pub(super) fn is_primary(&self, id: UpstreamId) -> bool {
        self.primary.is_some_and(|elected| elected.id == id)
    }

    /// Whether there is one server, which takes everything and is asked nothing.
    pub(super) fn is_one_alone(&self) -> bool {
        self.rules.roles == Roles::Static && self.members.len() == 1
    }

    fn join(&mut self, address: &UpstreamAddress) -> Member {
        let id = UpstreamId(self.next_id);
        self.next_id += 1;
        Member::new(id, address.clone(), self.epoch)
    }

    /// Raises the epoch; connections to this server that were opened before are void.
    pub(super) fn raise_epoch(&mut self, id: UpstreamId) {
        self.epoch.0 += 1;
        let epoch = self.epoch;
        if let Some(member) = self.member_mut(id) {
            member.epoch = epoch;
        }
    }

    pub(super) fn decision(&self, id: Option<UpstreamId>, what: What, why: Why, now: Instant) -> Decision {
        let member = id.and_then(|id| self.member(id));
        Decision {
            at: now,
            epoch: self.epoch,
            upstream: member.map(|member| Arc::clone(&member.name)),
            what,
            why,
            evidence: Evidence {
                before: None,
                now: member.and_then(|member| member.seen).map(|(seen, _)| seen),
                failure: member.and_then(|member| member.failure),
                primary_before: self.former.clone(),
                newest: self.established.map(|established| established.newest),
            },
        }
    }

    fn answered(
        &mut self,
        id: UpstreamId,
        connection: Connection,
        asked: Instant,
        seen: Observation,
        now: Instant,
        out: &mut Vec<Decision>,
    ) {
        let Some(member) = self.member_mut(id).filter(|member| member.is_current(asked)) else { return };
        let before = member.seen.map(|(seen, _)| seen);
        let was_proving = matches!(member.standing, Standing::Proving { .. });
        member.standing = member.standing.answered(connection, now);
        member.see(seen, asked, now);
        member.down_since = None;
        let admitted = was_proving && member.standing == Standing::Up && member.fenced.is_none();
        self.note_position(id, seen, now);
        let lag = seen.in_recovery.then(|| self.lag(&seen, now)).flatten();
        if let Some(member) = self.member_mut(id) {
            member.lag = lag;
        }
        if admitted {
            self.raise_epoch(id);
            let role = if seen.in_recovery { Role::Standby } else { Role::Primary };
            let mut decision = self.decision(Some(id), What::Admitted(role), Why::Proven, now);
            decision.evidence.before = before;
            out.push(decision);
        }
    }

    fn failed(
        &mut self,
        id: UpstreamId,
        asked: Instant,
        error: ObserveError,
        now: Instant,
        out: &mut Vec<Decision>,
    ) {
        let peers = self.peers(id);
        let Some(member) = self.member_mut(id).filter(|member| member.is_current(asked)) else { return };
        let was_standby = member.is_usable_standby();
        member.failure = Some(error);
        member.standing = member.standing.failed(error.meaning(), peers);
        if member.standing != Standing::Down {
            return;
        }
        member.down_since.get_or_insert(now);
        member.forget_proof();
        if was_standby {
            let why = if error.is_death() { Why::Dead } else { Why::Silent };
            out.push(self.decision(Some(id), What::Ejected(Role::Standby), why, now));
        }
    }

    /// Whether another server has the role of this one and can be used.
    fn peers(&self, id: UpstreamId) -> Peers {
        if self.is_primary(id) {
            return Peers::None;
        }
        let claims = self.member(id).is_some_and(Member::claims_writes);
        let others = self.members.iter().any(|other| other.id != id && other.is_usable_standby());
        if claims || others { Peers::Others } else { Peers::Last }
    }

    fn tried(&mut self, id: UpstreamId, started: Instant, result: Result<Lsn, Cause>) {
        let Some(member) = self.member_mut(id) else { return };
        if member.writable_since.is_none_or(|since| started < since) {
            return;
        }
        match (result, member.proof) {
            (Ok(lsn), _) => member.proof = Proof::Committed(lsn),
            // What fails later is for the breaker.
            (Err(_), Proof::Committed(_)) => {}
            (Err(cause), Proof::None | Proof::Failed(_)) => member.proof = Proof::Failed(cause),
        }
    }

    fn doubt(&mut self, id: UpstreamId, now: Instant) {
        if let Some(member) = self.member_mut(id) {
            member.doubted_until = Some(now + HINT);
        }
    }

    fn moved(&mut self, id: UpstreamId, now: Instant, out: &mut Vec<Decision>) {
        if self.member(id).is_none() {
            return;
        }
        self.raise_epoch(id);
        out.push(self.decision(Some(id), What::AddressChanged, Why::Moved, now));
        if self.is_primary(id) && self.rules.roles != Roles::Static {
            self.lose_primary(Why::Moved, now, out);
        }
        if let Some(member) = self.member_mut(id) {
            let (address, epoch, fence) = (member.address.clone(), member.epoch, member.fenced);
            *member = Member { moved_at: Some(now), ..Member::new(id, address, epoch) };
            // It was about the server that was there before.
            out.extend(fence.map(|fence| self.decision(Some(id), What::Unfenced(fence), Why::Moved, now)));
        }
    }

    fn reload(
        &mut self,
        upstreams: &[UpstreamAddress],
        force: Force,
        rules: Rules,
        now: Instant,
        out: &mut Vec<Decision>,
    ) {
        if let Err(refused) =
            membership::judge(&self.topology(), upstreams, force, self.members_settled_at, now)
        {
            out.push(self.decision(None, What::MembersRefused(refused), Why::Guard, now));
            return;
        }
        self.rules = rules;
        let mut old = std::mem::take(&mut self.members);
        let mut added = Vec::new();
        for address in upstreams {
            let kept = old.iter().position(|member| member.address == *address).map(|at| old.remove(at));
            let member = kept.unwrap_or_else(|| {
                let member = self.join(address);
                added.push(Arc::clone(&member.name));
                member
            });
            self.members.push(member);
        }
        let removed: Vec<_> = old.iter().map(|member| Arc::clone(&member.name)).collect();
        if added.is_empty() && removed.is_empty() {
            return;
        }
        if self.is_one_alone() {
            self.forget_answers();
        }
        self.members_settled_at = Some(now + self.rules.settle);
        out.push(self.decision(None, What::MembersChanged { added, removed }, Why::Reloaded, now));
    }

    /// What was said last grows old where nobody is asked, and would count again once somebody is.
    fn forget_answers(&mut self) {
        for member in &mut self.members {
            let unasked = Member::new(member.id, member.address.clone(), member.epoch);
            // Whoever was told of a fence is told that it is over when roles are listed.
            *member = Member { fenced: member.fenced, ..unasked };
        }
        self.primary = self.primary.map(|elected| Elected { timeline: None, ..elected });
        self.positions.clear();
    }

    fn note_position(&mut self, id: UpstreamId, seen: Observation, now: Instant) {
        let due = self.positions.back().is_none_or(|(at, _)| now.duration_since(*at) >= POSITION_EVERY);
        if !self.is_primary(id) || seen.in_recovery || !due {
            return;
        }
        if self.positions.len() == POSITIONS {
            self.positions.pop_front();
        }
        self.positions.push_back((now, seen.lsn));
    }

    /// How far a standby was behind when the primary was last observed: the age of the newest position that it has.
    /// That counts a standby that follows nobody, which says of itself that it has replayed all it received.
    fn lag(&self, seen: &Observation, now: Instant) -> Option<Duration> {
        let Some((first_at, _)) = self.positions.front() else { return seen.lag };
        let newest_at = self.positions.back().map_or(*first_at, |(at, _)| *at);
        if let Some((at, _)) = self.positions.iter().rev().find(|(_, lsn)| *lsn <= seen.lsn) {
            return Some(newest_at.duration_since(*at));
        }
        // It is behind all that is remembered. That it has replayed all it received says nothing then, but the age of
        // what it replayed last does.
        let word = seen.lag.filter(|lag| !lag.is_zero() || now.duration_since(*first_at) < ON_ITS_WAY);
        word.map(|lag| lag.max(newest_at.duration_since(*first_at)))
    }
}
