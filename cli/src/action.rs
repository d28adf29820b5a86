//! The proposed action: one strict JSON document from a file or from standard input. Its members are checked by the
//! server or by the policy.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use stage0_contract::{MAX_BODY_BYTES, parse_strict};

pub(crate) struct Action {
    pub(crate) body: Vec<u8>,
    pub(crate) value: Value,
}

/// Reads the document; `-` is standard input.
pub(crate) fn read(path: &Path) -> anyhow::Result<Action> {
    read_document(path).with_context(|| format!("cannot read `{}`", path.display()))
}

fn read_document(path: &Path) -> anyhow::Result<Action> {
    // One byte more than allowed is read, to notice a document that is too large.
    let limit = MAX_BODY_BYTES as u64 + 1;
    let mut body = Vec::new();
    if path == Path::new("-") {
        io::stdin().lock().take(limit).read_to_end(&mut body)?;
    } else {
        File::open(path)?.take(limit).read_to_end(&mut body)?;
    }
    ensure!(body.len() <= MAX_BODY_BYTES, "it is larger than {MAX_BODY_BYTES} bytes");
    let value = parse_strict(&body)?;
    Ok(Action { body, value })
}
