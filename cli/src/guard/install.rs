//! `stage0 guard install` and `uninstall`: our hook in an agent's settings.
//!
//! The command that is written holds no key: it names the file that does. INVARIANT: what cannot be guaranteed is
//! printed after installing, not left out.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::{Map, Value};
use stage0_guard::Agent;

use super::agents::{FailClosed, Form, Profile, Scope};
use super::command::{self, quoted};
use super::settings_file::{SettingsFile, absolute, with_hooks, without_hooks};
use super::{table, words};
use crate::args::guard::{AboutAgent, InstallArgs, Place};
use crate::client::{Credential, target};
use crate::dev_file::API_KEY_FILE;
use crate::out::{self, plain};
use crate::settings::client::ClientSettings;

/// The flag of a hook whose ALLOW answers the agent's own prompt.
pub(super) const GRANT: &str = "--grant-permission";
const PLUGIN: &str = include_str!("assets/opencode.js");
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);
const VERSION_INTERVAL: Duration = Duration::from_millis(20);

pub(crate) fn install(args: &InstallArgs, settings: &ClientSettings) -> anyhow::Result<()> {
    let profile = Profile::of(args.place.agent);
    // A table with a mistake in it would deny every call.
    table(args.about.table.as_deref())?;
    let doubts = args.about.table.as_deref().map(words::doubts).transpose()?.unwrap_or_default();
    let command = hook_command(profile.agent, &args.about, args.grant_permission, settings)?;
    let file = file(&args.place)?;
    if profile.form == Form::Plugin && file.exists() && !is_our_plugin(file.text()) {
        bail!("`{}` is another plugin: move it away, or name another file with --settings-file", file.path.display());
    }
    let text = match profile.form {
        Form::Plugin => plugin(&command)?,
        Form::Groups | Form::List => match file.value().and_then(|value| with_hooks(value, profile, &command)) {
            Ok(settings) => pretty(settings)?,
            Err(error) => {
                let by_hand = pretty(with_hooks(Map::new(), profile, &command)?)?;
                return Err(error.context(format!("nothing was changed; put this in by hand:\n{by_hand}")));
            }
        },
    };
    if args.dry_run {
        return Ok(out::line(format!("would write {}\n{}", file.path.display(), text.trim_end()))?);
    }
    let (had_file, had_dir) = (file.exists(), file.path.parent().is_some_and(Path::exists));
    file.write(&text)?;
    if scope(&args.place) == Scope::Managed && !had_file {
        readable_by_all(&file.path, !had_dir)?;
    }
    out::line(format!("installed  {} in {}", profile.agent, file.path.display()))?;
    if !profile.by_hand.is_empty() {
        out::line(format!("NOW        {}", profile.by_hand))?;
    }
    for warning in doubts.into_iter().chain(warnings(profile, scope(&args.place))) {
        out::line(format!("look       {}", plain(&warning)))?;
    }
    Ok(out::line(format!("next       stage0 guard doctor {}{}", profile.agent, place_flags(&args.place)))?)
}

pub(crate) fn uninstall(place: &Place) -> anyhow::Result<()> {
    let profile = Profile::of(place.agent);
    let file = file(place)?;
    if !file.exists() {
        bail!("there is no `{}`", file.path.display());
    }
    if profile.form == Form::Plugin {
        if !is_our_plugin(file.text()) {
            bail!("`{}` is not ours", file.path.display());
        }
        file.remove()?;
    } else {
        let before = file.value()?;
        let after = without_hooks(before.clone(), profile.agent);
        if after == before {
            bail!("`{}` has no hook of ours", file.path.display());
        }
        file.write(&pretty(after)?)?;
    }
    out::line(format!("uninstalled  {} from {}", profile.agent, file.path.display()))?;
    let forget = "the server will miss this guard: `stage0 guards list`, then `stage0 guards forget NAME`";
    Ok(out::line(format!("look         {forget}"))?)
}

pub(super) fn scope(place: &Place) -> Scope {
    match (place.managed, place.project) {
        (true, _) => Scope::Managed,
        (false, true) => Scope::Project,
        (false, false) => Scope::User,
    }
}

pub(super) fn place_flags(place: &Place) -> String {
    let file = place.settings_file.as_ref().map(|file| format!(" --settings-file {}", quoted(&file.to_string_lossy())));
    let scope = match scope(place) {
        Scope::Managed => " --managed",
        Scope::Project => " --project",
        Scope::User => "",
    };
    file.unwrap_or_else(|| scope.to_owned())
}

pub(super) fn home() -> anyhow::Result<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    home.context("HOME is not set: name the file with --settings-file")
}

/// The agent's settings file at this place.
pub(super) fn file(place: &Place) -> anyhow::Result<SettingsFile> {
    if let Some(file) = &place.settings_file {
        return SettingsFile::read(absolute(file)?);
    }
    let found = Profile::of(place.agent).file(scope(place), &home()?);
    let file = found.with_context(|| match place.agent {
        Agent::Codex => {
            "codex takes managed hooks from /etc/codex/requirements.toml: put the command in there by hand, as \
             docs/guards/README.md shows"
                .to_owned()
        }
        agent => format!("{agent} has no managed hooks"),
    })?;
    SettingsFile::read(absolute(&file)?)
}

