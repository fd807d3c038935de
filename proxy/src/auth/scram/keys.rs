//! The keys of RFC 5802, section 3.

use std::fmt;
use std::num::NonZeroU32;

use ring::{digest, hmac, pbkdf2};
use zeroize::Zeroizing;

/// A 32-byte key, wiped when dropped.
pub type Key = Zeroizing<[u8; 32]>;

/// What follows from a password, a salt and a number of iterations.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramKeys {
    /// Proves us to a server: as good as the password against servers that store the same secret.
    pub client_key: Key,
    /// `H(ClientKey)`: lets a server check a proof.
    pub stored_key: Key,
    /// Lets a server prove itself.
    pub server_key: Key,
}

impl ScramKeys {
    /// Derives the keys from a password. Pays PBKDF2: about half a microsecond per iteration.
    ///
    /// Zero iterations count as one.
    pub fn derive(password: &str, salt: &[u8], iterations: u32) -> Self {
        let iterations = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
        let password = prepare(password);
        let mut salted = Key::default();
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, password.as_bytes(), &mut *salted);
        Self::from_client_key(sign(&salted, b"Client Key"), sign(&salted, b"Server Key"))
    }

    /// Completes the keys of a user who has shown us the client key.
    pub(super) fn from_client_key(client_key: Key, server_key: Key) -> Self {
        Self { stored_key: hash(&client_key), client_key, server_key }
    }

    /// `ClientProof := ClientKey XOR HMAC(StoredKey, AuthMessage)`
    pub(super) fn proof(&self, auth_message: &[u8]) -> [u8; 32] {
        *xor(&self.client_key, &sign(&self.stored_key, auth_message))
    }
}

impl fmt::Debug for ScramKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScramKeys(…)")
    }
}

/// `SASLprep` (RFC 4013) where it applies. Like PostgreSQL (`pg_saslprep` and its callers), a password that it
/// prohibits, or that it leaves nothing of, is used as it is.
fn prepare(password: &str) -> Zeroizing<String> {
    let prepared = stringprep::saslprep(password).ok().filter(|text| !text.is_empty());
    Zeroizing::new(prepared.map_or_else(|| password.to_owned(), Into::into))
}

/// HMAC-SHA-256.
pub(super) fn sign(key: &Key, message: &[u8]) -> Key {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &**key), message);
    key_from(tag.as_ref())
}

/// SHA-256.
pub(super) fn hash(key: &Key) -> Key {
    key_from(digest::digest(&digest::SHA256, &**key).as_ref())
}

pub(super) fn xor(left: &Key, right: &[u8; 32]) -> Key {
    let mut result = left.clone();
    result.iter_mut().zip(right).for_each(|(byte, other)| *byte ^= other);
    result
}

fn key_from(bytes: &[u8]) -> Key {
    debug_assert_eq!(bytes.len(), 32, "SHA-256 has 32 bytes");
    let mut key = Key::default();
    key.iter_mut().zip(bytes).for_each(|(byte, from)| *byte = *from);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saslprep_falls_back_to_the_raw_password() {
        // PostgreSQL accepts such passwords: refusing or altering them would lock their users out.
        for (password, prepared) in [
            ("pencil", "pencil"),
            ("I\u{ad}X", "IX"),
            ("\u{2168}", "IX"),
            ("bell\u{7}", "bell\u{7}"),
            ("\u{627}1", "\u{627}1"),
            ("\u{ad}", "\u{ad}"),
            ("", ""),
        ] {
            assert_eq!(prepare(password).as_str(), prepared, "{password:?}");
        }
    }
}
