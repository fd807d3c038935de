//! A stored secret, in any of the three forms of `pg_authid.rolpassword`.

use std::fmt;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use zeroize::Zeroizing;

use super::scram::{Key, ScramKeys};
use super::{Credential, Md5Digest, WrongPassword, same};
use crate::config::Password;

/// What we know about a user's password.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// The password itself.
    Plain(Password),
    /// PostgreSQL's salted md5 digest.
    Md5(Md5Digest),
    /// A SCRAM-SHA-256 verifier.
    Scram(ScramSecret),
}

/// What a login shows of the form of its secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Look {
    /// A password, or its md5 digest: it answers a md5 challenge, and is checked at once.
    Md5,
    /// It answers SCRAM only, and to check a password takes so many iterations.
    Scram {
        /// Of PBKDF2.
        iterations: u32,
    },
}

impl Look {
    /// A secret of this look that no password fits.
    pub fn mock(self) -> Secret {
        match self {
            Self::Md5 => Secret::Plain(Password::new(String::new())),
            Self::Scram { iterations } => Secret::Scram(ScramSecret {
                iterations,
                salt: Vec::new(),
                stored_key: Key::default(),
                server_key: Key::default(),
            }),
        }
    }
}

/// RFC 5803's stored form of a SCRAM-SHA-256 password, as PostgreSQL writes it:
/// `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramSecret {
    /// Iterations of PBKDF2; at least 1.
    pub iterations: u32,
    /// Salt of PBKDF2, decoded.
    pub salt: Vec<u8>,
    /// `H(ClientKey)`: checks a proof.
    pub stored_key: Key,
    /// Proves us to the application.
    pub server_key: Key,
}

impl Secret {
    /// Tells the form by its looks as `get_password_type` in PostgreSQL's `src/backend/libpq/crypt.c`
    /// does: whatever is neither a well-formed md5 digest nor a well-formed SCRAM secret is a password.
    pub fn parse(text: &str) -> Self {
        if let Some(digest) = Md5Digest::parse(text) {
            Self::Md5(digest)
        } else if let Some(secret) = ScramSecret::parse(text) {
            Self::Scram(secret)
        } else {
            Self::Plain(Password::new(text.to_owned()))
        }
    }

    /// What a login by it looks like.
    pub fn look(&self) -> Look {
        match self {
            Self::Plain(_) | Self::Md5(_) => Look::Md5,
            Self::Scram(secret) => Look::Scram { iterations: secret.iterations },
        }
    }

    /// Checks a password that came in clear text (`plain_crypt_verify` in the same file).
    ///
    /// Against a SCRAM secret this pays PBKDF2: a millisecond or two at 4096 iterations. Empty passwords
    /// never match.
    pub fn check_password(&self, user: &str, given: &str) -> Result<(), WrongPassword> {
        if given.is_empty() {
            return Err(WrongPassword);
        }
        match self {
            Self::Plain(password) => same(password.reveal().as_bytes(), given.as_bytes()),
            Self::Md5(digest) => digest.check(&Md5Digest::of_password(user, given)),
            Self::Scram(secret) => {
                let keys = ScramKeys::derive(given, &secret.salt, secret.iterations);
                same(&*keys.server_key, &*secret.server_key)
            }
        }
    }

    /// What this secret alone can prove to a backend: nothing in the case of SCRAM, where only the
    /// application's own proof yields the client key.
    pub fn credential(&self) -> Credential {
        match self {
            Self::Plain(password) if password.reveal().is_empty() => Credential::None,
            Self::Plain(password) => Credential::Password(password.clone()),
            Self::Md5(digest) => Credential::Md5Digest(digest.clone()),
            Self::Scram(_) => Credential::None,
        }
    }
}

