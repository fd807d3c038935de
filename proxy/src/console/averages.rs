//! Rates: figures of databases are sampled every [`PERIOD`], and averages are taken from the sample before the last
//! until now, so that they cover between one and two periods.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::pool::Databases;
use crate::pool::databases::Figures;

/// Between two samples (PgBouncer's default of `stats_period`).
pub(super) const PERIOD: Duration = Duration::from_mins(1);

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Samples(Mutex<VecDeque<Sample>>);

#[derive(Debug)]
struct Sample {
    at: Instant,
    figures: HashMap<Box<str>, Figures>,
}

/// Per second, or per transaction or exchange for times. Times are in microseconds, as PgBouncer's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Averages {
    pub(super) transactions: u64,
    pub(super) exchanges: u64,
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) transaction_us: u64,
    pub(super) exchange_us: u64,
    pub(super) wait_us: u64,
}

impl Samples {
    /// Takes a sample.
    pub(super) fn take(&self, databases: &Databases) {
        let all = databases.all();
        let figures = all.iter().map(|database| (database.name.clone(), database.traffic.figures()));
        let sample = Sample { at: Instant::now(), figures: figures.collect() };
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.len() >= 2 {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    /// The averages of a database that has these figures now.
    pub(super) fn averages(&self, database: &str, now: &Figures) -> Averages {
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(first) = samples.front() else { return Averages::default() };
        let then = first.figures.get(database).copied().unwrap_or_default();
        averages(&then, now, first.at.elapsed())
    }
}

fn averages(then: &Figures, now: &Figures, span: Duration) -> Averages {
    let span_us = u64::try_from(span.as_micros()).unwrap_or(u64::MAX).max(1);
    let per_second = |then: u64, now: u64| {
        u64::try_from(u128::from(now.saturating_sub(then)) * 1_000_000 / u128::from(span_us))
            .unwrap_or(u64::MAX)
    };
    let each = |then_ms: u64, now_ms: u64, count: u64| {
        now_ms.saturating_sub(then_ms).saturating_mul(1000).checked_div(count).unwrap_or_default()
    };
    Averages {
        transactions: per_second(then.transactions, now.transactions),
        exchanges: per_second(then.exchanges, now.exchanges),
        received: per_second(then.received, now.received),
        sent: per_second(then.sent, now.sent),
        transaction_us: each(
            then.transaction_ms,
            now.transaction_ms,
            now.transactions.saturating_sub(then.transactions),
        ),
        exchange_us: each(then.exchange_ms, now.exchange_ms, now.exchanges.saturating_sub(then.exchanges)),
        wait_us: per_second(then.wait_ms, now.wait_ms).saturating_mul(1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_are_per_second_and_times_per_piece() {
        // A dashboard that divides once more, or not at all, is off by the length of the period.
        let then = Figures { transactions: 10, exchanges: 10, exchange_ms: 100, ..Figures::default() };
        let now = Figures {
            transactions: 30,
            exchanges: 50,
            received: 4_000,
            sent: 8_000,
            transaction_ms: 600,
            exchange_ms: 500,
            wait_ms: 20,
        };

        let averages = averages(&then, &now, Duration::from_secs(4));

        let expected = Averages {
            transactions: 5,
            exchanges: 10,
            received: 1_000,
            sent: 2_000,
            transaction_us: 30_000,
            exchange_us: 10_000,
            wait_us: 5_000,
        };
        assert_eq!(averages, expected);
    }

    #[test]
    fn nothing_happened_is_no_division_by_zero() {
        // The first SHOW STATS after a start has neither time nor traffic behind it.
        assert_eq!(averages(&Figures::default(), &Figures::default(), Duration::ZERO), Averages::default());
    }
}
