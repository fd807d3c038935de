//! The client's role: we prove ourselves to a backend, and it proves itself to us.

use std::fmt;
use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine as _};

use super::keys::{Key, ScramKeys, sign};
use super::message::{Attributes, check_nonce, decode_32};
use super::{Binding, KeyCache, Mechanism, ScramError, auth_message, channel_binding, nonce};
use crate::auth::same;
use crate::config::Password;

/// Most iterations that a server may ask of us: about half a second of one processor. PostgreSQL's
/// default is 4096, OWASP recommends 600,000 for PBKDF2-HMAC-SHA256; without a bound a hostile server
/// could keep us busy for half an hour (`i=` reaches 2³²).
pub const ITERATIONS_MAX: u32 = 1_000_000;

/// What we prove ourselves with.
#[derive(Clone)]
pub enum ClientCredential {
    /// A password, and whose it is (part of the key of the [`KeyCache`]).
    Password {
        /// User that logs in.
        user: String,
        /// The password.
        password: Password,
    },
    /// Keys from an application's proof: salt and iterations of the server do not matter, its secret
    /// must be the same.
    Keys(Arc<ScramKeys>),
}

impl fmt::Debug for ClientCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password(…)",
            Self::Keys(_) => "Keys(…)",
        })
    }
}

/// An authentication before the server's first message.
#[derive(Debug)]
pub struct ScramClient {
    credential: ClientCredential,
    mechanism: Mechanism,
    gs2_header: &'static [u8],
    end_point: Option<Arc<[u8]>>,
    nonce: String,
    first: Vec<u8>,
}

impl ScramClient {
    /// Chooses among the offered mechanisms (names that we do not know are ignored): channel binding
    /// whenever both sides can.
    pub fn new<'a>(
        credential: ClientCredential,
        binding: Binding,
        offered: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, ScramError> {
        Self::with_nonce(credential, binding, offered, "", nonce()?)
    }

    /// `user` is empty as in libpq: PostgreSQL takes the user from the startup packet.
    pub(super) fn with_nonce<'a>(
        credential: ClientCredential,
        binding: Binding,
        offered: impl IntoIterator<Item = &'a str>,
        user: &str,
        nonce: String,
    ) -> Result<Self, ScramError> {
        let offered: Vec<_> = offered.into_iter().filter_map(Mechanism::from_name).collect();
        let (mechanism, gs2_header, end_point) = match binding {
            Binding::TlsServerEndPoint(hash) if offered.contains(&Mechanism::ScramSha256Plus) => {
                (Mechanism::ScramSha256Plus, b"p=tls-server-end-point,,".as_slice(), Some(hash))
            }
            // "y" lets the server notice that somebody took the better mechanism out of its offer.
            Binding::TlsServerEndPoint(_) => (Mechanism::ScramSha256, b"y,,".as_slice(), None),
            Binding::Unavailable => (Mechanism::ScramSha256, b"n,,".as_slice(), None),
        };
        if !offered.contains(&mechanism) {
            return Err(ScramError::NoMechanism);
        }
        let first = [gs2_header, format!("n={user},r={nonce}").as_bytes()].concat();
        Ok(Self { credential, mechanism, gs2_header, end_point, nonce, first })
    }

    /// The mechanism for `SASLInitialResponse`.
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// The data of `SASLInitialResponse`.
    pub fn first(&self) -> &[u8] {
        &self.first
    }

    /// Takes the body of `AuthenticationSASLContinue`.
    pub fn challenge(self, server_first: &[u8]) -> Result<Challenge, ScramError> {
        let mut message = Attributes::new(server_first)?;
        let nonce = check_nonce(message.expect(b'r', "nonce expected")?)?;
        if nonce.strip_prefix(&self.nonce).is_none_or(str::is_empty) {
            return Err(ScramError::Malformed("the nonce does not extend ours"));
        }
        let salt = BASE64_STANDARD
            .decode(message.expect(b's', "salt expected")?)
            .map_err(|_| ScramError::Malformed("the salt is not base64"))?;
        let iterations = read_iterations(message.expect(b'i', "iterations expected")?)?;
        message.end()?;

        let binding = channel_binding(self.gs2_header, self.end_point.as_deref());
        let without_proof = format!("c={binding},r={nonce}");
        let client_first_bare = &self.first[self.gs2_header.len()..];
        Ok(Challenge {
            credential: self.credential,
            auth_message: auth_message(client_first_bare, server_first, without_proof.as_bytes()),
            salt,
            iterations,
            without_proof,
        })
    }
}

