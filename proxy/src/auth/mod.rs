//! Authentication, sans-io: who an application is, and how we prove ourselves to a backend.
//!
//! Nothing here reads a socket or waits. The login code moves the messages; this module decides what they
//! say. No secret is ever part of a `Debug` output or of an error.

pub mod md5;
pub mod scram;
pub mod secret;
pub mod userlist;

use std::fmt;
use std::sync::Arc;

use subtle::ConstantTimeEq;

pub use md5::Md5Digest;
pub use scram::{ScramError, ScramKeys};
pub use secret::{Look, ScramSecret, Secret};
pub use userlist::{Userlist, UserlistError};

use crate::config::Password;

/// The proof that was given does not fit the user, or the user does not exist: never told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("password authentication failed")]
pub struct WrongPassword;

/// What we can prove to a backend with, on behalf of one user.
#[derive(Clone, Default)]
pub enum Credential {
    /// Nothing: only `trust`, `peer` or a client certificate will do.
    #[default]
    None,
    /// The password: every method of PostgreSQL.
    Password(Password),
    /// The stored md5 digest: the `md5` method only.
    Md5Digest(Md5Digest),
    /// Keys taken from the application's own SCRAM proof: SCRAM only, and only against a server that
    /// stores the very same secret (salt and iterations included).
    ScramKeys(Arc<ScramKeys>),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Password(_) => "Password(…)",
            Self::Md5Digest(_) => "Md5Digest(…)",
            Self::ScramKeys(_) => "ScramKeys(…)",
        })
    }
}

/// Compares without telling by its duration where the two differ. Lengths are not secret.
fn same(left: &[u8], right: &[u8]) -> Result<(), WrongPassword> {
    if bool::from(left.ct_eq(right)) { Ok(()) } else { Err(WrongPassword) }
}
