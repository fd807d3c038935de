//! `SET tidegate.…` is answered by the sidecar, in its turn, as PostgreSQL would answer.

use std::time::Duration;

use tidegate_chaos::cluster::StopMode;
use tidegate_tests::{Credentials, Frames, Reply, ScriptedApp, shared_postgres};

use crate::rig::{Rig, SOON, own_postgres, pool_of, run, session_pool_of, sidecar, value};

async fn rig() -> Rig {
    Rig::start(pool_of(2)).await
}

async fn show(app: &mut ScriptedApp, name: &str) -> String {
    value(app, &format!("SHOW tidegate.{name}")).await
}

/// The statements that the server was asked to run so far in this database, whatever became of them.
async fn calls(app: &mut ScriptedApp) -> i64 {
    let sql = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()";
    value(app, sql).await.parse().unwrap()
}

#[tokio::test]
async fn a_setting_of_ours_is_set_shown_and_reset_by_both_protocols() {
    // A form that is not understood goes to PostgreSQL, where it changes nothing that we look at.
    let rig = Rig::start(pool_of(1)).await;
    let (mut app, mut other) = (rig.app().await, rig.app().await);
    // The only backend is taken: whatever needs one gets no answer.
    run(&mut other, "BEGIN").await;
    assert_eq!(show(&mut app, "write_timeout").await, "150s");

    let set = run(&mut app, "SET tidegate.write_timeout = '250ms'").await;
    assert_eq!((set.tags(), set.commands()), ("CZ".to_owned(), vec!["SET".to_owned()]));
    let shown = run(&mut app, "SHOW tidegate.write_timeout").await;
    assert_eq!((shown.tags(), shown.commands()), ("TDCZ".to_owned(), vec!["SHOW".to_owned()]));
    assert_eq!(shown.value().as_deref(), Some("250ms"));

    let reset = app.exchange(Frames::new().unnamed("RESET tidegate.write_timeout", &[]).sync()).await;
    assert_eq!((reset.tags(), reset.commands()), ("12nCZ".to_owned(), vec!["RESET".to_owned()]));
    let frames = Frames::new()
        .parse("set", "SET tidegate.priority TO sheddable", &[])
        .parse("show", "SHOW tidegate.priority", &[])
        .describe_statement("set")
        .describe_statement("show")
        .bind("p", "set", &[])
        .execute("p", 0)
        .bind("q", "show", &[])
        .describe_portal("q")
        .execute("q", 0)
        .close_portal("q")
        .close_statement("set")
        .sync();
    let named = app.exchange(frames).await;
    assert_eq!((named.tags().as_str(), named.value().as_deref()), ("11tntT2C2TDC33Z", Some("sheddable")));
    assert_eq!(show(&mut app, "write_timeout").await, "150s");
    run(&mut other, "COMMIT").await;

    // The names are real: one is free again, the other is taken.
    let taken = app.exchange(Frames::new().parse("show", "SELECT 1", &[]).sync()).await;
    assert_eq!(taken.error_code(), "42P05");
    let again =
        app.exchange(Frames::new().parse("set", "SELECT 7", &[]).bind("", "set", &[]).execute("", 0).sync());
    assert_eq!(again.await.value().as_deref(), Some("7"));
    let show_again = app.exchange(Frames::new().bind("", "show", &[]).execute("", 0).sync()).await;
    assert_eq!(show_again.value().as_deref(), Some("sheddable"));
}

#[tokio::test]
async fn what_we_answer_ourselves_takes_no_time_from_what_follows() {
    // Seen: the deadline of a statement counted from the SET or SHOW of ours before it, however long ago that was,
    // because only what is sent to PostgreSQL took the moment of its first byte away.
    let rig = rig().await;
    let mut app = rig.app().await;
    run(&mut app, "SET tidegate.read_timeout = '1s'").await;

    for ours in ["SHOW tidegate.read_timeout", "SET tidegate.lane = 'auto'", "RESET tidegate.lane"] {
        run(&mut app, ours).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        run(&mut app, "SELECT pg_sleep(0.5)").await;
    }
}

