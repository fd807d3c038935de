//! Claims about translations.

use std::path::Path;

use proptest::prelude::*;

use super::{Imported, translate};
use crate::config::{AuthMethod, Config, ListenTlsMode, Password, PoolMode, Problem, SslMode};

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn import(text: &str) -> Result<Imported, Vec<Problem>> {
    translate(&folder(&[("pgbouncer.ini", text)]).path().join("pgbouncer.ini"))
}

/// The translation, loaded.
#[track_caller]
fn config(text: &str) -> (Config, String) {
    let folder =
        folder(&[("pgbouncer.ini", text), ("users.txt", ""), ("a.pem", ""), ("a.key", ""), ("ca.pem", "")]);
    let imported = translate(&folder.path().join("pgbouncer.ini")).unwrap();
    let loaded = Config::parse(&folder.path().join("tidegate.toml"), &imported.text);
    (loaded.unwrap_or_else(|errors| panic!("{errors}\n{}", imported.text)), imported.text)
}

/// One database and users, before what a test is about.
const LEAST: &str =
    "[databases]\nshop = host=10.0.0.1\n[pgbouncer]\nlisten_addr = 127.0.0.1\nauth_file = users.txt\n";

/// The text of a translation as one line, without comment signs.
fn words(text: &str) -> String {
    text.split_whitespace().filter(|word| *word != "#").collect::<Vec<_>>().join(" ")
}

#[test]
fn what_both_know_is_carried_over_with_units_converted() {
    // A number that was seconds there would be refused here, or mean something else.
    let (config, text) = config(
        "[databases]\n* = host=10.0.0.1,10.0.0.2 port=5433\n[pgbouncer]\nlisten_addr = 127.0.0.1, ::1\n\
         listen_port = 7432\nunix_socket_dir = /run/pg\nauth_type = scram-sha-256\nauth_file = users.txt\n\
         pool_mode = transaction\ndefault_pool_size = 30\nmin_pool_size = 5\nmax_client_conn = 500\n\
         max_db_connections = 40\nserver_lifetime = 1800\nserver_idle_timeout = 90.5\nclient_login_timeout = 7\n\
         query_timeout = 20\nquery_wait_timeout = 3\nserver_connect_timeout = 2\nclient_idle_timeout = 3600\n\
         idle_transaction_timeout = 45\ntransaction_timeout = 60\nmax_prepared_statements = 50\n\
         admin_users = ann, bob\nstats_users = bob, mon\n",
    );

    let listen: Vec<String> = config.listen.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["127.0.0.1:7432", "[::1]:7432", "unix:/run/pg/.s.PGSQL.7432"]);
    let upstreams: Vec<String> = config.cluster.upstreams.iter().map(ToString::to_string).collect();
    assert_eq!(upstreams, ["10.0.0.1:5433", "10.0.0.2:5433"]);
    assert_eq!((config.listen.auth, config.listen.max_sessions), (AuthMethod::Scram, 500));
    assert_eq!(config.admin.users, ["ann", "bob", "mon"]);
    let pool = &config.pool;
    assert_eq!((pool.mode, pool.size, pool.min_idle), (PoolMode::Transaction, 30, 5));
    assert_eq!((pool.max_per_upstream, pool.prepared_statements), (40, 50));
    let ms = |duration: std::time::Duration| duration.as_millis();
    assert_eq!((ms(pool.max_lifetime), ms(pool.idle_timeout)), (1_800_000, 90_500));
    let times = &config.timeouts;
    let bounds = [times.login, times.read, times.write, times.commit, times.queue, times.connect];
    assert_eq!(bounds.map(ms), [7000, 20_000, 20_000, 20_000, 3000, 2000]);
    let idle = [times.idle_session, times.idle_in_transaction, times.transaction];
    assert_eq!(idle.map(ms), [3_600_000, 45_000, 60_000]);
    assert!(text.contains("# listen_addr (pgbouncer.ini:4), unix_socket_dir (pgbouncer.ini:6)"), "{text}");
}

