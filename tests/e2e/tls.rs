//! TLS towards applications and towards PostgreSQL.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tidegate_chaos::cluster::{Node, NodeOptions, Programs, SecretKind, TlsFiles};
use tidegate_tests::{
    Bench, Credentials, Frames, Greeting, Message, PATIENCE, Problem, Proxy, ProxyOptions, Received,
    ScriptedApp, ScriptedServer, Signal, shared_postgres, wait_for,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{TIDEGATE, bench, some, trusting};

const POSTGRES: Credentials<'static> = Credentials { user: "postgres", password: "", database: "postgres" };
const ALPN: &[&[u8]] = &[b"postgresql"];

// ---- certificates ----

/// A certificate authority of a test.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
struct Pair {
    cert: String,
    key: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for these host names and addresses.
    fn certificate(&self, common_name: &str, hosts: &[&str]) -> Pair {
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap().pem();
        Pair { cert, key: key.serialize_pem() }
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(der(&self.pem)).unwrap();
        roots
    }
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

fn key_der(pair: &Pair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap()
}

fn ring() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// How an application does TLS.
fn client(authority: &Authority, alpn: &[&[u8]], identity: Option<&Pair>) -> TlsConnector {
    let builder = ClientConfig::builder_with_provider(ring()).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(authority.roots());
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(pair) => builder.with_client_auth_cert(vec![der(&pair.cert)], key_der(pair)).unwrap(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

fn localhost() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

// ---- applications ----

/// A trusting sidecar with this certificate.
fn with_certificate(pair: &Pair, mode: &str, settings: &str) -> ProxyOptions {
    let tls = "listen.tls_cert = \"server.crt\"\nlisten.tls_key = \"server.key\"";
    trusting(&format!("listen.tls = \"{mode}\"\n{tls}\n{settings}"))
        .file("server.crt", &pair.cert)
        .file("server.key", &pair.key)
}

async fn tls_bench(authority: &Authority, mode: &str, settings: &str) -> Bench {
    Bench::start_with(with_certificate(&authority.certificate("tidegate", &["localhost"]), mode, settings))
        .await
}

/// TLS by `SSLRequest`: logs in and gives the session, or nothing when the connection ended on the way.
async fn by_request(proxy: &Proxy, connector: &TlsConnector) -> Option<ScriptedApp> {
    let mut app = ScriptedApp::connect(proxy.address()).await;
    assert_eq!(app.ssl_request().await, Some(b'S'));
    let stream = connector.connect(localhost(), app.into_stream()).await.ok()?;
    log_in_over(ScriptedApp::over(stream)).await
}

/// TLS from the first byte.
async fn directly(proxy: &Proxy, connector: &TlsConnector) -> Option<ScriptedApp> {
    let stream = handshake(proxy, connector).await?;
    log_in_over(ScriptedApp::over(stream)).await
}

async fn handshake(proxy: &Proxy, connector: &TlsConnector) -> Option<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(proxy.address()).await.unwrap();
    connector.connect(localhost(), stream).await.ok()
}

/// With TLS 1.3 the client may believe in a session that the server is about to refuse: only the login shows.
async fn log_in_over(mut app: ScriptedApp) -> Option<ScriptedApp> {
    let startup = Frames::new().startup(&[("user", "postgres"), ("database", "postgres")]);
    app.try_send(startup).await.ok()?;
    loop {
        match app.receive_within(PATIENCE).await {
            Received::Message(message) if message.tag == b'Z' => return Some(app),
            Received::Message(message) => println!("{:?}", message.problem()),
            Received::Closed { .. } | Received::Reset(_) => return None,
            Received::Silence => panic!("neither a login nor an end"),
        }
    }
}

/// Who the sidecar says it is, by `SSLRequest`.
async fn shown_certificate(proxy: &Proxy, connector: &TlsConnector) -> CertificateDer<'static> {
    let mut app = ScriptedApp::connect(proxy.address()).await;
    assert_eq!(app.ssl_request().await, Some(b'S'));
    let stream = connector.connect(localhost(), app.into_stream()).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

#[tokio::test]
async fn applications_may_ask_for_tls() {
    // The certificate is checked by the client. Plain sessions stay possible with "allow".
    let authority = Authority::new("apps");
    let bench = tls_bench(&authority, "allow", "").await;

    for alpn in [&[][..], ALPN] {
        let mut app = by_request(&bench.proxy, &client(&authority, alpn, None)).await.unwrap();
        assert_eq!(app.query("SELECT 1").await.value(), some("1"));
        // Larger than a TLS record, both ways.
        let text = "x".repeat(300_000);
        assert_eq!(app.query(&format!("SELECT '{text}'")).await.value(), Some(text));
        app.terminate().await;
    }
    let (mut plain, _) = bench.app().await;
    assert_eq!(plain.query("SELECT 1").await.value(), some("1"));
}

#[tokio::test]
async fn a_certificate_alone_allows_tls() {
    // "allow" is the default as soon as there is a certificate; who installs one expects it to be used.
    let authority = Authority::new("apps");
    let pair = authority.certificate("tidegate", &["localhost"]);
    let options = trusting("listen.tls_cert = \"server.crt\"\nlisten.tls_key = \"server.key\"")
        .file("server.crt", &pair.cert)
        .file("server.key", &pair.key);
    let bench = Bench::start_with(options).await;

    assert!(by_request(&bench.proxy, &client(&authority, ALPN, None)).await.is_some());
}

#[tokio::test]
async fn direct_tls_needs_alpn() {
    // Without it a browser could be made to speak to a database (ALPACA); PostgreSQL 17 refuses, so do we.
    let authority = Authority::new("apps");
    let bench = tls_bench(&authority, "allow", "").await;

    let stream = handshake(&bench.proxy, &client(&authority, ALPN, None)).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"postgresql"[..]));
    let mut app = log_in_over(ScriptedApp::over(stream)).await.unwrap();
    assert_eq!(app.query("SELECT 1").await.value(), some("1"));

    let foreign: [&[&[u8]]; 3] = [&[], &[b"http/1.1"], &[b"h2", b"http/1.1"]];
    for alpn in foreign {
        let refused = directly(&bench.proxy, &client(&authority, alpn, None)).await;
        assert!(refused.is_none(), "{alpn:?} is let in");
    }
    // A foreign protocol in the list does not hurt.
    assert!(directly(&bench.proxy, &client(&authority, &[b"h2", b"postgresql"], None)).await.is_some());
}

#[tokio::test]
async fn without_a_certificate_tls_is_declined() {
    // 'N', and the session goes on in plain; direct TLS has no such answer and is closed.
    let authority = Authority::new("apps");
    let bench = bench("").await;

    let mut app = ScriptedApp::connect(bench.proxy.address()).await;
    assert_eq!(app.ssl_request().await, Some(b'N'));
    app.log_in(POSTGRES).await.unwrap();

    assert!(handshake(&bench.proxy, &client(&authority, ALPN, None)).await.is_none());
}

#[tokio::test]
async fn require_refuses_plain_tcp_and_lets_unix_sockets_in() {
    // A plain session would show passwords and data to the network; a unix socket is none.
    let authority = Authority::new("apps");
    let addresses = "listen.address = [\"@LISTEN@\", \"unix:@DIR@:6440\"]";
    let bench = tls_bench(&authority, "require", addresses).await;
    let mut plain = ScriptedApp::connect(bench.proxy.address()).await;
    let mut unix = ScriptedApp::connect_unix(&bench.proxy.dir().join(".s.PGSQL.6440")).await;

    let problem = plain.log_in(POSTGRES).await.unwrap_err();
    plain.expect_end().await;
    unix.log_in(POSTGRES).await.unwrap();

    assert_eq!((problem.severity(), problem.code()), ("FATAL", "28000"));
    assert_eq!(unix.query("SELECT 1").await.value(), some("1"));
    assert!(by_request(&bench.proxy, &client(&authority, ALPN, None)).await.is_some());
    assert!(directly(&bench.proxy, &client(&authority, ALPN, None)).await.is_some());
}

#[tokio::test]
async fn bytes_sent_before_the_handshake_are_refused() {
    // CVE-2021-23222: what somebody in the middle puts behind SSLRequest must not count as said inside TLS.
    let authority = Authority::new("apps");
    let bench = tls_bench(&authority, "allow", "").await;
    let startup = Frames::new().startup(&[("user", "postgres"), ("database", "postgres")]);

    for injected in [startup, Frames::new().query("SELECT 'injected'"), Frames::new().raw(b"x")] {
        let mut stream = TcpStream::connect(bench.proxy.address()).await.unwrap();
        let request = Frames::new().ssl_request().raw(injected.as_ref());
        stream.write_all(request.as_ref()).await.unwrap();
        // The 'S' may or may not come; then the handshake of the victim, which must come to nothing.
        let mut first = [0];
        if stream.read(&mut first).await.is_ok_and(|count| count == 1) && first[0] == b'S' {
            if let Ok(stream) = client(&authority, ALPN, None).connect(localhost(), stream).await {
                assert!(log_in_over(ScriptedApp::over(stream)).await.is_none(), "{injected:?}");
            }
        } else {
            assert_ne!(first[0], b'N');
        }
    }
    assert!(by_request(&bench.proxy, &client(&authority, ALPN, None)).await.is_some());
}

#[tokio::test]
async fn tls_is_not_negotiated_inside_tls() {
    // PostgreSQL answers N to a second request; a second layer would only confuse.
    let authority = Authority::new("apps");
    let bench = tls_bench(&authority, "allow", "").await;
    let stream = handshake(&bench.proxy, &client(&authority, ALPN, None)).await.unwrap();
    let mut app = ScriptedApp::over(stream);

    app.send(Frames::new().ssl_request()).await;
    let mut stream = app.into_stream();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(2), stream.read_buf(&mut answer)).await;

    // Either N or the end, but no S.
    assert!(read.is_ok() && answer.first() != Some(&b'S'), "{read:?} {answer:?}");
}

