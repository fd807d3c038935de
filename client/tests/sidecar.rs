//! What a sidecar is told. Tests with a real one are in `tests/e2e/client` of the workspace, where cargo builds it first.

mod support;

use std::time::Duration;

use support::{builder, shared_postgres};
use tidegate_client::{Builder, Error, Priority, Sidecar, deadline};
use tidegate_tests::{BackendKey, Incoming, Replies, ScriptedServer};
use tokio::sync::mpsc;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_is_told_the_deadline_and_the_priority_when_they_change() {
    // PostgreSQL keeps settings with a dot for us: what a sidecar would be told can be read there.
    let told =
        "SELECT current_setting('tidegate.deadline_ms', true), current_setting('tidegate.priority', true)";
    let pool = builder(&shared_postgres().url(), "told").size(1).sidecar(Sidecar::Yes).build().unwrap();
    let mut connection = pool.read().await.unwrap();

    let inside = deadline::with_priority(
        Priority::Sheddable,
        deadline::within(Duration::from_millis(800), connection.query_one(told, &[])),
    );
    let row = inside.await.unwrap();
    let (ms, priority): (Option<&str>, Option<&str>) = (row.get(0), row.get(1));
    let ms: u64 = ms.unwrap().parse().unwrap();
    assert!((600..=800).contains(&ms), "{ms}");
    assert_eq!(priority, Some("sheddable"));

    // Outside of the scope nothing of it is left.
    let row = connection.query_one(told, &[]).await.unwrap();
    assert_eq!((row.get(0), row.get(1)), (Some(""), Some("")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_sidecar_nothing_is_told() {
    // Settings for nobody cost a round trip of the server's time with each statement.
    let pool = builder(&shared_postgres().url(), "untold").size(1).build().unwrap();
    let mut connection = pool.read().await.unwrap();
    assert!(!connection.has_sidecar());

    let told = "SELECT current_setting('tidegate.deadline_ms', true)";
    let row = deadline::within(Duration::from_millis(800), connection.query_one(told, &[])).await.unwrap();

    assert_eq!(row.get::<_, Option<&str>>(0), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_given_our_settings_is_not_taken_for_a_sidecar() {
    // PostgreSQL shows whatever setting with a dot it was given, and looking at backends or timelines would end.
    let url = format!("{}?options=-c%20tidegate.deadline_ms%3D2000", shared_postgres().url());
    let pool = Builder::parse(&url).unwrap().build().unwrap();
    let mut connection = pool.read().await.unwrap();

    let row = connection.query_one("SHOW tidegate.deadline_ms", &[]).await.unwrap();

    assert_eq!(row.get::<_, &str>(0), "2000");
    assert!(!connection.has_sidecar());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_is_told_once_for_many_statements_and_in_front_of_the_first() {
    // Told each time, it would double what both sides have to do; told behind a statement, it would bound the next.
    const STATEMENTS: usize = 5;
    let mut server = ScriptedServer::start().await;
    let (heard, mut hear) = mpsc::channel(100);
    server.serve(move |incoming| {
        let heard = heard.clone();
        async move {
            let Incoming::Session(mut backend) = incoming else { return };
            backend.welcome(&BackendKey { pid: 7, secret: vec![0; 4] }).await;
            while let Some(message) = backend.next().await {
                let sql = message.strings().first().cloned().unwrap_or_default();
                backend.send(Replies::new().complete("X").ready('I')).await;
                heard.send(sql).await.ok();
            }
        }
    });
    let pool = Builder::parse(&server.url()).unwrap().sidecar(Sidecar::Yes).build().unwrap();

    let statements = async {
        let mut connection = pool.read().await?;
        for _ in 0..STATEMENTS {
            connection.batch_execute("SELECT 1").await?;
        }
        Ok::<_, Error>(())
    };
    deadline::within(Duration::from_secs(100), statements).await.unwrap();
    drop(pool);
    drop(server);

    let mut said = Vec::new();
    while let Some(sql) = hear.recv().await {
        said.push(sql);
    }
    let first = |start: &str| said.iter().position(|sql| sql.starts_with(start)).unwrap();
    let count = |start: &str| said.iter().filter(|sql| sql.starts_with(start)).count();
    assert!(first("SET tidegate.deadline_ms = ") < first("SELECT 1"), "{said:?}");
    assert_eq!((count("SET tidegate.deadline_ms"), count("SELECT 1")), (1, STATEMENTS), "{said:?}");
}
