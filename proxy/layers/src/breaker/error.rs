use std::time::Duration;

use thiserror::Error;

/// The call was refused because the service is known not to do its work. Nothing was sent: sending it again is
/// safe, after `retry_after`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("circuit open")]
pub struct CircuitOpen<C> {
    /// What is wrong with the service, as far as it is known.
    pub cause: Option<C>,
    /// When calls may be let through again, at the earliest.
    pub retry_after: Duration,
}
