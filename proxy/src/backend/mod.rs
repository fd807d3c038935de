//! PostgreSQL's side of us: connections to servers, from connect to close.

pub mod cancel;
pub mod connect;
pub mod connection;
pub mod prepared;
pub mod settings;

pub use cancel::CancelTarget;
pub use connect::{ConnectError, Connector, Login};
pub use connection::{Backend, BackendError, ServerError};
pub use prepared::{Prepared, Statement, StatementId};
pub use settings::Settings;
