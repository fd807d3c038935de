//! A server with a certificate that nobody trusts but those who are told to.

use std::io::Write;

use rustls::pki_types::CertificateDer;
use tidegate_chaos::cluster::{Node, TlsFiles};

use crate::support::options;

pub(crate) struct Server {
    pub(crate) node: Node,
    pub(crate) certificate: CertificateDer<'static>,
    _files: tempfile::TempDir,
}

pub(crate) fn server() -> Server {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let files = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = files.path().join(name);
        std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        path
    };
    let tls = TlsFiles {
        cert: write("cert.pem", &made.cert.pem()),
        key: write("key.pem", &made.signing_key.serialize_pem()),
        client_ca: None,
    };
    let node = Node::start(&options().tls(tls)).unwrap();
    Server { node, certificate: made.cert.der().clone(), _files: files }
}

pub(crate) fn trusting(certificates: &[CertificateDer<'static>]) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate.clone()).unwrap();
    }
    rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}
