//! `pgbench-table`: compares tidegate with its peers by pgbench. See the README of this crate.

use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use clap::Parser as _;
use tidegate_benches::args::{Args, Part};
use tidegate_benches::environment::Environment;
use tidegate_benches::machine::Machine;
use tidegate_benches::measure::{RowResult, Settings, measure};
use tidegate_benches::plan::rows;
use tidegate_benches::process::catch_interrupts;
use tidegate_benches::report::Report;
use tidegate_benches::subject::Kind;
use tidegate_benches::verdict::judge;
use tidegate_benches::{idle, relay};

/// Sessions that every subject must accept; more when more idle ones are asked for.
const SESSIONS_MAX: u32 = 2000;
/// Room for our own readiness logins next to the idle sessions.
const SESSIONS_SPARE: u32 = 100;

fn main() -> ExitCode {
    let args = Args::parse();
    let result = match args.command {
        Some(Part::Relay { listen, to }) => relay::run(listen, to),
        None => bench(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pgbench-table: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(args: &Args) -> Result<()> {
    catch_interrupts()?;
    let sessions_max = SESSIONS_MAX.max(args.idle.unwrap_or(0) + SESSIONS_SPARE);
    let environment = Environment::start(args.tidegate.clone(), sessions_max)?;
    let kinds = subjects(args, &environment)?;
    match args.idle {
        Some(sessions) => print_idle(&environment, &kinds, sessions, args.subjects.is_empty()),
        None => print_tables(args, &environment, &kinds),
    }
}

/// The subjects asked for, or all that are installed.
fn subjects(args: &Args, environment: &Environment) -> Result<Vec<Kind>> {
    let by_itself = |kind: &Kind| args.subjects.is_empty() && *kind != Kind::Watched;
    let asked = |kind: &Kind| by_itself(kind) || args.subjects.contains(kind);
    let (found, missing): (Vec<Kind>, Vec<Kind>) =
        Kind::ALL.into_iter().filter(asked).partition(|kind| kind.version(environment).is_some());
    for kind in &missing {
        eprintln!("{} is not installed: left out", kind.name());
    }
    ensure!(args.subjects.is_empty() || missing.is_empty(), "a subject that was asked for is not installed");
    Ok(found)
}

fn print_tables(args: &Args, environment: &Environment, kinds: &[Kind]) -> Result<()> {
    let settings = Settings { rounds: args.rounds, seconds: args.seconds };
    let plan = rows(args);
    ensure!(!plan.is_empty(), "no row matches");
    let mut results = Vec::new();
    for (number, row) in plan.iter().enumerate() {
        eprintln!("[{}/{}] {row}", number + 1, plan.len());
        results.push(measure(environment, *row, kinds, settings)?);
    }
    let failed = results.iter().any(RowResult::has_failure);
    let verdicts = judge(&results);
    let report = Report { machine: Machine::describe(environment, kinds), settings, rows: results, verdicts };
    println!("{}", report.markdown()?);
    if let Some(file) = &args.json {
        report.write_json(file)?;
    }
    if failed {
        bail!("a subject failed in at least one row");
    }
    Ok(())
}

fn print_idle(environment: &Environment, kinds: &[Kind], sessions: u32, by_default: bool) -> Result<()> {
    let wanted = |kind: &Kind| !by_default || matches!(kind, Kind::PgBouncer | Kind::Tidegate);
    let kinds: Vec<Kind> = kinds.iter().copied().filter(wanted).collect();
    println!("{}", idle::table(environment, &kinds, sessions)?);
    Ok(())
}