#[tokio::test]
async fn client_certificates_are_demanded_and_checked() {
    // None, one of a stranger, one of ours: only the last may pass, by either kind of TLS.
    let (authority, clients, strangers) =
        (Authority::new("apps"), Authority::new("clients"), Authority::new("strangers"));
    let pair = authority.certificate("tidegate", &["localhost"]);
    let options = with_certificate(&pair, "require", "listen.tls_client_ca = \"clients.crt\"")
        .file("clients.crt", &clients.pem);
    let bench = Bench::start_with(options).await;
    let (good, bad) = (clients.certificate("app", &[]), strangers.certificate("app", &[]));

    for (identity, welcome) in [(None, false), (Some(&bad), false), (Some(&good), true)] {
        let connector = client(&authority, ALPN, identity);

        assert_eq!(by_request(&bench.proxy, &connector).await.is_some(), welcome);
        assert_eq!(directly(&bench.proxy, &connector).await.is_some(), welcome);
    }
}

#[tokio::test]
async fn a_reload_changes_the_certificate_for_new_sessions() {
    // Certificates expire every few weeks: a restart each time would end all sessions.
    let authority = Authority::new("apps");
    let (first, second) =
        (authority.certificate("one", &["localhost"]), authority.certificate("two", &["localhost"]));
    let bench = Bench::start_with(with_certificate(&first, "allow", "")).await;
    let connector = client(&authority, ALPN, None);
    let mut session = by_request(&bench.proxy, &connector).await.unwrap();
    assert_eq!(shown_certificate(&bench.proxy, &connector).await, der(&first.cert));

    fs::write(bench.proxy.dir().join("server.crt"), &second.cert).unwrap();
    fs::write(bench.proxy.dir().join("server.key"), &second.key).unwrap();
    bench.proxy.signal(Signal::HUP);
    wait_for(PATIENCE, "the new certificate", async || {
        (shown_certificate(&bench.proxy, &connector).await == der(&second.cert)).then_some(())
    })
    .await;

    assert_eq!(session.query("SELECT 1").await.value(), some("1"));
}

