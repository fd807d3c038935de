//! Claims about configuration.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::file::File;
use super::layers::Layers;
use super::*;

const SAMPLE: &str = include_str!("sample.toml");
/// The least that a file can say.
const LEAST: &str = "listen.userlist = \"users.txt\"\ncluster.upstreams = [\"db\"]\n";

struct Bench {
    folder: TempDir,
    sources: Sources,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("users.txt"), "").unwrap();
        Self { folder, sources: Sources::default() }
    }

    fn file(mut self, text: &str) -> Self {
        let path = self.folder.path().join("tidegate.toml");
        fs::write(&path, text).unwrap();
        self.sources.file = Some(path);
        self
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.sources.environment.insert(name.to_owned(), OsString::from(value));
        self
    }

    fn upstream(mut self, url: &str) -> Self {
        self.sources.upstreams.push(Password::new(url.to_owned()));
        self
    }

    fn load(&self) -> Result<Config, ConfigErrors> {
        Config::load(&self.sources)
    }

    fn errors(&self) -> String {
        self.load().unwrap_err().to_string()
    }
}

fn with(lines: &str) -> String {
    format!("{LEAST}{lines}\n")
}

#[test]
fn the_sample_says_every_default() {
    // A default that changes in the code but not in the sample makes the two configurations differ.
    let sample = SAMPLE.replace("# userlist = \"userlist.txt\"", "userlist = \"users.txt\"");

    let mut from_sample = Bench::new().file(&sample).load().unwrap();
    let mut from_least = Bench::new().file(LEAST).load().unwrap();

    for config in [&mut from_sample, &mut from_least] {
        config.listen.userlist = None;
        config.cluster.upstreams.clear();
        config.warnings.clear();
    }
    assert_eq!(from_sample, from_least);
}

#[test]
fn the_sample_says_first_what_must_be_filled_in() {
    // Seen: a copy of "the whole file" was refused, and nothing in it had said so.
    let errors = Bench::new().file(SAMPLE).load().unwrap_err();

    let head: String = SAMPLE.lines().take_while(|line| !line.is_empty()).collect();
    let [only] = &errors.problems[..] else { panic!("{errors}") };
    assert_eq!(only.key, "listen.auth");
    for named in ["cluster.upstreams", "listen.userlist", "listen.auth_query", "\"trust\" for listen.auth"] {
        assert!(head.contains(named), "{named} is missing from {head}");
    }
}

