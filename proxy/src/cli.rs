//! The command line: `tidegate [run]`, `tidegate check`, `tidegate import`, `tidegate status`.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{Config, ConfigErrors, ListenAddress, Password, Sources};
use crate::import;

/// What the process was asked to do.
#[derive(Debug, Clone)]
pub enum Command {
    /// Serve.
    Run(Options),
    /// Explain the configuration, and stop.
    Check(Options),
    /// Translate a configuration of PgBouncer's.
    Import(import::Options),
    /// Show the state of a running sidecar.
    Status(Options, StatusOptions),
}

/// The flags that all commands share.
#[derive(Debug, Clone, Default, Args)]
pub struct Options {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", env = "TIDEGATE_CONFIG", global = true)]
    pub config: Option<PathBuf>,
    /// Address to accept applications on, instead of listen.address; repeatable
    #[arg(long, value_name = "ADDR", global = true)]
    pub listen: Vec<String>,
    /// Address of the control plane, instead of admin.address
    #[arg(long, value_name = "ADDR", global = true)]
    pub admin: Option<String>,
    /// Server, as postgres://user:password@host:port/database or host:port; repeatable
    #[arg(long, value_name = "URL", value_parser = secret, global = true)]
    pub upstream: Vec<Password>,
    /// Form of the log [default: human on a terminal, else json]
    #[arg(long, value_name = "FORMAT", env = "TIDEGATE_LOG_FORMAT", global = true)]
    pub log_format: Option<LogFormat>,
}

/// The flags of `tidegate status`.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct StatusOptions {
    /// Show it again each second, until interrupted
    #[arg(long)]
    pub watch: bool,
    /// Print the document as JSON, as /status has it
    #[arg(long)]
    pub json: bool,
}

/// See [`Options::log_format`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// A resilience sidecar for PostgreSQL.
#[derive(Parser)]
#[command(name = "tidegate", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Option<Name>,
    #[command(flatten)]
    options: Options,
}

#[derive(Clone, Subcommand)]
enum Name {
    /// Serve (the default)
    Run,
    /// Explain every problem and the sizes; exit 0 when good, 2 when not
    Check,
    /// Print a tidegate.toml made from PgBouncer's configuration file; exit 0 when check would accept it
    Import(import::Options),
    /// Show the state of a running sidecar; exit 0 when both lanes are served, 3 when one is not, 1 when it
    /// cannot be asked
    Status(StatusOptions),
}

#[expect(clippy::unnecessary_wraps, reason = "the signature of a clap value parser")]
fn secret(text: &str) -> Result<Password, std::convert::Infallible> {
    Ok(Password::new(text.to_owned()))
}

/// Parses the arguments of this process; on wrong usage prints why and exits with 2, as clap does.
pub fn parse() -> Command {
    Cli::parse().into()
}

/// Parses these arguments, the first of which is the name of the program.
///
/// # Errors
/// Wrong usage, and requests for help or the version; clap's error knows how to print itself.
pub fn parse_from<I, T>(arguments: I) -> Result<Command, clap::Error>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    Cli::try_parse_from(arguments).map(Into::into)
}

impl From<Cli> for Command {
    fn from(cli: Cli) -> Self {
        match cli.command {
            None | Some(Name::Run) => Self::Run(cli.options),
            Some(Name::Check) => Self::Check(cli.options),
            Some(Name::Import(import)) => Self::Import(import),
            Some(Name::Status(status)) => Self::Status(cli.options, status),
        }
    }
}

impl Options {
    /// The sources of configuration that these flags and the environment of this process name.
    pub fn sources(&self) -> Sources {
        Sources {
            file: self.config.clone(),
            environment: Sources::process_environment(),
            listen: self.listen.clone(),
            admin: self.admin.clone(),
            upstreams: self.upstream.clone(),
        }
    }
}

/// What `tidegate check` found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A sidecar would start with it.
    Good,
    /// A sidecar would refuse it.
    Bad,
}

/// `tidegate check`: explains the configuration on standard output. Exit 0 when it is good, 2 when not.
pub fn check(options: &Options) -> ExitCode {
    match explain(&options.sources(), &mut io::stdout().lock()) {
        Ok(Verdict::Good) => ExitCode::SUCCESS,
        Ok(Verdict::Bad) => ExitCode::from(2),
        // Nobody reads what we say, so nobody can take it for good.
        Err(_) => ExitCode::FAILURE,
    }
}

