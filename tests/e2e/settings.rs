//! Settings belong to their session: they follow it to any backend, and no other session sees them.

use std::time::{Duration, Instant};

use tidegate_chaos::cluster::Node;
use tidegate_tests::{
    BackendKey, Frames, Incoming, Message, Proxy, ProxyOptions, Replies, Reply, ScriptedApp, ScriptedServer,
    Signal, wait_for,
};
use tokio::task::block_in_place;

use crate::rig::{Rig, SOON, own_postgres, pool_of, run, session_pool_of, value};

/// Two sessions on one backend: each statement of one comes between two of the other.
async fn two_on_one() -> (Rig, ScriptedApp, ScriptedApp) {
    let rig = Rig::start(pool_of(1)).await;
    let (app, other) = (rig.app().await, rig.app().await);
    (rig, app, other)
}

async fn show(app: &mut ScriptedApp, name: &str) -> String {
    value(app, &format!("SELECT current_setting('{name}')")).await
}

#[tokio::test]
async fn a_setting_is_its_sessions_own() {
    // On a shared backend a SET that is passed on and forgotten is seen by the wrong session, or lost.
    let cases = [
        ("SET work_mem = '7MB'", "work_mem", "7MB"),
        ("SET work_mem TO 7168", "work_mem", "7MB"),
        ("SET SESSION statement_timeout = 54321", "statement_timeout", "54321ms"),
        ("SET search_path TO pg_catalog, \"a b\", 'c''d'", "search_path", "pg_catalog, \"a b\", \"c'd\""),
        ("SET search_path = ''", "search_path", "\"\""),
        ("SET datestyle = 'German'", "DateStyle", "German, DMY"),
        ("set TimeZone to 'Asia/Tokyo'", "TimeZone", "Asia/Tokyo"),
        ("SET TIME ZONE 'Europe/Oslo'", "TimeZone", "Europe/Oslo"),
        ("SET TIME ZONE INTERVAL '-08:00' HOUR TO MINUTE", "TimeZone", "<-08>+08"),
        ("SET NAMES 'latin1'", "client_encoding", "LATIN1"),
        (
            "SET application_name = 'it''s \"quoted\" \\ and more'",
            "application_name",
            "it's \"quoted\" \\ and more",
        ),
        ("SET application_name = E'tab\\'s \\\\ end'", "application_name", "tab's \\ end"),
        ("SET standard_conforming_strings = off", "standard_conforming_strings", "off"),
        ("SET app.tenant = 'a;b--c/*d*/'", "app.tenant", "a;b--c/*d*/"),
        ("SET app.empty = ''", "app.empty", ""),
        ("SELECT set_config('work_mem', '9MB', false)", "work_mem", "9MB"),
        ("SELECT set_config('app.tenant', 'x''y\\z', false)", "app.tenant", "x'y\\z"),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "default_transaction_read_only", "on"),
        ("SET /* why not */ work_mem = '11MB' ;", "work_mem", "11MB"),
        ("SELECT 1; SET work_mem = '12MB'; SELECT 2", "work_mem", "12MB"),
        ("BEGIN; SET work_mem = '13MB'; COMMIT", "work_mem", "13MB"),
    ];
    for (set, name, wanted) in cases {
        let (_rig, mut app, mut other) = two_on_one().await;
        let look = format!("SELECT current_setting('{name}', true)");
        let default = value(&mut other, &look).await;

        run(&mut app, set).await;

        for _ in 0..3 {
            // An unknown parameter with a dot is NULL before its first SET and may be empty afterwards.
            assert_eq!(value(&mut other, &look).await, default, "{set}: seen by another session");
            assert_eq!(value(&mut app, &look).await, wanted, "{set}: lost");
        }
    }
}

