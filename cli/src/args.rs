//! The command line: commands, their arguments and help. Texts are wrapped by clap, at the width of the terminal.
//!
//! Flags of settings are not declared here: [`command`] adds them from the settings' declarations, [`flags`] reads
//! them.

use std::path::PathBuf;

use clap::{Arg, ArgMatches, Args, Command, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use stage0_contract::Scope;

use stage0_runtime::BuildInfo;
use stage0_runtime::settings::{Absent, Setting};

use crate::out::wrapped;
use crate::settings::{self, CommandKind, Flags};

pub(crate) mod accounts;
pub(crate) mod approvals;
pub(crate) mod decisions;
pub(crate) mod guard;
pub(crate) mod guards;
pub(crate) mod keys;
pub(crate) mod members;
pub(crate) mod nats;
pub(crate) mod number;
pub(crate) mod outcomes;
pub(crate) mod policies;
pub(crate) mod policy;
pub(crate) mod runs;
pub(crate) mod stack;
pub(crate) mod stops;
pub(crate) mod webhooks;
pub(crate) mod when;

use accounts::AccountsCommand;
use approvals::ApprovalsCommand;
use decisions::DecisionsCommand;
use guard::GuardCommand;
use guards::GuardsCommand;
use keys::KeysCommand;
use members::MembersCommand;
use nats::{NatsAdminCommand, NatsConfigArgs, NatsKeysCommand};
use outcomes::OutcomesCommand;
use policies::POLICY_SERVER_COMMANDS;
use policy::AnyPolicyCommand;
use runs::RunsCommand;
use stack::StackCommand;
use stops::{ResumeArgs, StopArgs, StopsArgs};
use webhooks::WebhooksCommand;

/// Version and commit, as `--version` shows them.
pub(crate) const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("BUILT_FROM_COMMIT"), ")");

/// What a process that runs as this says of itself.
pub(crate) const fn build_info(role: &'static str) -> BuildInfo {
    BuildInfo { version: env!("CARGO_PKG_VERSION"), commit: env!("BUILT_FROM_COMMIT"), role }
}

pub(crate) const CLIENT_COMMANDS: &[&str] = &[
    "check",
    "approvals",
    "decisions",
    "outcomes",
    "guard",
    "guards",
    "runs",
    "usage",
    "stop",
    "resume",
    "stops",
    "webhooks",
    "members",
    "keys",
    "accounts",
    "status",
];

const GROUPS: [(&str, &[&str]); 6] = [
    ("Run on this machine", &["dev", "receiver"]),
    ("Run one role on NATS", &["gateway", "evaluator", "keystore", "audit-export"]),
    ("Ask a running server", CLIENT_COMMANDS),
    ("Look after a deployment", &["doctor", "health", "nats-config", "nats-admin", "nats-keys", "stack"]),
    ("Write and publish policies", &["policy"]),
    ("Work offline", &["completions"]),
];

const TEMPLATE: &str = "{about-with-newline}\n{usage-heading} {usage}\n\n{before-help}Options:\n{options}{after-help}";

/// Decides whether an AI agent's next action may run, before it runs.
#[derive(Debug, Parser)]
#[command(name = "stage0", version = VERSION, help_template = TEMPLATE, disable_help_subcommand = true, after_help = "\
Examples:
  stage0 dev                  start everything here and print a curl that works
  stage0 check action.json    ask it; exit code 0 allow, 1 deny, 2 defer, 3 no decision
  stage0 keystore --nats nats://10.0.0.5:4222 --data-dir /var/lib/stage0