/// Loads a configuration and writes what it means, or everything that is wrong with it.
///
/// # Errors
/// Only those of `out`.
pub fn explain(sources: &Sources, out: &mut impl Write) -> io::Result<Verdict> {
    match Config::load(sources) {
        Ok(config) => {
            summary(&config, out)?;
            warnings(&config.warnings, out)?;
            let problems = crate::server::file_problems(&config);
            for problem in &problems {
                writeln!(out, "error: {problem}")?;
            }
            if !problems.is_empty() {
                writeln!(out, "The configuration is refused: {} problem(s).", problems.len())?;
                return Ok(Verdict::Bad);
            }
            writeln!(out, "The configuration is good.")?;
            Ok(Verdict::Good)
        }
        Err(ConfigErrors { problems, warnings: odd }) => {
            for problem in &problems {
                writeln!(out, "error: {problem}")?;
            }
            warnings(&odd, out)?;
            writeln!(out, "The configuration is refused: {} problem(s).", problems.len())?;
            Ok(Verdict::Bad)
        }
    }
}

fn warnings(warnings: &[String], out: &mut impl Write) -> io::Result<()> {
    warnings.iter().try_for_each(|warning| writeln!(out, "warning: {warning}"))
}

fn summary(config: &Config, out: &mut impl Write) -> io::Result<()> {
    let pool = &config.pool;
    let timeouts = &config.timeouts;
    let listen: Vec<_> = config.listen.addresses.iter().map(ListenAddress::to_string).collect();
    let upstreams: Vec<_> = config.cluster.upstreams.iter().map(ToString::to_string).collect();
    writeln!(out, "listen: {}, at most {} sessions", listen.join(", "), config.listen.max_sessions)?;
    writeln!(out, "admin: {}", config.admin.address)?;
    writeln!(out, "cluster: {}", upstreams.join(", "))?;
    writeln!(
        out,
        "pool: {} backends per database and user, at most {} per upstream; write lane may hold {}",
        pool.size,
        pool.max_per_upstream,
        pool.write_slots()
    )?;
    writeln!(
        out,
        "max_connections: each sidecar takes up to {} of every server; with 10 sidecars that is {}",
        pool.max_per_upstream,
        pool.max_per_upstream * 10
    )?;
    writeln!(
        out,
        "waits: queue {}, connect {}, read {}, write {}, commit {}, transaction {}",
        bound(timeouts.queue),
        bound(timeouts.connect),
        bound(timeouts.read),
        bound(timeouts.write),
        bound(timeouts.commit),
        bound(timeouts.transaction)
    )?;
    writeln!(out, "workers: {}", config.workers)
}

fn bound(duration: Duration) -> String {
    if duration.is_zero() { "off".to_owned() } else { humantime::format_duration(duration).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(arguments: &[&str]) -> Options {
        let all = std::iter::once("tidegate").chain(arguments.iter().copied());
        match parse_from(all).unwrap() {
            Command::Run(options) | Command::Check(options) | Command::Status(options, _) => options,
            Command::Import(_) => panic!("it has no such options"),
        }
    }

    fn explained(arguments: &[&str]) -> (Verdict, String) {
        let mut out = Vec::new();
        let sources =
            Sources { environment: std::collections::BTreeMap::new(), ..options(arguments).sources() };
        let verdict = explain(&sources, &mut out).unwrap();
        (verdict, String::from_utf8(out).unwrap())
    }

    #[test]
    fn run_is_the_default_command() {
        // Flags must mean the same before, after and without the command.
        for arguments in [
            &["--upstream", "a", "--upstream", "b", "--log-format", "json"][..],
            &["run", "--upstream", "a", "--upstream", "b", "--log-format", "json"],
            &["--upstream", "a", "--upstream", "b", "--log-format", "json", "run"],
        ] {
            let all = std::iter::once("tidegate").chain(arguments.iter().copied());
            let Command::Run(options) = parse_from(all).unwrap() else { panic!("not run") };

            assert_eq!(options.upstream.len(), 2);
            assert_eq!(options.log_format, Some(LogFormat::Json));
        }
    }

    #[test]
    fn wrong_usage_is_told_from_help_and_version() {
        // Scripts rely on the exit code: 2 for wrong usage, 0 for what was asked for.
        for (argument, code) in [("--version", 0), ("--help", 0), ("--nothing", 2), ("fly", 2)] {
            assert_eq!(parse_from(["tidegate", argument]).unwrap_err().exit_code(), code, "{argument}");
        }
    }

    #[test]
    fn check_explains_the_sizes() {
        // An operator compares these numbers with max_connections.
        let (verdict, text) = explained(&["check", "--upstream", "postgres://u@db/x"]);

        assert_eq!(verdict, Verdict::Good);
        assert!(text.contains(
            "pool: 20 backends per database and user, at most 60 per upstream; write lane may hold 14"
        ));
    }

    #[test]
    fn check_shows_all_problems() {
        // Two mistakes, two lines, and the verdict that becomes exit code 2.
        let (verdict, text) =
            explained(&["check", "--listen", "0.0.0.0", "--admin", "x", "--upstream", "db"]);

        assert_eq!(verdict, Verdict::Bad);
        assert_eq!(text.matches("error: ").count(), 2, "{text}");
    }
}
