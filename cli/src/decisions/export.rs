//! `stage0 decisions export`: the log's own bytes, to a file that is whole or not there, or to standard output.

use std::path::Path;

use super::DECISIONS;
use crate::client::{Client, Download, Query};
use crate::new_file::NewFile;
use crate::out;

/// Downloads; the file is made before the server is asked, so that nothing is walked for a file that cannot be.
pub(super) fn export(client: &Client, query: &Query, to: &Path) -> anyhow::Result<()> {
    let [v1, decisions] = DECISIONS;
    let path = [v1, decisions, "export"];
    if to == Path::new("-") {
        let mut download = Download::begin(client, &path, query)?;
        while let Some(piece) = download.next()? {
            if !out::stream(piece.as_ref())? {
                break;
            }
        }
        return Ok(());
    }
    let mut file = NewFile::create(to)?;
    let mut download = Download::begin(client, &path, query)?;
    let (mut bytes, mut lines) = (0, 0);
    while let Some(piece) = download.next()? {
        let piece = piece.as_ref();
        file.write(piece)?;
        bytes += piece.len();
        lines += piece.iter().filter(|byte| **byte == b'\n').count();
    }
    file.keep()?;
    Ok(out::line(format!("{lines} lines, {bytes} bytes"))?)
}
