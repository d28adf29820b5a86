//! Arguments of `stage0 guard`.

pub(crate) mod mcp;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use stage0_contract::GuardId;
use stage0_guard::Agent;

use crate::guard::hook::DEFAULT_DEADLINE;
use mcp::McpArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum GuardCommand {
    /// Answers one event of a coding agent's hook: standard input in, the agent's own form out
    #[command(after_help = "\
Exit codes: 0 nothing stands against the tool, 2 it must not run. No other code, whatever happens: agents take other
codes for \"run the tool\". `stage0 guard install` writes this command into the agent's settings.")]
    Hook(HookArgs),
    /// Guards one MCP server: its tools run only after an ALLOW
    #[command(after_help = "\
Put it before the server's command in the client's configuration. The exit code is the server's. Name the Stage0
server with --url, --ca and --key-file, or the data directory of `stage0 dev` with --data-dir: what lies in the working
directory is not looked at. The key needs the scope `check`, and `outcomes:report` to report what came of calls.

Examples:
  stage0 guard mcp --name files --data-dir /home/ada/.stage0 -- npx -y @modelcontextprotocol/server-filesystem /srv/data
  stage0 guard mcp --name issues --url https://stage0.example:8443 --key-file /home/ada/agent.key \\
    --upstream https://mcp.example.com/mcp --listen 127.0.0.1:7401
  stage0 guard mcp pins list
  stage0 guard mcp pins accept --name files write_file")]
    Mcp(Box<McpArgs>),
    /// Writes the hook into an agent's settings, and says what the agent cannot promise
    #[command(after_help = "\
The settings keep what else is in them. The command that is written names the server and the file with the key, never
the key itself. Let the key have the scopes `check` and `outcomes:report`.

Examples:
  stage0 guard install claude-code --url https://stage0.example:8443 --ca ca.pem --key-file ~/.config/stage0/agent.key
  stage0 guard install claude-code --managed --key-file /etc/stage0/agent.key --url https://stage0.example:8443")]
    Install(InstallArgs),
    /// Takes the hook out of an agent's settings
    Uninstall(Place),
    /// Runs the hook that an agent has, with events that must be denied
    #[command(after_help = "Exit code 1: a tool could run without a decision, or no tool can run.")]
    Doctor(DoctorArgs),
}

#[derive(Debug, Args)]
pub(crate) struct InstallArgs {
    #[command(flatten)]
    pub(crate) place: Place,
    #[command(flatten)]
    pub(crate) about: AboutAgent,
    /// An ALLOW also answers the agent's own permission prompt. Without it both must agree
    #[arg(long)]
    pub(crate) grant_permission: bool,
    /// Prints what would be written
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) place: Place,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which settings of which agent.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// claude-code, codex, cursor, gemini or opencode
    pub(crate) agent: Agent,
    /// Settings of the whole machine, which users cannot change, instead of the user's own
    #[arg(long, conflicts_with_all = ["project", "settings_file"])]
    pub(crate) managed: bool,
    /// Settings of the project in the working directory
    #[arg(long, conflicts_with = "settings_file")]
    pub(crate) project: bool,
    /// This settings file
    #[arg(long, value_name = "FILE")]
    pub(crate) settings_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct HookArgs {
    /// claude-code, codex, cursor, gemini or opencode
    pub(crate) agent: Agent,
    #[command(flatten)]
    pub(crate) about: AboutAgent,
    /// Time for everything, from start to exit; then the tool is denied
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_DEADLINE.as_secs_f64(), value_parser = deadline)]
    pub(crate) deadline: f64,
    /// An ALLOW also answers the agent's own permission prompt. Without it both must agree
    #[arg(long)]
    pub(crate) grant_permission: bool,
    /// Directory for the guard's counts and open calls (default: $XDG_STATE_HOME/stage0/guard, else
    /// ~/.local/state/stage0/guard)
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

/// What goes into the question about each call.
#[derive(Debug, Clone, Args)]
pub(crate) struct AboutAgent {
    /// TOML file with further tools, MCP tools and shell commands; its entries come before the built-in ones
    #[arg(long, value_name = "FILE")]
    pub(crate) table: Option<PathBuf>,
    /// Environment that the agent works in, such as development
    #[arg(long, value_name = "NAME")]
    pub(crate) environment: Option<String>,
    /// The agent's id in checks (default: its name)
    #[arg(long, value_name = "ID")]
    pub(crate) agent_id: Option<String>,
    /// The guard's own name in `guards list`, one per guard (default: made at its first report)
    #[arg(long, value_name = "NAME", value_parser = GuardId::parse)]
    pub(crate) guard_id: Option<GuardId>,
}

fn deadline(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "must be a number of seconds".to_owned())?;
    let most = Duration::from_secs(600).as_secs_f64();
    if (0.5..=most).contains(&seconds) { Ok(seconds) } else { Err("must be 0.5 to 600 seconds".to_owned()) }
}
