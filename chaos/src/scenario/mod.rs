//! Scenarios: small data files that say what runs, what breaks and what must hold.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::checker::Claim;
use crate::cluster::{Replication, WalStorage};
use crate::fault::Fault;
use crate::subject::merge;
use crate::workload::{Burst, WorkloadOptions};

mod builtin;
pub mod random;

pub use builtin::names;

/// Why there is no such scenario.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither one of ours nor a file.
    #[error("no scenario {name}: choose one of {}, or name a .toml file", known.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<&'static str>,
    },
    /// The file could not be read.
    #[error("cannot read scenario {name}")]
    Read {
        /// Its path.
        name: String,
        /// Why.
        source: std::io::Error,
    },
    /// The text is not a scenario.
    #[error("scenario {name} is not valid")]
    Invalid {
        /// Its name.
        name: String,
        /// Where and why.
        source: toml::de::Error,
    },
}

/// One scenario.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its name, given by its file.
    #[serde(default)]
    pub name: String,
    /// One sentence.
    pub summary: String,
    /// The servers.
    #[serde(default)]
    pub cluster: ClusterPlan,
    /// How long before and after the faults.
    #[serde(default)]
    pub phases: Phases,
    /// The load.
    #[serde(default)]
    pub workload: WorkloadOptions,
    /// Backends that the subject may hold.
    #[serde(default = "default_pool")]
    pub pool: usize,
    /// Parts of tidegate's configuration.
    #[serde(default)]
    pub tidegate: toml::Table,
    /// What breaks.
    #[serde(default, rename = "step")]
    pub steps: Vec<Step>,
    /// What must hold.
    #[serde(default, rename = "claim")]
    pub claims: Vec<Claim>,
}

/// PgBouncer's `default_pool_size`, and tidegate's.
fn default_pool() -> usize {
    20
}

/// The servers of a scenario.
#[expect(clippy::struct_excessive_bools, reason = "each is a line of a scenario file")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterPlan {
    /// How many standbys.
    pub standbys: usize,
    /// Whether commits wait for them.
    pub synchronous: bool,
    /// Whether the subject reaches the servers through relays.
    pub relay: bool,
    /// Whether it reaches each of them through a network namespace, whose cable can be pulled.
    pub cable: bool,
    /// Whether a server of another cluster is among the upstreams, as in a map that is wrong.
    pub stranger: bool,
    /// Where `pg_wal` lies.
    pub wal: Wal,
    /// Server parameters.
    pub settings: std::collections::BTreeMap<String, String>,
}

impl Default for ClusterPlan {
    fn default() -> Self {
        Self {
            standbys: 1,
            synchronous: false,
            relay: false,
            cable: false,
            stranger: false,
            wal: Wal::Inside,
            settings: std::collections::BTreeMap::new(),
        }
    }
}

impl ClusterPlan {
    /// As the cluster takes it.
    pub fn replication(&self) -> Replication {
        if self.synchronous { Replication::Synchronous } else { Replication::Asynchronous }
    }
}

/// Where `pg_wal` lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wal {
    /// In the data directory.
    Inside,
    /// On a filesystem that can be frozen.
    Loop,
    /// On one that can be filled.
    Memory,
}

impl Wal {
    /// As the cluster takes it. The sizes leave room for a run, and can be filled in a moment.
    pub fn storage(self) -> WalStorage {
        match self {
            Self::Inside => WalStorage::Inside,
            Self::Loop => WalStorage::Loop { mib: 512 },
            Self::Memory => WalStorage::Memory { mib: 192 },
        }
    }
}

/// How long before and after the faults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Phases {
    /// Load without faults, to compare with.
    #[serde(with = "humantime_serde")]
    pub quiet: Duration,
    /// Load after the last fault healed.
    #[serde(with = "humantime_serde")]
    pub after: Duration,
    /// How long to wait for answers that are still missing then.
    #[serde(with = "humantime_serde")]
    pub linger: Duration,
}

impl Default for Phases {
    fn default() -> Self {
        Self {
            quiet: Duration::from_secs(10),
            after: Duration::from_secs(12),
            linger: Duration::from_secs(8),
        }
    }
}

/// A fault and its times.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Counted from the end of the quiet phase.
    #[serde(default, with = "humantime_serde")]
    pub at: Duration,
    /// How long until it heals.
    #[serde(rename = "for", default, with = "humantime_serde")]
    pub lasts: Duration,
    /// What.
    #[serde(flatten)]
    pub fault: Fault,
}

impl Step {
    /// When it heals.
    pub fn end(&self) -> Duration {
        self.at + self.lasts
    }
}

impl Scenario {
    /// One of ours by name, or a file by its path.
    pub fn load(name: &str) -> Result<Self, Error> {
        let file = std::path::Path::new(name);
        let is_file = file.extension().is_some_and(|extension| extension == "toml");
        let text = if is_file {
            let read = std::fs::read_to_string(file);
            read.map_err(|source| Error::Read { name: name.to_owned(), source })?
        } else {
            let unknown = || Error::Unknown { name: name.to_owned(), known: names() };
            builtin::text(name).ok_or_else(unknown)?.to_owned()
        };
        let stem =
            if is_file { file.file_stem().map(|stem| stem.to_string_lossy().into_owned()) } else { None };
        Self::parse(&stem.unwrap_or_else(|| name.to_owned()), &text)
    }

