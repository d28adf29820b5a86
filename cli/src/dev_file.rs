//! `<data-dir>/dev.json`: how programs and the other commands find a running `stage0 dev`.
//!
//! Owns the file names in the data directory. `dev.json` holds keys, so its mode is 0600 and its type has no `Debug`.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stage0_contract::{AccountId, ApiKey};

pub(crate) const DEV_FILE: &str = "dev.json";
/// Holds the key of the dev account, with every scope of an account.
pub(crate) const API_KEY_FILE: &str = "api.key";
/// Holds the operator's key; the keystore writes it.
pub(crate) const OPERATOR_KEY_FILE: &str = "operator.key";

/// The server, the keys and the account of `stage0 dev`.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DevFile {
    /// The URL, with the port that was bound.
    pub(crate) url: String,
    /// An absolute path.
    pub(crate) ca_file: PathBuf,
    /// A key with every scope except `operator`.
    pub(crate) api_key: ApiKey,
    pub(crate) operator_key: ApiKey,
    /// The account of `api_key`.
    pub(crate) account: AccountId,
}

impl DevFile {
    /// Reads the file; `None` if there is none. The error for a malformed file does not quote it, because it holds
    /// keys.
    pub(crate) fn read(data_dir: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(data_dir.join(DEV_FILE)) {
            Ok(bytes) => {
                let malformed = |_| io::Error::new(io::ErrorKind::InvalidData, "not written by `stage0 dev`");
                serde_json::from_slice(&bytes).map(Some).map_err(malformed)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
