//! Verdicts on the terminal.

use crate::checker::Verdict;

use super::Judgement;

/// Prints the verdicts of one run.
pub fn print(judgement: &Judgement) {
    for judged in &judgement.claims {
        let mark = match judged.verdict {
            Verdict::Holds(_) => "holds    ",
            Verdict::Refuted(_) => "REFUTED  ",
            Verdict::Undecided(_) => "undecided",
        };
        println!("  {mark}  {:<28} {}", judged.claim.name(), judged.verdict.because());
    }
    for trouble in &judgement.record.troubles {
        println!("  trouble    {trouble}");
    }
}