#[tokio::test]
async fn the_answer_to_show_is_what_postgresql_would_send() {
    // Drivers read type and format of the column; a wrong one makes them fail or misread.
    let rig = rig().await;
    let mut app = rig.app().await;
    rig.sql(&format!("ALTER DATABASE {} SET tidegate.lane = 'auto'", rig.database));
    let mut oracle = crate::oracle(&rig.database).await;
    let frames = Frames::new()
        .query("SHOW tidegate.lane")
        .parse("s", "SHOW tidegate.lane", &[])
        .describe_statement("s")
        .bind("", "s", &[])
        .describe_portal("")
        .execute("", 0)
        .sync();
    oracle.send(frames.clone()).await;
    app.send(frames).await;

    assert_eq!(app.reply().await, oracle.reply().await);
    assert_eq!(app.reply().await, oracle.reply().await);
    let client = rig.client().await;
    assert_eq!(client.query_one("SHOW tidegate.lane", &[]).await.unwrap().get::<_, &str>(0), "auto");
}

#[tokio::test]
async fn it_needs_no_database() {
    // In an outage an application must still be able to choose its bounds.
    let node = own_postgres(&[]);
    let proxy = sidecar("").upstream(&node.url()).start().await;
    let mut app = ScriptedApp::session(proxy.address(), "postgres", "postgres").await.0;
    run(&mut app, "SELECT 1").await;
    node.stop(StopMode::Fast).unwrap();

    run(&mut app, "SET tidegate.lane = read").await;
    let frames = Frames::new().unnamed("SET tidegate.commit_timeout = '2s'", &[]).sync();
    assert_eq!(app.exchange(frames).await.tags(), "12nCZ");
    assert_eq!(
        (show(&mut app, "lane").await, show(&mut app, "commit_timeout").await),
        ("read".into(), "2s".into())
    );
    let mixed = Frames::new()
        .unnamed("SET tidegate.lane = write", &[])
        .unnamed("SELECT 1", &[])
        .unnamed("SET tidegate.priority = sheddable", &[])
        .sync();
    let refused = app.exchange(mixed).await;
    assert_eq!((refused.tags().as_str(), refused.error_code().as_str()), ("12nCEZ", "53000"));
    // The pipeline is one transaction, and it failed.
    assert_eq!(
        (show(&mut app, "lane").await, show(&mut app, "priority").await),
        ("read".into(), "critical".into())
    );
}

#[tokio::test]
async fn it_never_reaches_the_database() {
    // There it would create a placeholder that is replayed with every change of backends.
    let rig = rig().await;
    let mut app = rig.app().await;
    run(&mut app, "BEGIN").await;
    let frames =
        Frames::new().parse("s", "SET tidegate.lane = read", &[]).bind("", "s", &[]).execute("", 0).sync();
    let inside = app.exchange(frames).await;
    assert_eq!((inside.tags().as_str(), inside.status()), ("12CZ", Some('T')));
    run(&mut app, "SET tidegate.lane = write").await;

    let seen = value(&mut app, "SELECT current_setting('tidegate.lane', true)").await;

    assert_eq!(seen, "");
    assert_eq!(show(&mut app, "lane").await, "write");
    run(&mut app, "COMMIT").await;
}

