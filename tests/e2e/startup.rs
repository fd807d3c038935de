//! Startup packets, login limits, and where the sidecar listens.
//!
//! Message layouts and SQLSTATEs: "Message Flow, Start-up" in PostgreSQL's documentation and
//! `src/backend/tcop/backend_startup.c`.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use tidegate_chaos::cluster::PortLease;
use tidegate_tests::{
    Bench, Credentials, Frames, Greeting, Message, PATIENCE, Problem, Proxy, ProxyOptions, Reply,
    ScriptedApp, Signal, fresh_database, shared_postgres, wait_for,
};
use tokio::time::Instant;

use super::{TIDEGATE, bench, some, trusting};

const VERSION_2_0: u32 = 2 << 16;
const VERSION_3_0: u32 = 3 << 16;
const VERSION_3_2: u32 = (3 << 16) | 2;
const VERSION_3_9: u32 = (3 << 16) | 9;
const VERSION_4_0: u32 = 4 << 16;

/// Of a startup packet.
type Parameters<'a> = &'a [(&'a str, &'a str)];

const WHO: [(&str, &str); 2] = [("user", "postgres"), ("database", "postgres")];
const POSTGRES: Credentials<'static> = Credentials { user: "postgres", password: "", database: "postgres" };

/// Everything that answers a startup packet under trust, up to `ReadyForQuery`.
async fn start_up(proxy: &Proxy, version: u32, parameters: &[(&str, &str)]) -> Reply {
    let mut app = ScriptedApp::connect(proxy.address()).await;
    app.exchange(Frames::new().startup_of_version(version, parameters)).await
}

/// The error that answers a startup packet; the connection must be closed behind it.
async fn refused(proxy: &Proxy, version: u32, parameters: &[(&str, &str)]) -> Problem {
    let mut app = ScriptedApp::connect(proxy.address()).await;
    app.send(Frames::new().startup_of_version(version, parameters)).await;
    last_error(&app.expect_end().await)
}

fn last_error(messages: &[Message]) -> Problem {
    let last = messages.last().unwrap_or_else(|| panic!("closed without a word"));
    last.problem().unwrap_or_else(|| panic!("no error: {last:?}"))
}

fn cancel_secret_length(reply: &Reply) -> usize {
    let key = reply.0.iter().find(|message| message.tag == b'K');
    key.unwrap_or_else(|| panic!("no BackendKeyData in {}", reply.tags())).body.len() - 4
}

/// Version and names of `NegotiateProtocolVersion`.
fn negotiated(message: &Message) -> (u32, Vec<String>) {
    let (version, rest) = message.body.split_first_chunk::<4>().unwrap();
    let (count, names) = rest.split_first_chunk::<4>().unwrap();
    let names: Vec<String> = names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    assert_eq!(u32::from_be_bytes(*count) as usize, names.len());
    (u32::from_be_bytes(*version), names)
}

#[tokio::test]
async fn the_cancel_key_is_as_long_as_the_version_allows() {
    // A 3.0 client reads 4 bytes and would lose its place; a 3.2 client asked for more than 4.
    let bench = Bench::start(TIDEGATE).await;

    for (version, length) in [(VERSION_3_0, 4), (VERSION_3_2, 32), (VERSION_3_9, 32)] {
        let reply = start_up(&bench.proxy, version, &WHO).await;

        assert_eq!(cancel_secret_length(&reply), length, "version {version:#x}");
    }
}

#[tokio::test]
async fn versions_and_options_that_we_do_not_know_are_negotiated() {
    // Without the message, or behind the authentication, a newer driver believes it got what it asked for.
    // The whole version stands in it: libpq compares it with the one it sent (`fe-protocol3.c`).
    let bench = Bench::start(TIDEGATE).await;
    let unknown = [("_pq_.tide", "high"), ("_pq_.moon", "full")];
    let with_options: Vec<_> = WHO.iter().chain(&unknown).copied().collect();
    let rows: [(u32, Parameters, Option<u32>, &[&str]); 5] = [
        (VERSION_3_0, &WHO, None, &[]),
        (VERSION_3_2, &WHO, None, &[]),
        (VERSION_3_9, &WHO, Some(VERSION_3_2), &[]),
        (VERSION_3_2, &with_options, Some(VERSION_3_2), &["_pq_.tide", "_pq_.moon"]),
        (VERSION_3_0, &with_options, Some(VERSION_3_0), &["_pq_.tide", "_pq_.moon"]),
    ];

    for (version, parameters, expected, names) in rows {
        let reply = start_up(&bench.proxy, version, parameters).await;

        let first = &reply.0[0];
        let found = (first.tag == b'v').then(|| negotiated(first));
        let expected = expected.map(|version| (version, names.iter().map(|&name| name.to_owned()).collect()));
        assert_eq!(found, expected, "version {version:#x} with {parameters:?}");
        assert_eq!(reply.status(), Some('I'));
    }
}

