//! Nothing is applied twice.

use std::collections::HashMap;

use crate::run::Record;

use super::{Verdict, some};

pub(super) fn check(record: &Record) -> Verdict {
    let Some(rows) = &record.rows else {
        return Verdict::Undecided("the database could not be read".to_owned());
    };
    let mut seen: HashMap<i64, u32> = HashMap::new();
    let orders = record.orders.iter().flatten().copied();
    for key in rows.iter().map(|row| row.key).chain(orders) {
        *seen.entry(key).or_default() += 1;
    }
    if seen.is_empty() {
        return Verdict::Undecided("nothing was written".to_owned());
    }
    let mut twice: Vec<i64> = seen.iter().filter(|(_, count)| **count > 1).map(|(key, _)| *key).collect();
    twice.sort_unstable();
    if twice.is_empty() {
        return Verdict::Holds(format!("{} writes, each once", seen.len()));
    }
    Verdict::Refuted(format!("{} writes were applied more than once: {}", twice.len(), some(&twice)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::fixture::record;

    #[test]
    fn a_write_that_was_sent_again_is_found() {
        // A retry of an unknown write that had been applied.
        let run = record().row(1, 5);
        assert!(check(&run).holds());

        assert!(matches!(check(&run.row(1, 900)), Verdict::Refuted(_)));
    }
}
