//! A CancelRequest with a session's key ends the statement that the session runs now, and never another one.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidegate_chaos::cluster::{Node, NodeOptions, Programs, TlsFiles};
use tidegate_tests::{BackendKey, Frames, Proxy, ProxyOptions, Reply, ScriptedApp, wait_for, within};
use tokio::task::JoinSet;

use crate::rig::{PATIENT, Rig, SOON, pool_of, run, session_pool_of, sidecar, value};

const QUICK: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_cancel_ends_the_running_statement_and_the_session_goes_on() {
    // Without the mapping of our key to the backend's the sleep lasts; with a FATAL the driver would reconnect.
    for options in [pool_of(3), session_pool_of(3)] {
        let rig = Rig::start(options).await;
        let (mut app, greeting) = rig.greeted().await;
        app.send(Frames::new().query("SELECT pg_sleep(60)")).await;
        rig.wait_running("SELECT pg_sleep(60)").await;
        let start = Instant::now();

        ScriptedApp::cancel(rig.proxy().address(), &greeting.key).await;
        let reply = app.reply().await;

        assert!(start.elapsed() < QUICK, "{:?}", start.elapsed());
        let error = reply.error().unwrap();
        assert_eq!((error.severity(), error.code()), ("ERROR", "57014"));
        assert_eq!(reply.status(), Some('I'));
        assert_eq!(value(&mut app, "SELECT 1").await, "1");
    }
}

#[tokio::test]
async fn a_cancel_fails_the_transaction_but_not_the_session() {
    // The transaction is the server's to fail; what follows is as without a sidecar.
    let rig = Rig::start(pool_of(1)).await;
    let (mut app, greeting) = rig.greeted().await;
    run(&mut app, "BEGIN").await;
    app.send(Frames::new().unnamed("SELECT pg_sleep(61)", &[]).sync()).await;
    rig.wait_running("SELECT pg_sleep(61)").await;

    ScriptedApp::cancel(rig.proxy().address(), &greeting.key).await;
    let reply = app.reply().await;

    assert_eq!((reply.error_code().as_str(), reply.status()), ("57014", Some('E')));
    assert_eq!(app.query("SELECT 1").await.error_code(), "25P02");
    assert_eq!(app.query("ROLLBACK").await.status(), Some('I'));
    assert_eq!(value(&mut app, "SELECT 2").await, "2");
}

#[tokio::test]
async fn a_wrong_key_cancels_nothing() {
    // Anybody who can connect could otherwise stop everybody's statements.
    let rig = Rig::start(pool_of(1)).await;
    let (mut app, greeting) = rig.greeted().await;
    app.send(Frames::new().query("SELECT pg_sleep(1.5)")).await;
    rig.wait_running("SELECT pg_sleep(1.5)").await;
    let BackendKey { pid, mut secret } = greeting.key;

    secret[0] ^= 1;
    ScriptedApp::cancel(rig.proxy().address(), &BackendKey { pid, secret: secret.clone() }).await;
    secret[0] ^= 1;
    ScriptedApp::cancel(rig.proxy().address(), &BackendKey { pid: pid ^ 1, secret: secret.clone() }).await;
    secret.truncate(3);
    ScriptedApp::cancel(rig.proxy().address(), &BackendKey { pid, secret }).await;

    assert_eq!(app.reply().await.error(), None);
}

#[tokio::test]
async fn a_cancel_for_an_idle_session_hurts_nobody() {
    // The idle session's last backend now works for another session.
    let rig = Rig::start(pool_of(1)).await;
    let (mut idle, greeting) = rig.greeted().await;
    run(&mut idle, "SELECT 1").await;
    let mut other = rig.app().await;
    other.send(Frames::new().query("SELECT pg_sleep(1.6)")).await;
    rig.wait_running("SELECT pg_sleep(1.6)").await;

    ScriptedApp::cancel(rig.proxy().address(), &greeting.key).await;

    assert_eq!(other.reply().await.error(), None);
    assert_eq!(value(&mut idle, "SELECT 1").await, "1");
}

