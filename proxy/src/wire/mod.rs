//! Version 3 of the PostgreSQL frontend/backend protocol, as bytes.
//!
//! Pure: no I/O, no clock, no logging. On the way through only frame headers are read; the few bodies that
//! decide something (names of prepared statements, transaction status, error fields) are parsed here and
//! nowhere else. Everything else is passed on untouched, because what is not parsed cannot be parsed wrongly.
//!
//! Source: PostgreSQL documentation, "Frontend/Backend Protocol"; `src/include/libpq/protocol.h`.

pub mod backend;
pub mod error_fields;
pub mod frame;
pub mod frontend;
pub mod sqlstate;
pub mod startup;
pub mod transaction_status;

pub use error_fields::{ErrorFields, ErrorMessage, Severity};
pub use frame::{Header, WireError};
pub use sqlstate::SqlState;
pub use transaction_status::TransactionStatus;

#[cfg(test)]
mod tests;
