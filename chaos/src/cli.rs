//! The commands that run scenarios.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::cluster::{self, Programs};
use crate::report::{self, Judgement};
use crate::run::{self, RunOptions, RunPrograms, Service};
use crate::scenario::{self, Scenario};
use crate::subject::{Kind, SubjectPrograms};

/// `tidegate-chaos run`
#[derive(Debug, Clone, clap::Args)]
pub struct Run {
    /// Scenarios: names of `tidegate-chaos scenarios`, or files.
    #[arg(required = true)]
    pub names: Vec<String>,
    /// What stands between application and servers: tidegate, pgbouncer, direct, or a command line that listens
    /// on $LISTEN and connects to $UPSTREAM. May be repeated: the report shows them side by side.
    #[arg(long, default_value = "tidegate")]
    pub subject: Vec<Kind>,
    /// Seed of everything that is drawn [default: from the clock].
    #[arg(long)]
    pub seed: Option<u64>,
    /// Runs of each scenario, with consecutive seeds.
    #[arg(long, default_value_t = 1)]
    pub runs: u64,
    /// `PostgreSQL`'s program folder [default: as found].
    #[arg(long, value_name = "BIN")]
    pub pg: Option<PathBuf>,
    /// Where reports, histories and logs go.
    #[arg(long, default_value = "chaos-report")]
    pub out: PathBuf,
    /// Shorter phases: shows that nothing is broken, not how well it does.
    #[arg(long)]
    pub quick: bool,
    /// When a claim is refuted, look for the fewest steps that still refute one.
    #[arg(long)]
    pub shrink: bool,
    /// The sidecar's binary [default: `tidegate` beside this program].
    #[arg(long)]
    pub tidegate: Option<PathBuf>,
    /// `PgBouncer`'s [default: on the PATH].
    #[arg(long)]
    pub pgbouncer: Option<PathBuf>,
    /// The HTTP service: a program that reads `DATABASE_URL` and `LISTEN`, or `plain` for a service without
    /// deadlines [default: the client's example `axum_orders` beside this program when it was built, else plain].
    #[arg(long)]
    pub service: Option<PathBuf>,
    /// `HAProxy`'s binary [default: on the PATH].
    #[arg(long)]
    pub haproxy: Option<PathBuf>,
}

