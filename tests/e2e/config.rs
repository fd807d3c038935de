//! Files, variables, flags and signals.

use std::time::Duration;

use rustix::process::{Resource, Rlimit};
use tidegate_tests::{
    Bench, Credentials, Frames, PATIENCE, Proxy, ProxyOptions, ScriptedApp, Signal, shared_postgres,
    wait_for, within,
};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{TIDEGATE, bench, some, trusting};

const POSTGRES: Credentials<'static> = Credentials { user: "postgres", password: "", database: "postgres" };
/// What every good file needs.
const LEAST: &str = "listen.auth = \"trust\"\ncluster.upstreams = [\"127.0.0.1:1\"]\n";

#[tokio::test]
async fn check_says_where_and_what_is_wrong() {
    // Each row is added to a good file as its third line. An operator needs the line, the key and a reason.
    let rows: [(&str, &[&str]); 22] = [
        ("[pool]\nsiz = 3", &["tidegate.toml:4", "pool.siz", "unknown key", "pool.size"]),
        ("[pol]\nsize = 3", &["tidegate.toml:4", "pol.size", "unknown key"]),
        ("pool.size = 0", &["tidegate.toml:3", "pool.size", "out of range"]),
        ("pool.size = \"many\"", &["tidegate.toml:3", "pool.size"]),
        ("pool.size = 1000", &["pool.max_per_upstream", "pool.size"]),
        ("pool.write_share = 0.0", &["tidegate.toml:3", "pool.write_share"]),
        ("pool.write_share = 1.01", &["tidegate.toml:3", "pool.write_share"]),
        ("pool.mode = \"statement\"", &["tidegate.toml:3", "pool.mode", "transaction", "session"]),
        ("timeouts.queue = \"10s\"", &["tidegate.toml:3", "timeouts.queue", "5s"]),
        ("timeouts.connect = \"31s\"", &["tidegate.toml:3", "timeouts.connect"]),
        ("timeouts.read = \"soon\"", &["tidegate.toml:3", "timeouts.read"]),
        ("timeouts.read = \"0\"", &["tidegate.toml:3", "timeouts.read"]),
        ("listen.address = \"0.0.0.0:6432\"", &["listen.auth", "0.0.0.0:6432", "trust"]),
        ("listen.address = \"nowhere\"", &["tidegate.toml:3", "listen.address"]),
        ("admin.address = \"127.0.0.1:6432\"", &["admin.address", "127.0.0.1:6432"]),
        ("listen.tls = \"require\"", &["listen.tls_cert"]),
        ("listen.tls_cert = \"absent.crt\"\nlisten.tls_key = \"absent.key\"", &["absent.crt", "absent.key"]),
        ("listen.userlist = \"absent\"", &["tidegate.toml:3", "listen.userlist", "absent"]),
        ("listen.auth_query = \"SELECT 1\"", &["listen.auth_query", "$1", "cluster.user"]),
        ("cluster.tls = \"maybe\"", &["tidegate.toml:3", "cluster.tls", "verify-full"]),
        ("[listen", &["tidegate.toml:3", "not TOML"]),
        ("workers = 0", &["tidegate.toml:3", "workers"]),
    ];

    for (mistake, parts) in rows {
        let config = format!("{LEAST}{mistake}\n");
        let ended = ProxyOptions::new(TIDEGATE).config(&config).check().await;

        assert_eq!(ended.status.code(), Some(2), "{mistake}: {}", ended.log);
        for part in parts {
            assert!(ended.log.contains(part), "{mistake} should say {part:?}, says:\n{}", ended.log);
        }
        // The flags of the fixture give other addresses.
        if !mistake.contains(".address") {
            let started = ProxyOptions::new(TIDEGATE).config(&config).run_to_end().await;
            assert_eq!(started.status.code(), Some(2), "{mistake}: {}", started.log);
        }
    }
}

