//! A message in the words of each kind of receiver. Pure.

use std::time::Duration;

use serde_json::{Value, json};

use super::incident::{Message, Status};
use crate::config::{Password, WebhookKind};

/// `summary` of `PagerDuty`'s Events API v2 takes 1,024 characters.
const SUMMARY_MAX: usize = 1024;
/// Alertmanager takes an alert without an end for over after its `resolve_timeout` (5 min by default), since
/// Prometheus repeats alerts all the time. We say each thing once, so we promise a late end.
const ALERTMANAGER_HOLDS: Duration = Duration::from_hours(7 * 24);

/// The body of the request.
pub(super) fn body(
    kind: WebhookKind,
    routing_key: Option<&Password>,
    instance: &str,
    message: &Message,
) -> Value {
    match kind {
        WebhookKind::Json => generic(message),
        WebhookKind::Slack => slack(instance, message),
        WebhookKind::Pagerduty => pagerduty(routing_key, instance, message),
        WebhookKind::Alertmanager => alertmanager(instance, message),
    }
}

fn generic(message: &Message) -> Value {
    let alert = &message.alert;
    json!({
        "status": message.status,
        "alert": alert.alert,
        "lane": alert.lane,
        "upstream": alert.upstream,
        "cause": alert.cause,
        "summary": alert.summary,
        "at": message.at,
        "id": message.id,
    })
}

/// <https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks>; `&`, `<` and `>` are control
/// characters there.
fn slack(instance: &str, message: &Message) -> Value {
    let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let sign = match message.status {
        Status::Firing => ":red_circle:",
        Status::Resolved => ":large_green_circle:",
    };
    let alert = &message.alert;
    let facts: Vec<String> = facts(message).map(|(name, value)| format!("{name} {value}")).collect();
    let text = format!(
        "{sign} *{} {}* on {}\n{}\n{}",
        escape(&alert.alert),
        message.status.word(),
        escape(instance),
        escape(&alert.summary),
        escape(&facts.join(" · ")),
    );
    json!({ "text": text })
}

/// <https://developer.pagerduty.com/docs/send-alert-event>
fn pagerduty(routing_key: Option<&Password>, instance: &str, message: &Message) -> Value {
    let alert = &message.alert;
    let action = match message.status {
        Status::Firing => "trigger",
        Status::Resolved => "resolve",
    };
    let summary: String = format!("{}: {}", alert.alert, alert.summary).chars().take(SUMMARY_MAX).collect();
    json!({
        "routing_key": routing_key.map(Password::reveal),
        "event_action": action,
        "dedup_key": message.id,
        "client": "tidegate",
        "payload": {
            "summary": summary,
            "source": instance,
            "severity": "critical",
            "timestamp": message.at,
            "component": alert.upstream,
            "group": alert.lane,
            "class": alert.alert,
            "custom_details": { "cause": alert.cause, "since": message.since, "id": message.id },
        },
    })
}

/// <https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml>, `postableAlerts`. The labels are
/// the alert's identity, so nothing stands there that is not the same at its end.
fn alertmanager(instance: &str, message: &Message) -> Value {
    let alert = &message.alert;
    let mut labels = serde_json::Map::new();
    let mut label = |name: &str, value: &str| labels.insert(name.to_owned(), value.into());
    label("alertname", &alert.alert);
    label("severity", "critical");
    label("instance", instance);
    label("service", "tidegate");
    if let Some(lane) = alert.lane {
        label("lane", lane.word());
    }
    if let Some(upstream) = &alert.upstream {
        label("upstream", upstream);
    }
    let ends = match message.status {
        Status::Firing => message.since.after(ALERTMANAGER_HOLDS),
        Status::Resolved => message.at,
    };
    json!([{
        "labels": labels,
        "annotations": {
            "summary": alert.summary,
            "cause": alert.cause.map_or("", |cause| cause.word()),
            "id": message.id,
        },
        "startsAt": message.since,
        "endsAt": ends,
    }])
}

