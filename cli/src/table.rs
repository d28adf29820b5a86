//! Tables for terminals: plain columns, so that `grep` and `awk` work on them too.

use std::fmt;

use comfy_table::presets::NOTHING;

use crate::out::plain;

/// Between columns; none before the first, so that lines begin with their first cell.
const GAP: (u16, u16) = (0, 1);

/// Rows under headings.
pub(crate) struct Table(comfy_table::Table);

impl Table {
    /// With headings and no rows.
    pub(crate) fn new<const N: usize>(headings: [&str; N]) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(NOTHING).set_header(headings);
        table.column_iter_mut().for_each(|column| {
            column.set_padding(GAP);
        });
        Self(table)
    }

    /// One more row. A cell is one line, whatever stands in it.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.0.add_row(cells.map(|cell| plain(&cell)));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.trim_fmt())
    }
}

/// A value, or the dash that stands for none.
pub(crate) fn optional(value: Option<&impl fmt::Display>) -> String {
    value.map_or_else(|| "-".to_owned(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_forges_no_row_and_moves_no_neighbour() {
        let mut table = Table::new(["NAME", "STATE"]);
        table.row(["a\nb  revoked\u{202e}\u{1b}[1A".to_owned(), "active".to_owned()]);
        let shown = table.to_string();
        assert_eq!(shown.lines().count(), 2, "{shown}");
        assert!(shown.contains(r"a\u{a}b  revoked\u{202e}\u{1b}[1A active"), "{shown}");
    }
}
