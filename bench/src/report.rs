//! Medians, quantiles and ratios, as a table or as JSON.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::Compare;
use crate::load::Turn;
use crate::quantiles::{median, median_ratio, quantile};

/// The pairs whose ratios are reported, each by the start of its name: against the floor, within an environment, and
/// with authenticated messages against without.
fn pairs() -> Vec<(String, String)> {
    let mut pairs = vec![("c0".to_owned(), "a ".to_owned()), ("d0".to_owned(), "b ".to_owned())];
    for (other, ways) in [(0, 1..=2), (1, 3..=7)] {
        for place in ["c", "d"] {
            pairs.extend(ways.clone().map(|way| (format!("{place}{way}"), format!("{place}{other}"))));
        }
    }
    pairs.extend((0..=7).map(|way| (format!("e{way}"), format!("d{way}"))));
    pairs
}

#[derive(Default)]
pub(crate) struct Row {
    pub(crate) name: String,
    rates: Vec<f64>,
    /// The 99th percentile in milliseconds, turn by turn.
    p99s: Vec<f64>,
    all: Vec<Duration>,
    refused: u64,
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
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    pub(crate) fn add(&mut self, time: Duration, turn: Turn) {
        let Turn { mut latencies, refused } = turn;
        self.refused += refused;
        latencies.sort_unstable();
        self.rates.push(latencies.len() as f64 / time.as_secs_f64());
        self.p99s.push(quantile(&latencies, 0.99));
        self.all.extend(latencies);
    }

    fn summary(&mut self) -> Summary {
        self.all.sort_unstable();
        let extreme = |pick: fn(f64, f64) -> f64| self.rates.iter().copied().reduce(pick).unwrap_or(0.0);
        Summary {
            name: self.name.clone(),
            per_second: median(self.rates.clone()),
            slowest_turn: extreme(f64::min),
            fastest_turn: extreme(f64::max),
            p50_ms: quantile(&self.all, 0.5),
            p99_ms: median(self.p99s.clone()),
            p999_ms: quantile(&self.all, 0.999),
            refused: self.refused,
        }
    }
}

impl Report {
    pub(crate) fn new(settings: &Compare, mut rows: Vec<Row>, deliveries: Vec<Deliveries>) -> Self {
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
        let rows = rows.iter_mut().map(Row::summary).collect();
        let &Compare { connections, seconds, repeats, .. } = settings;
        Self { connections, seconds, repeats, rows, ratios, deliveries }
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
        writeln!(f, "\n{:<38}{:>12}{:>14}{:>8}", "deliveries", "events/s", "bare POSTs/s", "ratio")?;
        for row in &self.deliveries {
            let ratio = row.delivered / row.bare * 100.0;
            writeln!(f, "{:<38}{:>12.0}{:>14.0}{ratio:>7.1}%", row.name, row.delivered, row.bare)?;
        }
        Ok(())
    }
}
