//! From the command line to a command and from its result to an exit code.

use std::ffi::OsString;

use anyhow::Context as _;
use clap::FromArgMatches as _;

use crate::args::{self, Cli, Do, DoDoctor};
use crate::exit::{AskedWrongly, Exit};
use crate::settings::client::ClientSettings;
use crate::settings::{self, Mistakes, Role, Sources, markdown};
use crate::{
    accounts, check, decisions, dev, doctor, failure, health, keys, message_keys, nats_admin, nats_config, out, policy,
    receiver, roles, runs, stack, status, webhooks,
};

/// Runs one command to its end.
pub(crate) fn run(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // Whoever asks for a decision and asks wrongly has none: no other code than "no decision" may come out of `check`.
    let asks_for_decision = arguments.get(1).is_some_and(|command| command == "check");
    let matches = match args::command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(help) if !help.use_stderr() => return done(out::write(help.render().to_string().as_bytes())),
        Err(error) => {
            out::complain(error.render().to_string().trim_end());
            return if asks_for_decision { no_decision() } else { Exit::Usage };
        }
    };
    let command = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli.command,
        Err(error) => {
            out::complain(error);
            return Exit::Usage;
        }
    };
    let flags = args::flags(&matches);
    let given = |role| {
        let sources = Sources::collect(role, flags, std::env::vars_os(), |path| std::fs::read_to_string(path));
        sources.warning().iter().for_each(out::complain);
        sources
    };
    match command {
        Do::Dev => with(settings::roles::dev(given(Role::Dev)), dev::run),
        Do::Gateway => with(settings::roles::gateway(given(Role::Gateway)), roles::gateway),
        Do::Evaluator => with(settings::roles::evaluator(given(Role::Evaluator)), roles::evaluator),
        Do::Keystore => with(settings::roles::keystore(given(Role::Keystore)), roles::keystore),
        Do::AuditExport => with(settings::roles::audit_export(given(Role::AuditExport)), roles::audit_export),
        Do::Receiver => with(settings::roles::receiver(given(Role::Receiver)), receiver::run),
        Do::Check(check) => match ClientSettings::read(given(Role::Client)) {
            Ok(settings) => check::run(&check, &settings),
            Err(mistakes) => {
                usage(&mistakes);
                no_decision()
            }
        },
        Do::Decisions { command } => with(ClientSettings::read(given(Role::Client)), |s| decisions::run(&command, &s)),
        Do::Runs { command } => with(ClientSettings::read(given(Role::Client)), |s| runs::run(&command, &s)),
        Do::Usage { json } => with(ClientSettings::read(given(Role::Client)), |s| crate::usage::run(json, &s)),
        Do::Webhooks { command } => with(ClientSettings::read(given(Role::Client)), |s| webhooks::run(&command, &s)),
        Do::Keys { command } => with(ClientSettings::read(given(Role::Client)), |s| keys::run(&command, &s)),
        Do::Accounts { command } => with(ClientSettings::read(given(Role::Client)), |s| accounts::run(&command, &s)),
        Do::Status { json } => with(ClientSettings::read(given(Role::Client)), |s| status::run(json, &s)),
        Do::Doctor { role, json } => match role {
            DoDoctor::Gateway => {
                with(settings::roles::gateway(given(Role::Gateway)), |settings| doctor::gateway(settings, json))
            }
            DoDoctor::Evaluator => {
                with(settings::roles::evaluator(given(Role::Evaluator)), |settings| doctor::evaluator(settings, json))
            }
            DoDoctor::Keystore => {
                with(settings::roles::keystore(given(Role::Keystore)), |settings| doctor::keystore(settings, json))
            }
            DoDoctor::AuditExport => with(settings::roles::audit_export(given(Role::AuditExport)), |settings| {
                doctor::audit_export(settings, json)
            }),
        },
        Do::Health { json } => {
            with(settings::roles::health(given(Role::Health)), |listener| health::run(listener, json))
        }
        Do::NatsConfig(args) => nats_config::run(args),
        Do::NatsAdmin { command, json } => with(settings::roles::nats_admin(given(Role::NatsAdmin)), |settings| {
            nats_admin::run(command, json, &settings)
        }),
        Do::NatsKeys { command } => message_keys::run(command),
        Do::Stack { command } => stack::run(command),
        Do::Policy { command } => policy::run(&command),
        Do::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut args::command(), "stage0", &mut script);
            done(out::write(&script))
        }
        Do::Settings => done(out::write(markdown().as_bytes())),
    }
}

/// Tells what went wrong, chain and all, if anything did.
pub(crate) fn finished(result: anyhow::Result<()>) -> Exit {
    ended(result.map(|()| Exit::Done))
}

/// As [`finished`], where success has more than one code.
pub(crate) fn ended(result: anyhow::Result<Exit>) -> Exit {
    result.unwrap_or_else(|error| {
        out::complain(format!("error: {}", failure::told(&error)));
        if error.is::<AskedWrongly>() { Exit::Usage } else { Exit::Failed }
    })
}

/// Runs a command with its settings, unless those are wrong.
fn with<T>(settings: Result<T, Mistakes>, run: impl FnOnce(T) -> Exit) -> Exit {
    settings.map_or_else(|mistakes| usage(&mistakes), run)
}

fn usage(mistakes: &Mistakes) -> Exit {
    out::complain(mistakes);
    Exit::Usage
}

fn no_decision() -> Exit {
    out::complain("no decision: the action must not run");
    Exit::NoDecision
}

fn done(written: std::io::Result<()>) -> Exit {
    finished(written.context("cannot write to standard output"))
}
