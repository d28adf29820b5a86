//! Files that hold one key: 64 hexadecimal digits and a line feed.
//!
//! Such a file is private, written as a whole or not at all, and on disk before anything depends on it. A file that
//! holds anything else is an error. No error and no `Debug` shows a key.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use zeroize::Zeroizing;

use crate::store::disk;

/// The operator's first key, in the data directory.
pub const OPERATOR_KEY_FILE: &str = "operator.key";
/// The key that encrypts the secrets of webhook endpoints, in the data directory unless the settings give another.
pub const SECRETS_KEY_FILE: &str = "secrets.key";
/// The seed of the key that signs marks, in the data directory unless the settings give another.
pub const SIGNING_KEY_FILE: &str = "signing.key";

#[derive(Clone)]
pub(crate) struct KeyBytes(Zeroizing<[u8; 32]>);

impl KeyBytes {
    pub(crate) fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(HEXLOWER_PERMISSIVE.decode(text.trim_ascii().as_bytes()).ok()?);
        bytes.as_slice().try_into().ok().map(Self::new)
    }

    pub(crate) fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for KeyBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyBytes(…)")
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyFileError {
    #[error("`{}` is missing", .0.display())]
    Missing(PathBuf),
    #[error("`{}` cannot be read", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("`{}` must hold 64 hexadecimal digits and nothing else", .0.display())]
    Malformed(PathBuf),
    #[error("`{}` cannot be written", .0.display())]
    Write(PathBuf, #[source] io::Error),
}

pub(crate) fn read(file: &Path) -> Result<Option<KeyBytes>, KeyFileError> {
    match std::fs::read_to_string(file).map(Zeroizing::new) {
        Ok(text) => KeyBytes::parse(&text).map(Some).ok_or_else(|| KeyFileError::Malformed(file.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(KeyFileError::Read(file.to_owned(), error)),
    }
}

/// The key of the settings' file or of the data directory. `None` if neither is there and a new one may be made.
pub(crate) fn configured(file: Option<&Path>, default: &Path) -> Result<Option<KeyBytes>, KeyFileError> {
    match file {
        Some(file) => read(file)?.ok_or_else(|| KeyFileError::Missing(file.to_owned())).map(Some),
        None => read(default),
    }
}

pub(crate) fn write(dir: &Path, name: &str, key: &KeyBytes) -> Result<(), KeyFileError> {
    // Allocated once: a text that grows leaves copies of the key in memory.
    let mut text = Zeroizing::new(String::with_capacity(65));
    HEXLOWER.encode_append(key.expose(), &mut text);
    text.push('\n');
    disk::replace(dir, name, text.as_bytes()).map_err(|error| KeyFileError::Write(dir.join(name), error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_malformed_key_file_is_an_error_and_not_a_missing_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("k");
        for bad in ["", "\n", &"a".repeat(63), &"a".repeat(66), &"g".repeat(64)] {
            std::fs::write(&file, bad).unwrap();
            let text = read(&file).unwrap_err().to_string();
            assert!(text.contains("64 hexadecimal digits") && (bad.len() < 2 || !text.contains(bad)), "{text}");
        }
        std::fs::write(&file, [0xff; 64]).unwrap();
        assert!(matches!(read(&file), Err(KeyFileError::Read(..))));
        assert!(matches!(read(dir.path()), Err(KeyFileError::Read(..))));
        assert!(read(&dir.path().join("none")).unwrap().is_none());
    }

    #[test]
    fn a_written_key_is_read_again_and_its_file_is_private() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "k", &KeyBytes::new([0xab; 32])).unwrap();
        let file = dir.path().join("k");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "ab".repeat(32) + "\n");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read(&file).unwrap().unwrap().expose(), &[0xab; 32]);
        std::fs::write(&file, "AB".repeat(32)).unwrap();
        assert_eq!(read(&file).unwrap().unwrap().expose(), &[0xab; 32]);
    }

    #[test]
    fn debug_shows_no_key() {
        assert_eq!(format!("{:?}", KeyBytes::new([0xab; 32])), "KeyBytes(…)");
    }
}
