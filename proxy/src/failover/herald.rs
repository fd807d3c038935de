//! Writes decisions down, and pages somebody for those that need a person.

use std::fmt::Write as _;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

use super::{Pending, Told};
use crate::alerts::{Alert, Alerts, Health, Key};
use crate::discovery::{Announce, Decision, What, Why};
use crate::guard;
use crate::journal::{self, Kind, Subject};
use crate::sql::Lane;
use crate::upstream::topology::{self, Role, Topology, Writes};
use crate::upstream::{Fence, UpstreamView};

/// A failover is over before this; somebody should look at what is not.
const NO_PRIMARY_AFTER: Duration = Duration::from_secs(3);

/// Told of each decision before it takes effect.
pub(super) struct Herald {
    told: Told,
    pending: Pending,
}

impl Herald {
    pub(super) const fn new(told: Told, pending: Pending) -> Self {
        Self { told, pending }
    }
}

impl Announce for Herald {
    fn announce(&mut self, decision: &Decision) {
        if decision.why == Why::FirstOfList && decision.evidence.primary_before.is_none() {
            // The configuration says so, and nothing was decided.
            return;
        }
        let what = decision.what.word();
        let upstream = decision.upstream.as_deref().unwrap_or("");
        let (why, epoch) = (decision.why.word(), decision.epoch.0);
        if decision.what.is_alarming() {
            tracing::warn!(what, why, upstream, epoch, evidence = %evidence(decision), "topology");
        } else {
            tracing::info!(what, why, upstream, epoch, evidence = %evidence(decision), "topology");
        }
        let subject = Subject { upstream: decision.upstream.as_deref().map(Into::into), lane: None };
        let entry = journal::Decision::new(Kind::Topology)
            .about(subject)
            .change(before(decision), what)
            .evidence(&evidence(decision));
        let recorded = self.told.journal.record(entry);
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).push(recorded);
        page(decision, &self.told.alerts);
    }
}

/// What the server was before, in a word.
const fn before(decision: &Decision) -> &'static str {
    match &decision.evidence.before {
        Some(seen) if seen.in_recovery => "standby",
        Some(_) => "primary",
        None => "",
    }
}

fn evidence(decision: &Decision) -> String {
    let mut text = format!("{decision}; why={} epoch={}", decision.why.word(), decision.epoch);
    let known = &decision.evidence;
    if let Some(seen) = &known.now {
        let _ = write!(text, "; it says: {seen}");
    }
    if let Some(failure) = &known.failure {
        let _ = write!(text, "; last question: {failure}");
    }
    if let Some(primary) = &known.primary_before {
        let _ = write!(text, "; primary before: {primary}");
    }
    if let Some(newest) = known.newest {
        let _ = write!(text, "; newest timeline: {newest}");
    }
    text
}

fn split_brain(summary: &str) -> Alert {
    Alert::new("split_brain", summary)
}

fn no_primary(summary: &str) -> Alert {
    Alert::new("no_primary", summary)
}

fn hybrid(upstream: Option<&str>, summary: &str) -> Alert {
    Alert { upstream: upstream.map(Into::into), ..Alert::new("hybrid_cluster", summary) }
}

fn stale(upstream: Option<&str>, summary: &str) -> Alert {
    Alert { upstream: upstream.map(Into::into), ..Alert::new("stale_primary", summary) }
}

fn fence_alert(fence: Fence, upstream: Option<&str>, summary: &str) -> Alert {
    match fence {
        Fence::OlderTimeline { .. } => stale(upstream, summary),
        Fence::ForeignSystem { .. } | Fence::ForeignVersion { .. } => hybrid(upstream, summary),
    }
}

/// Alerts that are there for as long as a server is fenced.
fn keys_of(upstream: &str) -> [Key; 2] {
    [stale(Some(upstream), "").key(), hybrid(Some(upstream), "").key()]
}

fn page(decision: &Decision, alerts: &Alerts) {
    let (upstream, summary) = (decision.upstream.as_deref(), decision.to_string());
    match &decision.what {
        What::SplitBrain { .. } => alerts.fire(split_brain(&summary)),
        What::SplitBrainOver => alerts.resolve(&split_brain("").key()),
        What::Undecided => alerts.fire(hybrid(None, &summary)),
        What::ClusterEstablished(_) => alerts.resolve(&hybrid(None, "").key()),
        What::RolesListed => {
            alerts.resolve(&split_brain("").key());
            alerts.resolve(&hybrid(None, "").key());
        }
        What::Fenced(fence) => alerts.fire(fence_alert(*fence, upstream, &summary)),
        What::Unfenced(_) => {
            for key in keys_of(upstream.unwrap_or_default()) {
                alerts.resolve(&key);
            }
        }
        What::MembersChanged { removed, .. } => {
            for key in removed.iter().flat_map(|name| keys_of(name)) {
                alerts.resolve(&key);
            }
        }
        What::PrimaryElected
        | What::WritesOpened { .. }
        | What::PrimaryLost
        | What::Admitted(_)
        | What::Ejected(_)
        | What::MembersRefused(_)
        | What::AddressChanged
        | What::PatroniLost
        | What::PatroniBack => {}
    }
}