#[tokio::test]
async fn a_setting_in_the_extended_protocol_is_its_sessions_own() {
    // Drivers send SET as Parse, Bind, Execute, and set_config with parameters.
    let (_rig, mut app, mut other) = two_on_one().await;
    let frames = Frames::new()
        .unnamed("SET work_mem = '7MB'", &[])
        .unnamed("SELECT set_config('app.tenant', $1, false)", &[Some("o'hara")])
        .parse("named", "SET statement_timeout = 54321", &[])
        .bind("", "named", &[])
        .execute("", 0)
        .sync();
    let reply = app.exchange(frames).await;
    assert_eq!(reply.error(), None);

    for _ in 0..3 {
        assert_ne!(show(&mut other, "work_mem").await, "7MB");
        assert_eq!(show(&mut app, "work_mem").await, "7MB");
        assert_eq!(show(&mut app, "app.tenant").await, "o'hara");
        assert_eq!(show(&mut app, "statement_timeout").await, "54321ms");
        assert_eq!(show(&mut other, "statement_timeout").await, "0");
    }
}

#[tokio::test]
async fn the_role_of_a_session_is_its_own() {
    // A role that stays in the backend is another session's privilege.
    let (rig, mut app, mut other) = two_on_one().await;
    let role = format!("role_of_{}", rig.database);
    rig.sql(&format!("CREATE ROLE {role}"));

    run(&mut app, &format!("SET ROLE {role}")).await;

    for _ in 0..3 {
        assert_eq!(value(&mut other, "SELECT current_user").await, "postgres");
        assert_eq!(value(&mut app, "SELECT current_user").await, role);
    }
    run(&mut app, "RESET ROLE").await;
    run(&mut other, "SELECT 1").await;
    assert_eq!(value(&mut app, "SELECT current_user").await, "postgres");
    drop(app);
    drop(other);
}

#[tokio::test]
async fn a_local_setting_ends_with_its_transaction() {
    // Tracking SET LOCAL like SET would keep it for ever.
    let (_rig, mut app, mut other) = two_on_one().await;
    let default = show(&mut app, "work_mem").await;

    for end in ["COMMIT", "ROLLBACK"] {
        run(&mut app, "BEGIN").await;
        run(&mut app, "SET LOCAL work_mem = '7MB'").await;
        run(&mut app, "SELECT set_config('app.tenant', 'x', true)").await;
        assert_eq!(show(&mut app, "work_mem").await, "7MB");
        run(&mut app, end).await;

        run(&mut other, "SELECT 1").await;
        assert_eq!(show(&mut app, "work_mem").await, default, "{end}");
        assert_eq!(value(&mut app, "SELECT current_setting('app.tenant', true)").await, "", "{end}");
    }
}

#[tokio::test]
async fn resets_are_followed() {
    // A replay of what was reset is as wrong as a loss.
    for reset in ["RESET work_mem", "SET work_mem TO DEFAULT", "RESET ALL", "DISCARD ALL"] {
        let (_rig, mut app, mut other) = two_on_one().await;
        let default = show(&mut app, "work_mem").await;
        run(&mut app, "SET work_mem = '7MB'").await;
        run(&mut other, "SET work_mem = '8MB'").await;
        assert_eq!(show(&mut app, "work_mem").await, "7MB");

        run(&mut app, reset).await;

        for _ in 0..3 {
            assert_eq!(show(&mut other, "work_mem").await, "8MB", "{reset}");
            assert_eq!(show(&mut app, "work_mem").await, default, "{reset}");
        }
    }
}

#[tokio::test]
async fn a_setting_that_was_rolled_back_is_not_set() {
    // PostgreSQL undoes it; a sidecar that remembers the SET would do it again.
    let (_rig, mut app, mut other) = two_on_one().await;
    run(&mut app, "SET work_mem = '5MB'").await;

    run(&mut app, "BEGIN").await;
    run(&mut app, "SET work_mem = '7MB'").await;
    run(&mut app, "ROLLBACK").await;

    run(&mut other, "SELECT 1").await;
    assert_eq!(show(&mut app, "work_mem").await, "5MB");
}

