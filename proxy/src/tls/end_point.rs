//! The `tls-server-end-point` channel binding of RFC 5929, section 4.

use ring::digest::{Algorithm, SHA256, SHA384, SHA512, digest};
use rustls::pki_types::CertificateDer;
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::der::Decode;

use crate::auth::scram::Binding;

/// The hash of a server's certificate, by the hash function of its signature; MD5 and SHA-1 become
/// SHA-256.
///
/// [`Binding::Unavailable`] where the RFC defines none (Ed25519), and where the function is not told by
/// the algorithm's name (RSASSA-PSS) or not ours (SHA-224): then SCRAM runs without channel binding.
pub fn tls_server_end_point(certificate: &CertificateDer<'_>) -> Binding {
    let Ok(parsed) = CertificateInner::<Raw>::from_der(certificate) else {
        return Binding::Unavailable;
    };
    match hash_of(&parsed.signature_algorithm().oid.to_string()) {
        Some(algorithm) => Binding::TlsServerEndPoint(digest(algorithm, certificate).as_ref().into()),
        None => Binding::Unavailable,
    }
}

/// Object identifiers of RFC 8017, appendix A.2.4 (RSA), and RFC 5758, section 3.2 (ECDSA).
fn hash_of(signature_algorithm: &str) -> Option<&'static Algorithm> {
    match signature_algorithm {
        // With MD5 (RSA) and SHA-1 (RSA, ECDSA), which the RFC replaces; then with SHA-256 itself.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.10045.4.1"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.3.2" => Some(&SHA256),
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Some(&SHA384),
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Some(&SHA512),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, SignatureAlgorithm};

    fn certificate(algorithm: &'static SignatureAlgorithm) -> CertificateDer<'static> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        CertificateParams::new(["db".to_owned()]).unwrap().self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn the_signature_algorithm_chooses_the_hash() {
        // Both ends must compute the same bytes, or every bound login fails.
        let p256 = certificate(&rcgen::PKCS_ECDSA_P256_SHA256);
        let p384 = certificate(&rcgen::PKCS_ECDSA_P384_SHA384);

        let expected =
            |algorithm, der: &[u8]| Binding::TlsServerEndPoint(digest(algorithm, der).as_ref().into());
        assert_eq!(tls_server_end_point(&p256), expected(&SHA256, &p256));
        assert_eq!(tls_server_end_point(&p384), expected(&SHA384, &p384));
    }

    #[test]
    fn no_hash_is_defined_for_ed25519_and_garbage() {
        // A guess would differ from the other end's guess.
        assert_eq!(tls_server_end_point(&certificate(&rcgen::PKCS_ED25519)), Binding::Unavailable);
        assert_eq!(tls_server_end_point(&CertificateDer::from(vec![0x30, 3, 1])), Binding::Unavailable);
    }
}
