//! Latencies, their quantiles, and medians over turns.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Significant decimal digits: a quantile is exact to a thousandth.
const DIGITS: u8 = 3;

/// A histogram of latencies in microseconds that grows with its largest one.
#[derive(Debug, Clone)]
pub(crate) struct Latencies(Histogram<u32>);

impl Latencies {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self(Histogram::new(DIGITS)?))
    }

    pub(crate) fn record(&mut self, latency: Duration) -> anyhow::Result<()> {
        Ok(self.0.record(u64::try_from(latency.as_micros())?)?)
    }

    pub(crate) fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        Ok(self.0.add(&other.0)?)
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.len()
    }

    /// In milliseconds; 1.0 is the slowest.
    pub(crate) fn quantile(&self, quantile: f64) -> f64 {
        if self.0.is_empty() { 0.0 } else { self.0.value_at_quantile(quantile) as f64 / 1e3 }
    }
}

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
    fn a_histogram_has_the_quantiles_of_all_its_parts() {
        let (mut all, mut slow) = (Latencies::new().unwrap(), Latencies::new().unwrap());
        (1..=99).for_each(|latency| all.record(Duration::from_millis(latency)).unwrap());
        slow.record(Duration::from_secs(30)).unwrap();
        all.add(&slow).unwrap();
        let near = |quantile, wanted: f64| (all.quantile(quantile) / wanted - 1.0).abs() < 0.002;
        assert!(near(0.5, 50.0) && near(0.99, 99.0) && near(1.0, 30_000.0) && all.len() == 100);
        assert!(Latencies::new().unwrap().quantile(0.99).abs() < f64::EPSILON);
    }

    #[test]
    fn a_ratio_is_taken_within_each_turn() {
        // The machine slowed down for both: the ratio of the medians would be 1.5.
        assert!((median_ratio(&[2.0, 20.0, 3.0], &[1.0, 10.0, 2.0]) - 2.0).abs() < f64::EPSILON);
    }
}
