//! tidegate: a resilience sidecar for PostgreSQL.
//!
//! Modules in reading order: an application comes in through `frontend`, becomes a `session`, gets a backend
//! through the `stack` from a `pool`, and its bytes are carried as `exchange`s. Which `upstream` serves is found out
//! by `discovery`.

pub mod cli;
pub mod config;
pub mod import;

pub mod clock;
pub mod directory;
pub mod state_dir;
pub mod timestamp;

pub mod io;
pub mod wire;

pub mod auth;
pub mod tls;

pub mod sql;

pub mod exchange;

pub mod upstream;

pub mod backend;
pub mod guard;
pub mod pool;
pub mod probe;

pub mod discovery;
pub mod failover;

pub mod outcome;

pub mod stack;

pub mod session;

pub mod frontend;

pub mod alerts;
pub mod console;
pub mod journal;
pub mod watchdog;

pub mod file_limit;
pub mod run;
pub mod server;
pub mod status;
pub mod sweep;
pub mod telemetry;
pub mod worker;