    /// Reads a scenario. `extends = "name"` puts it on top of another one.
    pub fn parse(name: &str, text: &str) -> Result<Self, Error> {
        let invalid = |source| Error::Invalid { name: name.to_owned(), source };
        let table = resolve(name, text)?;
        let mut scenario: Self = table.try_into().map_err(invalid)?;
        name.clone_into(&mut scenario.name);
        Ok(scenario)
    }

    /// As a file of its own.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_else(|error| format!("# cannot be written: {error}\n"))
    }

    /// When the last fault heals, counted from the end of the quiet phase.
    pub fn faults_end(&self) -> Duration {
        self.steps.iter().map(Step::end).max().unwrap_or_default()
    }

    /// The steps that are load, not harm.
    pub fn bursts(&self) -> Vec<Burst> {
        let burst = |step: &Step| match step.fault {
            Fault::Burst { reads_per_second, sessions } => {
                Some(Burst { at: self.phases.quiet + step.at, lasts: step.lasts, reads_per_second, sessions })
            }
            _ => None,
        };
        self.steps.iter().filter_map(burst).collect()
    }

    /// A shorter run of the same, for smoke tests: it shows that nothing is broken, not how well it does.
    #[must_use]
    pub fn quick(mut self) -> Self {
        self.phases.quiet = self.phases.quiet.min(Duration::from_secs(4));
        for step in &mut self.steps {
            step.at /= 2;
            step.lasts /= 2;
        }
        self
    }

    /// The first reason why it cannot run here.
    pub fn obstacle(&self) -> Option<String> {
        if self.cluster.wal != Wal::Inside
            && let Some(why) = crate::fault::catalogue::needs_root_and("mount")
        {
            return Some(format!("a filesystem for pg_wal {why}"));
        }
        if self.cluster.cable
            && let Some(why) = crate::fault::catalogue::needs_root_and("ip")
        {
            return Some(format!("a network namespace {why}"));
        }
        self.steps.iter().find_map(|step| {
            let why = step.fault.obstacle()?;
            Some(format!("{}: {why}", step.fault))
        })
    }
}

fn resolve(name: &str, text: &str) -> Result<toml::Table, Error> {
    let invalid = |source| Error::Invalid { name: name.to_owned(), source };
    let mut table: toml::Table = text.parse().map_err(invalid)?;
    let Some(toml::Value::String(base)) = table.remove("extends") else { return Ok(table) };
    let unknown = || Error::Unknown { name: base.clone(), known: names() };
    let mut below = resolve(&base, builtin::text(&base).ok_or_else(unknown)?)?;
    merge_claims(&mut below, &mut table);
    merge(&mut below, &table);
    Ok(below)
}

/// Claims are put together by their name; other lists are replaced.
fn merge_claims(below: &mut toml::Table, above: &mut toml::Table) {
    let Some(toml::Value::Array(changed)) = above.remove("claim") else { return };
    let Some(toml::Value::Array(claims)) = below.get_mut("claim") else {
        below.insert("claim".to_owned(), toml::Value::Array(changed));
        return;
    };
    for claim in changed {
        let name = claim.get("claim").cloned();
        match claims.iter_mut().find(|known| known.get("claim").cloned() == name) {
            Some(known) => *known = claim,
            None => claims.push(claim),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_of_ours_is_valid() {
        // A file with a typo would be found by whoever runs it, after it was released.
        for name in names() {
            let scenario = Scenario::load(name).unwrap_or_else(|error| panic!("{name}: {error:?}"));

            assert!(!scenario.claims.is_empty(), "{name}");
            assert!(name == "random" || !scenario.steps.is_empty(), "{name}");
        }
    }

    #[test]
    fn an_extension_changes_what_it_names_and_keeps_the_rest() {
        // Losing the base's claims would make a variant pass for nothing.
        let base = Scenario::load("write-stall").unwrap();

        let frozen = Scenario::load("write-stall-frozen").unwrap();

        assert_eq!(frozen.workload, base.workload);
        assert_ne!(frozen.steps, base.steps);
        assert_eq!(frozen.claims.len(), base.claims.len());
        assert_ne!(frozen.claims, base.claims);
    }

    #[test]
    fn a_scenario_survives_being_written() {
        // A shrunken plan is kept as a file, to be run again.
        for name in names() {
            let scenario = random::fill(Scenario::load(name).unwrap(), 5);

            let again =
                Scenario::parse(name, &scenario.to_toml()).unwrap_or_else(|error| panic!("{error:?}"));

            assert_eq!(again, scenario);
        }
    }

    #[test]
    fn only_who_kept_the_alert_can_send_it() {
        // A stall that goes on when the sidecar is back is found again, and an outbox that lost its alert passes.
        let scenario = Scenario::load("lost-alert").unwrap();
        for scenario in [scenario.clone(), scenario.quick()] {
            let step =
                |label: &str| scenario.steps.iter().find(|step| step.fault.to_string() == label).unwrap();
            let (stall, killed) = (step("walreceiver of s1 frozen"), step("proxy killed"));
            let deaf = step("alerts refused");

            assert!(killed.at < stall.end() && stall.end() < killed.end(), "{scenario:?}");
            assert!(deaf.at <= stall.at && killed.end() < deaf.end(), "{scenario:?}");
        }
    }

    #[test]
    fn an_unknown_key_is_refused() {
        // A misspelt phase would silently run with its default.
        let error = Scenario::parse("x", "summary = 'x'\n[phases]\nquite = '1s'\n").unwrap_err();

        assert!(matches!(error, Error::Invalid { .. }), "{error}");
    }
}