#[tokio::test]
async fn a_setting_of_a_failed_transaction_is_not_set() {
    // COMMIT of a failed transaction is a ROLLBACK, whatever its name.
    let (_rig, mut app, mut other) = two_on_one().await;
    let default = show(&mut app, "work_mem").await;

    run(&mut app, "BEGIN").await;
    run(&mut app, "SET work_mem = '7MB'").await;
    app.query("SELECT 1/0").await;
    run(&mut app, "COMMIT").await;
    app.query("SET work_mem = '9MB'; SELECT 1/0").await;

    run(&mut other, "SELECT 1").await;
    assert_eq!(show(&mut app, "work_mem").await, default);
}

#[tokio::test]
async fn savepoints_undo_settings() {
    // Only what came after the savepoint is undone.
    let (_rig, mut app, mut other) = two_on_one().await;
    let default = show(&mut app, "statement_timeout").await;
    for sql in [
        "BEGIN",
        "SET work_mem = '5MB'",
        "SAVEPOINT one",
        "SET work_mem = '7MB'",
        "SET statement_timeout = 54321",
        "ROLLBACK TO one",
        "SET app.tenant = 'kept'",
        "RELEASE one",
        "COMMIT",
    ] {
        run(&mut app, sql).await;
    }

    for _ in 0..3 {
        run(&mut other, "SELECT 1").await;
        assert_eq!(show(&mut app, "work_mem").await, "5MB");
        assert_eq!(show(&mut app, "statement_timeout").await, default);
        assert_eq!(show(&mut app, "app.tenant").await, "kept");
    }
}

#[tokio::test]
async fn a_refused_setting_changes_nothing() {
    // The server's refusal must reach the application, and the replay must not try again.
    let (_rig, mut app, mut other) = two_on_one().await;
    let default = show(&mut app, "work_mem").await;

    assert_eq!(app.query("SET work_mem = 'plenty'").await.error_code(), "22023");
    assert_eq!(app.query("SET no_such_parameter = 1").await.error_code(), "42704");

    run(&mut other, "SELECT 1").await;
    assert_eq!(show(&mut app, "work_mem").await, default);
}

#[tokio::test]
async fn ten_sessions_keep_ten_values_on_one_backend() {
    // Every exchange changes hands.
    let rig = Rig::start(pool_of(1)).await;
    let mut apps = Vec::new();
    for number in 0..10 {
        let mut app = rig.app().await;
        run(&mut app, &format!("SET work_mem = '{}MB'", 10 + number)).await;
        run(&mut app, &format!("SET app.number = '{number}'")).await;
        apps.push(app);
    }

    for round in 0..10 {
        for step in 0..10 {
            let number = (step * 7 + round) % 10;
            let app = &mut apps[number];
            assert_eq!(show(app, "work_mem").await, format!("{}MB", 10 + number));
            assert_eq!(show(app, "app.number").await, number.to_string());
        }
    }
}

#[tokio::test]
async fn the_application_name_is_seen_while_the_session_runs_something() {
    // Operators look for it in pg_stat_activity; another session's name there accuses the wrong program.
    let rig = Rig::start(pool_of(1)).await;
    let mut first = rig.app_with(&[("application_name", "first")]).await;
    let mut second = rig.app_with(&[("application_name", "second")]).await;
    let own = "SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()";

    for _ in 0..3 {
        assert_eq!(value(&mut first, own).await, "first");
        assert_eq!(value(&mut second, own).await, "second");
    }
    run(&mut second, "SET application_name = 'renamed'").await;
    assert_eq!(value(&mut first, own).await, "first");
    second.send(Frames::new().query("SELECT pg_sleep(0.7)")).await;
    rig.wait_running("SELECT pg_sleep(0.7)").await;
    let seen = rig.sql("SELECT application_name FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(0.7)'");
    assert_eq!(seen, "renamed");
    second.reply().await;
}

