//! From layers to the tree: which keys exist, the type and the default of each. Said here and nowhere else.

use std::path::PathBuf;
use std::time::Duration;

use super::address::{self, ADMIN_PORT};
use super::layers::Layers;
use super::problem::Origin;
use super::resilience::{
    AfterWrite, Alerts, Breaker, Commit, Hold, Read, ReadFrom, Shed, SyncWait, Watchdog, Webhook, WebhookKind,
};
use super::values::{Count, Human, Share, Texts, Webhooks};
use super::{
    Admin, AuthMethod, Cluster, Config, Listen, ListenAddress, ListenTls, ListenTlsMode, OrdersFrom,
    Password, Pool, PoolMode, Roles, SslMode, Timeouts, UpstreamAddress, UpstreamTls, passfile,
};
use crate::discovery::patroni::Endpoint;

/// One worker up to this many cores, then one for each as many: a worker relays for four busy cores of application.
const CORES_PER_WORKER: usize = 4;

/// Reads every key. Where a value was refused its default stands in, so that the rules can still be checked.
pub(super) fn build(layers: &mut Layers<'_>, unset_auth: AuthMethod) -> Config {
    Config {
        listen: listen(layers, unset_auth),
        admin: admin(layers),
        cluster: cluster(layers),
        pool: pool(layers),
        timeouts: timeouts(layers),
        workers: count(layers, "workers", default_workers(cores())),
        workers_follow: layers.origin("workers") == Origin::Default,
        commit: commit(layers),
        read: read(layers),
        breaker: breaker(layers),
        shed: shed(layers),
        hold: hold(layers),
        alerts: alerts(layers),
        watchdog: watchdog(layers),
        state_dir: state_dir(layers),
        rules: layers.take("rule").unwrap_or_default(),
        warnings: Vec::new(),
    }
}

