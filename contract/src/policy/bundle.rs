//! A pack in a message: the texts of its files, within limits.
//!
//! Only the shape is judged here. Whether a bundle loads, and as which version, is found out by an evaluator.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::shown::{bad_file_name, shown_file_name};
use crate::{FieldError, canonical_hash};

/// The largest bundle: the bytes of the names and texts of all its files. As JSON it fits into the body of a request.
pub const MAX_BUNDLE_BYTES: usize = 768 << 10;
/// The most packs of a bundle: the pack itself and three that it extends.
pub const MAX_BUNDLE_PACKS: usize = 4;
/// The most files of a pack.
pub const MAX_PACK_FILES: usize = 100;
/// The most files of a bundle.
pub const MAX_BUNDLE_FILES: usize = MAX_BUNDLE_PACKS * MAX_PACK_FILES;
const MAX_SHOWN_ERRORS: usize = 20;

/// A pack with the packs that it extends, as far as they are not compiled in: the extended ones first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyBundle {
    /// The pack itself is the last one.
    #[schemars(extend("minItems" = 1, "maxItems" = 4))]
    pub packs: Vec<PolicyFiles>,
}

/// The files of a pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyFiles {
    /// Each file's text by its name: `pack.toml`, `rules.cedar`, …
    pub files: BTreeMap<String, String>,
}

impl PolicyBundle {
    /// What counts toward [`MAX_BUNDLE_BYTES`].
    pub fn bytes(&self) -> usize {
        let files = self.packs.iter().flat_map(|pack| &pack.files);
        files.map(|(name, text)| name.len() + text.len()).sum()
    }

    /// Hex SHA-256 of all names and texts: it stands for one content, unlike the digest of a version, which is short.
    pub fn content_hash(&self) -> String {
        let packs = self.packs.iter().map(|pack| {
            let files = pack.files.iter().map(|(name, text)| (name.clone(), Value::from(text.as_str())));
            Value::Object(files.collect())
        });
        canonical_hash(&Map::from_iter([("packs".to_owned(), packs.collect())]))
    }

    /// How many files all its packs have.
    pub fn files(&self) -> usize {
        self.packs.iter().map(|pack| pack.files.len()).sum()
    }

    /// What is wrong with its shape. What its files say is judged by an evaluator.
    pub fn errors(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if !(1..=MAX_BUNDLE_PACKS).contains(&self.packs.len()) {
            errors.push(FieldError::new("packs", format!("must have 1 to {MAX_BUNDLE_PACKS} packs")));
        }
        if self.bytes() > MAX_BUNDLE_BYTES {
            let message =
                format!("must have at most {MAX_BUNDLE_BYTES} bytes of names and texts, and have {}", self.bytes());
            errors.push(FieldError::new("packs", message));
        }
        for (pack, files) in self.packs.iter().enumerate().filter(|(_, of)| of.files.len() > MAX_PACK_FILES) {
            let message = format!("must have at most {MAX_PACK_FILES} files, and have {}", files.files.len());
            errors.push(FieldError::new(format!("packs[{pack}].files"), message));
        }
        // As many as people read; a bundle with more has the same fault everywhere.
        let files = self.packs.iter().enumerate().flat_map(|(pack, of)| of.files.iter().map(move |file| (pack, file)));
        let faults = files.filter_map(|(pack, (name, text))| file_error(pack, name, text));
        errors.extend(faults.take(MAX_SHOWN_ERRORS));
        errors
    }
}

/// A control character takes six bytes in JSON, so that a bundle of them would not fit into a message.
fn file_error(pack: usize, name: &str, text: &str) -> Option<FieldError> {
    if let Some(message) = bad_file_name(name) {
        return Some(FieldError::new(format!("packs[{pack}].files[\"{}\"]", shown_file_name(name)), message));
    }
    let line = text.lines().position(|line| line.contains(|c: char| c.is_control() && c != '\t'))?;
    let message = format!("must be text without control characters (line {})", line + 1);
    Some(FieldError::new(format!("packs[{pack}].files[\"{name}\"]"), message))
}
