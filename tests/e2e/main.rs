//! End-to-end tests: the real binary, real PostgreSQL servers, real drivers. One module per claim.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

/// Health, state and orders over HTTP, for those who may.
mod admin;
/// Whoever has to know is told, once, whatever happens to the sidecar.
mod alerts;
/// Who may log in, by which proof, and what the log does not say.
mod authentication;
/// PostgreSQL dies in part or as a whole, and no session hangs, lies or is lost for good.
mod backend_loss;
/// What breaks the protocol ends one session, and only that.
mod bad_input;
/// A headless browser.
mod browser;
/// A cancel ends the statement that it is for, and never another one.
mod cancel;
/// The client crate keeps its promises with a sidecar in its path.
mod client;
/// Files, variables, flags and signals mean what the documentation says.
mod config;
/// The admin console: PgBouncer's tables and commands, and their effect on traffic.
mod console;
/// COPY in both directions, and all ways in which it fails.
mod copy;
/// The page that an on-call engineer opens says what is wrong, why, since when, and what to do.
mod dashboard;
/// What the documents say is what the code does.
mod documentation;
/// Drivers cannot tell the sidecar from PostgreSQL.
mod drivers;
/// Prepared statements and portals behave as on a connection of one's own.
mod extended_query;
/// Another server becomes the primary, and applications go on.
mod failover;
/// A disk that runs full costs no page, and is said.
mod full_disk;
/// Which functions write is found out from the server.
mod functions;
/// A database that hangs cannot hang the application.
mod guard;
/// Sessions that idle too long are told so, and hold nothing.
mod idle;
/// What PgBouncer was told, this is told, too.
mod import;
/// Each way in which writes hang is one incident, told once and ended once.
mod incident;
/// Sessions and backends part, and neither keeps what was not so.
mod leaving;
/// The log may be stuck or gone, and nothing waits for it or dies with it.
mod log;
/// Memory is bounded, whatever passes through.
mod memory;
/// Every figure that was promised is on the page.
mod metrics;
/// What became of a COMMIT whose answer was lost is found out.
mod outcome;
/// State that cannot move keeps its backend.
mod pinning;
/// tokio-postgres pipelines through few backends.
mod pipelined_tokio;
/// Many sessions share few backends, fairly and without traces.
mod pooling;
/// Replication connections pass in both directions.
mod replication;
/// A sidecar with chosen settings, before a database of the test's own.
mod rig;
/// Settings belong to their session, whatever backend runs it.
mod settings;
/// The simple protocol is PostgreSQL's, byte by byte.
mod simple_query;
/// What the chaos harness claims of this build holds.
mod smoke;
/// What happens before the first statement.
mod startup;
/// Bounds, priority and lane that an application sets for itself.
mod terms;
/// TLS towards applications and towards PostgreSQL.
mod tls;

use tidegate_tests::{Bench, Frames, ProxyOptions, Reply, ScriptedApp, shared_postgres};

/// The binary under test.
const TIDEGATE: &str = env!("CARGO_BIN_EXE_tidegate");

/// A sidecar that trusts everybody, with these further lines of configuration.
fn trusting(settings: &str) -> ProxyOptions {
    ProxyOptions::new(TIDEGATE).config(&format!("listen.auth = \"trust\"\n{settings}\n"))
}

/// The same, in front of the shared server.
async fn bench(settings: &str) -> Bench {
    Bench::start_with(trusting(settings)).await
}

/// A session past the sidecar, on the shared server: the oracle.
async fn oracle(database: &str) -> ScriptedApp {
    let address = ([127, 0, 0, 1], shared_postgres().port()).into();
    ScriptedApp::session(address, "postgres", database).await.0
}

/// What PostgreSQL itself answers to these frames, and what the sidecar does.
async fn both(bench: &Bench, database: &str, frames: &Frames) -> (Reply, Reply) {
    let mut direct = oracle(database).await;
    let (mut through, _) = ScriptedApp::session(bench.proxy.address(), "postgres", database).await;
    (direct.exchange(frames.clone()).await, through.exchange(frames.clone()).await)
}

/// A text column that is not NULL.
#[expect(clippy::unnecessary_wraps, reason = "the type of a column")]
fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}
