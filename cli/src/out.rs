//! The only place that writes to standard output and standard error.
//!
//! A closed pipe is no error. Any other failure to write fails the command, because its result was not delivered.
//! INVARIANT: no text can move a terminal's cursor or hide or reorder other text: such characters are escaped here.
//! Text from the network also passes through [`plain`], so that it cannot start a line of its own.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal as _, Write as _};

use anyhow::Context as _;
use serde::Serialize;
use stage0_client::text::is_invisible;

mod exact;
mod paint;

pub(crate) use exact::hidden_characters;
pub(crate) use paint::{Painted, Terminal};
pub(crate) use stage0_client::text::plain;

pub(crate) fn line(text: impl Display) -> io::Result<()> {
    write(format!("{}\n", escaped(&text.to_string())).as_bytes())
}

pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value).context("cannot write JSON")?;
    Ok(write(format!("{}\n", json_escaped(&text)).as_bytes())?)
}

pub(crate) fn show<T: Serialize>(as_json: bool, value: &T, text: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
    if as_json { json(value) } else { Ok(line(text(value))?) }
}

/// Writes a response as it came. If it is JSON, escaping keeps its values.
pub(crate) fn json_text(text: &[u8]) -> io::Result<()> {
    write(format!("{}\n", json_escaped(&String::from_utf8_lossy(text))).as_bytes())
}

/// Writes text with its colours. Returns false if the pipe is closed.
pub(crate) fn painted(text: &Painted) -> io::Result<bool> {
    stream(format!("{}\n", text.as_str()).as_bytes())
}

/// Writes the text of a decision; on a terminal the verdict at its beginning is coloured.
pub(crate) fn decision(text: &str) -> io::Result<()> {
    let (verdict, rest) = text.split_at(text.find([' ', '\n']).unwrap_or(text.len()));
    let mut shown = Painted::new(Terminal::of_stdout().colours);
    shown.word(verdict);
    shown.push(rest);
    painted(&shown).map(|_| ())
}

/// Writes bytes without escaping.
pub(crate) fn write(bytes: &[u8]) -> io::Result<()> {
    stream(bytes).map(|_| ())
}

/// As [`write()`] for endless output. Returns false if the pipe is closed.
pub(crate) fn stream(bytes: &[u8]) -> io::Result<bool> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes a line to standard error: an error or a note beside the result. A failure to write is ignored.
pub(crate) fn stderr_line(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{}", escaped(&text.to_string()));
}

/// Replaces the current line of standard error, which is a terminal.
pub(crate) fn status_line(text: impl Display) {
    let mut stderr = io::stderr().lock();
    let _ = write!(stderr, "\r\u{1b}[K{}", plain(&text.to_string())).and_then(|()| stderr.flush());
}

/// Prints a question without a line break, to standard error: standard output is for results.
pub(crate) fn prompt(text: impl Display) {
    let mut stderr = io::stderr().lock();
    let text = escaped(&text.to_string());
    let _ = write!(stderr, "{text}").and_then(|()| stderr.flush());
}

/// Writes text with its colours to standard error: what a question is about.
pub(crate) fn stderr_painted(text: &Painted) -> io::Result<()> {
    let mut stderr = io::stderr().lock();
    writeln!(stderr, "{}", text.as_str()).and_then(|()| stderr.flush())
}

pub(crate) fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Breaks a text into lines of at most `width` characters; all except the first are indented.
pub(crate) fn wrapped(text: &str, width: usize, indent: usize) -> String {
    let mut lines = String::new();
    let mut column = 0;
    for (index, word) in text.split(' ').enumerate() {
        let length = word.chars().count();
        if index > 0 && column + 1 + length > width {
            lines.push_str(&format!("\n{:indent$}", ""));
            column = indent;
        } else if index > 0 {
            lines.push(' ');
            column += 1;
        }
        lines.push_str(word);
        column += length;
    }
    lines
}

/// Escapes our own text, in which line breaks are meant.
fn escaped(text: &str) -> String {
    text.split('\n').map(plain).collect::<Vec<_>>().join("\n")
}

/// Escapes JSON text without changing its values: outside of strings, JSON allows only white space of these.
pub(crate) fn json_escaped(text: &str) -> Cow<'_, str> {
    let must_escape = |c: char| is_invisible(c) && !matches!(c, '\n' | '\r' | '\t');
    if !text.contains(must_escape) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if must_escape(c) {
            shown.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_breaks_of_our_own_text_are_kept() {
        assert_eq!(escaped("a\nb\rc"), "a\nb\\u{d}c");
    }

    #[test]
    fn escaped_json_keeps_its_values() {
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
