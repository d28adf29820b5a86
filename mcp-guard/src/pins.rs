//! The definitions of each server's tools as they were first seen: a file with one hash for each tool.
//!
//! A definition is text that a model obeys, from a party that may change it after it was looked at. The first one is
//! trusted, and that is logged; another one is held back until a person accepts it.
//! INVARIANT: several guards may share the file. Each change reads, compares and replaces it under a lock.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The most tools of one server.
pub const MAX_TOOLS: usize = 1_000;
/// The largest file that is read.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;
/// Writable by the group or by others.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// The file of pins.
#[derive(Debug, Clone)]
pub struct Pins {
    path: PathBuf,
}

/// Why pins cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say what is wrong")]
pub enum PinsError {
    #[error("cannot use the file of pins {}", .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("the file of pins {} can be changed by others (mode {mode:04o}): type `chmod 600 {0}`", .path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("the file of pins {} is not one that this version can read", .path.display())]
    Unreadable { path: PathBuf },
    #[error("the server `{0}` has no tool with a changed definition")]
    NothingChanged(String),
    #[error("the tool `{tool}` of the server `{server}` has no changed definition")]
    NotChanged { server: String, tool: String },
    #[error("more than {MAX_TOOLS} tools")]
    TooMany,
}

/// How a definition compares with its pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// It was seen before.
    Same,
    /// It is seen for the first time, and trusted from now on.
    Pinned,
    /// Another one was seen before: this one waits to be accepted.
    Changed,
}

/// One tool of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Hex SHA-256 of the definition's canonical JSON.
    pub sha256: String,
    /// Since when it is trusted.
    pub pinned_at: Timestamp,
    /// The definition that was seen last, if it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<Changed>,
}

/// A definition that is not trusted yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// As [`Pin::sha256`].
    pub sha256: String,
    /// When it was first seen.
    pub seen_at: Timestamp,
}

/// The tools of one server, by name.
pub type ServerPins = BTreeMap<String, Pin>;

#[derive(Debug, Serialize, Deserialize)]
struct PinFile {
    version: u32,
    servers: BTreeMap<String, ServerPins>,
}

impl Pins {
    /// The pins in a file, which is made when the first tool is pinned.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where they are.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tools of all servers.
    pub fn read(&self) -> Result<BTreeMap<String, ServerPins>, PinsError> {
        Ok(self.load()?.servers)
    }

    /// Compares definitions with their pins, and pins the new ones.
    pub(crate) fn compare(&self, server: &str, seen: &[(&str, &str)]) -> Result<Vec<Compared>, PinsError> {
        self.change(|file| {
            let pins = file.servers.entry(server.to_owned()).or_default();
            let (mut compared, mut is_changed) = (Vec::with_capacity(seen.len()), false);
            for (tool, sha256) in seen {
                let (before, found) = (pins.get(*tool).cloned(), compare_one(pins, tool, sha256));
                is_changed |= before.as_ref() != pins.get(*tool);
                compared.push(found);
            }
            if pins.len() > MAX_TOOLS { Err(PinsError::TooMany) } else { Ok((compared, is_changed)) }
        })
    }

    /// Whether a definition is the trusted one by now.
    pub(crate) fn is_pinned(&self, server: &str, tool: &str, sha256: &str) -> bool {
        let pinned = |file: PinFile| file.servers.get(server)?.get(tool).map(|pin| pin.sha256 == sha256);
        self.load().ok().and_then(pinned).unwrap_or(false)
    }

    /// Trusts the changed definition of one tool, or of all tools of the server. Returns the tools.
    pub fn accept(&self, server: &str, tool: Option<&str>) -> Result<Vec<String>, PinsError> {
        self.change(|file| {
            let mut accepted = Vec::new();
            let pins = file.servers.get_mut(server).into_iter().flatten();
            for (name, pin) in pins.filter(|(name, _)| tool.is_none_or(|tool| tool == name.as_str())) {
                if let Some(changed) = pin.changed.take() {
                    *pin = Pin { sha256: changed.sha256, pinned_at: Timestamp::now(), changed: None };
                    accepted.push(name.clone());
                }
            }
            match tool {
                _ if !accepted.is_empty() => Ok((accepted, true)),
                Some(tool) => Err(PinsError::NotChanged { server: server.to_owned(), tool: tool.to_owned() }),
                None => Err(PinsError::NothingChanged(server.to_owned())),
            }
        })
    }

    fn change<T>(&self, change: impl FnOnce(&mut PinFile) -> Result<(T, bool), PinsError>) -> Result<T, PinsError> {
        if let Some(directory) = self.path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.map_err(|error| self.failed(error))?;
        }
        let lock = self.open_private(&self.beside("lock")).map_err(|error| self.failed(error))?;
        lock.lock().map_err(|error| self.failed(error))?;
        let mut file = self.load()?;
        let (answer, is_changed) = change(&mut file)?;
        if is_changed {
            self.store(&file).map_err(|error| self.failed(error))?;
        }
        Ok(answer)
    }

    fn load(&self) -> Result<PinFile, PinsError> {
        let metadata = match std::fs::metadata(&self.path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(PinFile { version: 1, servers: BTreeMap::new() });
            }
            Err(error) => return Err(self.failed(error)),
        };
        let mode = metadata.mode() & 0o7777;
        if mode & WRITABLE_BY_OTHERS != 0 {
            return Err(PinsError::Exposed { path: self.path.clone(), mode });
        }
        let unreadable = || PinsError::Unreadable { path: self.path.clone() };
        if metadata.len() > MAX_FILE_BYTES {
            return Err(unreadable());
        }
        let bytes = std::fs::read(&self.path).map_err(|error| self.failed(error))?;
        let file: PinFile = serde_json::from_slice(&bytes).map_err(|_| unreadable())?;
        if file.version == 1 { Ok(file) } else { Err(unreadable()) }
    }

    /// A crash leaves the old file or the new one.
    fn store(&self, file: &PinFile) -> io::Result<()> {
        let fresh = self.beside("new");
        let mut target = self.open_private(&fresh)?;
        target.set_len(0)?;
        target.write_all(&serde_json::to_vec_pretty(file)?)?;
        target.sync_all()?;
        std::fs::rename(&fresh, &self.path)
    }

    fn open_private(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
    }

    fn beside(&self, extension: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".");
        name.push(extension);
        name.into()
    }

    fn failed(&self, source: io::Error) -> PinsError {
        PinsError::File { path: self.path.clone(), source }
    }
}

