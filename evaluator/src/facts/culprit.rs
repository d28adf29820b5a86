//! Culprits: which words of a request made a fact what it is, so that a refusal can name them.
//!
//! Owns the bound: of a long list the first few are told. They are gathered only where something is wrong, so an ordinary
//! request pays nothing for them.

/// Most culprits that one fact names.
pub(crate) const MAX_CULPRITS: usize = 20;

/// A word of the request and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Culprit {
    /// A JSON path such as `tools[1]` or `context.environment`.
    pub(crate) at: String,
    /// As the caller wrote it; masked before it is told.
    pub(crate) found: String,
}

impl Culprit {
    pub(crate) fn new(at: impl Into<String>, found: impl Into<String>) -> Self {
        Self { at: at.into(), found: found.into() }
    }

    /// An item of an array: `tools[1]`.
    pub(crate) fn item(array: &str, index: usize, found: &str) -> Self {
        Self::new(format!("{array}[{index}]"), found)
    }
}
