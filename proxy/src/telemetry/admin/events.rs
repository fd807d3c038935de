//! `/events`: server-sent events (WHATWG HTML, "Server-sent events").
//!
//! A listener gets the history at once, then the state and a sample each second, and earlier when a lane changes.
//! One that reads too slowly misses some; nothing piles up for it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::channel::{Channel, Sender};
use http_body_util::{BodyExt as _, Empty};
use hyper::header::RETRY_AFTER;
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};
use serde::Serialize;
use tokio::sync::watch::Receiver;
use tokio::time::MissedTickBehavior;

use super::problem::Problem;
use super::{Context, Response, body};
use crate::server::Shared;
use crate::status::Status;
use crate::status::board::{Update, json};
use crate::status::history::Sample;

/// Listeners at the same time.
pub(super) const LISTENERS_MAX: usize = 16;
/// A comment is sent this often, so that a listener behind proxies knows that we live.
const HEARTBEAT: Duration = Duration::from_secs(10);
const CONTENT_TYPE: &str = "text/event-stream";

#[derive(Serialize)]
struct Past {
    samples: Vec<Sample>,
}

/// The answer that does not end.
///
/// # Errors
/// 503 when there are too many listeners.
pub(super) fn stream(head: &Parts, context: &Context) -> Result<Response, Problem> {
    if head.method == Method::HEAD {
        return Ok(body::with(StatusCode::OK, CONTENT_TYPE, Empty::new().boxed_unsync()));
    }
    let Ok(place) = Arc::clone(&context.listeners).try_acquire_owned() else {
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "16 listen already");
        return Err(problem.header(RETRY_AFTER, "10"));
    };
    let updates = context.shared.board.subscribe();
    let greeting = greeting(&context.shared);
    let (sender, channel) = Channel::new(1);
    tokio::spawn(tell(sender, updates, greeting));
    // The place belongs to the body: it is free as soon as the connection ends.
    let channel = channel.map_frame(move |frame| {
        let _held = &place;
        frame
    });
    Ok(body::with(StatusCode::OK, CONTENT_TYPE, channel.boxed_unsync()))
}

fn greeting(shared: &Shared) -> Bytes {
    let mut text = String::from("retry: 2000\n\n");
    put(&mut text, "history", &json(&Past { samples: shared.board.history() }));
    put(&mut text, "status", &json(&Status::collect(shared)));
    text.into()
}

/// JSON has no line breaks, so one line of data is enough.
fn put(text: &mut String, event: &str, data: &str) {
    for part in ["event: ", event, "\ndata: ", data, "\n\n"] {
        text.push_str(part);
    }
}

fn message(update: &Update) -> Bytes {
    let mut text = String::new();
    if let Some(sample) = &update.sample {
        put(&mut text, "sample", sample);
    }
    put(&mut text, "status", &update.status);
    text.into()
}

/// Tells a listener everything until it is gone.
async fn tell(mut sender: Sender<Bytes>, mut updates: Receiver<Update>, greeting: Bytes) {
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    heartbeat.reset();
    let mut next = greeting;
    while sender.send_data(next).await.is_ok() {
        next = tokio::select! {
            changed = updates.changed() => {
                if changed.is_err() {
                    return;
                }
                message(&updates.borrow_and_update())
            }
            _ = heartbeat.tick() => Bytes::from_static(b": alive\n\n"),
        };
    }
}
