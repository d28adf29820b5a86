//! `stage0 guard mcp`: the guard between an MCP client and one MCP server.
//!
//! INVARIANT: standard output belongs to the protocol. What is for people goes to standard error.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, anyhow};
use rustix::fs::{Mode, RawMode};
use serde_json::json;
use stage0_client::Client;
use stage0_guard::Options;
use stage0_mcp_guard::{Asker, Command, Guard, HttpGuard, Listen, Pin, Pins, Reporter, run_stdio};
use stage0_runtime::logs::{self, Format, LogSettings};
use tokio::signal::unix::{SignalKind, signal};

use super::own_files::own_files;
use super::{guard_target, state, table};
use crate::args::guard::mcp::{McpArgs, McpCommand, PinsCommand, PinsFile};
use crate::exit::{Exit, ended};
use crate::out::{self, plain};
use crate::settings::client::ClientSettings;
use crate::table::{Table, seconds};

/// What is logged: a guard runs beside an agent, so only what a person should know.
const LOG_FILTER: &str = "info,actix_server=warn";
const PINS_FILE: &str = "mcp-pins.json";
/// Beside the pins: which guards of which server there are.
const INSTANCES_DIR: &str = "mcp-guards";
/// The first word of a command line that starts a server in the place of this program.
const LAUNCH: &str = "guard-mcp-launch";
/// The process of the guard was gone before its child could bind itself to it.
const PARENT_IS_GONE: u8 = 1;
/// As shells end for a program that is not there.
const NOT_FOUND: u8 = 127;
const DEFAULT_UMASK: RawMode = 0o077;

/// Names are never cut: `accept` needs them.
const SHRINKABLE: [(usize, usize); 3] = [(5, 0), (3, 11), (4, 11)];

static UMASK: OnceLock<RawMode> = OnceLock::new();

pub(super) fn run(arguments: &McpArgs, settings: &ClientSettings) -> Exit {
    if let Some(McpCommand::Pins(command)) = &arguments.pins {
        return ended(pins(command));
    }
    logs::start(LogSettings { filter: LOG_FILTER.to_owned(), format: Format::Text });
    match serve(arguments, settings) {
        // The exit code is the server's own, which has no name here.
        Ok(code) => std::process::exit(i32::from(code)),
        Err(error) => ended::<()>(Err(error)),
    }
}

fn serve(arguments: &McpArgs, settings: &ClientSettings) -> anyhow::Result<u8> {
    let target = guard_target(settings)?;
    let principal = target.key.as_ref().map(|key| key.id().to_string()).context("the guard needs a key")?;
    let client = Client::new(target)?.with_timeout(settings.timeout);
    let about = &arguments.about;
    let pins = open(&arguments.pins_file)?;
    let instances = pins.path().with_file_name(INSTANCES_DIR);
    let files =
        [about.table.as_deref(), Some(pins.path()), Some(instances.as_path()), arguments.upstream_ca.as_deref()];
    let options = Options {
        environment: about.environment.clone(),
        agent_id: about.agent_id.clone(),
        own_files: own_files(settings, &files),
        ..Options::default()
    };
    let asker = Asker::new(client, principal.clone(), table(about.table.as_deref())?, options);
    let guard = Guard::new(&arguments.name, asker.clone(), pins)?;
    let guard = if arguments.whole_lists { guard.with_whole_lists() } else { guard };
    let guard = Arc::new(if arguments.elicit { guard.with_elicitation() } else { guard });
    let reporter = match &about.guard_id {
        Some(id) => Some(Reporter::named(id.clone())),
        None => Reporter::new(guard.server(), &principal, &instances),
    };
    let reporter = reporter.map(Arc::new);
    // One thread waits: the child's life is bound to the thread that starts it.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let code = runtime.block_on(async {
        let stop = stopped()?;
        let reporting = reporter.clone().map(|reporter| {
            let asker = asker.clone();
            tokio::spawn(async move { reporter.run(&asker).await })
        });
        let code = match &arguments.upstream {
            Some(upstream) => listen(arguments, upstream, guard, stop).await,
            None => stdio(arguments, guard, stop).await,
        };
        if let (Some(reporting), Some(reporter)) = (reporting, reporter) {
            reporting.abort();
            reporter.end(&asker).await;
        }
        code
    });
    // A read of standard input may still be under way; nothing ends it.
    runtime.shutdown_background();
    code
}

async fn stdio(arguments: &McpArgs, guard: Arc<Guard>, stop: impl Future<Output = ()>) -> anyhow::Result<u8> {
    let command = Command { launcher: launcher(), program: arguments.server.clone() };
    Ok(run_stdio(guard, &command, tokio::io::stdin(), tokio::io::stdout(), stop).await?)
}

