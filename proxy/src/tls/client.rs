//! TLS towards PostgreSQL, in the modes of libpq.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ClientConnection, Resumption, WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor,
};
use rustls::crypto::{
    CryptoProvider, verify_tls12_signature, verify_tls13_signature, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::der::{Decode, Encode};

use super::{TlsError, authorities, certificates, private_key, provider, refused_pair, tls_server_end_point};
use crate::auth::scram::Binding;
use crate::config::{SslMode, UpstreamTls};

const CLIENT_CERTIFICATE: &str = "client certificate";

/// How we reach servers over TLS. Whether to try at all, and what to do when a server has none, is the
/// caller's part of `sslmode`.
///
/// | mode | the server's certificate |
/// |---|---|
/// | `allow`, `prefer`, `require` | any; but the server must hold its key, or channel binding would bind nothing |
/// | `require` with authorities, `verify-ca` | signed by an authority, for whatever host |
/// | `verify-full` | signed by an authority, for the host that we connect to |
///
/// Unlike libpq, a host is matched with the subject alternative names only, never with the common name
/// (RFC 9525, section 2), and certificates must be X.509 version 3 (version 1 will do over TLS 1.3 where
/// any certificate does).
#[derive(Debug, Clone)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    host: HostName,
}

/// Whether the name of the host matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HostName {
    Ignored,
    Verified,
}

impl ClientTls {
    /// Reads the files that the settings name; `None` when TLS is disabled.
    pub fn new(settings: &UpstreamTls) -> Result<Option<Self>, TlsError> {
        let ca = settings.ca.as_deref();
        let (verifier, host): (Arc<dyn ServerCertVerifier>, _) = match (settings.mode, ca) {
            (SslMode::Disable, _) => return Ok(None),
            (SslMode::Allow | SslMode::Prefer, _) | (SslMode::Require, None) => {
                (Arc::new(AnyHost::new(Issuer::Any)), HostName::Ignored)
            }
            (SslMode::Require | SslMode::VerifyCa, ca) => {
                (Arc::new(AnyHost::new(Issuer::Trusted(roots(ca)?))), HostName::Ignored)
            }
            (SslMode::VerifyFull, ca) => (verify_full(ca)?, HostName::Verified),
        };
        // No ALPN: PostgreSQL wants it for direct TLS only, and we ask with SSLRequest.
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|source| TlsError::Setup { source })?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match (&settings.cert, &settings.key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert), Some(key)) => builder
                .with_client_auth_cert(certificates(cert, CLIENT_CERTIFICATE)?, private_key(key)?)
                .map_err(|source| refused_pair(cert, key, source))?,
            (Some(_), None) => return Err(missing("tls_key")),
            (None, Some(_)) => return Err(missing("tls_cert")),
        };
        config.resumption = Resumption::disabled();
        Ok(Some(Self { config: Arc::new(config), host }))
    }

    /// All that is wrong with the files, where [`ClientTls::new`] stops at the first.
    pub fn problems(settings: &UpstreamTls) -> Vec<TlsError> {
        if settings.mode == SslMode::Disable {
            return Vec::new();
        }
        let (cert, key) = (settings.cert.as_deref(), settings.key.as_deref());
        let alone = [
            Self::new(&UpstreamTls { cert: None, key: None, ..settings.clone() }).err(),
            cert.and_then(|path| certificates(path, CLIENT_CERTIFICATE).err()),
            key.and_then(|path| private_key(path).err()),
        ];
        let problems: Vec<_> = alone.into_iter().flatten().collect();
        if problems.is_empty() && cert.is_some() && key.is_some() {
            return Self::new(settings).err().into_iter().collect();
        }
        problems
    }

    /// What `tokio_rustls::TlsConnector` needs for this host (a name, or an IP address without brackets).
    ///
    /// A name that no certificate can hold is an error only when names are verified; otherwise it is
    /// just not sent.
    pub fn connect_to(&self, host: &str) -> Result<(Arc<ClientConfig>, ServerName<'static>), TlsError> {
        let name = match (ServerName::try_from(host), self.host) {
            (Ok(name), _) => name.to_owned(),
            // rustls wants a name, and sends none that is an address.
            (Err(_), HostName::Ignored) => ServerName::from(Ipv4Addr::UNSPECIFIED),
            (Err(_), HostName::Verified) => return Err(TlsError::HostName { host: host.to_owned() }),
        };
        Ok((Arc::clone(&self.config), name))
    }
}

/// For web servers: TLS with a certificate for the host, from one of the system's authorities (`SSL_CERT_FILE` and
/// `SSL_CERT_DIR` name others).
///
/// # Errors
/// When rustls cannot be set up.
pub fn web_client_config() -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|source| TlsError::Setup { source })?;
    Ok(builder.with_root_certificates(roots(None)?).with_no_client_auth())
}

/// Channel binding to the server at the other end of an established connection.
pub fn upstream_binding(connection: &ClientConnection) -> Binding {
    let chain = connection.peer_certificates().unwrap_or_default();
    chain.first().map_or(Binding::Unavailable, tls_server_end_point)
}

fn missing(setting: &'static str) -> TlsError {
    TlsError::Missing { setting, remedy: "a client certificate needs both tls_cert and tls_key" }
}

/// From the file, or the system's; those of Mozilla where the system has none (a bare container).
fn roots(ca: Option<&Path>) -> Result<RootCertStore, TlsError> {
    if let Some(path) = ca {
        return authorities(path);
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    Ok(roots)
}

fn verify_full(ca: Option<&Path>) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(ca)?), provider())
        .build()
        .map_err(|error| TlsError::Setup { source: Error::General(error.to_string()) })?;
    Ok(verifier)
}

/// The key of a certificate that webpki does not read because it is of version 1: what `openssl x509 -req`
/// made by default before OpenSSL 3, so PostgreSQL servers have many. Nobody asked for more than the key.
fn public_key(certificate: &CertificateDer<'_>) -> Option<SubjectPublicKeyInfoDer<'static>> {
    let parsed = CertificateInner::<Raw>::from_der(certificate).ok()?;
    Some(parsed.tbs_certificate().subject_public_key_info().to_der().ok()?.into())
}

/// Accepts a certificate whatever host it is for.
#[derive(Debug)]
struct AnyHost {
    issuer: Issuer,
    provider: Arc<CryptoProvider>,
}

/// Who may have signed it.
#[derive(Debug)]
enum Issuer {
    Any,
    Trusted(RootCertStore),
}

impl AnyHost {
    fn new(issuer: Issuer) -> Self {
        Self { issuer, provider: provider() }
    }
}

impl ServerCertVerifier for AnyHost {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Issuer::Trusted(roots) = &self.issuer {
            verify_server_cert_signed_by_trust_anchor(
                &ParsedCertificate::try_from(end_entity)?,
                roots,
                intermediates,
                now,
                self.provider.signature_verification_algorithms.all,
            )?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms).or_else(|error| match self.issuer {
            Issuer::Any => {
                verify_tls13_signature_with_raw_key(message, &public_key(cert).ok_or(error)?, dss, algorithms)
            }
            Issuer::Trusted(_) => Err(error),
        })
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
