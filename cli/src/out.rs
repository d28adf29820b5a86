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
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Says on standard error what went wrong. There is nobody left to tell when that fails.
pub(crate) fn complain(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
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
