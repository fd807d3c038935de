//! Tower layers for services that may *hang*, not only fail.
//!
//! The layers know nothing of any protocol: what counts as a failure, what a probe does and what a cause is
//! called are passed in by the caller.

pub mod backoff;
pub mod breaker;
pub mod deadline;
pub mod shed;

pub use backoff::Backoff;
pub use breaker::{Breaker, BreakerConfig, BreakerLayer, CircuitOpen};
pub use deadline::{Deadline, DeadlineExceeded, EnforceDeadline, EnforceDeadlineLayer, HasDeadline};
pub use shed::{Overloaded, Priority, Shed, ShedLayer};
