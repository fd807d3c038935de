//! The SQLSTATEs that we test for or send (`src/backend/utils/errcodes.txt`).

use std::fmt;

/// A five-character SQLSTATE.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState([u8; 5]);

impl SqlState {
    /// The peer broke the protocol.
    pub const PROTOCOL_VIOLATION: Self = Self(*b"08P01");
    /// A COMMIT's outcome is not known.
    pub const TRANSACTION_RESOLUTION_UNKNOWN: Self = Self(*b"08007");
    /// A feature that the server does not have, or a cached plan that no longer fits.
    pub const FEATURE_NOT_SUPPORTED: Self = Self(*b"0A000");
    /// Statement in a failed transaction.
    pub const IN_FAILED_SQL_TRANSACTION: Self = Self(*b"25P02");
    /// Idle in a transaction for too long.
    pub const IDLE_IN_TRANSACTION_SESSION_TIMEOUT: Self = Self(*b"25P03");
    /// The user or the way of authenticating is not acceptable.
    pub const INVALID_AUTHORIZATION: Self = Self(*b"28000");
    /// The proof of identity is wrong.
    pub const INVALID_PASSWORD: Self = Self(*b"28P01");
    /// The database does not exist.
    pub const INVALID_CATALOG_NAME: Self = Self(*b"3D000");
    /// The transaction was rolled back.
    pub const TRANSACTION_ROLLBACK: Self = Self(*b"40000");
    /// A name or option that does not exist.
    pub const UNDEFINED_OBJECT: Self = Self(*b"42704");
    /// Not enough resources: nothing usable behind us.
    pub const INSUFFICIENT_RESOURCES: Self = Self(*b"53000");
    /// Too many connections.
    pub const TOO_MANY_CONNECTIONS: Self = Self(*b"53300");
    /// A statement was cancelled.
    pub const QUERY_CANCELED: Self = Self(*b"57014");
    /// The server is told to stop.
    pub const ADMIN_SHUTDOWN: Self = Self(*b"57P01");
    /// The server does not accept connections now.
    pub const CANNOT_CONNECT_NOW: Self = Self(*b"57P03");
    /// Idle for too long.
    pub const IDLE_SESSION_TIMEOUT: Self = Self(*b"57P05");
    /// Something that should not happen.
    pub const INTERNAL_ERROR: Self = Self(*b"XX000");

    /// Reads a code; `None` unless it is five ASCII letters or digits.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let code: [u8; 5] = bytes.try_into().ok()?;
        code.iter().all(u8::is_ascii_alphanumeric).then_some(Self(code))
    }

    /// The code as text.
    pub fn as_bytes(&self) -> &[u8; 5] {
        &self.0
    }

    /// The two characters of the class.
    pub fn class(&self) -> [u8; 2] {
        [self.0[0], self.0[1]]
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|&b| write!(f, "{}", char::from(b)))
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqlState({self})")
    }
}
