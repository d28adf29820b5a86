//! `<data-dir>/dev.json`: how programs and this command line find a running `stage0 dev`.
//!
//! Owns the names in the data directory and the file's shape. It holds keys, so it is 0600 and has no `Debug`.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stage0_contract::{AccountId, ApiKey};

/// The file's name.
pub(crate) const DEV_FILE: &str = "dev.json";
/// The key with every scope of the dev account.
pub(crate) const API_KEY_FILE: &str = "api.key";
/// The operator's key; the keystore writes it.
pub(crate) const OPERATOR_KEY_FILE: &str = "operator.key";

/// What `stage0 dev` says about itself.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DevFile {
    /// With the port that was bound.
    pub(crate) url: String,
    /// Absolute.
    pub(crate) ca_file: PathBuf,
    /// Every scope but `operator`.
    pub(crate) api_key: ApiKey,
    /// The operator's.
    pub(crate) operator_key: ApiKey,
    /// Whose `api_key` it is.
    pub(crate) account: AccountId,
}

impl DevFile {
    /// Reads it; `None` when there is none. A file that cannot be read as one is an error without a quotation: it holds keys.
    pub(crate) fn read(data_dir: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(data_dir.join(DEV_FILE)) {
            Ok(bytes) => {
                let unreadable = |_| io::Error::new(io::ErrorKind::InvalidData, "not written by `stage0 dev`");
                serde_json::from_slice(&bytes).map(Some).map_err(unreadable)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