#[tokio::test]
async fn other_major_versions_are_refused() {
    // 0A000 is what PostgreSQL says; a driver of tomorrow must not be taken for one of today.
    let bench = Bench::start(TIDEGATE).await;

    for version in [VERSION_2_0, VERSION_4_0, (1 << 16), 99 << 16] {
        let problem = refused(&bench.proxy, version, &WHO).await;

        assert_eq!((problem.severity(), problem.code()), ("FATAL", "0A000"), "version {version:#x}");
    }
}

#[tokio::test]
async fn encryption_that_we_do_not_have_is_declined_and_the_session_goes_on() {
    // libpq asks for GSS, then for TLS, then goes on in plain, all on one connection.
    let bench = Bench::start(TIDEGATE).await;
    let mut app = ScriptedApp::connect(bench.proxy.address()).await;

    let gss = app.gss_enc_request().await;
    let tls = app.ssl_request().await;
    app.log_in(POSTGRES).await.unwrap();

    assert_eq!((gss, tls), (Some(b'N'), Some(b'N')));
    assert_eq!(app.query("SELECT 1").await.value(), some("1"));
}

#[tokio::test]
async fn a_login_without_user_is_refused() {
    // Defaulting to anybody would be an open door.
    let bench = Bench::start(TIDEGATE).await;

    for parameters in [&[("database", "postgres")][..], &[], &[("user", ""), ("database", "postgres")]] {
        let problem = refused(&bench.proxy, VERSION_3_0, parameters).await;

        assert_eq!((problem.severity(), problem.code()), ("FATAL", "28000"), "{parameters:?}");
    }
}

#[tokio::test]
async fn an_unknown_database_is_refused_at_login() {
    // Drivers tell "no such database" from other failures by 3D000, and only while they connect.
    let bench = Bench::start(TIDEGATE).await;

    let problem = refused(&bench.proxy, VERSION_3_0, &[("user", "postgres"), ("database", "atlantis")]).await;
    let (mut app, _) = bench.app().await;

    assert_eq!((problem.severity(), problem.code()), ("FATAL", "3D000"));
    assert!(problem.message().contains("atlantis"), "{problem:?}");
    assert_eq!(app.query("SELECT 1").await.value(), some("1"));
}

#[tokio::test]
async fn the_database_defaults_to_the_user() {
    // Any other default would answer with another name.
    let bench = Bench::start(TIDEGATE).await;
    let name = fresh_database();
    shared_postgres().sql(&format!("CREATE ROLE {name} LOGIN")).unwrap();
    let mut app = ScriptedApp::connect(bench.proxy.address()).await;

    app.exchange(Frames::new().startup(&[("user", &name)])).await;
    let reply = app.query("SELECT current_user, current_database()").await;

    assert_eq!(reply.rows(), [[some(&name), some(&name)]]);
}

#[tokio::test]
async fn the_parameters_told_at_login_are_the_database_s_own() {
    // A driver reads server_version, client_encoding and the like from here; one that is missing or made up shows.
    let bench = Bench::start(TIDEGATE).await;
    let address = ([127, 0, 0, 1], bench.postgres.port()).into();
    let (_, direct) = ScriptedApp::session(address, "postgres", "postgres").await;

    for _ in 0..2 {
        let (_app, through) = bench.app().await;

        assert_eq!(sorted(&through), sorted(&direct));
        assert!(through.parameter("server_version").is_some_and(|version| !version.is_empty()));
        assert_eq!(through.parameter("client_encoding"), Some("UTF8"));
    }
}

fn sorted(greeting: &Greeting) -> Vec<(String, String)> {
    let mut parameters = greeting.parameters.clone();
    parameters.sort();
    parameters
}