/// Pages for what lasts, and ends incidents of an earlier process.
#[derive(Debug)]
pub(super) struct Vigil {
    closed_since: Option<Instant>,
    paged: bool,
    settled: bool,
}

impl Vigil {
    pub(super) const fn new(now: Instant) -> Self {
        Self { closed_since: Some(now), paged: false, settled: false }
    }

    pub(super) fn look(&mut self, topology: &Topology, alerts: &Alerts, now: Instant) {
        match topology.writes() {
            Writes::Open => {
                self.closed_since = None;
                if std::mem::take(&mut self.paged) || !self.settled {
                    alerts.resolve(&no_primary("").key());
                }
                if !std::mem::replace(&mut self.settled, true) {
                    settle(topology, alerts);
                }
            }
            // That has a page of its own.
            Writes::SplitBrain => self.closed_since = Some(now),
            Writes::NoPrimary | Writes::Unproven { .. } => {
                let asked = topology.upstreams().iter().any(is_asked);
                let since = *self.closed_since.get_or_insert(now);
                if !asked {
                    self.closed_since = Some(now);
                } else if !self.paged && now.duration_since(since) >= NO_PRIMARY_AFTER {
                    self.paged = true;
                    alerts.fire(no_primary("no upstream takes writes"));
                }
            }
        }
    }
}

fn is_asked(view: &UpstreamView) -> bool {
    view.health != topology::Health::Unknown
}

/// What an earlier process may have paged for and is not so now.
fn settle(topology: &Topology, alerts: &Alerts) {
    alerts.reconcile(&split_brain("").key(), Health::Healthy);
    alerts.reconcile(&hybrid(None, "").key(), Health::Healthy);
    for view in topology.upstreams().iter().filter(|view| view.fenced.is_none()) {
        for key in keys_of(&view.name) {
            alerts.reconcile(&key, Health::Healthy);
        }
    }
    // Those take no writes now, so none that goes well will say that it is over.
    for view in topology.upstreams().iter().filter(|view| view.role != Some(Role::Primary)) {
        alerts.reconcile(&guard::stall(&view.name, Lane::Write), Health::Healthy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::UpstreamAddress;
    use crate::upstream::topology::Epoch;
    use crate::upstream::{SystemIdentifier, UpstreamId};
    use crate::watchdog::Watchdog;

    fn alerts() -> Alerts {
        let never = crate::config::Watchdog { stall: Duration::ZERO, exit_after: Duration::ZERO };
        Alerts::unsent(Watchdog::new(1, never))
    }

    fn open(alerts: &Alerts) -> Vec<Key> {
        alerts.open().iter().map(|incident| incident.alert.key()).collect()
    }

    fn view(index: u32, role: Role) -> UpstreamView {
        let address = UpstreamAddress::Tcp { host: format!("pg{index}"), port: 5432 };
        UpstreamView {
            id: UpstreamId(index),
            name: address.to_string().into(),
            address,
            role: Some(role),
            epoch: Epoch(1),
            health: topology::Health::Up,
            cause: None,
            fenced: None,
            lag: None,
            observed: None,
        }
    }

    fn decision(upstream: Option<&str>, what: What) -> Decision {
        let why = Why::Identity;
        let (upstream, evidence) = (upstream.map(Into::into), crate::discovery::Evidence::default());
        Decision { at: Instant::now(), epoch: Epoch(1), upstream, what, why, evidence }
    }

    #[test]
    fn a_stall_of_writes_from_before_a_restart_is_over_when_another_server_takes_them() {
        // Seen: the primary stalled, the sidecar was restarted, and the server was a standby by then. The incident
        // stayed open for good, since no write would ever go well there.
        let alerts = alerts();
        let [standby, primary] = ["pg0:5432", "pg1:5432"].map(|name| guard::stall(name, Lane::Write));
        for key in [&standby, &primary] {
            let Key { alert, upstream, lane } = key.clone();
            alerts.fire(Alert { lane, upstream, ..Alert::new(alert, "") });
        }
        let views = vec![view(0, Role::Standby), view(1, Role::Primary)];
        let topology = Topology::new(Epoch(1), views, Some(UpstreamId(1)), Writes::Open);

        Vigil::new(Instant::now()).look(&topology, &alerts, Instant::now());

        assert_eq!(open(&alerts), [primary]);
    }

    #[test]
    fn what_was_found_by_asking_pages_nobody_once_roles_are_listed() {
        // Nobody is asked who it is from then on for what follows from it, so nothing else would end these incidents.
        let alerts = alerts();
        let fence = Fence::ForeignSystem { system: SystemIdentifier(8), established: SystemIdentifier(7) };
        page(&decision(None, What::SplitBrain { claimants: Vec::new() }), &alerts);
        page(&decision(None, What::Undecided), &alerts);
        page(&decision(Some("pg1:5432"), What::Fenced(fence)), &alerts);
        assert_eq!(open(&alerts).len(), 3);

        page(&decision(None, What::RolesListed), &alerts);
        page(&decision(Some("pg1:5432"), What::Unfenced(fence)), &alerts);

        assert!(open(&alerts).is_empty());
    }
}