fn compare_one(pins: &mut ServerPins, tool: &str, sha256: &str) -> Compared {
    let Some(pin) = pins.get_mut(tool) else {
        let pin = Pin { sha256: sha256.to_owned(), pinned_at: Timestamp::now(), changed: None };
        pins.insert(tool.to_owned(), pin);
        return Compared::Pinned;
    };
    if pin.sha256 == sha256 {
        pin.changed = None;
        return Compared::Same;
    }
    if pin.changed.as_ref().is_none_or(|changed| changed.sha256 != sha256) {
        pin.changed = Some(Changed { sha256: sha256.to_owned(), seen_at: Timestamp::now() });
    }
    Compared::Changed
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn pins() -> (tempfile::TempDir, Pins) {
        let dir = tempfile::tempdir().unwrap();
        let pins = Pins::new(dir.path().join("state/pins.json"));
        (dir, pins)
    }

    #[test]
    fn the_first_definition_is_trusted_and_another_one_waits_until_it_is_accepted() {
        let (_dir, pins) = pins();
        let seen = [("read", "a"), ("write", "b")];
        assert_eq!(pins.compare("files", &seen).unwrap(), [Compared::Pinned, Compared::Pinned]);
        assert_eq!(pins.compare("files", &seen).unwrap(), [Compared::Same, Compared::Same]);
        assert_eq!(pins.compare("files", &[("write", "c")]).unwrap(), [Compared::Changed]);
        assert!(pins.is_pinned("files", "write", "b") && !pins.is_pinned("files", "write", "c"));
        assert_eq!(pins.compare("others", &[("write", "c")]).unwrap(), [Compared::Pinned], "of another server");
        assert_eq!(pins.accept("files", Some("write")).unwrap(), ["write"]);
        assert!(pins.is_pinned("files", "write", "c") && !pins.is_pinned("files", "write", "b"));
        assert_eq!(pins.compare("files", &[("write", "b")]).unwrap(), [Compared::Changed], "back is a change too");
    }

    #[test]
    fn a_definition_that_changes_back_is_trusted_as_before() {
        let (_dir, pins) = pins();
        pins.compare("files", &[("write", "b")]).unwrap();
        pins.compare("files", &[("write", "c")]).unwrap();
        assert_eq!(pins.compare("files", &[("write", "b")]).unwrap(), [Compared::Same]);
        assert!(matches!(pins.accept("files", None), Err(PinsError::NothingChanged(_))));
    }

    #[test]
    fn only_a_change_can_be_accepted() {
        let (_dir, pins) = pins();
        pins.compare("files", &[("a", "1"), ("b", "1")]).unwrap();
        pins.compare("files", &[("a", "2"), ("b", "2")]).unwrap();
        assert!(matches!(pins.accept("files", Some("c")), Err(PinsError::NotChanged { .. })));
        assert!(matches!(pins.accept("other", None), Err(PinsError::NothingChanged(_))));
        assert_eq!(pins.accept("files", None).unwrap(), ["a", "b"]);
    }

    #[test]
    fn the_file_is_private_and_one_that_others_can_change_is_refused() {
        let (_dir, pins) = pins();
        pins.compare("files", &[("a", "1")]).unwrap();
        let mode = std::fs::metadata(pins.path()).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        std::fs::set_permissions(pins.path(), std::fs::Permissions::from_mode(0o620)).unwrap();
        let error = pins.compare("files", &[("a", "1")]).unwrap_err().to_string();
        assert!(error.contains("chmod 600") && error.contains("0620"), "{error}");
        assert!(!pins.is_pinned("files", "a", "1"), "what cannot be trusted pins nothing");
        std::fs::set_permissions(pins.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(pins.compare("files", &[("a", "1")]).unwrap(), [Compared::Same]);
    }

    #[test]
    fn a_broken_file_is_not_replaced() {
        let (_dir, pins) = pins();
        pins.compare("files", &[("a", "1")]).unwrap();
        for text in ["{", r#"{"version":2,"servers":{}}"#, ""] {
            std::fs::write(pins.path(), text).unwrap();
            assert!(matches!(pins.compare("files", &[("a", "2")]), Err(PinsError::Unreadable { .. })), "{text}");
            assert_eq!(std::fs::read_to_string(pins.path()).unwrap(), text);
        }
    }

    #[test]
    fn guards_that_share_the_file_lose_no_pin() {
        let (_dir, pins) = pins();
        std::thread::scope(|scope| {
            for server in 0..8 {
                let pins = &pins;
                scope.spawn(move || {
                    for tool in 0..10 {
                        pins.compare(&format!("s{server}"), &[(&format!("t{tool}"), "1")]).unwrap();
                    }
                });
            }
        });
        let servers = pins.read().unwrap();
        assert_eq!((servers.len(), servers.values().map(BTreeMap::len).sum::<usize>()), (8, 80));
    }
}
