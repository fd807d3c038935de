//! tidegate: a resilience sidecar for PostgreSQL.

pub mod auth;
pub mod cli;
pub mod config;
pub mod sql;
pub mod tls;