/// For PostgreSQL, startup values are the session's defaults: whatever undoes a SET goes back to them, in any pool mode.
async fn goes_back_to_startup(options: ProxyOptions, undo: &str) {
    let rig = Rig::start(options).await;
    let mut other = rig.app().await;
    let mut app = rig
        .app_with(&[
            ("options", "-c work_mem=7MB -c app.tenant=a\\ b --statement-timeout=54321"),
            ("DateStyle", "German"),
            ("application_name", "given"),
        ])
        .await;
    let wanted = [
        ("work_mem", "7MB"),
        ("app.tenant", "a b"),
        ("statement_timeout", "54321ms"),
        ("DateStyle", "German, DMY"),
        ("application_name", "given"),
    ];
    for sql in [
        "SET work_mem = '9MB'",
        "SET app.tenant = 'c'",
        "SET statement_timeout = 1234",
        "SET DateStyle = 'ISO'",
        "SET application_name = 'changed'",
    ] {
        run(&mut app, sql).await;
    }
    assert_ne!(show(&mut other, "work_mem").await, "7MB", "seen by another session");

    for (name, _) in wanted {
        run(&mut app, &undo.replace('$', name)).await;
    }

    run(&mut other, "SELECT 1").await;
    for (name, value) in wanted {
        assert_eq!(show(&mut app, name).await, value, "{name} after {undo}");
    }
}

macro_rules! goes_back {
    ($transaction:ident, $session:ident, $undo:literal) => {
        #[tokio::test]
        async fn $transaction() {
            // The backend itself was started without the values: its own defaults are the wrong ones.
            goes_back_to_startup(pool_of(1), $undo).await;
        }

        #[tokio::test]
        async fn $session() {
            // A session of its own still shares backends with sessions before and after it.
            goes_back_to_startup(session_pool_of(2), $undo).await;
        }
    };
}

goes_back!(reset_goes_back_to_startup, reset_goes_back_to_startup_in_session_mode, "RESET $");
goes_back!(
    set_to_default_goes_back_to_startup,
    set_to_default_goes_back_to_startup_in_session_mode,
    "SET $ TO DEFAULT"
);
goes_back!(reset_all_goes_back_to_startup, reset_all_goes_back_to_startup_in_session_mode, "RESET ALL");
goes_back!(discard_all_goes_back_to_startup, discard_all_goes_back_to_startup_in_session_mode, "DISCARD ALL");
goes_back!(
    reset_all_among_others_goes_back_to_startup,
    reset_all_among_others_goes_back_to_startup_in_session_mode,
    "SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;"
);

fn reported(reply: &Reply, name: &str) -> Vec<String> {
    let all = reply.0.iter().filter(|message| message.tag == b'S').map(tidegate_tests::Message::strings);
    all.filter(|pair| pair[0] == name).map(|pair| pair[1].clone()).collect()
}

#[tokio::test]
async fn a_session_is_told_of_its_own_settings_only() {
    // Drivers decode dates and text by what ParameterStatus says; another session's value would break them.
    let (_rig, mut app, mut other) = two_on_one().await;

    let set = run(&mut app, "SET TimeZone = 'Asia/Tokyo'").await;
    assert_eq!(reported(&set, "TimeZone"), ["Asia/Tokyo"]);
    for _ in 0..3 {
        let reply = run(&mut other, "SELECT now()").await;
        assert_eq!(reported(&reply, "TimeZone"), Vec::<String>::new());
        let reply = run(&mut app, "SELECT now()").await;
        assert!(reported(&reply, "TimeZone").iter().all(|zone| zone == "Asia/Tokyo"), "{}", reply.tags());
    }
    let reset = run(&mut app, "RESET TimeZone").await;
    assert_eq!(reported(&reset, "TimeZone").len(), 1);
}

#[tokio::test]
async fn the_greeting_shows_the_sessions_own_values() {
    // The driver takes them as the truth from its first statement on.
    let rig = Rig::start(pool_of(1)).await;
    let mut first = rig.app().await;
    run(&mut first, "SET TimeZone = 'Asia/Tokyo'").await;
    let mut app = ScriptedApp::connect(rig.proxy().address()).await;
    let who = tidegate_tests::Credentials { user: "postgres", password: "", database: &rig.database };

    let own = [("application_name", "mine"), ("TimeZone", "Europe/Oslo"), ("client_encoding", "LATIN1")];
    let greeting = app.log_in_with(who, &own).await.unwrap();

    for (name, value) in own {
        assert_eq!(greeting.parameter(name), Some(value));
    }
    for name in ["server_version", "integer_datetimes", "standard_conforming_strings", "is_superuser"] {
        assert!(greeting.parameter(name).is_some(), "{name}");
    }
}

