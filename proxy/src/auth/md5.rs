//! PostgreSQL's `md5` method: `"md5" + hex(md5(hex(md5(password + user)) + salt))`.
//!
//! From PostgreSQL's `src/common/md5_common.c` (`pg_md5_encrypt`) and `src/backend/libpq/crypt.c`
//! (`md5_crypt_verify`).

use std::fmt;

use ::md5::{Digest, Md5};
use zeroize::Zeroizing;

use super::{Secret, WrongPassword, same};

/// Length of `md5` and 32 hexadecimal digits.
pub const RESPONSE_LEN: usize = 35;

/// `hex(md5(password + user))`: what PostgreSQL stores after `md5`, and as good as the password for the
/// `md5` method.
#[derive(Clone, PartialEq, Eq)]
pub struct Md5Digest(Zeroizing<[u8; 32]>);

impl Md5Digest {
    /// Digest of a password; PostgreSQL salts it with the user's name.
    pub fn of_password(user: &str, password: &str) -> Self {
        Self(hex_of(&[password.as_bytes(), user.as_bytes()]))
    }

    /// Reads a stored secret: `md5` and 32 lower-case hexadecimal digits (`get_password_type` in
    /// `src/backend/libpq/crypt.c` takes no upper-case ones). `None` for anything else.
    pub fn parse(secret: &str) -> Option<Self> {
        let digits: [u8; 32] = secret.strip_prefix("md5")?.as_bytes().try_into().ok()?;
        let is_hex = |digit: &u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
        digits.iter().all(is_hex).then(|| Self(Zeroizing::new(digits)))
    }

    /// The body of the `PasswordMessage` (without its terminating zero) that answers a challenge.
    pub fn response(&self, salt: [u8; 4]) -> [u8; RESPONSE_LEN] {
        let mut response = *b"md5................................";
        response[3..].copy_from_slice(&*hex_of(&[&*self.0, &salt]));
        response
    }

    /// Whether the digests are equal, in constant time.
    pub(super) fn check(&self, other: &Self) -> Result<(), WrongPassword> {
        same(&*self.0, &*other.0)
    }
}

impl fmt::Debug for Md5Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Md5Digest(…)")
    }
}

/// Checks an application's answer to an `md5` challenge, in constant time.
///
/// `secret` is `None` for a user that does not exist: the same work is done, and the same error comes
/// out. A SCRAM secret cannot answer `md5`, and an empty password never logs in, as in PostgreSQL.
pub fn check(
    secret: Option<&Secret>,
    user: &str,
    salt: [u8; 4],
    response: &[u8],
) -> Result<(), WrongPassword> {
    let digest = match secret {
        Some(Secret::Md5(digest)) => Some(digest.clone()),
        Some(Secret::Plain(password)) if !password.reveal().is_empty() => {
            Some(Md5Digest::of_password(user, password.reveal()))
        }
        Some(Secret::Plain(_) | Secret::Scram(_)) | None => None,
    };
    let known = digest.is_some();
    let expected = digest.unwrap_or_else(|| Md5Digest::of_password(user, "")).response(salt);
    let equal = same(&expected, response);
    if known { equal } else { Err(WrongPassword) }
}

fn hex_of(parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut hash = Md5::new();
    for part in parts {
        hash.update(part);
    }
    let mut digits = Zeroizing::new([0; 32]);
    for (pair, byte) in digits.chunks_exact_mut(2).zip(hash.finalize()) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;
    use postgres_protocol::authentication::md5_hash;

    const SALT: [u8; 4] = [0x2a, 0x3d, 0x8f, 0xe0];

    #[test]
    fn response_equals_that_of_an_independent_implementation() {
        // Swapping user and password, or hashing binary instead of hex, would give other digits.
        let ours = Md5Digest::of_password("md5_user", "password").response(SALT);

        assert_eq!(ours.as_slice(), md5_hash(b"md5_user", b"password", SALT).as_bytes());
    }

    #[test]
    fn stored_digest_and_password_are_equally_good() {
        // Would fail if a stored digest were hashed once more, or taken for a plain password.
        let response = Md5Digest::of_password("u", "pw").response(SALT);
        let digest = Md5Digest::of_password("u", "pw");
        let stored = format!("md5{}", String::from_utf8_lossy(&*digest.0));

        assert_eq!(check(Some(&Secret::parse("pw")), "u", SALT, &response), Ok(()));
        assert_eq!(check(Some(&Secret::parse(&stored)), "u", SALT, &response), Ok(()));
    }

    #[test]
    fn wrong_unknown_empty_and_scram_all_fail_alike() {
        // An unknown user must not be let in by answering with the digest of the empty password.
        let empty = Md5Digest::of_password("u", "").response(SALT);
        let scram = Secret::parse(&postgres_protocol::password::scram_sha_256(b"pw"));

        assert_eq!(check(Some(&Secret::parse("pw")), "u", SALT, &empty), Err(WrongPassword));
        assert_eq!(check(Some(&Secret::parse("")), "u", SALT, &empty), Err(WrongPassword));
        assert_eq!(check(Some(&scram), "u", SALT, &empty), Err(WrongPassword));
        assert_eq!(check(None, "u", SALT, &empty), Err(WrongPassword));
        assert_eq!(check(Some(&Secret::parse("pw")), "u", SALT, b""), Err(WrongPassword));
    }
}
