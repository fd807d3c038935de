//! What the sidecar tells about itself: logs, metrics, and the control plane that serves them.

pub mod admin;
mod debug;
pub mod exposition;
pub mod histogram;
pub mod lanes;
pub mod logs;
pub mod metrics;
pub mod process;
pub mod scrape;
