//! The admin console: PgBouncer's tables and commands, and their effect on traffic.

use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use tidegate_chaos::cluster::{Owner, PortLease, Programs, Workdir};
use tidegate_tests::{
    Credentials, Frames, Greeting, Message, Problem, Proxy, Reply, ScriptedApp, Signal, shared_postgres,
    wait_for, wait_until, within,
};

use crate::drivers::{folder, installed, set_up};
use crate::rig::{Rig, SOON, backend_pid, own_postgres, pool_of, run, session_pool_of, sidecar, value};
use crate::{some, trusting};

/// PgBouncer's tables, of which ours must have the columns.
const SHARED: [&str; 11] = [
    "POOLS",
    "CLIENTS",
    "SERVERS",
    "STATS",
    "STATS_TOTALS",
    "STATS_AVERAGES",
    "TOTALS",
    "DATABASES",
    "USERS",
    "LISTS",
    "CONFIG",
];
/// Tables of our own.
const OURS: [&str; 4] = ["LANES", "BREAKERS", "UPSTREAMS", "EVENTS"];

/// A console.
async fn console(proxy: &Proxy) -> ScriptedApp {
    greeted(proxy).await.0
}

async fn greeted(proxy: &Proxy) -> (ScriptedApp, Greeting) {
    ScriptedApp::session(proxy.address(), "postgres", "pgbouncer").await
}

/// Names and type ids of the columns.
fn columns(reply: &Reply) -> Vec<(String, u32)> {
    let header = reply.0.iter().find(|message| message.tag == b'T').unwrap();
    let (count, mut rest) = header.body.split_first_chunk::<2>().unwrap();
    let mut columns = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let end = rest.iter().position(|byte| *byte == 0).unwrap();
        let name = String::from_utf8(rest[..end].to_vec()).unwrap();
        // Table and column number come first; length, modifier and format follow.
        let (oid, tail) = rest[end + 7..].split_first_chunk::<4>().unwrap();
        columns.push((name, u32::from_be_bytes(*oid)));
        rest = &tail[8..];
    }
    columns
}

/// The value of a column in the row whose first column is this.
async fn cell(console: &mut ScriptedApp, table: &str, first: &str, column: &str) -> Option<String> {
    let reply = run(console, &format!("SHOW {table}")).await;
    let index = columns(&reply).iter().position(|(name, _)| name == column).unwrap();
    let row = reply.rows().into_iter().find(|row| row[0].as_deref() == Some(first))?;
    row[index].clone()
}

async fn number(console: &mut ScriptedApp, table: &str, first: &str, column: &str) -> u64 {
    cell(console, table, first, column).await.map_or(0, |text| text.parse().unwrap())
}

/// A PgBouncer of the test's own.
struct PgBouncer {
    process: Child,
    port: PortLease,
    _workdir: Workdir,
}