fn read_iterations(digits: &[u8]) -> Result<u32, ScramError> {
    const WHAT: ScramError = ScramError::Malformed("iterations are not a positive number");
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(WHAT);
    }
    // Only digits: what does not fit is too large.
    let text = str::from_utf8(digits).map_err(|_| WHAT)?;
    match text.parse() {
        Ok(0) => Err(WHAT),
        Ok(iterations) if iterations <= ITERATIONS_MAX => Ok(iterations),
        Ok(_) | Err(_) => Err(ScramError::TooManyIterations),
    }
}

/// The server has said how to derive the keys; our proof is due.
///
/// Owned and `Send`: when [`cost`](Self::cost) is high, answer it away from the event loop.
#[derive(Debug)]
pub struct Challenge {
    credential: ClientCredential,
    auth_message: Vec<u8>,
    salt: Vec<u8>,
    iterations: u32,
    without_proof: String,
}

/// What an answer will cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// Microseconds: the keys are at hand.
    Cheap,
    /// PBKDF2 with this many iterations, about half a microsecond each.
    Derivation {
        /// Between 1 and [`ITERATIONS_MAX`].
        iterations: u32,
    },
}

impl Challenge {
    /// What [`answer`](Self::answer) will cost with this cache.
    pub fn cost(&self, cache: &KeyCache) -> Cost {
        match &self.credential {
            ClientCredential::Keys(_) => Cost::Cheap,
            ClientCredential::Password { user, password } => {
                match cache.get(user, password, &self.salt, self.iterations) {
                    Some(_) => Cost::Cheap,
                    None => Cost::Derivation { iterations: self.iterations },
                }
            }
        }
    }

    /// The data of the second `SASLResponse`, and what the server must prove in return.
    pub fn answer(self, cache: &KeyCache) -> (Vec<u8>, ServerProof) {
        let keys = match self.credential {
            ClientCredential::Keys(keys) => keys,
            ClientCredential::Password { user, password } => {
                cache.get_or_derive(&user, &password, &self.salt, self.iterations)
            }
        };
        let proof = BASE64_STANDARD.encode(keys.proof(&self.auth_message));
        let client_final = format!("{},p={proof}", self.without_proof).into_bytes();
        (client_final, ServerProof(sign(&keys.server_key, &self.auth_message)))
    }
}

/// The signature that only a server with the same secret can make.
#[must_use = "a server that was not checked may be anybody"]
pub struct ServerProof(Key);

impl ServerProof {
    /// Checks the body of `AuthenticationSASLFinal`. `AuthenticationOk` without it must be refused.
    pub fn check(self, server_final: &[u8]) -> Result<(), ScramError> {
        let mut message = Attributes::new(server_final)?;
        if message.rest().starts_with(b"e=") {
            return Err(ScramError::Refused);
        }
        let signature = decode_32(
            message.expect(b'v', "server signature expected")?,
            "the server signature is not 32 bytes of base64",
        )?;
        message.end()?;
        same(&signature, &*self.0).map_err(|_| ScramError::ServerUnproven)
    }
}

impl fmt::Debug for ServerProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerProof(…)")
    }
}

#[cfg(test)]
impl ScramClient {
    pub(super) fn nonce_for_test(&self) -> &str {
        &self.nonce
    }
}
