//! Order statistics.

use std::time::Duration;

/// The smallest value that at least this share of the values do not exceed (nearest rank). `None` without
/// values.
pub fn percentile(mut values: Vec<Duration>, share: f64) -> Option<Duration> {
    values.sort_unstable();
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a run has fewer than 2^52 operations, and the share is in [0, 1]"
    )]
    let rank = (values.len() as f64 * share).ceil() as usize;
    values.get(rank.max(1) - 1).copied()
}

/// Share of the values that the condition holds for. `None` without values.
#[expect(clippy::cast_precision_loss, reason = "a run has fewer than 2^52 operations")]
pub(super) fn share(part: usize, whole: usize) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_rank_is_a_value_that_was_seen() {
        // Interpolation would hide a single slow answer among a hundred.
        let values: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();

        assert_eq!(percentile(values.clone(), 0.99), Some(Duration::from_millis(99)));
        assert_eq!(percentile(values, 1.0), Some(Duration::from_millis(100)));
        assert_eq!(percentile(Vec::new(), 0.99), None);
    }
}