/// It began as the alerts' own, and is still found there.
fn state_dir(layers: &mut Layers<'_>) -> PathBuf {
    layers.alias("alerts.state_dir", "state_dir");
    layers.take_path("state_dir").unwrap_or_else(|| PathBuf::from("/var/lib/tidegate"))
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Workers when nobody says how many.
pub(super) fn default_workers(cores: usize) -> usize {
    (cores / CORES_PER_WORKER).max(1)
}

fn listen(layers: &mut Layers<'_>, unset_auth: AuthMethod) -> Listen {
    let cert = layers.take_path("listen.tls_cert");
    // Who names a certificate wants it used.
    let unset_tls = if cert.is_some() { ListenTlsMode::Allow } else { ListenTlsMode::Disable };
    Listen {
        addresses: listen_addresses(layers),
        max_sessions: count(layers, "listen.max_sessions", 10_000),
        auth: layers.take("listen.auth").unwrap_or(unset_auth),
        userlist: layers.take_path("listen.userlist"),
        auth_query: layers.take("listen.auth_query"),
        tls: ListenTls {
            mode: layers.take("listen.tls").unwrap_or(unset_tls),
            cert,
            key: layers.take_path("listen.tls_key"),
            client_ca: layers.take_path("listen.tls_client_ca"),
        },
    }
}

fn listen_addresses(layers: &mut Layers<'_>) -> Vec<ListenAddress> {
    const KEY: &str = "listen.address";
    let texts = layers.take(KEY).map_or_else(|| vec!["127.0.0.1:6432".to_owned()], |Texts(texts)| texts);
    match address::listen(&texts, layers.base(KEY)) {
        Ok(addresses) => addresses,
        Err((text, error)) => {
            layers.fail(
                KEY,
                format!("\"{text}\": {error}"),
                "write 127.0.0.1:6432, [::1]:6432 or unix:/run/tidegate",
            );
            Vec::new()
        }
    }
}

fn admin(layers: &mut Layers<'_>) -> Admin {
    Admin {
        address: admin_address(layers),
        users: layers.take("admin.users").map_or_else(Vec::new, |Texts(users)| users),
        token: layers.take("admin.token"),
        orders_from: layers.take("admin.orders_from").unwrap_or(OrdersFrom::Loopback),
    }
}

fn admin_address(layers: &mut Layers<'_>) -> std::net::SocketAddr {
    const KEY: &str = "admin.address";
    let text: String = layers.take(KEY).unwrap_or_else(|| "127.0.0.1:6433".to_owned());
    address::bind(&text, ADMIN_PORT).unwrap_or_else(|error| {
        layers.fail(KEY, format!("\"{text}\": {error}"), "write 127.0.0.1:6433");
        ([127, 0, 0, 1], ADMIN_PORT).into()
    })
}

fn cluster(layers: &mut Layers<'_>) -> Cluster {
    let mut cluster = Cluster {
        upstreams: upstreams(layers),
        roles: layers.take("cluster.roles").unwrap_or(Roles::Probe),
        user: layers.take("cluster.user"),
        password: layers.take("cluster.password"),
        passfile: layers.take_path("cluster.passfile"),
        database: layers.take("cluster.database").unwrap_or_else(|| "postgres".to_owned()),
        tls: UpstreamTls {
            mode: layers.take("cluster.tls").unwrap_or(SslMode::Prefer),
            ca: layers.take_path("cluster.tls_ca"),
            cert: layers.take_path("cluster.tls_cert"),
            key: layers.take_path("cluster.tls_key"),
        },
        settle: duration(layers, "cluster.settle", Duration::from_secs(2)),
        patroni: patroni(layers),
        force: layers.take("cluster.force").unwrap_or(false),
    };
    // A password that is written out wins, as in libpq.
    if cluster.password.is_none() {
        cluster.password = passfile_password(layers, &cluster);
    }
    cluster
}

fn upstreams(layers: &mut Layers<'_>) -> Vec<UpstreamAddress> {
    const KEY: &str = "cluster.upstreams";
    let texts = layers.take(KEY).map_or_else(Vec::new, |Texts(texts)| texts);
    let base = layers.base(KEY).to_owned();
    let mut upstreams = Vec::new();
    for text in texts {
        match address::upstream(&text, &base) {
            Ok(upstream) => upstreams.push(upstream),
            // The text may hold a password.
            Err(error) if text.contains('@') => layers.fail(KEY, error.to_string(), "write host:port"),
            Err(error) => layers.fail(
                KEY,
                format!("\"{text}\": {error}"),
                "write 10.0.0.1:5432, [::1]:5432 or unix:/var/run/postgresql",
            ),
        }
    }
    upstreams
}

fn patroni(layers: &mut Layers<'_>) -> Vec<Endpoint> {
    const KEY: &str = "cluster.patroni";
    let texts = layers.take(KEY).map_or_else(Vec::new, |Texts(texts)| texts);
    let mut endpoints = Vec::new();
    for text in texts {
        match text.parse() {
            Ok(endpoint) => endpoints.push(endpoint),
            // The text may hold a password.
            Err(error) => {
                layers.fail(KEY, format!("an entry is refused: {error}"), "write http://10.0.0.1:8008");
            }
        }
    }
    endpoints
}

fn passfile_password(layers: &mut Layers<'_>, cluster: &Cluster) -> Option<Password> {
    const KEY: &str = "cluster.passfile";
    let path = cluster.passfile.as_ref()?;
    let user = cluster.user.as_ref()?;
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            layers.fail(
                KEY,
                format!("{} cannot be read: {error}", path.display()),
                "correct the path or its rights",
            );
            return None;
        }
    };
    if passfile::is_open_to_others(path) {
        layers.warn(KEY, "others than its owner may read the file, and libpq would not use it; chmod 600");
    }
    let first = cluster.upstreams.first()?;
    // A standby has the roles of its primary, so one password is used for all; a host without a line has that too.
    let mut found: Option<(&UpstreamAddress, Password)> = None;
    for upstream in &cluster.upstreams {
        let Some(password) = passfile::lookup(&text, upstream, &cluster.database, user) else { continue };
        match &found {
            None => found = Some((upstream, password)),
            Some((other, known)) if *known != password => {
                let reason = format!(
                    "{} has one password of user {user} at {other} and another at {upstream}",
                    path.display()
                );
                let advice = "the servers of a cluster have the same roles: correct the line that is wrong";
                layers.fail(KEY, reason, advice);
                return None;
            }
            Some(_) => {}
        }
    }
    if found.is_none() {
        let reason = format!("no line of {} is for user {user} at {first}", path.display());
        layers.fail(KEY, reason, "add a line host:port:database:user:password");
    }
    found.map(|(_, password)| password)
}

