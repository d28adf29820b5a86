//! The files of a pack: the embedded baseline, or a folder on disk.
//!
//! Any file that a pack may not have is a fault: it would change the digest without changing a decision, or it is a
//! policy file with a misspelt name.

mod fault;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::de::DeserializeOwned;

pub use fault::{Fault, PackError};
pub(crate) use fault::{line_of, toml_fault};

pub(crate) const MANIFEST: &str = "pack.toml";
pub(crate) const SCHEMA: &str = "schema.cedarschema";
pub(crate) const VOCABULARY: &str = "vocabulary.toml";
pub(crate) const EFFECTS: &str = "effects.toml";
pub(crate) const TOOLS: &str = "tools.toml";
pub(crate) const CONSTRAINTS: &str = "constraints.toml";
pub(crate) const CASES: &str = "cases.json";
pub(crate) const CODES: &str = "codes.toml";
pub(crate) const SECRETS: &str = "secrets.toml";
const POLICY_ENDING: &str = ".cedar";

/// The largest file of a pack. A folder that was given by mistake may hold anything.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// The largest pack, all files together.
const MAX_PACK_BYTES: u64 = 8 << 20;
const MAX_FILES: usize = 100;

macro_rules! embedded {
    ($($name:literal),+ $(,)?) => {
        [$(($name, include_str!(concat!("../../policies/baseline/", $name)))),+]
    };
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Files(BTreeMap<String, String>);

impl Files {
    /// The baseline pack that is compiled into this binary.
    pub(crate) fn embedded() -> Self {
        Self::of(embedded![
            "pack.toml",
            "schema.cedarschema",
            "vocabulary.toml",
            "effects.toml",
            "tools.toml",
            "codes.toml",
            "constraints.toml",
            "secrets.toml",
            "cases.json",
            "cases-2.json",
            "access.cedar",
            "approval.cedar",
            "change.cedar",
            "constraints.cedar",
            "effects.cedar",
            "evidence.cedar",
            "loop.cedar",
            "scope.cedar",
            "secrets.cedar",
            "value.cedar",
        ])
    }

    pub(crate) fn of<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self(files.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect())
    }

    pub(crate) fn read(folder: &Path) -> Result<Self, PackError> {
        let place = folder.display().to_string();
        let refuse = |file: &str, what: &str| PackError::of(Fault::new(file, what));
        let entries = fs::read_dir(folder).map_err(|error| refuse(&place, &format!("cannot be read: {error}")))?;
        let (mut files, mut faults) = (BTreeMap::new(), Vec::new());
        let mut left = MAX_PACK_BYTES;
        for entry in entries {
            if files.len() + faults.len() >= MAX_FILES {
                return Err(refuse(&place, &format!("has more than {MAX_FILES} files: is it the folder of a pack?")));
            }
            let entry = entry.map_err(|error| refuse(&place, &format!("cannot be read: {error}")))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // Hidden files are ignored.
            if name.starts_with('.') {
                continue;
            }
            match read_text(&entry.path()) {
                Ok(text) => {
                    let bytes = u64::try_from(text.len()).unwrap_or(u64::MAX);
                    left = left.checked_sub(bytes).ok_or_else(|| {
                        refuse(&place, &format!("has more than {MAX_PACK_BYTES} bytes in all its files"))
                    })?;
                    files.insert(name, text);
                }
                Err(message) => faults.push(Fault::new(&name, message)),
            }
        }
        if faults.is_empty() { Ok(Self(files)) } else { Err(PackError { faults }) }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The text of a required file; its absence is a fault.
    pub(crate) fn needed(&self, name: &str, faults: &mut Vec<Fault>) -> Option<&str> {
        let text = self.get(name);
        if text.is_none() {
            faults.push(Fault::new(name, "is missing"));
        }
        text
    }

    /// The text and the content of a required TOML file; a missing or malformed one is a fault.
    pub(crate) fn toml<T: DeserializeOwned>(&self, name: &str, faults: &mut Vec<Fault>) -> Option<(&str, T)> {
        let text = self.needed(name, faults)?;
        match toml::from_str(text) {
            Ok(content) => Some((text, content)),
            Err(error) => {
                faults.push(toml_fault(name, text, &error));
                None
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }

    pub(crate) fn policies(&self) -> impl Iterator<Item = (&str, &str)> {
        self.iter().filter(|(name, _)| name.ends_with(POLICY_ENDING))
    }

    /// The files of cases, by name: `cases*.json`.
    pub(crate) fn cases(&self) -> impl Iterator<Item = (&str, &str)> {
        self.iter().filter(|(name, _)| is_cases(name))
    }

    pub(crate) fn of_second_edition(&self) -> Vec<Fault> {
        let given = [EFFECTS, TOOLS].into_iter().filter(|name| self.get(name).is_some());
        given.map(|name| Fault::new(name, "is read for packs of `edition = 2` alone")).collect()
    }

    pub(crate) fn unexpected(&self) -> Vec<Fault> {
        const KNOWN: [&str; 8] = [MANIFEST, SCHEMA, VOCABULARY, EFFECTS, TOOLS, CONSTRAINTS, CODES, SECRETS];
        let known = |name: &str| KNOWN.contains(&name) || is_cases(name) || name.ends_with(POLICY_ENDING);
        self.iter().filter(|(name, _)| !known(name)).map(|(name, _)| Fault::new(name, "is no file of a pack")).collect()
    }
}

fn is_cases(name: &str) -> bool {
    name.strip_prefix("cases").and_then(|rest| rest.strip_suffix(".json")).is_some()
}

fn read_text(path: &Path) -> Result<String, String> {
    let data = fs::metadata(path).map_err(|error| format!("cannot be read: {error}"))?;
    if !data.is_file() {
        return Err("is no file of a pack".to_owned());
    }
    if data.len() > MAX_FILE_BYTES {
        return Err(format!("is larger than {MAX_FILE_BYTES} bytes"));
    }
    let bytes = fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())
}

#[cfg(test)]
impl Files {
    /// The baseline as it was before packs had an edition.
    pub(crate) fn first_edition() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/first-edition");
        Self::read(&folder).unwrap()
    }

    pub(crate) fn with(mut self, name: &str, text: &str) -> Self {
        self.0.insert(name.to_owned(), text.to_owned());
        self
    }
}
