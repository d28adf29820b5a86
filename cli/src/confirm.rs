//! Asks a person before a command acts: on a terminal, with the question on standard error.
//!
//! Without a terminal no person can be asked, so such a command needs `--yes` and otherwise ends before it sends
//! anything.

use std::fmt::Display;
use std::io::{self, BufRead, IsTerminal as _};

use crate::exit::UsageError;
use crate::out;

/// Refuses with `why` if a person has to be asked and there is no terminal.
pub(crate) fn require(yes: bool, why: &'static str) -> Result<(), UsageError> {
    if yes || io::stdin().is_terminal() { Ok(()) } else { Err(UsageError(why)) }
}

/// Asks `question`, to which `y` and `yes` are the only consent.
pub(crate) fn agrees(question: impl Display) -> io::Result<bool> {
    out::prompt(format!("{question} [y/N] "));
    agreed(io::stdin().lock())
}

fn agreed(mut answer: impl BufRead) -> io::Result<bool> {
    let mut line = String::new();
    answer.read_line(&mut line)?;
    let line = line.trim();
    Ok(line.eq_ignore_ascii_case("y") || line.eq_ignore_ascii_case("yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_y_and_yes_are_consent() {
        for yes in ["y\n", "Y\n", "yes\n", " YES \n", "y"] {
            assert!(agreed(yes.as_bytes()).unwrap(), "{yes:?}");
        }
        for no in ["", "\n", "n\n", "yy\n", "yes please\n", "no\ny\n", "ｙ\n"] {
            assert!(!agreed(no.as_bytes()).unwrap(), "{no:?}");
        }
    }
}
