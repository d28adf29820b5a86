//! Finds the commit for `--version`: from the variable `BUILT_FROM_COMMIT`, which image builds set, else from git. A
//! source tree without either is `unknown`.

use std::path::Path;
use std::process::Command;

/// Not `STAGE0_…`: cargo also sets this variable for `cargo run`, where it would be an unknown setting.
const VARIABLE: &str = "BUILT_FROM_COMMIT";

fn main() {
    let here = env!("CARGO_MANIFEST_DIR");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let commit = std::env::var(VARIABLE).ok().or_else(|| commit(here));
    println!("cargo::rustc-env={VARIABLE}={}", commit.as_deref().unwrap_or("unknown"));
}

fn commit(here: &str) -> Option<String> {
    // A tree unpacked inside somebody else's repository must not claim that repository's commit.
    let top = git(here, &["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok() != Path::new(here).parent()?.canonicalize().ok() {
        return None;
    }
    let head_ref = git(here, &["symbolic-ref", "--quiet", "HEAD"]);
    for file in [Some("HEAD"), head_ref.as_deref(), Some("packed-refs")].into_iter().flatten() {
        if let Some(path) = git(here, &["rev-parse", "--path-format=absolute", "--git-path", file])
            && Path::new(&path).exists()
        {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    git(here, &["rev-parse", "--short=12", "HEAD"])
}

fn git(here: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(here).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}
