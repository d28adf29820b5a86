//! `stage0 guard`: what enforces decisions beside an agent.

mod agents;
mod codex_trust;
mod command;
mod doctor;
pub(crate) mod hook;
mod install;
pub(crate) mod mcp;
mod own_files;
mod settings_file;
mod state;
mod words;

use std::path::Path;

use anyhow::Context as _;
use stage0_guard::Table;

use crate::args::guard::GuardCommand;
use crate::client::guard_target;
use crate::exit::{Exit, ended};
use crate::settings::client::ClientSettings;

pub(crate) fn run(command: &GuardCommand, settings: &ClientSettings) -> Exit {
    match command {
        GuardCommand::Hook(hook) => hook::run(hook, settings),
        GuardCommand::Install(args) => ended(install::install(args, settings)),
        GuardCommand::Uninstall(place) => ended(install::uninstall(place)),
        GuardCommand::Doctor(args) => ended(doctor::run(args)),
        GuardCommand::Mcp(mcp) => mcp::run(mcp, settings),
    }
}

/// The built-in table, with the user's file before it.
fn table(file: Option<&Path>) -> anyhow::Result<Table> {
    let builtin = Table::builtin()?;
    let Some(file) = file else { return Ok(builtin) };
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read `{}`", file.display()))?;
    Ok(builtin.with(&file.display().to_string(), &text)?)
}
