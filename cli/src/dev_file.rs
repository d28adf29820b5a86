//! `<data-dir>/dev.json`: how programs and the other commands find a running `stage0 dev`. It holds keys, so its mode
//! is 0600 and its type has no `Debug`.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use stage0_contract::{AccountId, ApiKey};

use crate::files;

/// The data directory of `stage0 dev` where none is named, in the working directory.
pub(crate) const DEFAULT_DATA_DIR: &str = ".stage0";
pub(crate) const DEV_FILE: &str = "dev.json";
/// Holds the key of the dev account, with every scope of a workload.
pub(crate) const API_KEY_FILE: &str = "api.key";
/// Holds the operator's key; the keystore writes it.
pub(crate) const OPERATOR_KEY_FILE: &str = "operator.key";

#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DevFile {
    pub(crate) url: String,
    pub(crate) ca_file: PathBuf,
    /// A key with every scope except those that only members and the operator have.
    pub(crate) api_key: ApiKey,
    pub(crate) operator_key: ApiKey,
    pub(crate) account: AccountId,
}

impl DevFile {
    /// Returns `None` if there is no file. The error for a malformed file does not quote it: it holds keys.
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

    pub(crate) fn write(&self, data_dir: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self).context("cannot write JSON")?;
        files::replace(&data_dir.join(DEV_FILE), &format!("{text}\n"))
    }
}
