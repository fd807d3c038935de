//! Ways to break the process on purpose, for tests of what happens then. They exist only with `TIDEGATE_DEBUG=1`.
//!
//! | request | does |
//! |---|---|
//! | `POST /debug/block?target=workers&for=5s` | blocks all data workers |
//! | `POST /debug/block?target=control&for=5s` | blocks the control plane, after the answer has left |
//! | `POST /debug/fire?alert=NAME`, `POST /debug/resolve?alert=NAME` | an incident begins, or ends |
//! | `POST /debug/wrote` | a write committed |

use std::borrow::Cow;
use std::sync::LazyLock;
use std::time::Duration;

use hyper::{Method, StatusCode, Uri};
use tokio::runtime::Handle;

use crate::alerts::{Alert, Key};
use crate::server::Shared;

/// So that the answer leaves before its thread is blocked.
const HEAD_START: Duration = Duration::from_millis(50);
/// No test needs more.
const BLOCK_MAX: Duration = Duration::from_mins(1);

static ENABLED: LazyLock<bool> =
    LazyLock::new(|| std::env::var_os("TIDEGATE_DEBUG").is_some_and(|v| v == "1"));

/// The answer, if the request is one of these and they exist.
pub(super) fn answer(method: &Method, uri: &Uri, shared: &Shared) -> Option<(StatusCode, String)> {
    let command = uri.path().strip_prefix("/debug/").filter(|_| *ENABLED && *method == Method::POST)?;
    let parameter = |name: &str| {
        let query = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
        query.into_iter().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    };
    let done = match command {
        "block" => parameter("target").zip(parameter("for")).and_then(|(target, span)| {
            let span = humantime::parse_duration(&span).ok()?.min(BLOCK_MAX);
            block(&target, span, shared)
        }),
        "fire" => parameter("alert").map(|alert| shared.alerts.fire(Alert::new(alert, "fired by hand"))),
        "resolve" => parameter("alert").map(|alert| {
            shared.alerts.resolve(&Key { alert: Cow::Owned(alert), upstream: None, lane: None });
        }),
        "wrote" => {
            shared.alerts.last_write().committed();
            Some(())
        }
        _ => None,
    };
    Some(match done {
        Some(()) => (StatusCode::ACCEPTED, "done\n".to_owned()),
        None => (StatusCode::BAD_REQUEST, "not understood\n".to_owned()),
    })
}

fn block(target: &str, span: Duration, shared: &Shared) -> Option<()> {
    let handles: Vec<Handle> = match target {
        "workers" => shared.workers().iter().map(|worker| worker.handle.clone()).collect(),
        "control" => vec![Handle::current()],
        _ => return None,
    };
    for handle in handles {
        handle.spawn(async move {
            tokio::time::sleep(HEAD_START).await;
            std::thread::sleep(span);
        });
    }
    Some(())
}
