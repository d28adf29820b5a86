//! Charts as plain SVG: lines over axes that may be logarithmic, and horizontal bars of parts. A chart draws its own
//! background, so that it is readable on any page, and has no script.

use std::fmt::Write as _;
use std::path::Path;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 78.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 60.0;
const PLOT_HEIGHT: f64 = 300.0;
const BAR_HEIGHT: f64 = 18.0;
const BAR_GAP: f64 = 10.0;
const LEGEND_LINE: f64 = 18.0;
/// About the width of a character of the labels.
const CHARACTER: f64 = 6.6;
/// Colours that people with colour blindness can tell apart; lines differ in their dashes too.
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#b8629b", "#c98a00", "#3f9bd1", "#7f7f7f"];
const DASHES: [&str; 3] = ["none", "7 4", "2 3"];
const STYLE: &str = "text{font:12px sans-serif;fill:#24292f}.t{font-size:15px;font-weight:bold}.g{stroke:#d0d7de}\
    .b{fill:#ffffff}@media(prefers-color-scheme:dark){text{fill:#e6edf3}.g{stroke:#3d444d}.b{fill:#0d1117}}";

/// A report that can be drawn.
pub(crate) trait Charts {
    fn charts(&self) -> Vec<Chart>;
}

/// A finished chart and the name of its file, without `.svg`.
#[derive(Debug)]
pub(crate) struct Chart {
    pub(crate) name: String,
    pub(crate) svg: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// From zero.
    Linear,
    /// Values of zero or less are left out.
    Logarithmic,
}

/// The label names the unit.
#[derive(Debug, Clone)]
pub(crate) struct Axis {
    pub(crate) label: String,
    pub(crate) scale: Scale,
}

#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

#[derive(Debug)]
pub(crate) struct LineChart {
    pub(crate) title: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) series: Vec<Series>,
}

/// A bar's parts stand one after the other, in the order of the chart's `parts`.
#[derive(Debug, Clone)]
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) values: Vec<f64>,
}

#[derive(Debug)]
pub(crate) struct BarChart {
    pub(crate) title: String,
    pub(crate) unit: String,
    /// Their names; a single one has no legend.
    pub(crate) parts: Vec<String>,
    pub(crate) bars: Vec<Bar>,
}

/// Writes each chart into this directory, which is made.
pub(crate) fn write(directory: &Path, charts: &[Chart]) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    charts.iter().try_for_each(|chart| std::fs::write(directory.join(format!("{}.svg", chart.name)), &chart.svg))
}

impl Axis {
    pub(crate) fn linear(label: &str) -> Self {
        Self { label: label.to_owned(), scale: Scale::Linear }
    }

    pub(crate) fn logarithmic(label: &str) -> Self {
        Self { label: label.to_owned(), scale: Scale::Logarithmic }
    }
}

/// Maps values to pixels, and says where the grid is.
struct Mapping {
    scale: Scale,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Mapping {
    fn new(scale: Scale, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let shown: Vec<f64> = values.filter(|&value| scale == Scale::Linear || value > 0.0).collect();
        let high = shown.iter().copied().reduce(f64::max).unwrap_or(1.0);
        let (low, high) = match scale {
            Scale::Linear => (0.0, if high > 0.0 { high * 1.05 } else { 1.0 }),
            Scale::Logarithmic => {
                let low = shown.iter().copied().reduce(f64::min).unwrap_or(1.0);
                (low * 0.9, (high * 1.1).max(low * 2.0))
            }
        };
        Self { scale, low, high, from, to }
    }

    fn pixel(&self, value: f64) -> Option<f64> {
        let part = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Logarithmic if value <= 0.0 => return None,
            Scale::Logarithmic => (value / self.low).ln() / (self.high / self.low).ln(),
        };
        Some(self.from + part * (self.to - self.from))
    }

    fn ticks(&self) -> Vec<f64> {
        let within = |value: &f64| (self.low..=self.high).contains(value);
        if self.scale == Scale::Linear {
            let magnitude = 10_f64.powf((self.high / 5.0).log10().floor());
            let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * magnitude);
            let step = steps.into_iter().find(|step| self.high / step <= 6.0).unwrap_or(magnitude * 10.0);
            return (0..=6).map(|index| f64::from(index) * step).filter(within).collect();
        }
        let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        let steps: &[f64] = if self.high / self.low < 500.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let all = decades.flat_map(|decade| steps.iter().map(move |step| step * 10_f64.powi(decade)));
        all.filter(within).collect()
    }
}

