//! Tables of a Markdown document.

use std::fmt::Write as _;

/// A table whose first column is code.
pub(super) fn table<'r>(columns: &[&str], rows: impl IntoIterator<Item = &'r Vec<String>>) -> String {
    let mut text = format!("| {} |\n|{}\n", columns.join(" | "), " --- |".repeat(columns.len()));
    for row in rows {
        let cells = row.iter().enumerate().map(|(index, cell)| match index {
            0 => format!("`{}`", cell.replace('|', "\\|")),
            _ => prose(cell),
        });
        let _ = writeln!(text, "| {} |", cells.collect::<Vec<_>>().join(" | "));
    }
    text
}

/// Escapes what means something in a Markdown table, except code spans.
fn prose(text: &str) -> String {
    let mut escaped = String::new();
    for (index, part) in text.split('`').enumerate() {
        if index > 0 {
            escaped.push('`');
        }
        for letter in part.chars() {
            let code = index % 2 == 1;
            if letter == '|' || (!code && "\\*<".contains(letter)) {
                escaped.push('\\');
            }
            escaped.push(letter);
        }
    }
    escaped
}
