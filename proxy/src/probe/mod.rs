//! Our own questions to one upstream, over control connections that applications never get.
//!
//! Everything here runs on the control plane's runtime. Each step has a deadline, and an upstream never sees
//! more than [`control::CONNECTIONS_MAX`] of these connections.
//!
//! [`WriteProbe`] and [`ReadProbe`] prove that a lane works, [`Diagnoser`] says why it does not, [`Looks`] says
//! what single backends wait for, and [`Identity`] says which server it is.

pub mod control;
pub mod diagnose;
mod door;
pub mod identity;
pub mod looks;
pub mod pulse;
pub mod read;
mod runner;
mod standbys;
pub mod write;

pub use control::{Control, ControlError};
pub use diagnose::Diagnoser;
pub use identity::{Identity, Lsn, Standing, SystemIdentifier, TimelineId};
pub use looks::{Look, Looks, Wait};
pub use pulse::{Good, Pulse};
pub use read::ReadProbe;
pub use write::WriteProbe;
