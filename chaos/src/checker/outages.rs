//! However often something breaks, writes are never gone for long.

use std::time::Duration;

use crate::run::Record;

use super::{Verdict, noise, shown};

pub(super) fn check(record: &Record, within: Duration) -> Verdict {
    let Some(trouble) = record.trouble() else {
        return Verdict::Undecided("no fault was injected and healed".to_owned());
    };
    let mut acknowledged: Vec<Duration> =
        record.writes().filter(|write| write.is_ok()).filter_map(|write| write.ended).collect();
    acknowledged.retain(|ended| *ended >= trouble.start && *ended <= record.end);
    acknowledged.extend([trouble.start, record.end]);
    acknowledged.sort_unstable();
    let gaps = acknowledged.windows(2).map(|pair| (pair[1].saturating_sub(pair[0]), pair[0]));
    let mut gaps: Vec<(Duration, Duration)> = gaps.collect();
    gaps.sort_unstable_by_key(|(gap, _)| std::cmp::Reverse(*gap));
    let Some((longest, at)) = gaps.first().copied() else {
        return Verdict::Undecided("no write was acknowledged".to_owned());
    };
    let all: Vec<String> =
        gaps.iter().take(record.faults.len().min(12)).map(|(gap, _)| shown(*gap)).collect();
    let figures = format!(
        "{} faults, longest time without a write {} (at {}, limit {}); the longest ones: {}",
        record.faults.len(),
        shown(longest),
        shown(at.saturating_sub(record.start)),
        shown(within),
        all.join(", ")
    );
    noise::judge(longest, within, noise::least_time(record, &trouble), figures)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Lane;
    use crate::run::fixture::{ms, record};

    #[test]
    fn one_long_outage_among_short_ones_is_found() {
        // An average, or the time after the last heal, would not see it.
        let run = |gap: u64| {
            (0..200).fold(record(), |run, number| {
                let at = 10_000 + number * 100;
                if (15_000..15_000 + gap).contains(&at) { run } else { run.ok(Lane::Write, at, 1) }
            })
        };

        assert!(check(&run(1_900), ms(2_000)).holds());
        assert!(matches!(check(&run(2_100), ms(2_000)), Verdict::Refuted(_)));
        assert!(matches!(check(&record(), ms(2_000)), Verdict::Refuted(_)));
    }
}