#[test]
fn defaults_that_differ_and_matter_are_written_out() {
    // Session mode is the default there. An application that relies on it would break in transaction mode.
    let (config, text) = config(LEAST);

    assert_eq!((config.pool.mode, config.listen.auth), (PoolMode::Session, AuthMethod::Md5));
    let words = words(&text);
    for told in [
        "Statements have bounds here",
        "Idle in a transaction is bounded",
        "The wait for a backend is bounded by \"1s\" (timeouts.queue); PgBouncer's default is \"2m\"",
        "A connect to PostgreSQL is bounded by \"1s\"",
        "A login is bounded by \"10s\"",
        "also listens on a unix socket",
    ] {
        assert!(words.contains(told), "{told}: {words}");
    }
}

#[test]
fn a_wait_that_is_longer_than_a_statement_may_take_is_cut_and_says_so() {
    // 120 s of queueing is the default there, and here a contradiction that would be refused.
    let (config, text) = config(&format!("{LEAST}query_wait_timeout = 120\nserver_connect_timeout = 0\n"));

    assert_eq!(config.timeouts.queue, config.timeouts.write);
    assert_eq!(config.timeouts.connect, config.timeouts.write);
    assert!(words(&text).contains("the wait counts as part of the statement, which has \"5s\""), "{text}");
}

#[test]
fn a_bound_of_statements_that_is_shorter_than_our_waits_shortens_them() {
    // The rules between keys would refuse the file.
    let (config, _) = config(&format!("{LEAST}query_timeout = 0.5\n"));

    assert_eq!(config.timeouts.queue, config.timeouts.read);
    assert_eq!(config.timeouts.read.as_millis(), 500);
}

#[test]
fn databases_of_one_server_share_it_and_those_of_another_are_named() {
    // Two primaries in one list would be taken for a split brain.
    let (config, text) = config(
        "[databases]\nshop = host=db1 pool_size=30 connect_query='SELECT 1' timezone=UTC\nbooks = host=db1 \
         dbname=ledger pool_mode=transaction\nelse = host=db2 password=s3cret user=x\n[pgbouncer]\n\
         listen_addr = localhost\nauth_type = trust\n",
    );

    assert_eq!(config.cluster.upstreams.len(), 1);
    assert_eq!((config.pool.size, config.pool.mode), (30, PoolMode::Session));
    let words = words(&text);
    for told in [
        "else (pgbouncer.ini:4) is at db2:5432",
        "applications have to connect to ledger",
        "Pools differ in size (shop 30, books 20)",
        "pool_mode differs between databases",
        "shop: connect_query (pgbouncer.ini:2): no query runs on a new backend",
        "shop: timezone (pgbouncer.ini:2): it is the session's own",
    ] {
        assert!(words.contains(told), "{told}: {words}");
    }
    assert!(!text.contains("s3cret"), "a password is told where it has no use");
}

#[test]
fn a_user_for_all_connections_becomes_ours_and_says_what_that_changes() {
    // Applications that go on logging in as somebody else would meet errors without knowing why.
    let (config, text) = config(
        "[databases]\n* = host=db user=app password='it''s'\n[pgbouncer]\nlisten_addr=localhost\nauth_type=any\n",
    );

    assert_eq!(config.cluster.user.as_deref(), Some("app"));
    assert_eq!(config.cluster.password.as_ref().map(Password::reveal), Some("it's"));
    assert_eq!(config.listen.auth, AuthMethod::Trust);
    assert!(words(&text).contains("applications have to log in as app"), "{text}");
}

#[test]
fn secrets_from_the_database_are_asked_for_by_the_same_user() {
    // Without auth_user there, or cluster.user here, the query is never asked.
    let query = "auth_query = SELECT * FROM pgbouncer.get_auth($1)\nauth_user = asker\n";
    let (config, _) = config(&format!("{LEAST}{query}"));

    assert_eq!(config.listen.auth_query.as_deref(), Some("SELECT * FROM pgbouncer.get_auth($1)"));
    assert_eq!((config.cluster.user.as_deref(), &*config.cluster.database), (Some("asker"), "shop"));
}

#[test]
fn everybody_without_a_proof_is_let_in_on_this_machine_only() {
    // The rule of ours would refuse the file; a wider door than before would be worse.
    let (config, text) =
        config("[databases]\n* = host=db\n[pgbouncer]\nlisten_addr = *\nauth_type = trust\n");

    assert!(config.listen.addresses.iter().all(crate::config::ListenAddress::is_local), "{text}");
    assert!(words(&text).contains("lets everybody in without a proof"), "{text}");
}