impl ScramSecret {
    /// Reads PostgreSQL's form (`parse_scram_secret` in `src/backend/libpq/auth-scram.c`). `None` when it
    /// is anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let (iterations, rest) = text.strip_prefix("SCRAM-SHA-256$")?.split_once(':')?;
        let (salt, keys) = rest.split_once('$')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        Some(Self {
            iterations: iterations.parse().ok().filter(|&iterations| iterations > 0)?,
            salt: BASE64_STANDARD.decode(salt).ok()?,
            stored_key: key(stored_key)?,
            server_key: key(server_key)?,
        })
    }
}

fn key(text: &str) -> Option<Key> {
    let bytes = Zeroizing::new(BASE64_STANDARD.decode(text).ok()?);
    Some(Zeroizing::new(bytes.as_slice().try_into().ok()?))
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain(…)",
            Self::Md5(_) => "Md5(…)",
            Self::Scram(_) => "Scram(…)",
        })
    }
}

impl fmt::Debug for ScramSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScramSecret").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SCRAM: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

    #[test]
    fn the_form_is_told_by_its_looks() {
        // Near misses are passwords in PostgreSQL; taking one for a digest would lock its user out.
        let md5 = format!("md5{}", "0123456789abcdef".repeat(2));
        let plain = [
            String::new(),
            "md5".into(),
            md5.to_uppercase(),
            md5.replace('f', "F"),
            format!("{md5}0"),
            SCRAM.replace("4096", "many"),
            SCRAM.replace("4096", "0"),
            SCRAM.replace("256", "512"),
            SCRAM.replace("U=", ""),
            SCRAM.replace("gQ==", "*"),
        ];

        assert!(matches!(Secret::parse(&md5), Secret::Md5(_)));
        assert!(matches!(Secret::parse(SCRAM), Secret::Scram(_)));
        for text in plain {
            assert!(matches!(Secret::parse(&text), Secret::Plain(_)), "{text}");
        }
    }

    #[test]
    fn clear_text_password_matches_every_form() {
        // Each form has its own way to be checked; a mixed-up key or order of user and password fails here.
        let md5 = postgres_protocol::password::md5(b"pencil", "user");

        for secret in ["pencil", md5.as_str(), SCRAM].map(Secret::parse) {
            assert_eq!(secret.check_password("user", "pencil"), Ok(()), "{secret:?}");
            assert_eq!(secret.check_password("user", "Pencil"), Err(WrongPassword), "{secret:?}");
            assert_eq!(secret.check_password("user", ""), Err(WrongPassword), "{secret:?}");
        }
        assert_eq!(Secret::parse("").check_password("user", ""), Err(WrongPassword));
    }

    #[test]
    fn a_secret_made_by_postgresql_matches_its_password() {
        // Made by PostgreSQL 15; the soft hyphen goes away only when SASLprep is done as there.
        let secret = Secret::parse(
            "SCRAM-SHA-256$4096:VQWeXvUPqFrAHOwldoZFCw==$yCk4o9qWGwGFHp1hb4FoPLDAV+zBfHcNjJzhMzsAyd0=:MQgtSUq9D1O+FTFABjBQZ6vh+mt8YAPNf54rYd32XSg=",
        );

        assert_eq!(secret.check_password("zo", "I\u{ad}X-p\u{e4}ss"), Ok(()));
        assert_eq!(secret.check_password("zo", "IX-p\u{e4}ss"), Ok(()));
        assert_eq!(secret.check_password("zo", "IX-pass"), Err(WrongPassword));
    }

    #[test]
    fn debug_reveals_nothing() {
        // A derived Debug would print the key or the password.
        let secret = Secret::parse(SCRAM);
        let Secret::Scram(scram) = &secret else { panic!("SCRAM expected") };

        assert_eq!(format!("{secret:?} {scram:?}"), "Scram(…) ScramSecret { iterations: 4096, .. }");
        assert_eq!(format!("{:?}", Secret::parse("hunter2").credential()), "Password(…)");
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "(md5|SCRAM-SHA-256\\$)?[0-9a-f:$=+/é]{0,80}") {
            // Any text may stand in a file; slicing inside a character would panic.
            let _ = Secret::parse(&text);
        }
    }
}
