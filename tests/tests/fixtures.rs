//! The fixtures' own claims.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use tidegate_tests::{
    BackendKey, Credentials, Frames, Incoming, Proxy, ProxyOptions, Received, Replies, ScriptedApp,
    ScriptedServer, Signal, fresh_database, shared_postgres, wait_until, within,
};

const SOON: Duration = Duration::from_secs(10);

fn address() -> std::net::SocketAddr {
    ([127, 0, 0, 1], shared_postgres().port()).into()
}

#[tokio::test]
async fn the_app_speaks_to_a_real_server() {
    // Rows, parameters, errors and the pipelined order all come from PostgreSQL, not from our own fake.
    let (mut app, greeting) = ScriptedApp::session(address(), "postgres", "postgres").await;

    let simple = app.query("SELECT 1, NULL; SELECT 'x'").await;
    let frames = Frames::new().unnamed("SELECT $1::text", &[Some("hello")]).sync().query("SELEC");
    let extended = app.exchange(frames).await;
    let failed = app.reply().await;

    assert_eq!(greeting.parameter("client_encoding"), Some("UTF8"));
    assert_eq!(simple.tags(), "TDCTDCZ");
    assert_eq!(simple.rows()[0], [Some("1".to_owned()), None]);
    assert_eq!(extended.tags(), "12TDCZ");
    assert_eq!(extended.value().as_deref(), Some("hello"));
    assert_eq!((failed.error_code().as_str(), failed.status()), ("42601", Some('I')));
}

#[tokio::test]
async fn bytes_split_anywhere_are_the_same_request() {
    // A length field torn in two must still be sent whole.
    let (mut app, _) = ScriptedApp::session(address(), "postgres", "postgres").await;

    app.send_split(Frames::new().query("SELECT 7"), &[1, 3, 6]).await;

    assert_eq!(app.reply().await.value().as_deref(), Some("7"));
}

#[tokio::test]
async fn the_app_logs_in_with_every_kind_of_password() {
    // A server of its own: the shared one trusts everybody. Wrong passwords must fail, or nothing was proven.
    use tidegate_chaos::cluster::{Node, NodeOptions, Programs, SecretKind};
    let options = NodeOptions::new(Programs::find().unwrap())
        .hba("host all clear 127.0.0.1/32 password")
        .hba("host all old 127.0.0.1/32 md5")
        .hba("host all all 127.0.0.1/32 scram-sha-256");
    let node = Node::start(&options).unwrap();
    node.create_user("clear", "c", SecretKind::Scram).unwrap();
    node.create_user("old", "o", SecretKind::Md5).unwrap();
    node.create_user("modern", "m", SecretKind::Scram).unwrap();
    let address = ([127, 0, 0, 1], node.port()).into();

    for (user, password) in [("clear", "c"), ("old", "o"), ("modern", "m")] {
        let good = Credentials { user, password, database: "postgres" };
        let bad = Credentials { password: "wrong", ..good };

        let mut app = ScriptedApp::connect(address).await;
        app.log_in(good).await.unwrap();
        let refused = ScriptedApp::connect(address).await.log_in(bad).await.unwrap_err();

        assert_eq!(app.query("SELECT current_user").await.value().as_deref(), Some(user));
        assert_eq!(refused.code(), "28P01");
    }
}

#[tokio::test]
async fn a_cancel_request_reaches_the_session_of_its_key() {
    // A wrong key is ignored by PostgreSQL: the sleep would last.
    let (mut app, greeting) = ScriptedApp::session(address(), "postgres", "postgres").await;
    app.send(Frames::new().query("SELECT pg_sleep(60)")).await;
    let pid = greeting.key.pid;
    let asleep =
        format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'PgSleep'");
    wait_until(SOON, "the session sleeps", || shared_postgres().sql(&asleep).unwrap() == "1").await;

    ScriptedApp::cancel(address(), &greeting.key).await;

    assert_eq!(app.reply().await.error_code(), "57014");
}

