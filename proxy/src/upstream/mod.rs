//! The servers behind us as plain data: who they are, what is known of them, which of them may serve.
//!
//! Nothing in here does I/O or reads a clock. `discovery` observes, decides and publishes a [`Topology`]; whoever
//! needs a server reads the snapshot in force and asks [`route()`].

pub mod fencing;
pub mod identity;
pub mod membership;
pub mod route;
pub mod topology;

pub use fencing::{Fence, Lineage};
pub use identity::{Lsn, Observation, SystemIdentifier, TimelineId, UpstreamId};
pub use route::{LastWrite, ReadPolicy, SessionView, WhyNot, route};
pub use topology::{Epoch, Health, Role, Topology, UpstreamView, Writes};
