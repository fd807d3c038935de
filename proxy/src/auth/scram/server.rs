//! The server's role: an application proves its password to us.

use std::fmt;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use ring::hmac;
use zeroize::Zeroizing;

use super::keys::{Key, ScramKeys, hash, sign, xor};
use super::message::{Attributes, check_nonce, decode_32};
use super::{Binding, Mechanism, ScramError, auth_message, channel_binding, nonce, random};
use crate::auth::{Look, ScramSecret, Secret, same};

/// Iterations of verifiers that we make: `SCRAM_SHA_256_DEFAULT_ITERATIONS` in PostgreSQL.
pub const ITERATIONS: u32 = 4096;
/// Bytes of salts that we make: `SCRAM_DEFAULT_SALT_LEN` in PostgreSQL.
const SALT_LEN: usize = 16;

/// Random key of this process that gives every user name its salt.
///
/// Make one at the start and share it: a name then gets the same salt on every attempt, whether it
/// exists or not, and after a reload too. PostgreSQL does so with its mock authentication nonce
/// (`scram_mock_salt`); salts of plain passwords come from here as well, so that neither a changing nor
/// a lasting salt tells who exists.
pub struct SaltKey(hmac::Key);

impl SaltKey {
    /// A fresh random key.
    pub fn new() -> Result<Self, ScramError> {
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &*Zeroizing::new(random::<32>()?))))
    }

    fn salt(&self, user: &str) -> Vec<u8> {
        let tag = hmac::sign(&self.0, user.as_bytes());
        tag.as_ref().iter().copied().take(SALT_LEN).collect()
    }
}

impl fmt::Debug for SaltKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SaltKey(…)")
    }
}

/// What proofs of one user are checked against. Keep it: making one from a password costs milliseconds.
#[derive(Debug, Clone)]
pub struct Verifier {
    secret: ScramSecret,
    outcome: Outcome,
}

/// Whether a right proof would be enough.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    Open,
    /// The exchange runs to its end, and fails.
    Doomed,
}

impl Verifier {
    /// For a user with this secret, or without any, where users have secrets that look like `usual`.
    ///
    /// A plain password pays PBKDF2 with [`ITERATIONS`]; do it when secrets are loaded, not when a login
    /// waits. A md5 digest and an empty password cannot do SCRAM: like an unknown user they get a
    /// [`mock`](Self::mock).
    pub fn new(user: &str, secret: Option<&Secret>, usual: Look, salts: &SaltKey) -> Self {
        match secret {
            Some(Secret::Scram(secret)) => Self { secret: secret.clone(), outcome: Outcome::Open },
            Some(Secret::Plain(password)) if !password.reveal().is_empty() => {
                Self::from_password(user, password.reveal(), salts)
            }
            Some(Secret::Plain(_) | Secret::Md5(_)) | None => Self::mock(user, usual, salts),
        }
    }

    fn from_password(user: &str, password: &str, salts: &SaltKey) -> Self {
        let salt = salts.salt(user);
        let keys = ScramKeys::derive(password, &salt, ITERATIONS);
        let secret = ScramSecret {
            iterations: ITERATIONS,
            salt,
            stored_key: keys.stored_key.clone(),
            server_key: keys.server_key.clone(),
        };
        Self { secret, outcome: Outcome::Open }
    }

    /// For a user who cannot log in, so that the application learns no more than "wrong password"
    /// (`mock_scram_secret` in PostgreSQL). Cheap: made anew for each attempt.
    pub fn mock(user: &str, usual: Look, salts: &SaltKey) -> Self {
        let iterations = match usual {
            Look::Md5 => ITERATIONS,
            Look::Scram { iterations } => iterations,
        };
        let secret = ScramSecret {
            iterations,
            salt: salts.salt(user),
            stored_key: Key::default(),
            server_key: Key::default(),
        };
        Self { secret, outcome: Outcome::Doomed }
    }
}

/// An authentication before its first message.
#[derive(Debug)]
pub struct ScramServer {
    verifier: Verifier,
    binding: Binding,
    nonce: String,
}

/// Our challenge is out; the proof is awaited.
#[derive(Debug)]
pub struct AwaitingProof {
    verifier: Verifier,
    client_first_bare: Vec<u8>,
    server_first: Vec<u8>,
    nonce: String,
    channel_binding: String,
}

/// The application knows the password.
#[derive(Debug)]
pub struct Proven {
    /// Body of `AuthenticationSASLFinal`.
    pub server_final: Vec<u8>,
    /// The user's keys, for a backend that stores the same secret.
    pub keys: ScramKeys,
}

impl ScramServer {
    /// Starts an authentication. `binding` is that of our own certificate, if the session is over TLS;
    /// offer [`Binding::mechanisms`].
    pub fn new(verifier: Verifier, binding: Binding) -> Result<Self, ScramError> {
        Ok(Self { verifier, binding, nonce: nonce()? })
    }

