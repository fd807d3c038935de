//! Writes decisions down, and pages somebody for those that need a person.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::{Arc, PoisonError};
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
    /// Whether it was known once who takes writes, or that nobody does.
    known: bool,
    paged: bool,
    settled: bool,
    /// Servers of which it is known what is left of their incidents.
    heard: BTreeSet<Arc<str>>,
}

impl Vigil {
    pub(super) const fn new(now: Instant) -> Self {
        Self { closed_since: Some(now), known: false, paged: false, settled: false, heard: BTreeSet::new() }
    }

    pub(super) fn look(&mut self, topology: &Topology, alerts: &Alerts, now: Instant) {
        match topology.writes() {
            Writes::Open => {
                self.closed_since = None;
                self.known = true;
                if std::mem::take(&mut self.paged) || !self.settled {
                    alerts.resolve(&no_primary("").key());
                }
                self.settle(topology, alerts);
            }
            Writes::SplitBrain => {
                // That has a page of its own.
                self.closed_since = Some(now);
                self.known = true;
            }
            Writes::NoPrimary | Writes::Unproven { .. } => {
                // Until somebody logs in it is only known of the dead that they take no writes.
                self.known |= topology.upstreams().iter().all(is_asked);
                let since = *self.closed_since.get_or_insert(now);
                if !self.known {
                    self.closed_since = Some(now);
                } else if !self.paged && now.duration_since(since) >= NO_PRIMARY_AFTER {
                    self.paged = true;
                    alerts.fire(no_primary("no upstream takes writes"));
                }
            }
        }
    }

    /// What an earlier process may have paged for and is not so now. Of a server that is known when it is heard.
    fn settle(&mut self, topology: &Topology, alerts: &Alerts) {
        if !std::mem::replace(&mut self.settled, true) {
            alerts.reconcile(&split_brain("").key(), Health::Healthy);
            alerts.reconcile(&hybrid(None, "").key(), Health::Healthy);
        }
        for view in topology.upstreams() {
            if is_heard(view) && self.heard.insert(Arc::clone(&view.name)) {
                settle_one(view, alerts);
            }
        }
    }
}

fn is_asked(view: &UpstreamView) -> bool {
    view.health != topology::Health::Unknown
}

/// Whether it said who it is, or is the primary without being asked.
fn is_heard(view: &UpstreamView) -> bool {
    view.observed.is_some() || view.role == Some(Role::Primary)
}