#[tokio::test]
async fn a_broken_certificate_keeps_the_old_one_and_is_logged() {
    // Half-written files happen: torn text, a key that does not fit, no file at all.
    let authority = Authority::new("apps");
    let pair = authority.certificate("one", &["localhost"]);
    let other = authority.certificate("two", &["localhost"]);
    let bench = Bench::start_with(with_certificate(&pair, "allow", "")).await;
    let connector = client(&authority, ALPN, None);
    let torn = &pair.cert[..pair.cert.len() / 2];

    for (what, cert) in [("torn", Some(torn)), ("another key's", Some(&other.cert)), ("absent", None)] {
        let path = bench.proxy.dir().join("server.crt");
        match cert {
            Some(text) => fs::write(&path, text).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let before = bench.proxy.log().len();
        bench.proxy.signal(Signal::HUP);
        wait_for(PATIENCE, &format!("{what}: a word about it"), async || {
            let told = bench.proxy.log()[before..].to_owned();
            (told.contains("server.crt") || told.contains("certificate")).then_some(())
        })
        .await;

        assert_eq!(shown_certificate(&bench.proxy, &connector).await, der(&pair.cert), "{what}");
    }
}

// ---- PostgreSQL ----

/// A server with TLS, for 127.0.0.1 unless told otherwise, and its folder of certificates.
fn tls_node(pair: &Pair, clients: Option<&Authority>, hba: &[&str]) -> Node {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name)
    };
    let files = TlsFiles {
        cert: file("crt", &pair.cert),
        key: file("key", &pair.key),
        client_ca: clients.map(|authority| file("ca", &authority.pem)),
    };
    let options = NodeOptions::new(Programs::find().unwrap()).name("tls").tls(files);
    Node::start(&hba.iter().fold(options, |options, line| options.hba(line))).unwrap()
}