#[test]
fn the_sample_names_every_key() {
    // A key that is read but not documented is missing from the sections and comments of the sample.
    let sources = Sources::default();
    let mut layers = Layers::new(None, &sources.environment);
    sources::load_layers(&sources, &mut layers);
    let mut section = String::new();
    let mut named = std::collections::BTreeSet::new();
    for line in SAMPLE.lines() {
        if let Some(name) = line.trim_start_matches("# ").strip_prefix('[') {
            section = format!("{}.", name.trim_end_matches(']'));
            named.insert(name.trim_matches(['[', ']']).to_owned());
        } else if let Some((key, _)) = line.trim_start_matches("# ").split_once(" = ") {
            named.insert(format!("{section}{key}"));
        }
    }

    let missing: Vec<_> = layers.known().iter().filter(|key| !named.contains(**key)).collect();

    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_whole_of_a_long_file_is_read() {
    // A value that is parsed but not kept would still have its default.
    let text = r#"
workers = 3
listen.userlist = "users.txt"
listen.address = ["[::1]:7000", "localhost:7001", "unix:/run/tidegate", "unix:/run/x:6440", "unix:/y/.s.PGSQL.1"]
cluster.upstreams = ["a", "[::1]:5433", "unix:/var/run/postgresql", "unix:socks:5434"]
"#;

    let config = Bench::new().file(text).load().unwrap();

    let listen: Vec<_> = config.listen.addresses.iter().map(ToString::to_string).collect();
    let upstreams: Vec<_> = config.cluster.upstreams.iter().map(ToString::to_string).collect();
    assert_eq!(config.workers, 3);
    assert_eq!(
        listen,
        [
            "[::1]:7000",
            "127.0.0.1:7001",
            "unix:/run/tidegate/.s.PGSQL.7000",
            "unix:/run/x/.s.PGSQL.6440",
            "unix:/y/.s.PGSQL.1"
        ]
    );
    assert_eq!(upstreams[..3], ["a:5432", "[::1]:5433", "unix:/var/run/postgresql/.s.PGSQL.5432"]);
    assert!(upstreams[3].starts_with("unix:/") && upstreams[3].ends_with("/socks/.s.PGSQL.5434"));
}

#[test]
fn the_state_dir_may_stand_with_the_alerts() {
    // Seen: a file with state_dir among the alerts, whose outbox it holds, was refused for an unknown key.
    let among = Bench::new().file(&with("[alerts]\nstate_dir = \"/s\"\n"));
    assert_eq!(among.load().unwrap().state_dir, Path::new("/s"));
    let variable = Bench::new().file(&with("")).variable("TIDEGATE_ALERTS_STATE_DIR", "/v");
    assert_eq!(variable.load().unwrap().state_dir, Path::new("/v"));

    let twice = Bench::new().file(&format!("state_dir = \"/s\"\n{}", with("[alerts]\nstate_dir = \"/s\"\n")));
    assert!(
        twice.errors().contains("alerts.state_dir: it is another name of state_dir"),
        "{}",
        twice.errors()
    );
}

#[test]
fn rules_and_webhooks_are_kept() {
    // Tables in lists take another way through the parser than single values.
    let config = Bench::new()
        .file(&with(
            "[alerts]\nwebhooks = [{ url = \"https://x/y\", kind = \"slack\" }]\n[[rule]]\nmatch = { application_name = \"batch-*\" }\npriority = \"sheddable\"\ntimeouts = { write = \"60s\" }",
        ))
        .load()
        .unwrap();

    assert_eq!(config.alerts.webhooks[0].kind, WebhookKind::Slack);
    assert_eq!(config.rules[0].priority, Some(Priority::Sheddable));
    assert_eq!(config.rules[0].timeouts.write, Some(Duration::from_mins(1)));
    assert_eq!(config.rules[0].matches[&RuleAttribute::ApplicationName], "batch-*");
}

#[test]
fn what_is_wrong_is_named_with_line_key_reason_and_advice() {
    // Each row is one mistake after the two lines of LEAST, and what the message must hold.
    let rows: &[(&str, &[&str])] = &[
        ("[pool]\nsiz = 3", &["tidegate.toml:4: pool.siz: unknown key", "did you mean `pool.size`?"]),
        ("[pol]", &["tidegate.toml:3: pol: unknown key"]),
        ("pool = 3", &["tidegate.toml:3: pool: unknown key", "write it as [pool]"]),
        ("[pool]\nsize = \"x\"", &["toml:4: pool.size: invalid type", "a whole number"]),
        ("[pool]\nsize = 0", &["pool.size: 0 is out of range", "choose from 1"]),
        ("[pool]\nsize = -1", &["pool.size: invalid value: integer `-1`"]),
        ("[pool]\nsize = 61", &["pool.max_per_upstream: 60 is less than pool.size (61)", "raise"]),
        ("[pool]\nmin_idle = 21", &["pool.min_idle: 21 is more than pool.size"]),
        ("[pool]\nwrite_share = 0.0", &["pool.write_share", "above 0 and at most 1"]),
        ("[pool]\nwrite_share = 1.5", &["pool.write_share"]),
        ("[pool]\nmode = \"statement\"", &["pool.mode: unknown variant `statement`", "`transaction`"]),
        ("[pool]\nmax_lifetime = \"0\"", &["pool.max_lifetime: zero is no bound"]),
        ("[timeouts]\nqueue = 5", &["timeouts.queue", "\"250ms\""]),
        ("[timeouts]\nqueue = \"6s\"", &["timeouts.queue: 6s is longer than", "(5s)"]),
        (
            "[timeouts]\nread = \"500ms\"",
            &["toml:4: timeouts.queue: 1s is longer", "timeouts.connect: 1s is longer"],
        ),
        ("[timeouts]\nwrite = \"2years\"", &["timeouts.write", "366 days"]),
        (
            "[[rule]]\nmatch = { user = \"a\" }\ntimeouts = { read = \"500ms\" }",
            &["rule: queue: 1s is longer than the shorter of read and write (500ms) under the rule for a"],
        ),
        (
            "[[rule]]\nmatch = { user = \"a\" }\ntimeouts = { queue = \"6s\" }",
            &["rule: queue: 6s is longer", "(5s)"],
        ),
        ("workers = 0", &["workers: 0 is out of range"]),
        ("listen.address = \"0.0.0.0:6432\"\nlisten.auth = \"trust\"", &["lets everyone in", "scram"]),
        ("listen.address = \"db.example:6432\"", &["\"db.example:6432\": we listen on an IP"]),
        ("listen.address = [\"127.0.0.1\", \"0.0.0.0:6432\"]", &["0.0.0.0:6432 is taken by another entry"]),
        (
            "admin.address = \"127.0.0.1:6432\"",
            &["admin.address: 127.0.0.1:6432 is a listen address as well"],
        ),
        ("listen.auth_query = \"SELECT 1\"", &["does not ask for a user", "needs a user to log in as"]),
        ("listen.tls = \"require\"", &["TLS needs a certificate and its key"]),
        (
            "listen.tls_key = \"no.key\"\nlisten.tls_cert = \"no.crt\"",
            &["no.key cannot be read", "no.crt cannot"],
        ),
        ("cluster.tls_cert = \"users.txt\"", &["a client certificate and its key come together"]),
        ("cluster.tls_ca = \".\"", &["is a folder"]),
        ("cluster.password = 12345", &["cluster.password: a secret must be text in quotes"]),
        ("cluster.password = \"p\"", &["a password without a user"]),
        ("cluster.passfile = \"none\"\ncluster.user = \"u\"", &["cluster.passfile", "cannot be read"]),
        (
            "alerts.webhooks = [{ url = \"https://x\", kind = \"pagerduty\" }]",
            &["alerts.webhooks: kind = \"pagerduty\" without routing_key"],
        ),
        (
            "alerts.webhooks = [{ url = \"https://x\", authorization = \"a\\nb\" }]",
            &["alerts.webhooks: an authorization cannot be the value of a header"],
        ),
        ("alerts.heartbeat_interval = \"10ms\"", &["alerts.heartbeat_interval: 10ms is too short"]),
        ("watchdog.stall = \"100ms\"", &["watchdog.stall: 100ms is too short"]),
        ("watchdog.exit_after = \"1s\"", &["watchdog.exit_after: 1s is less than watchdog.stall (2s)"]),
        ("alerts.heartbeat_url = \"ftp://token\"", &["alerts.heartbeat_url: this is not an http"]),
        (
            "[[rule]]\nmatch = {}\n\n[[rule]]\nmatch = {}\nprio = 1",
            &["tidegate.toml:8: rule: unknown field `prio`"],
        ),
        ("breaker.open_min = \"1m\"", &["breaker.open_min: 1m is longer than breaker.open_max (30s)"]),
        ("[pool", &["tidegate.toml:3: this is not TOML"]),
        ("listen.userlist = \"x\"", &["tidegate.toml:3: this is not TOML", "duplicate key"]),
    ];
    for (mistake, parts) in rows {
        let message = Bench::new().file(&with(mistake)).errors();

        for part in *parts {
            assert!(message.contains(part), "{mistake:?} should say {part:?}, says:\n{message}");
        }
    }
}

#[test]
fn all_problems_are_reported_at_once() {
    // If the first problem ended the search there would be one line.
    let message = Bench::new().file("[pool]\nsize = 0\nnothing = 1\n[timeouts]\nqueue = \"1h\"\n").errors();

    assert_eq!(message.lines().count(), 5, "{message}");
}

#[test]
fn an_address_of_the_control_plane_that_several_others_take_is_one_problem() {
    // Said once for each of them, and counted so.
    let text =
        with("listen.address = [\"127.0.0.1:7000\", \"127.0.0.1:7000\"]\nadmin.address = \"127.0.0.1:7000\"");

    let message = Bench::new().file(&text).errors();

    assert_eq!(message.matches("is a listen address as well").count(), 1, "{message}");
    assert_eq!(message.lines().count(), 2, "{message}");
}

#[test]
fn only_a_key_that_is_near_is_suggested() {
    // A suggestion that has nothing to do with what was written sends its reader the wrong way.
    for (mistake, suggested) in [
        ("cluster.x = 1", None),
        ("cluster.passfil = \"a\"", Some("cluster.passfile")),
        ("pool.siez = 1", Some("pool.size")),
        ("pools.size = 1", Some("pool.size")),
        ("pool.prepared_statments = 1", Some("pool.prepared_statements")),
        ("timeouts.idle_transaction = \"1s\"", Some("timeouts.idle_in_transaction")),
        ("timeouts.statement = \"1s\"", None),
        ("nonsense = 1", None),
    ] {
        let message = Bench::new().file(&with(mistake)).errors();

        let found = message.split("did you mean `").nth(1).and_then(|rest| rest.split('`').next());
        assert_eq!(found, suggested, "{mistake}: {message}");
    }
}

#[test]
fn a_refused_value_causes_no_further_complaint() {
    // The stand-in for a bad value is its default, which might contradict another value.
    let message = Bench::new().file(&with("[pool]\nsize = \"x\"\nmax_per_upstream = 5")).errors();

    assert_eq!(message.lines().count(), 1, "{message}");
}

#[test]
fn empty_and_missing_files_are_refused() {
    // A file truncated by its writer must not pass for "all defaults", whatever the environment adds.
    for text in ["", "\n", "# only words\n"] {
        let bench = Bench::new().file(text).variable("TIDEGATE_CLUSTER_UPSTREAMS", "db");
        assert!(bench.errors().contains("no upstreams"), "{}", bench.errors());
    }

    // A file that is not there has no first line.
    let mut missing = Bench::new();
    missing.sources.file = Some("nowhere.toml".into());
    assert!(missing.errors().starts_with("nowhere.toml: the configuration file cannot be read"));
    missing.sources.file = Some(missing.folder.path().to_owned());
    assert!(missing.errors().contains(": the configuration file cannot be read: Is a directory"));
    assert!(Bench::new().errors().contains("there are no upstreams"));
}

#[test]
fn flags_hide_variables_which_hide_the_file() {
    // Each layer sets a different size or address; a wrong order shows the hidden one.
    let text = with("pool.size = 5\nlisten.address = \"127.0.0.1:1\"");
    let mut bench = Bench::new().file(&text);
    assert_eq!(bench.load().unwrap().pool.size, 5);

    bench = bench
        .variable("TIDEGATE_POOL_SIZE", "30")
        .variable("TIDEGATE_LISTEN_ADDRESS", "127.0.0.1:2, 127.0.0.1:3")
        .variable("TIDEGATE_CLUSTER_UPSTREAMS", "a:1,b:2")
        .variable("TIDEGATE_WORKERS", "2")
        .variable("TIDEGATE_CLUSTER_USER", "u")
        .variable("TIDEGATE_CLUSTER_PASSWORD", "12345")
        .variable("TIDEGATE_TIMEOUTS_IDLE_IN_TRANSACTION", "9s")
        .variable("TIDEGATE_POOL_MODE", "session")
        .variable("TIDEGATE_POOL_IDLE_TIMEOUT", "")
        .variable("TIDEGATE_LOG", "debug")
        .variable("TIDEGATE_CONFIG", "x")
        .variable("HOME", "/");
    let config = bench.load().unwrap();
    assert_eq!((config.pool.size, config.listen.addresses.len(), config.workers), (30, 2, 2));
    assert_eq!(config.cluster.upstreams.len(), 2);
    assert_eq!(config.cluster.password.unwrap().reveal(), "12345");
    assert_eq!(config.timeouts.idle_in_transaction, Duration::from_secs(9));
    assert_eq!(config.pool.mode, PoolMode::Session);

    bench.sources.listen = vec!["127.0.0.1:4".to_owned()];
    bench.sources.admin = Some("127.0.0.1:5".to_owned());
    let config = bench.upstream("c:3").load().unwrap();
    assert_eq!(config.listen.addresses, [ListenAddress::Tcp(([127, 0, 0, 1], 4).into())]);
    assert_eq!(config.admin.address.port(), 5);
    assert_eq!(config.cluster.upstreams[0].to_string(), "c:3");
}

#[test]
fn variables_are_named_in_their_problems() {
    // An operator of a container has no file to look at.
    let message = Bench::new()
        .file(LEAST)
        .variable("TIDEGATE_POOL_SIZ", "1")
        .variable("TIDEGATE_POOL_SIZE", "many")
        .errors();

    assert!(
        message.contains(
            "variable TIDEGATE_POOL_SIZ: there is no such variable; did you mean TIDEGATE_POOL_SIZE?"
        )
    );
    assert!(
        message.contains("environment variable TIDEGATE_POOL_SIZE: pool.size: invalid type"),
        "{message}"
    );
}

#[test]
fn a_filter_of_logs_that_makes_no_sense_is_refused() {
    // Seen: it was taken for "info" without a word; and a level that is misspelt, for a module that nothing logs from.
    for (filter, wrong) in [
        ("info", None),
        ("WARN", None),
        ("off", None),
        ("tidegate::pool=debug,info", None),
        ("tidegate[session]=debug,info", None),
        ("", None),
        ("foo=bar=baz", Some("\"foo=bar=baz\" is no filter of logs")),
        ("tidegate=inof", Some("\"tidegate=inof\" is no filter of logs")),
        ("inof", Some("\"inof\" is no level; write info")),
    ] {
        let bench = Bench::new().file(LEAST).variable("TIDEGATE_LOG", filter);

        match wrong {
            None => assert!(bench.load().is_ok(), "{filter}: {}", bench.errors()),
            Some(wrong) => {
                let message = bench.errors();
                assert!(message.contains("environment variable TIDEGATE_LOG: "), "{message}");
                assert!(message.contains(wrong), "{filter}: {message}");
            }
        }
    }
}

#[test]
fn an_upstream_url_is_enough() {
    // Without a file there must be trust on loopback, or nobody could log in.
    let config = Bench::new().upstream("postgres://u%40x:p%3aw@db:5433/app?sslmode=require").load().unwrap();

    assert_eq!(config.listen.auth, AuthMethod::Trust);
    assert!(config.listen.addresses.iter().all(ListenAddress::is_local));
    assert_eq!(config.cluster.upstreams[0].to_string(), "db:5433");
    assert_eq!(config.cluster.user.as_deref(), Some("u@x"));
    assert_eq!(config.cluster.password.unwrap().reveal(), "p:w");
    assert_eq!(config.cluster.database, "app");
    assert_eq!(config.cluster.tls.mode, SslMode::Require);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn urls_are_read_as_libpq_reads_them() {
    // Forms from libpq's documentation; each must give this address.
    for (url, address) in [
        ("postgresql://", "localhost:5432"),
        ("postgresql://localhost", "localhost:5432"),
        ("postgresql://user@:5433/db", "localhost:5433"),
        ("postgresql://[2001:db8::1234]/database", "[2001:db8::1234]:5432"),
        ("postgresql:///db?host=/tmp/pg&port=5434", "unix:/tmp/pg/.s.PGSQL.5434"),
        ("postgresql://user@/db?host=/tmp", "unix:/tmp/.s.PGSQL.5432"),
        ("postgresql://%2Ftmp%2Fa,b/db", "one URL names one server"),
        ("postgresql://%2Ftmp/db", "unix:/tmp/.s.PGSQL.5432"),
        ("10.0.0.1:5433", "10.0.0.1:5433"),
        ("db", "db:5432"),
        ("mysql://db", "this is no postgres://"),
        ("postgres://db/x?sslcrl=y", "unknown parameter `sslcrl`"),
        ("postgres://a,b/x", "one URL names one server"),
        ("postgres://db/%ff", "not UTF-8"),
        ("db:0", "the port must be"),
        ("db:99999", "the port must be"),
        ("", "the address is empty"),
    ] {
        let found = match upstream_url::parse(url) {
            Ok(parsed) => parsed.address.unwrap().to_string(),
            Err(error) => error.to_string(),
        };

        assert!(found.contains(address), "{url}: {found}");
    }
}

#[test]
fn several_urls_agree_or_are_refused() {
    // One cluster has one user: the second URL's would be dropped without a word.
    let differing = Bench::new().upstream("postgres://a@x").upstream("postgres://b@y").errors();
    let twice = Bench::new().upstream("x").upstream("x:5432").errors();

    assert!(differing.contains("flag --upstream: cluster.user: the URLs differ"), "{differing}");
    assert!(twice.contains("x:5432 is listed twice"), "{twice}");
}

#[test]
fn secrets_stay_out_of_messages() {
    // Each bad configuration holds the word; a message that repeats its input would show it.
    let benches = [
        Bench::new().upstream("postgres://u:hunter2@h:0/d"),
        Bench::new().upstream("postgres://u:hunter2@h/d#x"),
        Bench::new().upstream("u:hunter2@h"),
        Bench::new().file(&with("cluster.password = [\"hunter2\"]")),
        Bench::new()
            .file("cluster.upstreams = [\"postgres://u:hunter2@h\", \"u:hunter2@h\", \"hunter2@h\"]\n"),
        Bench::new().file(&with("alerts.webhooks = [{ url = \"hunter2\" }]")),
        Bench::new().file(&with("alerts.webhooks = \"https://hooks/hunter2\"")),
        Bench::new().file(&with("alerts.webhooks = [\"https://hooks/hunter2\"]")),
        Bench::new().file(&with("alerts.webhooks = [https://hooks/hunter2]")),
        Bench::new().file(&with("alerts.webhooks = [[\"https://hooks/hunter2\"]]")),
        Bench::new().file(&with("alerts.webhooks = [{ url = \"slack\", kind = \"https://hooks/hunter2\" }]")),
        Bench::new().file(&with("alerts.webhooks = [{ url = [\"https://hooks/hunter2\"] }]")),
        Bench::new().file(&with("alerts.webhooks = { url = \"https://hooks/hunter2\" }")),
        Bench::new().file(&with("alerts.heartbeat_url = [\"https://hooks/hunter2\"]")),
        Bench::new().variable("TIDEGATE_ALERTS_WEBHOOKS", "https://hooks/hunter2"),
        Bench::new().file(&with("cluster.password = \"hunter2")),
        Bench::new().variable("TIDEGATE_CLUSTER_PASWORD", "hunter2"),
    ];
    for bench in benches {
        let shown = format!("{} {:?} {:?}", bench.errors(), bench.load(), bench.sources);

        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

#[test]
fn trust_is_for_this_machine_only() {
    // An address that others reach must be refused even where the list has local ones too.
    for (address, good) in [
        ("127.0.0.1:6432", true),
        ("127.9.9.9:6432", true),
        ("[::1]:6432", true),
        ("[::ffff:127.0.0.1]:6432", true),
        ("unix:/run/tidegate", true),
        ("0.0.0.0:6432", false),
        ("[::]:6432", false),
        ("10.0.0.1:6432", false),
    ] {
        let text =
            format!("listen.auth = \"trust\"\nlisten.address = \"{address}\"\ncluster.upstreams = \"db\"\n");

        assert_eq!(Bench::new().file(&text).load().is_ok(), good, "{address}");
    }
}

#[test]
fn a_heartbeat_that_is_due_more_often_than_probes_commit_is_warned_about() {
    // At night, without traffic, only probes commit: each silence between two of them would page somebody.
    let text = |seconds: u32| {
        with(&format!("[alerts]\nheartbeat_url = \"http://x/\"\nheartbeat_interval = \"{seconds}s\""))
    };

    let often = Bench::new().file(&text(5)).load().unwrap().warnings;
    let seldom = Bench::new().file(&text(7)).load().unwrap().warnings;

    assert!(often.len() == 1 && often[0].contains("heartbeat_interval"), "{often:?}");
    assert!(seldom.is_empty(), "{seldom:?}");
}

#[test]
fn a_pool_that_writes_may_have_all_of_is_warned_about() {
    // When they hang nothing is left for reads, which is what the share is for.
    for (lines, warned) in [
        ("size = 1", Some("pool.size: ")),
        ("write_share = 1.0", Some("pool.write_share: ")),
        ("size = 2", None),
    ] {
        let warnings = Bench::new().file(&with(&format!("[pool]\n{lines}"))).load().unwrap().warnings;

        let found: Vec<_> = warnings.iter().filter(|one| one.contains("reads wait with them")).collect();
        assert_eq!(found.len(), usize::from(warned.is_some()), "{lines}: {warnings:?}");
        assert!(warned.is_none_or(|key| found[0].contains(key)), "{lines}: {warnings:?}");
    }
}

#[test]
fn a_rule_that_bounds_statements_below_the_time_of_a_connect_is_warned_about() {
    // The rule cannot change that; its first statements may be late all the same.
    let text = "[[rule]]\nmatch = { user = \"a\" }\ntimeouts = { read = \"500ms\", queue = \"500ms\" }";

    let warnings = Bench::new().file(&with(text)).load().unwrap().warnings;

    assert!(warnings.iter().any(|one| one.contains("timeouts.connect: 1s is longer")), "{warnings:?}");
}

#[test]
fn a_password_file_gives_one_password_for_all_servers_or_none() {
    // The first server's was used for the others, too, which then refused it at the worst of times: after a failover.
    let cluster =
        "listen.auth = \"trust\"\ncluster.upstreams = [\"a:5432\", \"b:5432\"]\ncluster.user = \"u\"\n";
    let text = format!("{cluster}cluster.passfile = \"pass\"\n");
    for (lines, known) in [
        ("a:5432:*:u:one\nb:5432:*:u:one\n", Some("one")),
        ("a:5432:*:u:one\n", Some("one")),
        ("b:5432:*:u:two\n", Some("two")),
        ("*:*:*:u:one\nb:5432:*:u:two\n", Some("one")),
        ("a:5432:*:u:one\nb:5432:*:u:two\n", None),
    ] {
        let bench = Bench::new().file(&text);
        fs::write(bench.folder.path().join("pass"), lines).unwrap();

        match bench.load() {
            Ok(config) => {
                assert_eq!(config.cluster.password.as_ref().map(Password::reveal), known, "{lines}");
            }
            Err(errors) => {
                let told = errors.to_string();
                assert!(
                    known.is_none() && told.contains("at a:5432 and another at b:5432"),
                    "{lines}: {told}"
                );
                assert!(!told.contains("one\n") && !told.contains("two\n"), "{told}");
            }
        }
    }
}

#[test]
fn a_password_file_that_others_may_read_is_warned_about() {
    // libpq does not use it, so nobody expects that it is; and the password in it is everybody's.
    use std::os::unix::fs::PermissionsExt as _;

    let text = with("cluster.user = \"u\"\ncluster.passfile = \"pass\"");
    for (mode, warned) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true), (0o644, true)] {
        let bench = Bench::new().file(&text);
        let path = bench.folder.path().join("pass");
        fs::write(&path, "*:*:*:u:secret\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();

        let warnings = bench.load().unwrap().warnings;

        let found = warnings.iter().any(|one| one.contains("cluster.passfile: others than its owner"));
        assert_eq!(found, warned, "{mode:o}: {warnings:?}");
    }
}

#[test]
fn a_password_file_is_read_as_libpq_reads_it() {
    // The rows before the match differ in one field each; a match that ignores a field takes the wrong password.
    let text = "# c\nother:5432:d:u:1\ndb:5433:d:u:2\ndb:5432:e:u:3\ndb:5432:d:v:4\n*:*:d:u:a\\:b\\\\c\ndb:5432:d:u:6\n";
    let upstream = UpstreamAddress::Tcp { host: "db".to_owned(), port: 5432 };
    let socket = UpstreamAddress::Unix("/run/.s.PGSQL.5433".into());

    let found = passfile::lookup(text, &upstream, "d", "u");
    let on_socket = passfile::lookup("localhost:5433:*:u:s\n", &socket, "d", "u");

    assert_eq!(found.unwrap().reveal(), "a:b\\c");
    assert_eq!(on_socket.unwrap().reveal(), "s");
    assert!(passfile::lookup(text, &upstream, "x", "u").is_none());
}

#[test]
fn only_addresses_workers_and_state_resist_a_reload() {
    // A size must change without a restart; a socket cannot.
    let old = Bench::new().file(LEAST).load().unwrap();
    let same = Config { pool: Pool { size: 3, ..old.pool.clone() }, ..old.clone() };
    let other = Config {
        workers: 9,
        state_dir: "/x".into(),
        admin: Admin { address: ([127, 0, 0, 1], 1).into(), ..old.admin.clone() },
        listen: Listen { addresses: Vec::new(), ..old.listen.clone() },
        ..old.clone()
    };

    assert!(reload_refusals(&old, &same).is_empty());
    assert_eq!(reload_refusals(&old, &other).len(), 4);
}

#[test]
fn workers_that_nobody_wrote_are_no_reason_to_refuse_a_reload() {
    // A quota of processors that was changed while we run would lock out every reload from then on.
    let mut old = Bench::new().file(LEAST).load().unwrap();
    old.workers += 1;
    let reloaded = |file: &str| {
        let mut new = Bench::new().file(file).load().unwrap();
        new.keep_unwritten(&old);
        new
    };

    assert_eq!(reloaded(LEAST).workers, old.workers);
    assert!(reload_refusals(&old, &reloaded(LEAST)).is_empty());
    assert_eq!(reload_refusals(&old, &reloaded(&with("workers = 77"))).len(), 1);
}

#[test]
fn a_mistyped_webhook_is_told_how_to_write_one() {
    // A message that neither shows the value nor the form leaves the operator to guess.
    for mistake in ["\"https://x/\"", "[\"https://x/\"]", "[{ url = \"https://x/\" }, \"https://x/\"]"] {
        let errors = Bench::new().file(&with(&format!("alerts.webhooks = {mistake}"))).errors();

        assert!(errors.contains("tidegate.toml:3: alerts.webhooks: "), "{errors}");
        assert!(errors.contains("write webhooks = [{ url ="), "{errors}");
    }
    let errors =
        Bench::new().file(&with("alerts.webhooks = [{ url = \"https://x/\", kind = \"slak\" }]")).errors();
    assert!(errors.contains("write json, slack, pagerduty or alertmanager"), "{errors}");
}

#[test]
fn the_write_lane_always_has_a_slot_and_never_too_many() {
    // Binary rounding would give 28 of 100 at 0.29; a pool of one would give none.
    let pool = Bench::new().file(LEAST).load().unwrap().pool;
    for (size, write_share, slots) in
        [(20, 0.7, 14), (1, 0.7, 1), (100, 0.29, 29), (10, 1.0, 10), (3, 0.5, 1)]
    {
        assert_eq!(Pool { size, write_share, ..pool.clone() }.write_slots(), slots, "{size} × {write_share}");
    }
}

#[test]
fn workers_grow_with_the_cores() {
    // One up to four cores, then one per four.
    let workers = [1, 4, 7, 8, 12, 64].map(tree::default_workers);

    assert_eq!(workers, [1, 1, 1, 2, 3, 16]);
}

#[test]
fn every_prefix_of_a_file_is_refused_or_loads() {
    // A file that is read while it is written is such a prefix; none may panic or load without upstreams.
    let text = SAMPLE.replace("auth = \"scram\"", "auth = \"trust\"");
    let environment = BTreeMap::new();
    let nothing = Sources::default();
    for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)) {
        let Ok(file) = File::parse(Path::new("x"), &text[..end]) else { continue };
        let mut layers = Layers::new(Some(file), &environment);

        let config = sources::load_layers(&nothing, &mut layers);

        let whole = !config.cluster.upstreams.is_empty() && !config.listen.addresses.is_empty();
        assert!(whole || !layers.problems.is_empty(), "{}", &text[..end]);
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in ".{0,200}") {
        // Nothing that an operator can type may end the process.
        let environment = BTreeMap::new();
        let _ = upstream_url::parse(&text);
        let _ = address::upstream(&text, Path::new("/x"));
        let _ = address::listen(std::slice::from_ref(&text), Path::new("/x"));
        let _ = passfile::lookup(&text, &UpstreamAddress::Unix("/".into()), "d", "u");
        if let Ok(file) = File::parse(Path::new("x"), &text) {
            sources::load_layers(&Sources::default(), &mut Layers::new(Some(file), &environment));
        }
    }

    #[test]
    fn no_value_of_a_key_panics(key in 0_usize..80, value in "[-0-9a-z:./\"\\[\\]{}, ]{0,20}") {
        // As above, but past the syntax: keys that exist with values that do not fit.
        let keys: Vec<_> = SAMPLE.lines().filter_map(|line| line.trim_start_matches("# ").split_once(" = ")).collect();
        let section = ["pool", "listen", "cluster", "timeouts", "breaker"][key % 5];
        let text = format!("[{section}]\n{} = {value}\n", keys[key % keys.len()].0);
        let environment = BTreeMap::new();
        if let Ok(file) = File::parse(Path::new("x"), &text) {
            sources::load_layers(&Sources::default(), &mut Layers::new(Some(file), &environment));
        }
    }
}

#[test]
fn patronis_addresses_are_read_and_what_is_none_is_refused_without_being_shown() {
    // A member that is silently left out is missing when the others are down; a URL may hold a password.
    let good =
        with("cluster.roles = \"patroni\"\ncluster.patroni = [\"http://10.0.0.1\", \"http://b:9000\"]");
    let config = Bench::new().file(&good).load().unwrap();
    assert_eq!(
        config.cluster.patroni,
        ["http://10.0.0.1:8008", "http://b:9000"].map(|url| url.parse().unwrap())
    );

    let bad = with("cluster.patroni = \"https://me:secret@10.0.0.1\"");
    let errors = Bench::new().file(&bad).errors();
    assert!(errors.contains("cluster.patroni") && errors.contains("only http://"), "{errors}");
    assert!(!errors.contains("secret"), "{errors}");
}

#[test]
fn guards_that_are_off_are_pointed_out() {
    // Left in the file it would let the next torn list through.
    let config = Bench::new().file(&with("cluster.force = true")).load().unwrap();

    assert!(config.cluster.force);
    assert!(
        config.warnings.iter().any(|warning| warning.contains("guards are off")),
        "{:?}",
        config.warnings
    );
}

#[test]
fn what_a_session_sees_of_its_own_writes_is_chosen_by_name() {
    // A wrong word taken for the default would hand out stale rows where somebody asked for fresh ones.
    let config =
        Bench::new().file(&with("read.after_write = \"lsn\"\nread.after_write_for = \"1s\"")).load().unwrap();
    assert_eq!(config.read.after_write, AfterWrite::Lsn);
    assert_eq!(config.read.after_write_for, Duration::from_secs(1));

    for wrong in ["read.after_write = \"standby\"", "read.after_write_for = \"0\"", "read.max_lag = \"0\""] {
        let key = wrong.split(' ').next().unwrap();
        assert!(Bench::new().file(&with(wrong)).errors().contains(key), "{wrong}");
    }
}
