//! Both sides against each other over in-memory streams, with certificates made here.

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::auth::scram::Binding;
use crate::config::{SslMode, UpstreamTls};

/// Two authorities; servers `db` (names `db.test` and 127.0.0.1) and clients signed by either.
struct Pki {
    dir: TempDir,
}

impl Pki {
    fn new() -> Self {
        let pki = Self { dir: tempfile::tempdir().unwrap() };
        for authority in ["ours", "theirs"] {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new([]).unwrap();
            params.distinguished_name.push(rcgen::DnType::CommonName, authority);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            pki.write(&format!("{authority}.crt"), &params.self_signed(&key).unwrap().pem());
            let issuer = Issuer::new(params, key);
            pki.leaf(&format!("{authority}-server"), &issuer, ExtendedKeyUsagePurpose::ServerAuth);
            pki.leaf(&format!("{authority}-client"), &issuer, ExtendedKeyUsagePurpose::ClientAuth);
        }
        pki
    }

    fn leaf(&self, name: &str, issuer: &Issuer<'_, KeyPair>, usage: ExtendedKeyUsagePurpose) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["db.test".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        self.write(&format!("{name}.crt"), &params.signed_by(&key, issuer).unwrap().pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn server(&self, name: &str, client_ca: Option<&str>) -> ServerTls {
        let client_ca = client_ca.map(|name| self.path(name));
        let (cert, key) = (self.path(&format!("{name}.crt")), self.path(&format!("{name}.key")));
        ServerTls::load(&cert, &key, client_ca.as_deref()).unwrap()
    }

    fn client(&self, mode: SslMode, ca: Option<&str>, certificate: Option<&str>) -> ClientTls {
        let file = |ending: &str| certificate.map(|name| self.path(&format!("{name}.{ending}")));
        let ca = ca.map(|name| self.path(name));
        let settings = UpstreamTls { mode, ca, cert: file("crt"), key: file("key") };
        ClientTls::new(&settings).unwrap().unwrap()
    }
}

/// What the server saw of a handshake that both sides completed, data in both directions included.
struct Seen {
    postgresql: bool,
    client_binding: Binding,
}

async fn handshake(
    client: (Arc<rustls::ClientConfig>, ServerName<'static>),
    server: &ServerTls,
) -> io::Result<Seen> {
    let (near, far) = tokio::io::duplex(16 * 1024);
    let acceptor = TlsAcceptor::from(Arc::clone(&server.config));
    let accept = async {
        let mut stream = acceptor.accept(far).await?;
        let byte = stream.read_u8().await?;
        stream.write_u8(byte).await?;
        stream.flush().await?;
        Ok(negotiated_postgresql(stream.get_ref().1))
    };
    let connect = async {
        let mut stream = TlsConnector::from(client.0).connect(client.1, near).await?;
        stream.write_all(b"x").await?;
        stream.flush().await?;
        // With TLS 1.3 a refused client certificate shows with the first read only.
        stream.read_u8().await?;
        Ok(upstream_binding(stream.get_ref().1))
    };
    let (postgresql, client_binding): (io::Result<bool>, io::Result<Binding>) = tokio::join!(accept, connect);
    Ok(Seen { postgresql: postgresql?, client_binding: client_binding? })
}

#[tokio::test]
async fn each_mode_verifies_what_libpq_verifies() {
    // An accepted "wrong" is a server that reads our passwords; a refused "right" is an outage.
    use SslMode::{Allow, Prefer, Require, VerifyCa, VerifyFull};
    let pki = Pki::new();
    let server = pki.server("ours-server", None);
    let (ours, theirs) = (Some("ours.crt"), Some("theirs.crt"));
    for (mode, ca, host, accepted) in [
        (Allow, None, "other.test", true),
        (Prefer, None, "other.test", true),
        (Prefer, theirs, "other.test", true),
        (Require, None, "other.test", true),
        (Require, None, "no name", true),
        (Require, ours, "other.test", true),
        (Require, theirs, "db.test", false),
        (VerifyCa, ours, "other.test", true),
        (VerifyCa, ours, "10.0.0.1", true),
        (VerifyCa, theirs, "db.test", false),
        (VerifyCa, None, "db.test", false),
        (VerifyFull, ours, "db.test", true),
        (VerifyFull, ours, "127.0.0.1", true),
        (VerifyFull, ours, "127.0.0.2", false),
        (VerifyFull, ours, "::1", false),
        (VerifyFull, ours, "other.test", false),
        (VerifyFull, theirs, "db.test", false),
        (VerifyFull, None, "db.test", false),
    ] {
        let client = pki.client(mode, ca, None).connect_to(host).unwrap();

        let outcome = handshake(client, &server).await;

        assert_eq!(outcome.is_ok(), accepted, "{mode:?} {ca:?} {host}: {:?}", outcome.err());
    }
}

/// Made by `openssl x509 -req -signkey`; valid for a hundred years.
const VERSION_1: &str = "\
-----BEGIN CERTIFICATE-----
MIIBFTCBvQIUe3O2POA0nWWLsWvJfRjaE64s2NUwCgYIKoZIzj0EAwIwDTELMAkG
A1UEAwwCdjEwIBcNMjYxMTIyMTUzMTI5WhgPMjEyNjEwMjkxNTMxMjlaMA0xCzAJ
BgNVBAMMAnYxMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEGUIUy88xvotpp7QQ
0l0F76WEFTrE/0QTBrlrDa0QLSOQYJ2fq9FN8aC1JrQ4hRqYDCf/GTtYCoBU7mPe
Geq/VDAKBggqhkjOPQQDAgNHADBEAiBmy3hknTc+6NVN1GOGwpsMTe4PLygyYjXW
Palds3Tq8gIgNrWZEe9+WDFqMGjIX62r4RgmHHsTNHcTri9sDsbyFHw=
-----END CERTIFICATE-----
";
const VERSION_1_KEY: &str = "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg7XV2xBXFQ3TaKrY0
LCRIhlFOBJQHf3ddEumSDRcK6P+hRANCAAQZQhTLzzG+i2mntBDSXQXvpYQVOsT/
RBMGuWsNrRAtI5BgnZ+r0U3xoLUmtDiFGpgMJ/8ZO1gKgFTuY94Z6r9U
-----END PRIVATE KEY-----
";

#[tokio::test]
async fn whoever_the_server_is_it_must_hold_its_key() {
    // Certificates are public: channel binding to one binds nothing if its holder need not sign. Seen with
    // a real PostgreSQL: certificates of version 1 were refused even where nothing is verified.
    let pki = Pki::new();
    let certificate = CertificateDer::from_pem_slice(VERSION_1.as_bytes()).unwrap();
    let other = pki.path("ours-server.key");
    for (key, accepted) in [
        (PrivateKeyDer::from_pem_slice(VERSION_1_KEY.as_bytes()).unwrap(), true),
        (PrivateKeyDer::from_pem_file(other).unwrap(), false),
    ] {
        let key = provider().key_provider.load_private_key(key).unwrap();
        let certified = rustls::sign::CertifiedKey::new(vec![certificate.clone()], key);
        let mut server = pki.server("ours-server", None);
        let mut config = (*server.config).clone();
        config.cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(certified));
        server.config = Arc::new(config);
        let client = pki.client(SslMode::Require, None, None).connect_to("db.test").unwrap();

        let outcome = handshake(client, &server).await;

        assert_eq!(outcome.is_ok(), accepted, "{:?}", outcome.err());
    }
}