#[tokio::test]
async fn check_is_content_with_a_good_file_and_needs_no_database() {
    // Nothing listens on the upstream's port 1.
    let ended = ProxyOptions::new(TIDEGATE).config(LEAST).check().await;

    assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
    assert!(ended.log.contains("The configuration is good"), "{}", ended.log);
}

#[tokio::test]
async fn check_reads_the_files_that_are_named() {
    // A userlist or certificate that is there but broken would stop the start: check must say so first.
    let tls = "listen.tls = \"allow\"\nlisten.tls_cert = \"crt\"\nlisten.tls_key = \"key\"";
    let users = "listen.userlist = \"users\"";
    let rows = [
        (tls, [("crt", "not a certificate"), ("key", "not a key")], "crt"),
        (users, [("users", "\"alone\"\n"), ("other", "")], "users"),
        ("cluster.tls = \"verify-ca\"\ncluster.tls_ca = \"ca\"", [("ca", "nothing"), ("other", "")], "ca"),
    ];

    for (settings, files, named) in rows {
        let mut options = ProxyOptions::new(TIDEGATE).config(&format!("{LEAST}{settings}\n"));
        for (name, text) in files {
            options = options.file(name, text);
        }
        let ended = options.clone().check().await;
        let started = options.run_to_end().await;

        for ended in [started, ended] {
            assert_eq!(ended.status.code(), Some(2), "{settings}: {}", ended.log);
            assert!(ended.log.contains(named), "{settings}: {}", ended.log);
        }
    }
}

#[tokio::test]
async fn a_missing_file_is_a_bad_configuration() {
    // Going on with defaults would open another service than the operator meant.
    for command in [&["--config", "/nowhere/tidegate.toml"][..], &[]] {
        let mut options = ProxyOptions::new(TIDEGATE);
        for argument in command {
            options = options.argument(argument);
        }
        let ended = options.run_to_end().await;

        assert_eq!(ended.status.code(), Some(2), "{command:?}: {}", ended.log);
    }
}

#[tokio::test]
async fn an_address_that_is_taken_is_a_failure_at_run_time() {
    // Exit code 1: the configuration is good, the machine is not.
    let bench = Bench::start(TIDEGATE).await;
    for flag in ["--listen", "--admin"] {
        let taken = if flag == "--listen" { bench.proxy.address() } else { bench.proxy.admin_address() };
        let config = match flag {
            "--listen" => format!("listen.address = \"{taken}\" # not @LISTEN@"),
            _ => format!("admin.address = \"{taken}\" # not @ADMIN@"),
        };
        let options = trusting(&config).upstream(&shared_postgres().url());

        let ended = options.run_to_end().await;

        assert_eq!(ended.status.code(), Some(1), "{flag}: {}", ended.log);
        assert!(ended.log.contains(&taken.to_string()), "{flag}: {}", ended.log);
    }
}

/// How many sessions can be in a transaction at the same time, found by opening one more than expected.
async fn concurrent(proxy: &Proxy, at_most: usize) -> usize {
    let mut open = Vec::new();
    while open.len() < at_most {
        let (mut app, _) = ScriptedApp::session(proxy.address(), "postgres", "postgres").await;
        let reply = app.exchange(Frames::new().query("BEGIN; SELECT 1")).await;
        if reply.error_code() == "53300" {
            break;
        }
        assert_eq!(reply.value(), some("1"), "{:?}", reply.error());
        open.push(app);
    }
    for app in &mut open {
        app.query("ROLLBACK").await;
    }
    open.len()
}

