//! Asks git which commit this is, for `--version`. A source tree without git of its own builds too: it says `unknown`.

use std::path::Path;
use std::process::Command;

fn main() {
    let here = env!("CARGO_MANIFEST_DIR");
    println!("cargo::rerun-if-changed=build.rs");
    // Not `STAGE0_…`: cargo hands this variable to `cargo run` too, where it would be an unknown setting.
    println!("cargo::rustc-env=BUILT_FROM_COMMIT={}", commit(here).as_deref().unwrap_or("unknown"));
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
