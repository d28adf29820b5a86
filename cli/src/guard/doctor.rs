//! `stage0 guard doctor`: whether the hook that an agent has really denies.
//!
//! It takes the command out of the agent's own settings and runs it as the agent does, with an event that must be
//! denied by a decision, and with events that nothing can decide. It changes nothing in the agent's settings.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use serde_json::{Map, Value, json};
use stage0_guard::{Agent, MUST_DENY_TOOL};

use super::agents::{AGENT_TIMEOUT_SECONDS, Form, Profile, Scope};
use super::codex_trust;
use super::command;
use super::install::{GRANT, dotted, file, home, place_flags, scope, version, warnings};
use super::settings_file::{Installed, SettingsFile, installed, switched_off};
use super::words;
use crate::args::guard::DoctorArgs;
use crate::doctor::{Finding, report};
use crate::exit::Exit;

/// Longer than any deadline of a hook that `install` writes.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);
const PROBE_INTERVAL: Duration = Duration::from_millis(10);

pub(crate) fn run(args: &DoctorArgs) -> anyhow::Result<Exit> {
    let profile = Profile::of(args.place.agent);
    let mut findings = vec![agent_version(profile)];
    let file = file(&args.place)?;
    let install = format!("stage0 guard install {}{}", profile.agent, place_flags(&args.place));
    match hooks(profile, &file) {
        Ok(Some((command, found))) => {
            findings.extend(found);
            findings.extend(judged(profile.agent, &command));
            findings.extend(other_layers(profile));
            if profile.agent == Agent::Codex {
                findings.extend(codex_trust::findings(profile, &file.path, &command));
            }
            findings.push(asks_the_server(profile.agent, &command));
            findings.extend(fails_closed(profile.agent, &command));
        }
        Ok(None) => {
            findings.push(Finding::error(
                "settings",
                format!("`{}` has no hook of ours", file.path.display()),
                install,
            ));
        }
        Err(error) => findings.push(Finding::error("settings", format!("{error:#}"), install)),
    }
    for warning in warnings(profile, scope(&args.place)) {
        findings.push(Finding::warn("limits", warning, ""));
    }
    Ok(report(&json!(profile.agent.as_str()), &findings, args.json))
}

fn agent_version(profile: &Profile) -> Finding {
    match version(profile.program) {
        Some(found) => Finding::ok("agent", format!("{} {}", profile.agent, dotted(found))),
        None => {
            let found = format!("`{}` is not on the PATH, or does not tell its version", profile.program);
            Finding::warn("agent", found, "run the doctor as the user who runs the agent")
        }
    }
}

/// The command of the hook that asks, and what is to say about the settings.
fn hooks(profile: &Profile, file: &SettingsFile) -> anyhow::Result<Option<(String, Vec<Finding>)>> {
    if !file.exists() {
        return Ok(None);
    }
    if profile.form == Form::Plugin {
        let command = plugin_command(file.text());
        let finding = Finding::ok("settings", format!("the plugin `{}`", file.path.display()));
        return Ok(command.map(|command| (command, vec![finding])));
    }
    let settings = file.value()?;
    let Some(asks) = installed(&settings, profile, profile.ask) else { return Ok(None) };
    let mut findings = vec![Finding::ok("settings", format!("`{}` asks at {}", file.path.display(), profile.ask))];
    findings.extend(doubts(profile, &settings, &asks));
    for event in profile.others {
        if installed(&settings, profile, event).is_none() {
            let found = format!("no hook at {event}: outcomes and sessions are not seen");
            findings.push(Finding::warn("settings", found, "install again"));
        }
    }
    Ok(Some((asks.command, findings)))
}

fn doubts(profile: &Profile, settings: &Map<String, Value>, asks: &Installed) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(switch) = switched_off(settings, profile) {
        findings.push(Finding::error("settings", format!("{switch}: no hook runs, and every tool does"), "remove it"));
    }
    for member in &asks.differences {
        let found = format!("`{member}` of the hook is not what was installed: it may not run, or not be waited for");
        findings.push(Finding::error("settings", found, "install again"));
    }
    findings
}

