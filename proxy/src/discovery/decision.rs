//! What was decided, why, and on what evidence: made for the journal and for whoever is told.
//!
//! A decision is announced before it takes effect: the snapshot that follows from it is published afterwards.

use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::observe::ObserveError;
use crate::upstream::membership::Refused;
use crate::upstream::topology::{Epoch, Role};
use crate::upstream::{Fence, Lineage, Lsn, Observation, TimelineId};

/// What changes.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// The cluster is now taken for this one.
    ClusterEstablished(Lineage),
    /// A server is the primary. Reads may go there; writes as soon as one was seen to commit.
    PrimaryElected,
    /// A write committed on the new primary: writes may go there.
    WritesOpened {
        /// A position at or behind the commit.
        lsn: Lsn,
    },
    /// A server is the primary no more.
    PrimaryLost,
    /// Several servers take writes on one timeline: writes go nowhere.
    SplitBrain {
        /// Their names.
        claimants: Vec<Arc<str>>,
    },
    /// One of them is left.
    SplitBrainOver,
    /// Servers of several clusters are listed, and none of those clusters has more than half of them.
    Undecided,
    /// Roles are those of the list from now on, however many servers take writes and whatever cluster they are of.
    RolesListed,
    /// A server is not used, whatever it says.
    Fenced(Fence),
    /// The reason to fence it is gone; it has to prove itself.
    Unfenced(Fence),
    /// A server that was gone may be used again.
    Admitted(Role),
    /// A server is not used until it has proven itself.
    Ejected(Role),
    /// The configuration lists other servers.
    MembersChanged {
        /// Names of new ones.
        added: Vec<Arc<str>>,
        /// Names of removed ones.
        removed: Vec<Arc<str>>,
    },
    /// It does, and that is not followed.
    MembersRefused(Refused),
    /// A host name has other addresses; connections to the old ones are drained.
    AddressChanged,
    /// Patroni has not answered for too long: roles are found by probing.
    PatroniLost,
    /// Patroni answers again: roles are those that it says.
    PatroniBack,
}

impl What {
    /// The word that stands in labels and files.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::ClusterEstablished(_) => "cluster_established",
            Self::PrimaryElected => "primary_elected",
            Self::WritesOpened { .. } => "writes_opened",
            Self::PrimaryLost => "primary_lost",
            Self::SplitBrain { .. } => "split_brain",
            Self::SplitBrainOver => "split_brain_over",
            Self::Undecided => "undecided",
            Self::RolesListed => "roles_listed",
            Self::Fenced(_) => "fenced",
            Self::Unfenced(_) => "unfenced",
            Self::Admitted(_) => "admitted",
            Self::Ejected(_) => "ejected",
            Self::MembersChanged { .. } => "members_changed",
            Self::MembersRefused(_) => "members_refused",
            Self::AddressChanged => "address_changed",
            Self::PatroniLost => "patroni_lost",
            Self::PatroniBack => "patroni_back",
        }
    }

    /// Whether somebody should be woken.
    pub const fn is_alarming(&self) -> bool {
        matches!(
            self,
            Self::PrimaryLost
                | Self::SplitBrain { .. }
                | Self::Undecided
                | Self::Fenced(_)
                | Self::MembersRefused(_)
        )
    }
}

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The server is the only one that takes writes on the newest timeline.
    NewestTimeline,
    /// The same, and Patroni names it as the leader.
    PatroniLeader,
    /// It is the first of the list, and roles are static.
    FirstOfList,
    /// More than half of the servers that answered say so.
    Majority,
    /// Every server says so.
    Unanimous,
    /// It is in recovery now.
    InRecovery,
    /// It cannot serve.
    Dead,
    /// It did not answer several times in a row, and there is another of its role.
    Silent,
    /// It was fenced.
    Fenced,
    /// Patroni names another leader, or none.
    NotLeader,
    /// The configuration does not list it any more.
    Removed,
    /// Its name leads elsewhere now.
    Moved,
    /// It said what it is.
    Identity,
    /// It answered several times, on a fresh connection too.
    Proven,
    /// A write committed.
    Committed,
    /// The configuration was reloaded.
    Reloaded,
    /// A guard.
    Guard,
    /// Time passed without news.
    Expired,
    /// Patroni answered.
    Answered,
}

