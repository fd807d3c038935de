//! What is wrong, and what is said about it.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::exchange::Cause;
use crate::sql::Lane;
use crate::timestamp::Timestamp;

/// Bytes of a summary; the strictest receiver (`PagerDuty`) takes 1,024 characters together with the alert's name.
const SUMMARY_MAX: usize = 900;

/// Something that a human has to know now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// What kind of trouble, in snake case: `write_stalled`.
    pub alert: Cow<'static, str>,
    /// The lane, where it is about one.
    pub lane: Option<Lane>,
    /// The upstream, where it is about one.
    pub upstream: Option<Box<str>>,
    /// The cause, where there is one.
    pub cause: Option<Cause>,
    /// One sentence for whoever is woken up. No SQL text, no secrets.
    pub summary: Box<str>,
}

impl Alert {
    /// An alert about the process as a whole.
    pub fn new(alert: impl Into<Cow<'static, str>>, summary: impl Into<Box<str>>) -> Self {
        Self { alert: alert.into(), lane: None, upstream: None, cause: None, summary: summary.into() }
    }

    /// The same, with a summary of a length that every receiver takes.
    pub(super) fn bounded(self) -> Self {
        let end = self.summary.floor_char_boundary(SUMMARY_MAX);
        Self { summary: self.summary.get(..end).unwrap_or_default().into(), ..self }
    }

    /// By what it is told from others: the same trouble of the same upstream and lane is the same incident.
    pub fn key(&self) -> Key {
        Key { alert: self.alert.clone(), upstream: self.upstream.clone(), lane: self.lane }
    }
}

/// Which incident; see [`Alert::key`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// What kind of trouble.
    pub alert: Cow<'static, str>,
    /// The upstream.
    pub upstream: Option<Box<str>>,
    /// The lane.
    pub lane: Option<Lane>,
}

impl Key {
    /// Trouble of the process as a whole.
    pub const fn process(alert: &'static str) -> Self {
        Self { alert: Cow::Borrowed(alert), upstream: None, lane: None }
    }
}

/// An alert that is firing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    /// 32 hexadecimal digits, the same in all messages about it, also after a restart.
    pub id: Arc<str>,
    /// Since when.
    pub at: Timestamp,
    /// What was said when it began.
    #[serde(flatten)]
    pub alert: Alert,
    /// Receivers that were told, or will be: they get the end of it, too.
    pub told: Vec<Receiver>,
}

/// A webhook as files name it: by a hash, since its URL is a secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Receiver(pub(super) Box<str>);

/// Beginning or end of an incident.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It began.
    Firing,
    /// It is over.
    Resolved,
}

impl Status {
    /// The word in messages and labels.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Resolved => "resolved",
        }
    }
}

/// One message for one receiver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// To whom.
    pub to: Receiver,
    /// Beginning or end.
    pub status: Status,
    /// When that was.
    pub at: Timestamp,
    /// When the incident began.
    pub since: Timestamp,
    /// The incident's.
    pub id: Arc<str>,
    /// What is, or was, wrong.
    #[serde(flatten)]
    pub alert: Alert,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_cut_between_characters() {
        // What a database says has no bound of its own; a cut inside of a character panics.
        let alert = Alert::new("x", "é".repeat(SUMMARY_MAX)).bounded();

        assert_eq!(alert.summary.len(), SUMMARY_MAX);
    }
}
