//! What the configuration says of the terms of sessions: timeouts, and the rules that match.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::terms::Terms;
use crate::config::{Config, Rule, RuleAttribute};

/// What the configuration says of all sessions.
#[derive(Debug)]
pub(super) struct Policy {
    /// Where no rule matches.
    configured: Arc<Terms>,
    rules: Vec<(Rule, Arc<Terms>)>,
}

impl Policy {
    fn of(config: &Config) -> Self {
        let terms = |rule| Arc::new(Terms::of(&config.timeouts, rule));
        Self {
            configured: terms(None),
            rules: config.rules.iter().map(|rule| (rule.clone(), terms(Some(rule)))).collect(),
        }
    }

    /// The terms of a session without a wish of its own, and the rule that they are from.
    pub(super) fn terms(&self, who: &Who) -> (Arc<Terms>, Option<&Rule>) {
        match self.rules.iter().find(|(rule, _)| who.matches(rule)) {
            Some((rule, terms)) => (Arc::clone(terms), Some(rule)),
            None => (Arc::clone(&self.configured), None),
        }
    }
}

/// The policy in force; sessions notice a new one with their next transaction.
#[derive(Debug)]
pub struct Policies {
    pub(super) current: ArcSwap<Policy>,
    pub(super) generation: AtomicU64,
}

impl Policies {
    /// From the configuration.
    pub fn new(config: &Config) -> Self {
        Self { current: ArcSwap::from_pointee(Policy::of(config)), generation: AtomicU64::new(0) }
    }

    /// Takes a new configuration over.
    pub fn replace(&self, config: &Config) {
        self.current.store(Arc::new(Policy::of(config)));
        self.generation.fetch_add(1, Ordering::Release);
    }
}

/// Whom rules look at.
#[derive(Debug)]
pub struct Who {
    /// User.
    pub user: Box<str>,
    /// Database.
    pub database: Box<str>,
    /// `application_name` as it is now.
    pub application_name: Box<str>,
}

impl Who {
    fn matches(&self, rule: &Rule) -> bool {
        rule.matches.iter().all(|(attribute, pattern)| {
            let text = match attribute {
                RuleAttribute::ApplicationName => &self.application_name,
                RuleAttribute::User => &self.user,
                RuleAttribute::Database => &self.database,
            };
            matches(pattern.as_bytes(), text.as_bytes())
        })
    }
}

/// Whether a text is what a pattern says; `*` stands for anything, also for nothing. Time is at most the
/// product of both lengths.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let mut pieces = pattern.split(|&byte| byte == b'*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let Some(last) = pieces.next_back() else { return rest.is_empty() };
    for piece in pieces {
        match memchr::memmem::find(rest, piece) {
            Some(at) => rest = rest.get(at + piece.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// How long a session may idle, for the sweep; the configuration's bound where it has none of its own.
#[derive(Debug)]
pub struct IdleLimits {
    in_transaction: AtomicU64,
    outside: AtomicU64,
}

/// Stands for the configuration's bound.
const CONFIGURED: u64 = u64::MAX;

impl Default for IdleLimits {
    fn default() -> Self {
        Self { in_transaction: AtomicU64::new(CONFIGURED), outside: AtomicU64::new(CONFIGURED) }
    }
}

impl IdleLimits {
    /// Notes the session's own bounds; `None` where it has none.
    pub(super) fn set(&self, in_transaction: Option<u64>, outside: Option<u64>) {
        self.in_transaction.store(in_transaction.unwrap_or(CONFIGURED), Ordering::Relaxed);
        self.outside.store(outside.unwrap_or(CONFIGURED), Ordering::Relaxed);
    }

    /// The bound inside a transaction.
    pub fn in_transaction(&self, configured: Duration) -> Duration {
        limit(&self.in_transaction, configured)
    }

    /// The bound outside of a transaction.
    pub fn outside(&self, configured: Duration) -> Duration {
        limit(&self.outside, configured)
    }
}

fn limit(own: &AtomicU64, configured: Duration) -> Duration {
    match own.load(Ordering::Relaxed) {
        CONFIGURED => configured,
        own => Duration::from_millis(own),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stand_for_whole_names() {
        // A pattern that matches a part of a name gives the wrong sessions other terms.
        let rows = [
            ("batch-*", "batch-1", true),
            ("batch-*", "batch-", true),
            ("batch-*", "a batch-1", false),
            ("*", "", true),
            ("a*b*c", "a--b--c", true),
            ("a*b*c", "acb", false),
            ("a*a", "a", false),
            ("ab*ba", "aba", false),
            ("x", "x", true),
            ("x", "xx", false),
            ("**x", "yx", true),
        ];
        for (pattern, text, wanted) in rows {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), wanted, "{pattern} {text}");
        }
    }
}