#[tokio::test]
async fn a_driver_believes_the_scripted_server() {
    // tokio-postgres checks the order of messages on its own.
    let server = ScriptedServer::start().await;
    let url = server.url();
    let script = tokio::spawn(async move {
        let mut backend = server.accept_session().await;
        backend.welcome(&BackendKey { pid: 7, secret: vec![1, 2, 3, 4] }).await;
        backend.expect_query("SELECT name").await;
        backend.send(Replies::new().one_value("tide")).await;
        let Incoming::Cancel { key, .. } = server.accept().await else { panic!("not a cancel") };
        let user = backend.parameter("user").map(str::to_owned);
        backend.reset();
        (key, user)
    });

    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    let rows = client.simple_query("SELECT name").await.unwrap();
    client.cancel_token().cancel_query(tokio_postgres::NoTls).await.unwrap();
    let (key, user) = within(SOON, "the script", script).await.unwrap();

    let row = rows.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    assert_eq!(row.as_deref(), Some("tide"));
    assert_eq!(key, BackendKey { pid: 7, secret: vec![1, 2, 3, 4] });
    assert_eq!(user.as_deref(), Some("postgres"));
    // RST, not FIN: the driver must see an error.
    assert!(within(SOON, "the end", connection).await.unwrap().is_err());
}

#[tokio::test]
async fn silence_end_and_reset_can_be_told_apart() {
    // A proxy's deadlines are tested on exactly this difference.
    let mut server = ScriptedServer::start().await;
    server.serve(|incoming| async move {
        let Incoming::Session(mut backend) = incoming else { return };
        match backend.parameter("user").map(str::to_owned).as_deref() {
            Some("silent") => backend.go_silent().await,
            Some("reset") => backend.reset(),
            _ => backend.send(b"R\0\0").await,
        }
    });
    let meet = async |user: &str| {
        let mut app = ScriptedApp::connect(server.address()).await;
        app.send(Frames::new().startup(&[("user", user)])).await;
        app.receive_within(Duration::from_millis(300)).await
    };

    assert!(matches!(meet("silent").await, Received::Silence));
    assert!(matches!(meet("reset").await, Received::Reset(_)));
    assert!(matches!(meet("closed").await, Received::Closed { rest } if rest.len() == 3));
}

#[tokio::test]
async fn databases_of_tests_are_their_own() {
    // The second CREATE TABLE would fail in a shared database.
    let (one, two) = (fresh_database(), fresh_database());

    shared_postgres().sql_in(&one, "CREATE TABLE t ()").unwrap();
    shared_postgres().sql_in(&two, "CREATE TABLE t ()").unwrap();
}

/// Not tidegate: a shell script that behaves as told.
#[expect(clippy::unwrap_used, reason = "a helper of tests")]
fn stand_in(script: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stand-in");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    (dir, path)
}

#[tokio::test]
async fn a_proxy_gets_its_files_and_arguments_and_answers_signals() {
    // Each placeholder left unfilled would show in the log.
    let script = r#"echo "arguments: $*"; cat tidegate.toml users; trap 'echo reloaded' HUP; trap 'exit 3' TERM
        echo ready; while :; do sleep 0.01; done"#;
    let (_dir, binary) = stand_in(script);
    let options = ProxyOptions::new(&binary).config("address = '@LISTEN@'").file("users", "in @DIR@\n");

    let mut proxy: Proxy = options.upstream("postgres://here").start().await;
    let dir = proxy.dir().to_owned();
    proxy.signal(Signal::HUP);
    proxy.wait_logged("reloaded").await;
    let (memory, time) = (proxy.rss_bytes(), proxy.cpu_time());
    proxy.signal(Signal::TERM);
    let status = proxy.wait_exit(SOON).await;

    let log = proxy.log();
    let expected = format!("arguments: run --config {0}/tidegate.toml --admin", dir.display());
    assert!(log.contains(&expected) && log.contains("--upstream postgres://here"), "{log}");
    assert!(log.contains(&format!("address = '{}'", proxy.address())), "{log}");
    assert!(log.contains(&format!("in {}", dir.display())), "{log}");
    assert_eq!(status.code(), Some(3));
    assert!(memory > 0 && time < SOON);
    drop(proxy);
    assert!(!dir.exists());
}

#[tokio::test]
async fn a_proxy_that_refuses_its_configuration_shows_why() {
    // Exit code and words are the contract with the operator.
    let (_dir, binary) = stand_in("echo 'no such key' >&2; exit 2");

    let ended = ProxyOptions::new(&binary).run_to_end().await;

    assert_eq!((ended.status.code(), ended.log.trim()), (Some(2), "no such key"));
}
