//! Orders of an operator over HTTP, and the answer in words.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use serde::Serialize;

use super::problem::Problem;
use super::{Response, body};
use crate::server::Shared;
use crate::sql::Lane;
use crate::status::Status;
use crate::status::controls::{self, By, Order};

/// Breakers are told at once; so long is waited for the answer to show what came of it.
const OBEDIENCE: Duration = Duration::from_millis(50);

/// What can be ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Lane(Lane, Order),
    Pause,
    Resume,
    Reload,
    Reconnect,
}

/// What became of it, in words.
#[derive(Debug, Default, Serialize)]
struct Done {
    done: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    lane: Option<LaneNow>,
    meaning: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// The lane after the order; its breaker may take a moment to follow.
#[derive(Debug, Serialize)]
struct LaneNow {
    name: &'static str,
    order: &'static str,
    state: &'static str,
}

/// Does it.
///
/// # Errors
/// 409 when a reload is refused, 503 when nobody can reload.
///
/// # Cancel safety
/// What was begun is carried out.
pub(super) async fn carry_out(command: Command, shared: &Arc<Shared>) -> Result<Response, Problem> {
    let shared = Arc::clone(shared);
    // On its own: whoever hangs up has still ordered it.
    let done = tokio::spawn(async move { command.obey(&shared).await }).await;
    let failed = || Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the order failed; see the log");
    done.map_err(|_| failed())?.map(|done| body::json(StatusCode::OK, &done))
}

impl Command {
    async fn obey(self, shared: &Arc<Shared>) -> Result<Done, Problem> {
        let done = |done, meaning: &str| Done { done, meaning: meaning.to_owned(), ..Done::default() };
        tracing::warn!(order = ?self, "an operator gave an order over HTTP");
        match self {
            Self::Lane(lane, order) => {
                controls::order(shared, lane, order, &By::Http).await;
                tokio::time::sleep(OBEDIENCE).await;
                Ok(lane_now(shared, lane, order))
            }
            Self::Pause => {
                // Paused already is as good.
                let _ = controls::pause(shared, None, &By::Http).await;
                Ok(done(
                    "pause",
                    "no session gets a backend; they wait at most timeouts.queue; end it with POST /resume",
                ))
            }
            Self::Resume => {
                // So is running already.
                let _ = controls::resume(shared, None, &By::Http).await;
                Ok(done("resume", "sessions get backends again"))
            }
            Self::Reconnect => {
                controls::reconnect(shared, None, &By::Http).await;
                Ok(done("reconnect", "every backend is replaced at its next idle moment"))
            }
            Self::Reload => match shared.ties.reload().await {
                Some(Ok(warnings)) => {
                    Ok(Done { warnings, ..done("reload", "the new configuration is in force") })
                }
                Some(Err(problems)) => {
                    let detail = format!("the configuration is refused: {}", problems.join("; "));
                    Err(Problem::new(StatusCode::CONFLICT, detail).hint("what was in force stays in force"))
                }
                None => Err(Problem::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "nobody reloads: the sidecar is stopping, or busy",
                )),
            },
        }
    }
}

fn lane_now(shared: &Shared, lane: Lane, order: Order) -> Done {
    let lanes = Status::collect(shared).lanes;
    let state = match lane {
        Lane::Read => lanes.read.state,
        Lane::Write => lanes.write.state,
    };
    let name = lane.word();
    Done {
        done: "order",
        lane: Some(LaneNow { name, order: order.word(), state: state.word() }),
        meaning: format!("{name} lane: {}", order.meaning()),
        ..Done::default()
    }
}
