//! The rows of SHOW CONFIG: every key with its value, and after them PgBouncer's names for those that it has too, with
//! its units, because exporters read them. Secrets are not shown.

use std::fmt::{Debug, Display};
use std::path::PathBuf;
use std::time::Duration;

use super::census::mode_word;
use super::table::Row;
use crate::config::{Config, Password};

/// Keys that a reload cannot change.
const FIXED: [&str; 6] =
    ["workers", "state_dir", "listen.address", "admin.address", "listen_addr", "listen_port"];

/// Key, value, default, whether RELOAD takes a new value over.
pub(super) fn rows(config: &Config) -> Vec<Row> {
    let values = [settings(config), pgbouncer_settings(config)].concat();
    let standard = Config::defaults();
    let defaults = [settings(&standard), pgbouncer_settings(&standard)].concat();
    let row = |((key, value), (_, default)): ((&'static str, String), (&'static str, String))| {
        let changeable = if FIXED.contains(&key) { "no" } else { "yes" };
        vec![key.into(), value.into(), default.into(), changeable.into()]
    };
    values.into_iter().zip(defaults).map(row).collect()
}

type Setting = (&'static str, String);

fn settings(config: &Config) -> Vec<Setting> {
    let mut all = listen_settings(config);
    all.extend(cluster_settings(config));
    all.extend(pool_settings(config));
    all.extend(resilience_settings(config));
    all
}

fn listen_settings(config: &Config) -> Vec<Setting> {
    let listen = &config.listen;
    vec![
        ("workers", config.workers.to_string()),
        ("state_dir", config.state_dir.display().to_string()),
        ("listen.address", joined(&listen.addresses)),
        ("listen.max_sessions", listen.max_sessions.to_string()),
        ("listen.auth", word(&listen.auth, '-')),
        ("listen.userlist", path(listen.userlist.as_ref())),
        ("listen.auth_query", text(listen.auth_query.as_deref())),
        ("listen.tls", word(&listen.tls.mode, '-')),
        ("listen.tls_cert", path(listen.tls.cert.as_ref())),
        ("listen.tls_key", path(listen.tls.key.as_ref())),
        ("listen.tls_client_ca", path(listen.tls.client_ca.as_ref())),
        ("admin.address", config.admin.address.to_string()),
        ("admin.users", config.admin.users.join(", ")),
        ("admin.token", secret(config.admin.token.as_ref())),
        ("admin.orders_from", word(&config.admin.orders_from, '-')),
    ]
}

fn cluster_settings(config: &Config) -> Vec<Setting> {
    let cluster = &config.cluster;
    vec![
        ("cluster.upstreams", joined(&cluster.upstreams)),
        ("cluster.roles", word(&cluster.roles, '-')),
        ("cluster.user", text(cluster.user.as_deref())),
        ("cluster.password", secret(cluster.password.as_ref())),
        ("cluster.passfile", path(cluster.passfile.as_ref())),
        ("cluster.database", cluster.database.clone()),
        ("cluster.tls", word(&cluster.tls.mode, '-')),
        ("cluster.tls_ca", path(cluster.tls.ca.as_ref())),
        ("cluster.tls_cert", path(cluster.tls.cert.as_ref())),
        ("cluster.tls_key", path(cluster.tls.key.as_ref())),
        ("cluster.settle", span(cluster.settle)),
        ("cluster.patroni", joined(&cluster.patroni)),
        ("cluster.force", cluster.force.to_string()),
    ]
}

fn pool_settings(config: &Config) -> Vec<Setting> {
    let (pool, timeouts) = (&config.pool, &config.timeouts);
    vec![
        ("pool.mode", mode_word(pool.mode).to_owned()),
        ("pool.size", pool.size.to_string()),
        ("pool.min_idle", pool.min_idle.to_string()),
        ("pool.max_per_upstream", pool.max_per_upstream.to_string()),
        ("pool.write_share", pool.write_share.to_string()),
        ("pool.idle_timeout", span(pool.idle_timeout)),
        ("pool.max_lifetime", span(pool.max_lifetime)),
        ("pool.prepared_statements", pool.prepared_statements.to_string()),
        ("timeouts.login", span(timeouts.login)),
        ("timeouts.connect", span(timeouts.connect)),
        ("timeouts.queue", span(timeouts.queue)),
        ("timeouts.read", span(timeouts.read)),
        ("timeouts.write", span(timeouts.write)),
        ("timeouts.commit", span(timeouts.commit)),
        ("timeouts.transaction", span(timeouts.transaction)),
        ("timeouts.idle_in_transaction", span(timeouts.idle_in_transaction)),
        ("timeouts.idle_session", span(timeouts.idle_session)),
        ("timeouts.drain", span(timeouts.drain)),
        ("timeouts.max", span(timeouts.max)),
    ]
}

fn resilience_settings(config: &Config) -> Vec<Setting> {
    let (breaker, shed) = (&config.breaker, &config.shed);
    vec![
        ("commit.resolve", config.commit.resolve.to_string()),
        ("commit.sync_wait", word(&config.commit.sync_wait, '-')),
        ("commit.resolve_within", span(config.commit.resolve_within)),
        ("read.from", word(&config.read.from, '_')),
        ("read.max_lag", span(config.read.max_lag)),
        ("read.after_write", word(&config.read.after_write, '_')),
        ("read.after_write_for", span(config.read.after_write_for)),
        ("breaker.consecutive_failures", breaker.consecutive_failures.to_string()),
        ("breaker.stuck_min", span(breaker.stuck_min)),
        ("breaker.stuck_max", span(breaker.stuck_max)),
        ("breaker.stuck_count", breaker.stuck_count.to_string()),
        ("breaker.stuck_share", breaker.stuck_share.to_string()),
        ("breaker.rate_window", span(breaker.rate_window)),
        ("breaker.rate_calls", breaker.rate_calls.to_string()),
        ("breaker.rate_share", breaker.rate_share.to_string()),
        ("breaker.open_min", span(breaker.open_min)),
        ("breaker.open_max", span(breaker.open_max)),
        ("breaker.probe_interval", span(breaker.probe_interval)),
        ("breaker.probe_open_interval", span(breaker.probe_open_interval)),
        ("breaker.probe_timeout", span(breaker.probe_timeout)),
        ("breaker.probe_successes", breaker.probe_successes.to_string()),
        ("shed.queue_max", shed.queue_max.to_string()),
        ("shed.codel_target", span(shed.codel_target)),
        ("shed.codel_interval", span(shed.codel_interval)),
        ("hold.window", span(config.hold.window)),
        ("hold.max", config.hold.max.to_string()),
        // Their addresses are secrets.
        ("alerts.webhooks", config.alerts.webhooks.len().to_string()),
        ("alerts.heartbeat_url", secret(config.alerts.heartbeat_url.as_ref())),
        ("alerts.heartbeat_interval", span(config.alerts.heartbeat_interval)),
        ("watchdog.stall", span(config.watchdog.stall)),
        ("watchdog.exit_after", span(config.watchdog.exit_after)),
        ("rule", config.rules.len().to_string()),
    ]
}

/// Under the names that PgBouncer's configuration has for the same thing; durations are in seconds.
fn pgbouncer_settings(config: &Config) -> Vec<Setting> {
    use crate::config::ListenAddress::Tcp;
    let (pool, timeouts) = (&config.pool, &config.timeouts);
    let first = config.listen.addresses.iter().find_map(|address| match address {
        Tcp(address) => Some(address),
        crate::config::ListenAddress::Unix(_) => None,
    });
    vec![
        ("listen_addr", first.map(|address| address.ip().to_string()).unwrap_or_default()),
        ("listen_port", first.map(|address| address.port().to_string()).unwrap_or_default()),
        ("admin_users", config.admin.users.join(", ")),
        ("pool_mode", mode_word(pool.mode).to_owned()),
        ("max_client_conn", config.listen.max_sessions.to_string()),
        ("default_pool_size", pool.size.to_string()),
        ("min_pool_size", pool.min_idle.to_string()),
        ("reserve_pool_size", "0".to_owned()),
        // No bound of their own; the one for each server holds for all of them together.
        ("max_db_connections", "0".to_owned()),
        ("max_user_connections", "0".to_owned()),
        ("max_prepared_statements", pool.prepared_statements.to_string()),
        ("query_wait_timeout", seconds(timeouts.queue)),
        ("client_login_timeout", seconds(timeouts.login)),
        ("client_idle_timeout", seconds(timeouts.idle_session)),
        ("idle_transaction_timeout", seconds(timeouts.idle_in_transaction)),
        ("server_connect_timeout", seconds(timeouts.connect)),
        ("server_idle_timeout", seconds(pool.idle_timeout)),
        ("server_lifetime", seconds(pool.max_lifetime)),
        ("stats_period", seconds(super::averages::PERIOD)),
    ]
}

fn joined(all: &[impl Display]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn path(path: Option<&PathBuf>) -> String {
    path.map(|path| path.display().to_string()).unwrap_or_default()
}

fn text(text: Option<&str>) -> String {
    text.unwrap_or_default().to_owned()
}

fn secret(secret: Option<&Password>) -> String {
    text(secret.map(|_| "(set)"))
}

fn span(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

fn seconds(duration: Duration) -> String {
    duration.as_secs_f64().to_string()
}

/// The configuration's word for a variant: `VerifyFull` becomes `verify-full`.
fn word(variant: &impl Debug, between: char) -> String {
    let mut word = String::new();
    for c in format!("{variant:?}").chars() {
        if c.is_ascii_uppercase() && !word.is_empty() {
            word.push(between);
        }
        word.push(c.to_ascii_lowercase());
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_the_sample_is_shown_and_no_secret_is() {
        // A key that is missing is one that an operator cannot check; a password here would be in every terminal.
        let mut config = Config::defaults();
        config.cluster.password = Some(Password::new("hunter2".to_owned()));
        config.admin.token = Some(Password::new("hunter2hunter2hunter2".to_owned()));
        let rows = format!("{:?}", rows(&config));

        let mut section = String::new();
        for line in include_str!("../config/sample.toml").lines() {
            let line = line.trim_start_matches("# ");
            if let Some(name) = line.strip_prefix('[') {
                section = format!("{}.", name.trim_matches(['[', ']']));
            } else if let Some((key, _)) = line.split_once(" = ")
                && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
                && !section.starts_with("rule")
            {
                assert!(rows.contains(&format!("\"{section}{key}\"")), "{section}{key}");
            }
        }
        assert!(!rows.contains("hunter2"));
    }

    #[test]
    fn values_are_written_as_in_the_configuration_file() {
        // A value that cannot be copied back into the file is of little use.
        let config = Config::defaults();
        let all = settings(&config);
        let value = |wanted| all.iter().find(|(key, _)| *key == wanted).map(|(_, value)| value.as_str());

        assert_eq!(value("cluster.tls"), Some("prefer"));
        assert_eq!(value("read.from"), Some("primary"));
        assert_eq!(value("timeouts.queue"), Some("1s"));
        assert_eq!(value("pool.write_share"), Some("0.7"));
        assert_eq!(word(&crate::config::SslMode::VerifyFull, '-'), "verify-full");
    }
}