#[tokio::test]
async fn nothing_is_replayed_when_nothing_differs() {
    // The server's own log counts the statements: each one of ours is a round trip that the application pays for.
    const STATEMENTS: usize = 25;
    let node = own_postgres(&[("log_statement", "all")]);
    let proxy = pool_of(1).upstream(&node.url()).start().await;
    let (mut app, _) = ScriptedApp::session(proxy.address(), "postgres", "postgres").await;
    run(&mut app, "SET work_mem = '7MB'").await;
    run(&mut app, "SELECT 'before'").await;

    for _ in 0..STATEMENTS {
        run(&mut app, "SELECT 'counted'").await;
    }
    run(&mut app, "SELECT 'after'").await;

    let log = wait_for(SOON, "the last statement in the log", async || {
        Some(node.log()).filter(|log| log.contains("SELECT 'after'"))
    })
    .await;
    let between = log.split("SELECT 'before'").nth(1).unwrap().split("SELECT 'after'").next().unwrap();
    let pid = between.lines().find(|line| line.contains("'counted'")).and_then(process).unwrap();
    let ours: Vec<&str> = between
        .lines()
        .filter(|line| process(line) == Some(pid) && !line.contains("SELECT 'counted'"))
        .filter(|line| line.contains("statement: ") || line.contains("execute "))
        .collect();
    // The line of 'after' itself is cut in two by the search.
    assert!(ours.iter().all(|line| line.ends_with("statement: ")), "{ours:?}");
    assert_eq!(between.matches("SELECT 'counted'").count(), STATEMENTS);
}

/// The process id of a line of the server's log (`%m [%p] …`).
fn process(line: &str) -> Option<&str> {
    line.split_once('[')?.1.split_once(']').map(|(pid, _)| pid)
}

