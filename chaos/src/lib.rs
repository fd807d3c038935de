//! Real `PostgreSQL` servers for tests and demonstrations.
//!
//! Words: a [`cluster::Node`] is one throwaway `PostgreSQL` server, a [`cluster::Cluster`] is a primary with
//! streaming standbys, [`cluster::Programs`] says whose binaries run. Everything that is started here ends
//! with the value that started it, also after a panic, and with the process, also after SIGKILL.
//!
//! All calls block the calling thread, for milliseconds as a rule and for seconds at worst (each has a
//! deadline). Asynchronous callers that measure something at the same time should use
//! `tokio::task::spawn_blocking`.

pub mod cluster;
pub mod dev;
