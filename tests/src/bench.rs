//! A proxy in front of a real `PostgreSQL`.

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use tidegate_chaos::cluster::{Node, NodeOptions, Programs};
use tokio_postgres::{Client, NoTls};

use crate::login::Greeting;
use crate::proxy_process::{Proxy, ProxyOptions};
use crate::scripted_app::ScriptedApp;

/// The `PostgreSQL` that the tests of this process share. It ends with the process. Tests that stop, freeze or
/// configure a server start their own [`Node`].
pub fn shared_postgres() -> &'static Node {
    static SHARED: OnceLock<Node> = OnceLock::new();
    SHARED.get_or_init(|| {
        let programs = Programs::find().unwrap_or_else(|error| panic!("{error:?}"));
        // Several tests at once, each with a pool.
        let options = NodeOptions::new(programs).name("shared").set("max_connections", "300");
        Node::start(&options).unwrap_or_else(|error| panic!("{error:?}"))
    })
}

/// Creates a database of its own on the shared server, for tests that would see each other's tables.
pub fn fresh_database() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let name = format!("test{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let created = shared_postgres().sql(&format!("CREATE DATABASE {name}"));
    created.unwrap_or_else(|error| panic!("{error:?}"));
    name
}

/// The shared `PostgreSQL` and a proxy of the test's own.
pub struct Bench {
    /// The server behind.
    pub postgres: &'static Node,
    /// The proxy in front.
    pub proxy: Proxy,
}

impl Bench {
    /// A proxy of this binary with default settings.
    pub async fn start(binary: impl AsRef<Path>) -> Self {
        Self::start_with(ProxyOptions::new(binary)).await
    }

    /// A proxy with these options; its upstream is added to them.
    pub async fn start_with(options: ProxyOptions) -> Self {
        let postgres = shared_postgres();
        let proxy = options.upstream(&postgres.url()).start().await;
        Self { postgres, proxy }
    }

    /// A driver's session through the proxy, as the superuser.
    pub async fn client(&self) -> Client {
        self.client_in("postgres").await
    }

    /// The same in another database.
    pub async fn client_in(&self, database: &str) -> Client {
        connect(&self.proxy.url("postgres", database)).await
    }

    /// A raw session through the proxy, as the superuser.
    pub async fn app(&self) -> (ScriptedApp, Greeting) {
        ScriptedApp::session(self.proxy.address(), "postgres", "postgres").await
    }

    /// A driver's session past the proxy.
    pub async fn direct(&self) -> Client {
        connect(&self.postgres.url()).await
    }
}

async fn connect(url: &str) -> Client {
    let (client, connection) =
        tokio_postgres::connect(url, NoTls).await.unwrap_or_else(|error| panic!("{url}: {error}"));
    // It ends with the client; its errors show in the client's calls.
    tokio::spawn(connection);
    client
}
