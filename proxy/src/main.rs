//! The sidecar's command line.

use std::process::ExitCode;

use tidegate::cli::{self, Command, Options};
use tidegate::config::Config;
use tidegate::{import, run, server, status, telemetry};

fn main() -> ExitCode {
    match cli::parse() {
        Command::Run(options) => run(&options),
        Command::Check(options) => cli::check(&options),
        Command::Import(options) => import::run(&options.file),
        Command::Status(options, how) => status::client::run(&options, how),
    }
}

/// 0: stopped as told. 1: failed while starting or running. 2: bad configuration.
fn run(options: &Options) -> ExitCode {
    let _last_lines = telemetry::logs::install(options.log_format);
    let sources = options.sources();
    let config = match cli::with_files(Config::load(&sources)) {
        Ok(config) => config,
        Err(refused) => {
            // Nobody else is there to be told.
            let _ = refused.show(&mut std::io::stderr().lock());
            return ExitCode::from(2);
        }
    };
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    match run::run(config, &sources) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", server::describe(&error));
            ExitCode::FAILURE
        }
    }
}
