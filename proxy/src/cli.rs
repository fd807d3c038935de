//! The command line: `tidegate [run]`, `tidegate check`, `tidegate import`, `tidegate status`.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};

use crate::config::{Config, ConfigErrors, ListenAddress, Password, Sources};
use crate::{import, server};

// Texts of --help, where a variable is no code.
const CONFIG: &str = "Configuration file (TOML) [env: TIDEGATE_CONFIG]";
const CONFIG_ASKED: &str =
    "Configuration file of the sidecar, whose admin.address is asked [env: TIDEGATE_CONFIG]";
const LOG_FORMAT: &str =
    "Form of the log [default: human on a terminal, else json] [env: TIDEGATE_LOG_FORMAT]";

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

/// The flags of `tidegate run`, and of `tidegate check`, which explains what they would come to.
#[derive(Debug, Clone, Default, Args)]
pub struct Options {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", help = CONFIG)]
    pub config: Option<PathBuf>,
    /// Address to accept applications on, instead of listen.address; repeatable
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<String>,
    /// Address of the control plane, instead of admin.address
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<String>,
    /// Server, as postgres://user:password@host:port/database or host:port; repeatable
    #[arg(long, value_name = "URL", value_parser = secret)]
    pub upstream: Vec<Password>,
    /// Form of the log
    #[arg(long, value_name = "FORMAT", help = LOG_FORMAT)]
    pub log_format: Option<LogFormat>,
}

/// How `tidegate status` shows what it was told.
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
    Run(Options),
    /// Explain every problem and the sizes of what run would be told; exit 0 when good, 2 when not
    Check(Options),
    /// Print a tidegate.toml made from PgBouncer's configuration file; exit 0 when check would accept it
    Import(import::Options),
    /// Show the state of a running sidecar; exit 0 when both lanes are served, 3 when one is not, 1 when it
    /// cannot be asked
    Status(StatusFlags),
}

#[derive(Clone, Args)]
struct StatusFlags {
    /// Configuration file of the sidecar
    #[arg(long, value_name = "FILE", help = CONFIG_ASKED)]
    config: Option<PathBuf>,
    /// Address of the control plane to ask, whatever the file says [default: 127.0.0.1:6433]
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,
    #[command(flatten)]
    how: StatusOptions,
}

#[expect(clippy::unnecessary_wraps, reason = "the signature of a clap value parser")]
fn secret(text: &str) -> Result<Password, std::convert::Infallible> {
    Ok(Password::new(text.to_owned()))
}

/// Parses the arguments of this process; on wrong usage prints why and exits with 2, as clap does.
pub fn parse() -> Command {
    parse_from(std::env::args_os()).unwrap_or_else(|error| error.exit())
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
    Cli::try_parse_from(arguments)?.order()
}

