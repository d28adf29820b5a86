//! Costs, memory and latencies as tables, as JSON and as charts.

use std::fmt;

use serde::Serialize;

use super::{CostArgs, Spent};
use crate::chart::{Axis, Bar, BarChart, Chart, Charts, LineChart, Series};
use crate::deployment::Usage;
use crate::quantiles::{Latencies, median, median_ratio};

/// One contestant with one number of connections.
pub(super) struct Row {
    name: String,
    floor: Option<String>,
    connections: usize,
    pub(super) maximum: Turns,
    /// After its fastest turns.
    pub(super) memory: Vec<Usage>,
    fixed: Vec<Fixed>,
}

/// At a fraction of the maximum.
pub(super) struct Fixed {
    fraction: f64,
    pub(super) rate: f64,
    pub(super) spent: Turns,
    pub(super) floor: Turns,
}

/// Turns of the same kind.
#[derive(Default)]
pub(super) struct Turns {
    rates: Vec<f64>,
    /// The 99th percentile in milliseconds, turn by turn.
    p99s: Vec<f64>,
    all: Option<Latencies>,
    refused: u64,
    /// Each process with its microseconds of CPU for each answer, turn by turn.
    cpu: Vec<(String, Vec<f64>)>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    seconds: u64,
    repeats: usize,
    cores: usize,
    contestants: Vec<Summary>,
    at_rest: Vec<Memory>,
}

#[derive(Debug, Serialize)]
struct Summary {
    name: String,
    connections: usize,
    maximum: Measured,
    /// Median over turns of its maximum divided by the floor's in the same turn.
    of_floor: Option<f64>,
    memory: Vec<Megabytes>,
    fixed: Vec<FixedSummary>,
}

#[derive(Debug, Serialize)]
struct FixedSummary {
    /// Of the maximum.
    fraction: f64,
    per_second: f64,
    measured: Measured,
    floor: Option<Measured>,
    /// Median over turns of p99 divided by the floor's in the next turn.
    p99_ratio: Option<f64>,
}

/// Medians of turns; quantiles of all latencies together, but for the 99th percentile.
#[derive(Debug, Serialize)]
struct Measured {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    p999_ms: f64,
    max_ms: f64,
    refused: u64,
    cpu: Vec<Cost>,
    /// Of all its processes, without the load.
    cpu_us: f64,
}

#[derive(Debug, Serialize)]
struct Cost {
    process: String,
    us: f64,
}

#[derive(Debug, Serialize)]
struct Memory {
    name: String,
    processes: Vec<Megabytes>,
}

#[derive(Debug, Serialize)]
struct Megabytes {
    process: String,
    resident: f64,
    anonymous: f64,
}

impl Row {
    pub(super) fn new(name: &str, floor: Option<&str>, connections: usize) -> Self {
        let (maximum, memory, fixed) = (Turns::default(), Vec::new(), Vec::new());
        Self { name: name.to_owned(), floor: floor.map(str::to_owned), connections, maximum, memory, fixed }
    }

    /// Its turns at this fraction of its maximum.
    pub(super) fn fixed(&mut self, fraction: f64) -> anyhow::Result<&mut Fixed> {
        let same = |fixed: &Fixed| (fixed.fraction - fraction).abs() < f64::EPSILON;
        let at = self.fixed.iter().position(same).unwrap_or(self.fixed.len());
        if at == self.fixed.len() {
            let rate = median(self.maximum.rates.clone()) * fraction;
            self.fixed.push(Fixed { fraction, rate, spent: Turns::default(), floor: Turns::default() });
        }
        self.fixed.get_mut(at).ok_or_else(|| anyhow::anyhow!("no turns at {fraction}"))
    }

    fn summary(&self, all: &[Self]) -> Summary {
        let is_floor = |other: &&Self| {
            let is_named = self.floor.as_ref().is_some_and(|floor| other.name.starts_with(floor));
            is_named && other.connections == self.connections
        };
        let floor = all.iter().find(is_floor);
        let of_floor = floor.map(|floor| median_ratio(&self.maximum.rates, &floor.maximum.rates));
        let (name, memory) = (self.name.clone(), self.memory.iter().map(Megabytes::of).collect());
        let fixed = self.fixed.iter().map(Fixed::summary).collect();
        Summary { name, connections: self.connections, maximum: self.maximum.measured(), of_floor, memory, fixed }
    }
}

