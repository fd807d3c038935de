//! After each event: which cluster it is, who is fenced, who is the primary.

use std::sync::Arc;

use tokio::time::Instant;

use super::decide::{Claims, Elected, Established, State};
use super::decision::{Decision, What, Why};
use super::leader::Verdict;
use super::member::{Member, Proof, Standing};
use super::observe::Connection;
use crate::config::Roles;
use crate::upstream::fencing::{self, Lineage};
use crate::upstream::{TimelineId, UpstreamId};

impl State {
    /// Draws the conclusions. Idempotent: a second call right after changes nothing.
    pub(super) fn reconcile(&mut self, now: Instant, out: &mut Vec<Decision>) {
        self.expire_patroni(now, out);
        if self.rules.roles == Roles::Static {
            self.follow_list(now, out);
        } else {
            self.establish(now, out);
            self.fence(now, out);
            self.check_primary(now, out);
            self.count_claims(now, out);
            self.elect(now, out);
        }
        self.open_writes(now, out);
        let open = self.primary.is_some_and(|elected| elected.opened) && self.claims == Claims::One;
        self.closed_since = if open { None } else { self.closed_since.or(Some(now)) };
    }

    /// Roles are static: the first is the primary, whatever it says.
    fn follow_list(&mut self, now: Instant, out: &mut Vec<Decision>) {
        self.overrule(now, out);
        let Some(first) = self.members.first().map(|member| member.id) else { return };
        if self.is_primary(first) {
            return;
        }
        self.lose_primary(Why::Removed, now, out);
        self.make_primary(first, None, Why::FirstOfList, now, out);
    }

    /// What was found out by asking does not count where the list says who is what.
    fn overrule(&mut self, now: Instant, out: &mut Vec<Decision>) {
        self.established = None;
        let claims = std::mem::replace(&mut self.claims, Claims::One);
        let undecided = std::mem::take(&mut self.undecided);
        if undecided || claims == Claims::Several {
            out.push(self.decision(None, What::RolesListed, Why::Reloaded, now));
        }
        let fenced = self.members.iter_mut().filter_map(|member| Some((member.id, member.fenced.take()?)));
        for (id, fence) in fenced.collect::<Vec<_>>() {
            out.push(self.decision(Some(id), What::Unfenced(fence), Why::Reloaded, now));
        }
    }

    /// Whether somebody was not asked yet, or not often enough to do without its word.
    fn is_anybody_to_be_heard(&self) -> bool {
        let may_answer = |standing| matches!(standing, Standing::Unasked | Standing::Unsure { .. });
        self.members.iter().any(|member| member.is_unheard() && may_answer(member.standing))
    }

    /// Finds out which cluster it is: once, and again only when every server says that it is another one.
    fn establish(&mut self, now: Instant, out: &mut Vec<Decision>) {
        let said = self.members.iter().filter_map(Member::said).map(Lineage::of);
        // The dead have a vote, too: else one of a tie would win when the other blinks.
        let ever = self.members.iter().filter_map(|member| member.seen).map(|(seen, _)| Lineage::of(&seen));
        let (lineage, why) = match self.established {
            None if self.is_anybody_to_be_heard() || ever.clone().next().is_none() => return,
            None => (fencing::majority(ever), Why::Majority),
            Some(old) => {
                let all = said.clone().count() == self.members.len();
                let new = said.clone().next().filter(|new| all && said.clone().all(|other| other == *new));
                match new.filter(|new| *new != old.lineage) {
                    Some(new) => (Some(new), Why::Unanimous),
                    None => return,
                }
            }
        };
        let Some(lineage) = lineage else {
            if !self.undecided {
                self.undecided = true;
                out.push(self.decision(None, What::Undecided, Why::Majority, now));
            }
            return;
        };
        if self.established.is_some() {
            self.lose_primary(Why::Identity, now, out);
        }
        self.undecided = false;
        self.established = Some(Established { lineage, newest: TimelineId(0) });
        out.push(self.decision(None, What::ClusterEstablished(lineage), why, now));
    }

    fn fence(&mut self, now: Instant, out: &mut Vec<Decision>) {
        let Some(mut established) = self.established else { return };
        let writing = self.members.iter().filter_map(Member::said).filter(|seen| !seen.in_recovery);
        let newest =
            writing.filter(|seen| Lineage::of(seen) == established.lineage).map(|seen| seen.timeline).max();
        established.newest = established.newest.max(newest.unwrap_or(TimelineId(0)));
        self.established = Some(established);
        for index in 0..self.members.len() {
            self.fence_one(index, established, now, out);
        }
    }

    fn fence_one(&mut self, index: usize, established: Established, now: Instant, out: &mut Vec<Decision>) {
        let Some(member) = self.members.get_mut(index) else { return };
        let Some(seen) = member.said().copied() else { return };
        let before = member.fenced;
        let after = fencing::judge(&seen, established.lineage, established.newest, before);
        member.fenced = after;
        let id = member.id;
        match (before, after) {
            (None, Some(fence)) => {
                member.forget_proof();
                out.push(self.decision(Some(id), What::Fenced(fence), Why::Identity, now));
            }
            (Some(old), Some(new)) if old.word() != new.word() => {
                out.push(self.decision(Some(id), What::Fenced(new), Why::Identity, now));
            }
            (Some(fence), None) => {
                // What it was used for before says nothing about what it is now.
                member.standing = Standing::Down.answered(Connection::Kept, now);
                member.writable_since = (!seen.in_recovery).then_some(now);
                out.push(self.decision(Some(id), What::Unfenced(fence), Why::Identity, now));
            }
            (None, None) | (Some(_), Some(_)) => {}
        }
    }

