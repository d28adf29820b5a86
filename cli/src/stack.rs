//! `stage0 stack`: what `docker-compose.yml` needs before its services start, and what a person needs once they serve.
//!
//! Owns the files of the local stack: `init` makes those that services start with, `open` those that clients ask with. Both may run
//! again at every start: what is there and young stays as it is. Secrets are in files of mode 0600 and never on standard output, but
//! for the key that `key` is asked for.

mod init;
mod open;

use std::path::Path;

use anyhow::Context as _;

use crate::args::stack::DoStack;
use crate::dev_file::API_KEY_FILE;
use crate::exit::Exit;
use crate::out;

/// The authority's certificate, in every service's folder.
const CA_FILE: &str = "ca.pem";

/// Runs one of them.
pub(crate) fn run(command: DoStack) -> Exit {
    crate::run::finished(match command {
        DoStack::Init { dir, hosts } => init::init(&dir, &hosts),
        DoStack::Open(args) => open::Opening(*args).run(),
        DoStack::Ca { dir } => show(&dir.join(CA_FILE)),
        DoStack::Key { dir } => show(&dir.join(API_KEY_FILE)),
    })
}

fn show(path: &Path) -> anyhow::Result<()> {
    let text = std::fs::read(path);
    let text = text.with_context(|| format!("cannot read `{}`: is the stack up?", path.display()))?;
    Ok(out::write(&text)?)
}
