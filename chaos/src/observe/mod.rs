//! What is looked at while the workload runs, each from outside the subject.

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub mod journal;
pub mod machine;
pub mod queue;
pub mod server;
pub mod webhook;

/// One look at the backends of one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerSample {
    /// When.
    #[serde(rename = "at_ms", with = "crate::history::milliseconds")]
    pub at: Duration,
    /// Name of the server.
    pub node: String,
    /// Its client backends by what they wait for, the harness's own left out. `None`: no answer.
    pub waits: Option<Vec<Waits>>,
}

/// Backends that wait for the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waits {
    /// `write` when their statement is one of the workload's writes.
    pub lane: crate::history::Lane,
    /// `type/event` as in `pg_stat_activity`; `CPU` for a backend that runs.
    pub event: String,
    /// How many.
    pub backends: u32,
}

impl ServerSample {
    /// All client backends.
    pub fn backends(&self) -> Option<u32> {
        self.waits.as_ref().map(|waits| waits.iter().map(|wait| wait.backends).sum())
    }
}

/// One look at the reverse proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSample {
    /// When.
    #[serde(rename = "at_ms", with = "crate::history::milliseconds")]
    pub at: Duration,
    /// Requests that wait for the service.
    pub queued: u64,
    /// Requests that it serves or keeps waiting.
    pub sessions: u64,
}

/// A message that reached the webhook.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// When.
    #[serde(rename = "at_ms", with = "crate::history::milliseconds")]
    pub at: Duration,
    /// What it said.
    pub body: serde_json::Value,
}

impl Alert {
    /// A text field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.body.get(name)?.as_str()
    }
}
