//! Who may ask for what.
//!
//! A browser on this machine will send requests here for any web page that asks it to. Against that: the state is
//! shown only under a name that no stranger can own (DNS rebinding), and orders need a token that no page knows
//! and are refused when the browser says that another site wants them (Fetch Metadata, RFC 6454).

use std::net::IpAddr;

use hyper::StatusCode;
use hyper::header::{AUTHORIZATION, HOST, HeaderName, ORIGIN, WWW_AUTHENTICATE};
use hyper::http::request::Parts;
use hyper::http::uri::Authority;
use subtle::ConstantTimeEq as _;

use super::Ends;
use super::problem::Problem;
use crate::config::{Admin, OrdersFrom};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

fn text(head: &Parts, name: HeaderName) -> Option<&str> {
    // What is no text matches nothing that is allowed.
    head.headers.get(name).map(|value| value.to_str().unwrap_or("?"))
}

/// On loopback we have no name but `localhost`: a request for another one comes from a page that pointed its own
/// name here.
///
/// # Errors
/// 421 for a foreign name.
pub(super) fn host(head: &Parts, ends: Ends) -> Result<(), Problem> {
    if !ends.ours.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    match text(head, HOST) {
        None => Ok(()),
        Some(host) if is_ours(host) => Ok(()),
        Some(_) => Err(Problem::new(
            StatusCode::MISDIRECTED_REQUEST,
            "the Host header names neither an IP address nor localhost",
        )
        .hint(
            "open this page as http://127.0.0.1:PORT/ or http://localhost:PORT/; a proxy has to set Host so",
        )),
    }
}

