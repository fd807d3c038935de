//! What a run showed, for people and for programs.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

use crate::checker::{Claim, Verdict};
use crate::run::Record;

mod chart;
mod console;
mod page;
mod picture;
mod poster;
mod series;

pub use console::print;

/// A claim and what the run says about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// The claim with its parameters.
    pub claim: Claim,
    /// What the run says.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// One run and its verdicts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// The verdicts, in the scenario's order.
    pub claims: Vec<Judged>,
    /// The run.
    pub record: Record,
}

impl Judgement {
    /// Checks every claim.
    pub fn of(record: Record, claims: &[Claim]) -> Self {
        let judge = |claim: &Claim| Judged { claim: claim.clone(), verdict: claim.check(&record) };
        Self { claims: claims.iter().map(judge).collect(), record }
    }

    /// Whether a claim is refuted.
    pub fn is_refuted(&self) -> bool {
        self.claims.iter().any(|judged| matches!(judged.verdict, Verdict::Refuted(_)))
    }

    /// Whether every claim holds and nothing went wrong with the run itself.
    pub fn holds(&self) -> bool {
        self.record.troubles.is_empty() && self.claims.iter().all(|judged| judged.verdict.holds())
    }
}

/// Writes `report.html`, `report.json` and `picture.svg` into a folder; gives the path of the first.
pub fn write(judged: &[Judgement], dir: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(dir)?;
    fs::write(dir.join("report.json"), serde_json::to_vec(judged)?)?;
    fs::write(dir.join("picture.svg"), poster::poster(judged))?;
    let page = dir.join("report.html");
    fs::write(&page, page::page(judged))?;
    Ok(page)
}

/// Reads what [`write`] wrote, one file after the other, and writes it again, with the looks of this version.
pub fn again(files: &[PathBuf], dir: &Path) -> io::Result<()> {
    let mut judged: Vec<Judgement> = Vec::new();
    for file in files {
        judged.extend(serde_json::from_slice::<Vec<Judgement>>(&fs::read(file)?)?);
    }
    let page = write(&judged, dir)?;
    println!("report: {}", page.display());
    Ok(())
}
