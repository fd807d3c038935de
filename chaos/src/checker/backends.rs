//! Servers are not drowned in connections.

use crate::run::Record;

use super::Verdict;

pub(super) fn check(record: &Record, control: usize) -> Verdict {
    let limit = record.header.pool + control;
    let counted = record.servers.iter().filter_map(|sample| Some((sample, sample.backends()?)));
    let Some((sample, most)) =
        counted.max_by_key(|(sample, backends)| (*backends, std::cmp::Reverse(sample.at)))
    else {
        return Verdict::Undecided("no server was ever looked at".to_owned());
    };
    let holds = usize::try_from(most).is_ok_and(|most| most <= limit);
    let at = super::shown(sample.at.saturating_sub(record.start));
    Verdict::when(holds, format!("at most {most} backends on {} (at {at}), limit {limit}", sample.node))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Lane;
    use crate::observe::{ServerSample, Waits};
    use crate::run::fixture::{ms, record};

    #[test]
    fn a_pool_that_opens_replacements_for_stuck_backends_is_found() {
        // 20 stuck ones and 7 new ones, where 6 are allowed.
        let waits = |backends| Waits { lane: Lane::Write, event: "IPC/SyncRep".to_owned(), backends };
        let mut run = record();
        assert!(matches!(check(&run, 6), Verdict::Undecided(_)));
        let sample = |backends| ServerSample {
            at: ms(1),
            node: "primary".to_owned(),
            waits: Some(vec![waits(20), waits(backends)]),
        };
        run.servers = vec![sample(6)];
        assert!(check(&run, 6).holds());

        run.servers.push(sample(7));

        assert!(matches!(check(&run, 6), Verdict::Refuted(_)));
    }
}