fn pool(layers: &mut Layers<'_>) -> Pool {
    Pool {
        mode: layers.take("pool.mode").unwrap_or(PoolMode::Transaction),
        size: count(layers, "pool.size", 20),
        min_idle: count(layers, "pool.min_idle", 0),
        max_per_upstream: count(layers, "pool.max_per_upstream", 60),
        write_share: share(layers, "pool.write_share", 0.7),
        idle_timeout: duration(layers, "pool.idle_timeout", Duration::from_mins(10)),
        max_lifetime: duration(layers, "pool.max_lifetime", Duration::from_hours(1)),
        prepared_statements: count(layers, "pool.prepared_statements", 200),
    }
}

fn timeouts(layers: &mut Layers<'_>) -> Timeouts {
    let mut seconds = |key, default| duration(layers, key, Duration::from_secs(default));
    Timeouts {
        login: seconds("timeouts.login", 10),
        connect: seconds("timeouts.connect", 1),
        queue: seconds("timeouts.queue", 1),
        read: seconds("timeouts.read", 30),
        write: seconds("timeouts.write", 5),
        commit: seconds("timeouts.commit", 5),
        transaction: seconds("timeouts.transaction", 0),
        idle_in_transaction: seconds("timeouts.idle_in_transaction", 60),
        idle_session: seconds("timeouts.idle_session", 0),
        max: seconds("timeouts.max", 0),
        drain: seconds("timeouts.drain", 30),
    }
}

fn commit(layers: &mut Layers<'_>) -> Commit {
    Commit {
        resolve: layers.take("commit.resolve").unwrap_or(true),
        sync_wait: layers.take("commit.sync_wait").unwrap_or(SyncWait::Leave),
        resolve_within: duration(layers, "commit.resolve_within", Duration::from_secs(2)),
    }
}

fn read(layers: &mut Layers<'_>) -> Read {
    Read {
        from: layers.take("read.from").unwrap_or(ReadFrom::Primary),
        max_lag: duration(layers, "read.max_lag", Duration::from_secs(10)),
        after_write: layers.take("read.after_write").unwrap_or(AfterWrite::Any),
        after_write_for: duration(layers, "read.after_write_for", Duration::from_secs(5)),
    }
}

fn breaker(layers: &mut Layers<'_>) -> Breaker {
    Breaker {
        // Envoy and gobreaker: five in a row.
        consecutive_failures: count(layers, "breaker.consecutive_failures", 5),
        stuck_min: duration(layers, "breaker.stuck_min", Duration::from_millis(250)),
        stuck_max: duration(layers, "breaker.stuck_max", Duration::from_secs(1)),
        stuck_count: count(layers, "breaker.stuck_count", 3),
        stuck_share: share(layers, "breaker.stuck_share", 0.5),
        // Hystrix and linkerd: ten buckets of a second, twenty calls, half of them failed.
        rate_window: duration(layers, "breaker.rate_window", Duration::from_secs(10)),
        rate_calls: count(layers, "breaker.rate_calls", 20),
        rate_share: share(layers, "breaker.rate_share", 0.5),
        // Patroni's default ttl of 30 s bounds how long a failover can take.
        open_min: duration(layers, "breaker.open_min", Duration::from_secs(1)),
        open_max: duration(layers, "breaker.open_max", Duration::from_secs(30)),
        probe_interval: duration(layers, "breaker.probe_interval", Duration::from_secs(5)),
        probe_open_interval: duration(layers, "breaker.probe_open_interval", Duration::from_millis(500)),
        probe_timeout: duration(layers, "breaker.probe_timeout", Duration::from_millis(500)),
        probe_successes: count(layers, "breaker.probe_successes", 3),
    }
}