fn facts(message: &Message) -> impl Iterator<Item = (&'static str, String)> {
    let alert = &message.alert;
    let lane = alert.lane.map(|lane| lane.word().to_owned());
    let upstream = alert.upstream.as_deref().map(str::to_owned);
    let cause = alert.cause.map(|cause| cause.word().to_owned());
    let all = [
        ("lane", lane),
        ("upstream", upstream),
        ("cause", cause),
        ("since", Some(message.since.to_string())),
        ("id", Some(message.id.to_string())),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name, value?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alerts::incident::{Alert, Receiver};
    use crate::exchange::Cause;
    use crate::sql::Lane;
    use crate::timestamp::Timestamp;

    fn message(status: Status) -> Message {
        let since: Timestamp = serde_json::from_str("\"2026-01-31T23:59:59.999Z\"").unwrap();
        Message {
            to: Receiver("r".into()),
            status,
            at: if status == Status::Firing { since } else { since.after(Duration::from_secs(90)) },
            since,
            id: "0123".into(),
            alert: Alert {
                lane: Some(Lane::Write),
                upstream: Some("db:5432".into()),
                cause: Some(Cause::SyncStandby),
                ..Alert::new("write_stalled", "commits wait for <s1> & s2")
            },
        }
    }

    fn sent(kind: WebhookKind, status: Status) -> Value {
        let key = Password::new("R0UT1NG".to_owned());
        body(kind, Some(&key), "app-1:6433", &message(status))
    }

    #[test]
    fn the_generic_form_has_these_keys_and_words() {
        // Scripts that others wrote read exactly these.
        assert_eq!(
            sent(WebhookKind::Json, Status::Resolved),
            json!({
                "status": "resolved",
                "alert": "write_stalled",
                "lane": "write",
                "upstream": "db:5432",
                "cause": "sync_standby",
                "summary": "commits wait for <s1> & s2",
                "at": "2026-02-01T00:01:29.999Z",
                "id": "0123",
            })
        );
    }

    #[test]
    fn slack_gets_text_without_control_characters_of_ours() {
        // `<s1>` would become a link, and the name of the standby would be gone.
        let firing = sent(WebhookKind::Slack, Status::Firing);
        let text = firing["text"].as_str().unwrap();

        assert!(text.contains("*write_stalled firing* on app-1:6433"), "{text}");
        assert!(text.contains("&lt;s1&gt; &amp; s2"), "{text}");
        assert!(text.contains("cause sync_standby"), "{text}");
    }

    #[test]
    fn pagerduty_gets_trigger_and_resolve_of_one_incident() {
        // With another dedup_key the resolve would resolve nothing.
        let firing = sent(WebhookKind::Pagerduty, Status::Firing);
        let resolved = sent(WebhookKind::Pagerduty, Status::Resolved);

        assert_eq!(
            (&firing["event_action"], &resolved["event_action"]),
            (&json!("trigger"), &json!("resolve"))
        );
        assert_eq!(firing["dedup_key"], resolved["dedup_key"]);
        assert_eq!(firing["routing_key"], "R0UT1NG");
        assert_eq!(firing["payload"]["severity"], "critical");
        assert_eq!(firing["payload"]["source"], "app-1:6433");
    }

    #[test]
    fn alertmanager_gets_the_same_labels_at_both_ends() {
        // Labels are the identity; and without an end in the future it would resolve the alert by itself.
        let firing = sent(WebhookKind::Alertmanager, Status::Firing);
        let resolved = sent(WebhookKind::Alertmanager, Status::Resolved);

        assert_eq!(firing[0]["labels"], resolved[0]["labels"]);
        assert_eq!(firing[0]["labels"]["alertname"], "write_stalled");
        assert_eq!(firing[0]["startsAt"], "2026-01-31T23:59:59.999Z");
        assert_eq!(firing[0]["endsAt"], "2026-02-07T23:59:59.999Z");
        assert_eq!(resolved[0]["endsAt"], "2026-02-01T00:01:29.999Z");
    }
}
