//! Culprits: the words of a request that a rule objects to, so that a refusal can name them.
//!
//! Each fact keeps the first few at most. They are collected only where something is wrong, so an allowed request pays
//! nothing.

/// The most culprits that one fact keeps.
pub(crate) const MAX_CULPRITS: usize = 20;

/// A word of the request and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Culprit {
    /// A JSON path such as `tools[1]` or `context.environment`.
    pub(crate) at: String,
    /// As the caller wrote it; left out of the answer where the request holds a secret.
    pub(crate) found: String,
}

impl Culprit {
    pub(crate) fn new(at: impl Into<String>, found: impl Into<String>) -> Self {
        Self { at: at.into(), found: found.into() }
    }

    /// An item of an array, such as `tools[1]`.
    pub(crate) fn item(array: &str, index: usize, found: &str) -> Self {
        Self::new(format!("{array}[{index}]"), found)
    }
}