/// A trusting sidecar in front of a port of 127.0.0.1.
async fn towards(port: u16, settings: &str, files: &[(&str, &str)]) -> Proxy {
    let mut options = trusting(settings).upstream(&format!("127.0.0.1:{port}"));
    for (name, text) in files {
        options = options.file(name, text);
    }
    options.start().await
}

/// Whether the backend's connection is encrypted, or what the app was told instead.
async fn encrypted(proxy: &Proxy, who: Credentials<'_>) -> Result<bool, Problem> {
    let mut app = ScriptedApp::connect(proxy.address()).await;
    let _: Greeting = app.log_in(who).await?;
    let reply = app.query("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await;
    match reply.error() {
        Some(problem) => Err(problem),
        None => Ok(reply.value() == some("t")),
    }
}

const WITH_CA: &str = "cluster.tls_ca = \"ca.crt\"\n";

#[tokio::test]
async fn every_mode_of_libpq_means_what_it_means_there() {
    // "SSL Mode Descriptions" in PostgreSQL's documentation of libpq; `None` is a refusal. Plain where TLS was
    // demanded, or TLS with a stranger, is the failure that matters.
    let (authority, strangers) = (Authority::new("servers"), Authority::new("strangers"));
    let here = authority.certificate("db", &["127.0.0.1"]);
    let elsewhere = authority.certificate("db", &["db.example"]);
    let open = tls_node(&here, None, &[]);
    let only_tls = tls_node(&here, None, &["hostssl all all 127.0.0.1/32 trust"]);
    let only_plain = tls_node(&here, None, &["hostnossl all all 127.0.0.1/32 trust"]);
    let misnamed = tls_node(&elsewhere, None, &[]);
    let old = tls_node(&here, None, &[]);
    for parameter in ["ssl_min_protocol_version = 'TLSv1'", "ssl_max_protocol_version = 'TLSv1.1'"] {
        old.sql(&format!("ALTER SYSTEM SET {parameter}")).unwrap();
    }
    old.sql("SELECT pg_reload_conf()").unwrap();
    let ports = [shared_postgres(), &open, &only_tls, &only_plain, &misnamed, &old].map(Node::port);
    let (plain, tls) = (Some(false), Some(true));
    // Columns: a server without TLS, with TLS, TLS only, plain only, TLS with the name of another host, TLS that is too
    // old for the handshake to succeed.
    let rows = [
        ("disable", "", [plain, plain, None, plain, plain, plain]),
        ("allow", "", [plain, plain, tls, plain, plain, plain]),
        ("prefer", "", [plain, tls, tls, plain, tls, plain]),
        ("require", "", [None, tls, tls, None, tls, None]),
        ("require", WITH_CA, [None, tls, tls, None, tls, None]),
        ("verify-ca", WITH_CA, [None, tls, tls, None, tls, None]),
        ("verify-full", WITH_CA, [None, tls, tls, None, None, None]),
    ];

    let mut differences = Vec::new();
    for (mode, ca, expected) in rows {
        for (port, expected) in ports.into_iter().zip(expected) {
            let settings = format!("cluster.tls = \"{mode}\"\n{ca}");
            let proxy = towards(port, &settings, &[("ca.crt", &authority.pem)]).await;
            let found = encrypted(&proxy, POSTGRES).await;

            if found.as_ref().ok().copied() != expected {
                let server = ports.iter().position(|other| *other == port);
                differences
                    .push(format!("{mode} {ca} to server {server:?}: {found:?} instead of {expected:?}"));
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    // An authority that did not sign it: checked as soon as one is given, but for `prefer` and `allow`.
    for mode in ["require", "verify-ca", "verify-full"] {
        let settings = format!("cluster.tls = \"{mode}\"\n{WITH_CA}");
        let proxy = towards(open.port(), &settings, &[("ca.crt", &strangers.pem)]).await;
        assert!(encrypted(&proxy, POSTGRES).await.is_err(), "{mode} believes a stranger");
    }
}

#[tokio::test]
async fn a_wrong_name_is_refused_with_a_reason() {
    // "Connection failed" alone sends the operator hunting; certificate and host belong into the log.
    let authority = Authority::new("servers");
    let node = tls_node(&authority.certificate("db", &["db.example"]), None, &[]);
    let settings = format!("cluster.tls = \"verify-full\"\n{WITH_CA}");
    let proxy = towards(node.port(), &settings, &[("ca.crt", &authority.pem)]).await;

    let problem = encrypted(&proxy, POSTGRES).await.unwrap_err();
    let told = format!("{problem:?}\n{}", proxy.log());

    assert!(told.contains("certificate"), "{told}");
    assert!(told.contains("127.0.0.1"), "{told}");
}

#[tokio::test]
async fn passwords_go_over_tls_to_a_real_server() {
    // SCRAM over TLS: PostgreSQL offers channel binding, and refuses a client that wrongly denies knowing it.
    let authority = Authority::new("servers");
    let hba = ["hostssl all all 127.0.0.1/32 scram-sha-256"];
    let node = tls_node(&authority.certificate("db", &["127.0.0.1"]), None, &hba);
    node.create_user("modern", "modern-Pa55word", SecretKind::Scram).unwrap();
    let kept = node.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'modern'").unwrap();
    let who = Credentials { user: "modern", password: "modern-Pa55word", database: "postgres" };

    for secret in ["modern-Pa55word", &kept] {
        let proxy = ProxyOptions::new(TIDEGATE)
            .config(&format!("listen.userlist = \"users\"\ncluster.tls = \"verify-full\"\n{WITH_CA}"))
            .file("users", &format!("\"modern\" \"{secret}\"\n"))
            .file("ca.crt", &authority.pem)
            .upstream(&format!("127.0.0.1:{}", node.port()))
            .start()
            .await;

        assert_eq!(encrypted(&proxy, who).await.ok(), Some(true));
    }
}

/// Accepts a backend's connection on a fake server, up to and with TLS and the startup packet.
async fn accept_tls(server: &ScriptedServer, pair: &Pair) -> ScriptedApp {
    let mut stream = loop {
        let mut stream = server.accept_raw().await;
        let mut request = [0; 8];
        stream.read_exact(&mut request).await.unwrap();
        // Others only knock.
        if request == Frames::new().ssl_request().as_ref() {
            break stream;
        }
        assert_eq!(&request, Frames::new().gss_enc_request().as_ref());
        stream.write_all(b"N").await.unwrap();
    };
    stream.write_all(b"S").await.unwrap();
    let config = ServerConfig::builder_with_provider(ring()).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth();
    let mut config = config.with_single_cert(vec![der(&pair.cert)], key_der(pair)).unwrap();
    config.alpn_protocols = ALPN.iter().map(|name| name.to_vec()).collect();
    let mut stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await.unwrap();
    let length = stream.read_u32().await.unwrap();
    let mut packet = vec![0; length as usize - 4];
    stream.read_exact(&mut packet).await.unwrap();
    // Frames have the same shape in both directions.
    ScriptedApp::over(stream)
}

#[tokio::test]
async fn scram_over_tls_binds_the_channel() {
    // Somebody in the middle with a valid certificate would otherwise relay the proof. A server that offers
    // PLUS must get PLUS, with the binding type of RFC 5929 in the header.
    let authority = Authority::new("servers");
    let pair = authority.certificate("db", &["127.0.0.1"]);
    let server = ScriptedServer::start().await;
    let port = server.address().port();
    let proxy = ProxyOptions::new(TIDEGATE)
        .config("listen.userlist = \"users\"\ncluster.tls = \"require\"")
        .file("users", "\"modern\" \"modern-Pa55word\"\n")
        .upstream(&format!("127.0.0.1:{port}"))
        .start()
        .await;
    let address = proxy.address();
    let app = tokio::spawn(async move {
        let who = Credentials { user: "modern", password: "modern-Pa55word", database: "postgres" };
        let mut app = ScriptedApp::connect(address).await;
        if app.log_in(who).await.is_ok() {
            let _ = app.try_send(Frames::new().query("SELECT 1")).await;
            let _ = app.receive_within(PATIENCE).await;
        }
    });

    let mut backend = accept_tls(&server, &pair).await;
    let offer = [&10_u32.to_be_bytes()[..], b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"].concat();
    backend.send(Frames::new().message(b'R', &offer)).await;
    let first: Message = backend.expect(b'p').await;
    app.abort();

    let text = String::from_utf8_lossy(&first.body).into_owned();
    assert!(text.starts_with("SCRAM-SHA-256-PLUS\0"), "{text:?}");
    assert!(text.contains("p=tls-server-end-point,,"), "{text:?}");
}

#[tokio::test]
async fn a_certificate_can_be_our_proof() {
    // `cert` in pg_hba.conf: the common name is the role, and without the certificate nobody gets in.
    let (authority, clients) = (Authority::new("servers"), Authority::new("clients"));
    let hba = ["hostssl all all 127.0.0.1/32 cert"];
    let node = tls_node(&authority.certificate("db", &["127.0.0.1"]), Some(&clients), &hba);
    node.sql("CREATE ROLE harbour LOGIN").unwrap();
    let identity = clients.certificate("harbour", &[]);
    let with = format!(
        "cluster.tls = \"verify-full\"\n{WITH_CA}cluster.tls_cert = \"our.crt\"\ncluster.tls_key = \"our.key\""
    );
    let without = format!("cluster.tls = \"verify-full\"\n{WITH_CA}");
    let files = [("ca.crt", authority.pem.as_str()), ("our.crt", &identity.cert), ("our.key", &identity.key)];
    let harbour = Credentials { user: "harbour", ..POSTGRES };

    let known = towards(node.port(), &with, &files).await;
    let unknown = towards(node.port(), &without, &files).await;

    assert_eq!(encrypted(&known, harbour).await.ok(), Some(true));
    assert!(encrypted(&known, POSTGRES).await.is_err());
    assert!(encrypted(&unknown, harbour).await.is_err());
}

#[tokio::test]
async fn unix_sockets_are_never_encrypted() {
    // PostgreSQL has no TLS on them: asking would fail every connection, as libpq knows.
    let node = shared_postgres();
    let socket: &Path = node.socket_dir();
    for mode in ["prefer", "allow", "disable"] {
        let upstream = format!("unix:{}:{}", socket.display(), node.port());
        let proxy = trusting(&format!("cluster.tls = \"{mode}\"")).upstream(&upstream).start().await;

        assert_eq!(encrypted(&proxy, POSTGRES).await.ok(), Some(false), "{mode}");
    }
}