#[tokio::test]
async fn answers_keep_their_order_in_a_pipeline() {
    // An answer that overtakes those of the server belongs to the wrong statement for the application.
    let rig = rig().await;
    let mut app = rig.app().await;
    let before = Frames::new()
        .unnamed("SELECT pg_sleep(0.05)::text", &[])
        .unnamed("SET tidegate.read_timeout = '9s'", &[])
        .unnamed("SELECT 'between'", &[])
        .unnamed("SHOW tidegate.read_timeout", &[])
        .unnamed("SELECT 'behind'", &[])
        .sync();
    let reply = app.exchange(before).await;
    assert_eq!(reply.tags(), "12TDC12nC12TDC12TDC12TDCZ");
    let values: Vec<_> = reply.rows().into_iter().map(|row| row[0].clone().unwrap()).collect();
    assert_eq!(values, ["", "between", "9s", "behind"]);

    app.send(
        Frames::new()
            .query("SELECT pg_sleep(0.05)::text")
            .query("SET tidegate.read_timeout = '8s'; SHOW tidegate.read_timeout")
            .query("SELECT 'behind'")
            .query("SHOW tidegate.read_timeout"),
    )
    .await;
    let replies = [app.reply().await, app.reply().await, app.reply().await, app.reply().await];
    assert_eq!(replies.each_ref().map(Reply::tags), ["TDCZ", "CTDCZ", "TDCZ", "TDCZ"]);
    assert_eq!(replies.each_ref().map(|reply| reply.value().unwrap()), ["", "8s", "behind", "8s"]);
}

#[tokio::test]
async fn what_the_server_skips_after_an_error_has_no_effect() {
    // The application is told that its pipeline failed there.
    let rig = rig().await;
    let mut app = rig.app().await;
    let frames = Frames::new()
        .unnamed("SET tidegate.lane = write", &[])
        .unnamed("SELECT 1/0", &[])
        .unnamed("SET tidegate.lane = read", &[])
        .parse("s", "SHOW tidegate.lane", &[])
        .sync();

    let reply = app.exchange(frames).await;

    assert_eq!((reply.tags().as_str(), reply.error_code().as_str()), ("12nC1EZ", "22012"));
    assert_eq!(show(&mut app, "lane").await, "auto");
    let gone = app.exchange(Frames::new().bind("", "s", &[]).sync()).await;
    assert_eq!(gone.error_code(), "26000");
}

#[tokio::test]
async fn errors_are_postgresqls_and_fail_the_transaction() {
    // A driver that gets an error without a failed transaction goes on in a state that it does not expect.
    let rig = rig().await;
    let mut app = rig.app().await;
    for (sql, code) in [
        ("SET tidegate.write_timeout = 'soon'", "22023"),
        ("SET tidegate.write_timeout = 0", "22023"),
        ("SET tidegate.priority = 'highest'", "22023"),
        ("SET tidegate.nonsense = 1", "42704"),
        ("SHOW tidegate.nonsense", "42704"),
        ("RESET tidegate.nonsense", "42704"),
        ("SET tidegate.lane = read; SET tidegate.lane = up", "22023"),
    ] {
        let idle = app.query(sql).await;
        assert_eq!(
            (idle.tags().as_str(), idle.error_code().as_str(), idle.status()),
            ("EZ", code, Some('I')),
            "{sql}"
        );
    }
    let extended = Frames::new().unnamed("SET tidegate.lane = up", &[]).unnamed("SELECT 1", &[]).sync();
    let idle = app.exchange(extended.clone()).await;
    assert_eq!((idle.tags().as_str(), idle.error_code().as_str()), ("12nEZ", "22023"));
    assert_eq!(show(&mut app, "lane").await, "auto");

    for frames in [Frames::new().query("SET tidegate.lane = up"), extended] {
        run(&mut app, "BEGIN").await;
        let inside = app.exchange(frames).await;
        assert_eq!((inside.error_code().as_str(), inside.status()), ("22023", Some('E')));
        let hint = inside.error().unwrap().field('H').to_owned();
        assert_eq!(hint, "Available values: auto, read, write.");
        for sql in ["SELECT 1", "SET tidegate.lane = read", "SET tidegate.lane = up"] {
            let after = app.query(sql).await;
            assert_eq!((after.error_code().as_str(), after.status()), ("25P02", Some('E')), "{sql}");
            let after = app.exchange(Frames::new().unnamed(sql, &[]).sync()).await;
            assert_eq!((after.tags().as_str(), after.error_code().as_str()), ("EZ", "25P02"), "{sql}");
        }
        assert_eq!(run(&mut app, "COMMIT").await.commands(), ["ROLLBACK"]);
    }
    assert_eq!(show(&mut app, "lane").await, "auto");
}

