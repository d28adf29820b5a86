//! The proposed action: one JSON document from a file or from standard input.
//!
//! Owns what can be told before anybody judges it: it can be read, it is not too large, it is strict JSON. What is in it is for the
//! server, or for the policy, to judge.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde_json::Value;
use stage0_contract::{JsonError, MAX_BODY_BYTES, parse_strict};

/// The action as it came, and as it was read.
pub(crate) struct Action {
    /// For the server.
    pub(crate) body: Vec<u8>,
    /// For a policy.
    pub(crate) value: Value,
}

/// There is no action.
#[derive(Debug, thiserror::Error)]
#[error("cannot read `{path}`: {why}")]
pub(crate) struct ActionError {
    path: PathBuf,
    why: Why,
}

#[derive(Debug, thiserror::Error)]
enum Why {
    #[error("{0}")]
    File(io::Error),
    #[error("it is larger than {MAX_BODY_BYTES} bytes")]
    TooLarge,
    #[error("{0}")]
    Json(JsonError),
}

/// Reads it; `-` is standard input.
pub(crate) fn read(path: &Path) -> Result<Action, ActionError> {
    read_from(path).map_err(|why| ActionError { path: path.to_owned(), why })
}

fn read_from(path: &Path) -> Result<Action, Why> {
    // One byte more than is allowed tells that there is more.
    let most = MAX_BODY_BYTES as u64 + 1;
    let mut body = Vec::new();
    let read = if path == Path::new("-") {
        io::stdin().lock().take(most).read_to_end(&mut body)
    } else {
        File::open(path).and_then(|file| file.take(most).read_to_end(&mut body))
    };
    read.map_err(Why::File)?;
    if body.len() > MAX_BODY_BYTES {
        return Err(Why::TooLarge);
    }
    let value = parse_strict(&body).map_err(Why::Json)?;
    Ok(Action { body, value })
}