#[tokio::test]
async fn a_reload_changes_the_size_of_pools() {
    // Up and down, for pools that exist already.
    let config =
        |size: usize| format!("listen.auth = \"trust\"\npool.size = {size}\ntimeouts.queue = \"300ms\"\n");
    let bench = Bench::start_with(ProxyOptions::new(TIDEGATE).config(&config(1))).await;
    let (mut session, _) = bench.app().await;
    assert_eq!(concurrent(&bench.proxy, 4).await, 1);

    for size in [3, 2] {
        bench.proxy.write_config(&config(size));
        bench.proxy.signal(Signal::HUP);

        wait_for(PATIENCE, &format!("{size} backends"), async || {
            (concurrent(&bench.proxy, 4).await == size).then_some(())
        })
        .await;
        assert_eq!(session.query("SELECT 1").await.value(), some("1"));
    }
}

#[tokio::test]
async fn a_reload_that_asks_for_more_backends_than_it_can_have_says_so() {
    // Whoever raised the limit would look elsewhere for why sessions still wait.
    let config = |max: usize| format!("listen.auth = \"trust\"\npool.max_per_upstream = {max}\n");
    let bench = Bench::start_with(ProxyOptions::new(TIDEGATE).config(&config(60))).await;

    for (max, told) in [(240, false), (1000, true)] {
        let before = bench.proxy.log().len();
        bench.proxy.write_config(&config(max));
        bench.proxy.signal(Signal::HUP);
        let log = wait_for(PATIENCE, "the reload", async || {
            Some(bench.proxy.log().split_off(before)).filter(|log| log.contains("configuration reloaded"))
        })
        .await;

        assert_eq!(log.contains("without a restart"), told, "{max}: {log}");
    }
}

#[tokio::test]
async fn a_reload_that_must_be_refused_changes_nothing() {
    // All or nothing: the good half of a bad file must not count. Each says why, and the sidecar goes on.
    const GOOD: &str = "listen.auth = \"trust\"\nlisten.address = \"@LISTEN@\"\npool.size = 1\n\
                        timeouts.queue = \"300ms\"\nstate_dir = \"@DIR@/state\"\n";
    let mut bench = Bench::start_with(ProxyOptions::new(TIDEGATE).config(GOOD)).await;
    let (mut session, _) = bench.app().await;
    let larger = GOOD.replace("pool.size = 1", "pool.size = 3");
    let rows = [
        (larger.replace("@LISTEN@", "127.0.0.1:7999"), "listen.address"),
        (format!("{larger}workers = 7\n"), "workers"),
        (larger.replace("@DIR@/state", "/elsewhere"), "state_dir"),
        (format!("{larger}pool.nonsense = 1\n"), "pool.nonsense"),
        (format!("{larger}[torn"), "TOML"),
        (String::new(), "empty"),
    ];

    for (config, named) in rows {
        let before = bench.proxy.log().len();
        bench.proxy.write_config(&config);
        bench.proxy.signal(Signal::HUP);
        wait_for(PATIENCE, &format!("{named} in the log"), async || {
            bench.proxy.log()[before..].contains(named).then_some(())
        })
        .await;

        assert!(bench.proxy.is_running(), "{named}");
        assert_eq!(session.query("SELECT 1").await.value(), some("1"), "{named}");
        assert_eq!(concurrent(&bench.proxy, 2).await, 1, "{named}");
    }
}

#[tokio::test]
async fn a_disk_that_does_not_answer_holds_up_a_reload_and_nothing_else() {
    // Read where signals are taken and backends are opened, a file on a dead server of files would stop both.
    let options = trusting("listen.userlist = \"users.txt\"\npool.size = 2").file("users.txt", "");
    let mut bench = Bench::start_with(options).await;
    let users = bench.proxy.dir().join("users.txt");
    std::fs::remove_file(&users).unwrap();
    // Whoever opens one waits until somebody writes to it.
    assert!(std::process::Command::new("mkfifo").arg(&users).status().unwrap().success());

    bench.proxy.signal(Signal::HUP);
    let begin = Instant::now();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(concurrent(&bench.proxy, 2).await, 2);
    assert!(begin.elapsed() < Duration::from_secs(4), "it waited for the disk");
    bench.proxy.wait_logged("the disk does not answer").await;
    bench.proxy.signal(Signal::HUP);
    bench.proxy.wait_logged("an earlier reload still waits").await;

    bench.proxy.signal(Signal::TERM);
    assert!(bench.proxy.wait_exit(PATIENCE).await.success());
}

