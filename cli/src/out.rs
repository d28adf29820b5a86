//! The only place that writes to standard output and standard error.
//!
//! Owns what a closed pipe means: `stage0 keys list | head -1` ends quietly, whatever is left to print is dropped. Any other
//! failure to write is an error of the command: a result that nobody can read was not delivered.
//! Text that came over the network passes through [`plain`], so that it cannot move a terminal's cursor.

use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal as _, Write as _};

/// Writes one line, or several that are joined by line breaks.
pub(crate) fn line(text: impl Display) -> io::Result<()> {
    write(format!("{text}\n").as_bytes())
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
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Asks a person, who answers on the same line. It goes where complaints go: standard output is for results.
pub(crate) fn prompt(text: impl Display) {
    let mut stderr = io::stderr().lock();
    let _ = write!(stderr, "{text}").and_then(|()| stderr.flush());
}

/// Whether a person reads the log.
pub(crate) fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// A text from elsewhere as one line: no control character moves a cursor or forges a line.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_elsewhere_cannot_steer_the_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\r\nc"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}c");
    }
}
