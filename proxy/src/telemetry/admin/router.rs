//! Which path is what, and by which method.

use hyper::header::ALLOW;
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};

use super::orders::Command;
use super::problem::Problem;
use super::{Context, Ends, Response, body, events, guard, health, orders, page};
use crate::sql::Lane;
use crate::status::Status;
use crate::status::controls::Order;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Live,
    Ready(Lane),
    Metrics,
    Status,
    Events,
    Page,
    Command(Command),
}

impl Route {
    fn find(path: &str) -> Option<Self> {
        Some(match path {
            "/livez" => Self::Live,
            "/readyz" => Self::Ready(Lane::Read),
            "/readyz/write" => Self::Ready(Lane::Write),
            "/metrics" => Self::Metrics,
            "/status" => Self::Status,
            "/events" => Self::Events,
            "/" => Self::Page,
            "/pause" => Self::Command(Command::Pause),
            "/resume" => Self::Command(Command::Resume),
            "/reload" => Self::Command(Command::Reload),
            "/reconnect" => Self::Command(Command::Reconnect),
            _ => return Self::lane_order(path),
        })
    }

    /// `/lanes/{read|write}/{open|close|auto}`, in the vocabulary of breakers.
    fn lane_order(path: &str) -> Option<Self> {
        let (lane, order) = path.strip_prefix("/lanes/")?.split_once('/')?;
        let lane = match lane {
            "read" => Lane::Read,
            "write" => Lane::Write,
            _ => return None,
        };
        let order = match order {
            "open" => Order::Open,
            "close" => Order::Closed,
            "auto" => Order::Auto,
            _ => return None,
        };
        Some(Self::Command(Command::Lane(lane, order)))
    }

    const fn methods(self) -> &'static str {
        match self {
            Self::Command(_) => "POST",
            Self::Live | Self::Ready(_) | Self::Metrics | Self::Status | Self::Events | Self::Page => {
                "GET, HEAD"
            }
        }
    }

    fn allows(self, method: &Method) -> bool {
        self.methods().split(", ").any(|allowed| allowed == method.as_str())
    }
}

const HELP: &str = "there are GET /, /livez, /readyz, /readyz/write, /metrics, /status, /events and POST \
                    /lanes/{read|write}/{open|close|auto}, /pause, /resume, /reload, /reconnect";

fn route(head: &Parts) -> Result<Route, Problem> {
    let path = head.uri.path();
    let found = Route::find(path);
    let route = found.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "no such path").hint(HELP))?;
    if route.allows(&head.method) {
        return Ok(route);
    }
    let methods = route.methods();
    let detail = format!("this path takes {methods}");
    Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail).header(ALLOW, methods))
}

/// Answers a request whose body has been read.
///
/// # Errors
/// What is wrong with it.
///
/// # Cancel safety
/// An order that was begun is carried out.
pub(super) async fn answer(head: &Parts, ends: Ends, context: &Context) -> Result<Response, Problem> {
    let route = route(head)?;
    let shared = &context.shared;
    match route {
        Route::Live => Ok(health::live(shared)),
        Route::Ready(lane) => Ok(health::ready(shared, lane)),
        Route::Metrics => {
            let text = crate::telemetry::scrape::page(shared, &context.counters);
            Ok(body::whole(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text))
        }
        Route::Status => {
            guard::host(head, ends)?;
            Ok(body::json(StatusCode::OK, &Status::collect(shared)))
        }
        Route::Events => {
            guard::host(head, ends)?;
            events::stream(head, context)
        }
        Route::Page => {
            guard::host(head, ends)?;
            Ok(page::response())
        }
        Route::Command(command) => {
            guard::host(head, ends)?;
            guard::order(head, ends, &shared.config.load().admin)?;
            orders::carry_out(command, shared).await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(method: &str, path: &str) -> Parts {
        hyper::Request::builder().method(method).uri(path).body(()).unwrap().into_parts().0
    }

    #[test]
    fn every_path_takes_its_methods_and_no_other() {
        // An order by GET could be given by an image on any web page.
        for path in
            ["/livez", "/readyz", "/readyz/write", "/metrics", "/status", "/events", "/", "/status?x=1"]
        {
            assert!(route(&head("GET", path)).is_ok(), "{path}");
            assert!(route(&head("HEAD", path)).is_ok(), "{path}");
            let problem = route(&head("POST", path)).unwrap_err();
            assert_eq!(problem.into_response().headers()[ALLOW], "GET, HEAD", "{path}");
        }
        for path in ["/pause", "/resume", "/reload", "/reconnect", "/lanes/read/open", "/lanes/write/auto"] {
            assert!(route(&head("POST", path)).is_ok(), "{path}");
            for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"] {
                let problem = route(&head(method, path)).unwrap_err();
                assert_eq!(problem.status(), StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
            }
        }
    }

    #[test]
    fn what_is_not_there_is_404() {
        // A near miss of an order must not be taken for one.
        for path in [
            "/lanes",
            "/lanes/write",
            "/lanes/write/",
            "/lanes/WRITE/open",
            "/lanes/write/opened",
            "/lanes/write/open/",
            "/livez/",
            "//",
            "/index.html",
        ] {
            assert_eq!(route(&head("POST", path)).unwrap_err().status(), StatusCode::NOT_FOUND, "{path}");
        }
    }

    #[test]
    fn open_refuses_and_close_lets_through() {
        // The words are those of breakers; the other way round an operator would start what they mean to stop.
        let order = |path| route(&head("POST", path)).unwrap();

        assert_eq!(order("/lanes/write/open"), Route::Command(Command::Lane(Lane::Write, Order::Open)));
        assert_eq!(order("/lanes/read/close"), Route::Command(Command::Lane(Lane::Read, Order::Closed)));
        assert!(Order::Open.meaning().contains("refused"));
        assert!(Order::Closed.meaning().contains("let through"));
    }
}