fn settle_one(view: &UpstreamView, alerts: &Alerts) {
    if view.fenced.is_none() {
        for key in keys_of(&view.name) {
            alerts.reconcile(&key, Health::Healthy);
        }
    }
    if view.role != Some(Role::Primary) {
        // It takes no writes now, so none that goes well will say that it is over.
        alerts.reconcile(&guard::stall(&view.name, Lane::Write), Health::Healthy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::UpstreamAddress;
    use crate::upstream::topology::Epoch;
    use crate::upstream::{Lsn, Observation, SystemIdentifier, TimelineId, UpstreamId};
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
            observed: Some((seen(role == Role::Standby), Instant::now())),
        }
    }

    fn seen(in_recovery: bool) -> Observation {
        Observation {
            system: SystemIdentifier(7),
            timeline: TimelineId(2),
            in_recovery,
            lsn: Lsn(1),
            lag: None,
            version_num: 180_001,
            read_only: false,
        }
    }

    fn unheard(index: u32, health: topology::Health) -> UpstreamView {
        UpstreamView { health, role: None, observed: None, ..view(index, Role::Standby) }
    }

    fn fire(alerts: &Alerts, key: &Key) {
        let Key { alert, upstream, lane } = key.clone();
        alerts.fire(Alert { lane, upstream, ..Alert::new(alert, "") });
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
            fire(&alerts, key);
        }
        let views = vec![view(0, Role::Standby), view(1, Role::Primary)];
        let topology = Topology::new(Epoch(1), views, Some(UpstreamId(1)), Writes::Open);

        Vigil::new(Instant::now()).look(&topology, &alerts, Instant::now());

        assert_eq!(open(&alerts), [primary]);
    }

    #[test]
    fn incidents_from_before_a_restart_about_a_server_stay_until_it_is_heard() {
        // Seen: a stale primary hung while the sidecar was restarted. Its page was over with the first write to another,
        // though nobody had heard whether it still took writes. So it was with a stranger, and with writes that hung there.
        let alerts = alerts();
        let [stale, hybrid] = keys_of("pg0:5432");
        let keys = [stale, hybrid, guard::stall("pg0:5432", Lane::Write)];
        for key in &keys {
            fire(&alerts, key);
        }
        let mut vigil = Vigil::new(Instant::now());
        let mut look = |old: UpstreamView| {
            let views = vec![old, view(1, Role::Primary)];
            let topology = Topology::new(Epoch(1), views, Some(UpstreamId(1)), Writes::Open);
            vigil.look(&topology, &alerts, Instant::now());
            open(&alerts).len()
        };

        assert_eq!(look(unheard(0, topology::Health::Down)), keys.len());
        assert_eq!(look(view(0, Role::Standby)), 0);

        // What is found out later is for whoever finds it out.
        fire(&alerts, &keys[2]);
        assert_eq!(look(view(0, Role::Standby)), 1);
    }

    #[test]
    fn a_server_that_is_fenced_when_it_is_heard_keeps_its_page() {
        // That it was heard is no news as long as it says what it was fenced for.
        let alerts = alerts();
        let [stale, _] = keys_of("pg0:5432");
        fire(&alerts, &stale);
        let fence = Fence::OlderTimeline { timeline: TimelineId(1), newest: TimelineId(2) };
        let fenced = UpstreamView { fenced: Some(fence), ..view(0, Role::Standby) };
        let views = vec![fenced, view(1, Role::Primary)];
        let topology = Topology::new(Epoch(1), views, Some(UpstreamId(1)), Writes::Open);

        Vigil::new(Instant::now()).look(&topology, &alerts, Instant::now());

        assert_eq!(open(&alerts), [stale]);
    }

    #[test]
    fn what_an_earlier_process_held_against_one_that_is_alone_now_is_over() {
        // It is asked nothing: to wait until it is heard would be to page for ever.
        let alerts = alerts();
        let [stale, _] = keys_of("pg0:5432");
        fire(&alerts, &stale);
        let alone = UpstreamView { role: Some(Role::Primary), ..unheard(0, topology::Health::Unknown) };
        let topology = Topology::new(Epoch(1), vec![alone], Some(UpstreamId(0)), Writes::Open);

        Vigil::new(Instant::now()).look(&topology, &alerts, Instant::now());

        assert!(open(&alerts).is_empty());
    }

    #[test]
    fn that_nobody_takes_writes_pages_once_all_were_asked_and_from_then_on_whoever_is_not_asked_again() {
        // Seen: a standby was down, and nobody had logged in yet, so the primary could not be asked. The dead one counted
        // as asked, and somebody was paged for a cluster that was well. But a name that leads elsewhere again and again, so
        // that its server is often new, must not put a page off for ever.
        use topology::Health::{Down, Unknown};
        let alerts = alerts();
        let start = Instant::now();
        let mut vigil = Vigil::new(start);
        let mut look = |seconds, first| {
            let views = vec![unheard(0, first), unheard(1, Down)];
            let topology = Topology::new(Epoch(1), views, None, Writes::NoPrimary);
            vigil.look(&topology, &alerts, start + Duration::from_secs(seconds));
            !open(&alerts).is_empty()
        };

        assert!(!look(0, Unknown));
        assert!(!look(60, Unknown));
        assert!(!look(61, Down));
        assert!(!look(62, Unknown));
        assert!(look(63, Unknown));
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
