//! Who may log in, by which proof; and that no secret is ever written down.

use std::fs;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use tidegate_chaos::cluster::{Node, NodeOptions, Programs, SecretKind};
use tidegate_tests::{
    Credentials, Frames, Message, PATIENCE, Problem, Proxy, ProxyOptions, ScriptedApp, Signal, wait_for,
};

use super::{TIDEGATE, some, trusting};

/// Role with a SCRAM secret.
const MODERN: Credentials<'static> =
    Credentials { user: "modern", password: "modern-Pa55word", database: "need_scram" };
/// Role with an md5 secret.
const OLD: Credentials<'static> = Credentials { user: "old", password: "old-Pa55word", database: "need_md5" };

/// A server that asks for another proof in each database. It ends with the process.
fn guarded() -> &'static Node {
    static GUARDED: OnceLock<Node> = OnceLock::new();
    GUARDED.get_or_init(|| {
        let options = NodeOptions::new(Programs::find().unwrap())
            .name("guarded")
            .hba("host need_scram all 127.0.0.1/32 scram-sha-256")
            .hba("host need_md5 all 127.0.0.1/32 md5")
            .hba("host need_password all 127.0.0.1/32 password")
            .hba("host need_trust all 127.0.0.1/32 trust")
            .hba("host all all 127.0.0.1/32 scram-sha-256");
        let node = Node::start(&options).unwrap();
        for database in ["need_scram", "need_md5", "need_password", "need_trust"] {
            node.sql(&format!("CREATE DATABASE {database}")).unwrap();
        }
        node.create_user(MODERN.user, MODERN.password, SecretKind::Scram).unwrap();
        node.create_user(OLD.user, OLD.password, SecretKind::Md5).unwrap();
        node.create_user("lookup", "lookup-Pa55word", SecretKind::Scram).unwrap();
        node.sql("ALTER ROLE lookup SUPERUSER").unwrap();
        node
    })
}