async fn listen(
    arguments: &McpArgs,
    upstream: &reqwest::Url,
    guard: Arc<Guard>,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<u8> {
    let address = arguments.listen.context("--upstream needs --listen")?;
    let listen = Listen {
        upstream: upstream.clone(),
        upstream_ca: arguments.upstream_ca.clone(),
        address,
        beyond_loopback: arguments.listen_beyond_loopback,
        origins: arguments.allow_origin.clone(),
        hosts: arguments.allow_host.clone(),
    };
    let guard = HttpGuard::build(guard, listen)?;
    out::stderr_line(format!("guards {} at {}", arguments.name, guard.url()));
    guard.run_until(stop).await?;
    Ok(0)
}

/// The first signal that asks the guard to end.
fn stopped() -> io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

/// Keeps the umask that this process was started with: a guarded server makes its files as it would without the guard.
pub(crate) fn keep_umask(mask: Mode) {
    let _ = UMASK.set(mask.bits());
}

/// This program, to start a server with the umask of its client, and so that it dies with the guard. Empty where this
/// program cannot be found.
fn launcher() -> Vec<OsString> {
    let Ok(program) = std::env::current_exe() else { return Vec::new() };
    let mask = UMASK.get().copied().unwrap_or(DEFAULT_UMASK);
    vec![program.into(), LAUNCH.into(), std::process::id().to_string().into(), mask.to_string().into()]
}

/// Starts a server in the place of this process, if the command line asks for that. Returns only where it does not, or
/// with the exit code of what failed.
pub(crate) fn launched(arguments: &[OsString]) -> Option<u8> {
    let [_, word, parent, mask, program, rest @ ..] = arguments else { return None };
    if word != LAUNCH {
        return None;
    }
    if !is_bound_to(parent) {
        return Some(PARENT_IS_GONE);
    }
    let mask = mask.to_str().and_then(|mask| mask.parse().ok()).unwrap_or(DEFAULT_UMASK);
    rustix::process::umask(Mode::from_raw_mode(mask));
    let error = std::process::Command::new(program).args(rest).exec();
    out::stderr_line(format!("error: cannot start the server `{}`: {error}", plain(&program.to_string_lossy())));
    Some(NOT_FOUND)
}

/// Has this process killed with its parent, which is the guard. What it becomes keeps that.
#[cfg(target_os = "linux")]
fn is_bound_to(parent: &OsStr) -> bool {
    use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

    let parent = parent.to_str().and_then(|parent| parent.parse().ok()).and_then(Pid::from_raw);
    // The guard may have died between its fork and this call: then no signal comes any more.
    set_parent_process_death_signal(Some(Signal::KILL)).is_ok() && parent.is_some() && getppid() == parent
}

/// Elsewhere a server ends when its input closes.
#[cfg(not(target_os = "linux"))]
fn is_bound_to(_: &OsStr) -> bool {
    true
}

fn open(file: &PinsFile) -> anyhow::Result<Pins> {
    let default = || Some(state::default_dir()?.join(PINS_FILE));
    let path: Option<PathBuf> = file.path.clone().or_else(default);
    path.map(Pins::new).ok_or_else(|| anyhow!("neither HOME nor --pins is set"))
}

fn pins(command: &PinsCommand) -> anyhow::Result<()> {
    match command {
        PinsCommand::List { file, json } => list(&open(file)?, *json),
        PinsCommand::Accept { name, tool, file, json } => {
            let accepted = open(file)?.accept(name, tool.as_deref())?;
            if *json {
                return Ok(out::json_text(json!({"server": name, "accepted": accepted}).to_string().as_bytes())?);
            }
            let lines = accepted.iter().map(|tool| format!("accepted {}", plain(tool)));
            Ok(out::line(lines.collect::<Vec<_>>().join("\n"))?)
        }
    }
}

fn list(pins: &Pins, json: bool) -> anyhow::Result<()> {
    let servers = pins.read()?;
    if json {
        return Ok(out::json_text(serde_json::to_string(&servers)?.as_bytes())?);
    }
    if servers.values().all(BTreeMap::is_empty) {
        out::stderr_line(format!("no tools are pinned in {}", shown(pins.path())));
    }
    let headings = ["SERVER", "TOOL", "STATE", "PINNED", "CHANGED", "DEFINITION"];
    let mut table = Table::new(headings).shrinkable(&SHRINKABLE);
    for (server, tools) in &servers {
        for (tool, pin) in tools {
            table.row(cells(server, tool, pin));
        }
    }
    Ok(table.print()?)
}

/// One tool: since when its definition is trusted, and since when there is another one.
fn cells(server: &str, tool: &str, pin: &Pin) -> [String; 6] {
    let (server, tool, pinned_at) = (server.to_owned(), tool.to_owned(), seconds(pin.pinned_at).to_string());
    let definition = short(&pin.sha256);
    match &pin.changed {
        None => [server, tool, "pinned".to_owned(), pinned_at, String::new(), definition.to_owned()],
        Some(changed) => {
            let definition = format!("{definition} -> {}", short(&changed.sha256));
            [server, tool, "CHANGED".to_owned(), pinned_at, seconds(changed.seen_at).to_string(), definition]
        }
    }
}

fn short(sha256: &str) -> &str {
    sha256.get(..12).unwrap_or(sha256)
}

fn shown(path: &Path) -> String {
    plain(&path.display().to_string())
}

#[cfg(test)]
mod tests {
    use stage0_mcp_guard::Changed;

    use super::*;

    #[test]
    fn a_pin_says_since_when_it_is_trusted_and_a_changed_one_what_was_seen_instead() {
        let at = |text: &str| text.parse().unwrap();
        let mut pin = Pin { sha256: "a".repeat(64), pinned_at: at("2026-03-16T12:00:00.5Z"), changed: None };
        let first = "a".repeat(12);
        let pinned = "2026-03-16T12:00:00Z";
        assert_eq!(cells("files", "write_file", &pin), ["files", "write_file", "pinned", pinned, "", &first]);
        pin.changed = Some(Changed { sha256: "b".repeat(64), seen_at: at("2026-03-17T12:00:00Z") });
        let both = format!("{first} -> {}", "b".repeat(12));
        let seen = "2026-03-17T12:00:00Z";
        assert_eq!(cells("files", "write_file", &pin), ["files", "write_file", "CHANGED", pinned, seen, &both]);
    }
}
