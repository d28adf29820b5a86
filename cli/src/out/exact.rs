//! Text of agents, shown so that a person sees all of it: for what is approved as it is read.
//!
//! INVARIANT: nothing is cut, and two different texts do not look the same because of characters that are not seen.
//! Those that have no width, control a terminal, reorder text or look like a space are shown as `\u{…}`, and so is the
//! backslash of a text that spells such a form itself. Letters that look alike are not told apart.

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::{Painted, is_invisible};

/// Begins a line that continues the one before it.
const CONTINUES: &str = "↳ ";
/// A narrow terminal still gets lines of this width.
const MIN_WIDTH: usize = 16;

/// A character as it is shown.
struct Cell {
    text: String,
    width: usize,
    is_escape: bool,
    /// A line may end after it, or does.
    ends: Ends,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    Nothing,
    Word,
    Line,
}

/// How many characters of the text are shown as `\u{…}`, line breaks and tabs not counted.
pub(crate) fn hidden_characters(text: &str) -> usize {
    text.chars().filter(|c| is_hidden(*c) && !matches!(c, '\n' | '\r' | '\t')).count()
}

impl Painted {
    /// Appends the text in lines of at most `width` columns; all except the first begin with `indent` spaces.
    pub(crate) fn exact(&mut self, text: &str, width: usize, indent: usize) {
        let cells = cells(text);
        let mut rest = cells.as_slice();
        let mut continues = false;
        while !rest.is_empty() {
            if continues {
                self.push(CONTINUES);
            }
            let columns = width.saturating_sub(self.column).max(MIN_WIDTH);
            let (line, after) = rest.split_at(line_length(rest, columns));
            for cell in line {
                if cell.is_escape { self.escape(&cell.text) } else { self.push(&cell.text) }
            }
            rest = after;
            if !rest.is_empty() {
                self.push(&format!("\n{:indent$}", ""));
            }
            continues = line.last().is_some_and(|cell| cell.ends != Ends::Line);
        }
    }
}

/// How many cells stand on the next line: as many as fit, up to the end of a word where there is one.
fn line_length(cells: &[Cell], width: usize) -> usize {
    let (mut column, mut end_of_word) = (0, None);
    for (index, cell) in cells.iter().enumerate() {
        column += cell.width;
        if column > width && index > 0 {
            return end_of_word.unwrap_or(index);
        }
        match cell.ends {
            Ends::Line => return index + 1,
            Ends::Word => end_of_word = Some(index + 1),
            Ends::Nothing => {}
        }
    }
    cells.len()
}

fn cells(text: &str) -> Vec<Cell> {
    let characters: Vec<char> = text.chars().collect();
    let at = |index: usize| characters.get(index).copied();
    let cell = |(index, c): (usize, &char)| {
        let next = at(index + 1);
        // At an edge a space is not seen.
        let is_edge = index == 0 || next.is_none() || next.is_some_and(|next| matches!(next, '\n' | '\r'));
        let spells_escape = *c == '\\' && next == Some('u') && at(index + 2) == Some('{');
        let ends = match c {
            '\n' => Ends::Line,
            ' ' | '\u{3000}' => Ends::Word,
            _ => Ends::Nothing,
        };
        if is_hidden(*c) || spells_escape || (*c == ' ' && is_edge) {
            let text = c.escape_unicode().to_string();
            Cell { width: text.width(), text, is_escape: true, ends }
        } else {
            Cell { width: c.width().unwrap_or_default(), text: c.to_string(), is_escape: false, ends }
        }
    };
    characters.iter().enumerate().map(cell).collect()
}

/// Also spaces other than the usual ones, and selectors that change or hide nothing on most terminals.
fn is_hidden(c: char) -> bool {
    is_invisible(c) || matches!(c, '\u{fe00}'..='\u{fe0f}') || (c.is_whitespace() && !matches!(c, ' ' | '\u{3000}'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, width: usize) -> String {
        let mut painted = Painted::new(false);
        painted.exact(text, width, 4);
        painted.as_str().to_owned()
    }

    #[test]
    fn every_character_that_is_not_seen_is_made_visible() {
        for (hostile, visible) in [
            ("pay \u{202e}000,1\u{202c}", r"pay \u{202e}000,1\u{202c}"),
            ("ad\u{200b}min\u{feff}\u{e0041}", r"ad\u{200b}min\u{feff}\u{e0041}"),
            ("a\u{1b}[2Jb\u{9b}c\u{8}", r"a\u{1b}[2Jb\u{9b}c\u{8}"),
            ("a\u{a0}b\u{2003}c", r"a\u{a0}b\u{2003}c"),
            ("x\u{fe0f}\u{fe00}", r"x\u{fe0f}\u{fe00}"),
            (" a ", r"\u{20}a\u{20}"),
            ("a\tb\rc", r"a\u{9}b\u{d}c"),
            (r"spelt \u{202e}", r"spelt \u{5c}u{202e}"),
        ] {
            assert_eq!(shown(hostile, 100), visible, "{hostile:?}");
        }
        assert_eq!(hidden_characters("a\u{202e}b\u{200b}\n\t c"), 2);
    }

    #[test]
    fn letters_of_every_script_are_shown_as_they_are() {
        for text in
            ["Überprüfung", "审批 部署", "עברית", "مرحبا", "🚀 ✓ …", r"C:\users\x", "a\\u", "e\u{301}", "ラン\u{3000}1"]
        {
            assert_eq!(shown(text, 100), text);
            assert_eq!(hidden_characters(text), 0, "{text}");
        }
    }

    #[test]
    fn an_invisible_character_has_a_colour_of_its_own_on_a_terminal() {
        let mut painted = Painted::new(true);
        painted.exact("a\u{202e}b", 100, 0);
        assert_eq!(painted.as_str(), "a\u{1b}[30;45m\\u{202e}\u{1b}[0mb");
    }

    #[test]
    fn a_line_break_is_shown_and_cannot_make_a_heading() {
        assert_eq!(shown("a\nApproved\n", 100), "a\\u{a}\n    Approved\\u{a}");
        assert_eq!(shown("a \nb", 100), "a\\u{20}\\u{a}\n    b", "the space before it is seen as well");
    }

    #[test]
    fn a_long_text_is_wrapped_and_whole() {
        let text = "delete every table of the billing database and then tell the customers about it";
        let wrapped = shown(text, 30);
        assert!(wrapped.lines().count() > 3 && wrapped.lines().all(|line| line.width() <= 30), "{wrapped}");
        assert_eq!(wrapped.replace("\n    ↳ ", ""), text, "no character is lost");
        let long = "x".repeat(500);
        assert_eq!(shown(&long, 30).replace("\n    ↳ ", ""), long);
        assert!(shown(&"审".repeat(50), 30).lines().all(|line| line.width() <= 30));
        assert!(shown(&long, 1).lines().all(|line| line.width() <= 6 + MIN_WIDTH), "of a narrow terminal too");
    }
}