#[tokio::test]
async fn settings_of_the_startup_packet_are_told_and_hold() {
    // Told but not applied, or applied to another session's backend: either would differ from SHOW.
    let bench = bench("pool.size = 1").await;
    let rows: [(Parameters, &str, &str); 8] = [
        (&[("TimeZone", "Europe/Berlin")], "TimeZone", "Europe/Berlin"),
        (&[("timezone", "Asia/Tokyo")], "TimeZone", "Asia/Tokyo"),
        (&[("application_name", "harbour")], "application_name", "harbour"),
        (&[("DateStyle", "SQL, DMY")], "DateStyle", "SQL, DMY"),
        (&[("client_encoding", "LATIN1")], "client_encoding", "LATIN1"),
        (&[("IntervalStyle", "iso_8601")], "IntervalStyle", "iso_8601"),
        (&[("options", "-c TimeZone=Europe/Paris")], "TimeZone", "Europe/Paris"),
        (&[("options", "--TimeZone=Africa/Cairo -cDateStyle=German")], "TimeZone", "Africa/Cairo"),
    ];
    let (mut other, _) = bench.app().await;

    for (parameters, name, value) in rows {
        let mut app = ScriptedApp::connect(bench.proxy.address()).await;
        let greeting = app.log_in_with(POSTGRES, parameters).await.unwrap();
        // In between, the only backend serves a session with the defaults.
        let before = other.query(&format!("SHOW {name}")).await.value();
        let shown = app.query(&format!("SHOW {name}")).await.value();
        let after = other.query(&format!("SHOW {name}")).await.value();

        assert_eq!(greeting.parameter(name), Some(value), "{parameters:?}");
        assert_eq!(shown.as_deref(), Some(value), "{parameters:?}");
        assert_eq!(before, after, "{parameters:?} leaked into another session");
        assert_ne!(before.as_deref(), Some(value), "{parameters:?}");
    }
}

#[tokio::test]
async fn settings_that_are_not_reported_hold_as_well() {
    // work_mem and search_path are in no ParameterStatus of PostgreSQL 15: only SHOW can tell.
    let bench = bench("pool.size = 1").await;
    let parameters = [("options", "-c work_mem=5MB -c search_path=\"a\\ b\",public"), ("geqo", "off")];
    let mut app = ScriptedApp::connect(bench.proxy.address()).await;
    let (mut other, _) = bench.app().await;

    app.log_in_with(POSTGRES, &parameters).await.unwrap();

    for (name, value) in [("work_mem", "5MB"), ("search_path", "\"a b\",public"), ("geqo", "off")] {
        assert_ne!(other.query(&format!("SHOW {name}")).await.value().as_deref(), Some(value));
        assert_eq!(app.query(&format!("SHOW {name}")).await.value().as_deref(), Some(value), "{name}");
    }
}

#[tokio::test]
async fn settings_that_the_database_refuses_are_refused_with_its_sqlstate() {
    // An app that asks for what it cannot have must learn it at login, and the next one must not suffer.
    let bench = bench("pool.size = 1").await;
    let rows = [
        ("no_such_setting", "1", "42704"),
        ("TimeZone", "Nowhere/Land", "22023"),
        ("client_encoding", "KLINGON", "22023"),
        ("options", "-c work_mem=plenty", "22023"),
        ("options", "-c nonsense=1", "42704"),
        ("max_connections", "5", "55P02"),
    ];

    for (name, value, code) in rows {
        let parameters = [WHO[0], WHO[1], (name, value)];
        let problem = refused(&bench.proxy, VERSION_3_0, &parameters).await;
        let (mut app, _) = bench.app().await;

        assert_eq!((problem.severity(), problem.code()), ("FATAL", code), "{name}={value}: {problem:?}");
        assert_eq!(app.query("SELECT 1").await.value(), some("1"));
    }
}

#[tokio::test]
async fn sessions_beyond_the_maximum_are_refused_until_one_leaves() {
    // Refused for good, or not at all: each would fail one half.
    let bench = bench("listen.max_sessions = 2").await;
    let (first, _) = bench.app().await;
    let (mut second, _) = bench.app().await;

    let problem = refused(&bench.proxy, VERSION_3_0, &WHO).await;
    first.terminate().await;
    let mut third = wait_for(Duration::from_secs(10), "a place for the third", async || {
        let mut app = ScriptedApp::connect(bench.proxy.address()).await;
        app.log_in(POSTGRES).await.is_ok().then_some(app)
    })
    .await;

    assert_eq!((problem.severity(), problem.code()), ("FATAL", "53300"));
    assert_eq!(second.query("SELECT 2").await.value(), some("2"));
    assert_eq!(third.query("SELECT 3").await.value(), some("3"));
}

#[tokio::test]
async fn who_asks_for_encryption_hears_that_there_are_too_many_sessions() {
    // libpq shows no error that comes instead of an answer to that (CVE-2024-10977), and nobody would know why.
    let bench = bench("listen.max_sessions = 1").await;
    let mut silent = Vec::new();
    // One in the only place and four that are looked at: whoever comes then is turned away unseen.
    for _ in 0..5 {
        silent.push(ScriptedApp::connect(bench.proxy.address()).await);
    }
    let mut app = ScriptedApp::connect(bench.proxy.address()).await;

    let answers = (app.ssl_request().await, app.gss_enc_request().await);
    let problem = app.log_in(POSTGRES).await.unwrap_err();

    assert_eq!(answers, (Some(b'N'), Some(b'N')));
    assert_eq!((problem.severity(), problem.code()), ("FATAL", "53300"));
}

