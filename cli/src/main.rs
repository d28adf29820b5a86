//! `stage0`: the one binary. Every role of the service, all of them in one process, and the operator's commands.
//!
//! Refuses logic of its own: deciding, storing and serving are the other crates'. `args.rs` declares commands,
//! `settings.rs` which of them takes which settings, `roles.rs` and `dev.rs` run services, `client.rs` asks a server.

mod accounts;
mod action;
mod approvals;
mod args;
mod check;
mod client;
mod confirm;
mod decision;
mod decisions;
mod dev;
mod dev_file;
mod doctor;
mod exit;
mod failure;
mod files;
mod guard;
mod guards;
mod health;
mod keys;
mod logins;
mod members;
mod message_keys;
mod nats_admin;
mod nats_config;
mod nats_safety;
mod new_file;
mod out;
mod outcomes;
mod policies;
mod policy;
mod receiver;
mod roles;
mod run;
mod runs;
mod settings;
mod stack;
mod status;
mod stops;
mod table;
mod usage;
mod webhooks;

use std::process::ExitCode;

// A fifth of an evaluator's time under glibc's allocator is waiting for it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Every file of this process is private to its user, also those of libraries (sled), whatever umask the shell has.
    let inherited = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    guard::mcp::keep_umask(inherited);
    let arguments: Vec<_> = std::env::args_os().collect();
    if let Some(code) = guard::mcp::launched(&arguments) {
        return ExitCode::from(code);
    }
    guard::hook::arm(&arguments);
    ExitCode::from(guard::hook::ended(run::run(arguments)) as u8)
}
