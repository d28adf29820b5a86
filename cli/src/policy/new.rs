//! `stage0 policy new`: a pack to start from. It extends the baseline, explains itself in comments, and passes its
//! cases.
//!
//! No existing file is changed: the directory is empty or does not exist.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, anyhow, bail, ensure};
use serde_json::json;
use stage0_policy::Pack;

use super::{MANIFEST, faults};
use crate::args::policy::NewArgs;
use crate::out;

const STARTER: [(&str, &str); 5] = [
    (MANIFEST, include_str!("starter/pack.toml")),
    ("rules.cedar", include_str!("starter/rules.cedar")),
    ("schema.cedarschema", include_str!("starter/schema.cedarschema")),
    ("codes.toml", include_str!("starter/codes.toml")),
    ("cases.json", include_str!("starter/cases.json")),
];
/// The version of a new pack.
const VERSION: &str = "0.1.0";

pub(super) fn new(arguments: &NewArgs) -> anyhow::Result<()> {
    let NewArgs { dir, name, template, json } = arguments;
    let name = match name {
        Some(name) => name.clone(),
        None => name_of(dir)?,
    };
    ensure!(
        Pack::is_name(&name),
        "a pack cannot be called `{name}`: its name is 1 to 40 small letters, digits or `-`; give it one by --name"
    );
    let files = match template {
        Some(template) => of_template(template)?,
        None => STARTER.map(|(file, text)| (file.to_owned(), text.to_owned())).to_vec(),
    };
    create(dir)?;
    for (file, text) in &files {
        let text = if file == MANIFEST { named(text, &name) } else { text.clone() };
        write(&dir.join(file), &text)?;
    }
    // What this binary writes, this binary accepts; a pack beside it may be in the way.
    let pack = Pack::from_dir(dir).map_err(|refused| faults::refused(dir, refused))?;
    if *json {
        let files: Vec<&str> = files.iter().map(|(file, _)| file.as_str()).collect();
        return out::json(&json!({"dir": dir, "version": pack.version(), "files": files}));
    }
    let shown = dir.display();
    Ok(out::line(format!(
        "{} is in {shown}:{}\n\nIts rules are in the `.cedar` file, its cases in cases.json. Next:\n  \
         stage0 policy test {shown} --watch\n  stage0 policy facts",
        pack.version(),
        files.iter().map(|(file, _)| format!("\n  {file}")).collect::<String>()
    ))?)
}

/// The name of the directory, as the name of a pack.
fn name_of(dir: &Path) -> anyhow::Result<String> {
    let absolute = std::path::absolute(dir).with_context(|| format!("cannot read `{}`", dir.display()))?;
    let name = absolute.file_name().ok_or_else(|| anyhow!("`{}` has no name; give --name", dir.display()))?;
    Ok(name.to_string_lossy().to_lowercase().replace(['_', ' ', '.'], "-"))
}

fn of_template(template: &str) -> anyhow::Result<Vec<(String, String)>> {
    let Some(files) = Pack::template_files(template) else {
        let known: Vec<&str> = Pack::templates().collect();
        bail!("there is no template `{template}`: there are {}", known.join(", "));
    };
    Ok(files.map(|(file, text)| (file.to_owned(), text.to_owned())).collect())
}

/// The manifest with another name, and with the version of a new pack.
fn named(manifest: &str, name: &str) -> String {
    let line = |line: &str| match line.split_once('=').map(|(key, _)| key.trim()) {
        Some("name") => format!("name = \"{name}\"\n"),
        Some("version") => format!("version = \"{VERSION}\"\n"),
        Some(_) | None => format!("{line}\n"),
    };
    // Name and version are keys of the top; those of a table come later.
    let (top, tables) = manifest.find("\n[").map_or((manifest, ""), |at| manifest.split_at(at + 1));
    top.lines().map(line).collect::<String>() + tables
}

/// A pack is no secret, and evaluators that read it may run as other users.
fn create(dir: &Path) -> anyhow::Result<()> {
    let failed = || format!("cannot create `{}`", dir.display());
    match fs::read_dir(dir) {
        Ok(mut entries) => ensure!(
            entries.next().is_none(),
            "`{}` is not empty: a new pack needs a directory of its own",
            dir.display()
        ),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs::create_dir_all(dir).with_context(failed)?;
            fs::set_permissions(dir, Permissions::from_mode(0o755)).with_context(failed)?;
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read `{}`", dir.display())),
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let written = fs::write(path, text).and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o644)));
    written.with_context(|| format!("cannot write `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_name_and_version_of_the_pack_change() {
        let manifest = "# One.\nname = \"coding-agent\"\nversion = \"1.2.3\"\nextends = \"baseline@2\"\n\n[weakens]\n\
                        reason = \"x\"\nname = \"stays\"\n";
        let wanted = manifest.replace("coding-agent", "mine").replace("1.2.3", VERSION);
        assert_eq!(named(manifest, "mine"), wanted);
    }

    #[test]
    fn the_name_of_a_directory_becomes_the_name_of_a_pack() {
        assert_eq!(name_of(Path::new("packs/My_Pack")).unwrap(), "my-pack");
        assert!(name_of(Path::new("/")).is_err());
        assert!(!name_of(Path::new(".")).unwrap().is_empty());
    }
}