#[tokio::test]
async fn a_connection_that_never_logs_in_is_closed_at_the_deadline() {
    // Idle sockets would fill max_sessions. One that has logged in must outlive the same deadline.
    let options = ProxyOptions::new(TIDEGATE)
        .config("listen.userlist = \"users\"\ntimeouts.login = \"500ms\"")
        .file("users", "\"postgres\" \"secret\"\n");
    let bench = Bench::start_with(options).await;
    let startup = Frames::new().startup(&WHO);
    let half = Frames::new().raw(&startup.as_ref()[..9]);
    let mut logged_in = ScriptedApp::connect(bench.proxy.address()).await;
    logged_in.log_in(Credentials { password: "secret", ..POSTGRES }).await.unwrap();

    for (what, bytes) in
        [("nothing", Frames::new()), ("half a packet", half), ("no password", startup.clone())]
    {
        let mut app = ScriptedApp::connect(bench.proxy.address()).await;
        let start = Instant::now();
        app.send(bytes).await;
        app.expect_end().await;

        let waited = start.elapsed();
        assert!(waited > Duration::from_millis(400), "{what}: closed after {waited:?}");
        assert!(waited < Duration::from_secs(5), "{what}: closed after {waited:?}");
    }
    assert_eq!(logged_in.query("SELECT 1").await.value(), some("1"));
}

#[tokio::test]
async fn the_ready_line_has_both_addresses() {
    // Whoever starts it with port 0 or by a supervisor reads them from there.
    let bench = Bench::start(TIDEGATE).await;

    let log = bench.proxy.log();
    let line = log.lines().find(|line| line.contains("ready")).unwrap_or_default();

    assert!(line.contains(&bench.proxy.address().to_string()), "{log}");
    assert!(line.contains(&bench.proxy.admin_address().to_string()), "{log}");
}

#[tokio::test]
async fn flags_alone_are_enough() {
    // No file, no variables: trust on loopback, and the upstream's user for what the sidecar does itself.
    let bench = Bench::start(TIDEGATE).await;

    let (mut app, _) = bench.app().await;

    assert_eq!(app.query("SELECT 1").await.value(), some("1"));
    assert_eq!(bench.proxy.get("/livez").await.status, 200);
}

#[tokio::test]
async fn every_listen_address_serves() {
    // A list of which only the first is bound would refuse the others.
    let second = PortLease::take().unwrap();
    let second = SocketAddr::from((Ipv4Addr::LOCALHOST, second.port()));
    let addresses = format!("listen.address = [\"@LISTEN@\", \"{second}\", \"unix:@DIR@:6440\"]");
    let bench = Bench::start_with(trusting(&addresses)).await;
    let socket = bench.proxy.dir().join(".s.PGSQL.6440");

    let mut apps = [
        ScriptedApp::connect(bench.proxy.address()).await,
        ScriptedApp::connect(second).await,
        ScriptedApp::connect_unix(&socket).await,
    ];

    for (number, app) in apps.iter_mut().enumerate() {
        app.log_in(POSTGRES).await.unwrap_or_else(|problem| panic!("address {number}: {problem:?}"));
        assert_eq!(app.query("SELECT 1").await.value(), some("1"), "address {number}");
    }
}

#[tokio::test]
async fn a_unix_socket_is_removed_at_the_end() {
    // A file left behind makes others believe that somebody listens.
    let mut bench = bench("listen.address = [\"@LISTEN@\", \"unix:@DIR@:6440\"]").await;
    let socket = bench.proxy.dir().join(".s.PGSQL.6440");
    assert!(socket.exists());

    bench.proxy.signal(Signal::TERM);
    bench.proxy.wait_exit(PATIENCE).await;

    assert!(!socket.exists());
}

#[tokio::test]
async fn a_socket_file_left_by_a_crash_does_not_stop_the_next_start() {
    // bind(2) says "address in use" for any file in its place, whether somebody listens or not.
    let dir = tempfile::tempdir().unwrap();
    let config = format!("listen.address = [\"@LISTEN@\", \"unix:{}:6440\"]", dir.path().display());
    drop(UnixListener::bind(dir.path().join(".s.PGSQL.6440")).unwrap());

    let bench = bench(&config).await;
    let mut app = ScriptedApp::connect_unix(&dir.path().join(".s.PGSQL.6440")).await;
    app.log_in(POSTGRES).await.unwrap();

    assert_eq!(app.query("SELECT 1").await.value(), some("1"));
    drop(bench);
}
