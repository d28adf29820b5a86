//! The files of `stage0 dev` by which programs and the other commands find it: `stage0_client::dev_file` reads what is
//! written here.

use std::path::Path;

use anyhow::Context as _;

use crate::files;

pub(crate) use stage0_client::dev_file::{DEFAULT_DATA_DIR, DEV_FILE, DevFile, OPERATOR_KEY_FILE};

/// Holds the key of the dev account, with every scope of a workload.
pub(crate) const API_KEY_FILE: &str = "api.key";

/// Writes `dev.json` with mode 0600: it holds keys.
pub(crate) fn write(dev: &DevFile, data_dir: &Path) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(dev).context("cannot write JSON")?;
    files::replace(&data_dir.join(DEV_FILE), &format!("{text}\n"))
}
