//! Faults: why a pack is refused, told so that its author finds the place.
//!
//! Owns the form `file:line: rule: what`. A refusal carries every fault that was found, never only the first.

use std::fmt;

use serde::Serialize;

/// One thing that is wrong with a pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The file in the pack's folder, or the folder.
    pub file: String,
    /// From 1, where it is known.
    pub line: Option<usize>,
    /// The rule's `@id` or the case's `id`, where there is one.
    pub rule: Option<String>,
    /// Lower case, no full stop.
    pub message: String,
}

/// A pack is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct PackError {
    /// Never empty.
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
