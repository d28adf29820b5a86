//! Whether Codex trusts the hook, as Codex itself says.
//!
//! Codex runs a hook of a user's settings only once a person has trusted it. `codex app-server` answers `hooks/list`
//! with what it makes of each hook: one JSON message a line, over standard input and output. It runs as at any start of
//! Codex, keeps its own state in CODEX_HOME, and has neither a session nor a model. INVARIANT: only an answer that says
//! so makes the hook trusted; whatever else comes is "not checked".

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use stage0_contract::parse_strict;

use super::agents::Profile;
use crate::doctor::Finding;
use crate::out::plain;

/// For everything: Codex starts within two seconds on a slow machine.
const ASK_TIMEOUT: Duration = Duration::from_secs(20);
/// More than a list of a thousand hooks.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;
const READ_BYTES: usize = 16 * 1024;
/// Reads that wait to be looked at.
const MAX_READS: usize = 4;
const MAX_QUOTED_CHARS: usize = 160;

const ABOUT: &str = "trust";
const ENDED: &str = "`codex app-server` ended without an answer";
const INITIALIZE: u64 = 1;
const LIST_HOOKS: u64 = 2;
/// The JSON-RPC errors of a server that does not know a method. Codex uses the first for it.
const UNKNOWN_METHOD: [i64; 2] = [-32_600, -32_601];

/// Findings about the trust in the hook that asks, and in the others of `file`.
pub(super) fn findings(profile: &Profile, file: &Path, command: &str) -> Vec<Finding> {
    asked_of(profile.program, ASK_TIMEOUT, profile, file, command)
}

fn asked_of(program: &str, timeout: Duration, profile: &Profile, file: &Path, command: &str) -> Vec<Finding> {
    let listed = std::env::current_dir()
        .map_err(|error| format!("the working directory cannot be named: {error}"))
        .and_then(|dir| list(program, &dir, timeout));
    match listed {
        Ok(listed) => listed.judged(profile, file, command),
        Err(why) => vec![Finding::skipped(ABOUT, format!("not checked: {why}"), profile.by_hand)],
    }
}

/// What Codex says of the hooks that it would run in a directory.
#[derive(Debug)]
struct Listed {
    hooks: Vec<Hook>,
    /// Why settings could not be read.
    faults: Vec<String>,
}

#[derive(Debug)]
struct Hook {
    event: String,
    command: Option<String>,
    file: PathBuf,
    is_enabled: bool,
    trust: String,
}

impl Listed {
    /// None: it has not the form of such an answer.
    fn parse(result: &Value) -> Option<Self> {
        let [entry] = result.get("data")?.as_array()?.as_slice() else { return None };
        let hooks = entry.get("hooks")?.as_array()?.iter().map(Hook::parse).collect::<Option<Vec<_>>>()?;
        let faults = ["errors", "warnings"].iter().filter_map(|name| entry.get(*name)?.as_array()).flatten();
        let faults = faults.filter_map(|fault| fault.get("message").unwrap_or(fault).as_str().map(quoted)).collect();
        Some(Self { hooks, faults })
    }

    fn judged(&self, profile: &Profile, file: &Path, command: &str) -> Vec<Finding> {
        let mut found = vec![self.asking(profile, file, command)];
        let others = profile.others.iter().filter(|event| {
            let hooks = self.of(event, file, command);
            !hooks.is_empty() && !hooks.iter().all(|hook| hook.runs())
        });
        let others: Vec<&str> = others.copied().collect();
        if !others.is_empty() {
            let text = format!("Codex skips the hooks at {}: outcomes and sessions are not seen", others.join(", "));
            found.push(Finding::warn(ABOUT, text, profile.by_hand));
        }
        found
    }

    fn of(&self, event: &str, file: &Path, command: &str) -> Vec<&Hook> {
        self.hooks.iter().filter(|hook| hook.is(event, file, command)).collect()
    }

    /// The worst that holds for any entry of the hook: a second one of the same command may be for other tools.
    fn asking(&self, profile: &Profile, file: &Path, command: &str) -> Finding {
        let hooks = self.of(profile.ask, file, command);
        if hooks.is_empty() {
            return self.unlisted(file);
        }
        if hooks.iter().any(|hook| !hook.is_enabled) {
            return Finding::error(
                ABOUT,
                "the hook is switched off in Codex, and every tool runs",
                "start `codex`, open `/hooks`, switch it on",
            );
        }
        let any = |trust: &str| hooks.iter().any(|hook| hook.trust == trust);
        if any("untrusted") {
            let found = "Codex does not trust the hook yet: it skips it, and every tool runs";
            return Finding::error(ABOUT, found, "start `codex`, open `/hooks`, trust the hooks");
        }
        if any("modified") {
            let found = "the hook was changed after it was trusted: Codex skips it, and every tool runs";
            return Finding::error(ABOUT, found, "start `codex`, open `/hooks`, look at the change, trust the hooks");
        }
        match hooks.iter().find(|hook| !hook.runs()) {
            Some(hook) => {
                let found =
                    format!("not checked: Codex calls the hook `{}`, which is unknown here", quoted(&hook.trust));
                Finding::skipped(ABOUT, found, profile.by_hand)
            }
            None => Finding::ok(ABOUT, "Codex says that it trusts the hook and runs it"),
        }
    }

    fn unlisted(&self, file: &Path) -> Finding {
        let why = self.faults.first().map_or_else(String::new, |fault| format!(" ({fault})"));
        let found = format!("Codex runs no hook of `{}` here, and every tool runs{why}", file.display());
        Finding::error(
            ABOUT,
            found,
            "look for `hooks = false` in config.toml and `allow_managed_hooks_only` in requirements.toml; hooks of a \
             project need a trusted project; run the doctor as the agent's user, in its directory",
        )
    }
}