#[tokio::test]
async fn a_pipeline_behind_a_failure_that_is_not_known_yet_fails_too() {
    // When the SET comes nobody knows that its transaction has failed; taking it for granted would be wrong.
    let rig = rig().await;
    let mut app = rig.app().await;
    let set = Frames::new().unnamed("SET tidegate.lane = read", &[]).unnamed("SELECT 1", &[]).sync();
    let frames = Frames::new()
        .query("BEGIN")
        .query("SELECT 1 / (SELECT 0 FROM pg_sleep(0.05))")
        .raw(set.as_ref())
        .query("SET tidegate.lane = read")
        .query("ROLLBACK")
        .raw(set.as_ref());

    app.send(frames).await;

    let mut replies = Vec::new();
    for _ in 0..6 {
        let reply = app.reply().await;
        replies.push((reply.tags(), reply.error_code(), reply.status().unwrap()));
    }
    let wanted = [
        ("CZ", "", 'T'),
        ("TEZ", "22012", 'E'),
        ("EZ", "25P02", 'E'),
        ("EZ", "25P02", 'E'),
        ("CZ", "", 'I'),
        ("12nC12TDCZ", "", 'I'),
    ];
    assert_eq!(replies, wanted.map(|(tags, code, status)| (tags.to_owned(), code.to_owned(), status)));
    assert_eq!(show(&mut app, "lane").await, "read");
}

#[tokio::test]
async fn it_follows_the_transaction() {
    // PostgreSQL's own settings do; a bound for one transaction that stays would surprise the next.
    let rig = rig().await;
    let mut app = rig.app().await;
    let lane = async |app: &mut ScriptedApp| show(app, "lane").await;

    run(&mut app, "BEGIN; SELECT 1").await;
    run(&mut app, "SET LOCAL tidegate.lane = write").await;
    assert_eq!(lane(&mut app).await, "write");
    run(&mut app, "COMMIT").await;
    assert_eq!(lane(&mut app).await, "auto");

    run(&mut app, "BEGIN").await;
    run(&mut app, "SET tidegate.lane = write").await;
    run(&mut app, "ROLLBACK").await;
    assert_eq!(lane(&mut app).await, "auto");

    let frames = Frames::new()
        .query("BEGIN")
        .query("SET tidegate.lane = read")
        .query("COMMIT")
        .query("BEGIN")
        .query("SET tidegate.lane = write")
        .query("ROLLBACK")
        .query("SET tidegate.priority = sheddable");
    app.send(frames).await;
    for _ in 0..7 {
        assert_eq!(app.reply().await.error(), None);
    }
    assert_eq!((lane(&mut app).await, show(&mut app, "priority").await), ("read".into(), "sheddable".into()));

    let outside = app.query("SET LOCAL tidegate.lane = write").await;
    assert_eq!((outside.tags().as_str(), outside.0[0].problem().unwrap().code()), ("NCZ", "25P01"));
    assert_eq!(lane(&mut app).await, "read");
}

#[tokio::test]
async fn it_goes_back_with_everything_else() {
    // DISCARD ALL hands a connection on to other code of the application.
    let rig = rig().await;
    let mut app = rig.app_with(&[("options", "-c tidegate.priority=sheddable -c work_mem=5MB")]).await;
    for reset in ["DISCARD ALL", "RESET ALL"] {
        run(&mut app, "SET tidegate.priority = critical_plus").await;
        run(&mut app, "SET tidegate.lane = read").await;

        run(&mut app, reset).await;

        assert_eq!(
            (show(&mut app, "priority").await, show(&mut app, "lane").await),
            ("sheddable".into(), "auto".into())
        );
        assert_eq!(value(&mut app, "SHOW work_mem").await, "5MB", "{reset}");
        // For good: an error of the next borrower does not bring it back.
        assert_eq!(app.query("SELECT 1/0").await.error_code(), "22012");
        assert_eq!(show(&mut app, "lane").await, "auto", "{reset}");
    }
    run(&mut app, "SET tidegate.lane = read").await;
    run(&mut app, "BEGIN; RESET ALL").await;
    assert_eq!(show(&mut app, "lane").await, "auto");
    run(&mut app, "ROLLBACK").await;
    assert_eq!(show(&mut app, "lane").await, "read");
}

