//! The traps of bb8, bb8-postgres and tokio-postgres, each shown on the plain pool (the halves marked THE TRAP) and then
//! passed by this crate. The plain halves assert what is wrong: if one fails, upstream has mended it, and the
//! README's table should say so.
//!
//! With the sidecar in the path the same traps are passed in `tests/e2e/client` of the workspace, where cargo builds
//! the sidecar first.

#![expect(clippy::unwrap_used, reason = "whatever is not as it should be fails the test")]

#[path = "../support/mod.rs"]
mod support;
#[path = "../support/tls.rs"]
mod tls;

/// What a cancel does, and what it does not.
mod cancelling;
/// From nothing to a session.
mod connecting;
/// What a connection is like when the next one gets it.
mod returning;
/// Who waits, for how long, and who is refused.
mod waiting;

use std::time::Duration;

use bb8_postgres::PostgresConnectionManager;
use tidegate_chaos::relay::Relay as Switch;
use tokio_postgres::NoTls;

type Plain = bb8::Pool<PostgresConnectionManager<NoTls>>;

/// bb8 and bb8-postgres as their documentation shows them, but for the time to wait, which is 30 s by default.
fn plain(url: &str, name: &str, size: u32, wait: Duration) -> Plain {
    plain_builder(size, wait).build_unchecked(manager(url, name))
}

fn plain_builder(size: u32, wait: Duration) -> bb8::Builder<PostgresConnectionManager<NoTls>> {
    bb8::Pool::builder().max_size(size).connection_timeout(wait)
}

fn manager(url: &str, name: &str) -> PostgresConnectionManager<NoTls> {
    let separator = if url.contains('?') { '&' } else { '?' };
    let url = format!("{url}{separator}application_name={name}");
    PostgresConnectionManager::new_from_stringlike(url, NoTls).unwrap()
}

/// A relay that can be switched off, and its connections with it, in front of a local server.
async fn switch(port: u16) -> Switch {
    let local = std::net::Ipv4Addr::LOCALHOST;
    Switch::start((local, 0).into(), (local, port).into()).await.unwrap()
}

fn url_of(relay: &Switch) -> String {
    format!("postgres://postgres@{}/postgres", relay.address())
}

const SHORT: Duration = Duration::from_millis(400);
const LONG: Duration = Duration::from_secs(2);
