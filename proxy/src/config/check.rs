//! The rules between fields, and which fields a reload may change.
//!
//! A rule that a size breaks is a deadlock or an outage later; so every rule says what to change.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::layers::Layers;
use super::{AuthMethod, Config, ListenAddress, ListenTlsMode, Roles, Rule, SslMode};

/// The upper bound of `max_connections`: `MAX_BACKENDS` in the sources of PostgreSQL, 2^18 - 1.
const BACKENDS_MAX: usize = 262_143;
/// More sockets than one process can have on common kernels (`fs.nr_open` is 1,048,576).
const SESSIONS_MAX: usize = 1_000_000;
/// Shorter tokens can be guessed: 16 characters of base64 are 96 bits.
const TOKEN_MIN: usize = 16;
/// More workers than any machine has a use for.
const WORKERS_MAX: usize = 256;

/// Adds every rule that `config` breaks to the problems of the layers it came from.
pub(super) fn check(config: &Config, layers: &mut Layers<'_>) {
    check_addresses(config, layers);
    check_admin(config, layers);
    check_auth(config, layers);
    check_listen_tls(config, layers);
    check_cluster(config, layers);
    check_sizes(config, layers);
    check_timeouts(config, layers);
    check_rules(config, layers);
    check_resilience(config, layers);
    check_watchdog(config, layers);
}

impl Config {
    /// Keeps what the running process took from its surroundings at its start, where nobody wrote anything else since:
    /// a quota of processors that has changed is no change of the configuration.
    pub fn keep_unwritten(&mut self, running: &Self) {
        if self.workers_follow {
            self.workers = running.workers;
        }
    }
}

/// What a reload would have to refuse, each with what to do; empty when the new configuration may take over.
pub fn reload_refusals(old: &Config, new: &Config) -> Vec<String> {
    [
        ("listen.address", old.listen.addresses != new.listen.addresses),
        ("admin.address", old.admin.address != new.admin.address),
        ("workers", old.workers != new.workers),
        ("state_dir", old.state_dir != new.state_dir),
    ]
    .into_iter()
    .filter(|(_, differs)| *differs)
    .map(|(key, _)| format!("{key} cannot change while we run; restart, or put the old value back"))
    .collect()
}

fn check_addresses(config: &Config, layers: &mut Layers<'_>) {
    let mut seen: Vec<&ListenAddress> = Vec::new();
    for address in &config.listen.addresses {
        if seen.iter().any(|other| overlap(other, address)) {
            let reason = format!("{address} is taken by another entry of the list");
            layers.contradict(&["listen.address"], reason, "remove one of them");
        }
        seen.push(address);
    }
    let admin = ListenAddress::Tcp(config.admin.address);
    if seen.iter().any(|address| overlap(address, &admin)) {
        let reason = format!("{} is a listen address as well", config.admin.address);
        layers.contradict(&["admin.address", "listen.address"], reason, "give one of them another port");
    }
}

fn check_admin(config: &Config, layers: &mut Layers<'_>) {
    if config.admin.token.as_ref().is_some_and(|token| token.reveal().len() < TOKEN_MIN) {
        let reason = format!("a token has at least {TOKEN_MIN} characters");
        layers.contradict(&["admin.token"], reason, "make one with: openssl rand -hex 16");
    }
}

/// Whether the second bind would fail. Port 0 asks for any free port.
fn overlap(a: &ListenAddress, b: &ListenAddress) -> bool {
    match (a, b) {
        (ListenAddress::Tcp(a), ListenAddress::Tcp(b)) => {
            a.port() != 0 && a.port() == b.port() && (a.ip() == b.ip() || covers(a, b) || covers(b, a))
        }
        (ListenAddress::Unix(a), ListenAddress::Unix(b)) => a == b,
        (ListenAddress::Tcp(_), ListenAddress::Unix(_)) | (ListenAddress::Unix(_), ListenAddress::Tcp(_)) => {
            false
        }
    }
}

/// `0.0.0.0` takes all of IPv4, `[::]` everything (ipv6(7): `IPV6_V6ONLY` is off by default).
fn covers(all: &SocketAddr, one: &SocketAddr) -> bool {
    all.ip().is_unspecified() && (all.is_ipv6() || one.is_ipv4())
}

