//! Which functions write is found out from the server, in the background, and remembered.

use std::sync::Arc;
use std::time::Duration;

use tidegate::auth::scram::KeyCache;
use tidegate::backend::Connector;
use tidegate::config::{Config, Password, Sources, SslMode};
use tidegate::exchange::Facts;
use tidegate::pool::functions::functions_changed;
use tidegate::pool::upstream::{Limits, enter_worker};
use tidegate::pool::{Learned, Pool, PoolKey, Upstream};
use tidegate::session::lanes::{Surroundings, TransactionLane, fingerprint_of};
use tidegate::session::notes::Pins;
use tidegate::sql::Lane;
use tidegate_tests::{fresh_database, shared_postgres, wait_for};

use crate::rig::{SOON, holds_for};

/// A pool of a database of its own, and the database's name.
fn pool() -> (Arc<Pool>, String) {
    enter_worker(0);
    let database = fresh_database();
    let address = format!("127.0.0.1:{}", shared_postgres().port());
    let sources = Sources { upstreams: vec![Password::new(address)], ..Sources::default() };
    let config = Config::load(&sources).unwrap();
    let connector = Connector {
        address: config.cluster.upstreams[0].clone(),
        ssl_mode: SslMode::Disable,
        tls: None,
        keys: Arc::new(KeyCache::new(1).unwrap()),
    };
    let upstream = Upstream::new(connector, &Limits::of(&config), &Arc::default(), &Arc::default());
    let key = PoolKey { database: database.as_str().into(), user: "postgres".into(), replication: None };
    (upstream.pool(key), database)
}

fn lane(pool: &Arc<Pool>, sql: &str) -> Lane {
    let learned = Learned::default();
    let surroundings = Surroundings { pool, learned: &learned, asked: None, pins: Pins::NONE };
    TransactionLane::default()
        .next(&Facts::of(sql.as_bytes()), surroundings, || fingerprint_of(sql.as_bytes()))
}

async fn becomes(pool: &Arc<Pool>, sql: &str, wanted: Lane) {
    let what = format!("{sql} in lane {wanted:?}");
    wait_for(SOON, &what, async || (lane(pool, sql) == wanted).then_some(())).await;
}

#[tokio::test]
async fn unknown_functions_are_writes_until_the_server_has_said_otherwise() {
    // A guess that is a read would escape the bound of writes; one that stays a write would fill their lane.
    let (pool, database) = pool();
    let sql = |sql: &str| shared_postgres().sql_in(&database, sql).unwrap();
    sql("CREATE FUNCTION harmless() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1'");
    sql("CREATE FUNCTION writes() RETURNS int LANGUAGE sql AS 'SELECT 1'");
    sql("CREATE SCHEMA a; CREATE FUNCTION a.two() RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 1'");
    sql("CREATE SCHEMA b; CREATE FUNCTION b.two(int) RETURNS int LANGUAGE sql AS 'SELECT 1'");
    sql("CREATE FUNCTION \"it\"\"s {odd}, \\\"() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1'");
    assert_eq!(lane(&pool, "SELECT harmless()"), Lane::Write);

    becomes(&pool, "SELECT harmless()", Lane::Read).await;
    becomes(&pool, "SELECT a.two()", Lane::Read).await;
    becomes(&pool, "SELECT \"it\"\"s {odd}, \\\"()", Lane::Read).await;
    becomes(&pool, "WITH no_function(x) AS (SELECT 1) SELECT harmless() FROM no_function", Lane::Read).await;

    for write in ["SELECT writes()", "SELECT two()", "SELECT b.two(1)", "SELECT harmless(), writes()"] {
        assert_eq!(lane(&pool, write), Lane::Write, "{write}");
    }
    holds_for(Duration::from_millis(300), "a volatile function in the read lane", || {
        lane(&pool, "SELECT writes()") == Lane::Write && lane(&pool, "SELECT two()") == Lane::Write
    })
    .await;
    assert!(pool.state().idle <= 1, "lookups took more than one backend");
}

#[tokio::test]
async fn ddl_about_functions_makes_answers_void() {
    // A function that became volatile would go on in the read lane for minutes.
    let (pool, database) = pool();
    let sql = |sql: &str| shared_postgres().sql_in(&database, sql).unwrap();
    sql("CREATE FUNCTION f() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1'");
    becomes(&pool, "SELECT f()", Lane::Read).await;
    sql("ALTER FUNCTION f() VOLATILE");

    functions_changed();

    assert_eq!(lane(&pool, "SELECT f()"), Lane::Write);
    for (text, wanted) in [
        ("ALTER FUNCTION f() VOLATILE", true),
        ("create or replace procedure p() language sql as ''", true),
        ("DROP SCHEMA s CASCADE", true),
        ("ALTER TABLE t ADD COLUMN c int", false),
        ("SELECT 'function'", false),
    ] {
        assert_eq!(Facts::of(text.as_bytes()).alters_functions, wanted, "{text}");
    }
}