#[tokio::test]
async fn a_new_backend_gets_the_sessions_settings() {
    // The old one is gone, and with it everything that was set there.
    let (rig, mut app, _other) = two_on_one().await;
    run(&mut app, "SET work_mem = '7MB'").await;
    let pid = value(&mut app, "SELECT pg_backend_pid()").await;

    rig.sql(&format!("SELECT pg_terminate_backend({pid})"));
    wait_for(Duration::from_secs(5), "the backend is gone", async || {
        (rig.sql(&format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}")) == "0").then_some(())
    })
    .await;

    assert_eq!(show(&mut app, "work_mem").await, "7MB");
}

/// An application whose next backend has other settings than it wants, and does not answer.
struct BeforeFrozen {
    node: Node,
    proxy: Proxy,
    app: ScriptedApp,
    key: BackendKey,
    /// Keeps the backend that is left; it runs a transaction.
    holder: ScriptedApp,
    /// The process of the frozen one.
    process: u32,
}

/// The longest that a backend may take to be brought to other settings.
const SETTINGS_WITHIN: Duration = Duration::from_secs(1);

impl BeforeFrozen {
    async fn start() -> Self {
        let node = block_in_place(|| own_postgres(&[]));
        let proxy = pool_of(2).upstream(&node.url()).start().await;
        let login = async || ScriptedApp::session(proxy.address(), "postgres", "postgres").await;
        let ((mut app, greeting), mut other, mut holder) = (login().await, login().await.0, login().await.0);
        run(&mut app, "SET work_mem = '7MB'").await;
        run(&mut other, "BEGIN").await;
        let process = value(&mut other, "SELECT pg_backend_pid()").await.parse().unwrap();
        run(&mut holder, "BEGIN").await;
        run(&mut holder, "SELECT 1").await;
        run(&mut other, "COMMIT").await;
        block_in_place(|| node.signal(process, Signal::STOP)).unwrap();
        Self { node, proxy, app, key: greeting.key, holder, process }
    }

    fn thaw(&self) {
        block_in_place(|| self.node.signal(self.process, Signal::CONT)).unwrap();
    }
}

/// Nothing may be in flight to the server any more.
async fn wait_nothing_runs(proxy: &Proxy) {
    let oldest = async || proxy.metrics().await.get("tidegate_lane_oldest_in_flight_seconds", &[]);
    wait_for(SOON, "nothing runs", async || (oldest().await == Some(0.0)).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_takes_no_settings_is_left_and_forgotten() {
    // What had begun on it and never ends is stuck for ever in the eyes of the breaker, which suspects the lane for it.
    let mut frozen = BeforeFrozen::start().await;

    let refused = frozen.app.query("SELECT 1").await;
    run(&mut frozen.holder, "COMMIT").await;
    assert_eq!(show(&mut frozen.app, "work_mem").await, "7MB");

    let error = refused.error().expect("an error");
    assert_eq!((error.severity(), error.code()), ("ERROR", "53000"), "{error:?}");
    assert_eq!(error.detail_of("reason"), Some("no_upstream"), "{error:?}");
    assert_eq!(error.detail_of("lane"), Some("read"), "{error:?}");
    assert_eq!(error.detail_of("outcome"), Some("not_sent"), "{error:?}");
    assert!(error.detail_of("retry_after_ms").is_some(), "{error:?}");
    wait_nothing_runs(&frozen.proxy).await;
    frozen.thaw();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wait_for_settings_ends_at_the_deadline() {
    // An exchange with a near deadline would be answered when our own question has had all of its time.
    let mut frozen = BeforeFrozen::start().await;
    run(&mut frozen.app, "SET tidegate.deadline_ms = 200").await;
    let start = Instant::now();

    let refused = frozen.app.query("SELECT 1").await;
    let took = start.elapsed();

    let error = refused.error().expect("an error");
    assert_eq!((error.severity(), error.code()), ("ERROR", "53300"), "{error:?}");
    assert_eq!(error.detail_of("reason"), Some("deadline"), "{error:?}");
    assert_eq!(error.detail_of("outcome"), Some("not_sent"), "{error:?}");
    assert!((Duration::from_millis(150)..SETTINGS_WITHIN).contains(&took), "{took:?}");
    wait_nothing_runs(&frozen.proxy).await;
    frozen.thaw();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wait_for_settings_can_be_cancelled() {
    // Nothing of the statement is at the server yet, so nobody but us can obey.
    let mut frozen = BeforeFrozen::start().await;
    let start = Instant::now();
    frozen.app.send(Frames::new().query("SELECT 1")).await;
    frozen.app.expect_silence(Duration::from_millis(100)).await;

    ScriptedApp::cancel(frozen.proxy.address(), &frozen.key).await;
    let refused = frozen.app.reply().await;
    let took = start.elapsed();

    let error = refused.error().expect("an error");
    assert_eq!((error.code(), error.detail_of("reason")), ("57014", Some("cancelled")), "{error:?}");
    assert_eq!(error.detail_of("outcome"), Some("not_sent"), "{error:?}");
    assert!(took < SETTINGS_WITHIN, "{took:?}");
    wait_nothing_runs(&frozen.proxy).await;
    frozen.thaw();
}

#[tokio::test]
async fn a_setting_that_is_refused_later_ends_its_session_and_nothing_else() {
    // The backend is as good as before; what had begun on it has to end, or it is stuck in the eyes of the breaker.
    let (rig, mut app, mut other) = two_on_one().await;
    let role = format!("gone_from_{}", rig.database);
    rig.sql(&format!("CREATE ROLE {role}"));
    run(&mut app, &format!("SET ROLE {role}")).await;
    let process = value(&mut other, "SELECT pg_backend_pid()").await;
    rig.sql(&format!("DROP ROLE {role}"));

    app.send(Frames::new().query("SELECT 1")).await;
    let end = app.expect_end().await;

    let error = end.last().and_then(Message::problem).unwrap();
    assert_eq!((error.severity(), error.detail_of("outcome")), ("FATAL", Some("not_sent")), "{error:?}");
    wait_nothing_runs(rig.proxy()).await;
    assert_eq!(value(&mut other, "SELECT pg_backend_pid()").await, process);
}

/// A fake server that takes everything, and leaves when it is asked for what was set.
async fn leave_at_read_back(incoming: Incoming) {
    let Incoming::Session(mut backend) = incoming else { return };
    backend.welcome(&BackendKey { pid: 7, secret: vec![1, 2, 3, 4] }).await;
    while let Some(message) = backend.next().await {
        let sql = String::from_utf8_lossy(&message.body);
        if sql.contains("current_setting") && sql.contains("VALUES") {
            return;
        }
        let replies = match message.tag {
            b'Q' if sql.starts_with("BEGIN") => {
                Replies::new().complete("BEGIN").complete("SET").complete("COMMIT").ready('I')
            }
            b'Q' => Replies::new().complete("SET").ready('I'),
            _ => Replies::new(),
        };
        backend.send(replies).await;
    }
}

async fn is_lost_behind_a_commit(options: ProxyOptions) {
    let mut server = ScriptedServer::start().await;
    server.serve(leave_at_read_back);
    let proxy = options.upstream(&server.url()).start().await;
    let (mut app, _) = ScriptedApp::session(proxy.address(), "postgres", "shop").await;

    let committed = run(&mut app, "BEGIN; SET work_mem = '7MB'; COMMIT").await;
    let end = app.expect_end().await;

    assert_eq!(committed.commands().last().map(String::as_str), Some("COMMIT"));
    let error = end.last().and_then(Message::problem).unwrap();
    assert_eq!((error.severity(), error.code()), ("FATAL", "08006"), "{error:?}");
    assert_eq!((error.detail_of("reason"), error.detail_of("outcome")), (Some("session_lost"), None));
}

#[tokio::test]
async fn a_backend_lost_at_the_read_back_does_not_undo_the_commit() {
    // An application that is told of a rollback runs the transaction again, and does it twice.
    is_lost_behind_a_commit(pool_of(1)).await;
}

#[tokio::test]
async fn a_backend_lost_at_the_read_back_does_not_undo_the_commit_in_session_mode() {
    // There the session keeps its backend, and settles at each end of a transaction: by another path.
    is_lost_behind_a_commit(session_pool_of(1)).await;
}

#[tokio::test]
async fn a_notification_that_comes_with_our_own_question_is_the_applications() {
    // It comes once: what is thrown away is a job that nobody picks up.
    let notification = Replies::new().message(b'A', b"\0\0\0\x07tide\0high\0");
    let mut server = ScriptedServer::start().await;
    server.serve(move |incoming| {
        let heard = notification.clone();
        async move {
            let Incoming::Session(mut backend) = incoming else { return };
            backend.welcome(&BackendKey { pid: 7, secret: vec![1, 2, 3, 4] }).await;
            while let Some(message) = backend.next().await {
                let sql = String::from_utf8_lossy(&message.body).into_owned();
                let replies = match message.tag {
                    b'Q' if sql.contains("current_setting") && sql.contains("VALUES") => {
                        heard.clone().raw(Replies::new().one_value("7MB").as_ref())
                    }
                    b'Q' => Replies::new().complete("SET").ready('I'),
                    _ => Replies::new(),
                };
                backend.send(replies).await;
            }
        }
    });
    let proxy = session_pool_of(1).upstream(&server.url()).start().await;
    let (mut app, _) = ScriptedApp::session(proxy.address(), "postgres", "shop").await;

    run(&mut app, "SET work_mem = '7MB'").await;

    assert_eq!(app.expect(b'A').await.strings().last().map(String::as_str), Some("high"));
    assert_eq!(run(&mut app, "SET work_mem = '7MB'").await.tags(), "CZ");
}
