//! Nothing is written to a server that belongs to another cluster.

use crate::run::Record;

use super::Verdict;

pub(super) fn check(record: &Record) -> Verdict {
    match record.strays {
        None => Verdict::Undecided("there was no server of another cluster".to_owned()),
        Some(0) => Verdict::Holds("no write reached the server of another cluster".to_owned()),
        Some(count) => Verdict::Refuted(format!("{count} writes reached a server of another cluster")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::fixture::record;

    #[test]
    fn a_write_to_the_wrong_cluster_is_found() {
        // A proxy that takes any server that accepts writes for the primary.
        let mut run = record();
        assert!(matches!(check(&run), Verdict::Undecided(_)));

        run.strays = Some(1);

        assert!(matches!(check(&run), Verdict::Refuted(_)));
    }
}
