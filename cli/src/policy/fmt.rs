//! `stage0 policy fmt`: the rules and cases of a pack in one form. A file is replaced whole, or stays as it is.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use serde_json::json;
use stage0_policy::{FormattedFile, format_pack};

use super::{ensure_pack, faults};
use crate::args::policy::FmtArgs;
use crate::exit::Exit;
use crate::out;

pub(super) fn fmt(arguments: &FmtArgs) -> anyhow::Result<Exit> {
    let FmtArgs { dir, check, json } = arguments;
    ensure_pack(dir, *json)?;
    let files = match format_pack(dir) {
        Ok(files) => files,
        Err(refused) if *json => {
            out::json(&json!({"changed": [], "faults": faults::for_json(dir, refused)}))?;
            return Ok(Exit::Failed);
        }
        Err(refused) => return Err(faults::refused(dir, refused)),
    };
    let changed: Vec<&FormattedFile> = files.iter().filter(|file| file.changed).collect();
    if !check {
        for file in &changed {
            replace(&dir.join(&file.file), &file.text)?;
        }
    }
    if *json {
        let names: Vec<&str> = changed.iter().map(|file| file.file.as_str()).collect();
        out::json(&json!({"changed": names, "faults": []}))?;
    } else {
        for file in &changed {
            let verb = if *check { "would change" } else { "formatted" };
            out::line(format!("{verb} {}", dir.join(&file.file).display()))?;
        }
        if changed.is_empty() {
            out::line(format!("nothing to change in {} files of rules and cases", files.len()))?;
        }
    }
    if *check && !changed.is_empty() {
        if !json {
            out::stderr_line(format!("error: run `stage0 policy fmt {}`", dir.display()));
        }
        return Ok(Exit::Failed);
    }
    Ok(Exit::Done)
}

/// Replaces a file in one step, so that an interrupted command leaves the old one; its mode stays.
pub(super) fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let failed = || format!("cannot write `{}`", path.display());
    // A link stays a link: what it points to is replaced.
    let target = fs::canonicalize(path).with_context(failed)?;
    let mode = fs::metadata(&target).with_context(failed)?.permissions();
    let mut name = target.file_name().unwrap_or_default().to_owned();
    // Hidden, so that a pack that is loaded meanwhile has no other file.
    name.push(".new");
    let beside = target.with_file_name(format!(".{}", name.to_string_lossy()));
    let mut file = fs::File::create(&beside).with_context(failed)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::set_permissions(&beside, mode))
        .and_then(|()| fs::rename(&beside, &target));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written.with_context(failed)
}