#[tokio::test]
async fn a_reload_that_lets_in_more_sessions_raises_the_limit_of_files_for_them() {
    // Where the shell's limit is low, sessions beyond it would be refused by the kernel, silently.
    let config = |sessions: u32| format!("listen.auth = \"trust\"\nlisten.max_sessions = {sessions}\n");
    let bench = Bench::start_with(ProxyOptions::new(TIDEGATE).config(&config(10))).await;
    let pid = rustix::process::Pid::from_raw(i32::try_from(bench.proxy.pid()).unwrap());
    let limit = |new| rustix::process::prlimit(pid, Resource::Nofile, new).unwrap();
    let now = limit(Rlimit { current: Some(300), maximum: Some(4000) });
    assert!(now.current.is_none_or(|now| now > 300));

    bench.proxy.write_config(&config(1000));
    bench.proxy.signal(Signal::HUP);
    bench.proxy.wait_logged("configuration reloaded").await;

    let raised = limit(Rlimit { current: Some(300), maximum: Some(4000) }).current.unwrap();
    assert!(raised >= 1000, "{raised}");
}

#[tokio::test]
async fn variables_hide_the_file_and_flags_hide_variables() {
    // The precedence that the documentation promises; each layer alone would let in another number.
    let file = trusting("listen.max_sessions = 5");
    let hidden = file.clone().environment("TIDEGATE_LISTEN_MAX_SESSIONS", "1");
    let listen =
        Bench::start_with(hidden.clone().environment("TIDEGATE_LISTEN_ADDRESS", "127.0.0.1:1")).await;
    let plain = Bench::start_with(file).await;

    for (bench, places) in [(&listen, 1), (&plain, 5)] {
        let mut inside = Vec::new();
        let code = loop {
            let mut app = ScriptedApp::connect(bench.proxy.address()).await;
            match app.log_in(POSTGRES).await {
                Ok(_) => inside.push(app),
                Err(problem) => break problem.code().to_owned(),
            }
        };

        assert_eq!((inside.len(), code.as_str()), (places, "53300"));
    }
}

#[tokio::test]
async fn variables_alone_are_enough() {
    // Containers have no file. Lists and secrets come from variables, too.
    let (host, port) = ("127.0.0.1", shared_postgres().port());
    let proxy = ProxyOptions::new(TIDEGATE)
        .environment("TIDEGATE_LISTEN_AUTH", "trust")
        .environment("TIDEGATE_CLUSTER_UPSTREAMS", &format!("{host}:{port}"))
        .environment("TIDEGATE_POOL_MODE", "session")
        .environment("TIDEGATE_TIMEOUTS_QUEUE", "250ms")
        .start()
        .await;

    let (mut app, _) = ScriptedApp::session(proxy.address(), "postgres", "postgres").await;

    assert_eq!(app.query("SELECT 1").await.value(), some("1"));
}

#[tokio::test]
async fn unknown_variables_are_refused() {
    // A typing error in a deployment must not go unnoticed.
    let options = trusting("").environment("TIDEGATE_POOL_SIZ", "3").upstream("127.0.0.1:1");

    let ended = options.run_to_end().await;

    assert_eq!(ended.status.code(), Some(2), "{}", ended.log);
    assert!(ended.log.contains("TIDEGATE_POOL_SIZE"), "{}", ended.log);
}