impl LineChart {
    pub(crate) fn chart(&self, name: &str) -> Chart {
        let bottom = TOP + PLOT_HEIGHT;
        let values = || self.series.iter().flat_map(|series| &series.points);
        let x = Mapping::new(self.x.scale, values().map(|point| point.0), LEFT, WIDTH - RIGHT);
        let y = Mapping::new(self.y.scale, values().map(|point| point.1), bottom, TOP);
        let mut svg = Svg::new(&self.title, bottom + 58.0 + LEGEND_LINE * self.series.len() as f64);
        for tick in x.ticks() {
            let Some(at) = x.pixel(tick) else { continue };
            svg.line("g", (at, TOP), (at, bottom));
            svg.text("middle", (at, bottom + 17.0), &number(tick));
        }
        for tick in y.ticks() {
            let Some(at) = y.pixel(tick) else { continue };
            svg.line("g", (LEFT, at), (WIDTH - RIGHT, at));
            svg.text("end", (LEFT - 7.0, at + 4.0), &number(tick));
        }
        svg.text("middle", (f64::midpoint(LEFT, WIDTH - RIGHT), bottom + 36.0), &self.x.label);
        svg.text("start", (16.0, TOP - 6.0), &self.y.label);
        for (index, series) in self.series.iter().enumerate() {
            let points: Vec<_> =
                series.points.iter().filter_map(|&(at, value)| Some((x.pixel(at)?, y.pixel(value)?))).collect();
            svg.path(index, &points);
            let row = bottom + 56.0 + LEGEND_LINE * index as f64;
            svg.path(index, &[(LEFT, row), (LEFT + 30.0, row)]);
            svg.text("start", (LEFT + 40.0, row + 4.0), &series.name);
        }
        svg.finish(name)
    }
}

impl BarChart {
    pub(crate) fn chart(&self, name: &str) -> Chart {
        let longest = self.bars.iter().map(|bar| bar.name.chars().count()).max().unwrap_or(0) as f64;
        let left = (longest * CHARACTER + 24.0).min(WIDTH / 2.0);
        let total = |bar: &Bar| bar.values.iter().sum::<f64>();
        // Room for the number after the longest bar.
        let x = Mapping::new(Scale::Linear, self.bars.iter().map(total), left, WIDTH - RIGHT - 60.0);
        let bottom = TOP + (BAR_HEIGHT + BAR_GAP) * self.bars.len() as f64;
        let legend = if self.parts.len() > 1 { self.parts.len() } else { 0 };
        let mut svg = Svg::new(&self.title, bottom + 50.0 + LEGEND_LINE * legend as f64);
        for tick in x.ticks() {
            let Some(at) = x.pixel(tick) else { continue };
            svg.line("g", (at, TOP - 4.0), (at, bottom));
            svg.text("middle", (at, bottom + 15.0), &number(tick));
        }
        svg.text("middle", (f64::midpoint(left, WIDTH - RIGHT), bottom + 33.0), &self.unit);
        for (row, bar) in self.bars.iter().enumerate() {
            let top = TOP + (BAR_HEIGHT + BAR_GAP) * row as f64;
            svg.text("end", (left - 8.0, top + 13.0), &bar.name);
            let mut sum = 0.0;
            for (index, value) in bar.values.iter().enumerate() {
                let (Some(from), Some(to)) = (x.pixel(sum), x.pixel(sum + value)) else { continue };
                svg.rectangle(index, (from, top), (to - from, BAR_HEIGHT));
                sum += value;
            }
            svg.text("start", (x.pixel(sum).unwrap_or(left) + 6.0, top + 13.0), &number(sum));
        }
        for (index, part) in self.parts.iter().enumerate().take(legend) {
            let row = bottom + 48.0 + LEGEND_LINE * index as f64;
            svg.rectangle(index, (left, row - 9.0), (14.0, 10.0));
            svg.text("start", (left + 22.0, row), part);
        }
        svg.finish(name)
    }
}

struct Svg(String);

