//! Throwaway servers for a look at tidegate.

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tidegate_chaos::dev;

/// Throwaway servers for a look at tidegate.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a primary, a standby and a sidecar in front; remove everything on Ctrl-C.
    Dev(dev::Options),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Command::Dev(options) = Arguments::parse().command;
    match dev::run(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let causes = std::iter::successors(error.source(), |cause| (*cause).source());
            causes.for_each(|cause| eprintln!("  because: {cause}"));
            ExitCode::FAILURE
        }
    }
}
