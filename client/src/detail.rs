//! Reads the DETAIL of the sidecar's errors: `key=value` pairs, separated by spaces.

use std::time::Duration;

use crate::words::{Cause, Lane, Outcome};

/// What a sidecar says about a refusal. Keys that are missing or unknown are left out: a newer sidecar may say more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Detail {
    pub(crate) reason: Option<Box<str>>,
    pub(crate) lane: Option<Lane>,
    pub(crate) upstream: Option<Box<str>>,
    pub(crate) cause: Option<Cause>,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) retry_after: Option<Duration>,
}

impl Detail {
    /// `None` unless it has a `reason`: the DETAIL of `PostgreSQL`'s own errors is prose.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut detail = Self::default();
        for (key, value) in text.split_ascii_whitespace().filter_map(|pair| pair.split_once('=')) {
            match key {
                "reason" => detail.reason = Some(value.into()),
                "lane" => detail.lane = Lane::of_word(value),
                "upstream" => detail.upstream = Some(value.into()),
                "cause" => detail.cause = Some(Cause::of_word(value)),
                "outcome" => detail.outcome = Outcome::of_word(value),
                "retry_after_ms" => detail.retry_after = value.parse().ok().map(Duration::from_millis),
                _ => {}
            }
        }
        detail.reason.is_some().then_some(detail)
    }

    /// Whether all of its lane is refused, not this statement alone.
    pub(crate) fn refuses_lane(&self) -> bool {
        self.reason.as_deref().is_some_and(refuses_lane)
    }
}

/// As [`Detail::refuses_lane`].
pub(crate) fn refuses_lane(reason: &str) -> bool {
    matches!(reason, "breaker_open" | "paused" | "no_upstream")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_the_contract_is_read() {
        // A key that is overlooked leaves the application without the answer to "may I try again, and when?".
        let text = "reason=breaker_open lane=write upstream=10.0.0.1:5432 cause=sync_standby \
                    outcome=not_sent retry_after_ms=1200";

        let detail = Detail::parse(text).unwrap();

        assert_eq!(detail.reason.as_deref(), Some("breaker_open"));
        assert_eq!(detail.lane, Some(Lane::Write));
        assert_eq!(detail.upstream.as_deref(), Some("10.0.0.1:5432"));
        assert_eq!(detail.cause, Some(Cause::SyncStandby));
        assert_eq!(detail.outcome, Some(Outcome::NotSent));
        assert_eq!(detail.retry_after, Some(Duration::from_millis(1200)));
    }

    #[test]
    fn the_detail_of_postgresql_is_prose() {
        // Taken for the sidecar's, a key violation would become a refusal.
        assert_eq!(Detail::parse("Key (id)=(1) already exists."), None);
        assert_eq!(Detail::parse(""), None);
    }

    #[test]
    fn words_that_are_not_known_are_no_error() {
        // An older crate must keep on working behind a newer sidecar.
        let detail =
            Detail::parse("reason=new_reason cause=gremlins outcome=odd x=y retry_after_ms=soon").unwrap();

        assert_eq!(detail.cause, Some(Cause::Unknown));
        assert_eq!((detail.outcome, detail.retry_after), (None, None));
    }
}