#[tokio::test]
async fn a_cancel_for_a_session_that_left_hurts_nobody() {
    // Keys of the dead must not be taken for those of the living.
    let rig = Rig::start(pool_of(1)).await;
    let (mut gone, greeting) = rig.greeted().await;
    run(&mut gone, "SELECT 1").await;
    gone.terminate().await;
    let mut other = rig.app().await;
    other.send(Frames::new().query("SELECT pg_sleep(1.7)")).await;
    rig.wait_running("SELECT pg_sleep(1.7)").await;

    ScriptedApp::cancel(rig.proxy().address(), &greeting.key).await;

    assert_eq!(other.reply().await.error(), None);
}

#[tokio::test]
async fn keys_differ_between_sessions() {
    // The keys are ours: those of the shared backend would be the same.
    let rig = Rig::start(pool_of(1)).await;
    let mut keys = Vec::new();
    let mut apps = Vec::new();
    for _ in 0..10 {
        let (app, greeting) = rig.greeted().await;
        apps.push(app);
        keys.push((greeting.key.pid, greeting.key.secret));
    }

    keys.sort();
    keys.dedup();

    assert_eq!(keys.len(), 10);
}

#[tokio::test]
async fn a_cancel_ends_the_wait_for_a_backend() {
    // Nothing runs anywhere yet, but the user has pressed Ctrl-C and wants the prompt.
    let rig = Rig::start(pool_of(1)).await;
    let mut holder = rig.app().await;
    run(&mut holder, "BEGIN").await;
    run(&mut holder, "SELECT 1").await;
    let (mut app, greeting) = rig.greeted().await;
    app.send(Frames::new().query("SELECT 2")).await;
    app.expect_silence(Duration::from_millis(200)).await;
    let start = Instant::now();

    ScriptedApp::cancel(rig.proxy().address(), &greeting.key).await;
    let reply = app.reply().await;

    assert!(start.elapsed() < QUICK, "{:?}", start.elapsed());
    assert_eq!((reply.error_code().as_str(), reply.status()), ("57014", Some('I')));
    assert_eq!(value(&mut holder, "SELECT 3").await, "3");
    run(&mut holder, "COMMIT").await;
    assert_eq!(value(&mut app, "SELECT 2").await, "2");
}

/// What the storm did.
#[derive(Default)]
struct Storm {
    statements: AtomicUsize,
    cancelled: AtomicUsize,
}

/// Cancels that have to arrive for the storm to show anything, and statements at least.
const STORM_CANCELS: usize = 50;
const STORM_STATEMENTS: usize = 5_000;
/// A machine so busy that cancels come late needs more statements; this is the end.
const STORM_STATEMENTS_MAX: usize = 25_000;

impl Storm {
    fn goes_on(&self) -> bool {
        let statements = self.statements.fetch_add(1, Ordering::Relaxed);
        let shown = self.cancelled.load(Ordering::Relaxed) > STORM_CANCELS;
        statements < STORM_STATEMENTS || (!shown && statements < STORM_STATEMENTS_MAX)
    }
}

const STORM_SESSIONS: usize = 30;

/// Every second session sends cancels for its own statements at random moments; the others never do. A statement
/// without a cancel must succeed; so must all that follow the end of the cancel's connection.
async fn sail(rig: &Rig, number: usize, seed: u64, storm: &Storm) {
    let address = rig.proxy().address();
    let (mut app, greeting) = rig.greeted().await;
    let mut dice = StdRng::seed_from_u64(seed ^ (number as u64) << 32);
    let cancels = number.is_multiple_of(2);
    while storm.goes_on() {
        let id: u32 = dice.random();
        let pause_ms = if dice.random_bool(0.3) { dice.random_range(5..40) } else { 0 };
        let sql = match pause_ms {
            0 => format!("SELECT {id}"),
            _ => format!("SELECT {id} FROM pg_sleep(0.{pause_ms:03})"),
        };
        let asked = cancels && dice.random_bool(0.4);
        let cancel = asked.then(|| {
            let delay = Duration::from_micros(dice.random_range(0..12_000));
            tokio::spawn(late_cancel(address, greeting.key.clone(), delay))
        });
        let reply = app.query(&sql).await;
        judge(&reply, id, asked, storm, number);
        if let Some(cancel) = cancel {
            within(SOON, "the end of the cancel", cancel).await.unwrap();
        }
    }
}

