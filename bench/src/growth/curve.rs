//! A curve: what one operation costs at several sizes, and how fast the cost grows.
//!
//! The exponent is that of the power law through the first and the last point: 0 is flat, 1 is linear.

use std::fmt;

use serde::Serialize;

use crate::chart::{Axis, Chart, LineChart, Series};

#[derive(Debug, Serialize)]
pub(crate) struct Curve {
    pub(crate) name: String,
    /// What grows, such as `rules`.
    pub(crate) size: &'static str,
    /// What was measured, and what stands for something else.
    pub(crate) method: String,
    /// Which growth is expected, and why.
    pub(crate) expected: &'static str,
    pub(crate) columns: Vec<Column>,
    pub(crate) sizes: Vec<u64>,
}

/// What is measured at each size.
#[derive(Debug, Serialize)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    /// In the order of the sizes.
    pub(crate) values: Vec<f64>,
    /// None with fewer than two points, or where a value is not positive.
    pub(crate) exponent: Option<f64>,
}

/// One number of a point.
pub(crate) struct Measured {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) value: f64,
}

pub(crate) fn measured(name: &'static str, unit: &'static str, value: f64) -> Measured {
    Measured { name, unit, value }
}

impl Curve {
    pub(crate) fn new(name: &str, size: &'static str, method: String, expected: &'static str) -> Self {
        Self { name: name.to_owned(), size, method, expected, columns: Vec::new(), sizes: Vec::new() }
    }

    /// Adds a point. Each point has the same numbers in the same order.
    pub(crate) fn add(&mut self, size: u64, numbers: Vec<Measured>) {
        self.sizes.push(size);
        for (index, Measured { name, unit, value }) in numbers.into_iter().enumerate() {
            match self.columns.get_mut(index) {
                Some(column) => column.values.push(value),
                None => {
                    self.columns.push(Column { name: name.to_owned(), unit, values: vec![value], exponent: None });
                }
            }
        }
        for column in &mut self.columns {
            column.exponent = exponent(&self.sizes, &column.values);
        }
    }

    /// One chart for each unit.
    pub(crate) fn charts(&self) -> Vec<Chart> {
        let mut units: Vec<&str> = self.columns.iter().map(|column| column.unit).collect();
        units.sort_unstable();
        units.dedup();
        units.into_iter().map(|unit| self.chart_of(unit)).collect()
    }

    fn chart_of(&self, unit: &str) -> Chart {
        let of_unit = self.columns.iter().filter(|column| column.unit == unit);
        let series = of_unit.map(|column| Series {
            name: column.name.clone(),
            points: self.sizes.iter().map(|&size| size as f64).zip(column.values.iter().copied()).collect(),
        });
        let chart = LineChart {
            title: format!("{}: {unit}", self.name),
            x: Axis::logarithmic(self.size),
            y: Axis::logarithmic(unit),
            series: series.collect(),
        };
        chart.chart(&file_name(&format!("growth {} {unit}", self.name)))
    }
}

/// Letters and digits, joined by `-`.
fn file_name(text: &str) -> String {
    let text = text.replace('µ', "u").replace("1/s", "per-second");
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-").to_lowercase()
}

impl fmt::Display for Curve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, size, method, expected, columns, sizes } = self;
        writeln!(f, "{name}\n  {method}\n  Expected: {expected}")?;
        let width = columns.iter().map(|column| column.title().chars().count()).max().unwrap_or(0).max(size.len()) + 2;
        write!(f, "  {size:<width$}")?;
        for size in sizes {
            write!(f, "{size:>12}")?;
        }
        writeln!(f, "{:>10}", "exponent")?;
        for column in columns {
            write!(f, "  {:<width$}", column.title())?;
            for value in &column.values {
                write!(f, "{:>12}", number(*value))?;
            }
            let exponent = column.exponent.map_or_else(|| "–".to_owned(), |exponent| format!("{exponent:.2}"));
            writeln!(f, "{exponent:>10}")?;
        }
        Ok(())
    }
}

impl Column {
    fn title(&self) -> String {
        format!("{}, {}", self.name, self.unit)
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn exponent(sizes: &[u64], values: &[f64]) -> Option<f64> {
    let (first, last) = (*sizes.first()? as f64, *sizes.last()? as f64);
    let (low, high) = (*values.first()?, *values.last()?);
    let is_known = first > 0.0 && last > first && low > 0.0 && high > 0.0;
    is_known.then(|| (high / low).ln() / (last / first).ln())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(values: [f64; 3]) -> Curve {
        let mut curve = Curve::new("a curve", "things", "counted".to_owned(), "flat");
        for (size, value) in [10, 100, 1_000].into_iter().zip(values) {
            curve.add(size, vec![measured("cost", "µs", value)]);
        }
        curve
    }

    #[test]
    fn the_exponent_tells_flat_from_linear_from_quadratic() {
        for (values, wanted) in [([5.0, 7.0, 5.0], 0.0), ([2.0, 20.0, 200.0], 1.0), ([1.0, 100.0, 10_000.0], 2.0)] {
            let found = curve(values).columns.first().and_then(|column| column.exponent);
            assert!(found.is_some_and(|found| (found - wanted).abs() < 1e-9), "{found:?} is not {wanted}");
        }
    }

    #[test]
    fn a_curve_of_one_point_or_of_nothing_measured_has_no_exponent() {
        assert_eq!(exponent(&[10], &[1.0]), None);
        assert_eq!(exponent(&[10, 100], &[0.0, 1.0]), None);
    }

    #[test]
    fn there_is_a_chart_for_each_unit_whose_file_has_a_plain_name() {
        let mut curve = curve([2.0, 20.0, 200.0]);
        curve.columns.push(Column { name: "size".to_owned(), unit: "MB", values: vec![1.0], exponent: None });
        let names: Vec<_> = curve.charts().into_iter().map(|chart| chart.name).collect();
        assert_eq!(names, ["growth-a-curve-mb", "growth-a-curve-us"]);
    }

    #[test]
    fn a_curve_prints_each_size_and_the_exponent() {
        let text = curve([2.0, 20.0, 200.0]).to_string();
        for part in ["things", "1000", "cost, µs", "20.0", "200", "exponent", "1.00"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
