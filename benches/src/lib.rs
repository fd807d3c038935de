//! Benchmarks of tidegate against its peers. `README.md` in this folder says how to run and read them.
//!
//! - [`args`]: what the operator asked for; [`plan`]: the rows that follow from it.
//! - [`process`], [`postgres`], [`subject`]: the programs under test, started and stopped by us.
//! - [`pgbench`], [`usage`], [`session`]: one measurement.
//! - [`measure`], [`verdict`], [`report`]: all measurements of a row, what they say, how they are shown.
//! - [`idle`]: memory held for sessions that do nothing.
//! - [`relay`]: the physical limit: bytes copied between two sockets and nothing else.

pub mod args;
pub mod environment;
pub mod idle;
pub mod machine;
pub mod measure;
pub mod pgbench;
pub mod plan;
pub mod postgres;
pub mod process;
pub mod relay;
pub mod report;
pub mod session;
pub mod statistics;
pub mod subject;
pub mod usage;
pub mod verdict;