fn check_auth(config: &Config, layers: &mut Layers<'_>) {
    let listen = &config.listen;
    if listen.auth == AuthMethod::Trust {
        for address in listen.addresses.iter().filter(|address| !address.is_local()) {
            let reason =
                format!("\"trust\" lets everyone in, and {address} can be reached from other machines");
            layers.contradict(
                &["listen.auth", "listen.address"],
                reason,
                "set auth = \"scram\" with a userlist, or listen on loopback or a unix socket only",
            );
        }
    } else if listen.userlist.is_none() && listen.auth_query.is_none() {
        layers.contradict(
            &["listen.auth", "listen.userlist", "listen.auth_query"],
            "nothing says which users there are".to_owned(),
            "set listen.userlist or listen.auth_query, or auth = \"trust\" on loopback",
        );
    }
    if let Some(path) = &listen.userlist {
        check_readable("listen.userlist", path, layers);
    }
    if let Some(query) = &listen.auth_query {
        check_auth_query(config, query, layers);
    }
}

fn check_auth_query(config: &Config, query: &str, layers: &mut Layers<'_>) {
    if !query.contains("$1") {
        layers.contradict(
            &["listen.auth_query"],
            "the query does not ask for a user".to_owned(),
            "put $1 where the user's name goes, as in `WHERE usename = $1`",
        );
    }
    if config.cluster.user.is_none() {
        layers.contradict(
            &["listen.auth_query", "cluster.user"],
            "the query needs a user to log in as".to_owned(),
            "set cluster.user",
        );
    }
}

fn check_listen_tls(config: &Config, layers: &mut Layers<'_>) {
    let tls = &config.listen.tls;
    if tls.mode != ListenTlsMode::Disable && (tls.cert.is_none() || tls.key.is_none()) {
        layers.contradict(
            &["listen.tls", "listen.tls_cert", "listen.tls_key"],
            "TLS needs a certificate and its key".to_owned(),
            "set listen.tls_cert and listen.tls_key, or tls = \"disable\"",
        );
    }
    for (key, path) in [
        ("listen.tls_cert", &tls.cert),
        ("listen.tls_key", &tls.key),
        ("listen.tls_client_ca", &tls.client_ca),
    ] {
        let Some(path) = path else { continue };
        check_readable(key, path, layers);
        if tls.mode == ListenTlsMode::Disable {
            layers.warn(key, "has no effect while listen.tls is \"disable\"");
        }
    }
    if tls.client_ca.is_some() && tls.mode == ListenTlsMode::Allow {
        layers.warn(
            "listen.tls_client_ca",
            "plain sessions show no certificate; listen.tls = \"require\" refuses them",
        );
    }
}

fn check_cluster(config: &Config, layers: &mut Layers<'_>) {
    let cluster = &config.cluster;
    if cluster.upstreams.is_empty() {
        layers.contradict(
            &["cluster.upstreams"],
            "there are no upstreams".to_owned(),
            "write cluster.upstreams = [\"host:5432\"], or start with --upstream postgres://user@host:5432/database",
        );
    }
    let mut seen = HashSet::new();
    for upstream in &cluster.upstreams {
        if !seen.insert(upstream) {
            layers.contradict(
                &["cluster.upstreams"],
                format!("{upstream} is listed twice"),
                "remove one of them",
            );
        }
    }
    if cluster.password.is_some() && cluster.user.is_none() {
        let reason = "a password without a user".to_owned();
        layers.contradict(&["cluster.password", "cluster.user"], reason, "set cluster.user");
    }
    if cluster.passfile.is_some() && cluster.user.is_none() {
        let reason = "a password file without a user".to_owned();
        layers.contradict(&["cluster.passfile", "cluster.user"], reason, "set cluster.user");
    }
    if !cluster.patroni.is_empty() && cluster.roles != Roles::Patroni {
        layers.warn("cluster.patroni", "has no effect unless cluster.roles is \"patroni\"");
    }
    if cluster.force {
        layers.warn("cluster.force", "guards are off; remove it after the reload that it is for");
    }
    check_upstream_tls(config, layers);
}

fn check_upstream_tls(config: &Config, layers: &mut Layers<'_>) {
    let tls = &config.cluster.tls;
    if tls.cert.is_some() != tls.key.is_some() {
        layers.contradict(
            &["cluster.tls_cert", "cluster.tls_key"],
            "a client certificate and its key come together".to_owned(),
            "set both, or none",
        );
    }
    for (key, path) in
        [("cluster.tls_ca", &tls.ca), ("cluster.tls_cert", &tls.cert), ("cluster.tls_key", &tls.key)]
    {
        let Some(path) = path else { continue };
        check_readable(key, path, layers);
        if tls.mode == SslMode::Disable {
            layers.warn(key, "has no effect while cluster.tls is \"disable\"");
        }
    }
}