/// The command that the agent will run. It names server, authority and key, so that no variable of the agent's
/// environment, which a project may set, chooses another server.
fn hook_command(
    agent: Agent,
    about: &AboutAgent,
    grant_permission: bool,
    settings: &ClientSettings,
) -> anyhow::Result<String> {
    // Whether there is a server and a key at all is better known now than at the first tool call.
    let target = target(settings, Credential::Account)?;
    let program = std::env::current_exe().context("cannot find this program")?;
    let path = |file: &Path| absolute(file).map(|file| file.display().to_string());
    let mut words = vec![program.display().to_string(), "guard".into(), "hook".into(), agent.to_string()];
    let mut flag = |name: &str, value: String| words.extend([name.to_owned(), value]);
    flag("--url", target.url.to_string());
    if let Some(ca) = &target.ca {
        flag("--ca", path(ca)?);
    }
    match (&settings.key_file, &settings.api_key) {
        (Some(file), _) => flag("--key-file", path(file)?),
        (None, Some(_)) => bail!(
            "the key is only in STAGE0_API_KEY, which an agent's hook may not have: write it into a file of mode 0600 \
             and name it with --key-file"
        ),
        (None, None) => flag("--key-file", path(&settings.data_dir.join(API_KEY_FILE))?),
    }
    if let Some(file) = &about.table {
        flag("--table", path(file)?);
    }
    let texts = [("--environment", about.environment.clone()), ("--agent-id", about.agent_id.clone())];
    let texts = texts.into_iter().chain([("--guard-id", about.guard_id.as_ref().map(ToString::to_string))]);
    for (name, value) in texts {
        if let Some(value) = value {
            flag(name, value);
        }
    }
    if grant_permission {
        words.push(GRANT.to_owned());
    }
    Ok(command::written(&words))
}

fn plugin(command: &str) -> anyhow::Result<String> {
    Ok(PLUGIN.replace("@COMMAND@", &serde_json::to_string(command)?))
}

/// Whether a file was written by us for OpenCode.
fn is_our_plugin(text: &str) -> bool {
    text.contains("stage0 guard hook opencode")
}

fn pretty(settings: Map<String, Value>) -> anyhow::Result<String> {
    Ok(format!("{}\n", serde_json::to_string_pretty(&Value::Object(settings))?))
}

/// This program writes private files; managed settings are for every user.
fn readable_by_all(path: &Path, with_directory: bool) -> anyhow::Result<()> {
    let cannot = || format!("cannot make `{}` readable", path.display());
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).with_context(cannot)?;
    let Some(dir) = path.parent().filter(|_| with_directory) else { return Ok(()) };
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).with_context(cannot)
}

/// What installing cannot promise.
pub(super) fn warnings(profile: &Profile, scope: Scope) -> Vec<String> {
    let mut warnings = Vec::new();
    let version = version(profile.program);
    match (&version, profile.fail_closed) {
        (None, _) => warnings.push(format!(
            "`{}` is not on the PATH or does not tell its version: what follows is for the newest",
            profile.program
        )),
        (Some(found), FailClosed::Switch { since: Some(since), member }) if *found < since => {
            warnings.push(format!(
                "version {} does not know `{member}` (it is there since {}): a hook that crashes, is killed or is too \
                 late lets the tool run; update the agent",
                dotted(*found),
                dotted(since)
            ));
        }
        (Some(_), _) => {}
    }
    if profile.fail_closed == FailClosed::Never {
        warnings.push("this agent has no switch that makes a crashed or killed hook deny".to_owned());
    }
    if scope != Scope::Managed && matches!(profile.agent, Agent::ClaudeCode | Agent::Gemini | Agent::Cursor) {
        warnings.push("who uses the agent can take the hook out again; --managed is for the whole machine".to_owned());
    }
    warnings.extend(profile.not_covered.iter().map(|text| format!("not covered: {text}")));
    warnings
}

pub(super) fn dotted(version: [u64; 3]) -> String {
    version.map(|part| part.to_string()).join(".")
}

/// What the program says of its version: the first three numbers with dots between them.
pub(super) fn version(program: &str) -> Option<[u64; 3]> {
    let mut child = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let until = Instant::now() + VERSION_TIMEOUT;
    while child.try_wait().ok()?.is_none() {
        if Instant::now() >= until {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        thread::sleep(VERSION_INTERVAL);
    }
    let said = child.wait_with_output().ok()?.stdout;
    parse_version(&String::from_utf8_lossy(&said))
}

fn parse_version(text: &str) -> Option<[u64; 3]> {
    text.split(|c: char| !(c.is_ascii_digit() || c == '.')).find_map(|word| {
        let parts: Vec<u64> = word.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
        parts.try_into().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_found_among_words() {
        assert_eq!(parse_version("2.1.332 (Claude Code)"), Some([2, 1, 332]));
        assert_eq!(parse_version("codex-cli 0.169.0\n"), Some([0, 169, 0]));
        for none in ["", "claude", "1.2", "1.2.3.4", "v"] {
            assert_eq!(parse_version(none), None, "{none}");
        }
        assert!(version("no-such-program-anywhere").is_none());
    }

    #[test]
    fn a_plugin_holds_the_command_as_a_text_of_its_language() {
        let plugin = plugin("'/my \"dir\"/stage0' guard hook opencode").unwrap();
        assert!(plugin.contains(r#"= /* stage0 guard hook opencode */ "'/my \"dir\"/stage0' guard hook opencode";"#));
        assert!(!plugin.contains("@COMMAND@"));
    }

    #[test]
    fn what_an_agent_cannot_promise_is_said() {
        let said = |agent, scope| warnings(Profile::of(agent), scope).join("\n");
        assert!(said(Agent::Codex, Scope::User).contains("no switch"));
        assert!(said(Agent::Codex, Scope::User).contains("not trusted"));
        assert!(said(Agent::ClaudeCode, Scope::User).contains("--managed"));
        assert!(!said(Agent::ClaudeCode, Scope::Managed).contains("--managed is for"));
    }
}
