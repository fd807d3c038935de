//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::plan::{Protocol, Workload};
use crate::subject::Kind;

/// Compares tidegate with its peers by pgbench, on this machine, in one run.
#[derive(Debug, Parser)]
#[command(name = "pgbench-table", args_conflicts_with_subcommands = true)]
pub struct Args {
    /// A part of the benchmark that runs as a process of its own.
    #[command(subcommand)]
    pub command: Option<Part>,
    /// The tidegate binary; without it the other subjects are measured alone.
    #[arg(long, default_value = "target/release/tidegate")]
    pub tidegate: PathBuf,
    /// Workloads, each with all client counts and protocols [default: select-only in full, a few of the others].
    #[arg(long, value_enum, value_delimiter = ',')]
    pub rows: Vec<Workload>,
    /// Client counts [default: 1,16,64,500].
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=500))]
    pub clients: Vec<u32>,
    /// Protocols [default: all].
    #[arg(long, value_enum, value_delimiter = ',')]
    pub protocols: Vec<Protocol>,
    /// Subjects; one that is not installed is then an error [default: all that are installed].
    #[arg(long, value_enum, value_delimiter = ',')]
    pub subjects: Vec<Kind>,
    /// Length of one measurement in seconds.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub seconds: u32,
    /// Measurements of each subject in each row; the subjects take turns.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(2..=100))]
    pub rounds: u32,
    /// Four rows only: a first look, about two minutes.
    #[arg(long)]
    pub quick: bool,
    /// Write all figures to this file too.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Instead of pgbench: open this many sessions that do nothing, and show the memory held for them.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=25_000))]
    pub idle: Option<u32>,
}

/// See [`Args::command`].
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum Part {
    /// The bare TCP relay.
    Relay {
        /// Address to accept connections on.
        #[arg(long)]
        listen: SocketAddr,
        /// Address to connect each of them to.
        #[arg(long)]
        to: SocketAddr,
    },
}
