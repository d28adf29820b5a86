//! From the command line to a command and from its result to an exit code.

use std::ffi::OsString;

use anyhow::Context as _;
use clap::FromArgMatches as _;
use stage0_runtime::settings::Mistakes;

use crate::args::policy::AnyPolicyCommand;
use crate::args::{self, Cli, CliCommand, DoctorRole, Json};
use crate::exit::{Exit, ended};
use crate::settings::client::ClientSettings;
use crate::settings::{CommandKind, Sources, markdown, roles as of};
use crate::{
    accounts, approvals, check, decisions, dev, doctor, guard, guards, health, keys, members, message_keys, nats_admin,
    nats_config, out, outcomes, policies, policy, receiver, roles, runs, stack, status, stops, usage, webhooks,
};

pub(crate) fn run(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // INVARIANT: a `check` that could not be understood ends with "no decision", and with no other code.
    let asks_for_decision = arguments.get(1).is_some_and(|command| command == "check");
    let matches = match args::command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(help) if !help.use_stderr() && !guard::hook::is_armed() => {
            return done(out::write(help.render().to_string().as_bytes()));
        }
        Err(error) => {
            out::stderr_line(error.render().to_string().trim_end());
            return if asks_for_decision { no_decision() } else { Exit::Usage };
        }
    };
    let command = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli.command,
        Err(error) => {
            out::stderr_line(error);
            return Exit::Usage;
        }
    };
    let flags = args::flags(&matches);
    let given = |kind| {
        let sources = Sources::collect(kind, flags, std::env::vars_os(), |path| std::fs::read_to_string(path));
        sources.warning().iter().for_each(out::stderr_line);
        sources
    };
    match command {
        CliCommand::Dev => with(of::dev(given(CommandKind::Dev)), dev::run),
        CliCommand::Gateway => with(of::gateway(given(CommandKind::Gateway)), roles::gateway),
        CliCommand::Evaluator => with(of::evaluator(given(CommandKind::Evaluator)), roles::evaluator),
        CliCommand::Keystore => with(of::keystore(given(CommandKind::Keystore)), roles::keystore),
        CliCommand::AuditExport => with(of::audit_export(given(CommandKind::AuditExport)), roles::audit_export),
        CliCommand::Receiver => with(of::receiver(given(CommandKind::Receiver)), receiver::run),
        CliCommand::Check(check) => match of::client(given(CommandKind::Client)) {
            Ok(settings) => check::run(&check, &settings),
            Err(mistakes) => {
                refuse(&mistakes);
                no_decision()
            }
        },
        CliCommand::Approvals(command) => ask(given(CommandKind::Client), |s| approvals::run(&command, s)),
        CliCommand::Stop(args) => ask(given(CommandKind::Client), |s| stops::stop(&args, s)),
        CliCommand::Resume(args) => ask(given(CommandKind::Client), |s| stops::resume(&args, s)),
        CliCommand::Stops(args) => ask(given(CommandKind::Client), |s| stops::list(&args, s)),
        CliCommand::Members(command) => ask(given(CommandKind::Client), |s| members::run(&command, s)),
        CliCommand::Decisions(command) => ask(given(CommandKind::Client), |s| decisions::run(&command, s)),
        CliCommand::Outcomes(command) => ask(given(CommandKind::Client), |s| outcomes::run(&command, s)),
        CliCommand::Guard(command) => with(of::client(given(CommandKind::Client)), |s| guard::run(&command, &s)),
        CliCommand::Guards(command) => ask(given(CommandKind::Client), |s| guards::run(&command, s)),
        CliCommand::Runs(command) => ask(given(CommandKind::Client), |s| runs::run(&command, s)),
        CliCommand::Usage(Json { json }) => ask(given(CommandKind::Client), |s| usage::run(json, s)),
        CliCommand::Webhooks(command) => ask(given(CommandKind::Client), |s| webhooks::run(&command, s)),
        CliCommand::Keys(command) => ask(given(CommandKind::Client), |s| keys::run(&command, s)),
        CliCommand::Accounts(command) => ask(given(CommandKind::Client), |s| accounts::run(&command, s)),
        CliCommand::Status(Json { json }) => ask(given(CommandKind::Client), |s| status::run(json, s)),
        CliCommand::Doctor { role, json } => match role {
            DoctorRole::Gateway => with(of::gateway(given(CommandKind::Gateway)), |s| doctor::gateway(&s, json)),
            DoctorRole::Evaluator => {
                with(of::evaluator(given(CommandKind::Evaluator)), |s| doctor::evaluator(&s, json))
            }
            DoctorRole::Keystore => with(of::keystore(given(CommandKind::Keystore)), |s| doctor::keystore(&s, json)),
            DoctorRole::AuditExport => {
                with(of::audit_export(given(CommandKind::AuditExport)), |s| doctor::audit_export(&s, json))
            }
            DoctorRole::Account => with(of::client(given(CommandKind::Client)), |s| doctor::account(&s, json)),
        },
        CliCommand::Health(Json { json }) => {
            with(of::health(given(CommandKind::Health)), |listener| ended(health::run(listener, json)))
        }
        CliCommand::NatsConfig(args) => ended(nats_config::run(args)),
        CliCommand::NatsAdmin { command, json } => {
            with(of::nats_admin(given(CommandKind::NatsAdmin)), |s| ended(nats_admin::run(command, json, &s)))
        }
        CliCommand::NatsKeys(command) => ended(message_keys::run(command)),
        CliCommand::Stack(command) => ended(stack::run(command)),
        CliCommand::Policy(AnyPolicyCommand::Offline(command)) => ended(policy::run(&command)),
        CliCommand::Policy(AnyPolicyCommand::Server(command)) => {
            ask(given(CommandKind::Client), |s| policies::run(&command, s))
        }
        CliCommand::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut args::command(), "stage0", &mut script);
            done(out::write(&script))
        }
        CliCommand::Settings => done(out::write(markdown().as_bytes())),
    }
}

fn with<T>(settings: Result<T, Mistakes>, run: impl FnOnce(T) -> Exit) -> Exit {
    settings.map_or_else(|mistakes| refuse(&mistakes), run)
}

fn ask<T: Into<Exit>>(sources: Sources, run: impl FnOnce(&ClientSettings) -> anyhow::Result<T>) -> Exit {
    with(of::client(sources), |settings| ended(run(&settings)))
}

fn refuse(mistakes: &Mistakes) -> Exit {
    out::stderr_line(mistakes);
    Exit::Usage
}

fn no_decision() -> Exit {
    out::stderr_line("no decision: the action must not run");
    Exit::NoDecision
}

fn done(written: std::io::Result<()>) -> Exit {
    ended(written.context("cannot write to standard output"))
}
