//! A pack in a message: the texts of its files, within limits.
//!
//! Only the shape is judged here. Whether a bundle loads, and as which version, is found out by an evaluator.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::FieldError;

/// The largest bundle: the bytes of the names and texts of all its files. As JSON it fits into the body of a request.
pub const MAX_BUNDLE_BYTES: usize = 768 << 10;
/// The most files of a bundle.
pub const MAX_BUNDLE_FILES: usize = 500;
/// The most packs of a bundle: the pack itself and three that it extends.
pub const MAX_BUNDLE_PACKS: usize = 4;
/// The longest name of a file, in bytes.
pub const MAX_FILE_NAME_BYTES: usize = 200;
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
        if self.files() > MAX_BUNDLE_FILES {
            let message = format!("must have at most {MAX_BUNDLE_FILES} files, and have {}", self.files());
            errors.push(FieldError::new("packs", message));
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
    let is_name = (1..=MAX_FILE_NAME_BYTES).contains(&name.len())
        && !name.contains(|c: char| c.is_control() || c == '\\')
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if !is_name {
        let message = format!("must have names of 1 to {MAX_FILE_NAME_BYTES} bytes below the pack's folder");
        return Some(FieldError::new(format!("packs[{pack}].files"), message));
    }
    let line = text.lines().position(|line| line.contains(|c: char| c.is_control() && c != '\t'))?;
    let message = format!("must be text without control characters (line {})", line + 1);
    Some(FieldError::new(format!("packs[{pack}].files[\"{name}\"]"), message))
}