/// What the server keeps of a role's password.
fn kept_secret(user: &str) -> String {
    guarded().sql(&format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{user}'")).unwrap()
}

fn upstream() -> String {
    format!("127.0.0.1:{}", guarded().port())
}

/// A sidecar in front of the guarded server, with these users and secrets.
async fn guard(auth: &str, users: &[(&str, &str)]) -> Proxy {
    let lines: String = users.iter().map(|(user, secret)| line(user, secret)).collect();
    ProxyOptions::new(TIDEGATE)
        .config(&format!("listen.auth = \"{auth}\"\nlisten.userlist = \"users\""))
        .file("users", &lines)
        .upstream(&upstream())
        .start()
        .await
}

fn line(user: &str, secret: &str) -> String {
    format!("\"{user}\" \"{secret}\"\n")
}

async fn log_in(proxy: &Proxy, who: Credentials<'_>) -> Result<ScriptedApp, Problem> {
    let mut app = ScriptedApp::connect(proxy.address()).await;
    app.log_in(who).await.map(|_| app)
}

/// Logs in and asks the database who we are.
async fn works(proxy: &Proxy, who: Credentials<'_>, what: &str) {
    let mut app = log_in(proxy, who).await.unwrap_or_else(|problem| panic!("{what}: {problem:?}"));
    let reply = app.query("SELECT current_user, current_database()").await;
    assert_eq!(reply.rows(), [[some(who.user), some(who.database)]], "{what}: {:?}", reply.error());
}

/// Which secret the userlist has.
#[derive(Debug, Clone, Copy)]
enum Kept {
    Plain,
    AsServer,
}

#[tokio::test]
async fn secrets_of_every_kind_open_the_backends_that_they_can() {
    // A proof on the app's side is worth nothing unless the backend accepts what we have for it. The SCRAM
    // rows with the server's secret work without any password: the key comes from the app's own proof.
    let rows: [(&str, Credentials<'static>, Kept, &[&str]); 11] = [
        ("scram", MODERN, Kept::Plain, &["need_scram", "need_md5", "need_password", "need_trust"]),
        ("scram", OLD, Kept::Plain, &["need_md5", "need_password", "need_trust"]),
        ("scram", MODERN, Kept::AsServer, &["need_scram", "need_md5", "need_trust"]),
        ("md5", MODERN, Kept::Plain, &["need_scram", "need_md5", "need_password", "need_trust"]),
        ("md5", OLD, Kept::Plain, &["need_md5", "need_password", "need_trust"]),
        ("md5", MODERN, Kept::AsServer, &["need_scram", "need_md5", "need_trust"]),
        ("md5", OLD, Kept::AsServer, &["need_md5", "need_trust"]),
        ("password", MODERN, Kept::Plain, &["need_scram", "need_md5", "need_password", "need_trust"]),
        ("password", MODERN, Kept::AsServer, &["need_trust"]),
        ("password", OLD, Kept::AsServer, &["need_md5", "need_trust"]),
        ("trust", MODERN, Kept::Plain, &["need_scram", "need_md5", "need_password", "need_trust"]),
    ];

    for (auth, user, kept, databases) in rows {
        let secret = match kept {
            Kept::Plain => user.password.to_owned(),
            Kept::AsServer => kept_secret(user.user),
        };
        let proxy = guard(auth, &[(user.user, &secret)]).await;
        for database in databases {
            let what = format!("auth {auth}, {kept:?} secret of {}, {database}", user.user);
            // Twice: the second time the backend is there already, and the proof is asked for all the same.
            works(&proxy, Credentials { database, ..user }, &what).await;
            works(&proxy, Credentials { database, ..user }, &what).await;
            let wrong = Credentials { password: "wrong", database, ..user };
            if auth != "trust" {
                let refused = log_in(&proxy, wrong).await.err().unwrap_or_else(|| panic!("{what}: let in"));
                assert_eq!((refused.severity(), refused.code()), ("FATAL", "28P01"), "{what}");
            }
        }
    }
}

/// The first thing that a startup packet is answered with: the number of the authentication request.
async fn asked(proxy: &Proxy, user: &str) -> u32 {
    let mut app = ScriptedApp::connect(proxy.address()).await;
    app.send(Frames::new().startup(&[("user", user), ("database", "need_trust")])).await;
    let message = app.expect(b'R').await;
    u32::from_be_bytes(*message.body.first_chunk().unwrap())
}

#[tokio::test]
async fn each_method_asks_for_its_own_proof() {
    // A weaker question than configured gives secrets away. Numbers: `AUTH_REQ_*` in `libpq/protocol.h`.
    let (ok, password, md5, sasl) = (0, 3, 5, 10);
    let rows = [
        ("trust", "modern", ok),
        ("password", "modern", password),
        ("password", "nobody", password),
        ("md5", "old", md5),
        ("md5", "plain", md5),
        ("md5", "modern", sasl),
        ("scram", "modern", sasl),
        ("scram", "plain", sasl),
        ("scram", "nobody", sasl),
    ];

    for (auth, user, expected) in rows {
        let (modern, old) = (kept_secret("modern"), kept_secret("old"));
        let proxy = guard(auth, &[("modern", &modern), ("old", &old), ("plain", "plain")]).await;

        assert_eq!(asked(&proxy, user).await, expected, "auth {auth}, user {user}");
    }
}

/// What a SCRAM login with a wrong password shows to whoever tries.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    tags: String,
    salt: String,
    salt_length: usize,
    iterations: String,
    problem: Problem,
}

async fn tried(proxy: &Proxy, user: &str) -> Shown {
    let mut app = ScriptedApp::connect(proxy.address()).await;
    app.send(Frames::new().startup(&[("user", user), ("database", "need_scram")])).await;
    let mut scram = ScramSha256::new(b"wrong", ChannelBinding::unsupported());
    let offer = app.expect(b'R').await;
    let mut first = [SCRAM_SHA_256.as_bytes(), &[0]].concat();
    first.extend(u32::try_from(scram.message().len()).unwrap().to_be_bytes());
    first.extend(scram.message());
    app.send(Frames::new().password(&first)).await;
    let challenge = app.expect(b'R').await;
    scram.update(&challenge.body[4..]).unwrap();
    app.send(Frames::new().password(scram.message())).await;
    let end = app.expect_end().await;

    let text = String::from_utf8_lossy(&challenge.body[4..]).into_owned();
    let attribute = |letter: &str| {
        let found = text.split(',').find_map(|part| part.strip_prefix(letter));
        found.unwrap_or_else(|| panic!("no {letter} in {text}")).to_owned()
    };
    let problem = end.last().and_then(Message::problem).unwrap();
    let tags = [&[offer, challenge], &end[..]].concat();
    Shown {
        tags: tags.iter().map(|message| char::from(message.tag)).collect(),
        salt: attribute("s="),
        salt_length: attribute("s=").len(),
        iterations: attribute("i="),
        // The name was the app's own.
        problem: Problem(
            problem.0.into_iter().map(|(key, text)| (key, text.replace(user, "USER"))).collect(),
        ),
    }
}

#[tokio::test]
async fn unknown_users_cannot_be_told_from_wrong_passwords() {
    // Salt, iterations, length of the exchange, error: any difference, also between two attempts, is a probe
    // for names. Roles with a secret as PostgreSQL keeps it are the measure.
    let proxy = guard("scram", &[("modern", &kept_secret("modern")), ("plain", "plain")]).await;
    let known = [tried(&proxy, "modern").await, tried(&proxy, "modern").await];

    for user in ["nobody", "plain", "somebody"] {
        let unknown = [tried(&proxy, user).await, tried(&proxy, user).await];

        assert_eq!(unknown[0].tags, known[0].tags, "{user}");
        assert_eq!(unknown[0].problem, known[0].problem, "{user}");
        assert_eq!(unknown[0].problem.code(), "28P01", "{user}");
        assert_eq!(unknown[0].salt_length, known[0].salt_length, "{user}");
        assert_eq!(unknown[0].iterations, known[0].iterations, "{user}");
        assert_eq!(unknown[0].salt == unknown[1].salt, known[0].salt == known[1].salt, "{user}");
        assert_ne!(unknown[0].salt, known[0].salt, "{user}");
    }
}

/// A SCRAM secret as PostgreSQL keeps it, of nobody's password.
fn foreign_secret(iterations: u32) -> String {
    let key = format!("{}=", "A".repeat(43));
    format!("SCRAM-SHA-256${iterations}:c2FsdHNhbHRzYWx0c2E=${key}:{key}")
}

#[tokio::test]
async fn unknown_users_are_asked_what_most_users_are() {
    // The kind of question, and the iterations in it, told whoever tried which names exist.
    let (slow, usual) = (foreign_secret(10_000), foreign_secret(4096));
    let listed = [("a", slow.as_str()), ("b", &slow), ("c", &usual), ("d", "plain")];
    let scram = guard("scram", &listed).await;
    let md5 = guard("md5", &listed).await;
    let old = guard("md5", &[("a", &slow), ("d", "plain"), ("old", &kept_secret("old"))]).await;

    assert_eq!(tried(&scram, "a").await.iterations, "10000");
    assert_eq!(tried(&scram, "nobody").await.iterations, "10000");
    assert_eq!([asked(&md5, "a").await, asked(&md5, "nobody").await], [10, 10], "most have SCRAM secrets");
    assert_eq!([asked(&old, "old").await, asked(&old, "nobody").await], [5, 5], "most have others");
}

#[tokio::test]
async fn with_a_query_unknown_users_are_asked_what_postgresql_would_ask() {
    // Who is in the userlist is the exception there: the one that runs the query, with its password.
    let config = "listen.auth = \"md5\"\nlisten.userlist = \"users\"\n\
                  listen.auth_query = \"SELECT usename, passwd FROM pg_shadow WHERE usename = $1\"\n\
                  cluster.user = \"lookup\"\ncluster.password = \"lookup-Pa55word\"";
    let options =
        ProxyOptions::new(TIDEGATE).config(config).file("users", &line("lookup", "lookup-Pa55word"));
    let proxy = options.upstream(&upstream()).start().await;

    assert_eq!([asked(&proxy, "modern").await, asked(&proxy, "nobody").await], [10, 10]);
}

#[tokio::test]
async fn backends_of_users_that_are_trusted_are_opened_with_what_the_query_finds() {
    // Nothing is asked of the application, but PostgreSQL asks us: users that are in no file could not be served.
    let config = "listen.auth = \"trust\"\ncluster.user = \"lookup\"\ncluster.password = \"lookup-Pa55word\"\n\
                  listen.auth_query = \"SELECT usename, passwd FROM pg_shadow WHERE usename = $1\"";
    let proxy = ProxyOptions::new(TIDEGATE).config(config).upstream(&upstream()).start().await;

    works(&proxy, OLD, "a secret of the query").await;
    works(&proxy, Credentials { database: "need_trust", ..MODERN }, "none is needed").await;
}

#[tokio::test]
async fn who_is_trusted_gets_in_although_the_query_for_secrets_takes_too_long() {
    // Each question waits for one of four places, and who has one for a second: those at the end of that queue were late for
    // their login, although nothing was to be proved.
    let config = "listen.auth = \"trust\"\ncluster.user = \"lookup\"\ncluster.password = \"lookup-Pa55word\"\n\
                  timeouts.login = \"5s\"\n\
                  listen.auth_query = \"SELECT usename, pg_sleep(60)::text FROM pg_user WHERE usename = $1\"";
    let proxy = ProxyOptions::new(TIDEGATE).config(config).upstream(&upstream()).start().await;
    let who = Credentials { database: "need_trust", ..MODERN };

    let logins = (0..60).map(|_| log_in(&proxy, who));
    for login in futures_util::future::join_all(logins).await {
        assert_eq!(login.err().map(|problem| problem.code().to_owned()), None);
    }
}

#[tokio::test]
async fn to_refuse_a_password_of_an_unknown_user_takes_as_long_as_of_a_known_one() {
    // One was hashed and the other was not: milliseconds against none, which a clock tells apart. So many iterations
    // take so long that no noise hides it.
    let proxy = guard("password", &[("known", &foreign_secret(500_000))]).await;
    let took = async |user| {
        let begun = Instant::now();
        let who = Credentials { user, password: "wrong", database: "need_trust" };
        assert_eq!(log_in(&proxy, who).await.err().unwrap().code(), "28P01");
        begun.elapsed()
    };

    let mut known = Duration::MAX;
    let mut unknown = Duration::MAX;
    for _ in 0..3 {
        known = known.min(took("known").await);
        unknown = unknown.min(took("unknown").await);
    }

    assert!(unknown * 4 > known, "{unknown:?} instead of {known:?}");
}

#[tokio::test]
async fn unknown_users_fail_alike_with_every_method() {
    // The same SQLSTATE and the same words, name aside.
    for auth in ["scram", "md5", "password"] {
        let proxy = guard(auth, &[("modern", MODERN.password)]).await;
        let mut problems = Vec::new();
        for user in ["modern", "nobody"] {
            let who = Credentials { user, password: "wrong", database: "need_scram" };
            let problem = log_in(&proxy, who).await.err().unwrap();
            problems.push((problem.code().to_owned(), problem.message().replace(user, "USER")));
        }

        assert_eq!(problems[0], problems[1], "auth {auth}");
        assert_eq!(problems[0].0, "28P01", "auth {auth}");
    }
}

#[tokio::test]
async fn an_empty_password_opens_nothing() {
    // A secret that is missing or empty must not match a password that is.
    for auth in ["scram", "md5", "password"] {
        let proxy = guard(auth, &[("modern", ""), ("old", OLD.password)]).await;

        for user in ["modern", "old", "nobody"] {
            let who = Credentials { user, password: "", database: "need_trust" };
            let problem =
                log_in(&proxy, who).await.err().unwrap_or_else(|| panic!("auth {auth}: {user} is in"));
            assert!(problem.code().starts_with("28"), "auth {auth}, {user}: {problem:?}");
        }
    }
}

#[tokio::test]
async fn names_and_passwords_may_have_any_letters() {
    // Quotes are doubled in the userlist, and SCRAM escapes and normalises: each is a place to get it wrong.
    let (user, password) = ("we\"ird = ,\u{e9}", "p\"a, =\u{2163}\u{e9}\\");
    let known = guarded().sql(&format!("SELECT 1 FROM pg_roles WHERE rolname = '{user}'")).unwrap();
    if known.is_empty() {
        guarded().create_user(user, password, SecretKind::Scram).unwrap();
    }
    for auth in ["scram", "password"] {
        let proxy = guard(auth, &[(&user.replace('"', "\"\""), &password.replace('"', "\"\""))]).await;

        works(&proxy, Credentials { user, password, database: "need_scram" }, auth).await;
    }
}

/// A sidecar that looks secrets up in the database.
async fn looking_up() -> Proxy {
    let config = "listen.auth_query = \"SELECT usename, passwd FROM pg_shadow WHERE usename = $1\"\n\
                  cluster.user = \"lookup\"\ncluster.password = \"lookup-Pa55word\"";
    ProxyOptions::new(TIDEGATE).config(config).upstream(&upstream()).start().await
}

#[tokio::test]
async fn secrets_may_come_from_a_query() {
    // Nobody is in a userlist: the server's own SCRAM secret, fetched by another user, does for both sides.
    let proxy = looking_up().await;
    let nobody = Credentials { user: "nobody", ..MODERN };
    let injected = Credentials { user: "modern' OR '1'='1", ..MODERN };

    works(&proxy, MODERN, "by query").await;
    works(&proxy, Credentials { database: "need_trust", ..MODERN }, "by query").await;

    for who in [Credentials { password: "wrong", ..MODERN }, nobody, injected] {
        let refused = log_in(&proxy, who).await.err().unwrap();
        assert_eq!((refused.severity(), refused.code()), ("FATAL", "28P01"), "{}", who.user);
    }
}

#[tokio::test]
async fn a_changed_password_is_found_by_the_query() {
    // A cache without end would keep the old one valid.
    let proxy = looking_up().await;
    let name = format!("changing{}", std::process::id());
    guarded().create_user(&name, "first", SecretKind::Scram).unwrap();
    let first = Credentials { user: &name, password: "first", database: "need_scram" };
    let second = Credentials { password: "second", ..first };
    works(&proxy, first, "before").await;

    guarded().sql(&format!("ALTER ROLE {name} PASSWORD 'second'")).unwrap();
    let _session = wait_for(PATIENCE, "the new password", async || log_in(&proxy, second).await.ok()).await;

    works(&proxy, second, "after").await;
    assert_eq!(log_in(&proxy, first).await.err().unwrap().code(), "28P01");
}

#[tokio::test]
async fn the_userlist_goes_before_the_query() {
    // As in PgBouncer: whoever is listed is not looked up.
    let config = "listen.userlist = \"users\"\n\
                  listen.auth_query = \"SELECT usename, passwd FROM pg_shadow WHERE usename = $1\"\n\
                  cluster.user = \"lookup\"\ncluster.password = \"lookup-Pa55word\"";
    let options = ProxyOptions::new(TIDEGATE).config(config).file("users", &line("modern", "listed"));
    let proxy = options.upstream(&upstream()).start().await;
    let listed = Credentials { password: "listed", database: "need_trust", ..MODERN };

    works(&proxy, listed, "the listed password").await;

    assert_eq!(log_in(&proxy, MODERN).await.err().unwrap().code(), "28P01");
}

#[tokio::test]
async fn a_reload_reads_the_userlist_again() {
    // Rotated passwords must count without a restart; sessions that are there stay.
    let proxy = guard("scram", &[("modern", MODERN.password)]).await;
    let mut session = log_in(&proxy, MODERN).await.unwrap();
    let renamed = Credentials { database: "need_trust", password: "rotated", ..MODERN };

    fs::write(proxy.dir().join("users"), line("modern", "rotated")).unwrap();
    proxy.signal(Signal::HUP);
    wait_for(PATIENCE, "the new password", async || log_in(&proxy, renamed).await.ok()).await;

    assert_eq!(log_in(&proxy, MODERN).await.err().unwrap().code(), "28P01");
    assert_eq!(session.query("SELECT 1").await.value(), some("1"));
}

#[tokio::test]
async fn a_secret_that_the_database_refuses_is_told_to_the_app() {
    // Good for us, stale for PostgreSQL: an error of class 28, soon, and a sidecar that goes on.
    let proxy = guard("scram", &[("modern", "stale"), ("old", OLD.password)]).await;
    let stale = Credentials { password: "stale", ..MODERN };

    let mut app = ScriptedApp::connect(proxy.address()).await;
    let code = match app.log_in(stale).await {
        Err(problem) => problem.code().to_owned(),
        Ok(_) => app.query("SELECT 1").await.error_code(),
    };

    assert!(code.starts_with("28"), "{code}");
    works(&proxy, OLD, "another user").await;
}

#[tokio::test]
async fn one_user_s_backend_serves_no_other_user() {
    // Pools are per user: current_user of a shared backend would be somebody else's.
    let proxy = guard("scram", &[("modern", MODERN.password), ("old", OLD.password)]).await;
    let old = Credentials { database: "need_trust", ..OLD };
    let modern = Credentials { database: "need_trust", ..MODERN };

    for _ in 0..5 {
        works(&proxy, old, "old").await;
        works(&proxy, modern, "modern").await;
    }
}

#[tokio::test]
async fn trust_is_refused_where_others_can_reach_us() {
    // It would let the network in. Loopback and unix sockets are fine.
    let rows = [
        ("\"0.0.0.0:7001\"", 2),
        ("\"[::]:7001\"", 2),
        ("\"192.0.2.1:7001\"", 2),
        ("[\"127.0.0.1:7001\", \"192.0.2.1:7001\"]", 2),
        ("\"127.0.0.1:7001\"", 0),
        ("\"[::1]:7001\"", 0),
        ("[\"127.0.0.2:7001\", \"unix:@DIR@\"]", 0),
    ];
    for (addresses, code) in rows {
        let settings = format!("listen.address = {addresses}\ncluster.upstreams = [\"127.0.0.1:1\"]");

        let ended = trusting(&settings).check().await;

        assert_eq!(ended.status.code(), Some(code), "{addresses}: {}", ended.log);
        assert_eq!(ended.log.contains("trust"), code == 2, "{addresses}: {}", ended.log);
    }
}

#[tokio::test]
async fn no_secret_is_ever_logged() {
    // Good and bad logins of every kind, a broken userlist, a reload, a dump of the state, at the most talkative level.
    let kept = [kept_secret("modern"), kept_secret("old")];
    let secrets = [MODERN.password, OLD.password, "lookup-Pa55word", "wr0ng-Pa55word", "url-Pa55word"];
    let sql_text = "SELECT 'text-of-a-statement'";
    for auth in ["scram", "md5", "password"] {
        let config = format!(
            "listen.auth = \"{auth}\"\nlisten.userlist = \"users\"\n\
             listen.auth_query = \"SELECT usename, passwd FROM pg_shadow WHERE usename = $1\""
        );
        let users = line("modern", &kept[0]) + &line("old", OLD.password) + &line("stale", "wr0ng-Pa55word");
        let proxy = ProxyOptions::new(TIDEGATE)
            .config(&config)
            .file("users", &users)
            .environment("TIDEGATE_LOG", "trace")
            .environment("TIDEGATE_CLUSTER_PASSWORD", "lookup-Pa55word")
            .upstream(&format!("postgres://lookup@{}/postgres", upstream()))
            .start()
            .await;

        for who in [MODERN, OLD, Credentials { user: "lookup", password: "lookup-Pa55word", ..MODERN }] {
            for who in [who, Credentials { password: "wr0ng-Pa55word", ..who }] {
                if let Ok(mut app) = log_in(&proxy, who).await {
                    app.query(sql_text).await;
                    app.query("SELEC 'text-of-a-statement'").await;
                    app.exchange(
                        Frames::new().unnamed("SELECT $1::text", &[Some("text-of-a-statement")]).sync(),
                    )
                    .await;
                }
            }
        }
        let stale = Credentials { user: "stale", password: "wr0ng-Pa55word", ..MODERN };
        drop(log_in(&proxy, stale).await);
        let before = proxy.log().len();
        fs::write(proxy.dir().join("users"), "\"modern\" \"url-Pa55word\nnonsense").unwrap();
        proxy.signal(Signal::HUP);
        wait_for(Duration::from_secs(10), "the reload in the log", async || {
            proxy.log()[before..].contains("users").then_some(())
        })
        .await;
        let told = proxy.log() + &proxy.get("/status").await.body + &proxy.get("/metrics").await.body;

        for secret in secrets.iter().copied().chain(kept.iter().map(String::as_str)) {
            assert!(!told.contains(secret), "auth {auth}: {secret} is told:\n{told}");
        }
        assert!(!told.contains("text-of-a-statement"), "auth {auth}: SQL is told:\n{told}");
    }
}

#[tokio::test]
async fn a_password_in_an_upstream_url_is_not_told() {
    // Neither when it is good nor when the URL is refused, and not in the list of settings.
    let good = format!("postgres://lookup:lookup-Pa55word@{}/postgres", upstream());
    let proxy = ProxyOptions::new(TIDEGATE).upstream(&good).start().await;
    let bad = ProxyOptions::new(TIDEGATE).upstream("postgres://u:url-Pa55word@host:notaport/db");

    let mut app =
        log_in(&proxy, Credentials { user: "lookup", password: "", database: "need_scram" }).await.unwrap();
    let ended = bad.run_to_end().await;

    assert_eq!(app.query("SELECT current_user").await.value(), some("lookup"));
    assert!(!proxy.log().contains("lookup-Pa55word"), "{}", proxy.log());
    assert_eq!(ended.status.code(), Some(2), "{}", ended.log);
    assert!(!ended.log.contains("url-Pa55word"), "{}", ended.log);
}
