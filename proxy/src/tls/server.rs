//! TLS towards applications.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ServerConnection, WebPkiClientVerifier};

use super::{
    ALPN, TlsError, authorities, certificates, private_key, provider, refused_pair, tls_server_end_point,
};
use crate::auth::scram::Binding;
use crate::config::{ListenTls, ListenTlsMode};

const SERVER_CERTIFICATE: &str = "server certificate";

/// How we present ourselves to applications, and whom of them we accept.
#[derive(Debug, Clone)]
pub struct ServerTls {
    /// For `tokio_rustls::TlsAcceptor`.
    pub config: Arc<ServerConfig>,
    /// Channel binding of our certificate; offer its mechanisms on sessions over TLS.
    pub binding: Binding,
}

impl ServerTls {
    /// Loads a certificate chain (ours first) and its key. With `client_ca`, an application must present
    /// a certificate that one of these authorities signed.
    pub fn load(cert: &Path, key: &Path, client_ca: Option<&Path>) -> Result<Self, TlsError> {
        let chain = certificates(cert, SERVER_CERTIFICATE)?;
        let binding = chain.first().map_or(Binding::Unavailable, tls_server_end_point);
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|source| TlsError::Setup { source })?
            .with_client_cert_verifier(client_verifier(client_ca)?)
            .with_single_cert(chain, private_key(key)?)
            .map_err(|source| refused_pair(cert, key, source))?;
        // A client that offers other protocols only is refused; one that offers none is the caller's to
        // judge, see `negotiated_postgresql`.
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self { config: Arc::new(config), binding })
    }

    /// All that is wrong with the files, where [`ServerTls::load`] stops at the first.
    pub fn problems(settings: &ListenTls) -> Vec<TlsError> {
        if settings.mode == ListenTlsMode::Disable {
            return Vec::new();
        }
        let (cert, key) = (settings.cert.as_deref(), settings.key.as_deref());
        let alone = [
            cert.and_then(|path| certificates(path, SERVER_CERTIFICATE).err()),
            key.and_then(|path| private_key(path).err()),
            client_verifier(settings.client_ca.as_deref()).err(),
        ];
        let problems: Vec<_> = alone.into_iter().flatten().collect();
        match (cert, key) {
            (Some(cert), Some(key)) if problems.is_empty() => {
                Self::load(cert, key, None).err().into_iter().collect()
            }
            _ => problems,
        }
    }
}

fn client_verifier(client_ca: Option<&Path>) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let Some(path) = client_ca else { return Ok(WebPkiClientVerifier::no_client_auth()) };
    WebPkiClientVerifier::builder_with_provider(Arc::new(authorities(path)?), provider()).build().map_err(
        |_| TlsError::Unusable {
            path: path.into(),
            what: "no authority in it",
            remedy: "give the certificates that sign those of the applications",
        },
    )
}

/// Whether ALPN settled on `postgresql`. Must hold for direct TLS (without `SSLRequest`), where it keeps
/// attackers from using our port with another protocol (`ProcessSSLStartup` in PostgreSQL's
/// `src/backend/tcop/backend_startup.c`).
pub fn negotiated_postgresql(connection: &ServerConnection) -> bool {
    connection.alpn_protocol() == Some(ALPN)
}