#[tokio::test]
async fn startup_options_are_checked_and_kept_from_the_database() {
    // A misspelt option that is ignored leaves an application without the bound that it relies on.
    let rig = rig().await;
    let mut app =
        rig.app_with(&[("options", "-c tidegate.deadline_ms=250"), ("tidegate.lane", "read")]).await;
    assert_eq!(
        (show(&mut app, "deadline_ms").await, show(&mut app, "lane").await),
        ("250ms".into(), "read".into())
    );
    assert_eq!(value(&mut app, "SELECT current_setting('tidegate.lane', true)").await, "");

    for (options, code) in [("-c tidegate.lane=up", "22023"), ("-c tidegate.x=1", "42704")] {
        let mut app = ScriptedApp::connect(rig.proxy().address()).await;
        let who = Credentials { user: "postgres", password: "", database: &rig.database };
        let refused = app.log_in_with(who, &[("options", options)]).await.unwrap_err();
        assert_eq!((refused.severity(), refused.code()), ("FATAL", code), "{options}");
    }
}

#[tokio::test]
async fn rules_follow_the_name_of_the_application() {
    // A framework names its connection after login; terms of login would be those of nobody.
    let rules = "[[rule]]\nmatch = { application_name = \"batch-*\", user = \"post*\" }\npriority = \"sheddable\"\n\
                 timeouts = { write = \"60s\" }\n";
    let rig = Rig::start(sidecar(rules)).await;
    let mut app = rig.app_with(&[("application_name", "batch-1")]).await;
    let both = async |app: &mut ScriptedApp| (show(app, "priority").await, show(app, "write_timeout").await);
    let (batch, usual) = (("sheddable".into(), "1min".into()), ("critical".into(), "5s".into()));

    assert_eq!(both(&mut app).await, batch);
    run(&mut app, "SET application_name = 'web'").await;
    assert_eq!(both(&mut app).await, usual);
    run(&mut app, "BEGIN; SET application_name = 'batch-2'").await;
    assert_eq!(both(&mut app).await, batch);
    run(&mut app, "ROLLBACK").await;
    assert_eq!(both(&mut app).await, usual);
    run(&mut app, "RESET application_name").await;
    assert_eq!(both(&mut app).await, batch);
}

#[tokio::test]
async fn a_reload_changes_the_terms_of_sessions_that_are_there() {
    // An operator cannot wait for every session to end.
    let rig = Rig::start(sidecar("[timeouts]\ncommit = \"3s\"\n")).await;
    let mut app = rig.app().await;
    assert_eq!(show(&mut app, "commit_timeout").await, "3s");
    let config = std::fs::read_to_string(rig.proxy().dir().join("tidegate.toml")).unwrap();
    rig.proxy().write_config(&config.replace("\"3s\"", "\"4s\""));
    rig.proxy().signal(tidegate_tests::Signal::HUP);
    rig.proxy().wait_logged("configuration reloaded").await;

    run(&mut app, "SELECT 1").await;

    assert_eq!(show(&mut app, "commit_timeout").await, "4s");
}

#[tokio::test]
async fn an_application_chooses_how_long_it_idles_in_a_transaction() {
    // The bound is the session's own, also for the sweep.
    let rig = Rig::start(pool_of(1)).await;
    let mut app = rig.app().await;
    run(&mut app, "SET tidegate.idle_in_transaction_timeout = '300ms'").await;
    run(&mut app, "BEGIN").await;

    let last = tokio::time::timeout(SOON, app.expect_end()).await.unwrap();

    assert_eq!(last[0].problem().unwrap().code(), "25P03");
}

