//! What orchestrators ask: alive, ready to read, ready to write.

use std::time::SystemTime;

use hyper::StatusCode;
use serde::Serialize;

use super::{Response, body};
use crate::server::Shared;
use crate::sql::Lane;
use crate::status::board::unix_ms;
use crate::status::collect;

#[derive(Serialize)]
struct Alive {
    alive: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stalled: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sentence: Option<String>,
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
    lane: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since_at_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sentence: Option<String>,
}

/// Whether all threads make progress.
pub(super) fn live(shared: &Shared) -> Response {
    match shared.watchdog.liveness() {
        Ok(()) => body::json(StatusCode::OK, &Alive { alive: true, stalled: None, sentence: None }),
        Err(stalled) => {
            let alive = Alive {
                alive: false,
                stalled: Some(stalled.who.to_string()),
                sentence: Some(stalled.to_string()),
            };
            body::json(StatusCode::SERVICE_UNAVAILABLE, &alive)
        }
    }
}

/// Whether a lane is served.
pub(super) fn ready(shared: &Shared, lane: Lane) -> Response {
    let word = lane.word();
    let Err(why) = collect::readiness(shared, lane) else {
        let ready =
            Ready { ready: true, lane: word, cause: None, since: None, since_at_ms: None, sentence: None };
        return body::json(StatusCode::OK, &ready);
    };
    let utc = |time: SystemTime| humantime::format_rfc3339_millis(time).to_string();
    let not = Ready {
        ready: false,
        lane: word,
        cause: Some(why.cause),
        since: why.since.map(utc),
        since_at_ms: why.since.map(unix_ms),
        sentence: Some(why.sentence),
    };
    body::json(StatusCode::SERVICE_UNAVAILABLE, &not)
}