/// Switches in the agent's other settings files, which hold as well.
fn other_layers(profile: &Profile) -> Vec<Finding> {
    let Ok(home) = home() else { return Vec::new() };
    let mut files: Vec<PathBuf> =
        [Scope::User, Scope::Managed, Scope::Project].iter().filter_map(|scope| profile.file(*scope, &home)).collect();
    if profile.agent == Agent::ClaudeCode {
        files.push(".claude/settings.local.json".into());
    }
    let off = files.into_iter().filter_map(|path| {
        let settings = SettingsFile::read(path).ok()?;
        let switch = switched_off(&settings.value().ok()?, profile)?;
        Some(Finding::error("settings", format!("{switch} in `{}`", settings.path.display()), "remove it"))
    });
    if profile.form == Form::Plugin { Vec::new() } else { off.collect() }
}

/// The words of the command: which program and files it trusts, and what was asked for when it was installed.
fn judged(agent: Agent, command: &str) -> Vec<Finding> {
    let Some(words) = command::words(command, agent) else {
        return vec![Finding::error("command", "is not as it was installed: what it does is unknown", "install again")];
    };
    let mut findings = Vec::new();
    let program = words.first().map(Path::new);
    if program.is_none_or(|program| !program.is_absolute()) {
        findings.push(Finding::error("command", "names its program by a relative path", "install again"));
    }
    let files = ["--key-file", "--ca", "--table"].iter().filter_map(|name| command::flag(&words, name).map(Path::new));
    for file in program.into_iter().chain(files) {
        findings.extend(writable_by_others(file));
    }
    findings.extend(command::flag(&words, "--table").map(Path::new).into_iter().flat_map(of_table));
    let deadline = command::flag(&words, "--deadline").and_then(|text| text.parse::<f64>().ok());
    if deadline.is_some_and(|seconds| seconds >= AGENT_TIMEOUT_SECONDS as f64) {
        let found = format!("--deadline is not below the {AGENT_TIMEOUT_SECONDS} s that the agent waits");
        findings.push(Finding::error("command", found, "install again"));
    }
    if words.iter().any(|word| word == GRANT) {
        let found = format!("{GRANT}: an ALLOW of the server replaces the agent's own prompt");
        findings.push(Finding::warn("command", found, ""));
    }
    findings
}

/// The user's table: whether it can be read, and whether a policy knows its words.
fn of_table(file: &Path) -> Vec<Finding> {
    match words::doubts(file) {
        Ok(doubts) => doubts.into_iter().map(|doubt| Finding::warn("table", doubt, "correct the word")).collect(),
        Err(error) => {
            vec![Finding::error("table", format!("{error:#}"), "correct it: until then every tool call is denied")]
        }
    }
}

/// A file that another user can replace, by its own mode or that of its directory.
fn writable_by_others(file: &Path) -> Option<Finding> {
    const STICKY: u32 = 0o1000;
    let mode = |path: &Path| fs::metadata(path).map(|data| data.permissions().mode());
    let shown = file.display();
    match mode(file) {
        Err(error) => {
            Some(Finding::error("command", format!("`{shown}` cannot be examined: {error}"), "install again"))
        }
        Ok(own) => {
            let dir = file.parent().and_then(|dir| mode(dir).ok()).unwrap_or_default();
            let is_open = own & 0o022 != 0 || (dir & 0o022 != 0 && dir & STICKY == 0);
            let advice = "take the right to write from group and others, for the file and its directory";
            is_open.then(|| Finding::warn("command", format!("other users can replace `{shown}`"), advice))
        }
    }
}

/// The command in a plugin of ours.
fn plugin_command(text: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix("const COMMAND = /* stage0 guard hook opencode */ "))?;
    serde_json::from_str(line.strip_suffix(';')?).ok()
}