// Writing to a string does not fail.
impl Svg {
    fn new(title: &str, height: f64) -> Self {
        let mut svg = Self(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\">\n\
             <title>{title}</title>\n<style>{STYLE}</style>\n\
             <rect class=\"b\" width=\"{WIDTH}\" height=\"{height:.0}\" rx=\"6\"/>\n",
            title = escaped(title)
        ));
        let _ = writeln!(svg.0, "<text class=\"t\" x=\"16\" y=\"26\">{}</text>", escaped(title));
        svg
    }

    fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let _ = writeln!(self.0, r#"<path class="{class}" d="M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}"/>"#);
    }

    fn text(&mut self, anchor: &str, at: (f64, f64), text: &str) {
        let ((x, y), text) = (at, escaped(text));
        let _ = writeln!(self.0, r#"<text text-anchor="{anchor}" x="{x:.1}" y="{y:.1}">{text}</text>"#);
    }

    /// A line through these points, with a dot at each.
    fn path(&mut self, index: usize, points: &[(f64, f64)]) {
        let (colour, dash) = (colour(index), DASHES.get(index % DASHES.len()).unwrap_or(&"none"));
        let corners: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let style = format!("fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dash}\"");
        let _ = writeln!(self.0, r#"<polyline points="{}" {style}/>"#, corners.join(" "));
        for (x, y) in points {
            let _ = writeln!(self.0, r#"<circle cx="{x:.1}" cy="{y:.1}" r="3" fill="{colour}"/>"#);
        }
    }

    fn rectangle(&mut self, index: usize, (x, y): (f64, f64), (width, height): (f64, f64)) {
        let colour = colour(index);
        let _ =
            writeln!(self.0, r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height}" fill="{colour}"/>"#);
    }

    fn finish(self, name: &str) -> Chart {
        Chart { name: name.to_owned(), svg: self.0 + "</svg>\n" }
    }
}

fn colour(index: usize) -> &'static str {
    COLOURS.get(index % COLOURS.len()).unwrap_or(&"#7f7f7f")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Three digits, with the suffix of thousands or millions.
fn number(value: f64) -> String {
    let (value, suffix) = match value.abs() {
        1e6.. => (value / 1e6, "M"),
        1e4.. => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = (2 - value.abs().max(0.001).log10().floor() as i32).clamp(0, 5) as usize;
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line_chart(points: Vec<(f64, f64)>) -> String {
        let series = vec![Series { name: "a < b".to_owned(), points }];
        let (x, y) = (Axis::logarithmic("rules"), Axis::linear("µs"));
        LineChart { title: "Cost & size".to_owned(), x, y, series }.chart("cost").svg
    }

    #[test]
    fn numbers_are_short_and_keep_three_digits() {
        let shown = [0.0, 0.05, 0.123_4, 1.0, 12.34, 999.0, 8_390.0, 110_800.0, 2.5e6].map(number);
        assert_eq!(shown, ["0", "0.05", "0.123", "1", "12.3", "999", "8390", "111k", "2.5M"]);
    }

    #[test]
    fn a_chart_is_well_formed_and_its_texts_are_escaped() {
        let svg = line_chart(vec![(10.0, 1.0), (100.0, 2.0)]);
        assert!(svg.contains("<title>Cost &amp; size</title>") && svg.contains("a &lt; b"), "{svg}");
        assert_eq!((svg.matches("<circle").count(), svg.matches("NaN").count()), (4, 0), "{svg}");
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && !svg.contains("script"));
    }

    #[test]
    fn what_a_logarithmic_axis_cannot_show_is_left_out() {
        let (with, without) = (line_chart(vec![(0.0, 1.0), (10.0, 1.0)]), line_chart(vec![(10.0, 1.0)]));
        assert_eq!(with.matches("<circle").count(), without.matches("<circle").count());
    }

    #[test]
    fn grids_have_round_numbers() {
        let linear = Mapping::new(Scale::Linear, [8_390.0].into_iter(), 0.0, 100.0);
        assert_eq!(linear.ticks(), [0.0, 2_000.0, 4_000.0, 6_000.0, 8_000.0]);
        let decades = Mapping::new(Scale::Logarithmic, [1.0, 100_000.0].into_iter(), 0.0, 100.0);
        assert_eq!(decades.ticks().len(), 6);
    }

    #[test]
    fn the_parts_of_a_bar_stand_one_after_the_other() {
        let bars = vec![Bar { name: "d1".to_owned(), values: vec![10.0, 30.0] }];
        let parts = vec!["gateway".to_owned(), "evaluator".to_owned()];
        let svg = BarChart { title: "CPU".to_owned(), unit: "µs".to_owned(), parts, bars }.chart("cpu").svg;
        let widths: Vec<f64> = svg
            .lines()
            .filter(|line| line.contains("height=\"18\""))
            .map(|line| line.split("width=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap())
            .collect();
        assert!(widths.len() == 2 && (widths[1] / widths[0] - 3.0).abs() < 0.05, "{widths:?}");
    }
}