#[test]
fn tls_keeps_its_meaning_on_both_sides() {
    // `require` with an authority verifies here, and does not there: old certificates would be refused.
    let files = "client_tls_key_file = a.key\nclient_tls_cert_file = a.pem\nclient_tls_ca_file = ca.pem\n\
                 server_tls_ca_file = ca.pem\n";
    let of = |client: &str, server: &str| {
        let modes = format!("client_tls_sslmode = {client}\nserver_tls_sslmode = {server}\n");
        config(&format!("{LEAST}{files}{modes}")).0
    };

    let loose = of("prefer", "require");
    assert_eq!((loose.listen.tls.mode, loose.cluster.tls.mode), (ListenTlsMode::Allow, SslMode::Require));
    assert_eq!((loose.listen.tls.client_ca, loose.cluster.tls.ca), (None, None));
    let strict = of("verify-full", "verify-full");
    assert_eq!(
        (strict.listen.tls.mode, strict.cluster.tls.mode),
        (ListenTlsMode::Require, SslMode::VerifyFull)
    );
    assert!(strict.listen.tls.client_ca.is_some() && strict.cluster.tls.ca.is_some());
}

#[test]
fn bounds_of_a_user_become_a_rule() {
    // One that is forgotten ends the batch that it was made for.
    let users = "[users]\nbatch = query_timeout=600 idle_transaction_timeout=30 pool_mode=session\n";
    let (config, text) = config(&format!("{LEAST}{users}"));

    let rule = &config.rules[0];
    assert_eq!(rule.matches.values().collect::<Vec<_>>(), ["batch"]);
    assert_eq!(rule.timeouts.write.map(|bound| bound.as_secs()), Some(600));
    assert_eq!(rule.timeouts.idle_in_transaction.map(|bound| bound.as_secs()), Some(30));
    assert!(words(&text).contains("[users] batch: pool_mode (pgbouncer.ini:7)"), "{text}");
}

#[test]
fn the_rule_that_is_meant_matches_first() {
    // The first that matches wins here: behind that of `*` no other would ever count.
    let (config, text) = config(
        "[databases]\n* = host=db query_wait_timeout=3\nshop = host=db query_wait_timeout=2\nbooks = host=db\n\
         [users]\nbatch = query_timeout=600\n[pgbouncer]\nlisten_addr = localhost\nauth_type = trust\n\
         query_wait_timeout = 4\n",
    );

    let rules = config.rules.iter().map(|rule| {
        let name = rule.matches.values().next().unwrap().as_str();
        (name, rule.timeouts.queue.map(|bound| bound.as_secs()))
    });
    assert_eq!(
        rules.collect::<Vec<_>>(),
        [("batch", None), ("shop", Some(2)), ("books", Some(4)), ("*", Some(3))]
    );
    assert!(
        words(&text).contains("batch of [users] have nothing of query_wait_timeout of *, shop"),
        "{text}"
    );
}

#[test]
fn a_rule_has_no_longer_wait_than_its_statements_may_take() {
    // The rules between keys would refuse the file.
    let (config, _) = config(&format!(
        "{}[users]\nquick = query_timeout=0.5\n",
        LEAST.replace("host=10.0.0.1", "host=10.0.0.1 query_wait_timeout=120")
    ));

    let waits: Vec<_> = config.rules.iter().map(|rule| rule.timeouts.queue.unwrap().as_millis()).collect();
    assert_eq!(waits, [500, 5000]);
}

#[test]
fn mistakes_are_told_with_file_line_and_key_all_at_once() {
    // One at a time takes an afternoon.
    let text = "[databases]\nshop = host\nbooks = port=0\n[pgbouncer]\nlisten_port = many\nauth_type = magic\nwhat is this\n\
                pool_mode = turbo\nquery_timeout = soon\n%include nowhere.ini\n[pgbuncer]\nx = 1\n";

    let problems: Vec<String> = import(text).unwrap_err().iter().map(ToString::to_string).collect();

    for (line, key) in [
        (2, "shop"),
        (3, "port"),
        (5, "listen_port"),
        (6, "auth_type"),
        (8, "pool_mode"),
        (9, "query_timeout"),
        (12, "x"),
    ] {
        let wanted = format!("pgbouncer.ini:{line}: {key}: ");
        assert!(problems.iter().any(|problem| problem.contains(&wanted)), "{wanted} in {problems:#?}");
    }
    for line in [7, 10] {
        let wanted = format!("pgbouncer.ini:{line}: ");
        assert!(problems.iter().any(|problem| problem.contains(&wanted)), "{wanted} in {problems:#?}");
    }
    assert_eq!(problems.len(), 9, "{problems:#?}");
}

