//! Colours on a terminal, and how wide it is.
//!
//! Owns when there are any: on a terminal, unless `NO_COLOR` (<https://no-color.org>) or `TERM=dumb` asks for none. INVARIANT: only
//! this file makes escape sequences; what is pushed into a [`Painted`] is escaped first, so no text from elsewhere brings its own.

use std::io::{self, IsTerminal as _};

use super::{Line, escaped};

const RESET: &str = "\u{1b}[0m";

/// Where standard output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terminal {
    /// Columns; none where it is no terminal, or one that does not say.
    pub(crate) width: Option<usize>,
    /// Whether words may be coloured.
    pub(crate) colours: bool,
}

impl Terminal {
    /// Looks.
    pub(crate) fn of_stdout() -> Self {
        let stdout = io::stdout();
        if !stdout.is_terminal() {
            return Self { width: None, colours: false };
        }
        let columns = rustix::termios::tcgetwinsize(&stdout).map_or(0, |size| size.ws_col);
        let variable = |name| std::env::var_os(name);
        let colours = colours(
            variable("NO_COLOR").is_some_and(|set| !set.is_empty()),
            variable("TERM").is_some_and(|term| term == "dumb"),
        );
        Self { width: Some(usize::from(columns)).filter(|width| *width > 0), colours }
    }
}

fn colours(no_color: bool, dumb: bool) -> bool {
    !no_color && !dumb
}

/// Text for standard output of which some words are coloured.
#[derive(Debug)]
pub(crate) struct Painted {
    text: String,
    colours: bool,
}

impl Painted {
    /// Empty.
    pub(crate) fn new(colours: bool) -> Self {
        Self { text: String::new(), colours }
    }

    /// Adds text as it is, line breaks included.
    pub(crate) fn push(&mut self, text: &str) {
        self.text.push_str(&escaped(text, Line::Breaks));
    }

    /// Adds a word, in its colour if it is one that has any. Spaces around it have none.
    pub(crate) fn word(&mut self, word: &str) {
        match colour(word.trim()).filter(|_| self.colours) {
            Some(colour) => {
                let (before, after) = (word.len() - word.trim_start().len(), word.len() - word.trim_end().len());
                self.text.extend(std::iter::repeat_n(' ', before));
                self.text.push_str(colour);
                self.push(word.trim());
                self.text.push_str(RESET);
                self.text.extend(std::iter::repeat_n(' ', after));
            }
            None => self.push(word),
        }
    }

    /// What is written.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }
}

/// Green lets an action run, red and yellow do not.
fn colour(word: &str) -> Option<&'static str> {
    match word {
        "ALLOW" | "ready" => Some("\u{1b}[32m"),
        "DENY" | "FAIL" => Some("\u{1b}[31m"),
        "DEFER" | "not ready" => Some("\u{1b}[33m"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_coloured_and_nothing_else_steers_the_terminal() {
        let shown = |colours| {
            let mut text = Painted::new(colours);
            text.word("DENY  ");
            text.push("a\u{1b}[2J\n");
            text.word("DENY\u{1b}[1A");
            text.as_str().to_owned()
        };
        assert_eq!(shown(true), "\u{1b}[31mDENY\u{1b}[0m  a\\u{1b}[2J\nDENY\\u{1b}[1A");
        assert_eq!(shown(false), "DENY  a\\u{1b}[2J\nDENY\\u{1b}[1A");
    }

    #[test]
    fn who_asks_for_no_colours_gets_none() {
        assert_eq!([colours(false, false), colours(true, false), colours(false, true)], [true, false, false]);
    }
}
