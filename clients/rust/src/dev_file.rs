//! `<data dir>/dev.json`: how programs find a running `stage0 dev`. It holds keys, so its mode is 0600 and its type has
//! no `Debug`.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stage0_contract::{AccountId, ApiKey};

/// The data directory where none is named: in the working directory.
pub const DEFAULT_DATA_DIR: &str = ".stage0";
/// The file's name in a data directory.
pub const DEV_FILE: &str = "dev.json";
/// The name of the file with the operator's key in a data directory.
pub const OPERATOR_KEY_FILE: &str = "operator.key";

/// What `stage0 dev` writes down for programs on the same machine.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct DevFile {
    /// Where it listens.
    pub url: String,
    /// PEM file with the authority that signed its certificate.
    pub ca_file: PathBuf,
    /// A key with every scope except those that only members and the operator have.
    pub api_key: ApiKey,
    /// The key of the deployment's operator.
    pub operator_key: ApiKey,
    /// The account that `api_key` belongs to.
    pub account: AccountId,
}

impl DevFile {
    /// Returns `None` if there is no file. The error for a malformed file does not quote it: it holds keys.
    pub fn read(data_dir: &Path) -> io::Result<Option<Self>> {
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
