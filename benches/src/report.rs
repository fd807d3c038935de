//! The tables and the verdict, as Markdown and as JSON.

use std::fmt::{self, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::machine::Machine;
use crate::measure::{Figures, Measured, RowResult, Settings, SubjectResult};
use crate::statistics::Spread;
use crate::subject::Kind;
use crate::verdict::{Finding, Promise, Verdict};

/// Everything that a run found out.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// How.
    #[serde(flatten)]
    pub settings: Settings,
    /// The tables.
    pub rows: Vec<RowResult>,
    /// What they say about tidegate.
    pub verdicts: Vec<Verdict>,
}

impl Report {
    /// Writes it as JSON.
    pub fn write_json(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }

    /// The whole report as Markdown.
    pub fn markdown(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        writeln!(text, "\nMachine: {}.", self.machine)?;
        let Settings { rounds, seconds } = self.settings;
        writeln!(
            text,
            "Medians of {rounds} rounds of {seconds} s; the subjects took turns. × is against pgbouncer."
        )?;
        let mut workload = None;
        for result in &self.rows {
            if workload != Some(result.row.workload) {
                workload = Some(result.row.workload);
                write!(text, "\n## {}\n\n{HEAD}", result.row.workload.name())?;
            }
            write_row(&mut text, result)?;
        }
        writeln!(text, "\n## Verdict\n")?;
        self.write_verdicts(&mut text)?;
        Ok(text)
    }

    fn write_verdicts(&self, text: &mut String) -> fmt::Result {
        if self.verdicts.iter().all(|verdict| verdict.finding == Finding::Unknown) {
            return writeln!(text, "None: it needs both tidegate and pgbouncer in one row.");
        }
        for verdict in &self.verdicts {
            writeln!(text, "- {}", line(verdict))?;
        }
        let broken = |finding| matches!(finding, Finding::Broken { .. });
        let unclear = |finding| matches!(finding, Finding::Unclear { .. } | Finding::Unknown);
        let count =
            |is: fn(Finding) -> bool| self.verdicts.iter().filter(|verdict| is(verdict.finding)).count();
        let (broken, unclear) = (count(broken), count(unclear));
        let leaning = count(|finding| matches!(finding, Finding::Leaning { .. }));
        let kept = self.verdicts.len() - broken - unclear;
        writeln!(
            text,
            "\n{kept} kept ({leaning} of them by the median only), {broken} broken, {unclear} unclear or unknown."
        )
    }
}

const HEAD: &str = "\
| protocol | clients | subject | tps | × | p50 ms | p99 ms | CPU µs/txn | min–max | × | note |
|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---|
";

fn write_row(text: &mut String, result: &RowResult) -> fmt::Result {
    let peer = result.figures(Kind::PgBouncer);
    for subject in &result.subjects {
        write!(
            text,
            "| {} | {} | {} |",
            result.row.protocol.name(),
            result.row.clients,
            subject.subject.name()
        )?;
        write_subject(text, subject, peer)?;
    }
    Ok(())
}

fn write_subject(text: &mut String, subject: &SubjectResult, peer: Option<&Figures>) -> fmt::Result {
    let note = subject.note.as_deref().unwrap_or_default();
    let figures = match &subject.result {
        Measured::Figures(figures) => figures,
        Measured::Failed(why) => {
            return writeln!(text, " – | – | – | – | – | – | – | failed: {} |", why.replace('|', "/"));
        }
    };
    let tps_ratio = ratio(Some(figures.tps), peer.map(|peer| peer.tps));
    let cpu_ratio = ratio(figures.cpu_us, peer.and_then(|peer| peer.cpu_us));
    let (p50_ms, p99_ms) = (figures.p50_us.median / 1000.0, figures.p99_us.median / 1000.0);
    write!(text, " {:.0} | {tps_ratio} | {p50_ms:.2} | {p99_ms:.2} |", figures.tps.median)?;
    match figures.cpu_us {
        Some(cpu) => write!(text, " {:.1} | {:.1}–{:.1} |", cpu.median, cpu.min, cpu.max)?,
        None => write!(text, " – | – |")?,
    }
    writeln!(text, " {cpu_ratio} | {note} |")
}

fn ratio(ours: Option<Spread>, theirs: Option<Spread>) -> String {
    match (ours, theirs) {
        (Some(ours), Some(theirs)) => format!("{:.2}", ours.median / theirs.median),
        _ => "–".to_owned(),
    }
}

fn line(verdict: &Verdict) -> String {
    let promise = match verdict.promise {
        Promise::Cpu => "CPU/txn ≤ 1.00 ×",
        Promise::Throughput => "tps ≥ 1.00 ×",
    };
    let finding = match verdict.finding {
        Finding::Kept { ratio } => format!("kept ({ratio:.2})"),
        Finding::Leaning { ratio } => format!("kept by the median ({ratio:.2}), the rounds overlap"),
        Finding::Unclear { ratio } => format!("UNCLEAR ({ratio:.2}, but the rounds overlap)"),
        Finding::Broken { ratio } => format!("BROKEN ({ratio:.2})"),
        Finding::Unknown => "unknown: no figures".to_owned(),
    };
    format!("{}: {promise} pgbouncer: {finding}", verdict.row)
}