impl Hook {
    fn parse(value: &Value) -> Option<Self> {
        let text = |name: &str| value.get(name)?.as_str().map(str::to_owned);
        Some(Self {
            event: text("eventName")?,
            command: text("command"),
            file: text("sourcePath")?.into(),
            is_enabled: value.get("enabled")?.as_bool()?,
            trust: text("trustStatus")?,
        })
    }

    /// Codex writes `preToolUse` here for what its settings call `PreToolUse`.
    fn is(&self, event: &str, file: &Path, command: &str) -> bool {
        let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        self.event.eq_ignore_ascii_case(event)
            && self.command.as_deref() == Some(command)
            && real(&self.file) == real(file)
    }

    fn runs(&self) -> bool {
        self.is_enabled && ["trusted", "managed"].contains(&self.trust.as_str())
    }
}

/// Asks Codex for the hooks of a directory; else why that is not known.
fn list(program: &str, dir: &Path, timeout: Duration) -> Result<Listed, String> {
    let mut server = AppServer::start(program, Instant::now() + timeout)?;
    let client = json!({"name": "stage0", "title": "stage0 guard doctor", "version": env!("CARGO_PKG_VERSION")});
    server.send(&json!({"id": INITIALIZE, "method": "initialize", "params": {"clientInfo": client}}))?;
    server.result(INITIALIZE)?;
    server.send(&json!({"method": "initialized"}))?;
    server.send(&json!({"id": LIST_HOOKS, "method": "hooks/list", "params": {"cwds": [dir]}}))?;
    let result = server.result(LIST_HOOKS)?;
    Listed::parse(&result).ok_or_else(|| "this Codex answers `hooks/list` in a form that is unknown here".to_owned())
}

/// A `codex app-server` in a process group of its own, which ends with this value.
struct AppServer {
    child: Child,
    stdin: ChildStdin,
    output: Receiver<Vec<u8>>,
    /// What was read and not yet looked at.
    rest: Vec<u8>,
    read_bytes: usize,
    until: Instant,
}

impl AppServer {
    fn start(program: &str, until: Instant) -> Result<Self, String> {
        let mut command = Command::new(program);
        command.arg("app-server").process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|error| match error.kind() {
            ErrorKind::NotFound => format!("`{program}` is not on the PATH"),
            _ => format!("`{program}` cannot be started: {error}"),
        })?;
        let streams = child.stdin.take().zip(child.stdout.take());
        let Some((stdin, mut stdout)) = streams else {
            end(&mut child);
            return Err(format!("`{program}` has no standard streams"));
        };
        let (sender, output) = sync_channel(MAX_READS);
        // It ends with the process's output, or when what it reads is no longer wanted.
        thread::spawn(move || {
            let mut buffer = vec![0; READ_BYTES];
            while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                let read = buffer.get(..count).unwrap_or_default().to_vec();
                if sender.send(read).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, stdin, output, rest: Vec::new(), read_bytes: 0, until })
    }

    /// The messages are shorter than a pipe, so this does not wait for a reader.
    fn send(&mut self, message: &Value) -> Result<(), String> {
        let sent = self.stdin.write_all(format!("{message}\n").as_bytes()).and_then(|()| self.stdin.flush());
        sent.map_err(|_| ENDED.to_owned())
    }

    /// The result of this request. Notifications and the server's own requests are passed over.
    fn result(&mut self, id: u64) -> Result<Value, String> {
        loop {
            let line = self.line()?;
            let garbage = || "`codex app-server` writes what is no message".to_owned();
            let mut message = match parse_strict(&line) {
                Ok(Value::Object(message)) => message,
                Ok(_) | Err(_) => return Err(garbage()),
            };
            if message.contains_key("method") || message.get("id") != Some(&json!(id)) {
                continue;
            }
            if let Some(error) = message.get("error") {
                return Err(refusal(error));
            }
            return message.remove("result").ok_or_else(garbage);
        }
    }

    fn line(&mut self) -> Result<Vec<u8>, String> {
        let mut searched = 0;
        loop {
            let new = self.rest.get(searched..).unwrap_or_default();
            if let Some(end) = new.iter().position(|byte| *byte == b'\n') {
                let after = self.rest.split_off(searched + end + 1);
                return Ok(std::mem::replace(&mut self.rest, after));
            }
            searched = self.rest.len();
            let left = self.until.saturating_duration_since(Instant::now());
            let read = self.output.recv_timeout(left).map_err(|error| match error {
                RecvTimeoutError::Timeout => "`codex app-server` did not answer in time".to_owned(),
                RecvTimeoutError::Disconnected => ENDED.to_owned(),
            })?;
            self.read_bytes += read.len();
            if self.read_bytes > MAX_ANSWER_BYTES {
                return Err(format!("`codex app-server` writes more than {MAX_ANSWER_BYTES} bytes"));
            }
            self.rest.extend(read);
        }
    }
}

impl Drop for AppServer {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Ends the process and what it started: the npm package's `codex` is a script with the real one below it.
fn end(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // The group may be gone already.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}

fn refusal(error: &Value) -> String {
    let message = error.get("message").and_then(Value::as_str).map(quoted).unwrap_or_default();
    match error.get("code").and_then(Value::as_i64) {
        Some(code) if UNKNOWN_METHOD.contains(&code) => {
            format!("this version of Codex does not answer `hooks/list`; update it ({message})")
        }
        _ => format!("`codex app-server` refuses to answer: {message}"),
    }
}

/// A beginning of foreign text, on one line.
fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_QUOTED_CHARS).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    plain(&shown)
}

#[cfg(test)]
mod tests;