fn check_readable(key: &'static str, path: &Path, layers: &mut Layers<'_>) {
    let reason = match std::fs::File::open(path).and_then(|file| file.metadata()) {
        Ok(metadata) if metadata.is_dir() => format!("{} is a folder", path.display()),
        Ok(_) => return,
        Err(error) => format!("{} cannot be read: {error}", path.display()),
    };
    layers.fail(key, reason, "correct the path, or give the user that runs tidegate the right to read it");
}

fn check_sizes(config: &Config, layers: &mut Layers<'_>) {
    let pool = &config.pool;
    for (key, value, low, high) in [
        ("listen.max_sessions", config.listen.max_sessions, 1, SESSIONS_MAX),
        ("pool.size", pool.size, 1, BACKENDS_MAX),
        ("pool.max_per_upstream", pool.max_per_upstream, 1, BACKENDS_MAX),
        ("pool.prepared_statements", pool.prepared_statements, 1, SESSIONS_MAX),
        ("workers", config.workers, 1, WORKERS_MAX),
        ("shed.queue_max", config.shed.queue_max, 1, SESSIONS_MAX),
        ("hold.max", config.hold.max, 0, SESSIONS_MAX),
        ("breaker.consecutive_failures", config.breaker.consecutive_failures, 1, SESSIONS_MAX),
        ("breaker.stuck_count", config.breaker.stuck_count, 1, SESSIONS_MAX),
        ("breaker.rate_calls", config.breaker.rate_calls, 1, SESSIONS_MAX),
        ("breaker.probe_successes", config.breaker.probe_successes, 1, SESSIONS_MAX),
    ] {
        if value < low || value > high {
            layers.fail(key, format!("{value} is out of range"), format!("choose from {low} to {high}"));
        }
    }
    if pool.size > pool.max_per_upstream {
        let reason = format!("{} is less than pool.size ({})", pool.max_per_upstream, pool.size);
        layers.contradict(
            &["pool.max_per_upstream", "pool.size"],
            reason,
            "one pool could never fill; raise max_per_upstream or lower size",
        );
    }
    if pool.min_idle > pool.size {
        let reason = format!("{} is more than pool.size ({})", pool.min_idle, pool.size);
        layers.contradict(&["pool.min_idle", "pool.size"], reason, "lower min_idle or raise size");
    }
    if pool.size > 0 && pool.write_slots() >= pool.size {
        let key = if pool.size == 1 { "pool.size" } else { "pool.write_share" };
        let what = format!(
            "writes may have all of a pool ({}): when they hang, reads wait with them; keep at least one backend for reads",
            pool.size
        );
        layers.warn(key, &what);
    }
}

fn check_timeouts(config: &Config, layers: &mut Layers<'_>) {
    let timeouts = &config.timeouts;
    let pool = &config.pool;
    for (key, value) in [
        ("timeouts.login", timeouts.login),
        ("timeouts.connect", timeouts.connect),
        ("timeouts.queue", timeouts.queue),
        ("timeouts.read", timeouts.read),
        ("timeouts.write", timeouts.write),
        ("timeouts.commit", timeouts.commit),
        ("pool.idle_timeout", pool.idle_timeout),
        ("pool.max_lifetime", pool.max_lifetime),
    ] {
        if value.is_zero() {
            layers.fail(
                key,
                "zero is no bound, and this wait must have one",
                "choose a time, at most 366 days",
            );
        }
    }
    let shortest = timeouts.read.min(timeouts.write);
    for (key, value) in [("timeouts.queue", timeouts.queue), ("timeouts.connect", timeouts.connect)] {
        if value > shortest {
            let reason =
                format!("{} is longer than the shorter of read and write ({})", show(value), show(shortest));
            layers.contradict(
                &[key, "timeouts.read", "timeouts.write"],
                reason,
                "the statement's deadline would pass first; lower this, or raise timeouts.read and timeouts.write",
            );
        }
    }
}

fn check_rules(config: &Config, layers: &mut Layers<'_>) {
    for rule in &config.rules {
        let timeouts = rule.timeouts;
        let bounds = [timeouts.queue, timeouts.read, timeouts.write, timeouts.commit];
        if bounds.into_iter().flatten().any(|bound| bound.is_zero()) {
            layers.contradict(
                &["rule"],
                "zero is no bound, and queue, read, write and commit of timeouts must have one".to_owned(),
                "choose a time, at most 366 days",
            );
        } else if [timeouts.queue, timeouts.read, timeouts.write].iter().any(Option::is_some) {
            check_waits_of(rule, config, layers);
        }
    }
}

