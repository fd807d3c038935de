//! One run of pgbench against one subject.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::environment::Environment;
use crate::plan::{Row, Workload};
use crate::postgres::USER;
use crate::process::{check_interrupted, into_file};
use crate::statistics::percentile;
use crate::subject::Subject;
use crate::usage::{CpuTimeline, cpu_time};

/// How often CPU time is read and pgbench is asked whether it has ended.
const SAMPLE_EVERY: Duration = Duration::from_millis(10);
/// Logins of many sessions, a slow start: how much longer than asked a run may take.
const GRACE: Duration = Duration::from_mins(1);
/// Share of transactions whose latency is logged: enough for a p99, cheap enough not to be seen.
const LOGGED_SHARE: &str = "0.1";

/// How long a run is.
#[derive(Debug, Clone, Copy)]
pub enum Length {
    /// Measured runs, logins included: pgbench's clock runs from before the first login.
    Seconds(u32),
    /// Warm-up: transactions of each client.
    Transactions(u32),
}

/// The figures of one run.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Transactions per second, without the time of the first connections.
    pub tps: f64,
    /// Time that the first connections took, all of them together. Zero when each transaction connects.
    pub logins: Duration,
    /// Median latency in microseconds.
    pub p50_us: u32,
    /// 99th percentile of latency in microseconds.
    pub p99_us: u32,
    /// CPU time of the subject per transaction in microseconds, logins before the first transaction left out. `None`
    /// for a direct connection.
    pub cpu_us: Option<f64>,
}

/// Runs pgbench to its end. Fails when a client was aborted or a transaction failed.
pub fn run(environment: &Environment, subject: &Subject, row: Row, length: Length) -> Result<Sample> {
    let folder = tempfile::tempdir_in(environment.folder())?;
    let mut command = command(environment, subject, row, length);
    command
        .args(["-l", "--sampling-rate", share(row, length), "--log-prefix"])
        .arg(folder.path().join("latency"));
    let (script, output) = (folder.path().join("select1.sql"), folder.path().join("output"));
    match row.workload {
        Workload::SelectOnly => command.arg("-S"),
        Workload::Reconnect => command.args(["-S", "-C"]),
        Workload::SimpleUpdate => command.arg("-N"),
        Workload::Select1 => {
            std::fs::write(&script, "SELECT 1;\n")?;
            command.arg("-f").arg(&script)
        }
    };
    command.arg(USER);

    let mut child = into_file(&mut command, &output)?.spawn().context("cannot start pgbench")?;
    let timeline = watch(&mut child, subject, length)
        .inspect_err(|_| {
            // Already ended when it failed by itself.
            let _ = child.kill();
            let _ = child.wait();
        })
        .with_context(|| complaints(&output))?;

    let text = std::fs::read_to_string(&output)?;
    let result = parse_output(&text)?;
    let (p50_us, p99_us) = latencies(folder.path())?;
    Ok(Sample {
        tps: result.tps,
        logins: result.logins,
        p50_us,
        p99_us,
        cpu_us: timeline.and_then(|timeline| cpu_us(&timeline, &result)),
    })
}

fn command(environment: &Environment, subject: &Subject, row: Row, length: Length) -> Command {
    let mut command = Command::new(environment.postgres.program("pgbench"));
    command.args(["-h", "127.0.0.1", "-U", USER, "-p", &subject.port.to_string()]);
    command.args(["-n", "-j", &row.threads().to_string()]);
    command.args(["-M", row.protocol.name(), "-c", &row.clients.to_string()]);
    match length {
        Length::Seconds(seconds) => command.args(["-T", &seconds.to_string()]),
        Length::Transactions(transactions) => command.args(["-t", &transactions.to_string()]),
    };
    // TLS and GSS are not compared; asking for them would add round trips to each login.
    command.env("PGSSLMODE", "disable").env("PGGSSENCMODE", "disable");
    command
}

fn share(row: Row, length: Length) -> &'static str {
    // Few transactions: all of them are needed.
    let few = row.clients == 1 || row.workload == Workload::Reconnect;
    match length {
        Length::Seconds(_) if !few => LOGGED_SHARE,
        Length::Seconds(_) | Length::Transactions(_) => "1",
    }
}

