//! Tables for terminals: plain columns, so that `grep` and `awk` work on them too.
//!
//! Owns how a table fits a terminal: the columns that tell least give way, first those that are named first, until the rest fits.
//! Elsewhere, in a pipe or a file, nothing is cut. A cell is one line and is never empty, so that columns can be counted.

use std::fmt;
use std::io;

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use crate::out::{self, Painted, Terminal, plain};

/// Between columns; none before the first, so that lines begin with their first cell.
const GAP: usize = 2;
/// Stands for what was cut.
const CUT: char = '…';

/// Rows under headings.
pub(crate) struct Table {
    /// The headings first.
    rows: Vec<Vec<String>>,
    giving_way: &'static [(usize, usize)],
    coloured: Option<usize>,
}

impl Table {
    /// With headings and no rows.
    pub(crate) fn new<const N: usize>(headings: [&str; N]) -> Self {
        Self { rows: vec![headings.map(str::to_owned).into()], giving_way: &[], coloured: None }
    }

    /// Which columns are cut on a narrow terminal, the least telling first, each with the width that it keeps; 0: it may go wholly.
    pub(crate) fn giving_way(mut self, columns: &'static [(usize, usize)]) -> Self {
        self.giving_way = columns;
        self
    }

    /// The column of verdicts or states.
    pub(crate) fn coloured(mut self, column: usize) -> Self {
        self.coloured = Some(column);
        self
    }

    /// One more row. A cell is one line, whatever stands in it.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        let shown = |cell: String| if cell.is_empty() { "-".to_owned() } else { plain(&cell) };
        self.rows.push(cells.map(shown).into());
    }

    /// Writes it, as wide and as colourful as standard output allows.
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

    /// The cells of a row that are shown, padded but for the last.
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

    fn widths(&self, most: Option<usize>) -> Vec<usize> {
        let columns = self.rows.first().map_or(0, Vec::len);
        let widest =
            |column| self.rows.iter().filter_map(|row| row.get(column)).map(|cell: &String| cell.width()).max();
        let mut widths: Vec<usize> = (0..columns).map(|column| widest(column).unwrap_or_default()).collect();
        let Some(most) = most else { return widths };
        for (column, kept) in self.giving_way {
            let over = total(&widths).saturating_sub(most);
            if over == 0 {
                break;
            }
            if let Some(width) = widths.get_mut(*column) {
                let left = width.saturating_sub(over).max(*kept).min(*width);
                // What is narrower than this tells nothing any more.
                *width = if left < 4 && *kept == 0 { 0 } else { left };
            }
        }
        widths
    }
}

fn total(widths: &[usize]) -> usize {
    let shown = widths.iter().filter(|width| **width > 0);
    widths.iter().sum::<usize>() + GAP * shown.count().saturating_sub(1)
}

/// As much as fits, and a mark where something is left out.
fn cut(cell: &str, most: usize) -> String {
    if cell.width() <= most {
        return cell.to_owned();
    }
    let (mut shown, mut width) = (String::new(), 1);
    for letter in cell.chars() {
        width += letter.width().unwrap_or_default();
        if width > most {
            break;
        }
        shown.push(letter);
    }
    shown.push(CUT);
    shown
}

impl fmt::Display for Table {
    /// Wholly, without colours.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.for_terminal(Terminal { width: None, colours: false }).as_str())
    }
}

/// A value, or the dash that stands for none.
pub(crate) fn optional(value: Option<&impl fmt::Display>) -> String {
    value.map_or_else(|| "-".to_owned(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(["ID", "NAME", "STATE"]).giving_way(&[(1, 0), (0, 6)]).coloured(2);
        table.row(["0123456789".to_owned(), "审批审批".to_owned(), "ALLOW".to_owned()]);
        table.row(["1".to_owned(), String::new(), "DENY".to_owned()]);
        table
    }

    fn lines(width: Option<usize>) -> Vec<String> {
        let text = table().for_terminal(Terminal { width, colours: false });
        text.as_str().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_cell_forges_no_row_and_moves_no_neighbour() {
        let mut table = Table::new(["NAME", "STATE"]);
        table.row(["a\nb  revoked\u{202e}\u{1b}[1A".to_owned(), "active".to_owned()]);
        let shown = table.to_string();
        assert_eq!(shown.lines().count(), 2, "{shown}");
        assert!(shown.contains(r"a\u{a}b  revoked\u{202e}\u{1b}[1A  active"), "{shown}");
    }

    #[test]
    fn nothing_is_cut_where_nobody_says_how_wide_it_is() {
        assert_eq!(
            lines(None),
            ["ID          NAME      STATE", "0123456789  审批审批  ALLOW", "1           -         DENY"]
        );
        assert_eq!(lines(None), table().to_string().lines().collect::<Vec<_>>());
        assert_eq!(lines(Some(27)), lines(None), "it fits");
    }

    #[test]
    fn the_least_telling_columns_give_way_until_it_fits() {
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
    fn only_the_column_of_verdicts_has_colours() {
        let mut table = Table::new(["NAME", "VERDICT"]).coloured(1);
        table.row(["ALLOW".to_owned(), "DENY".to_owned()]);
        let shown = table.for_terminal(Terminal { width: None, colours: true });
        assert_eq!(shown.as_str(), "NAME   VERDICT\nALLOW  \u{1b}[31mDENY\u{1b}[0m");
    }
}
