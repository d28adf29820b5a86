//! Tables in plain columns, so that `grep` and `awk` work on them too.
//!
//! On a terminal the least important columns are shortened until the table fits; in a pipe or a file nothing is cut. A
//! cell is one line and never empty, so that columns can be counted.

use std::fmt;
use std::io;

use jiff::Timestamp;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use crate::out::{self, Painted, Terminal, plain};

const GAP: usize = 2;
const ELLIPSIS: char = '…';

pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    shrinkable: &'static [(usize, usize)],
    coloured: Option<usize>,
}

impl Table {
    pub(crate) fn new<const N: usize>(headings: [&str; N]) -> Self {
        Self { rows: vec![headings.map(str::to_owned).into()], shrinkable: &[], coloured: None }
    }

    /// The columns to shorten, the least important first, each with its smallest width; 0: it may be left out.
    pub(crate) fn shrinkable(mut self, columns: &'static [(usize, usize)]) -> Self {
        self.shrinkable = columns;
        self
    }

    pub(crate) fn coloured(mut self, column: usize) -> Self {
        self.coloured = Some(column);
        self
    }

    /// Adds a row. Line breaks and control characters in a cell are escaped.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        let escaped = |cell: String| if cell.is_empty() { "-".to_owned() } else { plain(&cell) };
        self.rows.push(cells.map(escaped).into());
    }

    pub(crate) fn print(&self) -> io::Result<()> {
        out::painted(&self.for_terminal(Terminal::of_stdout())).map(|_| ())
    }

    fn for_terminal(&self, terminal: Terminal) -> Painted {
        let mut text = Painted::new(terminal.colours);
        let widths = self.widths(terminal.width);
        for (index, row) in self.rows.iter().enumerate() {
            if index > 0 {
                text.push("\n");
            }
            for (column, cell) in self.cells(row, &widths) {
                if Some(column) == self.coloured && index > 0 { text.word(&cell) } else { text.push(&cell) }
            }
        }
        text
    }

    /// The visible cells of a row, all padded except the last.
    fn cells(&self, row: &[String], widths: &[usize]) -> Vec<(usize, String)> {
        let shown = row.iter().zip(widths).enumerate().filter(|(_, (_, width))| **width > 0);
        let mut cells: Vec<(usize, String)> = shown
            .map(|(column, (cell, width))| {
                let cell = cut(cell, *width);
                let padding = width.saturating_sub(cell.width()) + GAP;
                (column, format!("{cell}{:padding$}", ""))
            })
            .collect();
        if let Some((_, last)) = cells.last_mut() {
            last.truncate(last.trim_end().len());
        }
        cells
    }

    fn widths(&self, max: Option<usize>) -> Vec<usize> {
        let columns = self.rows.first().map_or(0, Vec::len);
        let widest =
            |column| self.rows.iter().filter_map(|row| row.get(column)).map(|cell: &String| cell.width()).max();
        let mut widths: Vec<usize> = (0..columns).map(|column| widest(column).unwrap_or_default()).collect();
        let Some(max) = max else { return widths };
        for (column, min) in self.shrinkable {
            let excess = total(&widths).saturating_sub(max);
            if excess == 0 {
                break;
            }
            if let Some(width) = widths.get_mut(*column) {
                let left = width.saturating_sub(excess).max(*min).min(*width);
                // A few letters are of no use, so the column is left out instead.
                *width = if left < 4 && *min == 0 { 0 } else { left };
            }
        }
        widths
    }
}

fn total(widths: &[usize]) -> usize {
    let shown = widths.iter().filter(|width| **width > 0);
    widths.iter().sum::<usize>() + GAP * shown.count().saturating_sub(1)
}

/// Shortens a cell to `max` columns, with an ellipsis at the end.
fn cut(cell: &str, max: usize) -> String {
    if cell.width() <= max {
        return cell.to_owned();
    }
    let (mut shown, mut width) = (String::new(), 1);
    for letter in cell.chars() {
        width += letter.width().unwrap_or_default();
        if width > max {
            break;
        }
        shown.push(letter);
    }
    shown.push(ELLIPSIS);
    shown
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.for_terminal(Terminal { width: None, colours: false }).as_str())
    }
}

/// Lines of a name and a value, with the values in one column.
pub(crate) fn fields<'n>(rows: impl IntoIterator<Item = (&'n str, String)>) -> String {
    let rows: Vec<(&str, String)> = rows.into_iter().collect();
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default() + GAP;
    let lines: Vec<String> = rows.iter().map(|(name, value)| format!("{name:<width$}{value}")).collect();
    lines.join("\n")
}

/// A time to the second, as people read it; JSON has it exactly.
pub(crate) fn seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

pub(crate) fn optional(value: Option<&impl fmt::Display>) -> String {
    value.map_or_else(|| "-".to_owned(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(["ID", "NAME", "STATE"]).shrinkable(&[(1, 0), (0, 6)]).coloured(2);
        table.row(["0123456789".to_owned(), "审批审批".to_owned(), "ALLOW".to_owned()]);
        table.row(["1".to_owned(), String::new(), "DENY".to_owned()]);
        table
    }

    fn lines(width: Option<usize>) -> Vec<String> {
        let text = table().for_terminal(Terminal { width, colours: false });
        text.as_str().lines().map(str::to_owned).collect()
    }

    #[test]
    fn control_characters_in_a_cell_are_escaped() {
        let mut table = Table::new(["NAME", "STATE"]);
        table.row(["a\nb  revoked\u{202e}\u{1b}[1A".to_owned(), "active".to_owned()]);
        let shown = table.to_string();
        assert_eq!(shown.lines().count(), 2, "{shown}");
        assert!(shown.contains(r"a\u{a}b  revoked\u{202e}\u{1b}[1A  active"), "{shown}");
    }

    #[test]
    fn nothing_is_cut_without_a_terminal_width() {
        assert_eq!(
            lines(None),
            ["ID          NAME      STATE", "0123456789  审批审批  ALLOW", "1           -         DENY"]
        );
        assert_eq!(lines(None), table().to_string().lines().collect::<Vec<_>>());
        assert_eq!(lines(Some(27)), lines(None), "it fits");
    }

    #[test]
    fn the_least_important_columns_shrink_until_the_table_fits() {
        assert_eq!(
            lines(Some(24)),
            ["ID          NAME   STATE", "0123456789  审批…  ALLOW", "1           -      DENY"]
        );
        assert_eq!(lines(Some(18)), ["ID          STATE", "0123456789  ALLOW", "1           DENY"]);
        assert_eq!(lines(Some(14)), ["ID       STATE", "012345…  ALLOW", "1        DENY"]);
        assert_eq!(
            lines(Some(1)),
            ["ID      STATE", "01234…  ALLOW", "1       DENY"],
            "the rest stays, however narrow"
        );
        for width in 13..40 {
            assert!(lines(Some(width)).iter().all(|line| line.width() <= width), "{width}");
        }
    }

    #[test]
    fn only_the_verdict_column_is_coloured() {
        let mut table = Table::new(["NAME", "VERDICT"]).coloured(1);
        table.row(["ALLOW".to_owned(), "DENY".to_owned()]);
        let shown = table.for_terminal(Terminal { width: None, colours: true });
        assert_eq!(shown.as_str(), "NAME   VERDICT\nALLOW  \u{1b}[31mDENY\u{1b}[0m");
    }
}
