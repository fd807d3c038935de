//! Settings of the parts that keep a stuck database from clogging the application.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use super::Password;
use super::values::{Human, Share};
use crate::sql::Priority;

/// `[commit]`: what to do when the outcome of a COMMIT is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Ask the surviving primary what became of it.
    pub resolve: bool,
    /// What to do with a backend that waits for a synchronous standby after its deadline.
    pub sync_wait: SyncWait,
    /// How long to look for the outcome.
    pub resolve_within: Duration,
}

/// See [`Commit::sync_wait`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SyncWait {
    /// Leave it waiting: the commit becomes visible only when it is replicated.
    Leave,
    /// Cancel it: locks are freed, and the commit is visible though not replicated.
    Cancel,
}

/// `[read]`: which servers answer reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// The preferred role.
    pub from: ReadFrom,
    /// A standby that is further behind than this answers no reads.
    pub max_lag: Duration,
    /// What a session is sure to see of its own writes.
    pub after_write: AfterWrite,
    /// For how long after a write it is.
    pub after_write_for: Duration,
}

/// See [`Read::from`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadFrom {
    /// Only the primary.
    Primary,
    /// Standbys, and the primary when there is none.
    PreferStandby,
    /// Standbys.
    Standby,
}

/// See [`Read::after_write`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AfterWrite {
    /// Nothing: any server that may answer reads does.
    Any,
    /// All: the primary answers.
    Primary,
    /// All: a standby answers that is known to have replayed the write, else the primary.
    Lsn,
}

/// `[breaker]`: when an upstream's lane is taken for stuck, and how it is tried again.
#[derive(Debug, Clone, PartialEq)]
pub struct Breaker {
    /// Failures in a row that open it.
    pub consecutive_failures: usize,
    /// A statement is stuck after four times the usual 99th percentile, but not before this.
    pub stuck_min: Duration,
    /// A statement is stuck after this at the latest.
    pub stuck_max: Duration,
    /// Stuck statements that open it, at least.
    pub stuck_count: usize,
    /// Share of the statements in flight that must be stuck.
    pub stuck_share: f64,
    /// How far back the failure rate looks.
    pub rate_window: Duration,
    /// Calls in the window below which the rate says nothing.
    pub rate_calls: usize,
    /// Share of failures in the window that opens it.
    pub rate_share: f64,
    /// How long it stays open at first; doubled each time it opens again.
    pub open_min: Duration,
    /// How long it stays open at most.
    pub open_max: Duration,
    /// Between probes while all is well.
    pub probe_interval: Duration,
    /// Between probes while it is open.
    pub probe_open_interval: Duration,
    /// A probe has failed after this.
    pub probe_timeout: Duration,
    /// Good probes in a row that close it.
    pub probe_successes: usize,
}

/// `[shed]`: refusing early rather than queueing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shed {
    /// Sessions that may wait for a backend in one pool.
    pub queue_max: usize,
    /// The wait that `CoDel` (RFC 8289) aims for.
    pub codel_target: Duration,
    /// How long the wait must stay above the target before `CoDel` acts.
    pub codel_interval: Duration,
}

/// `[hold]`: keeping writes waiting through a failover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// The longest hold; zero is off.
    pub window: Duration,
    /// Writes held at the same time.
    pub max: usize,
}

/// `[watchdog]`: threads that make no progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watchdog {
    /// A thread without progress for this long is stalled.
    pub stall: Duration,
    /// After this long the process ends, to be started again; zero is never.
    pub exit_after: Duration,
}

/// `[alerts]`: who is told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Alerts {
    /// Where to send alerts.
    pub webhooks: Vec<Webhook>,
    /// Called while writes work. Such URLs hold a token.
    pub heartbeat_url: Option<Password>,
    /// Between two calls.
    pub heartbeat_interval: Duration,
}

/// One receiver of alerts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// The address. Such URLs hold a token.
    pub url: Password,
    /// The form of the message.
    #[serde(default)]
    pub kind: WebhookKind,
    /// `PagerDuty`'s integration key.
    pub routing_key: Option<Password>,
    /// Value of the header of that name, such as `Bearer …`.
    pub authorization: Option<Password>,
}

/// See [`Webhook::kind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WebhookKind {
    /// Our own JSON.
    #[default]
    Json,
    /// Slack's incoming webhook.
    Slack,
    /// `PagerDuty`'s Events API v2.
    Pagerduty,
    /// Prometheus Alertmanager's API v2.
    Alertmanager,
}

impl WebhookKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Json, Self::Slack, Self::Pagerduty, Self::Alertmanager];

    /// The word in configuration and labels.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Slack => "slack",
            Self::Pagerduty => "pagerduty",
            Self::Alertmanager => "alertmanager",
        }
    }
}

/// `[[rule]]`: other settings for some sessions; the first that matches wins.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Patterns by session attribute; `*` stands for anything. All of them must match.
    #[serde(rename = "match")]
    pub matches: BTreeMap<RuleAttribute, String>,
    /// Who goes first when there is not enough for all.
    pub priority: Option<Priority>,
    /// Share of the pool that the write lane may hold, in (0, 1].
    #[serde(default, deserialize_with = "share")]
    pub write_share: Option<f64>,
    /// Other bounds.
    #[serde(default)]
    pub timeouts: RuleTimeouts,
}

/// What a rule can look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleAttribute {
    /// The startup parameter.
    ApplicationName,
    /// The user of the session.
    User,
    /// The database of the session.
    Database,
}

/// Bounds that a rule replaces; see [`super::Timeouts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuleTimeouts {
    /// Waiting for a backend.
    #[serde(deserialize_with = "duration")]
    pub queue: Option<Duration>,
    /// One exchange in the read lane.
    #[serde(deserialize_with = "duration")]
    pub read: Option<Duration>,
    /// One exchange in the write lane.
    #[serde(deserialize_with = "duration")]
    pub write: Option<Duration>,
    /// A COMMIT.
    #[serde(deserialize_with = "duration")]
    pub commit: Option<Duration>,
    /// A whole transaction.
    #[serde(deserialize_with = "duration")]
    pub transaction: Option<Duration>,
    /// Idle inside a transaction.
    #[serde(deserialize_with = "duration")]
    pub idle_in_transaction: Option<Duration>,
    /// Idle outside a transaction.
    #[serde(deserialize_with = "duration")]
    pub idle_session: Option<Duration>,
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    Human::deserialize(deserializer).map(|human| Some(human.0))
}

fn share<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    Share::deserialize(deserializer).map(|share| Some(share.0))
}
