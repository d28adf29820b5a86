//! Medians, quantiles and ratios, as a table or as JSON.

use std::fmt;

use serde::Serialize;

use crate::Compare;
use crate::chart::{Bar, BarChart, Chart, Charts};
use crate::load::Turn;
use crate::quantiles::{Latencies, median, median_ratio};

/// The pairs whose ratios are reported, each by the start of its name: against the floor, within an environment, and
/// with authenticated messages against without.
fn pairs() -> Vec<(String, String)> {
    let floors = [("c", "a "), ("d", "b ")];
    let mut pairs: Vec<_> = floors
        .into_iter()
        .flat_map(|(place, floor)| [0, 1, 3, 5].map(|way| (format!("{place}{way}"), floor.to_owned())))
        .collect();
    for (other, ways) in [(0, 1..=2), (1, 3..=7)] {
        for place in ["c", "d"] {
            pairs.extend(ways.clone().map(|way| (format!("{place}{way}"), format!("{place}{other}"))));
        }
    }
    pairs.extend((0..=7).map(|way| (format!("e{way}"), format!("d{way}"))));
    pairs
}

pub(crate) struct Row {
    pub(crate) name: String,
    rates: Vec<f64>,
    /// The 99th percentile in milliseconds, turn by turn.
    p99s: Vec<f64>,
    all: Latencies,
    refused: u64,
}

/// Checks with a webhook against checks without, both at the same rate.
pub(crate) struct HalfRate {
    name: String,
    pub(crate) per_second: f64,
    pub(crate) without: Row,
    pub(crate) with: Row,
    pub(crate) lags: Latencies,
    /// Events that had not arrived when the last check was answered, turn by turn.
    pub(crate) behind: Vec<u64>,
}

/// Medians of turns; the lag is from an event's record to its arrival.
#[derive(Debug, Serialize)]
struct HalfRateSummary {
    name: String,
    per_second: f64,
    kept: f64,
    p99: f64,
    lag_p50_ms: f64,
    lag_p99_ms: f64,
    max_lag_ms: f64,
    max_behind: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Deliveries {
    pub(crate) name: String,
    pub(crate) delivered: f64,
    /// POSTs a second of a bare loop.
    pub(crate) bare: f64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    connections: usize,
    seconds: u64,
    repeats: usize,
    rows: Vec<Summary>,
    ratios: Vec<Ratio>,
    half_rates: Vec<HalfRateSummary>,
    deliveries: Vec<Deliveries>,
}

#[derive(Debug, Serialize)]
struct Summary {
    name: String,
    per_second: f64,
    slowest_turn: f64,
    fastest_turn: f64,
    p50_ms: f64,
    p99_ms: f64,
    p999_ms: f64,
    refused: u64,
}

/// The median over turns of the quotient of two contestants' numbers of the same turn.
#[derive(Debug, Serialize)]
struct Ratio {
    what: String,
    throughput: f64,
    p99: f64,
}

impl Row {
    pub(crate) fn new(name: &str) -> anyhow::Result<Self> {
        Ok(Self { name: name.to_owned(), rates: Vec::new(), p99s: Vec::new(), all: Latencies::new()?, refused: 0 })
    }

    pub(crate) fn add(&mut self, turn: &Turn) -> anyhow::Result<()> {
        self.refused += turn.refused;
        self.rates.push(turn.rate());
        self.p99s.push(turn.latencies.quantile(0.99));
        self.all.add(&turn.latencies)
    }

    /// Answers a second, the median of turns.
    pub(crate) fn rate(&self) -> f64 {
        median(self.rates.clone())
    }

    fn summary(&self) -> Summary {
        let extreme = |pick: fn(f64, f64) -> f64| self.rates.iter().copied().reduce(pick).unwrap_or(0.0);
        Summary {
            name: self.name.clone(),
            per_second: self.rate(),
            slowest_turn: extreme(f64::min),
            fastest_turn: extreme(f64::max),
            p50_ms: self.all.quantile(0.5),
            p99_ms: median(self.p99s.clone()),
            p999_ms: self.all.quantile(0.999),
            refused: self.refused,
        }
    }
}

impl HalfRate {
    pub(crate) fn new(name: &str, per_second: f64) -> anyhow::Result<Self> {
        let (without, with, lags) = (Row::new(name)?, Row::new(name)?, Latencies::new()?);
        Ok(Self { name: name.to_owned(), per_second, without, with, lags, behind: Vec::new() })
    }