impl Cli {
    /// Flags mean the same before and after the name of a command.
    fn order(self) -> Result<Command, clap::Error> {
        let Self { command, options: before } = self;
        match command {
            None => Ok(Command::Run(before.with_environment()?)),
            Some(Name::Run(after)) => Ok(Command::Run(before.and(after).with_environment()?)),
            Some(Name::Check(after)) => Ok(Command::Check(before.and(after).with_environment()?)),
            Some(Name::Import(import)) => {
                before.only(&[], "import")?;
                Ok(Command::Import(import))
            }
            Some(Name::Status(StatusFlags { config, admin, how })) => {
                before.only(&["--config", "--admin"], "status")?;
                let after = Options { config, admin, ..Options::default() };
                Ok(Command::Status(before.and(after).with_environment()?, how))
            }
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

    /// Both; where there can be only one the later counts.
    fn and(mut self, mut later: Self) -> Self {
        self.listen.append(&mut later.listen);
        self.upstream.append(&mut later.upstream);
        Self {
            config: later.config.or(self.config),
            admin: later.admin.or(self.admin),
            log_format: later.log_format.or(self.log_format),
            ..self
        }
    }

    /// Flags hide variables, and a variable that is empty counts as unset.
    fn with_environment(mut self) -> Result<Self, clap::Error> {
        let variable = |name| std::env::var_os(name).filter(|text| !text.is_empty());
        self.config = self.config.or_else(|| variable("TIDEGATE_CONFIG").map(PathBuf::from));
        if self.log_format.is_none()
            && let Some(text) = variable("TIDEGATE_LOG_FORMAT")
        {
            let format = LogFormat::from_str(&text.to_string_lossy(), false);
            self.log_format = Some(format.map_err(|_| {
                wrong_usage(format!("TIDEGATE_LOG_FORMAT is {}; write human or json", text.display()))
            })?);
        }
        Ok(self)
    }

    /// Refuses flags that a command has no use for.
    fn only(&self, known: &[&str], command: &str) -> Result<(), clap::Error> {
        let given = [
            ("--config", self.config.is_some()),
            ("--listen", !self.listen.is_empty()),
            ("--admin", self.admin.is_some()),
            ("--upstream", !self.upstream.is_empty()),
            ("--log-format", self.log_format.is_some()),
        ];
        match given.into_iter().find(|(flag, given)| *given && !known.contains(flag)) {
            Some((flag, _)) => Err(wrong_usage(format!("{flag} means nothing to tidegate {command}"))),
            None => Ok(()),
        }
    }
}

fn wrong_usage(what: String) -> clap::Error {
    Cli::command().error(ErrorKind::ArgumentConflict, what)
}

/// Why a sidecar would not start: all that is wrong with what it was told, and with the files named there.
#[derive(Debug)]
pub struct Refused {
    /// The reasons; never empty.
    pub problems: Vec<String>,
    /// What is allowed but probably not meant.
    pub warnings: Vec<String>,
}

impl Refused {
    /// Writes a line for each problem.
    ///
    /// # Errors
    /// Only those of `out`.
    pub fn show(&self, out: &mut impl Write) -> io::Result<()> {
        self.problems.iter().try_for_each(|problem| writeln!(out, "error: {problem}"))
    }
}

/// Adds what is wrong with the files that a configuration names.
///
/// # Errors
/// When anything is wrong with it or them.
pub fn with_files(loaded: Result<Config, ConfigErrors>) -> Result<Config, Refused> {
    match loaded {
        Ok(config) => {
            let problems = server::file_problems(&config.files());
            if problems.is_empty() {
                Ok(config)
            } else {
                Err(Refused { problems, warnings: config.warnings })
            }
        }
        Err(ConfigErrors { problems, warnings, files }) => {
            let mut problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
            problems.extend(server::file_problems(&files));
            Err(Refused { problems, warnings })
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
    match with_files(Config::load(sources)) {
        Ok(config) => {
            summary(&config, out)?;
            warnings(&config.warnings, out)?;
            writeln!(out, "The configuration is good.")?;
            Ok(Verdict::Good)
        }
        Err(refused) => {
            refused.show(out)?;
            warnings(&refused.warnings, out)?;
            writeln!(out, "The configuration is refused: {} problem(s).", refused.problems.len())?;
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

    #[test]
    fn check_finds_what_is_wrong_in_values_and_in_every_file_at_once() {
        // Seen: the password file alone; the run after that found the userlist and one file of TLS, below a summary that
        // looked like success.
        const BAD: &str = "listen.max_sessions = 0\nlisten.userlist = \"users\"\nlisten.tls = \"require\"\n\
            listen.tls_cert = \"crt\"\nlisten.tls_key = \"key\"\nlisten.tls_client_ca = \"clients\"\n\
            cluster.upstreams = \"db\"\ncluster.user = \"u\"\ncluster.passfile = \"pass\"\ncluster.tls = \"verify-ca\"\n\
            cluster.tls_ca = \"ca\"\ncluster.tls_cert = \"crt2\"\ncluster.tls_key = \"absent\"\n";
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tidegate.toml");
        std::fs::write(&path, BAD).unwrap();
        std::fs::write(folder.path().join("users"), "\"alone\"\n").unwrap();
        for empty in ["pass", "crt", "key", "clients", "ca", "crt2"] {
            std::fs::write(folder.path().join(empty), "").unwrap();
        }

        let (verdict, text) = explained(&["check", "--config", path.to_str().unwrap()]);

        assert_eq!(verdict, Verdict::Bad);
        for named in
            ["max_sessions", "passfile", "users:1", "/crt:", "/key:", "/clients:", "/ca:", "/crt2:", "absent"]
        {
            let found = text.lines().filter(|line| line.starts_with("error: ") && line.contains(named));
            assert_eq!(found.count(), 1, "{named}: {text}");
        }
        assert_eq!(text.matches("error: ").count(), 9, "{text}");
        assert!(text.ends_with("The configuration is refused: 9 problem(s).\n"), "{text}");
    }

    #[test]
    fn what_is_refused_is_not_summed_up() {
        // "listen: …, workers: 1" reads like success, and the refusal came below it.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tidegate.toml");
        std::fs::write(&path, "listen.userlist = \"users\"\ncluster.upstreams = \"db\"\n").unwrap();
        std::fs::write(folder.path().join("users"), "\"alone\"\n").unwrap();

        let (verdict, text) = explained(&["check", "--config", path.to_str().unwrap()]);

        assert_eq!(verdict, Verdict::Bad);
        assert!(!text.contains("listen: ") && !text.contains("workers: "), "{text}");
    }

    #[test]
    fn a_command_takes_and_shows_only_the_flags_that_it_uses() {
        // A flag that is taken and means nothing lets its writer believe that it means something.
        for (arguments, good) in [
            ("import x", true),
            ("import --listen a x", false),
            ("--listen a import x", false),
            ("--config a import x", false),
            ("import --log-format json x", false),
            ("status --admin a --config b --watch", true),
            ("--admin a --config b status", true),
            ("status --upstream a", false),
            ("--upstream a status", false),
            ("check --config a --listen b --admin c --upstream d --log-format json", true),
            ("--config a check", true),
        ] {
            let parsed = parse_from(std::iter::once("tidegate").chain(arguments.split(' ')));
            assert_eq!(parsed.is_ok(), good, "{arguments}");
            assert!(good || parsed.unwrap_err().exit_code() == 2, "{arguments}");
        }
        for (command, flags) in [("import", 0), ("status", 2), ("check", 5), ("run", 5)] {
            let help = parse_from(["tidegate", command, "--help"]).unwrap_err().to_string();
            let shown = ["--config ", "--listen ", "--admin ", "--upstream ", "--log-format "]
                .into_iter()
                .filter(|flag| help.contains(flag))
                .count();
            assert_eq!(shown, flags, "{help}");
        }
    }

    #[test]
    fn flags_before_and_after_the_command_add_up() {
        // What stands before it would be lost without a word.
        let both = options(&["--upstream", "a", "--config", "x", "run", "--upstream", "b", "--config", "y"]);

        assert_eq!(both.upstream.iter().map(Password::reveal).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(both.config, Some(PathBuf::from("y")));
    }
}
