//! All measurements of one row: the subjects take turns, so that the noise of the machine hits them alike.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::environment::Environment;
use crate::pgbench::{Length, Sample, run};
use crate::plan::Row;
use crate::process::check_interrupted;
use crate::statistics::Spread;
use crate::subject::{Demand, Kind, Subject};

/// Transactions of all clients together before the first measured round: enough to open the pool's backends and to
/// bring the accounts into the cache.
const WARM_UP_TRANSACTIONS: u32 = 1000;

/// How often and how long.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Settings {
    /// Measurements of each subject.
    pub rounds: u32,
    /// Length of each in seconds.
    pub seconds: u32,
}

/// The figures of all subjects in one row.
#[derive(Debug, Serialize)]
pub struct RowResult {
    /// What was run.
    #[serde(flatten)]
    pub row: Row,
    /// One entry for each subject, in the order of the tables.
    pub subjects: Vec<SubjectResult>,
}

/// What became of one subject in one row.
#[derive(Debug, Serialize)]
pub struct SubjectResult {
    /// Which one.
    pub subject: Kind,
    /// What the reader must know.
    pub note: Option<String>,
    /// Its figures, or why there are none.
    pub result: Measured,
}

/// See [`SubjectResult`].
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Measured {
    /// All rounds succeeded.
    Figures(Figures),
    /// It did not start, or pgbench failed through it.
    Failed(String),
}

/// Medians and ranges over the rounds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Figures {
    /// Transactions per second.
    pub tps: Spread,
    /// Median latency in microseconds.
    pub p50_us: Spread,
    /// 99th percentile of latency in microseconds.
    pub p99_us: Spread,
    /// CPU microseconds of the subject per transaction; `None` for a direct connection.
    pub cpu_us: Option<Spread>,
}

impl RowResult {
    /// The figures of `kind`, if it was measured.
    pub fn figures(&self, kind: Kind) -> Option<&Figures> {
        match &self.subjects.iter().find(|result| result.subject == kind)?.result {
            Measured::Figures(figures) => Some(figures),
            Measured::Failed(_) => None,
        }
    }

    /// Whether a subject could not be measured.
    pub fn has_failure(&self) -> bool {
        self.subjects.iter().any(|result| matches!(result.result, Measured::Failed(_)))
    }
}

/// One subject during a row.
enum Turn {
    Running { subject: Subject, logins: Duration, samples: Vec<Sample> },
    Failed { kind: Kind, why: String },
}

/// Measures one row. Fails only when interrupted: a subject that fails is part of the result.
pub fn measure(environment: &Environment, row: Row, kinds: &[Kind], settings: Settings) -> Result<RowResult> {
    let mut turns: Vec<Turn> = kinds.iter().map(|kind| Turn::begin(environment, *kind, row)).collect();
    for _ in 0..settings.rounds {
        for turn in &mut turns {
            check_interrupted()?;
            turn.round(environment, row, settings.seconds);
        }
    }
    check_interrupted()?;
    Ok(RowResult { row, subjects: turns.into_iter().map(Turn::finish).collect() })
}

impl Turn {
    fn begin(environment: &Environment, kind: Kind, row: Row) -> Self {
        let warm_up = Length::Transactions(WARM_UP_TRANSACTIONS.div_ceil(row.clients));
        let started = kind.start(environment, Demand::from(row)).and_then(|subject| {
            run(environment, &subject, row, warm_up).map(|sample| (subject, sample.logins))
        });
        match started {
            Ok((subject, logins)) => Self::Running { subject, logins, samples: Vec::new() },
            Err(error) => Self::Failed { kind, why: format!("{error:#}") },
        }
    }

    fn round(&mut self, environment: &Environment, row: Row, seconds: u32) {
        let Self::Running { subject, logins, samples } = self else { return };
        match run(environment, subject, row, Length::Seconds(seconds + login_seconds(*logins))) {
            Ok(sample) => samples.push(sample),
            Err(error) => *self = Self::Failed { kind: subject.kind, why: format!("{error:#}") },
        }
    }

    fn finish(self) -> SubjectResult {
        match self {
            Self::Running { subject, samples, .. } => SubjectResult {
                subject: subject.kind,
                note: subject.note.clone(),
                result: summarise(&samples)
                    .map_or_else(|| Measured::Failed("not measured".to_owned()), Measured::Figures),
            },
            Self::Failed { kind, why } => {
                SubjectResult { subject: kind, note: None, result: Measured::Failed(why) }
            }
        }
    }
}

/// What is added to a round so that its measured part is as long as asked: the logins as the warm-up saw them and a
/// quarter more, in whole seconds. Only hundreds of sessions without a pooler take that long.
fn login_seconds(logins: Duration) -> u32 {
    let rounded = logins + logins / 4 + Duration::from_millis(500);
    u32::try_from(rounded.as_secs()).unwrap_or(u32::MAX)
}

fn summarise(samples: &[Sample]) -> Option<Figures> {
    let spread = |figure: fn(&Sample) -> f64| Spread::of(samples.iter().map(figure));
    Some(Figures {
        tps: spread(|sample| sample.tps)?,
        p50_us: spread(|sample| sample.p50_us.into())?,
        p99_us: spread(|sample| sample.p99_us.into())?,
        cpu_us: Spread::of(samples.iter().filter_map(|sample| sample.cpu_us)),
    })
}