    /// Takes the data of `SASLInitialResponse`; gives the body of `AuthenticationSASLContinue`.
    pub fn first(
        self,
        mechanism: Mechanism,
        client_first: &[u8],
    ) -> Result<(Vec<u8>, AwaitingProof), ScramError> {
        let mut message = Attributes::new(client_first)?;
        let channel_binding = self.gs2_header(mechanism, &mut message)?;
        let client_first_bare = message.rest().to_vec();
        // PostgreSQL takes the user from the startup packet and ignores this one.
        message.expect(b'n', "user expected")?;
        let client_nonce = check_nonce(message.expect(b'r', "nonce expected")?)?;
        message.skip_extensions()?;

        let nonce = format!("{client_nonce}{}", self.nonce);
        let salt = BASE64_STANDARD.encode(&self.verifier.secret.salt);
        let iterations = self.verifier.secret.iterations;
        let server_first = format!("r={nonce},s={salt},i={iterations}").into_bytes();
        let awaiting = AwaitingProof {
            verifier: self.verifier,
            client_first_bare,
            server_first: server_first.clone(),
            nonce,
            channel_binding,
        };
        Ok((server_first, awaiting))
    }

    /// Reads the header and returns the `c=` that must come with the proof.
    fn gs2_header(&self, mechanism: Mechanism, message: &mut Attributes<'_>) -> Result<String, ScramError> {
        use ScramError::{ChannelBinding, Malformed, Unsupported};

        let flag = message.field()?;
        let end_point = match (flag, mechanism, &self.binding) {
            (b"n" | b"y", Mechanism::ScramSha256Plus, _) => {
                return Err(ChannelBinding("the mechanism has it, the message does not"));
            }
            (b"n", Mechanism::ScramSha256, _) | (b"y", Mechanism::ScramSha256, Binding::Unavailable) => None,
            // We did offer it, so somebody took it out of our offer (RFC 5802, section 6).
            (b"y", Mechanism::ScramSha256, Binding::TlsServerEndPoint(_)) => {
                return Err(ChannelBinding("the client believes that we do not support it, but we do"));
            }
            ([b'p', ..], Mechanism::ScramSha256, _) => {
                return Err(ChannelBinding("the message has it, the mechanism does not"));
            }
            ([b'p', ..], Mechanism::ScramSha256Plus, Binding::Unavailable) => {
                return Err(ChannelBinding("selected, but we did not offer it"));
            }
            (b"p=tls-server-end-point", Mechanism::ScramSha256Plus, Binding::TlsServerEndPoint(hash)) => {
                Some(&**hash)
            }
            ([b'p', ..], ..) => return Err(Unsupported("this channel-binding type")),
            _ => return Err(Malformed("unknown channel-binding flag")),
        };
        if !message.field()?.is_empty() {
            return Err(Unsupported("an authorization identity"));
        }
        Ok(channel_binding(&[flag, b",,"].concat(), end_point))
    }
}

impl AwaitingProof {
    /// Takes the data of the second `SASLResponse`.
    pub fn last(self, client_final: &[u8]) -> Result<Proven, ScramError> {
        let (without_proof, proof) = self.read_final(client_final)?;
        let message = auth_message(&self.client_first_bare, &self.server_first, without_proof);
        let secret = &self.verifier.secret;
        let client_key = xor(&sign(&secret.stored_key, &message), &proof);
        let equal = same(&*hash(&client_key), &*secret.stored_key);
        let signature = sign(&secret.server_key, &message);
        match (equal, self.verifier.outcome) {
            (Ok(()), Outcome::Open) => Ok(Proven {
                server_final: format!("v={}", BASE64_STANDARD.encode(signature.as_slice())).into_bytes(),
                keys: ScramKeys::from_client_key(client_key, secret.server_key.clone()),
            }),
            (Ok(()) | Err(_), Outcome::Open | Outcome::Doomed) => Err(ScramError::WrongProof),
        }
    }

    /// The message without its proof, and the proof.
    fn read_final<'a>(&self, client_final: &'a [u8]) -> Result<(&'a [u8], Zeroizing<[u8; 32]>), ScramError> {
        let mut message = Attributes::new(client_final)?;
        let binding = message.expect(b'c', "channel binding expected")?;
        if same(binding, self.channel_binding.as_bytes()).is_err() {
            return Err(ScramError::ChannelBinding("check failed"));
        }
        if message.expect(b'r', "nonce expected")? != self.nonce.as_bytes() {
            return Err(ScramError::Malformed("the nonce is not ours"));
        }
        loop {
            let without_proof = client_final.len() - message.rest().len() - 1;
            if let (b'p', proof) = message.next()? {
                message.end()?;
                let proof = Zeroizing::new(decode_32(proof, "the proof is not 32 bytes of base64")?);
                return Ok((&client_final[..without_proof], proof));
            }
        }
    }
}

#[cfg(test)]
impl ScramServer {
    pub(super) fn with_nonce(verifier: Verifier, binding: Binding, nonce: &str) -> Self {
        Self { verifier, binding, nonce: nonce.to_owned() }
    }
}

#[cfg(test)]
impl AwaitingProof {
    pub(super) fn nonce_for_test(&self) -> &str {
        &self.nonce
    }
}

#[cfg(test)]
impl SaltKey {
    pub(super) fn salt_of(&self, user: &str) -> Vec<u8> {
        self.salt(user)
    }
}
