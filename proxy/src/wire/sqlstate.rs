//! The SQLSTATEs that we test for or send (`src/backend/utils/errcodes.txt`).

use std::fmt;

/// A five-character SQLSTATE.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState([u8; 5]);

impl SqlState {
    /// The peer broke the protocol.
    pub const PROTOCOL_VIOLATION: Self = Self(*b"08P01");
    /// The connection to the server failed.
    pub const CONNECTION_FAILURE: Self = Self(*b"08006");
    /// A COMMIT's outcome is not known.
    pub const TRANSACTION_RESOLUTION_UNKNOWN: Self = Self(*b"08007");
    /// A feature that the server does not have, or a cached plan that no longer fits.
    pub const FEATURE_NOT_SUPPORTED: Self = Self(*b"0A000");
    /// A value that a setting cannot have.
    pub const INVALID_PARAMETER_VALUE: Self = Self(*b"22023");
    /// Something that only makes sense in a transaction.
    pub const NO_ACTIVE_SQL_TRANSACTION: Self = Self(*b"25P01");
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
    /// The user may not do this.
    pub const INSUFFICIENT_PRIVILEGE: Self = Self(*b"42501");
    /// The text is no command.
    pub const SYNTAX_ERROR: Self = Self(*b"42601");
    /// A prepared statement that does not exist.
    pub const UNDEFINED_STATEMENT: Self = Self(*b"26000");
    /// A portal that does not exist.
    pub const UNDEFINED_CURSOR: Self = Self(*b"34000");
    /// Not in the state that the command needs.
    pub const NOT_IN_PREREQUISITE_STATE: Self = Self(*b"55000");
    /// A setting that cannot be changed at run time.
    pub const CANT_CHANGE_PARAMETER: Self = Self(*b"55P02");
    /// The configuration is wrong.
    pub const CONFIG_FILE_ERROR: Self = Self(*b"F0000");
    /// No error at all: the code of notices.
    pub const SUCCESSFUL_COMPLETION: Self = Self(*b"00000");
    /// A name or option that does not exist.
    pub const UNDEFINED_OBJECT: Self = Self(*b"42704");
    /// A prepared statement of this name exists.
    pub const DUPLICATE_PREPARED_STATEMENT: Self = Self(*b"42P05");
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
