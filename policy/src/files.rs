//! The files of a pack: one that is compiled in, or a folder on disk.
//!
//! Any file that a pack may not have is a fault: it would change the digest without changing a decision, or it is a
//! policy file with a misspelt name. A link is followed only to a file within the pack's folder.

mod embedded;
mod fault;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use stage0_contract::{MAX_PACK_FILES as MAX_FILES, bad_file_name, shown_file_name};

pub(crate) use embedded::{BASELINE, EMBEDDED, Embedded};
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
/// The largest file of words, numbers or types: each word of it is compared with others, and each may be a fault.
const MAX_WORDS_BYTES: u64 = 256 << 10;
/// The largest pack, all files together.
const MAX_PACK_BYTES: u64 = 8 << 20;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Files(BTreeMap<String, Cow<'static, str>>);

impl Files {
    pub(crate) fn read(folder: &Path) -> Result<Self, PackError> {
        let place = folder.display().to_string();
        let refuse = |file: &str, what: &str| PackError::of(Fault::new(file, what));
        let unread = |error: std::io::Error| refuse(&place, &format!("cannot be read: {error}"));
        let entries = fs::read_dir(folder).map_err(unread)?;
        let root = fs::canonicalize(folder).map_err(unread)?;
        let (mut files, mut faults) = (BTreeMap::new(), Vec::new());
        let mut left = MAX_PACK_BYTES;
        for entry in entries {
            if files.len() + faults.len() >= MAX_FILES {
                return Err(refuse(&place, &format!("has more than {MAX_FILES} files: is it the folder of a pack?")));
            }
            let entry = entry.map_err(unread)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // Hidden files are ignored.
            if name.starts_with('.') {
                continue;
            }
            match within(&root, &entry.path()).and_then(|path| read_text(&path, &name)) {
                Ok(text) => {
                    let bytes = u64::try_from(text.len()).unwrap_or(u64::MAX);
                    left = left.checked_sub(bytes).ok_or_else(|| {
                        refuse(&place, &format!("has more than {MAX_PACK_BYTES} bytes in all its files"))
                    })?;
                    files.insert(name, text.into());
                }
                Err(message) => faults.push(Fault::new(&name, message)),
            }
        }
        if faults.is_empty() { Ok(Self(files)) } else { Err(PackError { faults }) }
    }

    /// Files that came in a message, under the same limits as those of a folder.
    pub(crate) fn received(files: &BTreeMap<String, String>) -> Result<Self, PackError> {
        if files.len() > MAX_FILES {
            return Err(PackError::of(Fault::new(MANIFEST, format!("a pack has at most {MAX_FILES} files"))));
        }
        let faults: Vec<Fault> = files.iter().filter_map(|(name, text)| unfit(name, text)).collect();
        let files = files.iter().map(|(name, text)| (name.clone(), text.clone().into()));
        if faults.is_empty() { Ok(Self(files.collect())) } else { Err(PackError { faults }) }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(AsRef::as_ref)
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
        self.0.iter().map(|(name, text)| (name.as_str(), text.as_ref()))
    }

    /// The text of a file, shared where it is compiled in.
    pub(crate) fn shared(&self, name: &str) -> Option<Cow<'static, str>> {
        self.0.get(name).cloned()
    }

    pub(crate) fn set(&mut self, name: &str, text: impl Into<Cow<'static, str>>) {
        self.0.insert(name.to_owned(), text.into());
    }

    pub(crate) fn policies(&self) -> impl Iterator<Item = (&str, &str)> {
        self.iter().filter(|(name, _)| is_policy(name))
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
        let known = |name: &str| KNOWN.contains(&name) || is_cases(name) || is_policy(name);
        self.iter().filter(|(name, _)| !known(name)).map(|(name, _)| Fault::new(name, "is no file of a pack")).collect()
    }
}

/// Whether a file has rules.
pub(crate) fn is_policy(name: &str) -> bool {
    name.ends_with(POLICY_ENDING)
}

fn is_cases(name: &str) -> bool {
    name.strip_prefix("cases").and_then(|rest| rest.strip_suffix(".json")).is_some()
}

/// Where an entry of a folder leads. Mounts of Kubernetes link each file to one in a hidden folder beside it.
fn within(root: &Path, entry: &Path) -> Result<PathBuf, String> {
    let target = fs::canonicalize(entry).map_err(|error| format!("cannot be read: {error}"))?;
    if target.starts_with(root) { Ok(target) } else { Err("is a link that leads out of the pack's folder".to_owned()) }
}

/// The most bytes of a file of this name.
fn limit_of(name: &str) -> u64 {
    let has_words = name == SCHEMA || name.ends_with(".toml");
    if has_words { MAX_WORDS_BYTES } else { MAX_FILE_BYTES }
}

/// Why a received file cannot be one of a pack.
fn unfit(name: &str, text: &str) -> Option<Fault> {
    if let Some(message) = bad_file_name(name) {
        return Some(Fault::new(&shown_file_name(name), message));
    }
    let limit = limit_of(name);
    let is_larger = u64::try_from(text.len()).unwrap_or(u64::MAX) > limit;
    is_larger.then(|| Fault::new(name, format!("is larger than {limit} bytes")))
}

/// Reads the file of this name, which may lie elsewhere.
pub(crate) fn read_text(path: &Path, name: &str) -> Result<String, String> {
    let limit = limit_of(name);
    let unread = |error: std::io::Error| format!("cannot be read: {error}");
    // A pipe would block until something is written to it.
    if !fs::metadata(path).map_err(unread)?.is_file() {
        return Err("is no file of a pack".to_owned());
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes)).map_err(unread)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > limit {
        return Err(format!("is larger than {limit} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())
}

#[cfg(test)]
impl Files {
    pub(crate) fn of<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self(files.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned().into())).collect())
    }

    /// The baseline as it was before packs had an edition.
    pub(crate) fn first_edition() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/first-edition");
        Self::read(&folder).unwrap()
    }

    pub(crate) fn with(mut self, name: &str, text: &str) -> Self {
        self.set(name, text.to_owned());
        self
    }
}