/// Why nothing was run, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such scenario.
    #[error(transparent)]
    Scenario(#[from] scenario::Error),
    /// No `PostgreSQL`.
    #[error("cannot find PostgreSQL")]
    Postgres(#[from] cluster::Error),
    /// The run itself failed.
    #[error("{scenario} against {subject} failed")]
    Run {
        /// Its name.
        scenario: String,
        /// What it ran against.
        subject: Kind,
        /// Why.
        source: run::Error,
    },
    /// A report could not be written.
    #[error("cannot write a report")]
    Report(#[from] std::io::Error),
    /// A program that was asked for is not there.
    #[error("{0} is not installed; name its binary")]
    Missing(&'static str),
}

/// Whether every claim of every run held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All of them.
    AllHold,
    /// At least one is refuted or undecided.
    NotAll,
}

/// Runs the scenarios against the subjects, one after another, and writes a report for each scenario.
pub async fn run(arguments: Run) -> Result<Outcome, Error> {
    let scenarios: Result<Vec<Scenario>, _> =
        arguments.names.iter().map(|name| Scenario::load(name)).collect();
    let scenarios = scenarios?;
    let postgres = match &arguments.pg {
        Some(dir) => Programs::at(dir)?,
        None => Programs::find()?,
    };
    let programs = programs(&arguments)?;
    let first = arguments.seed.unwrap_or_else(from_clock);
    let seeds = (0..arguments.runs).map(|number| first.wrapping_add(number));
    let mut outcome = Outcome::AllHold;
    for (seed, scenario) in seeds.flat_map(|seed| scenarios.iter().map(move |scenario| (seed, scenario))) {
        let scenario = scenario::random::fill(scenario.clone(), seed);
        let scenario = if arguments.quick { scenario.quick() } else { scenario };
        if let Some(why) = scenario.obstacle() {
            println!("{}: cannot run here: {why}\n", scenario.name);
            outcome = Outcome::NotAll;
            continue;
        }
        let judged = match one(&arguments, &scenario, seed, &postgres, &programs).await {
            Ok(judged) => judged,
            // The next one may tell something.
            Err(error @ Error::Run { .. }) => {
                println!("  {}\n", with_causes(&error));
                outcome = Outcome::NotAll;
                continue;
            }
            Err(error) => return Err(error),
        };
        if judged.iter().any(|judgement| !judgement.holds()) {
            outcome = Outcome::NotAll;
        }
        if arguments.shrink && judged.iter().any(Judgement::is_refuted) {
            shrink(&arguments, scenario, seed, &postgres, &programs).await?;
        }
    }
    Ok(outcome)
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}\n    because: {cause}"))
}

/// Drops steps as long as a claim is still refuted, and keeps what is left as a scenario file.
async fn shrink(
    arguments: &Run,
    scenario: Scenario,
    seed: u64,
    postgres: &Programs,
    programs: &RunPrograms,
) -> Result<(), Error> {
    let mut smallest = scenario;
    let mut tried = scenario::random::smaller(&smallest).into_iter();
    while let Some(less) = tried.next() {
        println!("shrinking: {} of {} steps", less.steps.len(), smallest.steps.len());
        let judged = one(arguments, &less, seed, postgres, programs).await?;
        if judged.iter().any(Judgement::is_refuted) {
            tried = scenario::random::smaller(&less).into_iter();
            smallest = less;
        }
    }
    let path = arguments.out.join(format!("{}-{seed}.toml", smallest.name));
    std::fs::write(&path, smallest.to_toml())?;
    println!("smallest plan: {}", path.display());
    Ok(())
}

/// One scenario against every subject.
async fn one(
    arguments: &Run,
    scenario: &Scenario,
    seed: u64,
    postgres: &Programs,
    programs: &RunPrograms,
) -> Result<Vec<Judgement>, Error> {
    let name = scenario.name.clone();
    println!("{name}: {}", scenario.summary);
    println!("  seed {seed}, PostgreSQL {}, harness {}", postgres.full_version(), env!("CARGO_PKG_VERSION"));
    for step in &scenario.steps {
        let (at, lasts) = (step.at.as_secs_f64(), step.lasts.as_secs_f64());
        println!("  at {at:>4.1} s for {lasts:>4.1} s  {}", step.fault);
    }
    let dir = match arguments.runs {
        1 => arguments.out.join(&name),
        _ => arguments.out.join(format!("{name}-{seed}")),
    };
    let mut judged = Vec::new();
    for subject in &arguments.subject {
        println!("  against {subject}");
        let out = dir.join(file_name(subject));
        let options = RunOptions {
            scenario: scenario.clone(),
            subject: subject.clone(),
            seed,
            quick: arguments.quick,
            postgres: postgres.clone(),
            programs: programs.clone(),
        };
        let failed = |source| Error::Run { scenario: name.clone(), subject: subject.clone(), source };
        let record = run::run(options, &out).await.map_err(failed)?;
        let judgement = Judgement::of(record, &scenario.claims);
        report::print(&judgement);
        judged.push(judgement);
    }
    let written = report::write(&judged, &dir)?;
    println!("  report: {}\n", written.display());
    Ok(judged)
}

/// `host/path with spaces` is no name for a folder.
fn file_name(subject: &Kind) -> String {
    let text = subject.to_string();
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '-' };
    text.chars().map(plain).take(40).collect()
}

fn from_clock() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Short enough to be typed.
    since.as_secs() % 1_000_000
}

fn programs(arguments: &Run) -> Result<RunPrograms, Error> {
    let here = std::env::current_exe()?;
    let tidegate = arguments.tidegate.clone().unwrap_or_else(|| here.with_file_name("tidegate"));
    let pgbouncer = arguments.pgbouncer.clone().or_else(|| on_path("pgbouncer"));
    let wanted = |kind: &Kind| arguments.subject.contains(kind);
    if pgbouncer.is_none() && wanted(&Kind::PgBouncer) {
        return Err(Error::Missing("PgBouncer"));
    }
    if !tidegate.is_file() && wanted(&Kind::Tidegate) {
        return Err(Error::Missing("tidegate"));
    }
    let example = here.parent().map(|dir| dir.join("examples/axum_orders"));
    let plain = || Service { program: here.clone(), arguments: vec!["service".to_owned()] };
    let of = |program: PathBuf| Service { program, arguments: Vec::new() };
    let service = match &arguments.service {
        Some(name) if name.as_os_str() == "plain" => plain(),
        Some(program) => of(program.clone()),
        None => example.filter(|path| path.is_file()).map_or_else(plain, of),
    };
    let haproxy = arguments.haproxy.clone().or_else(|| on_path("haproxy"));
    if haproxy.is_none() {
        println!("without HAProxy nothing is measured over HTTP");
    }
    let subjects = SubjectPrograms { tidegate, pgbouncer: pgbouncer.unwrap_or_default() };
    Ok(RunPrograms { subjects, service: Some(service), haproxy })
}

/// On the PATH, or where Debian puts daemons.
pub fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    dirs.map(|dir: PathBuf| Path::new(&dir).join(program)).find(|file| file.is_file())
}