/// Samples the subject's CPU time until pgbench ends.
fn watch(child: &mut Child, subject: &Subject, length: Length) -> Result<Option<Timeline>> {
    let limit = match length {
        Length::Seconds(seconds) => GRACE + Duration::from_secs(seconds.into()),
        Length::Transactions(_) => GRACE,
    };
    let processes = subject.processes();
    let begin = Instant::now();
    let mut timeline = CpuTimeline::default();
    loop {
        check_interrupted()?;
        let now = Instant::now();
        timeline.push(now, cpu_time(&processes)?);
        if let Some(status) = child.try_wait()? {
            if !status.success() {
                bail!("pgbench failed with {status}");
            }
            return Ok((!processes.is_empty()).then_some(Timeline { cpu: timeline, end: now }));
        }
        if begin.elapsed() > limit {
            bail!("pgbench did not end in {} s", limit.as_secs());
        }
        std::thread::sleep(SAMPLE_EVERY);
    }
}

struct Timeline {
    cpu: CpuTimeline,
    end: Instant,
}

/// CPU time from the first transaction on. pgbench says by its own figures how long it measured
/// (transactions / tps); what came before that is logins.
fn cpu_us(timeline: &Timeline, result: &Output) -> Option<f64> {
    let measured = Duration::try_from_secs_f64(result.transactions / result.tps).ok()?;
    let used = timeline.cpu.used_since(timeline.end.checked_sub(measured)?)?;
    Some(used.as_secs_f64() * 1e6 / result.transactions)
}

/// The last thing that pgbench complained of; of hundreds of clients that were aborted one is enough.
fn complaints(output: &Path) -> String {
    let text = std::fs::read_to_string(output).unwrap_or_default();
    let is_cause = |line: &&str| line.contains("error:") && !line.contains("Run was aborted");
    text.lines().rfind(is_cause).unwrap_or("pgbench").to_owned()
}

/// What pgbench prints at its end.
#[derive(Debug, PartialEq)]
struct Output {
    transactions: f64,
    tps: f64,
    logins: Duration,
}

fn parse_output(text: &str) -> Result<Output> {
    let number = |label: &str| -> Result<f64> {
        let rest =
            text.lines().find_map(|line| line.strip_prefix(label)).with_context(|| format!("no {label}"))?;
        let digits = rest.trim().split([' ', '/']).next().unwrap_or_default();
        digits.parse().with_context(|| format!("{label} is no number"))
    };
    // Only since PostgreSQL 15; before that a failed transaction aborts its client.
    if number("number of failed transactions:").is_ok_and(|failed| failed > 0.0) {
        bail!("transactions failed");
    }
    let transactions = number("number of transactions actually processed:")?;
    if transactions < 1.0 {
        bail!("no transaction was finished: the run was too short for so many clients");
    }
    // Not printed when each transaction connects.
    let logins_ms = number("initial connection time =").unwrap_or_default();
    let logins = Duration::try_from_secs_f64(logins_ms / 1e3).unwrap_or_default();
    Ok(Output { transactions, tps: number("tps =")?, logins })
}

/// p50 and p99 from pgbench's log: client, number, *microseconds*, script, time of day.
fn latencies(folder: &Path) -> Result<(u32, u32)> {
    let mut sorted = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("latency")) {
            let text = std::fs::read_to_string(&path)?;
            sorted.extend(text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<u32>().ok()));
        }
    }
    sorted.sort_unstable();
    match (percentile(&sorted, 50), percentile(&sorted, 99)) {
        (Some(p50), Some(p99)) => Ok((p50, p99)),
        _ => bail!("pgbench logged no latency"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_postgresql_15_are_understood() {
        // "actually processed" is followed by "/total" for -t runs, and tps by a remark: both must not disturb.
        let text = "number of transactions actually processed: 320/320\n\
                    number of failed transactions: 0 (0.000%)\n\
                    latency average = 0.5 ms\n\
                    initial connection time = 250.000 ms\n\
                    tps = 15000.250000 (without initial connection time)\n";

        assert_eq!(
            parse_output(text).unwrap(),
            Output { transactions: 320.0, tps: 15000.25, logins: Duration::from_millis(250) }
        );
    }

    #[test]
    fn a_run_with_failed_transactions_is_no_result() {
        // A subject that refuses quickly would otherwise look fast.
        let text = "number of transactions actually processed: 10\n\
                    number of failed transactions: 3 (30.000%)\ntps = 5.0 (…)\n";

        assert!(parse_output(text).is_err());
    }

    #[test]
    fn a_run_that_finished_nothing_says_so() {
        // pgbench 15 prints no tps line then; "no tps" would send the reader looking in the wrong place.
        let text = "number of transactions actually processed: 0\nnumber of failed transactions: 0 (NaN%)\n";

        assert!(parse_output(text).unwrap_err().to_string().contains("too short"));
    }
}