impl Fixed {
    fn summary(&self) -> FixedSummary {
        let floor = (!self.floor.rates.is_empty()).then(|| self.floor.measured());
        FixedSummary {
            fraction: self.fraction,
            per_second: self.rate,
            measured: self.spent.measured(),
            p99_ratio: floor.as_ref().map(|_| median_ratio(&self.spent.p99s, &self.floor.p99s)),
            floor,
        }
    }
}

impl Turns {
    pub(super) fn add(&mut self, spent: &Spent) -> anyhow::Result<()> {
        let Spent { turn, cpu } = spent;
        self.rates.push(turn.rate());
        self.p99s.push(turn.latencies.quantile(0.99));
        self.refused += turn.refused;
        match &mut self.all {
            Some(all) => all.add(&turn.latencies)?,
            none => *none = Some(turn.latencies.clone()),
        }
        for (process, time) in cpu {
            let of_answer = time.as_secs_f64() * 1e6 / turn.latencies.len().max(1) as f64;
            match self.cpu.iter_mut().find(|(known, _)| known == process) {
                Some((_, turns)) => turns.push(of_answer),
                None => self.cpu.push((process.clone(), vec![of_answer])),
            }
        }
        Ok(())
    }

    fn measured(&self) -> Measured {
        let quantile = |quantile| self.all.as_ref().map_or(0.0, |all| all.quantile(quantile));
        let cost = |(process, turns): &(String, Vec<f64>)| Cost { process: process.clone(), us: median(turns.clone()) };
        let cpu: Vec<_> = self.cpu.iter().map(cost).collect();
        Measured {
            per_second: median(self.rates.clone()),
            p50_ms: quantile(0.5),
            p99_ms: median(self.p99s.clone()),
            p999_ms: quantile(0.999),
            max_ms: quantile(1.0),
            refused: self.refused,
            cpu_us: cpu.iter().filter(|cost| cost.process != "load").map(|cost| cost.us).sum(),
            cpu,
        }
    }
}

impl Megabytes {
    fn of(usage: &Usage) -> Self {
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        Self {
            process: usage.process.clone(),
            resident: megabytes(usage.resident),
            anonymous: megabytes(usage.anonymous),
        }
    }
}

impl Report {
    pub(super) fn new(settings: &CostArgs, rows: &[Row], at_rest: Vec<(String, Vec<Usage>)>) -> Self {
        let at_rest = at_rest
            .into_iter()
            .map(|(name, processes)| Memory { name, processes: processes.iter().map(Megabytes::of).collect() });
        Self {
            seconds: settings.seconds,
            repeats: settings.repeats,
            cores: crate::floors::workers(),
            contestants: rows.iter().map(|row| row.summary(rows)).collect(),
            at_rest: at_rest.collect(),
        }
    }

    fn of_connections(&self) -> Vec<(usize, Vec<&Summary>)> {
        let mut all: Vec<(usize, Vec<&Summary>)> = Vec::new();
        for summary in &self.contestants {
            match all.iter_mut().find(|(connections, _)| *connections == summary.connections) {
                Some((_, summaries)) => summaries.push(summary),
                None => all.push((summary.connections, vec![summary])),
            }
        }
        all
    }
}

const COLUMNS: [&str; 7] = ["gateway", "evaluator", "nats-server", "keystore", "audit-export", "dev", "load"];

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { repeats, seconds, cores, .. } = self;
        writeln!(
            f,
            "{repeats} interleaved turns of {seconds} s each on {cores} cores, which the load shares; medians"
        )?;
        for (connections, summaries) in self.of_connections() {
            write_costs(f, connections, &summaries)?;
            write_fixed(f, &summaries)?;
        }
        write_memory(f, self)
    }
}

