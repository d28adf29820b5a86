//! Faults: why a pack is refused, with the place where its author can mend it.
//!
//! A refusal lists every fault that was found, not only the first.

use std::fmt;

use serde::Serialize;

/// One fault of a pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The name of the file, or the folder's path.
    pub file: String,
    /// The line, from 1, if it is known.
    pub line: Option<usize>,
    /// The rule's `@id` or the case's `id`, if the fault has one.
    pub rule: Option<String>,
    /// What is wrong: lower case, no full stop.
    pub message: String,
}

/// Why a pack is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct PackError {
    /// Every fault that was found; never empty.
    pub faults: Vec<Fault>,
}

impl Fault {
    pub(crate) fn new(file: &str, message: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line: None, rule: None, message: message.into() }
    }

    pub(crate) fn at(mut self, line: usize) -> Self {
        self.line = Some(line);
        self
    }

    pub(crate) fn rule(mut self, rule: &str) -> Self {
        self.rule = Some(rule.to_owned());
        self
    }
}

impl PackError {
    pub(crate) fn of(fault: Fault) -> Self {
        Self { faults: vec![fault] }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(rule) = &self.rule {
            write!(f, ": {rule}")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl fmt::Display for PackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the policy pack is refused ({} faults)", self.faults.len())?;
        self.faults.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

/// The line (from 1) of a byte offset.
pub(crate) fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|b| *b == b'\n').count() + 1
}

/// A fault of a TOML file at the line that the parser names.
pub(crate) fn toml_fault(file: &str, text: &str, error: &toml::de::Error) -> Fault {
    let line = error.span().map(|span| line_of(text, span.start));
    Fault { line, ..Fault::new(file, error.message().trim().replace('\n', "; ")) }
}
