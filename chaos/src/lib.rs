//! Real `PostgreSQL` servers, faults, and what must hold while they last.
//!
//! Words: a [`cluster::Node`] is one throwaway `PostgreSQL` server, a [`cluster::Cluster`] is a primary with
//! streaming standbys, [`cluster::Programs`] says whose binaries run. Everything that is started here ends
//! with the value that started it, also after a panic, and with the process, also after SIGKILL.
//!
//! A [`scenario::Scenario`] says what runs and what breaks; [`run::run`] plays it against a
//! [`subject::Subject`] under an open-loop [`workload`], with each [`fault`] at its time, and gives a
//! [`run::Record`]. The [`checker`] says which claims it supports, the [`report`] shows why. The proxy is
//! known as a program alone.
//!
//! Calls of [`cluster`], [`fault`] and [`subject`] block the calling thread, for milliseconds as a rule and for
//! seconds at worst (each has a deadline). Asynchronous callers use `tokio::task::spawn_blocking`.

pub mod checker;
pub mod cli;
pub mod cluster;
pub mod daemon;
pub mod dev;
pub mod fault;
pub mod history;
pub mod observe;
pub mod relay;
pub mod report;
pub mod run;
pub mod scenario;
pub mod service;
pub mod subject;
pub mod workload;