#[tokio::test]
async fn the_log_is_json_unless_asked_otherwise() {
    // Collectors parse every line; one that is not JSON is lost.
    let json = Bench::start(TIDEGATE).await;
    let human =
        Bench::start_with(ProxyOptions::new(TIDEGATE).environment("TIDEGATE_LOG_FORMAT", "human")).await;

    for line in json.proxy.log().lines() {
        let parsed: Result<serde_json::Value, _> = serde_json::from_str(line);
        assert!(parsed.is_ok_and(|value| value.is_object()), "{line}");
    }
    assert!(human.proxy.log().lines().all(|line| !line.starts_with('{')), "{}", human.proxy.log());
}

#[tokio::test]
async fn the_drain_ends_idle_sessions_and_lets_transactions_finish() {
    // Idle ones get 57P01 at once; the one in a transaction may COMMIT, and what it wrote is there.
    let mut bench = bench("").await;
    let (mut idle, _) = bench.app().await;
    idle.query("SELECT 1").await;
    let (mut fresh, _) = bench.app().await;
    let (mut busy, _) = bench.app().await;
    let (mut asleep, _) = bench.app().await;
    let table = tidegate_tests::fresh_database();
    busy.query(&format!("CREATE TABLE {table} ()")).await;
    busy.query(&format!("BEGIN; INSERT INTO {table} DEFAULT VALUES")).await;
    asleep.send(Frames::new().query("SELECT pg_sleep(1)")).await;
    let running =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query = 'SELECT pg_sleep(1)'";
    wait_for(PATIENCE, "the statement runs", async || {
        (shared_postgres().sql(running).unwrap() != "0").then_some(())
    })
    .await;

    bench.proxy.signal(Signal::TERM);

    for app in [&mut idle, &mut fresh] {
        let end = app.expect_end().await;
        let problem = end.last().and_then(tidegate_tests::Message::problem).unwrap();
        assert_eq!((problem.severity(), problem.code()), ("FATAL", "57P01"));
        assert_eq!(problem.detail_of("outcome"), Some("not_sent"));
    }
    // A statement that runs is no idle session: it ends by itself.
    assert_eq!(asleep.reply().await.tags(), "TDCZ");
    assert!(bench.proxy.is_running());
    assert_eq!(busy.query("SELECT 'still here'").await.value(), some("still here"));
    let committed = busy.query("COMMIT").await;
    let end = busy.expect_end().await;
    let status = bench.proxy.wait_exit(PATIENCE).await;

    assert_eq!(committed.commands(), ["COMMIT"]);
    assert_eq!(end.last().and_then(tidegate_tests::Message::problem).unwrap().code(), "57P01");
    assert_eq!(status.code(), Some(0), "{}", bench.proxy.log());
    assert_eq!(shared_postgres().sql(&format!("SELECT count(*) FROM {table}")).unwrap(), "1");
}

#[tokio::test]
async fn the_drain_lets_what_has_begun_finish() {
    // A BEGIN that was answered is a transaction, though it has no backend yet, and half an exchange is on its way: both are
    // owed more than a FATAL.
    for mode in ["transaction", "session"] {
        let mut bench = bench(&format!("pool.mode = \"{mode}\"")).await;
        let table = tidegate_tests::fresh_database();
        let (mut begun, _) = bench.app().await;
        begun.query(&format!("CREATE TABLE {table} ()")).await;
        begun.query("BEGIN").await;
        let (mut partial, _) = bench.app().await;
        partial.query("SELECT 1").await;
        let exchange = Frames::new().unnamed("SELECT 'whole'", &[]).sync();
        let (first, rest) = exchange.as_ref().split_at(20);
        partial.send(first).await;
        let (mut empty, _) = bench.app().await;
        empty.query("BEGIN").await;
        let (mut idle, _) = bench.app().await;

        bench.proxy.signal(Signal::TERM);
        idle.expect_end().await;
        let wrote = begun.query(&format!("INSERT INTO {table} DEFAULT VALUES")).await;
        let committed = [begun.query("COMMIT").await, empty.query("COMMIT").await];
        partial.send(rest).await;
        let whole = partial.reply().await;

        assert_eq!(wrote.commands(), ["INSERT 0 1"], "{mode}");
        assert!(committed.iter().all(|reply| reply.commands() == ["COMMIT"]), "{mode}: {committed:?}");
        assert_eq!(whole.value(), some("whole"), "{mode}");
        for app in [&mut begun, &mut empty, &mut partial] {
            let end = app.expect_end().await;
            assert_eq!(end.last().and_then(tidegate_tests::Message::problem).unwrap().code(), "57P01");
        }
        assert_eq!(bench.proxy.wait_exit(PATIENCE).await.code(), Some(0), "{}", bench.proxy.log());
        assert_eq!(shared_postgres().sql(&format!("SELECT count(*) FROM {table}")).unwrap(), "1");
    }
}

