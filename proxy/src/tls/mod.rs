//! TLS towards applications ([`ServerTls`]) and towards PostgreSQL ([`ClientTls`]): rustls with ring.
//!
//! Both are made whole from files, or not at all. To reload, load again and swap; sessions that are open
//! keep what they began with. Session resumption is off on both sides, as in PostgreSQL
//! (`src/backend/libpq/be-secure-openssl.c`), so a reload is not outlived by tickets.

mod client;
mod end_point;
mod server;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

pub use client::{ClientTls, upstream_binding, web_client_config};
pub use end_point::tls_server_end_point;
pub use server::{ServerTls, negotiated_postgresql};

/// PostgreSQL's ALPN protocol name (`PG_ALPN_PROTOCOL` in `src/include/libpq/pqcomm.h`).
pub const ALPN: &[u8] = b"postgresql";

/// Why TLS could not be set up. Never shows what a file holds.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read.
    #[error("cannot read {} ({what})", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {what}; {remedy}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// rustls refused what the files hold.
    #[error("{}: {what}; {remedy}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
        /// Why.
        source: rustls::Error,
    },
    /// A setting is missing that another one needs.
    #[error("{setting} is not set; {remedy}")]
    Missing {
        /// Name of the setting.
        setting: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A certificate cannot be for this host.
    #[error("{host:?} is neither a host name nor an IP address that a certificate can name")]
    HostName {
        /// The host as configured.
        host: String,
    },
    /// Neither our files nor the library's defaults make a configuration: a mistake of ours.
    #[error("cannot set up TLS")]
    Setup {
        /// Why.
        source: rustls::Error,
    },
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn read(path: &Path, what: &'static str) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.into(), what, source })
}

/// All certificates of a PEM file; at least one.
fn certificates(path: &Path, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unusable = |what| TlsError::Unusable {
        path: path.into(),
        what,
        remedy: "give a PEM file of \"BEGIN CERTIFICATE\" sections",
    };
    let pem = read(path, what)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match chain {
        Ok(chain) if chain.is_empty() => Err(unusable("no certificate in it")),
        Ok(chain) => Ok(chain),
        Err(_) => Err(unusable("the PEM text is broken")),
    }
}

/// The private key of a PEM file. What the parser says may quote the key, so it is not passed on.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let unusable = |what| TlsError::Unusable {
        path: path.into(),
        what,
        remedy: "give an unencrypted PEM private key (PKCS#8, PKCS#1 or SEC1)",
    };
    let pem = zeroize::Zeroizing::new(read(path, "private key")?);
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| match error {
        pem::Error::NoItemsFound => unusable("no unencrypted private key in it"),
        _ => unusable("the PEM text is broken"),
    })?;
    // Tried on its own, so that the error names this file and not the certificate's.
    provider().key_provider.load_private_key(key.clone_key()).map_err(|source| TlsError::Refused {
        path: path.into(),
        what: "the private key cannot be used",
        remedy: "give an RSA, ECDSA (P-256, P-384) or Ed25519 key",
        source,
    })?;
    Ok(key)
}

/// Trust anchors from a PEM file.
fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, "certificate authorities")? {
        roots.add(certificate).map_err(|source| TlsError::Refused {
            path: path.into(),
            what: "a certificate cannot be used as an authority",
            remedy: "give X.509 version 3 certificates",
            source,
        })?;
    }
    Ok(roots)
}

/// What rustls says about a chain and its key, told in terms of the file.
fn refused_pair(cert: &Path, key: &Path, source: rustls::Error) -> TlsError {
    let mismatch = matches!(source, rustls::Error::InconsistentKeys(_));
    let (path, what, remedy) = if mismatch {
        (key, "the key does not belong to the certificate", "give the key of the first certificate")
    } else {
        (
            cert,
            "the certificate cannot be used",
            "give the X.509 version 3 certificate of the key, then its issuers",
        )
    };
    TlsError::Refused { path: path.into(), what, remedy, source }
}
