//! `stage0 stack`: prepares the local stack of `docker-compose.yml`: `init` the files of the services, `open` those of
//! clients. Both may run at every start and keep what exists and is not about to expire.

mod init;
mod open;

use std::path::Path;

use anyhow::Context as _;

use crate::args::stack::StackCommand;
use crate::dev_file::API_KEY_FILE;
use crate::out;

/// The certificate of the authority, in the directory of each service.
const CA_FILE: &str = "ca.pem";

pub(crate) fn run(command: StackCommand) -> anyhow::Result<()> {
    match command {
        StackCommand::Init { dir, hosts, nats_nodes } => init::init(&dir, &hosts, nats_nodes),
        StackCommand::Open(args) => open::StackOpen(*args).run(),
        StackCommand::Ca { dir } => print_file(&dir.join(CA_FILE)),
        StackCommand::Key { dir } => print_file(&dir.join(API_KEY_FILE)),
    }
}

fn print_file(path: &Path) -> anyhow::Result<()> {
    let text = std::fs::read(path);
    let text = text.with_context(|| format!("cannot read `{}`: is the stack up?", path.display()))?;
    Ok(out::write(&text)?)
}