`stage0 <command> --help` says more. Every setting is a flag, a variable `STAGE0_…` and a key of the
`--config` file. Exit code 64: the command line or the settings are wrong. On a terminal lists fit its
width and verdicts have colours, unless NO_COLOR is set; in a pipe nothing is cut. --json is for programs.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: CliCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CliCommand {
    /// Runs every service in one process, with a local certificate, an account and keys
    #[command(after_help = "\
Writes `api.key`, `operator.key`, `dev.json` and `tls/ca.pem` into the data directory. The next start
uses the same data.

Examples:
  stage0 dev
  stage0 dev --data-dir /tmp/s0 --listen 127.0.0.1:0 --policies ./my-packs --active-policy my-pack@1.2.0")]
    Dev,
    /// Serves the HTTPS API: authenticates, validates, asks an evaluator, records
    #[command(after_help = "\
Examples:
  stage0 gateway --nats nats://127.0.0.1:4222 --tls-cert cert.pem --tls-key key.pem
  STAGE0_NATS=nats://127.0.0.1:4222 stage0 gateway --tls-dev-dir ./tls --listen 127.0.0.1:8443")]
    Gateway,
    /// Decides actions by policy; any number of evaluators share the work
    #[command(after_help = "\
Example:
  stage0 evaluator --nats nats://127.0.0.1:4222 --policies ./packs --active-policy my-pack@1.2.0")]
    Evaluator,
    /// Stores accounts, keys and endpoints, signs checkpoints; one serves, others stand by
    #[command(after_help = "\
The first start writes an operator's key to `<data-dir>/operator.key`, and makes `secrets.key` and `signing.key`
unless it is given others. Back them up with the rest of the directory.

Example:
  stage0 keystore --nats nats://127.0.0.1:4222 --data-dir /var/lib/stage0")]
    Keystore,
    /// Delivers decisions to webhooks, writes checkpoints, applies retention
    #[command(after_help = "\
Any number of exporters share the endpoints. The log's streams are made by `stage0 nats-admin init`.

Example:
  stage0 audit-export --nats nats://127.0.0.1:4222 --nats-monitor http://127.0.0.1:8222")]
    AuditExport,
    /// Receives webhooks, verifies their signatures and shows them
    #[command(after_help = "\
The secret's file may appear and change while the receiver runs; until it holds a secret, deliveries
are answered 503, so that the exporter retries them.

Example:
  stage0 receiver --tls-cert .stage0/tls/server.pem --tls-key .stage0/tls/server.key \\
    --secret-file hook.secret --page-listen 127.0.0.1:9080")]
    Receiver,
    /// Asks whether an action may run
    #[command(after_help = "\
Exit codes: 0 allow, 1 deny, 2 defer, 3 no decision. Only on 0 may the action run.

The key comes from --key-file, else from STAGE0_API_KEY, else from the data directory of `stage0 dev`.
There is no flag for the key because every process on the machine can read a command line.

Examples:
  stage0 check action.json
  echo '{\"goal\": \"Deploy build 7\", \"side_effects\": [\"deploy\"]}' | stage0 check -
  stage0 check action.json --json --url https://stage0.example.com --key-file agent.key")]
    Check(CheckArgs),
    /// Lists, shows, approves and denies actions that wait for people
    #[command(subcommand)]
    #[command(after_help = "\
Uses the key of --key-file, else of STAGE0_API_KEY, else of the data directory of `stage0 dev`. Approving and denying
need a member's key (`stage0 members invite`); a workload's key sees what it asked for itself.

Examples:
  stage0 approvals watch --key-file me.key
  stage0 approvals show apr_0w3ge1r7 --key-file me.key
  stage0 approvals approve apr_0w3ge1r7 --key-file me.key
  stage0 approvals deny apr_0w3ge1r7 --key-file me.key --reason 'not on a Friday'")]
    Approvals(Box<ApprovalsCommand>),
    /// Reads, follows, downloads, verifies and deletes recorded decisions
    #[command(subcommand)]
    #[command(after_help = "\
Uses the account's key: from --key-file, else from STAGE0_API_KEY, else from the data
directory of `stage0 dev`. It needs the scope `decisions:read`, for delete `decisions:delete`.

Examples:
  stage0 decisions list --from -1h --verdict DENY
  stage0 decisions tail --environment production
  stage0 decisions export --from -30d --out decisions.ndjson
  stage0 decisions verify")]
    Decisions(DecisionsCommand),
    /// Counts, lists and reports what came of allowed actions
    #[command(subcommand)]
    #[command(after_help = "\
Uses the account's key, as `decisions` does, with the scope `decisions:read`; `report` needs `outcomes:report`, and
`runs:manage` too for a cost below the estimate.

Examples:
  stage0 outcomes summary --from -7d
  stage0 outcomes list --outcome unknown
  stage0 outcomes report 0190163d-8694-739b-aea5-966c26f8ad91 succeeded --cost-usd 0.42")]
    Outcomes(OutcomesCommand),
    /// Enforces decisions beside an agent: coding agents' hooks and MCP servers
    #[command(subcommand)]
    Guard(GuardCommand),
    /// Lists the guards that enforce decisions beside agents, and which of them went silent
    #[command(subcommand)]
    #[command(after_help = "\
Uses the account's key, as `decisions` does, with the scope `decisions:read`; `forget` needs `keys:manage`.

Examples:
  stage0 guards list
  stage0 guards list --state silent")]
    Guards(GuardsCommand),
    /// Lists, shows, ends and settles runs
    #[command(subcommand)]
    #[command(after_help = "\
Uses the account's key, as `decisions` does, with the scope `check`; `end`, and `settle` for less than the
estimate, need `runs:manage`.

Examples:
  stage0 runs list
  stage0 runs show payout-retry-8841
  stage0 runs settle payout-retry-8841 --request-id 0190163d-8694-739b-aea5-966c26f8ad91 --cost-usd 0.42")]
    Runs(RunsCommand),
    /// Shows how many checks the account has made, and how many remain
    Usage(Json),
    /// Denies every check of an account, an environment, a tool or a key, until it is resumed
    #[command(after_help = "\
Uses the key of --key-file, else of STAGE0_API_KEY, else `<data-dir>/operator.key`. It needs the scope `stops:manage`,
or `operator`. Within a second every gateway denies what the stop covers.

Examples:
  stage0 stop --environment production --reason 'incident 12'
  stage0 stop --tool psql --reason 'wrong database' --until 2h")]
    Stop(StopArgs),
    /// Resumes what a stop denies; needs a member's key, or an operator's
    #[command(after_help = "\
Uses the same keys as `stop`. A member's key needs the scope `stops:manage`.

Example:
  stage0 resume stop_0w3ge1r7 --reason 'incident 12 is over'")]
    Resume(ResumeArgs),
    /// Lists the stops that hold
    #[command(after_help = "\
Uses the same keys as `stop`; any key of the account will do.

Example:
  stage0 stops")]
    Stops(StopsArgs),
    /// Creates, changes, tests and removes webhook endpoints
    #[command(subcommand)]
    #[command(after_help = "\
Uses the account's key, as `decisions` does, with the scope `webhooks:manage`; or an operator's key
given by --key-file, with --account where that is a flag.

Examples:
  stage0 webhooks create --endpoint https://receiver.example.com/hook --verdict DENY --out hook.secret
  stage0 webhooks test 0w3ge1r70w3ge1r7
  stage0 webhooks deliveries 0w3ge1r70w3ge1r7
  stage0 webhooks replay 0w3ge1r70w3ge1r7 --from -2h --to -1h")]
    Webhooks(WebhooksCommand),
    /// Invites, lists and removes the people who approve, and their groups
    #[command(subcommand)]
    #[command(after_help = "\
Uses the key of --key-file, else `<data-dir>/operator.key`. It needs the scope `members:manage`, or `operator`.

Examples:
  stage0 members invite Ada --mail ada@example.com --group release-managers
  stage0 members accept --key-file me.key
  stage0 members groups mem_0w3ge1r7 --add on-call
  stage0 members delegate mem_0w3ge1r7 --to mem_144gj289 --until 3d")]
    Members(MembersCommand),
    /// Creates, lists, replaces and revokes API keys
    #[command(subcommand)]
    #[command(after_help = "\
Uses the key of --key-file, else `<data-dir>/operator.key`. An operator's key works for any --account;
with the data directory of `stage0 dev`, the default is its account.

Examples:
  stage0 keys create --name ci --scope check --out ci.key
  stage0 keys create --name agent --scope check --owner mem_0w3ge1r7 --out agent.key
  stage0 keys rotate 0w3ge1r70w3ge1r7 --overlap 3600
  stage0 keys revoke 0w3ge1r70w3ge1r7")]
    Keys(KeysCommand),
    /// Creates and lists accounts, sets plan, limits, retention and approvals; needs an operator's key
    #[command(subcommand)]
    #[command(after_help = "\
Examples:
  stage0 accounts create --name 'Payments team' --plan pro
  stage0 accounts update acc_0w3ge1r7 --approvals verified
  stage0 accounts set-retention acc_0w3ge1r7 --days 90
  stage0 accounts list --json")]
    Accounts(AccountsCommand),
    /// Writes, tests and explains policy packs; publishes, tries and activates them
    #[command(subcommand)]
    #[command(after_help = "\
`publish` and all commands about what is published ask a server: `compare`, `replay`, `shadow`, `activate`, `rollback`
and so on. All others run here, without a server and without a key.

Examples:
  stage0 policy new ./packs/my-pack
  stage0 policy test ./packs/my-pack --watch
  stage0 policy explain ./packs/my-pack action.json
  stage0 policy publish ./packs/my-pack
  stage0 policy activate my-pack@1.2.0 --environment staging")]
    Policy(AnyPolicyCommand),
    /// Shows the running processes, their versions and how far deliveries are behind
    #[command(after_help = "\
Uses an operator's key: from --key-file, else `<data-dir>/operator.key`. Exit code 1: a role is missing or not
ready.

Examples:
  stage0 status
  stage0 status --json --url https://stage0.example.com --key-file operator.key")]
    Status(Json),
    /// Diagnoses a role's configuration, or an account, and says how to fix each problem
    #[command(after_help = "\
Takes the same settings as the role, and changes nothing; it may run beside the role. Exit code 1: the role would
not start, or could not do its work.

Examples:
  stage0 doctor gateway --config /etc/stage0/gateway.toml
  docker compose exec gateway stage0 doctor gateway")]
    Doctor {
        #[command(subcommand)]
        role: DoctorRole,
        /// Prints JSON
        #[arg(long, global = true)]
        json: bool,
    },
    /// Asks a role on this machine whether it is ready: for a container's health check
    #[command(after_help = "\
Exit code 0: ready; 1: not ready. Asks `/readyz` at the address where the role serves its metrics.

Example:
  stage0 health --metrics-listen 127.0.0.1:9464")]
    Health(Json),
    /// Prints a configuration for nats-server, with the rights of each role
    #[command(after_help = "\
Each process logs in as a user of its own, `gateway-1` and so on, with `--nats-jetstream-api s0.api`. The server
reads their passwords from its variables: GATEWAY_1_PASSWORD and so on, and ADMIN_PASSWORD for the user `admin` of
`stage0 nats-admin`. `--logins-dir` creates passwords instead: give each role its directory (`--nats-logins`), and the
server the file `passwords.conf` beside its configuration (`--passwords passwords.conf`).

A server of a cluster has --cluster and a --route to each of the others, and a --name of its own. Its certificate has
the DNS name by which the others know it, and the extended key usages of a server and of a client.

Examples:
  stage0 nats-config --keys-dir /etc/stage0/keys > /etc/nats/nats.conf
  stage0 nats-config --logins-dir /etc/stage0/logins --passwords passwords.conf > nats.conf
  stage0 nats-config --name n1 --cluster stage0 --route n2:6222 --route n3:6222 > nats.conf")]
    NatsConfig(NatsConfigArgs),
    /// Creates, checks and upgrades the streams on NATS, with the administrator's login
    #[command(after_help = "\
Run `init` once before the roles start, and `upgrade` where an earlier version made the streams. Each may be
repeated. No role may change a stream, so no role needs this login. Exit code 1: a stream is missing or wrong.

Examples:
  stage0 nats-admin init --nats tls://nats:4222 --nats-user admin --nats-password-file admin/nats.password \\
    --nats-ca admin/nats-ca.pem --nats-cert admin/nats.pem --nats-key admin/nats.key --nats-jetstream-api s0.api
  stage0 nats-admin check --nats nats://127.0.0.1:4222")]
    NatsAdmin {
        #[command(subcommand)]
        command: NatsAdminCommand,
        /// Prints JSON
        #[arg(long, global = true)]
        json: bool,
    },
    /// Creates and replaces the keys that authenticate messages between roles
    #[command(subcommand)]
    #[command(after_help = "\
Give each role only its own file (`--message-keys`). `rotate` does one of three steps; between two steps every role
must get its new file. Roles read the file again by themselves.

Examples:
  stage0 nats-keys create --dir /etc/stage0/keys
  stage0 nats-keys create --dir /etc/stage0/keys --upgrade
  stage0 nats-keys rotate --dir /etc/stage0/keys")]
    NatsKeys(NatsKeysCommand),
    /// Prepares certificates, passwords and a demo account for docker compose
    #[command(subcommand)]
    Stack(StackCommand),
    /// Prints completions for a shell
    #[command(after_help = "\
Example:
  stage0 completions bash > ~/.local/share/bash-completion/completions/stage0")]
    Completions {
        /// Which shell.
        shell: Shell,
    },
    /// Prints docs/CONFIGURATION.md
    #[command(hide = true)]
    Settings,
}

