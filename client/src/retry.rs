//! How often things are done again: rarely, and never in a herd.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tidegate_layers::Backoff;
use tokio::time::Instant;

use crate::error::Error;

/// One retry, in the thousandths in which the balance is kept.
const WHOLE: u64 = 1000;
/// What a first attempt pays in: a tenth of a retry ("Addressing Cascading Failures", Site Reliability Engineering,
/// chapter 22: retries stay under a tenth of the requests).
const DEPOSIT: u64 = WHOLE / 10;
/// What comes in by itself, so that a service with little traffic may retry, too.
const PER_SECOND: u64 = 3 * WHOLE;
const BALANCE_MAX: u64 = 30 * WHOLE;

/// Delays have full jitter between zero and a ceiling that doubles from the first to the second.
const DELAY_MIN: Duration = Duration::from_millis(25);
const DELAY_MAX: Duration = Duration::from_secs(1);

/// Whether a transaction may be done again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Retry {
    /// Once only.
    #[default]
    Never,
    /// Up to two attempts: again if nothing has happened ([`Error::is_safe_to_retry`](crate::Error::is_safe_to_retry)),
    /// within the deadline, after a short random delay (or `retry_after`), as long as retries are less than a tenth
    /// of the pool's transactions (and three a second). The code of the transaction runs again from its start, so
    /// what it does outside of the database must bear that. A COMMIT whose outcome is unknown is never repeated.
    Safe,
}

impl Retry {
    /// Attempts in all.
    pub(crate) const fn attempts(self) -> u32 {
        match self {
            Self::Never => 1,
            Self::Safe => 2,
        }
    }
}

/// What a retry has to know of an error.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trouble {
    pub(crate) safe: bool,
    pub(crate) retry_after: Option<Duration>,
}

impl Trouble {
    pub(crate) fn of(error: &Error) -> Self {
        Self { safe: error.is_safe_to_retry(), retry_after: error.retry_after() }
    }
}

/// Retries that may still be made.
#[derive(Debug)]
pub(crate) struct RetryBudget(Mutex<Balance>);

#[derive(Debug)]
struct Balance {
    tokens: u64,
    at: Instant,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self(Mutex::new(Balance { tokens: PER_SECOND, at: Instant::now() }))
    }
}

impl RetryBudget {
    /// A first attempt is made.
    pub(crate) fn deposit(&self) {
        let mut balance = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        balance.tokens = (balance.tokens + DEPOSIT).min(BALANCE_MAX);
    }

    /// Whether a retry may be made; it is counted.
    pub(crate) fn withdraw(&self) -> bool {
        let mut balance = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let elapsed_ms = now.saturating_duration_since(balance.at).as_millis();
        let income = u64::try_from(elapsed_ms).unwrap_or(BALANCE_MAX).saturating_mul(PER_SECOND) / 1000;
        balance.tokens = balance.tokens.saturating_add(income).min(BALANCE_MAX);
        balance.at = now;
        let enough = balance.tokens >= WHOLE;
        if enough {
            balance.tokens -= WHOLE;
        }
        enough
    }
}

/// The delays of one call.
pub(crate) fn delays() -> Backoff {
    Backoff::new(DELAY_MIN, DELAY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn retries_are_a_tenth_of_the_transactions_and_three_a_second() {
        // Without the bound, an outage doubles the load of those who retry, and lasts.
        let budget = RetryBudget::default();
        let drain = || (0..1000).filter(|_| budget.withdraw()).count();

        assert_eq!(drain(), 3);
        (0..100).for_each(|_| budget.deposit());
        assert_eq!(drain(), 10);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(drain(), 6);
    }
}