impl PgBouncer {
    /// None where it is not installed.
    async fn start() -> Option<Self> {
        let owner = Owner::of_servers().unwrap();
        let workdir = Workdir::create("pgbouncer", &owner).unwrap();
        let port = PortLease::take().unwrap();
        let dir = workdir.path().display();
        let settings = format!(
            "[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir =\nauth_type = any\n\
             admin_users = postgres\npidfile = {dir}/pid\nlogfile = {dir}/log\n[databases]\npostgres = host=127.0.0.1\n",
            port.port()
        );
        std::fs::write(workdir.path().join("pgbouncer.ini"), settings).unwrap();
        let mut command = owner.command("pgbouncer");
        command.arg("-q").arg(workdir.path().join("pgbouncer.ini")).current_dir(workdir.path());
        // Debian has it among the programs of the administrator.
        command.env("PATH", format!("/usr/sbin:{}", std::env::var("PATH").unwrap_or_default()));
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
        let bouncer = Self { process, port, _workdir: workdir };
        wait_for(SOON, "PgBouncer accepts", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", bouncer.port.port())).await.ok()
        })
        .await;
        Some(bouncer)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn tables_have_the_columns_of_pgbouncer() {
    // Exporters and dashboards read columns by name and type, scripts by position; all three must agree.
    let Some(bouncer) = PgBouncer::start().await else {
        println!("skip: PgBouncer is not installed");
        return;
    };
    let address = ([127, 0, 0, 1], bouncer.port.port()).into();
    let (mut theirs, _) = ScriptedApp::session(address, "postgres", "pgbouncer").await;
    let rig = Rig::start(trusting("")).await;
    let mut ours = console(rig.proxy()).await;

    for table in SHARED.into_iter().chain(["VERSION"]) {
        let text = format!("SHOW {table}");
        let (theirs, ours) = (run(&mut theirs, &text).await, run(&mut ours, &text).await);

        assert_eq!(columns(&ours), columns(&theirs), "{table}");
        assert_eq!(ours.commands(), theirs.commands(), "{table}");
    }
}

/// psql in the console, with these arguments.
fn psql(proxy: &Proxy, arguments: &[&str]) -> Output {
    let mut command = Command::new(Programs::find().unwrap().program("psql"));
    let port = proxy.address().port().to_string();
    command.args(["-X", "-h", "127.0.0.1", "-U", "postgres", "-d", "tidegate", "-p", &port]).args(arguments);
    command.env("LC_ALL", "C").stdin(Stdio::null()).output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_shows_every_table_plain_and_expanded() {
    // psql is what operators use in an incident; a message that libpq does not accept ends it with an error.
    let rig = Rig::start(trusting("")).await;
    let mut app = rig.app().await;
    run(&mut app, "SELECT 1").await;

    for table in SHARED.iter().chain(&OURS).chain(&["VERSION", "HELP"]) {
        let plain = psql(rig.proxy(), &["-c", &format!("SHOW {table};")]);
        let expanded = psql(rig.proxy(), &["-c", "\\x", "-c", &format!("show {table}")]);

        assert!(plain.status.success() && expanded.status.success(), "{table}: {plain:?} {expanded:?}");
        if !matches!(*table, "HELP" | "BREAKERS" | "EVENTS") {
            assert!(out(&plain).contains("row"), "{table}: {}", out(&plain));
            assert!(out(&expanded).contains("RECORD 1"), "{table}: {}", out(&expanded));
        }
    }
    let help = psql(rig.proxy(), &["-c", "SHOW HELP"]);
    assert!(String::from_utf8_lossy(&help.stderr).contains("RECONNECT [<db>]"), "{help:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_that_completes_names_gets_an_error_and_goes_on() {
    // Tab completion and \d ask the catalogue; the console has none, and must say so without ending the session.
    let rig = Rig::start(trusting("")).await;

    let output = psql(rig.proxy(), &["-A", "-t", "-c", "\\d", "-c", "SHOW VERSION"]);

    assert!(String::from_utf8_lossy(&output.stderr).contains("does not run SQL"), "{output:?}");
    assert!(out(&output).starts_with("tidegate "), "{output:?}");
}

#[tokio::test]
async fn several_statements_run_in_order_and_errors_spare_the_session() {
    // As PostgreSQL: up to the first that fails, nothing when one of them makes no sense, and on with the next query.
    let rig = Rig::start(trusting("")).await;
    let mut console = console(rig.proxy()).await;

    let both = console.query("SHOW VERSION; SHOW LISTS;").await;
    let failing = console.query("SHOW VERSION; RESUME nothing; SHOW LISTS").await;
    let senseless = console.query("SHOW VERSION; SHOW NONSENSE").await;
    let sql = console.query("SELECT version()").await;
    let empty = console.query(" ; ").await;

    assert_eq!(both.commands(), ["SHOW", "SHOW"]);
    assert_eq!((failing.commands().len(), failing.error_code().as_str()), (1, "55000"));
    assert_eq!((senseless.commands().len(), senseless.error_code().as_str()), (0, "42601"));
    let problem = sql.error().unwrap();
    assert_eq!((problem.code(), problem.severity()), ("42601", "ERROR"));
    assert!(problem.field('H').contains("SHOW HELP"), "{problem:?}");
    assert_eq!((empty.tags().as_str(), empty.status()), ("IZ", Some('I')));
    assert_eq!(run(&mut console, "SET extra_float_digits = 3").await.commands(), ["SET"]);
    let refused = console.query("SET default_pool_size = 3").await.error().unwrap();
    assert_eq!(refused.code(), "55P02");
    assert!(refused.field('H').contains("RELOAD"), "{refused:?}");
}

#[tokio::test]
async fn drivers_that_prepare_are_served() {
    // JDBC, pgx and tokio-postgres send every text through Parse, and ask for binary values.
    let rig = Rig::start(trusting("")).await;
    let mut app = rig.app().await;
    run(&mut app, "SELECT 1").await;
    let mut raw = console(rig.proxy()).await;
    let driver = rig.bench.client_in("pgbouncer").await;

    let described =
        raw.exchange(Frames::new().parse("s", "SHOW LISTS", &[]).describe_statement("s").sync()).await;
    let parts = Frames::new().bind("", "s", &[]).describe_portal("").execute("", 5).execute("", 0).sync();
    let parts = raw.exchange(parts).await;
    let typed = driver.query("SHOW POOLS", &[]).await.unwrap();

    assert_eq!(described.tags(), "1tTZ");
    assert_eq!(parts.tags(), "2TDDDDDsDDDDDDDCZ");
    assert_eq!(parts.rows(), run(&mut raw, "SHOW LISTS").await.rows());
    let row = typed.iter().find(|row| row.get::<_, &str>("database") == rig.database).unwrap();
    assert_eq!((row.get::<_, i32>("cl_active"), row.get::<_, i32>("sv_idle")), (1, 1));
    let stats = driver.query("SHOW STATS_TOTALS", &[]).await.unwrap();
    assert_eq!(stats[0].columns()[1].type_().name(), "numeric");
}

#[tokio::test]
async fn a_text_of_thousands_of_commands_is_not_answered_from_memory() {
    // All of its answers were kept until the last was there; a program that reads nothing must fill its socket, no more.
    let rig = Rig::start(trusting("")).await;
    let mut console = console(rig.proxy()).await;
    run(&mut console, "SHOW CONFIG").await;
    let before = rig.proxy().rss_bytes_max();

    let reply = console.query(&"SHOW CONFIG;".repeat(5000)).await;

    assert_eq!(reply.commands().len(), 5000);
    let grown = rig.proxy().rss_bytes_max().saturating_sub(before);
    assert!(grown < 8 * 1024 * 1024, "memory grew by {grown} bytes");
}

#[tokio::test]
async fn few_portals_of_a_console_keep_rows() {
    // Each keeps a whole table: hundreds of them, of hundreds of sessions, would fill the memory.
    let rig = Rig::start(trusting("")).await;
    let mut console = console(rig.proxy()).await;
    let begun = |frames: Frames, portal: &str| frames.bind(portal, "s", &[]).execute(portal, 1);
    let all = Frames::new().parse("s", "SHOW LISTS", &[]);

    let four = ["a", "b", "c", "d"].into_iter().fold(all, begun);
    let read = four.execute("a", 0).sync();
    let (read, fifth) =
        (console.exchange(read).await, ["a", "b", "c", "d", "e"].into_iter().fold(Frames::new(), begun));
    let refused = console.exchange(fifth.sync()).await;

    assert_eq!(read.error(), None);
    assert_eq!((refused.tags().as_str(), refused.error_code().as_str()), ("2Ds2Ds2Ds2Ds2EZ", "53000"));
}

#[tokio::test]
async fn extended_errors_skip_to_sync() {
    // A driver counts answers; one too many or too few, and every later answer belongs to the wrong question.
    let rig = Rig::start(trusting("")).await;
    let mut console = console(rig.proxy()).await;

    let sql = console.exchange(Frames::new().unnamed("SELECT 1", &[]).sync()).await;
    let two = console.exchange(Frames::new().unnamed("SHOW LISTS; SHOW USERS", &[]).sync()).await;
    let parameter = console.exchange(Frames::new().unnamed("SHOW LISTS", &[Some("1")]).sync()).await;
    let missing = console.exchange(Frames::new().bind("", "nowhere", &[]).execute("", 0).sync()).await;
    let empty = console.exchange(Frames::new().unnamed("", &[]).sync()).await;
    let closed = console
        .exchange(Frames::new().parse("s", "SHOW LISTS", &[]).close_statement("s").bind("", "s", &[]).sync());
    let closed = closed.await;

    let codes = [&sql, &two, &parameter, &missing, &closed].map(Reply::error_code);
    assert_eq!(codes, ["42601", "42601", "08P01", "26000", "26000"]);
    let tags = [&sql, &two, &parameter, &missing, &empty, &closed].map(Reply::tags);
    assert_eq!(tags, ["EZ", "EZ", "1EZ", "EZ", "12nIZ", "13EZ"]);
}

#[tokio::test]
async fn the_exporter_gets_every_number_that_it_reads() {
    // prometheus-community's pgbouncer_exporter sends these texts, and fails as a whole when one label set comes twice
    // or a number does not parse.
    let rig = Rig::start(trusting("")).await;
    let mut app = rig.app().await;
    run(&mut app, "SELECT 1").await;
    let mut console = console(rig.proxy()).await;

    for text in [
        "SHOW VERSION;",
        "SHOW STATS",
        "SHOW LISTS;",
        "SHOW CONFIG;",
        "SHOW databases;",
        "SHOW pools;",
        "SHOW stats_totals;",
    ] {
        let reply = run(&mut console, text).await;
        let columns = columns(&reply);
        for row in reply.rows() {
            for (value, (name, oid)) in row.iter().zip(&columns) {
                let parses = value.as_deref().is_none_or(|value| value.parse::<f64>().is_ok());
                assert!(*oid == 25 || parses, "{text}: {name} is {value:?}");
            }
        }
        let mut keys: Vec<_> = reply.rows().into_iter().map(|row| row[..row.len().min(2)].to_vec()).collect();
        let all = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), all, "{text}");
    }
    for key in ["max_client_conn", "max_user_connections"] {
        let set = cell(&mut console, "CONFIG", key, "value").await.unwrap();
        assert!(set.parse::<f64>().is_ok(), "{key} is {set}");
    }
}

#[tokio::test]
async fn stats_count_what_went_through() {
    // Rates and shares on dashboards are made of these; a transaction of three exchanges is one and three.
    let rig = Rig::start(trusting("")).await;
    let mut app = rig.app().await;
    let mut console = console(rig.proxy()).await;
    let row = rig.database.clone();

    for sql in ["BEGIN", "SELECT pg_sleep(0.3)", "COMMIT", "SELECT repeat('x', 100000)"] {
        run(&mut app, sql).await;
    }

    wait_for(SOON, "the figures are complete", async || {
        (number(&mut console, "STATS", &row, "total_query_count").await == 4).then_some(())
    })
    .await;
    assert_eq!(number(&mut console, "STATS", &row, "total_xact_count").await, 2);
    let received = number(&mut console, "STATS", &row, "total_received").await;
    let sent = number(&mut console, "STATS", &row, "total_sent").await;
    assert!((50..1_000).contains(&received), "{received}");
    assert!((100_000..102_000).contains(&sent), "{sent}");
    let times = ["total_query_time", "total_xact_time"];
    for column in times {
        let time = number(&mut console, "STATS", &row, column).await;
        assert!((250_000..10_000_000).contains(&time), "{column} is {time}");
    }
    assert_eq!(number(&mut console, "STATS_TOTALS", &row, "xact_count").await, 2);
}

#[tokio::test]
async fn pools_clients_and_servers_say_who_does_what() {
    // In an incident these three tables answer who holds the backends and who waits for them.
    let rig = Rig::start(pool_of(1)).await;
    let mut holder = rig.app_with(&[("application_name", "holder")]).await;
    let mut waiter = rig.app_with(&[("application_name", "waiter")]).await;
    let mut console = console(rig.proxy()).await;
    let database = rig.database.clone();
    run(&mut holder, "BEGIN").await;
    let pid = backend_pid(&mut holder).await;
    waiter.send(Frames::new().query("SELECT 1")).await;

    wait_for(SOON, "somebody waits", async || {
        (number(&mut console, "POOLS", &database, "cl_waiting").await == 1).then_some(())
    })
    .await;

    let counts = ["cl_active", "sv_active", "sv_idle"];
    for (column, count) in counts.into_iter().zip([1, 1, 0]) {
        assert_eq!(number(&mut console, "POOLS", &database, column).await, count, "{column}");
    }
    let clients = run(&mut console, "SHOW CLIENTS").await.rows();
    let state = |name: &str| clients.iter().find(|row| row[17] == some(name)).map(|row| row[3].clone());
    assert_eq!((state("holder"), state("waiter")), (Some(some("active")), Some(some("waiting"))));
    let servers = run(&mut console, "SHOW SERVERS").await.rows();
    let server = servers.iter().find(|row| row[15].as_deref() == Some(&pid)).unwrap();
    assert_eq!((&server[3], &server[17]), (&some("active"), &some("holder")));
    let holder_row = clients.iter().find(|row| row[17] == some("holder")).unwrap();
    assert_eq!(server[14], holder_row[13], "the link is the client's ptr");
    run(&mut holder, "COMMIT").await;
    assert_eq!(waiter.reply().await.value(), some("1"));
}

#[tokio::test]
async fn pause_waits_for_transactions_and_holds_until_resume() {
    // Whoever restarts the database after PAUSE must find no backend; a transaction that runs must not be cut off.
    let rig = Rig::start(trusting("")).await;
    let (mut busy, mut other) = (rig.app().await, rig.app().await);
    let (mut pausing, mut looking) = (console(rig.proxy()).await, console(rig.proxy()).await);
    run(&mut busy, "BEGIN").await;
    run(&mut busy, "CREATE TABLE kept (n int)").await;

    pausing.send(Frames::new().query(&format!("PAUSE {}", rig.database))).await;
    wait_for(SOON, "the pause begins", async || {
        (cell(&mut looking, "DATABASES", &rig.database, "paused").await == some("1")).then_some(())
    })
    .await;
    pausing.expect_silence(Duration::from_millis(200)).await;
    let refused = other.query("SELECT 1").await.error().unwrap();
    run(&mut busy, "COMMIT").await;
    let paused = pausing.reply().await;

    assert_eq!((refused.code(), refused.detail_of("reason")), ("53000", Some("paused")));
    assert_eq!(refused.detail_of("outcome"), Some("not_sent"));
    assert_eq!(paused.commands(), ["PAUSE"]);
    assert_eq!(rig.backends(), 0);
    assert_eq!(looking.query(&format!("PAUSE {}", rig.database)).await.error_code(), "55000");
    other.send(Frames::new().query("SELECT count(*) FROM kept")).await;
    run(&mut looking, &format!("RESUME {}", rig.database)).await;
    assert_eq!(other.reply().await.value(), some("0"));
    assert_eq!(looking.query("RESUME").await.error_code(), "55000");
}

#[tokio::test]
async fn a_transaction_that_has_only_read_so_far_can_write_during_a_pause() {
    // Each transaction may end, and PAUSE waits for it; refused its first write, it would have ended for nothing.
    let rig = Rig::start(trusting("timeouts.queue = \"1s\"")).await;
    rig.sql("CREATE TABLE kept (n int)");
    let mut busy = rig.app().await;
    let (mut pausing, mut looking) = (console(rig.proxy()).await, console(rig.proxy()).await);
    run(&mut busy, "BEGIN").await;
    run(&mut busy, "SELECT count(*) FROM kept").await;
    pausing.send(Frames::new().query(&format!("PAUSE {}", rig.database))).await;
    wait_for(SOON, "the pause begins", async || {
        (cell(&mut looking, "DATABASES", &rig.database, "paused").await == some("1")).then_some(())
    })
    .await;

    run(&mut busy, "INSERT INTO kept VALUES (1)").await;
    run(&mut busy, "COMMIT").await;

    assert_eq!(pausing.reply().await.commands(), ["PAUSE"]);
    assert_eq!(rig.sql("SELECT n FROM kept"), "1");
}

#[tokio::test]
async fn a_pause_of_everything_covers_databases_that_come_later() {
    // A pool that opens a moment after PAUSE would keep a connection to a server that is about to be stopped.
    let rig = Rig::start(trusting("timeouts.queue = \"300ms\"")).await;
    let mut console = console(rig.proxy()).await;

    assert_eq!(run(&mut console, "PAUSE").await.commands(), ["PAUSE"]);
    let mut late = ScriptedApp::connect(rig.proxy().address()).await;
    let refused = late.log_in(Credentials { user: "postgres", password: "", database: &rig.database }).await;

    assert_eq!(refused.unwrap_err().detail_of("reason"), Some("paused"));
    assert_eq!(rig.backends(), 0);
    run(&mut console, "RESUME").await;
    assert_eq!(value(&mut rig.app().await, "SELECT 1").await, "1");
}

#[tokio::test]
async fn a_pause_that_cannot_complete_is_undone() {
    // A pause left behind by a script that gave up is an outage that nobody has ordered.
    let rig = Rig::start(trusting("timeouts.drain = \"1s\"")).await;
    let (mut busy, mut other) = (rig.app().await, rig.app().await);
    run(&mut busy, "BEGIN").await;
    run(&mut busy, "SELECT 1").await;
    let pause = format!("PAUSE {}", rig.database);

    // Too late.
    let mut console = console(rig.proxy()).await;
    let late = console.query(&pause).await.error().unwrap();
    assert_eq!((late.code(), late.detail_of("backends")), ("55000", Some("1")));
    run(&mut other, "SELECT 1").await;

    // Cancelled.
    let (mut cancelled, greeting) = greeted(rig.proxy()).await;
    cancelled.send(Frames::new().query(&pause)).await;
    wait_for(SOON, "the pause begins", async || {
        (cell(&mut console, "DATABASES", &rig.database, "paused").await == some("1")).then_some(())
    })
    .await;
    ScriptedApp::cancel(rig.proxy().address(), &greeting.key).await;
    assert_eq!(cancelled.reply().await.error_code(), "57014");
    run(&mut other, "SELECT 1").await;

    // Forsaken.
    cancelled.send(Frames::new().query(&pause)).await;
    drop(cancelled);
    wait_for(SOON, "the pause is undone", async || {
        (cell(&mut console, "DATABASES", &rig.database, "paused").await == some("0")).then_some(())
    })
    .await;
    run(&mut other, "SELECT 1").await;
}

#[tokio::test]
async fn reconnect_replaces_backends_without_disturbing_transactions() {
    // After a change at the server (a new certificate, a new search path) old connections must go, and work must not.
    let rig = Rig::start(pool_of(2)).await;
    let (mut busy, mut idle) = (rig.app().await, rig.app().await);
    run(&mut busy, "BEGIN").await;
    let busy_pid = backend_pid(&mut busy).await;
    let idle_pid = backend_pid(&mut idle).await;
    let mut console = console(rig.proxy()).await;

    run(&mut console, &format!("RECONNECT {}", rig.database)).await;

    wait_until(SOON, "the idle backend is replaced", || {
        rig.sql(&format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {idle_pid}")) == "0"
    })
    .await;
    assert_ne!(backend_pid(&mut idle).await, idle_pid);
    assert_eq!(backend_pid(&mut busy).await, busy_pid);
    run(&mut busy, "COMMIT").await;
    wait_until(SOON, "the other one follows", || {
        rig.sql(&format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {busy_pid}")) == "0"
    })
    .await;
    assert_eq!(console.query("RECONNECT no_such_database").await.error_code(), "3D000");
}

#[tokio::test]
async fn kill_ends_sessions_and_backends_of_one_database_only() {
    // The command of last resort must not hit the neighbours, and must not leave statements running.
    let rig = Rig::start(trusting("timeouts.queue = \"2s\"")).await;
    let mut neighbour = ScriptedApp::session(rig.proxy().address(), "postgres", "postgres").await.0;
    let (mut active, mut idle) = (rig.app().await, rig.app().await);
    run(&mut neighbour, "SELECT 1").await;
    run(&mut idle, "SELECT 1").await;
    active.send(Frames::new().query("SELECT pg_sleep(60)")).await;
    rig.wait_running("SELECT pg_sleep(60)").await;
    let mut console = console(rig.proxy()).await;

    run(&mut console, &format!("KILL {}", rig.database)).await;

    for app in [&mut active, &mut idle] {
        let last: Vec<Problem> = app.expect_end().await.iter().filter_map(Message::problem).collect();
        assert_eq!(last.last().map(Problem::code), Some("57P01"), "{last:?}");
    }
    wait_until(SOON, "its backends are gone", || rig.backends() == 0).await;
    run(&mut neighbour, "SELECT 1").await;
    let who = Credentials { user: "postgres", password: "", database: &rig.database };
    let mut late = ScriptedApp::connect(rig.proxy().address()).await;
    let waits = match late.log_in(who).await {
        Ok(_) => late.query("SELECT 1").await.error().unwrap(),
        Err(problem) => problem,
    };
    assert_eq!(waits.detail_of("reason"), Some("paused"));
    run(&mut console, &format!("RESUME {}", rig.database)).await;
    assert_eq!(value(&mut rig.app().await, "SELECT 1").await, "1");
}

#[tokio::test]
async fn disable_refuses_new_sessions_and_spares_old_ones() {
    // The gentle way to empty a database: nobody new comes in, everybody inside may finish.
    let rig = Rig::start(trusting("")).await;
    let mut inside = rig.app().await;
    let mut console = console(rig.proxy()).await;
    let who = Credentials { user: "postgres", password: "", database: &rig.database };

    run(&mut console, &format!("DISABLE {}", rig.database)).await;
    let refused = ScriptedApp::connect(rig.proxy().address()).await.log_in(who).await.unwrap_err();

    assert_eq!(refused.code(), "55000");
    run(&mut inside, "SELECT 1").await;
    run(&mut console, &format!("ENABLE {}", rig.database)).await;
    run(&mut rig.app().await, "SELECT 1").await;
}

#[tokio::test]
async fn reload_takes_the_file_over_or_says_why_not() {
    // An operator must see at once whether what was written is in force.
    let rig = Rig::start(sidecar("[pool]\nsize = 3\n")).await;
    let mut console = console(rig.proxy()).await;
    assert_eq!(cell(&mut console, "CONFIG", "pool.size", "value").await, some("3"));

    rig.proxy().write_config("[listen]\nauth = \"trust\"\n[pool]\nsize = 4\n");
    assert_eq!(run(&mut console, "RELOAD").await.commands(), ["RELOAD"]);
    assert_eq!(cell(&mut console, "CONFIG", "default_pool_size", "value").await, some("4"));

    rig.proxy().write_config("[listen]\nauth = \"trust\"\n[pool]\nsize = \"many\"\n");
    let refused = console.query("RELOAD").await.error().unwrap();
    assert_eq!(refused.code(), "F0000");
    assert!(refused.detail().contains("pool.size"), "{refused:?}");
    assert_eq!(cell(&mut console, "CONFIG", "pool.size", "value").await, some("4"));
}

#[tokio::test]
async fn shutdown_drains_and_ends_cleanly() {
    // As SIGTERM: a transaction that runs may end, and the process says that all is well.
    let mut rig = Rig::start(trusting("timeouts.drain = \"20s\"")).await;
    let mut busy = rig.app().await;
    run(&mut busy, "BEGIN").await;
    run(&mut busy, "SELECT 1").await;
    let mut console = console(rig.proxy()).await;

    let answer = console.query("SHUTDOWN").await;

    assert_eq!(answer.commands(), ["SHUTDOWN"]);
    rig.proxy().wait_logged("draining").await;
    assert!(rig.bench.proxy.is_running());
    run(&mut busy, "COMMIT").await;
    let status = rig.bench.proxy.wait_exit(SOON).await;
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn only_admin_users_with_their_password_get_in() {
    // Whoever can pause and kill must have proven who it is, whatever it may do in PostgreSQL.
    let node = own_postgres(&[]);
    let options = tidegate_tests::ProxyOptions::new(crate::TIDEGATE)
        .config("listen.auth = \"scram\"\nlisten.userlist = \"users\"\nadmin.users = [\"chief\"]")
        .file("users", "\"chief\" \"chief-secret\"\n\"clerk\" \"clerk-secret\"\n")
        .upstream(&node.url());
    let proxy = options.start().await;
    let log_in = async |user: &str, password: &str| {
        let mut app = ScriptedApp::connect(proxy.address()).await;
        app.log_in(Credentials { user, password, database: "tidegate" }).await.map(|_| app)
    };

    let mut chief = log_in("chief", "chief-secret").await.map_err(|problem| panic!("{problem:?}")).unwrap();
    let clerk = log_in("clerk", "clerk-secret").await.err().unwrap();
    let wrong = log_in("chief", "clerk-secret").await.err().unwrap();

    assert_eq!((clerk.code(), clerk.severity()), ("28000", "FATAL"));
    assert_eq!(wrong.code(), "28P01");
    assert_eq!(cell(&mut chief, "USERS", "chief", "name").await, some("chief"));
}

#[tokio::test]
async fn one_place_is_kept_for_an_operator_when_all_sessions_are_in_use() {
    // A pool of an application that leaks connections takes them all; that is when somebody has to look.
    let rig = Rig::start(trusting("listen.max_sessions = 2")).await;
    let who = Credentials { user: "postgres", password: "", database: &rig.database };
    let taken = [rig.app().await, rig.app().await];

    let third = ScriptedApp::connect(rig.proxy().address()).await.log_in(who).await.unwrap_err();
    let mut operator = console(rig.proxy()).await;
    let mut second = ScriptedApp::connect(rig.proxy().address()).await;
    let second = second.log_in(Credentials { database: "tidegate", ..who }).await.unwrap_err();

    assert_eq!((third.code(), third.detail_of("reason")), ("53300", Some("max_sessions")));
    assert_eq!(second.code(), "53300");
    assert_eq!(number(&mut operator, "LISTS", "free_clients", "items").await, 0);
    // Its place is free again for the next one, and so are those of the applications.
    operator.terminate().await;
    let again = wait_for(SOON, "the place is free again", async || {
        let mut app = ScriptedApp::connect(rig.proxy().address()).await;
        app.log_in(Credentials { database: "tidegate", ..who }).await.ok().map(|_| app)
    })
    .await;
    for app in taken {
        app.terminate().await;
    }
    drop(again);
    wait_for(SOON, "applications get in again", async || {
        ScriptedApp::connect(rig.proxy().address()).await.log_in(who).await.ok()
    })
    .await;
}

#[tokio::test]
async fn connections_that_say_nothing_do_not_keep_the_operator_out() {
    // When all sessions are in use a few connections are looked at; silent ones must give way within seconds.
    let rig = Rig::start(trusting("listen.max_sessions = 1")).await;
    let _taken = rig.app().await;
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(ScriptedApp::connect(rig.proxy().address()).await);
    }

    let who = Credentials { user: "postgres", password: "", database: "tidegate" };
    let operator = wait_for(SOON, "the operator gets in", async || {
        ScriptedApp::connect(rig.proxy().address()).await.log_in(who).await.ok()
    })
    .await;

    drop(operator);
}

#[tokio::test]
async fn the_console_answers_while_the_database_is_frozen() {
    // A write stall is when it is needed; nothing in it may wait for PostgreSQL.
    let node = own_postgres(&[]);
    let proxy = session_pool_of(2).upstream(&node.url()).start().await;
    let (mut app, _) = ScriptedApp::session(proxy.address(), "postgres", "postgres").await;
    run(&mut app, "SELECT 1").await;
    node.freeze().unwrap();
    app.send(Frames::new().query("CREATE TABLE stuck ()")).await;

    let tables = async {
        let mut console = console(&proxy).await;
        for table in SHARED.into_iter().chain(OURS) {
            run(&mut console, &format!("SHOW {table}")).await;
        }
    };
    within(Duration::from_secs(5), "all tables", tables).await;

    node.thaw().unwrap();
}

#[tokio::test]
async fn the_console_ends_with_the_process() {
    // An operator who watches must not keep a drain waiting until its deadline.
    let mut rig = Rig::start(trusting("timeouts.drain = \"60s\"")).await;
    let mut console = console(rig.proxy()).await;

    rig.proxy().signal(Signal::TERM);

    let last = console.expect_end().await;
    assert_eq!(last[0].problem().unwrap().code(), "57P01");
    assert!(rig.bench.proxy.wait_exit(SOON).await.success());
}

#[tokio::test]
async fn an_upstream_says_the_same_of_itself_everywhere() {
    // Seen: epoch 1 in the console and 17 on the page, and a server that is alone was `unknown` for good.
    let rig = Rig::start(trusting("")).await;
    let mut app = rig.app().await;
    run(&mut app, "SELECT 1").await;
    let mut console = console(rig.proxy()).await;
    let name = format!("127.0.0.1:{}", shared_postgres().port());

    wait_for(SOON, "it is seen to answer", async || {
        (cell(&mut console, "UPSTREAMS", &name, "state").await.as_deref() == Some("up")).then_some(())
    })
    .await;

    let epoch = number(&mut console, "UPSTREAMS", &name, "epoch").await;
    let page = rig.proxy().get("/status").await.body;
    let page: serde_json::Value = serde_json::from_str(&page).unwrap();
    let metric = rig.proxy().metrics().await.get("tidegate_upstream_epoch", &[]);
    assert_eq!(page["upstreams"][0]["epoch"], epoch);
    assert_eq!(metric, Some(f64::from(u32::try_from(epoch).unwrap())));
}

/// Runs a program that says "ok" at its end.
async fn passes(proxy: &Proxy, mut command: Command) {
    command.env("TIDEGATE_TEST_PORT", proxy.address().port().to_string()).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    assert!(output.status.success() && out(&output).ends_with("ok\n"), "{output:?}");
}

#[tokio::test]
async fn python_drivers_work_in_the_console() {
    // They wrap everything in BEGIN and COMMIT, prepare on their own, pipeline, and ask for binary values.
    set_up().await;
    let python = installed().join("venv/bin/python");
    if !python.exists() {
        println!("skip: no Python drivers");
        return;
    }
    let rig = Rig::start(trusting("")).await;

    let mut command = Command::new(python);
    command.arg(folder().join("console.py"));
    passes(rig.proxy(), command).await;
}

#[tokio::test]
async fn jdbc_works_in_the_console() {
    // It sets parameters when it connects, names statements after a while, and limits rows in Execute.
    let jar = std::env::var("TIDEGATE_JDBC_JAR").unwrap_or("/usr/share/java/postgresql.jar".to_owned());
    if Command::new("javac").arg("-version").output().is_err() || !std::path::Path::new(&jar).exists() {
        println!("skip: no JDK or no pgjdbc");
        return;
    }
    let rig = Rig::start(trusting("")).await;

    let mut command = Command::new("java");
    command.args(["-cp", &jar]).arg(folder().join("Console.java"));
    passes(rig.proxy(), command).await;
}