#[test]
fn included_files_are_read_where_they_are_named_and_end() {
    // Passwords are often in a file of their own; one that includes itself must not hang us.
    let folder = folder(&[
        ("pgbouncer.ini", "[pgbouncer]\nlisten_addr = localhost\n%include more.ini\nauth_type = trust\n"),
        ("more.ini", "default_pool_size = 7\n[databases]\nshop = host=db\n[pgbouncer]\n"),
        ("loop.ini", "%include loop.ini\n"),
    ]);

    let imported = translate(&folder.path().join("pgbouncer.ini")).unwrap();
    assert!(imported.text.contains("# default_pool_size (more.ini:1)\nsize = 7\n"), "{}", imported.text);
    assert!(imported.text.contains("auth = \"trust\""), "{}", imported.text);
    let problems = translate(&folder.path().join("loop.ini")).unwrap_err();
    assert!(problems[0].reason.contains("include each other"), "{problems:?}");
}

/// Every setting of `[pgbouncer]` in the documentation of versions 1.18 to 1.25.
const KNOWN: &[(&str, &[&str])] = &[
    ("logfile", &["/var/log/pgbouncer.log"]),
    ("pidfile", &["/run/pgbouncer.pid"]),
    ("listen_addr", &["localhost", "*", "10.0.0.7,::1", "db.example.com", ""]),
    ("listen_port", &["6432", "6433", "7000"]),
    ("unix_socket_dir", &["/tmp", "", "@pgbouncer"]),
    ("unix_socket_mode", &["0777"]),
    ("unix_socket_group", &["pg"]),
    ("user", &["pgbouncer"]),
    ("pool_mode", &["session", "transaction", "statement"]),
    ("max_client_conn", &["100", "5000000", "0"]),
    ("default_pool_size", &["1", "20", "500"]),
    ("min_pool_size", &["0", "5", "900"]),
    ("reserve_pool_size", &["5"]),
    ("reserve_pool_timeout", &["5.0"]),
    ("max_db_connections", &["0", "10", "400000"]),
    ("max_db_client_connections", &["10"]),
    ("max_user_connections", &["10"]),
    ("max_user_client_connections", &["10"]),
    ("server_round_robin", &["1"]),
    ("track_extra_parameters", &["IntervalStyle"]),
    ("ignore_startup_parameters", &["extra_float_digits"]),
    ("peer_id", &["1"]),
    ("disable_pqexec", &["0"]),
    ("application_name_add_host", &["1"]),
    ("conffile", &["x"]),
    ("service_name", &["x"]),
    ("job_name", &["x"]),
    ("stats_period", &["60"]),
    ("max_prepared_statements", &["0", "200"]),
    ("scram_iterations", &["4096"]),
    ("auth_type", &["md5", "scram-sha-256", "plain", "trust", "any", "hba", "cert", "pam"]),
    ("auth_hba_file", &["hba.conf"]),
    ("auth_ident_file", &["ident.conf"]),
    ("auth_user", &["asker"]),
    ("auth_query", &["SELECT usename, passwd FROM pg_shadow WHERE usename=$1"]),
    ("auth_dbname", &["auth"]),
    ("auth_ldap_options", &["x"]),
    ("syslog", &["1"]),
    ("syslog_ident", &["x"]),
    ("syslog_facility", &["daemon"]),
    ("log_connections", &["1"]),
    ("log_disconnections", &["1"]),
    ("log_pooler_errors", &["1"]),
    ("log_stats", &["1"]),
    ("verbose", &["2"]),
    ("admin_users", &["a, b", ""]),
    ("stats_users", &["s"]),
    ("server_reset_query", &["DISCARD ALL"]),
    ("server_reset_query_always", &["0"]),
    ("server_check_delay", &["30"]),
    ("server_check_query", &["select 1"]),
    ("server_fast_close", &["0"]),
    ("server_lifetime", &["0", "3600", "1e12"]),
    ("server_idle_timeout", &["0", "600"]),
    ("server_connect_timeout", &["0", "1", "15"]),
    ("server_login_retry", &["15"]),
    ("client_login_timeout", &["0", "60"]),
    ("autodb_idle_timeout", &["3600"]),
    ("pool_idle_timeout", &["0"]),
    ("dns_max_ttl", &["15"]),
    ("dns_nxdomain_ttl", &["15"]),
    ("dns_zone_check_period", &["0"]),
    ("resolv_conf", &["/etc/resolv.conf"]),
    ("query_wait_notify", &["5"]),
    ("login_notify_message", &["hello"]),
    ("client_tls_protocols", &["secure"]),
    ("client_tls_ciphers", &["fast"]),
    ("client_tls13_ciphers", &["TLS_AES_256_GCM_SHA384"]),
    ("client_tls_ecdhcurve", &["auto"]),
    ("client_tls_dheparams", &["auto"]),
    ("server_tls_sslmode", &["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]),
    ("server_tls_protocols", &["secure"]),
    ("server_tls_ciphers", &["fast"]),
    ("server_tls13_ciphers", &["TLS_AES_256_GCM_SHA384"]),
    ("query_timeout", &["0", "0.25", "3", "600"]),
    ("query_wait_timeout", &["0", "0.1", "120"]),
    ("cancel_wait_timeout", &["10"]),
    ("client_idle_timeout", &["0", "900"]),
    ("idle_transaction_timeout", &["0", "30"]),
    ("transaction_timeout", &["0", "30"]),
    ("suspend_timeout", &["10"]),
    ("pkt_buf", &["4096"]),
    ("max_packet_size", &["2147483647"]),
    ("listen_backlog", &["128"]),
    ("sbuf_loopcnt", &["5"]),
    ("so_reuseport", &["1"]),
    ("tcp_defer_accept", &["1"]),
    ("tcp_socket_buffer", &["0"]),
    ("tcp_keepalive", &["1"]),
    ("tcp_keepcnt", &["0"]),
    ("tcp_keepidle", &["0"]),
    ("tcp_keepintvl", &["0"]),
    ("tcp_user_timeout", &["0"]),
];

/// Some of the settings, each with one of its values.
fn some_settings() -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
    let picks = proptest::collection::vec((any::<bool>(), 0..8_usize), KNOWN.len());
    picks.prop_map(|picks| {
        let chosen = KNOWN.iter().zip(picks).filter(|(_, (take, _))| *take);
        chosen.map(|((key, values), (_, at))| (*key, values[at % values.len()])).collect()
    })
}

proptest! {
    #[test]
    fn whatever_pgbouncer_takes_becomes_a_file_that_we_take_and_nothing_is_dropped(settings in some_settings()) {
        // Two settings that are fine each for itself contradict each other here: the file would be refused.
        let lines: Vec<String> = settings.iter().map(|(key, value)| format!("{key} = {value}")).collect();
        let (_, text) = config(&format!(
            "[databases]\nshop = host=db1\n* = host=db1 pool_size=9\n[pgbouncer]\nauth_file = users.txt\n{}\n",
            lines.join("\n")
        ));

        for (key, value) in settings {
            prop_assert!(value.is_empty() || text.contains(key), "{key} = {value} is not in\n{text}");
        }
    }
}

#[test]
fn every_setting_that_is_documented_is_known() {
    // "Look it up" is what we say when we do not know; for these somebody has.
    for (key, values) in KNOWN {
        let imported = import(&format!("{LEAST}{key} = {}\n", values[0])).unwrap();
        assert!(!imported.text.contains("it is not known here"), "{key}: {}", imported.text);
    }
}

#[test]
fn the_sample_of_a_package_becomes_a_file_that_loads() {
    // It is what most files started from. It names no database and so no server.
    let samples = ["/usr/share/doc/pgbouncer/examples/pgbouncer.ini", "/etc/pgbouncer/pgbouncer.ini"];
    let Some(sample) = samples.into_iter().map(Path::new).find(|sample| sample.is_file()) else {
        println!("skipped: no sample of PgBouncer's is installed");
        return;
    };

    let imported = translate(sample).unwrap();

    // Its users are in a file that only PgBouncer may read.
    let text = imported.text.replace("/etc/pgbouncer/userlist.txt", "users.txt");
    let folder = folder(&[("users.txt", "")]);
    let config = Config::parse(&folder.path().join("tidegate.toml"), &text);
    assert!(config.is_ok(), "{}\n{text}", config.unwrap_err());
    assert!(words(&text).contains("There is no database in the file"), "{text}");
}
