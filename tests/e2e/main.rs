//! End-to-end tests: the real binary, real PostgreSQL servers, real drivers. One module per claim.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

/// Who may log in, by which proof, and what the log does not say.
mod authentication;
/// PostgreSQL dies in part or as a whole, and no session hangs, lies or is lost for good.
mod backend_loss;
/// What breaks the protocol ends one session, and only that.
mod bad_input;
/// A cancel ends the statement that it is for, and never another one.
mod cancel;
/// Files, variables, flags and signals mean what the documentation says.
mod config;
/// COPY in both directions, and all ways in which it fails.
mod copy;
/// What the documents say is what the code does.
mod documentation;
/// Drivers cannot tell the sidecar from PostgreSQL.
mod drivers;
/// Prepared statements and portals behave as on a connection of one's own.
mod extended_query;
/// Sessions that idle too long are told so, and hold nothing.
mod idle;
/// Memory is bounded, whatever passes through.
mod memory;
/// State that cannot move keeps its backend.
mod pinning;
/// tokio-postgres pipelines through few backends.
mod pipelined_tokio;
/// Many sessions share few backends, fairly and without traces.
mod pooling;
/// A sidecar with chosen settings, before a database of the test's own.
mod rig;
/// Settings belong to their session, whatever backend runs it.
mod settings;
/// The simple protocol is PostgreSQL's, byte by byte.
mod simple_query;
/// What happens before the first statement.
mod startup;
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
