//! The width of the terminal and its colours.
//!
//! Colours are used on a terminal only, and not with `NO_COLOR` (<https://no-color.org>) or `TERM=dumb`. INVARIANT:
//! only this file makes escape sequences: text is escaped before it enters a [`Painted`].

use std::io;
use std::os::fd::AsFd;

use unicode_width::UnicodeWidthStr as _;

use super::escaped;

const RESET: &str = "\u{1b}[0m";
/// Black on magenta: no other text has it.
const ESCAPE_COLOUR: &str = "\u{1b}[30;45m";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terminal {
    /// Columns; `None` if it is no terminal or has no known width.
    pub(crate) width: Option<usize>,
    pub(crate) colours: bool,
}

impl Terminal {
    pub(crate) fn of_stdout() -> Self {
        Self::of(&io::stdout())
    }

    pub(crate) fn of_stderr() -> Self {
        Self::of(&io::stderr())
    }

    fn of(stream: &(impl io::IsTerminal + AsFd)) -> Self {
        if !stream.is_terminal() {
            return Self { width: None, colours: false };
        }
        let columns = rustix::termios::tcgetwinsize(stream).map_or(0, |size| size.ws_col);
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

#[derive(Debug)]
pub(crate) struct Painted {
    text: String,
    colours: bool,
    /// The width of the last line so far.
    pub(super) column: usize,
}

impl Painted {
    pub(crate) fn new(colours: bool) -> Self {
        Self { text: String::new(), colours, column: 0 }
    }

    /// Appends text without colours; line breaks are kept.
    pub(crate) fn push(&mut self, text: &str) {
        let text = escaped(text);
        self.column = match text.rsplit_once('\n') {
            Some((_, last)) => last.width(),
            None => self.column + text.width(),
        };
        self.text.push_str(&text);
    }

    /// Appends a word in its colour, if it has one. Spaces around it are not coloured.
    pub(crate) fn word(&mut self, word: &str) {
        match colour(word.trim()).filter(|_| self.colours) {
            Some(colour) => {
                let before = word.len() - word.trim_start().len();
                let after = word.len() - word.trim_end().len();
                self.push(&" ".repeat(before));
                self.text.push_str(colour);
                self.push(word.trim());
                self.text.push_str(RESET);
                self.push(&" ".repeat(after));
            }
            None => self.push(word),
        }
    }

    /// Appends the visible form of a character that would not be seen, such as `\u{202e}`, in a colour of its own.
    pub(super) fn escape(&mut self, escape: &str) {
        if self.colours {
            self.text.push_str(ESCAPE_COLOUR);
            self.push(escape);
            self.text.push_str(RESET);
        } else {
            self.push(escape);
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }
}

/// Only the verdict that lets an action run is green.
fn colour(word: &str) -> Option<&'static str> {
    match word {
        "ALLOW" | "ready" => Some("\u{1b}[32m"),
        "DENY" | "FAIL" | "CRITICAL" | "HIGH" | "denied" => Some("\u{1b}[31m"),
        "DEFER" | "not ready" | "MEDIUM" | "pending" => Some("\u{1b}[33m"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_coloured_and_other_text_is_escaped() {
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
    fn no_color_and_a_dumb_terminal_turn_colours_off() {
        assert_eq!([colours(false, false), colours(true, false), colours(false, true)], [true, false, false]);
    }
}