#[tokio::test]
async fn the_drain_ends_what_has_begun_without_a_backend_when_its_time_is_over() {
    // Nothing runs in it, so nothing else would end it: the process would wait for a thinking application.
    let mut bench = bench("timeouts.drain = \"500ms\"").await;
    let (mut begun, _) = bench.app().await;
    begun.query("BEGIN").await;

    bench.proxy.signal(Signal::TERM);
    let end = begun.expect_end().await;

    let problem = end.last().and_then(tidegate_tests::Message::problem).unwrap();
    assert_eq!((problem.code(), problem.detail_of("reason")), ("57P01", Some("drain")));
    assert_eq!(problem.detail_of("outcome"), Some("rolled_back"));
    assert_eq!(bench.proxy.wait_exit(PATIENCE).await.code(), Some(0), "{}", bench.proxy.log());
}

#[tokio::test]
async fn signals_are_obeyed_from_the_line_that_says_ready_on() {
    // Seen on a busy machine: a SIGHUP right behind that line ended the process, as signals do that nobody waits for.
    for _ in 0..8 {
        let mut proxy = trusting("cluster.upstreams = [\"127.0.0.1:1\"]").start().await;
        proxy.signal(Signal::HUP);
        proxy.signal(Signal::TERM);
        let status = proxy.wait_exit(PATIENCE).await;
        assert_eq!(status.code(), Some(0), "{}", proxy.log());
    }
}

#[tokio::test]
async fn a_draining_sidecar_takes_nobody_in() {
    // A session that starts now would only be ended again; the load balancer must see it.
    let bench = bench("").await;
    let (mut busy, _) = bench.app().await;
    busy.query("BEGIN; SELECT 1").await;

    bench.proxy.signal(Signal::TERM);
    wait_for(PATIENCE, "the refusal of new sessions", async || {
        let Ok(stream) = TcpStream::connect(bench.proxy.address()).await else { return Some(()) };
        let mut app = ScriptedApp::over(stream);
        let startup = Frames::new().startup(&[("user", "postgres"), ("database", "postgres")]);
        if app.try_send(startup).await.is_err() {
            return Some(());
        }
        match app.receive_within(Duration::from_secs(1)).await {
            tidegate_tests::Received::Message(message) if message.tag == b'R' => None,
            tidegate_tests::Received::Message(message) => {
                assert_eq!(message.problem().unwrap().severity(), "FATAL");
                Some(())
            }
            _ => Some(()),
        }
    })
    .await;

    assert_eq!(busy.query("SELECT 1").await.value(), some("1"));
}

#[tokio::test]
async fn the_drain_has_an_end() {
    // A transaction that never finishes is ended with 57P01 when the time is over, and the exit is clean.
    let mut bench = bench("timeouts.drain = \"1s\"").await;
    let (mut stuck, _) = bench.app().await;
    stuck.query("BEGIN; SELECT 1").await;
    let start = Instant::now();

    bench.proxy.signal(Signal::TERM);
    let end = stuck.expect_end().await;
    let status = bench.proxy.wait_exit(PATIENCE).await;

    let took = start.elapsed();
    let problem = end.last().and_then(tidegate_tests::Message::problem).unwrap();
    assert_eq!((problem.severity(), problem.code()), ("FATAL", "57P01"));
    assert_eq!(problem.detail_of("reason"), Some("drain"));
    assert_eq!(problem.detail_of("outcome"), Some("rolled_back"));
    assert!(took > Duration::from_millis(900) && took < Duration::from_secs(6), "{took:?}");
    assert_eq!(status.code(), Some(0), "{}", bench.proxy.log());
}