/// A call that no policy allows: the answer must be a decision of the server, and no.
fn asks_the_server(agent: Agent, command: &str) -> Finding {
    let event = probe_event(agent);
    let output = match run_hook(command, event.to_string().as_bytes(), None) {
        Ok(output) => output,
        Err(error) => return Finding::error("must deny", format!("{error:#}"), "install again"),
    };
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let said = said.trim();
    if !denies(&output) {
        let found = format!("the hook ended with {} and did not deny: {said}", code(&output));
        return Finding::error("must deny", found, "install again; no tool call is guarded");
    }
    if said.contains("[request ") {
        return Finding::ok("must deny", "the server denied the probe, and the hook said so in the agent's form");
    }
    let advice =
        "every tool call is denied until this is mended: start the server, or correct URL, key and certificate";
    Finding::error("must deny", format!("it denied, but without a decision: {said}"), advice)
}

/// What nothing can decide, as the agent could send it or as the machine could be.
fn fails_closed(agent: Agent, command: &str) -> Vec<Finding> {
    let gone = tempfile_dir();
    let event = probe_event(agent).to_string();
    let mut cases: Vec<(&'static str, Vec<u8>, Option<&Path>)> = vec![
        ("an empty event", Vec::new(), None),
        ("an event that breaks off", event.as_bytes().get(..event.len() / 2).unwrap_or_default().to_vec(), None),
    ];
    if let Ok(dir) = &gone {
        cases.push(("a deleted working directory", event.into_bytes(), Some(dir)));
    }
    let findings = cases.into_iter().map(|(name, input, dir)| match run_hook(command, &input, dir) {
        Ok(output) if denies(&output) => Finding::ok("fail closed", format!("{name} is denied")),
        Ok(output) => {
            let found = format!("{name} ended with {} and was not denied", code(&output));
            Finding::error("fail closed", found, "install again")
        }
        Err(error) => Finding::error("fail closed", format!("{name}: {error:#}"), "install again"),
    });
    let findings = findings.collect();
    if let Ok(dir) = gone {
        let _ = fs::remove_dir_all(dir);
    }
    findings
}

fn tempfile_dir() -> anyhow::Result<std::path::PathBuf> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| anyhow!("no randomness: {error}"))?;
    let dir = std::env::temp_dir().join(format!("stage0-doctor-{}", data_encoding::HEXLOWER.encode(&random)));
    fs::create_dir(&dir).with_context(|| format!("cannot create `{}`", dir.display()))?;
    Ok(dir)
}

/// An event about the tool that the hook asks about so that every policy denies it.
fn probe_event(agent: Agent) -> Value {
    let cwd = std::env::temp_dir().display().to_string();
    let common = |event: &str| {
        json!({"hook_event_name": event, "session_id": "stage0-doctor", "cwd": cwd, "tool_name": MUST_DENY_TOOL,
            "tool_input": {}})
    };
    match agent {
        Agent::ClaudeCode | Agent::Codex => common("PreToolUse"),
        Agent::Gemini => common("BeforeTool"),
        Agent::Cursor => common("preToolUse"),
        Agent::OpenCode => json!({"hook_event_name": "tool.execute.before", "tool": MUST_DENY_TOOL,
            "sessionID": "stage0-doctor", "args": {}, "directory": cwd}),
    }
}

/// Whether the agent takes this for a denial. Our hook denies by exit code and by text, which every agent understands.
fn denies(output: &Output) -> bool {
    output.status.code() == Some(2) && !String::from_utf8_lossy(&output.stderr).trim().is_empty()
}

fn code(output: &Output) -> String {
    output.status.code().map_or_else(|| "a signal".to_owned(), |code| format!("code {code}"))
}

/// Runs the command as agents do: by the shell, with the event on standard input. `gone` is removed once it runs.
fn run_hook(command: &str, input: &[u8], gone: Option<&Path>) -> anyhow::Result<Output> {
    let mut shell = Command::new("/bin/sh");
    // The directory is removed before the command itself starts.
    let line = if gone.is_some() { format!("rmdir \"$PWD\" && {command}") } else { command.to_owned() };
    shell.args(["-c", &line]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(dir) = gone {
        shell.current_dir(dir);
    }
    let mut child = shell.spawn().context("cannot start a shell")?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook that does not read all of it is judged by its answer.
        let _ = stdin.write_all(input);
    }
    ended(child)
}