/// As [`check_timeouts`], with what a rule puts in the place of the general bounds.
fn check_waits_of(rule: &Rule, config: &Config, layers: &mut Layers<'_>) {
    let (own, general) = (rule.timeouts, &config.timeouts);
    let shortest = own.read.unwrap_or(general.read).min(own.write.unwrap_or(general.write));
    let of = rule.matches.values().map(String::as_str).collect::<Vec<_>>().join(", ");
    let longer = |value| {
        format!(
            "{} is longer than the shorter of read and write ({}) under the rule for {of}",
            show(value),
            show(shortest)
        )
    };
    let queue = own.queue.unwrap_or(general.queue);
    if queue > shortest {
        let advice = "the statement's deadline would pass first; lower queue in timeouts of the rule, or raise read and write";
        layers.contradict(&["rule"], format!("queue: {}", longer(queue)), advice);
    }
    // It is not the rule's to set, and who waits for a connect has the statement's deadline.
    if general.connect > shortest {
        let what =
            format!("timeouts.connect: {}; a new connection may come too late", longer(general.connect));
        layers.warn("rule", &what);
    }
}

fn check_resilience(config: &Config, layers: &mut Layers<'_>) {
    let breaker = &config.breaker;
    for (low_key, low, high_key, high) in [
        ("breaker.stuck_min", breaker.stuck_min, "breaker.stuck_max", breaker.stuck_max),
        ("breaker.open_min", breaker.open_min, "breaker.open_max", breaker.open_max),
    ] {
        if low > high {
            let reason = format!("{} is longer than {high_key} ({})", show(low), show(high));
            layers.contradict(&[low_key, high_key], reason, "lower it, or raise the other");
        }
    }
    for (key, value) in [
        ("breaker.stuck_min", breaker.stuck_min),
        ("breaker.rate_window", breaker.rate_window),
        ("breaker.open_min", breaker.open_min),
        ("breaker.probe_interval", breaker.probe_interval),
        ("breaker.probe_open_interval", breaker.probe_open_interval),
        ("breaker.probe_timeout", breaker.probe_timeout),
        ("shed.codel_target", config.shed.codel_target),
        ("shed.codel_interval", config.shed.codel_interval),
        ("read.max_lag", config.read.max_lag),
        ("read.after_write_for", config.read.after_write_for),
    ] {
        if value.is_zero() {
            layers.fail(key, "zero makes no sense here", "choose a time, such as \"500ms\"");
        }
    }
}

/// A thread counts four times a second; one count late is nothing.
const STALL_MIN: Duration = Duration::from_millis(500);
/// More often than this it would be a load on whoever is called.
const HEARTBEAT_MIN: Duration = Duration::from_secs(1);

fn check_watchdog(config: &Config, layers: &mut Layers<'_>) {
    let watchdog = config.watchdog;
    for (key, value, least) in [
        ("watchdog.stall", watchdog.stall, STALL_MIN),
        ("alerts.heartbeat_interval", config.alerts.heartbeat_interval, HEARTBEAT_MIN),
    ] {
        if value < least {
            layers.fail(
                key,
                format!("{} is too short", show(value)),
                format!("choose at least {}", show(least)),
            );
        }
    }
    // Probes come up to a fifth late, and take time themselves.
    let quiet = config.breaker.probe_interval.mul_f64(1.2) + config.breaker.probe_timeout;
    if config.alerts.heartbeat_url.is_some() && config.alerts.heartbeat_interval < quiet {
        let seldom = format!(
            "{} is less than the time between two probes ({}): without traffic a heartbeat would stay away",
            show(config.alerts.heartbeat_interval),
            show(quiet)
        );
        layers.warn("alerts.heartbeat_interval", &seldom);
    }
    if !watchdog.exit_after.is_zero() && watchdog.exit_after < watchdog.stall {
        let reason =
            format!("{} is less than watchdog.stall ({})", show(watchdog.exit_after), show(watchdog.stall));
        layers.contradict(
            &["watchdog.exit_after", "watchdog.stall"],
            reason,
            "the process would end before anybody is told why; raise exit_after, or set it to \"0\" for never",
        );
    }
}

/// A duration as an operator would write it.
pub(super) fn show(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}
