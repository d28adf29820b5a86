//! Latencies of good traffic alone and under the flood, as a table or as JSON.

use std::fmt;

use serde::Serialize;

use super::BadKeyAnswers;
use crate::Flood;
use crate::load::Turn;
use crate::quantiles::{median, median_ratio};

#[derive(Default)]
pub(crate) struct Row {
    pub(super) name: String,
    pub(super) alone: Good,
    pub(super) flooded: Good,
    pub(super) told: BadKeyAnswers,
}

/// Good traffic, turn by turn; latencies in milliseconds.
#[derive(Default)]
pub(super) struct Good {
    p50s: Vec<f64>,
    p99s: Vec<f64>,
    slowest: f64,
    answered: u64,
    refused: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    connections: usize,
    good_per_second: u32,
    bad_per_second: u32,
    addresses: u32,
    seconds: u64,
    repeats: usize,
    places: Vec<Place>,
}

#[derive(Debug, Serialize)]
struct Place {
    name: String,
    alone: Summary,
    flooded: Summary,
    /// The median over turns of the value under the flood divided by the value alone.
    p50_ratio: f64,
    p99_ratio: f64,
    bad_keys: BadKeyAnswers,
}

/// Medians of turns.
#[derive(Debug, Serialize)]
struct Summary {
    p50_ms: f64,
    p99_ms: f64,
    /// Of the slowest turn.
    worst_p99_ms: f64,
    slowest_ms: f64,
    answered: u64,
    refused: u64,
}

impl Row {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }
}

impl Good {
    pub(super) fn add(&mut self, turn: &Turn) {
        let Turn { latencies, refused, .. } = turn;
        self.p50s.push(latencies.quantile(0.5));
        self.p99s.push(latencies.quantile(0.99));
        self.slowest = self.slowest.max(latencies.quantile(1.0));
        self.answered += latencies.len();
        self.refused += refused;
    }

    fn summary(&self) -> Summary {
        Summary {
            p50_ms: median(self.p50s.clone()),
            p99_ms: median(self.p99s.clone()),
            worst_p99_ms: self.p99s.iter().copied().fold(0.0, f64::max),
            slowest_ms: self.slowest,
            answered: self.answered,
            refused: self.refused,
        }
    }
}

impl Report {
    pub(super) fn new(settings: &Flood, rows: Vec<Row>) -> Self {
        let places = rows.into_iter().map(|row| Place {
            alone: row.alone.summary(),
            flooded: row.flooded.summary(),
            p50_ratio: median_ratio(&row.flooded.p50s, &row.alone.p50s),
            p99_ratio: median_ratio(&row.flooded.p99s, &row.alone.p99s),
            bad_keys: row.told,
            name: row.name,
        });
        Self {
            connections: settings.connections,
            good_per_second: settings.rate,
            bad_per_second: settings.bad,
            addresses: settings.addresses,
            seconds: settings.seconds,
            repeats: settings.repeats,
            places: places.collect(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, good_per_second, bad_per_second, addresses, seconds, repeats, places } = self;
        writeln!(f, "good traffic: {good_per_second}/s over {connections} connections, one key, each check recorded")?;
        writeln!(f, "flood: {bad_per_second} unknown keys/s, a connection each, from {addresses} addresses")?;
        writeln!(f, "{repeats} interleaved turns of {seconds} s each; medians of turns\n")?;
        writeln!(
            f,
            "{:<24}{:>9}{:>9}{:>11}{:>12}{:>10}{:>6}",
            "good traffic", "p50 ms", "p99 ms", "worst p99", "slowest ms", "answered", "503s"
        )?;
        for place in places {
            for (when, of) in [("alone", &place.alone), ("flooded", &place.flooded)] {
                writeln!(
                    f,
                    "{:<24}{:>9.2}{:>9.2}{:>11.2}{:>12.2}{:>10}{:>6}",
                    format!("{}, {when}", place.name),
                    of.p50_ms,
                    of.p99_ms,
                    of.worst_p99_ms,
                    of.slowest_ms,
                    of.answered,
                    of.refused
                )?;
            }
        }
        writeln!(f, "\n{:<24}{:>9}{:>9}", "flooded / alone", "p50", "p99")?;
        for place in places {
            writeln!(f, "{:<24}{:>8.2}×{:>8.2}×", place.name, place.p50_ratio, place.p99_ratio)?;
        }
        writeln!(f, "\n{:<24}{:>9}{:>9}{:>9}{:>9}{:>12}", "bad keys got", "401", "429", "503", "other", "no answer")?;
        for Place { name, bad_keys: told, .. } in places {
            writeln!(
                f,
                "{:<24}{:>9}{:>9}{:>9}{:>9}{:>12}",
                name, told.unauthorized, told.throttled, told.unavailable, told.otherwise, told.unanswered
            )?;
        }
        Ok(())
    }
}