async fn late_cancel(address: SocketAddr, key: BackendKey, delay: Duration) {
    tokio::time::sleep(delay).await;
    ScriptedApp::cancel(address, &key).await;
}

fn judge(reply: &Reply, id: u32, asked: bool, storm: &Storm, number: usize) {
    assert_eq!(reply.status(), Some('I'));
    match reply.error() {
        None => assert_eq!(reply.value(), Some(id.to_string()), "session {number} got another's row"),
        Some(error) if asked && error.code() == "57014" => {
            storm.cancelled.fetch_add(1, Ordering::Relaxed);
        }
        Some(error) => panic!("session {number}, cancel asked: {asked}: {error:?}"),
    }
}

async fn storm(options: ProxyOptions) {
    let seed = rand::random();
    println!("seed {seed}");
    let rig = Arc::new(Rig::start(options).await);
    let storm = Arc::new(Storm::default());

    let mut sessions = JoinSet::new();
    for number in 0..STORM_SESSIONS {
        let (rig, storm) = (Arc::clone(&rig), Arc::clone(&storm));
        sessions.spawn(async move { sail(&rig, number, seed, &storm).await });
    }
    // The first panic is the verdict.
    while let Some(session) = within(Duration::from_mins(2), "the storm", sessions.join_next()).await {
        session.unwrap();
    }

    let cancelled = storm.cancelled.load(Ordering::Relaxed);
    assert!(cancelled > STORM_CANCELS, "{cancelled} cancels arrived, too few to show anything");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_storm_of_cancels_no_other_statement_is_hit() {
    // Four backends change hands thousands of times while cancels are on their way to them.
    storm(pool_of(4)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_session_mode_a_cancel_is_over_when_its_connection_ends() {
    // The backend stays with its session. A sidecar that closes the cancel's connection before PostgreSQL has closed its
    // own lets the cancel hit the session's next statement; drivers wait for that end.
    storm(session_pool_of(STORM_SESSIONS)).await;
}

/// A server that takes TLS, and a sidecar that insists on it.
async fn encrypted() -> Option<(Node, Proxy)> {
    let programs = Programs::find().unwrap();
    if !programs.has_tls() {
        println!("skip: this PostgreSQL has no TLS");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    fs::write(&cert, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let options = NodeOptions::new(programs).tls(TlsFiles { cert, key, client_ca: None });
    let node = Node::start(&options.hba("hostssl all all 127.0.0.1/32 trust")).unwrap();
    let cluster = format!(
        "[pool]\nsize = 1\n[cluster]\nupstreams = [\"127.0.0.1:{}\"]\nuser = \"postgres\"\ntls = \"require\"\n{PATIENT}",
        node.port()
    );
    let proxy = sidecar(&cluster).start().await;
    Some((node, proxy))
}

#[tokio::test]
async fn a_cancel_reaches_an_encrypted_backend() {
    // The server takes TLS only: a cancel in the clear is turned away, and the sleep lasts.
    let Some((node, proxy)) = encrypted().await else { return };
    let (mut app, greeting) = ScriptedApp::session(proxy.address(), "postgres", "postgres").await;
    let encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert_eq!(value(&mut app, encrypted).await, "t");
    app.send(Frames::new().query("SELECT pg_sleep(60)")).await;
    let look = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'";
    wait_for(SOON, "the statement runs", async || (node.sql(look).unwrap() == "1").then_some(())).await;
    let start = Instant::now();

    ScriptedApp::cancel(proxy.address(), &greeting.key).await;

    assert_eq!(app.reply().await.error_code(), "57014");
    assert!(start.elapsed() < QUICK, "{:?}", start.elapsed());
    assert_eq!(value(&mut app, "SELECT 1").await, "1");
}
