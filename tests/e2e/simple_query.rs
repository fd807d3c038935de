//! Query and FunctionCall, held against PostgreSQL's own answers.

use std::fmt::Write as _;

use std::time::Duration;

use tidegate_tests::{
    BackendKey, Bench, Frames, Incoming, Received, Replies, ScriptedApp, ScriptedServer, fresh_database,
    shared_postgres,
};

use super::{TIDEGATE, both, oracle, some};
use crate::rig::{SOON, pool_of};

#[tokio::test]
async fn answers_are_the_database_s_own() {
    // Whole replies are compared, error fields and notices included: a byte added or lost shows.
    let bench = Bench::start(TIDEGATE).await;
    let texts = [
        "SELECT 1, NULL, 'x'",
        "SELECT 1; SELECT 'two', 3; VALUES (4), (5)",
        "SELECT",
        "",
        " ",
        ";",
        ";;SELECT 1;;",
        "-- nothing but a comment",
        "SELEC 1",
        "SELECT 1; SELEC; SELECT 2",
        "SELECT 1; SELECT 1/0; SELECT 2",
        "SELECT * FROM atlantis",
        "SELECT 1/(g-5) FROM generate_series(1, 10) g",
        "SELECT g FROM generate_series(1, 3000) g",
        "DO $$ BEGIN RAISE NOTICE 'one'; RAISE WARNING 'two' USING HINT = 'h', DETAIL = 'd'; END $$",
        "DO $$ BEGIN RAISE EXCEPTION 'custom' USING ERRCODE = 'TG001', CONSTRAINT = 'c'; END $$",
        "BEGIN; SELECT 1; COMMIT",
        "BEGIN; BEGIN",
        "COMMIT",
        "ROLLBACK",
        "BEGIN; SELECT 1/0",
        "BEGIN",
        "SHOW server_version_num",
        "EXPLAIN (COSTS OFF) SELECT 1",
        "CREATE TABLE t (a int CHECK (a > 0)); INSERT INTO t VALUES (1), (2); INSERT INTO t VALUES (-1)",
        "CREATE TABLE IF NOT EXISTS u (); DROP TABLE IF EXISTS v; DROP TABLE u",
        "SELECT repeat('x', 100000), repeat('y', 3)",
        "SELECT 'ünï', E'\\\\x00', '\u{1f30a}'",
        "SAVEPOINT a",
        "BEGIN; SAVEPOINT a; SELECT 1/0; ROLLBACK TO a",
        "VALUES (1), (2), (3)",
        "SELECT set_config('TimeZone', 'Asia/Tokyo', false)",
    ];

    let mut differences = Vec::new();
    for text in texts {
        // Each side its own database: what one creates must not be there for the other.
        let frames = Frames::new().query(text);
        let direct = oracle(&fresh_database()).await.exchange(frames.clone()).await;
        let (mut app, _) = ScriptedApp::session(bench.proxy.address(), "postgres", &fresh_database()).await;
        let through = app.exchange(frames).await;
        if through != direct {
            differences.push(format!("{text}:\n  {through:?}\n  instead of\n  {direct:?}"));
        }
    }

    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[tokio::test]
async fn an_error_undoes_the_statements_before_it() {
    // Several statements of one Query are one transaction; split by the sidecar, the first would stay.
    let bench = Bench::start(TIDEGATE).await;
    let (mut app, _) = bench.app().await;
    let table = fresh_database();
    app.query(&format!("CREATE TABLE {table} (a int)")).await;

    let failed = app.query(&format!("INSERT INTO {table} VALUES (1); SELECT 1/0")).await;
    let count = app.query(&format!("SELECT count(*) FROM {table}")).await;

    assert_eq!((failed.tags().as_str(), failed.error_code().as_str()), ("CEZ", "22012"));
    assert_eq!(count.value(), some("0"));
}

#[tokio::test]
async fn an_error_in_mid_stream_leaves_the_session_in_order() {
    // Rows, then an error, then ready: whoever counts on a row count or on an early error gets out of step.
    let bench = Bench::start(TIDEGATE).await;
    let (mut app, _) = bench.app().await;

    let failed = app.query("SELECT 1/(g-5) FROM generate_series(1, 10) g").await;
    let next = app.query("SELECT 'next'").await;

    assert_eq!((failed.tags().as_str(), failed.error_code().as_str()), ("TDDDDEZ", "22012"));
    assert_eq!(failed.status(), Some('I'));
    assert_eq!(next.value(), some("next"));
}

#[tokio::test]
async fn statements_larger_than_any_buffer_pass() {
    // A frame that must fit into a buffer would be refused, or would never be complete.
    let bench = Bench::start(TIDEGATE).await;
    let (mut app, _) = bench.app().await;

    for size in [8 * 1024, 64 * 1024, 1024 * 1024, 8 * 1024 * 1024] {
        let length = app.query(&format!("SELECT length('{}')", "x".repeat(size))).await;

        assert_eq!(length.value(), some(&size.to_string()));
    }
}

#[tokio::test]
async fn rows_larger_than_any_buffer_pass() {
    // The same towards the application; the row's length must survive the cutting.
    let bench = Bench::start(TIDEGATE).await;
    let (mut app, _) = bench.app().await;

    for size in [8 * 1024 - 1, 64 * 1024, 1024 * 1024, 16 * 1024 * 1024] {
        let row = app.query(&format!("SELECT repeat('x', {size})")).await;

        assert_eq!(row.tags(), "TDCZ");
        assert_eq!(row.value().map(|text| text.len()), Some(size));
    }
}

#[tokio::test]
async fn queries_in_one_write_are_answered_in_order() {
    // A sidecar that reads ahead and forgets, or answers out of order, shows at once.
    let bench = Bench::start(TIDEGATE).await;
    let (mut app, _) = bench.app().await;
    let frames = (0..500).fold(Frames::new(), |frames, number| {
        let sql = if number % 7 == 3 { "SELECT 1/0".to_owned() } else { format!("SELECT {number}") };
        frames.query(&sql)
    });

    app.send(frames).await;

    for number in 0..500 {
        let reply = app.reply().await;
        if number % 7 == 3 {
            assert_eq!(reply.error_code(), "22012", "query {number}");
        } else {
            assert_eq!(reply.value(), some(&number.to_string()));
        }
    }
}

/// A server that answers late: all that it was sent until then, in one write. It says that it is in a transaction from
/// `BEGIN` to `COMMIT`.
async fn slow_to_answer() -> ScriptedServer {
    let mut server = ScriptedServer::start().await;
    server.serve(|incoming| async move {
        let Incoming::Session(mut backend) = incoming else { return };
        backend.welcome(&BackendKey { pid: 7, secret: vec![1, 2, 3, 4] }).await;
        let (mut replies, mut status) = (Replies::new(), 'I');
        loop {
            let message = match backend.receive_within(Duration::from_millis(50)).await {
                Received::Message(message) => message,
                Received::Silence => {
                    backend.send(std::mem::replace(&mut replies, Replies::new())).await;
                    continue;
                }
                Received::Closed { .. } | Received::Reset(_) => return,
            };
            let text = String::from_utf8_lossy(&message.body).trim_matches('\0').to_owned();
            status = match text.as_str() {
                "BEGIN" => 'T',
                "COMMIT" => 'I',
                _ => status,
            };
            let row = |replies: Replies| replies.row_description(&["v"]).data_row(&[Some(&text)]);
            replies = match message.tag {
                b'Q' if text.starts_with("SELECT") => row(replies).complete("SELECT 1").ready(status),
                b'Q' => replies.complete(&text).ready(status),
                b'P' => replies.message(b'1', &[]),
                b'B' => replies.message(b'2', &[]),
                b'D' => replies.row_description(&["v"]),
                b'E' => replies.data_row(&[Some("extended")]).complete("SELECT 1"),
                b'S' => replies.ready(status),
                _ => replies,
            };
        }
    });
    server
}

#[tokio::test]
async fn answers_to_many_exchanges_in_one_write_are_told_apart() {
    // Each moves the session on: one that is overlooked leaves the backend taken, or the session in a transaction that
    // is over. With a statement of ours among them its answer must stay where it is.
    let server = slow_to_answer().await;
    let proxy = pool_of(1).upstream(&server.url()).start().await;
    let (mut app, _) = ScriptedApp::session(proxy.address(), "postgres", "shop").await;
    let (mut other, _) = ScriptedApp::session(proxy.address(), "postgres", "shop").await;
    let ours = "SHOW tidegate.lane";
    let plain = [
        "SELECT 1", "SELECT 2", "extended", "SELECT 3", "BEGIN", "SELECT 4", "extended", "COMMIT", "SELECT 5",
    ];
    let mixed =
        ["SELECT 1", ours, "extended", "SELECT 2", ours, "BEGIN", "SELECT 3", ours, "COMMIT", "extended"];

    for texts in [&plain[..], &mixed[..]] {
        let frames = texts.iter().fold(Frames::new(), |frames, text| match *text {
            "extended" => frames.unnamed("SELECT 0", &[]).sync(),
            text => frames.query(text),
        });
        app.send(frames).await;

        let mut status = 'I';
        for text in texts {
            let reply = app.reply_within(SOON).await;
            status = match *text {
                "BEGIN" => 'T',
                "COMMIT" => 'I',
                _ => status,
            };
            let value = match *text {
                "BEGIN" | "COMMIT" => None,
                text if text == ours => some("auto"),
                text => some(text),
            };
            assert_eq!((reply.error(), reply.value(), reply.status()), (None, value, Some(status)), "{text}");
        }
        assert_eq!(other.query("SELECT 6").await.value(), some("SELECT 6"), "the backend is free");
    }
}

#[tokio::test]
async fn transactions_in_one_write_keep_their_statements_together() {
    // Pipelined BEGIN … COMMIT must run on one backend, or the count of xids grows.
    let bench = Bench::start(TIDEGATE).await;
    let (mut app, _) = bench.app().await;
    let mut frames = Frames::new();
    for _ in 0..50 {
        frames = frames.query("BEGIN").query("SELECT txid_current()").query("SELECT txid_current()");
        frames = frames.query("COMMIT");
    }

    app.send(frames).await;

    for _ in 0..50 {
        assert_eq!(app.reply().await.status(), Some('T'));
        let (first, second) = (app.reply().await, app.reply().await);
        assert_eq!(first.value(), second.value());
        assert!(first.value().is_some());
        assert_eq!(app.reply().await.status(), Some('I'));
    }
}

#[tokio::test]
async fn many_statements_in_one_query_are_all_answered() {
    // Commands are counted by the database, not by semicolons that may stand in quotes.
    let bench = Bench::start(TIDEGATE).await;
    let (mut app, _) = bench.app().await;
    let mut text = String::new();
    for number in 0..1000 {
        write!(text, "SELECT {number} AS \"a;b\", ';' /* ; */;").unwrap();
    }

    let reply = app.query(&text).await;

    assert_eq!(reply.rows().len(), 1000);
    assert_eq!(reply.rows()[999][0], some("999"));
    assert_eq!(reply.commands().len(), 1000);
}

#[tokio::test]
async fn notifications_reach_the_session_that_listens() {
    // They come outside of any statement of the listener; a backend that was given back would lose them.
    let bench = Bench::start(TIDEGATE).await;
    let (mut listener, _) = bench.app().await;
    let (mut other, _) = bench.app().await;
    listener.query("LISTEN tide").await;

    other.query("NOTIFY tide, 'high'").await;
    let message = listener.expect(b'A').await;
    let next = listener.query("SELECT 1").await;

    assert_eq!(message.body.get(4..), Some(&b"tide\0high\0"[..]));
    assert_eq!(next.value(), some("1"));
}

/// `FunctionCall` with text arguments and a text result.
fn call(function: u32, arguments: &[&str]) -> Frames {
    let mut body = function.to_be_bytes().to_vec();
    // No format codes: everything is text.
    body.extend(0_u16.to_be_bytes());
    body.extend(u16::try_from(arguments.len()).unwrap().to_be_bytes());
    for argument in arguments {
        body.extend(u32::try_from(argument.len()).unwrap().to_be_bytes());
        body.extend(argument.as_bytes());
    }
    body.extend(0_u16.to_be_bytes());
    Frames::new().message(b'F', &body)
}

#[tokio::test]
async fn function_calls_are_answered_as_by_the_database() {
    // V and Z end the exchange; a sidecar that waits for CommandComplete would hang.
    let bench = Bench::start(TIDEGATE).await;
    let oid = shared_postgres().sql("SELECT 'pg_catalog.int4pl'::regproc::oid").unwrap().parse().unwrap();
    let rows = [
        call(oid, &["2", "3"]),
        call(oid, &["2147483647", "1"]),
        call(oid, &["2"]),
        call(0, &[]),
        call(oid, &["two", "3"]),
    ];

    for frames in &rows {
        let (direct, through) = both(&bench, "postgres", frames).await;

        assert_eq!(through, direct);
    }
    let (mut app, _) = bench.app().await;
    let reply = app.exchange(call(oid, &["2", "3"])).await;
    assert_eq!((reply.tags().as_str(), &reply.0[0].body[4..]), ("VZ", &b"5"[..]));
    assert_eq!(app.query("SELECT 1").await.value(), some("1"));
}