#[derive(Debug, Args)]
pub(crate) struct Json {
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// JSON file with the proposed action; `-` reads standard input
    pub(crate) file: PathBuf,
    /// Prints the server's answer as it came
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum DoctorRole {
    /// Certificate, NATS, rights, and the services it needs
    Gateway,
    /// Policy packs, NATS and rights
    Evaluator,
    /// Data directory, NATS and rights
    Keystore,
    /// NATS, rights, and the certificates it trusts
    AuditExport,
    /// The key's account on a running server: whether enough people can approve what waits
    #[command(after_help = "\
Takes the settings of commands that ask a server. The key needs `members:manage`, and `decisions:read` or
`approvals:decide`; the key of `stage0 dev` has them.

Example:
  stage0 doctor account --url https://stage0.example.com --key-file admin.key")]
    Account,
}

fn scope(text: &str) -> Result<Scope, String> {
    Scope::parse(text).ok_or_else(|| format!("must be one of {}", Scope::ALL.map(Scope::as_str).join(", ")))
}

pub(crate) fn command() -> Command {
    let mut command = Cli::command();
    for kind in CommandKind::ALL {
        for name in kind.commands() {
            command = command.mut_subcommand(name, |sub| with_flags(sub, kind));
        }
    }
    for kind in [CommandKind::Gateway, CommandKind::Evaluator, CommandKind::Keystore, CommandKind::AuditExport] {
        for name in kind.commands() {
            command =
                command.mut_subcommand("doctor", |doctor| doctor.mut_subcommand(name, |sub| with_flags(sub, kind)));
        }
    }
    command = command.mut_subcommand("doctor", |doctor| {
        doctor.mut_subcommand("account", |account| with_flags(account, CommandKind::Client))
    });
    command = command.mut_subcommand("policy", |policy| {
        let server = POLICY_SERVER_COMMANDS.into_iter();
        server.fold(policy, |policy, name| policy.mut_subcommand(name, |sub| with_flags(sub, CommandKind::Client)))
    });
    let groups = grouped(&command);
    reflowed(command.before_help(groups))
}

/// What was typed for the settings. `matches` are those of the command that was reached last.
pub(crate) fn flags(matches: &ArgMatches) -> Flags {
    let mut innermost = matches;
    while let Some((_, inner)) = innermost.subcommand() {
        innermost = inner;
    }
    let typed = |setting: Setting| {
        let text = innermost.try_get_one::<String>(setting.name).ok().flatten()?;
        Some((setting.name, text.clone()))
    };
    settings::all().into_iter().filter_map(typed).collect()
}

fn with_flags(command: Command, kind: CommandKind) -> Command {
    let is_global = command.has_subcommands();
    let flags = kind.settings().into_iter().filter(Setting::has_flag);
    flags.fold(command, |command, setting| {
        let default = match setting.absent {
            Absent::Default(text) => format!(" [default: {}]", text()),
            Absent::Required => " (required)".to_owned(),
            Absent::Optional => String::new(),
        };
        let help = format!("{}{default} [env: {}]", setting.help, setting.variable());
        let mut flag = Arg::new(setting.name).long(setting.name).value_name(setting.value).help(help);
        if setting.value == "BOOL" {
            // The bare flag means `true`.
            flag = flag.num_args(0..=1).require_equals(true).default_missing_value("true");
        }
        command.arg(flag.help_heading(setting.group).global(is_global))
    })
}

/// The commands under their headings. Long lines are wrapped here, because clap would not indent what it wraps.
fn grouped(command: &Command) -> String {
    const WIDTH: usize = 80;
    const INDENT: usize = 16;
    let line = |name: &&str| {
        let about = command.find_subcommand(name).and_then(Command::get_about).map(ToString::to_string);
        wrapped(&format!("  {name:<14}{}", about.unwrap_or_default()), WIDTH, INDENT) + "\n"
    };
    let group =
        |(heading, names): (&str, &[&str])| format!("{heading}:\n{}", names.iter().map(line).collect::<String>());
    GROUPS.map(group).join("\n")
}

/// Joins the lines of each paragraph below a help text, so that clap wraps them once. Indented lines stay.
fn reflowed(command: Command) -> Command {
    let command = match command.get_after_help().map(ToString::to_string) {
        Some(text) => command.after_help(joined(&text)),
        None => command,
    };
    command.mut_subcommands(reflowed)
}

fn joined(text: &str) -> String {
    let mut joined = String::with_capacity(text.len());
    let mut continues = false;
    for line in text.lines() {
        let is_prose = !line.is_empty() && !line.starts_with(' ');
        if !joined.is_empty() {
            joined.push(if continues && is_prose { ' ' } else { '\n' });
        }
        joined.push_str(line);
        continues = is_prose && !line.ends_with(':');
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_visible_command_stands_in_one_group() {
        let mut grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        let command = command();
        let visible = command.get_subcommands().filter(|c| !c.is_hide_set());
        let mut visible: Vec<&str> = visible.map(Command::get_name).collect();
        grouped.sort_unstable();
        visible.sort_unstable();
        assert_eq!(grouped, visible);
    }

    /// Exempt are services, and commands that write files or print a format of their own.
    #[test]
    fn every_command_that_prints_an_answer_has_a_json_flag() {
        fn leaves(command: &Command, path: &str, found: &mut Vec<(String, bool)>) {
            let path = format!("{path} {}", command.get_name());
            if command.has_subcommands() {
                command.get_subcommands().for_each(|inner| leaves(inner, &path, found));
            } else {
                let has_json = command.get_arguments().any(|argument| argument.get_id() == "json");
                found.push((path.trim_start_matches(" stage0 ").to_owned(), has_json));
            }
        }
        let (mut found, mut command) = (Vec::new(), command());
        command.build();
        leaves(&command, "", &mut found);
        let mut without: Vec<&str> = found.iter().filter(|(_, has)| !has).map(|(path, _)| path.as_str()).collect();
        without.sort_unstable();
        let may = [
            "audit-export",
            "completions",
            "dev",
            "evaluator",
            "gateway",
            "guard hook",
            "guard install",
            "guard uninstall",
            "keystore",
            "nats-config",
            "nats-keys create",
            "nats-keys rotate",
            "receiver",
            "settings",
            "stack ca",
            "stack init",
            "stack key",
            "stack open",
        ];
        assert_eq!(without, may);
    }

    #[test]
    fn help_texts_are_wrapped_once_and_lists_of_commands_are_indented() {
        assert_eq!(joined("a\nb:\n  c\n  d\n\ne\nf"), "a b:\n  c\n  d\n\ne f");
        for line in grouped(&command()).lines() {
            assert!(line.chars().count() <= 80, "{line}");
            let is_heading = line.ends_with(':') && !line.starts_with(' ');
            assert!(is_heading || line.is_empty() || line.starts_with("  "), "{line}");
        }
    }

    #[test]
    fn a_role_has_the_flags_of_its_settings_only() {
        let names = |role: &str| {
            let command = command();
            let role = command.find_subcommand(role).unwrap();
            role.get_arguments().map(|a| a.get_id().to_string()).collect::<Vec<_>>()
        };
        assert!(names("gateway").contains(&"tls-cert".to_owned()));
        assert!(!names("evaluator").contains(&"tls-cert".to_owned()));
        assert!(!names("check").contains(&"api-key".to_owned()));
    }
}
