use std::time::Duration;

use tidegate_chaos::cluster::StopMode;
use tidegate_client::{Builder, Error, Outcome, Priority, TxOptions, TxOutcome, deadline};
use tidegate_tests::{PATIENCE, wait_for};

use super::{pooled, url, wait_quiet};
use crate::rig::own_postgres;
use crate::trusting;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pool_works_through_a_sidecar() {
    // Whatever the pool does behind the scenes (cancel, ROLLBACK, settings) must be understood there, too.
    let (_bench, pool) = pooled(2).await;

    let mut connection = pool.read().await.unwrap();
    let row = connection.query_one("SELECT 1 + $1::int4", &[&1_i32]).await.unwrap();
    assert!(connection.has_sidecar());
    drop(connection);
    let outcome: TxOutcome<(), Error> = pool
        .transaction(TxOptions::write(), async |mut tx| {
            tx.batch_execute("CREATE TEMP TABLE x (id int) ON COMMIT DROP").await
        })
        .await;
    let late = deadline::within(Duration::from_millis(300), async {
        pool.read().await?.query("SELECT pg_sleep(10)", &[]).await
    })
    .await
    .unwrap_err();

    assert_eq!(row.get::<_, i32>(0), 2);
    assert!(matches!(outcome, TxOutcome::Committed(())), "{outcome:?}");
    assert_eq!(late.outcome(), Outcome::RolledBack);
    wait_quiet(&pool).await;
}

/// What the sidecar has been told, as it shows it.
async fn told(connection: &mut tidegate_client::Connection, name: &str) -> String {
    use tidegate_client::tokio_postgres::SimpleQueryMessage::Row;
    let rows = connection.simple_query(&format!("SHOW tidegate.{name}")).await.unwrap();
    let value = rows.iter().find_map(|message| match message {
        Row(row) => row.get(0),
        _ => None,
    });
    value.unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sidecar_knows_the_deadline_and_the_priority_of_the_scope() {
    // A deadline that ends at the pool leaves the sidecar working for nobody.
    let (_bench, pool) = pooled(1).await;
    let mut connection = pool.read().await.unwrap();
    let before = (told(&mut connection, "deadline_ms").await, told(&mut connection, "priority").await);

    let inside =
        async { (told(&mut connection, "deadline_ms").await, told(&mut connection, "priority").await) };
    let scoped =
        deadline::within(Duration::from_secs(20), deadline::with_priority(Priority::Sheddable, inside));
    // Nested, and asking for more: it is that of the outer one.
    let (ms, priority) = deadline::within(Duration::from_millis(900), scoped).await;

    let digits: String = ms.chars().filter(char::is_ascii_digit).collect();
    assert!((1..=900).contains(&digits.parse::<u64>().unwrap()), "{ms}");
    assert_eq!(priority, "sheddable");
    let after = (told(&mut connection, "deadline_ms").await, told(&mut connection, "priority").await);
    assert_eq!(after, before, "outside of the scope nothing of it is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_leaves_the_sidecar_knowing_the_deadline() {
    // What is set in a transaction is undone with it, also when the application itself sends BEGIN and ROLLBACK.
    let (_bench, pool) = pooled(1).await;
    let mut connection = pool.write().await.unwrap();
    connection.batch_execute("BEGIN").await.unwrap();
    let ms =
        |text: String| text.chars().filter(char::is_ascii_digit).collect::<String>().parse::<u64>().unwrap();
    deadline::within(Duration::from_millis(900), connection.batch_execute("SELECT 1")).await.unwrap();
    connection.batch_execute("ROLLBACK").await.unwrap();

    let seen = deadline::within(Duration::from_millis(900), told(&mut connection, "deadline_ms")).await;

    assert!((1..=900).contains(&ms(seen.clone())), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_of_the_sidecar_says_why_and_when_to_come_back() {
    // An application that cannot read the DETAIL has to guess whether its write happened.
    let node = own_postgres(&[]);
    let proxy = trusting("").upstream(&node.url()).start().await;
    let pool = Builder::parse(&url(&proxy)).unwrap().build().unwrap();
    let mut connection = pool.write().await.unwrap();
    connection.batch_execute("SELECT 1").await.unwrap();
    node.stop(StopMode::Immediate).unwrap();

    let error = wait_for(PATIENCE, "a refusal with a reason", async || {
        let said = connection.batch_execute("SELECT 1").await.err();
        said.filter(|error| error.reason() == Some("no_upstream"))
    })
    .await;

    assert_eq!(error.outcome(), Outcome::NotSent);
    assert!(error.retry_after().is_some() && error.is_safe_to_retry(), "{error:?}");
}
