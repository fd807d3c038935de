//! tokio-postgres through transaction mode and session mode: it pipelines whatever is asked at the same time, and names what it prepares.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{join_all, poll_fn};
use futures_util::{SinkExt, TryStreamExt};
use tidegate_tests::{Frames, ProxyOptions, wait_until, within};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, NoTls};

use crate::rig::{PATIENT, Rig, SOON, pool_of, run, sidecar};

const BACKENDS: usize = 5;

/// Makes a sidecar with pools of a size, in one mode or the other.
type Pool = fn(usize) -> ProxyOptions;

/// The driver must not notice in which mode it is.
macro_rules! in_both_modes {
    ($($claim:ident,)*) => {
        mod transaction_mode {
            $(#[tokio::test] async fn $claim() { super::$claim(crate::rig::pool_of).await; })*
        }
        mod session_mode {
            $(#[tokio::test] async fn $claim() { super::$claim(crate::rig::session_pool_of).await; })*
        }
    };
}

in_both_modes! {
    pipelined_queries_are_answered_in_order,
    an_error_in_a_pipeline_is_its_own_statements,
    a_statement_of_the_protocol_has_its_name_in_sql_too,
    copy_goes_both_ways,
    a_copy_that_is_given_up_leaves_nothing,
    the_cancel_token_cancels,
    portals_give_their_rows_in_parts,
    transactions_commit_roll_back_and_nest,
    notifications_arrive,
}

async fn pipelined_queries_are_answered_in_order(pool: Pool) {
    // All hundred are sent before the first answer is read; one answer too many or too few shifts all that follow.
    let rig = Rig::start(pool(BACKENDS)).await;
    let client = rig.client().await;
    let add = client.prepare("SELECT $1::int + 1000").await.unwrap();
    let text = client.prepare("SELECT $1::text || '!'").await.unwrap();

    for _ in 0..10 {
        let numbers = join_all((0..100_i32).map(|number| {
            let (client, add) = (&client, &add);
            async move { client.query_one(add, &[&number]).await.unwrap().get::<_, i32>(0) }
        }));
        let texts = join_all((0..100_i32).map(|number| {
            let (client, text) = (&client, &text);
            let argument = "x".repeat(usize::try_from(number).unwrap() * 50);
            async move { client.query_one(text, &[&argument]).await.unwrap().get::<_, String>(0).len() }
        }));

        let (numbers, texts) = tokio::join!(numbers, texts);

        assert_eq!(numbers, (1000..1100).collect::<Vec<_>>());
        assert_eq!(texts, (0..100).map(|number| number * 50 + 1).collect::<Vec<_>>());
    }
}

async fn an_error_in_a_pipeline_is_its_own_statements(pool: Pool) {
    // Each statement has a Sync of its own: the neighbours must not notice.
    let rig = Rig::start(pool(BACKENDS)).await;
    let client = rig.client().await;
    let divide = client.prepare("SELECT 100 / $1::int").await.unwrap();

    let answers = join_all((0..40_i32).map(|number| {
        let (client, divide) = (&client, &divide);
        async move { client.query_one(divide, &[&(number % 4)]).await.map(|row| row.get::<_, i32>(0)) }
    }))
    .await;

    for (number, answer) in (0..40).zip(answers) {
        match number % 4 {
            0 => assert_eq!(answer.unwrap_err().code(), Some(&SqlState::DIVISION_BY_ZERO)),
            by => assert_eq!(answer.unwrap(), 100 / by),
        }
    }
}

/// Shared texts and one of its own, in a random-looking order.
async fn prepared_work(client: Client, number: i32) {
    let mut statements = Vec::new();
    for text in 0..8 {
        statements.push((text, client.prepare(&format!("SELECT {text} + $1::int")).await.unwrap()));
    }
    let own = 10_000 + number;
    statements.push((own, client.prepare(&format!("SELECT {own} + $1::int")).await.unwrap()));
    for round in 0..3 {
        let answers = statements.iter().enumerate().map(|(index, (base, statement))| {
            let argument = number * 7 + round + i32::try_from(index).unwrap();
            let client = &client;
            async move {
                let row = client.query_one(statement, &[&argument]).await;
                assert_eq!(row.unwrap().get::<_, i32>(0), base + argument, "client {number}");
            }
        });
        join_all(answers).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_clients_prepare_on_five_backends_without_an_error() {
    // The names s0, s1, … mean another text in each client. Per backend only as many statements may pile up as
    // configured: 208 texts are used, so without eviction the bound is passed.
    const KEPT: i64 = 50;
    let config = format!("[pool]\nsize = {BACKENDS}\nprepared_statements = {KEPT}\n{PATIENT}");
    let rig = Rig::start(sidecar(&config)).await;
    let mut clients = JoinSet::new();
    for number in 0..200 {
        let client = rig.client().await;
        clients.spawn(async move {
            prepared_work(client, number).await;
        });
    }
    while let Some(client) = within(Duration::from_secs(100), "all clients", clients.join_next()).await {
        client.unwrap();
    }

    // Five transactions at once see all five backends.
    let mut counts = BTreeMap::new();
    let mut open = Vec::new();
    for _ in 0..BACKENDS {
        let mut app = rig.app().await;
        run(&mut app, "BEGIN").await;
        let rows =
            run(&mut app, "SELECT pg_backend_pid(), count(*) FROM pg_prepared_statements").await.rows();
        let columns: Vec<String> = rows[0].iter().map(|column| column.clone().unwrap()).collect();
        counts.insert(columns[0].clone(), columns[1].parse::<i64>().unwrap());
        open.push(app);
    }
    assert_eq!(counts.len(), BACKENDS, "{counts:?}");
    assert!(counts.values().all(|count| *count <= KEPT), "{counts:?}");
    assert!(counts.values().any(|count| *count > 8), "nothing stayed prepared: {counts:?}");
}

async fn a_statement_of_the_protocol_has_its_name_in_sql_too(pool: Pool) {
    // PostgreSQL has one namespace for both; in the backend the statement may have another name.
    let rig = Rig::start(pool(1)).await;
    let mut app = rig.app().await;
    app.exchange(Frames::new().parse("mine", "SELECT 42", &[]).sync()).await;

    assert_eq!(run(&mut app, "EXECUTE mine").await.value().as_deref(), Some("42"));
    run(&mut app, "DEALLOCATE mine").await;

    let gone = app.exchange(Frames::new().bind("", "mine", &[]).execute("", 0).sync()).await;
    assert_eq!(gone.error_code(), "26000");
}

#[tokio::test]
async fn a_statement_outlives_a_change_of_its_table() {
    // PostgreSQL refuses a cached plan whose result type changed (0A000); a driver that sees that prepares again. What
    // must not happen is an error for a column that the statement does not name.
    let rig = Rig::start(pool_of(1)).await;
    let (one, two) = (rig.client().await, rig.client().await);
    one.batch_execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").await.unwrap();
    let star = one.prepare("SELECT * FROM t").await.unwrap();
    let named = one.prepare("SELECT a FROM t").await.unwrap();
    one.query_one(&star, &[]).await.unwrap();

    two.batch_execute("ALTER TABLE t ADD COLUMN b int DEFAULT 2").await.unwrap();

    assert_eq!(one.query_one(&named, &[]).await.unwrap().get::<_, i32>(0), 1);
    // As with PostgreSQL itself: an error of that code, or a row.
    if let Err(error) = one.query_one(&star, &[]).await {
        assert_eq!(error.code(), Some(&SqlState::FEATURE_NOT_SUPPORTED));
    }
    let again = one.prepare("SELECT * FROM t").await.unwrap();
    assert_eq!(again.columns().len(), 2);
    assert_eq!(one.query_one(&again, &[]).await.unwrap().get::<_, i32>(1), 2);
    let fresh = two.prepare("SELECT * FROM t").await.unwrap();
    assert_eq!(two.query_one(&fresh, &[]).await.unwrap().get::<_, i32>(1), 2);
}

async fn copy_goes_both_ways(pool: Pool) {
    // Other clients work in between: a CopyData in the wrong hands is a protocol error there.
    let rig = Rig::start(pool(2)).await;
    let (client, other) = (rig.client().await, rig.client().await);
    client.batch_execute("CREATE TABLE t (a int, b text)").await.unwrap();

    let sink = client.copy_in("COPY t FROM STDIN").await.unwrap();
    let mut sink = pin!(sink);
    for number in 0..5_000 {
        sink.send(bytes::Bytes::from(format!("{number}\ttext of {number}\n"))).await.unwrap();
        if number % 500 == 0 {
            assert_eq!(other.query_one("SELECT 1", &[]).await.unwrap().get::<_, i32>(0), 1);
        }
    }
    assert_eq!(sink.finish().await.unwrap(), 5_000);

    let stream = client.copy_out("COPY (SELECT * FROM t ORDER BY a) TO STDOUT").await.unwrap();
    let chunks: Vec<bytes::Bytes> = stream.try_collect().await.unwrap();
    let text = String::from_utf8(chunks.concat()).unwrap();
    assert!(text.lines().enumerate().all(|(number, line)| line == format!("{number}\ttext of {number}")));
    assert_eq!(text.lines().count(), 5_000);
}

async fn a_copy_that_is_given_up_leaves_nothing(pool: Pool) {
    // Dropping the sink sends CopyFail; the connection goes on.
    let rig = Rig::start(pool(1)).await;
    let client = rig.client().await;
    client.batch_execute("CREATE TABLE t (a int)").await.unwrap();

    {
        let sink = client.copy_in("COPY t FROM STDIN").await.unwrap();
        let mut sink = pin!(sink);
        sink.send(bytes::Bytes::from_static(b"1\n2\n")).await.unwrap();
    }

    let count = client.query_one("SELECT count(*) FROM t", &[]).await.unwrap();
    assert_eq!(count.get::<_, i64>(0), 0);
}

async fn the_cancel_token_cancels(pool: Pool) {
    // It carries our key, over a connection of its own.
    let rig = Rig::start(pool(BACKENDS)).await;
    let client = rig.client().await;
    let token = client.cancel_token();

    let sleep = client.batch_execute("SELECT pg_sleep(62)");
    let cancel = async {
        rig.wait_running("SELECT pg_sleep(62)").await;
        token.cancel_query(NoTls).await.unwrap();
    };
    let (outcome, ()) = within(SOON, "the cancel", async { tokio::join!(sleep, cancel) }).await;

    assert_eq!(outcome.unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));
    assert_eq!(client.query_one("SELECT 1", &[]).await.unwrap().get::<_, i32>(0), 1);
}

async fn portals_give_their_rows_in_parts(pool: Pool) {
    // The portal lives in one backend until its transaction ends; PortalSuspended must not end the lease.
    let rig = Rig::start(pool(2)).await;
    let (mut client, other) = (rig.client().await, rig.client().await);
    let transaction = client.transaction().await.unwrap();
    let portal = transaction.bind("SELECT * FROM generate_series(1, 100)", &[]).await.unwrap();

    let mut all = Vec::new();
    loop {
        let rows = transaction.query_portal(&portal, 7).await.unwrap();
        if rows.is_empty() {
            break;
        }
        all.extend(rows.iter().map(|row| row.get::<_, i32>(0)));
        other.query_one("SELECT 1", &[]).await.unwrap();
    }
    transaction.commit().await.unwrap();

    assert_eq!(all, (1..=100).collect::<Vec<_>>());
}

async fn transactions_commit_roll_back_and_nest(pool: Pool) {
    // A transaction that is dropped is rolled back by the driver, later than the next statement is asked for.
    let rig = Rig::start(pool(2)).await;
    let (mut client, other) = (rig.client().await, rig.client().await);
    client.batch_execute("CREATE TABLE t (a int)").await.unwrap();

    let mut outer = client.transaction().await.unwrap();
    outer.execute("INSERT INTO t VALUES (1)", &[]).await.unwrap();
    let inner = outer.transaction().await.unwrap();
    inner.execute("INSERT INTO t VALUES (2)", &[]).await.unwrap();
    inner.rollback().await.unwrap();
    assert_eq!(other.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get::<_, i64>(0), 0);
    outer.commit().await.unwrap();
    let dropped = client.transaction().await.unwrap();
    dropped.execute("INSERT INTO t VALUES (3)", &[]).await.unwrap();
    drop(dropped);

    let rows = client.query("SELECT a FROM t ORDER BY a", &[]).await.unwrap();

    assert_eq!(rows.iter().map(|row| row.get::<_, i32>(0)).collect::<Vec<_>>(), [1]);
}

async fn notifications_arrive(pool: Pool) {
    // Through the driver's own connection task, while the client is idle.
    let rig = Rig::start(pool(2)).await;
    let url = rig.proxy().url("postgres", &rig.database);
    let (client, mut connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    let (sender, mut receiver) = mpsc::channel(10);
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notification(notification) = message {
                sender.send(notification.payload().to_owned()).await.unwrap();
            }
        }
    });
    client.batch_execute("LISTEN tide").await.unwrap();

    let other = rig.client().await;
    for payload in ["one", "two", "three"] {
        other.execute("SELECT pg_notify('tide', $1)", &[&payload]).await.unwrap();
        assert_eq!(within(SOON, "a notification", receiver.recv()).await.as_deref(), Some(payload));
    }
}

#[tokio::test]
async fn clients_that_leave_in_the_middle_free_their_backends() {
    // Connections are dropped with statements in flight, as when a web server's worker is killed.
    let rig = Rig::start(pool_of(3)).await;
    let url = rig.proxy().url("postgres", &rig.database);
    for _ in 0..20 {
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
        // The driver itself waits for pending answers; with its task the socket goes.
        let connection = tokio::spawn(connection);
        let task = tokio::spawn(async move { client.batch_execute("SELECT pg_sleep(63)").await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        connection.abort();
        task.abort();
    }

    let client = rig.client().await;
    client.batch_execute("SELECT 1").await.unwrap();
    let asleep =
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(63)'";
    wait_until(SOON, "no backend sleeps", || rig.sql(asleep) == "0").await;
}
