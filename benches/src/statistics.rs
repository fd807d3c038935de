//! Medians, ranges and percentiles of a handful of numbers.

use serde::Serialize;

/// The middle and the ends of the rounds of one figure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Median; the mean of the middle two when the number of rounds is even.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// `None` without any value.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, min, max })
    }

    /// Whether the two ranges share a value: then the rounds do not tell the figures apart.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.min <= other.max && other.min <= self.max
    }
}

/// The value that `percent` of the sorted values do not exceed (nearest rank).
pub fn percentile<T: Copy>(sorted: &[T], percent: usize) -> Option<T> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_of_rounds_is_the_mean_of_the_middle_two() {
        // Two rounds are the default: taking one of them would favour whoever ran on the quieter machine.
        let spread = Spread::of([4.0, 1.0, 2.0, 9.0]);

        assert_eq!(spread, Some(Spread { median: 3.0, min: 1.0, max: 9.0 }));
    }

    #[test]
    fn the_99th_percentile_of_a_hundred_values_is_the_second_largest() {
        // Nearest rank: an index of 99 instead of 98 would report the maximum.
        let values: Vec<u32> = (1..=100).collect();

        assert_eq!(percentile(&values, 99), Some(99));
        assert_eq!(percentile(&values, 50), Some(50));
        assert_eq!(percentile::<u32>(&[], 50), None);
    }
}