    /// Whether the primary still is one.
    fn check_primary(&mut self, now: Instant, out: &mut Vec<Decision>) {
        let Some(elected) = self.primary else { return };
        if let Some(why) = self.objection(elected, now) {
            self.lose_primary(why, now, out);
        } else if elected.timeline.is_none() {
            // The list made it the primary, until roles were found out.
            let timeline = self.member(elected.id).and_then(Member::said).map(|said| said.timeline);
            self.primary = Some(Elected { timeline, ..elected });
        }
    }

    fn objection(&self, elected: Elected, now: Instant) -> Option<Why> {
        let Some(member) = self.member(elected.id) else { return Some(Why::Removed) };
        if member.fenced.is_some() {
            return Some(Why::Fenced);
        }
        match member.said() {
            // One that the list made the primary was perhaps never heard: only another that takes writes speaks against it.
            None if member.is_unheard() && self.claimants().next().is_none() => {}
            None if member.is_unheard() => return Some(Why::Silent),
            None => return Some(Why::Dead),
            Some(said) if said.in_recovery => return Some(Why::InRecovery),
            // Another server behind the same address.
            Some(said) if elected.timeline.is_some_and(|timeline| timeline != said.timeline) => {
                return Some(Why::Identity);
            }
            Some(_) => {}
        }
        match self.verdict(now) {
            Verdict::Probe | Verdict::Waiting => None,
            Verdict::Leader { id, .. } => (id != elected.id).then_some(Why::NotLeader),
            Verdict::Nobody => Some(Why::NotLeader),
        }
    }

    /// Those that take writes on the newest timeline, dead ones excepted.
    fn claimants(&self) -> impl Iterator<Item = &Member> {
        let newest = self.established.map(|established| established.newest);
        self.members
            .iter()
            .filter(move |member| member.claims_writes() && member.said().map(|seen| seen.timeline) == newest)
    }

    fn count_claims(&mut self, now: Instant, out: &mut Vec<Decision>) {
        let claims = if self.claimants().count() > 1 { Claims::Several } else { Claims::One };
        if self.claims == claims {
            return;
        }
        self.claims = claims;
        let what = match claims {
            Claims::Several => {
                let claimants = self.claimants().map(|member| Arc::clone(&member.name)).collect();
                What::SplitBrain { claimants }
            }
            Claims::One => What::SplitBrainOver,
        };
        out.push(self.decision(None, what, Why::Identity, now));
    }

    fn elect(&mut self, now: Instant, out: &mut Vec<Decision>) {
        let settled = self.changed_at.is_none_or(|at| now.duration_since(at) >= self.rules.settle);
        // A view with holes in it is no ground to choose on: what was not asked yet may be newer.
        if self.primary.is_some()
            || self.claims == Claims::Several
            || !settled
            || self.is_anybody_to_be_heard()
        {
            return;
        }
        let Some(candidate) = self.claimants().next() else { return };
        let id = candidate.id;
        let timeline = candidate.said().map(|seen| seen.timeline);
        if candidate.standing != Standing::Up {
            return;
        }
        let why = match self.verdict(now) {
            Verdict::Probe => Why::NewestTimeline,
            Verdict::Leader { id: leader, fresh } if fresh && leader == id => Why::PatroniLeader,
            Verdict::Leader { .. } | Verdict::Nobody | Verdict::Waiting => return,
        };
        self.make_primary(id, timeline, why, now, out);
    }

    fn make_primary(
        &mut self,
        id: UpstreamId,
        timeline: Option<TimelineId>,
        why: Why,
        now: Instant,
        out: &mut Vec<Decision>,
    ) {
        self.raise_epoch(id);
        if self.elected_before {
            self.changed_at = Some(now);
        }
        self.elected_before = true;
        self.primary = Some(Elected { id, timeline, opened: false });
        self.positions.clear();
        out.push(self.decision(Some(id), What::PrimaryElected, why, now));
        self.former = self.member(id).map(|member| Arc::clone(&member.name));
    }

    /// There is no primary from here on. Connections to it are void.
    pub(super) fn lose_primary(&mut self, why: Why, now: Instant, out: &mut Vec<Decision>) {
        let Some(elected) = self.primary.take() else { return };
        self.raise_epoch(elected.id);
        let mut decision = self.decision(Some(elected.id), What::PrimaryLost, why, now);
        decision.upstream = decision.upstream.or_else(|| self.former.clone());
        out.push(decision);
    }

    fn open_writes(&mut self, now: Instant, out: &mut Vec<Decision>) {
        let Some(elected) = self.primary.filter(|elected| !elected.opened) else { return };
        let proof = self.member(elected.id).map(|member| member.proof);
        let opened = match proof {
            Some(Proof::Committed(lsn)) => {
                out.push(self.decision(Some(elected.id), What::WritesOpened { lsn }, Why::Committed, now));
                true
            }
            // Nobody asked for proof.
            Some(Proof::None | Proof::Failed(_)) | None => self.rules.roles == Roles::Static,
        };
        self.primary = Some(Elected { opened, ..elected });
    }
}
