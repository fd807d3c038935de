//! tidegate: a resilience sidecar for PostgreSQL.
//!
//! Modules in reading order: an application comes in through `frontend`, becomes a `session`, gets a backend
//! through the `stack` from a `pool`, and its bytes are carried as `exchange`s.

pub mod cli;
pub mod config;

pub mod clock;
pub mod io;
pub mod wire;

pub mod auth;
pub mod tls;

pub mod sql;

pub mod exchange;

pub mod backend;
pub mod pool;

pub mod stack;

pub mod session;

pub mod frontend;

pub mod server;
pub mod telemetry;