fn ended(mut child: Child) -> anyhow::Result<Output> {
    let until = Instant::now() + PROBE_TIMEOUT;
    while child.try_wait().context("cannot wait for the hook")?.is_none() {
        if Instant::now() >= until {
            let _ = child.kill();
            let _ = child.wait();
            return Err(anyhow!("the hook did not end within {} s", PROBE_TIMEOUT.as_secs()));
        }
        thread::sleep(PROBE_INTERVAL);
    }
    child.wait_with_output().context("the hook's answer cannot be read")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exit_code_2_with_a_text_counts_as_a_denial() {
        let denied = |script: &str| denies(&run_hook(script, b"{}", None).unwrap());
        assert!(denied("echo no >&2; exit 2"));
        assert!(!denied("exit 2"), "codex runs the tool without a text");
        for other in ["true", "echo no >&2; exit 1", "echo no >&2", r#"echo '{"decision":"deny"}'"#, "kill -9 $$"] {
            assert!(!denied(other), "{other}");
        }
    }

    #[test]
    fn a_command_that_is_not_as_it_was_installed_or_trusts_what_others_can_write_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("stage0");
        fs::write(&program, "").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let words = |more: &[&str]| {
            let words = [program.to_str().unwrap(), "guard", "hook", "codex"].into_iter().chain(more.iter().copied());
            command::written(&words.map(str::to_owned).collect::<Vec<_>>())
        };
        assert!(judged(Agent::Codex, &words(&[])).is_empty());
        let found = |command: &str| judged(Agent::Codex, command).iter().map(ToString::to_string).collect::<String>();
        assert!(found(&format!("{} || true", words(&[]))).starts_with("BAD"));
        assert!(found(&words(&["--deadline", "60"])).contains("--deadline is not below"));
        assert!(found(&words(&[GRANT])).contains("replaces the agent's own prompt"));
        assert!(found(&words(&["--key-file", "/no/such.key"])).contains("cannot be examined"));
        fs::set_permissions(&program, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(found(&words(&[])).contains("other users can replace"));
    }

    #[test]
    fn a_misspelt_effect_of_the_table_is_doubted_and_a_mistake_in_its_form_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let table = dir.path().join("rules.toml");
        let judged = |text: &str| {
            fs::write(&table, text).unwrap();
            of_table(&table).iter().map(ToString::to_string).collect::<String>()
        };
        let misspelt = judged("[[tool]]\nnames = [\"A\"]\neffects = [\"delte\"]");
        assert!(misspelt.starts_with("look") && misspelt.contains("did you mean `delete`"), "{misspelt}");
        let never = judged("[[tool]]\nnames = [\"mcp__crm__x\"]\neffects = [\"delete\"]");
        assert!(never.starts_with("BAD") && never.contains("write [[mcp]] with"), "{never}");
        assert_eq!(judged("[[tool]]\nnames = [\"A\"]\neffects = [\"delete\"]"), "");
    }

    #[test]
    fn a_hook_that_is_not_there_and_one_that_cannot_be_executed_are_found() {
        for command in ["/no/such/stage0 guard hook claude-code", "/etc/passwd guard hook claude-code"] {
            let finding = asks_the_server(Agent::ClaudeCode, command).to_string();
            assert!(finding.contains("did not deny"), "{finding}");
            assert!(fails_closed(Agent::ClaudeCode, command).iter().all(|f| f.to_string().starts_with("BAD")));
        }
    }

    #[test]
    fn a_denial_without_a_decision_is_no_success() {
        let finding = asks_the_server(Agent::Codex, "echo 'the server cannot be reached' >&2; exit 2").to_string();
        assert!(finding.contains("without a decision"), "{finding}");
        let good = asks_the_server(Agent::Codex, "echo 'DENIED [request 1]' >&2; exit 2").to_string();
        assert!(good.starts_with("ok"), "{good}");
    }

    #[test]
    fn the_command_of_the_plugin_is_found_again() {
        let text = include_str!("assets/opencode.js").replace("@COMMAND@", r#""a \"b\" guard hook opencode""#);
        assert_eq!(plugin_command(&text).as_deref(), Some(r#"a "b" guard hook opencode"#));
        assert_eq!(plugin_command("x"), None);
    }
}