fn write_costs(f: &mut fmt::Formatter<'_>, connections: usize, summaries: &[&Summary]) -> fmt::Result {
    writeln!(f, "\n{connections} connections, as fast as they are answered; µs of CPU for each answer")?;
    write!(f, "{:<36}{:>8}{:>10}{:>8}{:>8}{:>8}", "", "req/s", "of floor", "p50 ms", "p99 ms", "all")?;
    COLUMNS.iter().try_for_each(|column| write!(f, "{column:>13}"))?;
    writeln!(f)?;
    for Summary { name, maximum, of_floor, .. } in summaries {
        let Measured { per_second, p50_ms, p99_ms, cpu_us, .. } = maximum;
        let of_floor = of_floor.map_or_else(String::new, |ratio| format!("{:.0}%", ratio * 100.0));
        write!(f, "{name:<36}{per_second:>8.0}{of_floor:>10}{p50_ms:>8.2}{p99_ms:>8.2}{cpu_us:>8.0}")?;
        for column in COLUMNS {
            match maximum.cpu.iter().find(|cost| cost.process == column) {
                Some(cost) => write!(f, "{:>13.1}", cost.us)?,
                None => write!(f, "{:>13}", "")?,
            }
        }
        writeln!(f)?;
    }
    Ok(())
}

fn write_fixed(f: &mut fmt::Formatter<'_>, summaries: &[&Summary]) -> fmt::Result {
    writeln!(
        f,
        "\n{:<36}{:>8}{:>8}{:>9}{:>8}{:>8}{:>9}{:>9}{:>7}{:>13}{:>9}",
        "at a fixed rate",
        "of max",
        "req/s",
        "answered",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "slowest",
        "503s",
        "floor p99 ms",
        "ratio"
    )?;
    for Summary { name, fixed, .. } in summaries {
        for FixedSummary { fraction, per_second, measured, floor, p99_ratio } in fixed {
            let Measured { per_second: answered, p50_ms, p99_ms, p999_ms, max_ms, refused, .. } = measured;
            let share = fraction * 100.0;
            write!(f, "{name:<36}{share:>7.0}%{per_second:>8.0}{answered:>9.0}{p50_ms:>8.2}{p99_ms:>8.2}")?;
            write!(f, "{p999_ms:>9.2}{max_ms:>9.1}{refused:>7}")?;
            match (floor, p99_ratio) {
                (Some(floor), Some(ratio)) => writeln!(f, "{:>13.2}{ratio:>8.2}×", floor.p99_ms)?,
                _ => writeln!(f)?,
            }
        }
    }
    Ok(())
}

fn write_memory(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    writeln!(f, "\nresident memory (anonymous part), MB")?;
    let write = |f: &mut fmt::Formatter<'_>, name: &str, when: &str, processes: &[Megabytes]| {
        write!(f, "{name:<36}{when:>18}")?;
        for Megabytes { process, resident, anonymous } in processes {
            write!(f, "  {process} {resident:.0} ({anonymous:.0})")?;
        }
        writeln!(f)
    };
    for Memory { name, processes } in &report.at_rest {
        write(f, name, "at rest", processes)?;
    }
    for Summary { name, connections, memory, .. } in &report.contestants {
        write(f, name, &format!("{connections} connections"), memory)?;
    }
    Ok(())
}

impl Charts for Report {
    fn charts(&self) -> Vec<Chart> {
        let of_connections = self.of_connections().into_iter();
        of_connections
            .flat_map(|(connections, summaries)| {
                [cpu_chart(connections, &summaries), latency_chart(connections, &summaries)]
            })
            .collect()
    }
}

fn cpu_chart(connections: usize, summaries: &[&Summary]) -> Chart {
    let of_column = |summary: &Summary, column: &str| {
        summary.maximum.cpu.iter().find(|cost| cost.process == column).map_or(0.0, |cost| cost.us)
    };
    let parts: Vec<&str> = COLUMNS
        .into_iter()
        .filter(|&column| column != "load" && summaries.iter().any(|summary| of_column(summary, column) > 0.0))
        .collect();
    let bar = |summary: &&Summary| Bar {
        name: summary.name.clone(),
        values: parts.iter().map(|part| of_column(summary, part)).collect(),
    };
    let bars = summaries.iter().map(bar).collect();
    let parts = parts.iter().map(|&part| part.to_owned()).collect();
    let title = format!("CPU of one answer, {connections} connections");
    BarChart { title, unit: "µs of CPU".to_owned(), parts, bars }.chart(&format!("cost-cpu-{connections}"))
}

