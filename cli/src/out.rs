//! The only place that writes to standard output and standard error.
//!
//! Owns what a closed pipe means: `stage0 keys list | head -1` ends quietly, whatever is left to print is dropped. Any
//! other failure to write is an error of the command: a result that nobody can read was not delivered.
//! INVARIANT: no
//! text moves a terminal's cursor, hides or reorders what stands beside it: what could is escaped on its way out, here.
//! Text that came over the network passes through [`plain`] besides, so that it cannot begin a line of its own.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal as _, Write as _};

use anyhow::Context as _;
use serde::Serialize;

mod paint;

pub(crate) use paint::{Painted, Terminal};

/// Writes one line, or several that are joined by line breaks.
pub(crate) fn line(text: impl Display) -> io::Result<()> {
    write(format!("{}\n", escaped(&text.to_string(), Line::Breaks)).as_bytes())
}

/// Writes a value as indented JSON.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value).context("cannot write JSON")?;
    Ok(write(format!("{}\n", json_escaped(&text)).as_bytes())?)
}

/// Writes an answer as it came, where it is JSON the same values.
pub(crate) fn json_text(text: &[u8]) -> io::Result<()> {
    write(format!("{}\n", json_escaped(&String::from_utf8_lossy(text))).as_bytes())
}

/// Writes text with its colours; false once nobody reads any more.
pub(crate) fn painted(text: &Painted) -> io::Result<bool> {
    stream(format!("{}\n", text.as_str()).as_bytes())
}

/// Writes what is told of a decision; the verdict that it begins with has its colour on a terminal.
pub(crate) fn decision(text: &str) -> io::Result<()> {
    let (verdict, rest) = text.split_at(text.find([' ', '\n']).unwrap_or(text.len()));
    let mut shown = Painted::new(Terminal::of_stdout().colours);
    shown.word(verdict);
    shown.push(rest);
    painted(&shown).map(|_| ())
}

/// Writes bytes as they are.
pub(crate) fn write(bytes: &[u8]) -> io::Result<()> {
    stream(bytes).map(|_| ())
}

/// As [`write()`], for what goes on: false once nobody reads any more.
pub(crate) fn stream(bytes: &[u8]) -> io::Result<bool> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

/// Says on standard error what went wrong. There is nobody left to tell when that fails.
pub(crate) fn complain(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{}", escaped(&text.to_string(), Line::Breaks));
}

/// Writes over the line of standard error, a terminal, on which the cursor stands.
pub(crate) fn status_line(text: impl Display) {
    let mut stderr = io::stderr().lock();
    let _ = write!(stderr, "\r\u{1b}[K{}", plain(&text.to_string())).and_then(|()| stderr.flush());
}

/// Asks a person, who answers on the same line. It goes where complaints go: standard output is for results.
pub(crate) fn prompt(text: impl Display) {
    let mut stderr = io::stderr().lock();
    let text = escaped(&text.to_string(), Line::Breaks);
    let _ = write!(stderr, "{text}").and_then(|()| stderr.flush());
}

/// Whether a person reads the log.
pub(crate) fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// A text from elsewhere as one line: what would move a cursor, forge a line, hide or reorder text is escaped as in
/// `\u{202e}`.
pub(crate) fn plain(text: &str) -> String {
    escaped(text, Line::Is)
}

/// What a line break is in a text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    /// Its own, between lines.
    Breaks,
    /// A control character like others: the text is one line.
    Is,
}

fn escaped(text: &str, line: Line) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_invisible(c) && !(c == '\n' && line == Line::Breaks) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// JSON text with the same values: outside of strings none of these characters is JSON, but for white space.
pub(crate) fn json_escaped(text: &str) -> Cow<'_, str> {
    let in_need = |c: char| is_invisible(c) && !matches!(c, '\n' | '\r' | '\t');
    if !text.contains(in_need) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if in_need(c) {
            shown.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// Control characters, and what Unicode calls format characters and separators of lines: they have no width, steer a
/// terminal, or change the order in which what stands around them is shown. Besides, letters that are blank.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}' | '\u{8e2}'
            | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_elsewhere_cannot_steer_the_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\r\nc\td\u{9b}e"), r"a\u{1b}[2Jb\u{d}\u{a}c\u{9}d\u{9b}e");
        assert_eq!(
            plain("pay \u{202e}000,1\u{202c} to\u{2066}x\u{2069}"),
            r"pay \u{202e}000,1\u{202c} to\u{2066}x\u{2069}"
        );
        assert_eq!(plain("ad\u{200b}min\u{feff}\u{e0041}\u{2028}"), r"ad\u{200b}min\u{feff}\u{e0041}\u{2028}");
        assert_eq!(plain(&plain("\u{202e}")), plain("\u{202e}"), "twice is once");
    }

    #[test]
    fn letters_of_every_script_and_emoji_are_shown_as_they_are() {
        for text in ["Überprüfung", "审批", "עברית", "مرحبا", "🚀 ✓ …", "a b\u{a0}c", "\\u{202e}"] {
            assert_eq!(plain(text), text);
        }
    }

    #[test]
    fn lines_stay_lines_where_they_are_ours() {
        assert_eq!(escaped("a\nb\rc", Line::Breaks), "a\nb\\u{d}c");
    }

    #[test]
    fn json_keeps_its_values_and_steers_nothing() {
        let value = serde_json::json!({"n\u{202e}": ["a\u{9b}2J\u{1b}\u{e0041}\n", "é審🚀", 1.5, null]});
        for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
            let shown = json_escaped(&text);
            assert!(!shown.chars().any(|c| is_invisible(c) && c != '\n'), "{shown:?}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
            assert!(shown.contains("é審🚀") && shown.contains(r"\u202e") && shown.contains(r"\udb40\udc41"));
        }
        assert!(matches!(json_escaped("{\n\t\"a\": 1\r\n}"), Cow::Borrowed(_)));
    }
}
