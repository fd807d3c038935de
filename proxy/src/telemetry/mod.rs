//! What the sidecar tells about itself: logs, metrics, and the control plane that serves them.

pub mod admin;
pub mod logs;
pub mod metrics;