#[tokio::test]
async fn client_certificates_are_demanded_and_verified() {
    // With client_ca set, TLS itself is the gate: nobody without a certificate may pass it.
    let pki = Pki::new();
    let server = pki.server("ours-server", Some("ours.crt"));
    for (certificate, accepted) in [
        (None, false),
        (Some("theirs-client"), false),
        (Some("ours-server"), false),
        (Some("ours-client"), true),
    ] {
        let client = pki.client(SslMode::VerifyFull, Some("ours.crt"), certificate);

        let outcome = handshake(client.connect_to("db.test").unwrap(), &server).await;

        assert_eq!(outcome.is_ok(), accepted, "{certificate:?}: {:?}", outcome.err());
    }
}

#[tokio::test]
async fn alpn_is_optional_but_never_something_else() {
    // SSLRequest clients may send none; a web browser on our port must not get through the handshake.
    let pki = Pki::new();
    let server = pki.server("ours-server", None);
    for (offered, expected) in
        [(vec![], Some(false)), (vec![ALPN.to_vec()], Some(true)), (vec![b"http/1.1".to_vec()], None)]
    {
        let (config, name) = pki.client(SslMode::Require, None, None).connect_to("db.test").unwrap();
        let mut config = (*config).clone();
        config.alpn_protocols = offered;

        let outcome = handshake((Arc::new(config), name), &server).await;

        assert_eq!(outcome.ok().map(|seen| seen.postgresql), expected);
    }
}

#[tokio::test]
async fn both_ends_compute_the_same_channel_binding() {
    // They hash the certificate separately; a difference would break every SCRAM-SHA-256-PLUS login.
    let pki = Pki::new();
    let server = pki.server("ours-server", None);
    let client = pki.client(SslMode::Require, None, None).connect_to("db.test").unwrap();

    let seen = handshake(client, &server).await.unwrap();

    assert!(matches!(seen.client_binding, Binding::TlsServerEndPoint(_)));
    assert_eq!(seen.client_binding, server.binding);
}

#[test]
fn an_error_names_the_file_and_the_remedy_but_no_key() {
    // Certificates are renewed by machines at night: the message is all that an operator has.
    let pki = Pki::new();
    pki.write("empty.crt", "");
    pki.write("broken.key", "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n");
    for (cert, key, ca, guilty, says) in [
        ("none.crt", "ours-server.key", None, "none.crt", "cannot read"),
        ("empty.crt", "ours-server.key", None, "empty.crt", "no certificate in it; give"),
        ("ours-server.crt", "ours-server.crt", None, "ours-server.crt", "private key"),
        ("ours-server.crt", "broken.key", None, "broken.key", "give"),
        ("ours-server.crt", "theirs-server.key", None, "theirs-server.key", "does not belong"),
        ("ours-server.crt", "ours-server.key", Some("empty.crt"), "empty.crt", "no certificate in it"),
    ] {
        let ca = ca.map(|name| pki.path(name));

        let error = ServerTls::load(&pki.path(cert), &pki.path(key), ca.as_deref()).unwrap_err();

        let text = error.to_string();
        assert!(text.contains(&*pki.path(guilty).to_string_lossy()) && text.contains(says), "{text}");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}

#[test]
fn client_settings_that_cannot_work_are_refused() {
    // Found at the start and at `check`, not at the first connection.
    let pki = Pki::new();
    let settings = |mode| UpstreamTls { mode, ca: None, cert: None, key: None };
    let half = UpstreamTls { cert: Some(pki.path("ours-client.crt")), ..settings(SslMode::Prefer) };
    let full = pki.client(SslMode::VerifyFull, Some("ours.crt"), None);

    assert!(ClientTls::new(&settings(SslMode::Disable)).unwrap().is_none());
    assert!(matches!(ClientTls::new(&half), Err(TlsError::Missing { setting: "tls_key", .. })));
    assert!(matches!(full.connect_to("no name"), Err(TlsError::HostName { .. })));
}
