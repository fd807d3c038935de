//! A sidecar with chosen settings, before a database of the test's own.

use std::time::Duration;

use tidegate_chaos::cluster::{Node, NodeOptions, Programs};
use tidegate_tests::{
    Bench, Credentials, Greeting, Proxy, ProxyOptions, Reply, ScriptedApp, fresh_database, shared_postgres,
    wait_for,
};
use tokio_postgres::Client;

/// What should take milliseconds must be seen within this time, also on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Waits so long that no deadline interferes with a test about something else.
pub(crate) const PATIENT: &str = "[shed]\ncodel_target = \"15s\"\ncodel_interval = \"15s\"\n[timeouts]\nqueue = \"15s\"\nread = \"150s\"\nwrite = \"150s\"\ncommit = \"150s\"\nconnect = \"5s\"\n";

/// A sidecar that trusts loopback, with these sections of its configuration.
pub(crate) fn sidecar(sections: &str) -> ProxyOptions {
    let config = format!("[listen]\nauth = \"trust\"\n{sections}");
    ProxyOptions::new(crate::TIDEGATE).config(&config)
}

/// Transaction mode with this many backends per pool, and patience. The write lane may use all of them.
pub(crate) fn pool_of(size: usize) -> ProxyOptions {
    sidecar(&format!("[pool]\nsize = {size}\nwrite_share = 1.0\n{PATIENT}"))
}

/// The same in session mode.
pub(crate) fn session_pool_of(size: usize) -> ProxyOptions {
    sidecar(&format!("[pool]\nmode = \"session\"\nsize = {size}\nwrite_share = 1.0\n{PATIENT}"))
}

/// A PostgreSQL of the test's own with these parameters.
pub(crate) fn own_postgres(parameters: &[(&str, &str)]) -> Node {
    let options = NodeOptions::new(Programs::find().unwrap());
    let options = parameters.iter().fold(options, |options, (name, value)| options.set(name, value));
    Node::start(&options).unwrap()
}

/// A sidecar before the shared server, and a database that no other test uses.
pub(crate) struct Rig {
    pub(crate) bench: Bench,
    pub(crate) database: String,
}

impl Rig {
    pub(crate) async fn start(options: ProxyOptions) -> Self {
        let database = fresh_database();
        Self { bench: Bench::start_with(options).await, database }
    }

    pub(crate) fn proxy(&self) -> &Proxy {
        &self.bench.proxy
    }

    /// A raw session.
    pub(crate) async fn app(&self) -> ScriptedApp {
        self.greeted().await.0
    }

    pub(crate) async fn greeted(&self) -> (ScriptedApp, Greeting) {
        ScriptedApp::session(self.proxy().address(), "postgres", &self.database).await
    }

    /// A raw session with more startup parameters.
    pub(crate) async fn app_with(&self, parameters: &[(&str, &str)]) -> ScriptedApp {
        let mut app = ScriptedApp::connect(self.proxy().address()).await;
        let who = Credentials { user: "postgres", password: "", database: &self.database };
        app.log_in_with(who, parameters).await.unwrap_or_else(|problem| panic!("{problem:?}"));
        app
    }

    /// A driver's session.
    pub(crate) async fn client(&self) -> Client {
        self.bench.client_in(&self.database).await
    }

    /// SQL past the sidecar.
    pub(crate) fn sql(&self, sql: &str) -> String {
        shared_postgres().sql_in(&self.database, sql).unwrap()
    }

    /// Backends that serve the database now.
    pub(crate) fn backends(&self) -> usize {
        backends_of(&[&self.database])
    }

    /// Waits until a backend of the database runs exactly this statement.
    pub(crate) async fn wait_running(&self, sql: &str) {
        let sql = sql.replace('\'', "''");
        let look = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
             AND state = 'active' AND query = '{sql}'"
        );
        wait_for(SOON, "the statement runs", async || (self.sql(&look) != "0").then_some(())).await;
    }
}

/// Backends that serve these databases of the shared server now; psql looks from another database.
pub(crate) fn backends_of(databases: &[&str]) -> usize {
    let names = databases.join("', '");
    let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE datname IN ('{names}')");
    shared_postgres().sql(&sql).unwrap().parse().unwrap()
}

/// Runs SQL that must succeed.
pub(crate) async fn run(app: &mut ScriptedApp, sql: &str) -> Reply {
    let reply = app.query(sql).await;
    assert_eq!(reply.error(), None, "{sql}");
    reply
}

/// The single value of a statement that must succeed; NULL is empty.
pub(crate) async fn value(app: &mut ScriptedApp, sql: &str) -> String {
    run(app, sql).await.value().unwrap_or_default()
}

/// The process that serves the session now.
pub(crate) async fn backend_pid(app: &mut ScriptedApp) -> String {
    value(app, "SELECT pg_backend_pid()").await
}

/// Looks again and again for the whole span: it must hold all the time.
pub(crate) async fn holds_for(span: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let start = tokio::time::Instant::now();
    while start.elapsed() < span {
        assert!(holds(), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
