//! Whether tidegate keeps what it promises: no more CPU per transaction than `PgBouncer` in each select-only row, no
//! less throughput in any row with 16 clients or more.

use serde::Serialize;

use crate::measure::RowResult;
use crate::plan::Row;
use crate::statistics::Spread;
use crate::subject::Kind;

/// Fewer clients than this do not keep a proxy busy: their throughput is latency, which the table shows.
const THROUGHPUT_FROM_CLIENTS: u32 = 16;

/// What is promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Promise {
    /// CPU per transaction at most 1.0 × `PgBouncer`'s.
    Cpu,
    /// Throughput at least `PgBouncer`'s.
    Throughput,
}

/// What the medians say, and whether the rounds agree.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Finding {
    /// The median keeps the promise and so does every round. `ratio` is tidegate's figure / `PgBouncer`'s.
    Kept {
        /// tidegate / `PgBouncer`.
        ratio: f64,
    },
    /// The median keeps it, but the ranges of the rounds overlap.
    Leaning {
        /// tidegate / `PgBouncer`.
        ratio: f64,
    },
    /// The median breaks it, but the ranges of the rounds overlap: run longer.
    Unclear {
        /// tidegate / `PgBouncer`.
        ratio: f64,
    },
    /// The median breaks it and so does every round.
    Broken {
        /// tidegate / `PgBouncer`.
        ratio: f64,
    },
    /// One of the two has no figures.
    Unknown,
}

/// One line of the verdict.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Verdict {
    /// The row that it is about.
    #[serde(flatten)]
    pub row: Row,
    /// What was promised for it.
    pub promise: Promise,
    /// What was found.
    pub finding: Finding,
}

/// All that can be said of these rows.
pub fn judge(results: &[RowResult]) -> Vec<Verdict> {
    results.iter().flat_map(judge_row).collect()
}

fn judge_row(result: &RowResult) -> Vec<Verdict> {
    let promised = |promise| match promise {
        Promise::Cpu => result.row.workload.is_select_only(),
        Promise::Throughput => result.row.clients >= THROUGHPUT_FROM_CLIENTS,
    };
    [Promise::Cpu, Promise::Throughput]
        .into_iter()
        .filter(|promise| promised(*promise))
        .map(|promise| Verdict { row: result.row, promise, finding: find(result, promise) })
        .collect()
}

fn find(result: &RowResult, promise: Promise) -> Finding {
    let spread = |kind| -> Option<Spread> {
        let figures = result.figures(kind)?;
        match promise {
            Promise::Cpu => figures.cpu_us,
            Promise::Throughput => Some(figures.tps),
        }
    };
    match (spread(Kind::Tidegate), spread(Kind::PgBouncer)) {
        (Some(ours), Some(theirs)) => compare(promise, &ours, &theirs),
        _ => Finding::Unknown,
    }
}

fn compare(promise: Promise, ours: &Spread, theirs: &Spread) -> Finding {
    let ratio = ours.median / theirs.median;
    let kept = match promise {
        Promise::Cpu => ratio <= 1.0,
        Promise::Throughput => ratio >= 1.0,
    };
    match (kept, ours.overlaps(theirs)) {
        (true, false) => Finding::Kept { ratio },
        (true, true) => Finding::Leaning { ratio },
        (false, true) => Finding::Unclear { ratio },
        (false, false) => Finding::Broken { ratio },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(min: f64, max: f64) -> Spread {
        Spread { median: f64::midpoint(min, max), min, max }
    }

    #[test]
    fn more_cpu_breaks_the_promise_and_more_throughput_keeps_it() {
        // The two promises point in opposite directions; a mix-up would praise the slower one.
        let (more, less) = (spread(20.0, 22.0), spread(10.0, 11.0));

        assert!(matches!(compare(Promise::Cpu, &more, &less), Finding::Broken { .. }));
        assert!(matches!(compare(Promise::Throughput, &more, &less), Finding::Kept { .. }));
    }

    #[test]
    fn overlapping_rounds_are_called_neither_broken_nor_kept() {
        // With two rounds on a shared machine a difference inside the spread is noise, whichever way it points.
        let (more, less) = (spread(18.0, 22.0), spread(17.0, 19.0));

        assert!(matches!(compare(Promise::Cpu, &more, &less), Finding::Unclear { .. }));
        assert!(matches!(compare(Promise::Cpu, &less, &more), Finding::Leaning { .. }));
    }
}