fn latency_chart(connections: usize, summaries: &[&Summary]) -> Chart {
    let series = |summary: &&Summary| Series {
        name: summary.name.clone(),
        points: summary.fixed.iter().map(|fixed| (fixed.per_second, fixed.measured.p99_ms)).collect(),
    };
    let (x, y) = (Axis::logarithmic("requests a second"), Axis::logarithmic("p99, ms"));
    let title = format!("99th percentile at fixed rates, {connections} connections");
    LineChart { title, x, y, series: summaries.iter().map(series).collect() }.chart(&format!("cost-p99-{connections}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::load::Turn;

    fn spent(answers: u64, seconds: u64, gateway: Duration) -> Spent {
        let mut latencies = Latencies::new().unwrap();
        (0..answers).for_each(|_| latencies.record(Duration::from_millis(4)).unwrap());
        let turn = Turn { latencies, refused: 1, elapsed: Duration::from_secs(seconds) };
        Spent { turn, cpu: vec![("gateway".to_owned(), gateway), ("load".to_owned(), Duration::from_secs(9))] }
    }

    #[test]
    fn the_cost_of_an_answer_is_the_median_of_turns_without_the_load() {
        let mut turns = Turns::default();
        for (answers, milliseconds) in [(100, 10), (200, 40), (100, 90)] {
            turns.add(&spent(answers, 1, Duration::from_millis(milliseconds))).unwrap();
        }
        let measured = turns.measured();
        assert!((measured.cpu_us - 200.0).abs() < 1e-6, "{measured:?}");
        assert_eq!((measured.refused, measured.cpu.len()), (3, 2));
    }

    #[test]
    fn a_fixed_rate_is_a_fraction_of_the_maximum_and_is_kept_over_turns() {
        let mut row = Row::new("d1", None, 64);
        for answers in [100, 300, 200] {
            row.maximum.add(&spent(answers, 2, Duration::ZERO)).unwrap();
        }
        assert!((row.fixed(0.5).unwrap().rate - 50.0).abs() < 1e-6);
        row.fixed(0.5).unwrap().spent.add(&spent(100, 2, Duration::ZERO)).unwrap();
        assert_eq!((row.fixed(0.5).unwrap().spent.rates.len(), row.fixed.len()), (1, 1));
    }

    #[test]
    fn a_rate_without_a_floor_beside_it_has_no_ratio() {
        let mut row = Row::new("d1", None, 64);
        row.maximum.add(&spent(100, 1, Duration::ZERO)).unwrap();
        row.fixed(0.5).unwrap().spent.add(&spent(50, 1, Duration::ZERO)).unwrap();
        let alone = row.summary(&[]);
        assert!(alone.fixed.iter().all(|fixed| fixed.p99_ratio.is_none() && fixed.floor.is_none()));
        row.fixed(0.5).unwrap().floor.add(&spent(50, 1, Duration::ZERO)).unwrap();
        assert_eq!(row.summary(&[]).fixed.first().and_then(|fixed| fixed.p99_ratio), Some(1.0));
    }

    #[test]
    fn a_maximum_is_compared_turn_by_turn_with_that_of_its_floor_at_the_same_connections() {
        let of = |name, floor, connections, answers: [u64; 3]| {
            let mut row = Row::new(name, floor, connections);
            for answers in answers {
                row.maximum.add(&spent(answers, 1, Duration::ZERO)).unwrap();
            }
            row
        };
        let rows = [
            of("d1 NATS", None, 1, [7, 7, 7]),
            of("d1 NATS", None, 64, [100, 200, 400]),
            of("f1 3 NATS", Some("d1"), 64, [50, 150, 100]),
            of("f3 3 NATS", Some("d3"), 64, [1, 1, 1]),
        ];
        let ratios = rows.iter().map(|row| row.summary(&rows).of_floor).collect::<Vec<_>>();
        assert_eq!(ratios, [None, None, Some(0.5), None]);
    }
}
