//! Quantiles of latencies and medians over turns.

use std::time::Duration;

/// In milliseconds; of sorted latencies.
pub(crate) fn quantile(sorted: &[Duration], quantile: f64) -> f64 {
    let index = ((sorted.len().saturating_sub(1)) as f64 * quantile).round() as usize;
    sorted.get(index).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
}

pub(crate) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_unstable_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(0.0)
}

/// The median over turns of the quotient of two numbers of the same turn.
pub(crate) fn median_ratio(ones: &[f64], others: &[f64]) -> f64 {
    median(ones.iter().zip(others).map(|(one, other)| one / other).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_medians_are_those_of_the_numbers() {
        let latencies: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert!((quantile(&latencies, 0.99) - 99.0).abs() < f64::EPSILON);
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((quantile(&[], 0.5)).abs() < f64::EPSILON);
    }

    #[test]
    fn a_ratio_is_taken_within_each_turn() {
        // The machine slowed down for both: the ratio of the medians would be 1.5.
        assert!((median_ratio(&[2.0, 20.0, 3.0], &[1.0, 10.0, 2.0]) - 2.0).abs() < f64::EPSILON);
    }
}
