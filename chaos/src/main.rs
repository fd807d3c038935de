//! Throwaway servers for a look at tidegate, and scenarios that break them.

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tidegate_chaos::cli::{self, Outcome, Run};
use tidegate_chaos::fault::catalogue::catalogue;
use tidegate_chaos::subject::broken::{self, Way};
use tidegate_chaos::{dev, relay, report, scenario, service};
use tokio::signal::unix::{SignalKind, signal};

/// Throwaway servers for a look at tidegate, and scenarios that break them.
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
    /// Run scenarios; ends with 0 only if every claim holds.
    Run(Run),
    /// Draw page and picture again from `report.json` files, all of their runs side by side.
    Report {
        /// The files.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Where page and picture go.
        #[arg(long, default_value = "chaos-report")]
        out: PathBuf,
    },
    /// List the scenarios.
    Scenarios,
    /// List the faults, and which of them work on this machine.
    Faults,
    /// A plain HTTP service without deadlines, as scenarios put behind the reverse proxy.
    Service {
        /// Where its database is.
        #[arg(long, env = "DATABASE_URL")]
        database: url::Url,
        /// Where it listens.
        #[arg(long, env = "LISTEN", default_value = "127.0.0.1:8080")]
        listen: SocketAddr,
    },
    /// A proxy that is broken on purpose, to be a subject: its runs must be refuted.
    Broken {
        /// In which way.
        way: Way,
        /// Where it listens.
        #[arg(long, env = "LISTEN")]
        listen: SocketAddr,
        /// The servers, the primary first.
        #[arg(long, env = "UPSTREAMS", value_delimiter = ',', required = true)]
        upstreams: Vec<SocketAddr>,
    },
    /// Relays that speak Toxiproxy's HTTP API.
    Relay {
        /// Where the API listens.
        #[arg(long, default_value = "127.0.0.1:8474")]
        api: SocketAddr,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome: Result<ExitCode, Box<dyn Error>> = match Arguments::parse().command {
        Command::Dev(options) => done(dev::run(options).await),
        Command::Run(arguments) => run(arguments).await,
        Command::Report { files, out } => done(report::again(&files, &out)),
        Command::Scenarios => Ok(scenarios()),
        Command::Faults => Ok(faults()),
        Command::Service { database, listen } => done(service::serve(&database, listen).await),
        Command::Broken { way, listen, upstreams } => done(broken::serve(way, listen, &upstreams).await),
        Command::Relay { api } => done(relay::api::serve(api).await),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        let causes = std::iter::successors(error.source(), |cause| (*cause).source());
        causes.for_each(|cause| eprintln!("  because: {cause}"));
        ExitCode::FAILURE
    })
}

/// Ctrl-C and SIGTERM drop the run, and so heal its faults.
async fn run(arguments: Run) -> Result<ExitCode, Box<dyn Error>> {
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        outcome = cli::run(arguments) => Ok(match outcome? {
            Outcome::AllHold => ExitCode::SUCCESS,
            Outcome::NotAll => ExitCode::FAILURE,
        }),
        _ = interrupted.recv() => Ok(interruption()),
        _ = terminated.recv() => Ok(interruption()),
    }
}

fn interruption() -> ExitCode {
    eprintln!("interrupted: healing faults and removing everything");
    ExitCode::FAILURE
}

fn done<E: Error + 'static>(result: Result<(), E>) -> Result<ExitCode, Box<dyn Error>> {
    result.map(|()| ExitCode::SUCCESS).map_err(Into::into)
}

fn scenarios() -> ExitCode {
    for name in scenario::names() {
        let summary = scenario::Scenario::load(name).map(|scenario| scenario.summary);
        println!("{name:<26} {}", summary.unwrap_or_else(|error| error.to_string()));
    }
    ExitCode::SUCCESS
}

fn faults() -> ExitCode {
    for entry in catalogue() {
        let state = entry.obstacle.map_or_else(|| "works".to_owned(), |why| format!("no: {why}"));
        println!("{:<22} {:<58} {state}", entry.name, entry.what);
    }
    ExitCode::SUCCESS
}