impl Why {
    /// The word that stands in labels and files.
    pub const fn word(self) -> &'static str {
        match self {
            Self::NewestTimeline => "newest_timeline",
            Self::PatroniLeader => "patroni_leader",
            Self::FirstOfList => "first_of_list",
            Self::Majority => "majority",
            Self::Unanimous => "unanimous",
            Self::InRecovery => "in_recovery",
            Self::Dead => "dead",
            Self::Silent => "silent",
            Self::Fenced => "fenced",
            Self::NotLeader => "not_leader",
            Self::Removed => "removed",
            Self::Moved => "moved",
            Self::Identity => "identity",
            Self::Proven => "proven",
            Self::Committed => "committed",
            Self::Reloaded => "reloaded",
            Self::Guard => "guard",
            Self::Expired => "expired",
            Self::Answered => "answered",
        }
    }
}

/// What was known.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Evidence {
    /// What the server said before.
    pub before: Option<Observation>,
    /// What it says now.
    pub now: Option<Observation>,
    /// How the last question failed.
    pub failure: Option<ObserveError>,
    /// The primary before.
    pub primary_before: Option<Arc<str>>,
    /// The newest timeline that was seen to take writes.
    pub newest: Option<TimelineId>,
}

/// One decision.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// When.
    pub at: Instant,
    /// The epoch that it begins or happens in.
    pub epoch: Epoch,
    /// Whom it is about; `None` when about all.
    pub upstream: Option<Arc<str>>,
    /// What changes.
    pub what: What,
    /// Why.
    pub why: Why,
    /// What was known.
    pub evidence: Evidence,
}

impl Decision {
    /// For the journal: an object without the time, which is the journal's own.
    pub fn to_json(&self) -> Value {
        let mut all = Map::new();
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                all.insert(key.to_owned(), value);
            }
        };
        put("what", Some(self.what.word().into()));
        put("why", Some(self.why.word().into()));
        put("epoch", Some(self.epoch.0.into()));
        put("upstream", self.upstream.as_deref().map(Value::from));
        put("summary", Some(self.to_string().into()));
        put("before", self.evidence.before.as_ref().map(observation));
        put("now", self.evidence.now.as_ref().map(observation));
        put("failure", self.evidence.failure.map(|failure| failure.to_string().into()));
        put("primary_before", self.evidence.primary_before.as_deref().map(Value::from));
        put("newest_timeline", self.evidence.newest.map(|newest| newest.0.into()));
        Value::Object(all)
    }
}

/// Identifiers as text: JSON's numbers are not good for 64 bits everywhere.
fn observation(seen: &Observation) -> Value {
    json!({
        "in_recovery": seen.in_recovery,
        "system_identifier": seen.system.to_string(),
        "timeline": seen.timeline.0,
        "lsn": seen.lsn.to_string(),
        "version_num": seen.version_num,
        "read_only": seen.read_only,
    })
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.upstream.as_deref().unwrap_or("the cluster");
        match &self.what {
            What::ClusterEstablished(lineage) => {
                write!(f, "the cluster is system {}, version {}", lineage.system, lineage.major)
            }
            What::PrimaryElected => write!(f, "{name} is the primary"),
            What::WritesOpened { lsn } => write!(f, "{name} takes writes: one committed at {lsn}"),
            What::PrimaryLost => write!(f, "{name} is the primary no more"),
            What::SplitBrain { claimants } => {
                write!(f, "{} take writes on the same timeline: writes are refused", claimants.join(" and "))
            }
            What::SplitBrainOver => write!(f, "no more than one server takes writes"),
            What::Undecided => {
                write!(f, "the upstreams belong to several clusters, and none has more than half")
            }
            What::RolesListed => write!(f, "roles are those of the list, whatever servers say"),
            What::Fenced(fence) => write!(f, "{name} is fenced: {fence}"),
            What::Unfenced(_) => write!(f, "{name} is not fenced any more"),
            What::Admitted(role) => write!(f, "{name} is used as {} again", role.word()),
            What::Ejected(role) => write!(f, "{name} is not used as {} any more", role.word()),
            What::MembersChanged { added, removed } => {
                write!(f, "upstreams added: [{}], removed: [{}]", added.join(", "), removed.join(", "))
            }
            What::MembersRefused(refused) => write!(f, "upstreams stay as they are: {refused}"),
            What::AddressChanged => write!(f, "the name of {name} has other addresses"),
            What::PatroniLost => write!(f, "Patroni does not answer: roles are found by probing"),
            What::PatroniBack => write!(f, "Patroni answers: it says which server is the primary"),
        }
    }
}