fn is_ours(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_matches(['[', ']']);
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

/// Whether an order may be given.
///
/// # Errors
/// 403 or 401, with what to do.
pub(super) fn order(head: &Parts, ends: Ends, admin: &Admin) -> Result<(), Problem> {
    same_site(head)?;
    if admin.orders_from == OrdersFrom::Loopback && !ends.peer.ip().to_canonical().is_loopback() {
        return Err(forbidden("orders are taken from this machine only").hint(
            "give the order from the machine of the sidecar, or set admin.orders_from = \"anywhere\"",
        ));
    }
    let Some(token) = &admin.token else {
        return Err(forbidden("no token is configured, so no order is taken").hint(
            "set admin.token (or TIDEGATE_ADMIN_TOKEN), reload, and send Authorization: Bearer TOKEN",
        ));
    };
    let given = text(head, AUTHORIZATION).and_then(bearer).unwrap_or_default();
    if bool::from(given.as_bytes().ct_eq(token.reveal().as_bytes())) {
        return Ok(());
    }
    tracing::warn!(peer = %ends.peer, "an order without the right token was refused");
    Err(Problem::new(StatusCode::UNAUTHORIZED, "this needs the token of admin.token")
        .hint("send Authorization: Bearer TOKEN")
        .header(WWW_AUTHENTICATE, "Bearer"))
}

/// The token of `Bearer TOKEN`; the scheme is spelled in any case (RFC 9110).
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn same_site(head: &Parts) -> Result<(), Problem> {
    let other = || forbidden("another web site wants this");
    // "none": typed in by the user.
    if let Some(site) = text(head, SEC_FETCH_SITE)
        && !matches!(site, "same-origin" | "none")
    {
        return Err(other());
    }
    let Some(origin) = text(head, ORIGIN) else { return Ok(()) };
    let ours = text(head, HOST).unwrap_or_default();
    let named = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    if named.is_some_and(|named| !ours.is_empty() && named.eq_ignore_ascii_case(ours)) {
        return Ok(());
    }
    Err(other())
}

fn forbidden(detail: &'static str) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Password;

    const TOKEN: &str = "correct horse battery";

    fn ends(ours: &str, peer: &str) -> Ends {
        Ends { ours: ours.parse().unwrap(), peer: peer.parse().unwrap() }
    }

    fn local() -> Ends {
        ends("127.0.0.1:6433", "127.0.0.1:5")
    }

    fn head(headers: &[(&str, &str)]) -> Parts {
        let builder = headers.iter().fold(hyper::Request::post("/pause"), |b, (k, v)| b.header(*k, *v));
        builder.body(()).unwrap().into_parts().0
    }

    fn admin(token: Option<&str>, orders_from: OrdersFrom) -> Admin {
        let token = token.map(|token| Password::new(token.to_owned()));
        Admin { address: "127.0.0.1:6433".parse().unwrap(), users: Vec::new(), token, orders_from }
    }

    fn ordered(headers: &[(&str, &str)], ends: Ends, admin: &Admin) -> Result<(), u16> {
        order(&head(headers), ends, admin).map_err(|problem| problem.status().as_u16())
    }

    #[test]
    fn orders_need_the_token_that_is_configured() {
        // A prefix, another scheme, or none at all must not do; neither must an empty token when none is set.
        let with = admin(Some(TOKEN), OrdersFrom::Loopback);
        let right = format!("bearer {TOKEN}");

        assert_eq!(ordered(&[("authorization", &right)], local(), &with), Ok(()));
        for wrong in ["Bearer correct horse batter", "Basic correct horse battery", "Bearer", "Bearer ", ""] {
            assert_eq!(ordered(&[("authorization", wrong)], local(), &with), Err(401), "{wrong}");
        }
        assert_eq!(ordered(&[], local(), &with), Err(401));
        let without = admin(None, OrdersFrom::Loopback);
        assert_eq!(ordered(&[("authorization", "Bearer ")], local(), &without), Err(403));
    }

    #[test]
    fn orders_of_other_sites_are_refused_even_with_the_token() {
        // A token that leaked into a page must not be enough.
        let admin = admin(Some(TOKEN), OrdersFrom::Loopback);
        let right = format!("Bearer {TOKEN}");
        let with = |name, value| {
            let host = ("host", "127.0.0.1:6433");
            ordered(&[("authorization", right.as_str()), host, (name, value)], local(), &admin)
        };

        for site in ["cross-site", "same-site", "nonsense"] {
            assert_eq!(with("sec-fetch-site", site), Err(403), "{site}");
        }
        for origin in ["http://evil.example", "null", "http://127.0.0.1:6434", "file://127.0.0.1:6433"] {
            assert_eq!(with("origin", origin), Err(403), "{origin}");
        }
        assert_eq!(with("sec-fetch-site", "same-origin"), Ok(()));
        assert_eq!(with("origin", "http://127.0.0.1:6433"), Ok(()));
    }

    #[test]
    fn orders_from_other_machines_need_leave() {
        // The token would cross the network in the clear.
        let right = format!("Bearer {TOKEN}");
        let headers = [("authorization", right.as_str())];
        let remote = ends("10.0.0.1:6433", "10.0.0.2:5");

        assert_eq!(ordered(&headers, remote, &admin(Some(TOKEN), OrdersFrom::Loopback)), Err(403));
        assert_eq!(ordered(&headers, remote, &admin(Some(TOKEN), OrdersFrom::Anywhere)), Ok(()));
    }

    #[test]
    fn a_name_that_was_pointed_here_is_turned_away() {
        // DNS rebinding: to the browser the page of that name and ours are one site.
        let asked =
            |host_: &str, ours: &str| host(&head(&[("host", host_)]), ends(ours, "127.0.0.1:5")).is_ok();

        for ours in ["127.0.0.1:6433", "localhost:6433", "LOCALHOST", "[::1]:6433", "10.0.0.1"] {
            assert!(asked(ours, "127.0.0.1:6433"), "{ours}");
        }
        for foreign in ["evil.example:6433", "localhost.evil.example", "127.0.0.1.evil.example", "a b", ""] {
            assert!(!asked(foreign, "127.0.0.1:6433"), "{foreign}");
        }
        // Elsewhere a machine has the names that its network gives it.
        assert!(asked("db-proxy.internal:6433", "10.0.0.1:6433"));
    }
}