    fn summary(&self) -> HalfRateSummary {
        HalfRateSummary {
            name: self.name.clone(),
            per_second: self.per_second,
            kept: median_ratio(&self.with.rates, &self.without.rates),
            p99: median_ratio(&self.with.p99s, &self.without.p99s),
            lag_p50_ms: self.lags.quantile(0.5),
            lag_p99_ms: self.lags.quantile(0.99),
            max_lag_ms: self.lags.quantile(1.0),
            max_behind: self.behind.iter().copied().max().unwrap_or(0),
        }
    }
}

impl Report {
    pub(crate) fn new(settings: &Compare, rows: &[Row], half_rates: &[HalfRate], deliveries: Vec<Deliveries>) -> Self {
        let ratios = pairs().into_iter().filter_map(|(one, other)| {
            let find = |name: String| rows.iter().find(|row| row.name.starts_with(&name));
            let (one, other) = (find(one)?, find(other)?);
            Some(Ratio {
                what: format!("{} / {}", one.name.trim(), other.name.trim()),
                throughput: median_ratio(&one.rates, &other.rates),
                p99: median_ratio(&one.p99s, &other.p99s),
            })
        });
        let ratios = ratios.collect();
        let rows = rows.iter().map(Row::summary).collect();
        let &Compare { connections, seconds, repeats, .. } = settings;
        let half_rates = half_rates.iter().map(HalfRate::summary).collect();
        Self { connections, seconds, repeats, rows, ratios, half_rates, deliveries }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, seconds, repeats, .. } = self;
        writeln!(f, "{connections} connections, {repeats} interleaved turns of {seconds} s each; medians of turns\n")?;
        writeln!(
            f,
            "{:<38}{:>9}{:>18}{:>9}{:>9}{:>9}{:>6}",
            "", "req/s", "(slowest–fastest)", "p50 ms", "p99 ms", "p99.9", "503s"
        )?;
        for row in &self.rows {
            let range = format!("({:.0}–{:.0})", row.slowest_turn, row.fastest_turn);
            writeln!(
                f,
                "{:<38}{:>9.0}{:>18}{:>9.2}{:>9.2}{:>9.2}{:>6}",
                row.name, row.per_second, range, row.p50_ms, row.p99_ms, row.p999_ms, row.refused
            )?;
        }
        writeln!(f, "\n{:<62}{:>11}{:>8}", "ratio, median over turns", "throughput", "p99")?;
        for ratio in &self.ratios {
            writeln!(f, "{:<62}{:>10.1}%{:>7.2}×", ratio.what, ratio.throughput * 100.0, ratio.p99)?;
        }
        self.write_half_rates(f)?;
        if self.deliveries.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n{:<38}{:>12}{:>14}{:>8}", "deliveries", "events/s", "bare POSTs/s", "ratio")?;
        for row in &self.deliveries {
            let ratio = row.delivered / row.bare * 100.0;
            writeln!(f, "{:<38}{:>12.0}{:>14.0}{ratio:>7.1}%", row.name, row.delivered, row.bare)?;
        }
        Ok(())
    }
}

impl Report {
    fn write_half_rates(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.half_rates.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "\n{:<38}{:>9}{:>11}{:>7}{:>12}{:>9}{:>9}{:>8}",
            "at half of the maximum without webhook",
            "req/s",
            "throughput",
            "p99",
            "lag: p50 ms",
            "p99 ms",
            "slowest",
            "behind"
        )?;
        for row in &self.half_rates {
            let HalfRateSummary { name, per_second, p99, lag_p50_ms, lag_p99_ms, max_lag_ms, max_behind, .. } = row;
            let kept = row.kept * 100.0;
            write!(f, "{name:<38}{per_second:>9.0}{kept:>10.1}%{p99:>6.2}×")?;
            writeln!(f, "{lag_p50_ms:>12.1}{lag_p99_ms:>9.1}{max_lag_ms:>9.1}{max_behind:>8}")?;
        }
        Ok(())
    }
}

impl Charts for Report {
    fn charts(&self) -> Vec<Chart> {
        let chart = |name: &str, title: &str, unit: &str, value: fn(&Summary) -> f64| {
            let bars = self.rows.iter().map(|row| Bar { name: row.name.clone(), values: vec![value(row)] }).collect();
            let title = format!("{title}, {} connections", self.connections);
            BarChart { title, unit: unit.to_owned(), parts: Vec::new(), bars }.chart(name)
        };
        vec![
            chart("compare-rate", "As fast as they are answered", "requests a second", |row| row.per_second),
            chart("compare-p99", "99th percentile at that rate", "ms", |row| row.p99_ms),
        ]
    }
}