#[tokio::test]
async fn nobody_widens_beyond_timeouts_max() {
    // Else one session could keep what the operator wanted to bound.
    let rig = Rig::start(sidecar("[timeouts]\nmax = \"20s\"\n")).await;
    let mut app = rig.app().await;

    run(&mut app, "SET tidegate.write_timeout = '20s'").await;
    let refused = app.query("SET tidegate.write_timeout = '21s'").await.error().unwrap();

    assert_eq!(refused.code(), "22023");
    assert_eq!(
        refused.message(),
        "21000 ms is outside the valid range for parameter \"tidegate.write_timeout\" (1 ms .. 20000 ms)"
    );
}

#[tokio::test]
async fn a_text_with_other_statements_counts_and_passes_unchanged() {
    // It cannot be taken apart; PostgreSQL takes the name for a placeholder.
    let rig = rig().await;
    let mut app = rig.app().await;

    let reply = run(&mut app, "SET tidegate.lane = read; SELECT 1").await;
    assert_eq!(reply.tags(), "CTDCZ");
    assert_eq!(show(&mut app, "lane").await, "read");
    let failed = app.query("SET tidegate.lane = write; SELECT 1/0").await;
    assert_eq!(failed.error_code(), "22012");
    assert_eq!(show(&mut app, "lane").await, "read");
}

#[tokio::test]
async fn a_session_with_a_backend_of_its_own_is_answered_the_same_way() {
    // There the answers wait behind those of the backend.
    let rig = Rig::start(session_pool_of(1)).await;
    let mut app = rig.app().await;
    run(&mut app, "SELECT 1").await;
    let before = calls(&mut app).await;

    for _ in 0..20 {
        run(&mut app, "SET tidegate.lane = read").await;
        let frames = Frames::new().unnamed("SHOW tidegate.lane", &[]).sync();
        let reply = app.exchange(frames).await;
        assert_eq!((reply.tags().as_str(), reply.value().as_deref()), ("12TDCZ", Some("read")));
    }
    let error = app.query("SET tidegate.lane = up").await;
    assert_eq!(
        (error.tags().as_str(), error.error_code().as_str(), error.status()),
        ("EZ", "22023", Some('I'))
    );

    assert!(calls(&mut app).await - before < 20, "the server was asked");
}

#[tokio::test]
async fn drivers_use_it_like_any_setting() {
    // tokio-postgres prepares, describes and closes what it runs.
    let rig = rig().await;
    let mut client = rig.client().await;
    client.execute("SET tidegate.write_timeout = '7s'", &[]).await.unwrap();
    client.batch_execute("SET tidegate.lane = write; SHOW tidegate.lane").await.unwrap();
    let transaction = client.transaction().await.unwrap();
    transaction.execute("SET LOCAL tidegate.write_timeout = '1s'", &[]).await.unwrap();
    let inside = transaction.query_one("SHOW tidegate.write_timeout", &[]).await.unwrap();
    assert_eq!(inside.get::<_, &str>(0), "1s");
    assert_eq!(transaction.query_one("SELECT 1", &[]).await.unwrap().get::<_, i32>(0), 1);
    transaction.rollback().await.unwrap();

    let after = client.query_one("SHOW tidegate.write_timeout", &[]).await.unwrap();

    assert_eq!(after.get::<_, &str>(0), "7s");
    let error = client.execute("SET tidegate.lane = 'up'", &[]).await.unwrap_err();
    assert_eq!(error.code().map(tokio_postgres::error::SqlState::code), Some("22023"));
    let again = tokio::time::timeout(Duration::from_secs(5), client.query_one("SELECT 2", &[])).await;
    assert_eq!(again.unwrap().unwrap().get::<_, i32>(0), 2);
}

#[tokio::test]
async fn psql_sees_it() {
    // The tool that operators have at hand.
    let rig = rig().await;
    let url = rig.proxy().url("postgres", &rig.database);

    let output = shared_postgres()
        .command("psql")
        .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", "SET tidegate.deadline_ms = 1500", "-c"])
        .args(["SHOW tidegate.deadline_ms", &url])
        .output()
        .unwrap();

    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "1500ms", "{output:?}");
}