#[tokio::test]
async fn a_write_that_the_end_of_the_drain_cuts_off_is_not_called_undone() {
    // It may commit before the cancel arrives: whoever is told otherwise does it twice.
    let mut bench = bench("timeouts.drain = \"500ms\"").await;
    let (mut stuck, _) = bench.app().await;
    let table = tidegate_tests::fresh_database();
    stuck.query(&format!("CREATE TABLE {table} (a int)")).await;
    let sql = format!("INSERT INTO {table} SELECT 1 FROM pg_sleep(60)");
    stuck.send(Frames::new().query(&sql)).await;
    let running =
        format!("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query = '{sql}'");
    wait_for(PATIENCE, "the statement runs", async || {
        (shared_postgres().sql(&running).unwrap() != "0").then_some(())
    })
    .await;

    bench.proxy.signal(Signal::TERM);
    let end = stuck.expect_end().await;
    bench.proxy.wait_exit(PATIENCE).await;

    let problem = end.last().and_then(tidegate_tests::Message::problem).unwrap();
    assert_eq!((problem.code(), problem.detail_of("reason")), ("57P01", Some("drain")));
    assert_eq!(problem.detail_of("outcome"), Some("unknown"));
}

#[tokio::test]
async fn a_second_sigterm_ends_at_once() {
    // The drain may last 30 s; whoever asks twice does not want to wait.
    let mut bench = bench("").await;
    let (mut stuck, _) = bench.app().await;
    let (mut idle, _) = bench.app().await;
    stuck.query("BEGIN; SELECT 1").await;

    bench.proxy.signal(Signal::TERM);
    // The drain has begun when the idle session is gone.
    idle.expect_end().await;
    assert!(bench.proxy.is_running());
    bench.proxy.signal(Signal::TERM);

    within(Duration::from_secs(5), "the end", bench.proxy.wait_exit(PATIENCE)).await;
    stuck.expect_end().await;
}

#[test]
fn a_signal_that_comes_as_soon_as_it_is_ready_is_obeyed() {
    // Seen: handlers came after READY=1, and a supervisor that reloaded at once ended the process instead.
    let folder = tempfile::tempdir().unwrap();
    let (config, notify) = (folder.path().join("tidegate.toml"), folder.path().join("notify"));
    let text = "state_dir = \"state\"\n[listen]\naddress = \"127.0.0.1:0\"\nauth = \"trust\"\n\
                [admin]\naddress = \"127.0.0.1:0\"\n[cluster]\nupstreams = [\"127.0.0.1:1\"]\n";
    std::fs::write(&config, text).unwrap();
    let socket = std::os::unix::net::UnixDatagram::bind(&notify).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();

    for _ in 0..5 {
        let mut command = std::process::Command::new(TIDEGATE);
        command.args(["run", "--config"]).arg(&config).env("NOTIFY_SOCKET", &notify);
        let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
        let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let mut heard = [0; 256];
        let length = socket.recv(&mut heard).unwrap();
        assert_eq!(String::from_utf8_lossy(&heard[..length]).trim(), "READY=1");

        rustix::process::kill_process(pid, Signal::HUP).unwrap();
        rustix::process::kill_process(pid, Signal::TERM).unwrap();

        assert!(child.wait().unwrap().success());
        socket.set_nonblocking(true).unwrap();
        while socket.recv(&mut heard).is_ok() {}
        socket.set_nonblocking(false).unwrap();
    }
}