fn shed(layers: &mut Layers<'_>) -> Shed {
    Shed {
        queue_max: count(layers, "shed.queue_max", 2000),
        codel_target: duration(layers, "shed.codel_target", Duration::from_millis(200)),
        codel_interval: duration(layers, "shed.codel_interval", Duration::from_secs(1)),
    }
}

fn hold(layers: &mut Layers<'_>) -> Hold {
    Hold {
        window: duration(layers, "hold.window", Duration::from_secs(2)),
        max: count(layers, "hold.max", 64),
    }
}

fn alerts(layers: &mut Layers<'_>) -> Alerts {
    let webhooks = layers.take("alerts.webhooks").map_or_else(Vec::new, |Webhooks(webhooks)| webhooks);
    check_webhooks(layers, &webhooks);
    let heartbeat: Option<Password> = layers.take("alerts.heartbeat_url");
    let heartbeat_url = heartbeat.filter(|url| !url.reveal().is_empty());
    if heartbeat_url.as_ref().is_some_and(|url| !is_web_url(url)) {
        layers.fail(
            "alerts.heartbeat_url",
            "this is not an http:// or https:// URL",
            "correct it, or leave it empty",
        );
    }
    let heartbeat_interval = duration(layers, "alerts.heartbeat_interval", Duration::from_secs(30));
    Alerts { webhooks, heartbeat_url, heartbeat_interval }
}

fn check_webhooks(layers: &mut Layers<'_>, webhooks: &[Webhook]) {
    const KEY: &str = "alerts.webhooks";
    let keyless = |webhook: &Webhook| webhook.kind == WebhookKind::Pagerduty && webhook.routing_key.is_none();
    let is_header = |text: &Password| hyper::header::HeaderValue::try_from(text.reveal()).is_ok();
    if webhooks.iter().any(|webhook| !is_web_url(&webhook.url)) {
        layers.fail(KEY, "a url is not an http:// or https:// URL", "correct it");
    }
    if webhooks.iter().any(keyless) {
        layers.fail(
            KEY,
            "kind = \"pagerduty\" without routing_key",
            "add the integration key of the service",
        );
    }
    if webhooks.iter().any(|webhook| webhook.authorization.as_ref().is_some_and(|text| !is_header(text))) {
        layers.fail(KEY, "an authorization cannot be the value of a header", "remove control characters");
    }
}

fn watchdog(layers: &mut Layers<'_>) -> Watchdog {
    Watchdog {
        stall: duration(layers, "watchdog.stall", Duration::from_secs(2)),
        exit_after: duration(layers, "watchdog.exit_after", Duration::ZERO),
    }
}

fn is_web_url(text: &Password) -> bool {
    url::Url::parse(text.reveal()).is_ok_and(|url| matches!(url.scheme(), "http" | "https"))
}

fn count(layers: &mut Layers<'_>, key: &'static str, default: usize) -> usize {
    layers.take(key).map_or(default, |Count(number)| number)
}

fn duration(layers: &mut Layers<'_>, key: &'static str, default: Duration) -> Duration {
    layers.take(key).map_or(default, |Human(duration)| duration)
}

fn share(layers: &mut Layers<'_>, key: &'static str, default: f64) -> f64 {
    layers.take(key).map_or(default, |Share(share)| share)
}
