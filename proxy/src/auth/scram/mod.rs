//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, both roles, sans-io.
//!
//! RFC 5802 (SCRAM), RFC 7677 (SHA-256), RFC 5929 (`tls-server-end-point`); where they leave a choice,
//! PostgreSQL's: `src/backend/libpq/auth-scram.c`, `src/interfaces/libpq/fe-auth-scram.c`,
//! `src/common/scram-common.c`.
//!
//! - [`ScramServer`] lets an application prove its password to us, and yields the client key that proves
//!   the same to a backend.
//! - [`ScramClient`] proves a password, or such keys, to a backend.
//!
//! A state is consumed by the message that ends it, so no message can be taken twice or out of order.

mod cache;
mod client;
mod keys;
mod message;
mod server;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use ring::rand::{SecureRandom, SystemRandom};

pub use cache::KeyCache;
pub use client::{Challenge, ClientCredential, Cost, ITERATIONS_MAX, ScramClient, ServerProof};
pub use keys::{Key, ScramKeys};
pub use server::{AwaitingProof, ITERATIONS, Proven, SaltKey, ScramServer, Verifier};

/// Random bytes in a nonce: `SCRAM_RAW_NONCE_LEN` in PostgreSQL's `src/include/common/scram-common.h`.
const NONCE_LEN: usize = 18;

/// A SASL mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// Without channel binding.
    ScramSha256,
    /// With channel binding.
    ScramSha256Plus,
}

impl Mechanism {
    /// The name in SASL messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha256Plus => "SCRAM-SHA-256-PLUS",
        }
    }

    /// The mechanism of this name, `None` if it is none of ours.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::ScramSha256, Self::ScramSha256Plus].into_iter().find(|ours| ours.name() == name)
    }
}

/// What ties an authentication to the TLS connection that it runs over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Binding {
    /// No TLS, or a certificate for which RFC 5929 defines no hash.
    Unavailable,
    /// `tls-server-end-point`: the hash of the server's certificate.
    TlsServerEndPoint(Arc<[u8]>),
}

impl Binding {
    /// The mechanisms that a server offers, best first.
    pub fn mechanisms(&self) -> &'static [Mechanism] {
        match self {
            Self::Unavailable => &[Mechanism::ScramSha256],
            Self::TlsServerEndPoint(_) => &[Mechanism::ScramSha256Plus, Mechanism::ScramSha256],
        }
    }
}

/// Why an authentication failed. What a peer sent is never part of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// A message breaks the syntax (PostgreSQL reports SQLSTATE 08P01).
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    /// A message is well formed, but asks for what PostgreSQL does not do either (SQLSTATE 0A000).
    #[error("unsupported by SCRAM in PostgreSQL: {0}")]
    Unsupported(&'static str),
    /// The peers disagree about channel binding: a mistake, or somebody in the middle (SQLSTATE 28000).
    #[error("SCRAM channel binding: {0}")]
    ChannelBinding(&'static str),
    /// The proof is wrong, or the user does not exist: never told apart (SQLSTATE 28P01).
    #[error("password authentication failed")]
    WrongProof,
    /// The server offers no mechanism of ours.
    #[error("the server offers no SCRAM mechanism that we know")]
    NoMechanism,
    /// The server wants more of our processor time than [`ITERATIONS_MAX`] allows.
    #[error("the server asks for more SCRAM iterations than we do")]
    TooManyIterations,
    /// The server refused our proof inside the SCRAM exchange.
    #[error("the server refused the SCRAM proof")]
    Refused,
    /// The server does not know the password either: nothing may be sent to it.
    #[error("the server could not prove that it knows the password")]
    ServerUnproven,
    /// The operating system gave no random numbers.
    #[error("no random numbers from the operating system")]
    NoRandomness,
}

fn random<const N: usize>() -> Result<[u8; N], ScramError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| ScramError::NoRandomness)?;
    Ok(bytes)
}

/// Printable and without a comma, as RFC 5802 wants it.
fn nonce() -> Result<String, ScramError> {
    Ok(BASE64_STANDARD.encode(random::<NONCE_LEN>()?))
}

/// The channel-binding attribute `c=` for this GS2 header.
fn channel_binding(gs2_header: &[u8], end_point: Option<&[u8]>) -> String {
    BASE64_STANDARD.encode([gs2_header, end_point.unwrap_or_default()].concat())
}

/// `client-first-bare , server-first , client-final-without-proof`.
fn auth_message(client_first_bare: &[u8], server_first: &[u8], without_proof: &[u8]) -> Vec<u8> {
    [client_first_bare, server_first, without_proof].join(&b',')
}
