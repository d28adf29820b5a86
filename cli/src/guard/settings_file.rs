//! An agent's settings file: our hooks are put in and taken out, and everything else in it stays.
//!
//! A file that is no plain JSON is not touched: what is to be written is shown instead.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde_json::{Map, Value, json};
use stage0_contract::parse_strict;
use stage0_guard::Agent;

use super::agents::{Form, Profile};
use super::command;

/// Whether a hook is one of ours for this agent.
fn is_ours(hook: &Value, agent: Agent) -> bool {
    hook.get("command").and_then(Value::as_str).is_some_and(|text| command::words(text, agent).is_some())
}

pub(super) struct SettingsFile {
    pub(super) path: PathBuf,
    /// None: there is no file.
    text: Option<String>,
}

impl SettingsFile {
    pub(super) fn read(path: PathBuf) -> anyhow::Result<Self> {
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Self { path, text: Some(text) }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self { path, text: None }),
            Err(error) => Err(error).with_context(|| format!("cannot read `{}`", path.display())),
        }
    }

    pub(super) fn exists(&self) -> bool {
        self.text.is_some()
    }

    pub(super) fn text(&self) -> &str {
        self.text.as_deref().unwrap_or_default()
    }

    /// The settings as JSON; an absent or empty file has none.
    pub(super) fn value(&self) -> anyhow::Result<Map<String, Value>> {
        let text = self.text();
        if text.trim().is_empty() {
            return Ok(Map::new());
        }
        match parse_strict(text.as_bytes()) {
            Ok(Value::Object(settings)) => Ok(settings),
            Ok(_) => bail!("`{}` is no JSON object", self.path.display()),
            Err(error) => bail!("`{}` cannot be read as JSON: {error}", self.path.display()),
        }
    }

    /// Replaces the file, or leaves it as it was. Its mode stays; a new one is the user's alone.
    pub(super) fn write(&self, text: &str) -> anyhow::Result<()> {
        let path = &self.path;
        let cannot = || format!("cannot write `{}`", path.display());
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).with_context(cannot)?;
        }
        // A link stays a link: dotfiles are often kept elsewhere. One that leads nowhere is not replaced by a file.
        let is_link = fs::symlink_metadata(path).is_ok_and(|data| data.is_symlink());
        let real = if is_link { fs::canonicalize(path).with_context(cannot)? } else { path.clone() };
        let beside = real.with_extension(format!("{}.new", std::process::id()));
        fs::write(&beside, text).with_context(cannot)?;
        if let Ok(data) = fs::metadata(&real) {
            fs::set_permissions(&beside, data.permissions()).with_context(cannot)?;
        }
        fs::rename(&beside, &real).with_context(cannot)
    }

    pub(super) fn remove(&self) -> anyhow::Result<()> {
        fs::remove_file(&self.path).with_context(|| format!("cannot remove `{}`", self.path.display()))
    }
}

/// The settings with our hooks for each event, in place of older ones of ours.
pub(super) fn with_hooks(
    settings: Map<String, Value>,
    profile: &Profile,
    command: &str,
) -> anyhow::Result<Map<String, Value>> {
    let mut settings = without_hooks(settings, profile.agent);
    if profile.form == Form::List {
        settings.entry("version").or_insert_with(|| json!(1));
    }
    let hooks = settings.entry("hooks").or_insert_with(|| json!({}));
    let Value::Object(hooks) = hooks else { bail!("`hooks` in the settings is no object") };
    for event in profile.events() {
        let entries = hooks.entry(event).or_insert_with(|| json!([]));
        let Value::Array(entries) = entries else { bail!("`hooks.{event}` in the settings is no array") };
        // First, so that it is asked before hooks that change something.
        entries.insert(0, profile.entry(event, command));
    }
    Ok(settings)
}

/// The settings without any hook of ours, and without what that leaves empty.
pub(super) fn without_hooks(mut settings: Map<String, Value>, agent: Agent) -> Map<String, Value> {
    let Some(Value::Object(hooks)) = settings.get_mut("hooks") else { return settings };
    let was_empty = hooks.is_empty();
    hooks.retain(|_, entries| {
        let Value::Array(entries) = entries else { return true };
        let before = entries.len();
        entries.retain_mut(|entry| {
            if is_ours(entry, agent) {
                return false;
            }
            let Some(Value::Array(group)) = entry.get_mut("hooks") else { return true };
            let count = group.len();
            group.retain(|hook| !is_ours(hook, agent));
            group.len() == count || !group.is_empty()
        });
        // What others left empty stays.
        entries.len() == before || !entries.is_empty()
    });
    if hooks.is_empty() && !was_empty {
        settings.remove("hooks");
    }
    settings
}

/// A hook of ours as it stands in settings.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Installed {
    pub(super) command: String,
    /// Where the entry differs from what `install` writes: the names of the members.
    pub(super) differences: Vec<String>,
}

/// Our hook of this event, if there is one.
pub(super) fn installed(settings: &Map<String, Value>, profile: &Profile, event: &str) -> Option<Installed> {
    let entries = settings.get("hooks")?.get(event)?.as_array()?;
    let (entry, hook) = entries.iter().find_map(|entry| {
        if profile.form == Form::List {
            return is_ours(entry, profile.agent).then_some((entry, entry));
        }
        let group = entry.get("hooks")?.as_array()?;
        group.iter().find(|hook| is_ours(hook, profile.agent)).map(|hook| (entry, hook))
    })?;
    let command = hook.get("command")?.as_str()?.to_owned();
    let expected = profile.entry(event, &command);
    let mut differences = Vec::new();
    if profile.form == Form::Groups {
        differences.extend(differing(&expected, entry, Some("hooks")));
        let expected = expected.get("hooks").and_then(|hooks| hooks.get(0)).cloned().unwrap_or_default();
        differences.extend(differing(&expected, hook, None));
    } else {
        differences.extend(differing(&expected, hook, None));
    }
    Some(Installed { command, differences })
}

/// The members in which two objects differ, except for one.
fn differing(expected: &Value, found: &Value, except: Option<&str>) -> Vec<String> {
    let names = |value: &Value| value.as_object().map(|members| members.keys().cloned().collect()).unwrap_or_default();
    let mut all: std::collections::BTreeSet<String> = names(expected);
    all.extend::<std::collections::BTreeSet<String>>(names(found));
    all.retain(|name| Some(name.as_str()) != except && expected.get(name) != found.get(name));
    all.into_iter().collect()
}

/// Whether a switch in the settings turns all hooks off: its name.
pub(super) fn switched_off(settings: &Map<String, Value>, profile: &Profile) -> Option<String> {
    let disabled = settings.get("hooksConfig").and_then(|config| config.get("disabled")?.as_array());
    if disabled.is_some_and(|names| names.contains(&json!("stage0"))) {
        return Some("`hooksConfig.disabled` names our hook".to_owned());
    }
    profile.off.iter().find_map(|(path, value)| {
        let (first, rest) = path.split_first()?;
        let found = rest.iter().try_fold(settings.get(*first)?, |value, name| value.get(name))?;
        (found == &json!(value)).then(|| format!("`{}` is {value}", path.join(".")))
    })
}

/// An absolute path, also of a file that is not there.
pub(super) fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot make `{}` absolute", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(program: &str, agent: Agent) -> String {
        command::written(&[program, "guard", "hook", agent.as_str()].map(str::to_owned))
    }

    fn object(value: Value) -> Map<String, Value> {
        let Value::Object(members) = value else { panic!("no object") };
        members
    }

    #[test]
    fn hooks_of_others_stay_and_ours_are_replaced_and_removed() {
        let profile = Profile::of(Agent::ClaudeCode);
        let theirs = json!({"matcher": "Bash", "hooks": [
            {"type": "command", "command": "audit --wrap 'x guard hook claude-code' && notify"}]});
        let settings = object(json!({"model": "x", "hooks": {"PreToolUse": [theirs], "Stop": []}}));
        let (old, new) = (command("/opt/stage0", Agent::ClaudeCode), command("/new/stage0", Agent::ClaudeCode));
        let once = with_hooks(settings.clone(), profile, &old).unwrap();
        let twice = with_hooks(once.clone(), profile, &new).unwrap();
        assert_eq!(twice["hooks"]["PreToolUse"].as_array().unwrap().len(), 2);
        assert_eq!(installed(&twice, profile, "PreToolUse").unwrap().command, new);
        let found = installed(&once, profile, "PreToolUse").unwrap();
        assert_eq!(found, Installed { command: old.clone(), differences: Vec::new() });
        assert!(installed(&once, Profile::of(Agent::Codex), "PreToolUse").is_none(), "another agent's");
        assert_eq!(without_hooks(twice, Agent::ClaudeCode), settings, "as it was, what is empty too");
        assert_eq!(without_hooks(with_hooks(Map::new(), profile, &old).unwrap(), Agent::ClaudeCode), Map::new());
        assert_eq!(without_hooks(settings.clone(), Agent::ClaudeCode), settings, "nothing of ours");
    }

    #[test]
    fn only_the_asking_hook_denies_when_it_crashes_and_each_agent_has_its_own_form() {
        for agent in Agent::ALL.into_iter().filter(|agent| *agent != Agent::OpenCode) {
            let profile = Profile::of(agent);
            let settings = with_hooks(Map::new(), profile, &command("/opt/stage0", agent)).unwrap();
            for event in profile.events() {
                let found = installed(&settings, profile, event).unwrap();
                assert!(found.differences.is_empty(), "{agent} {event}: {found:?}");
            }
            let asks = profile.entry(profile.ask, "x").to_string();
            let switch = asks.contains("onFailure") || asks.contains("failClosed");
            assert_eq!(switch, matches!(agent, Agent::ClaudeCode | Agent::Cursor), "{agent}");
            let reports = profile.entry(profile.others[0], "x").to_string();
            assert!(!reports.contains("onFailure") && !reports.contains("failClosed"), "{agent}");
        }
    }

    #[test]
    fn whatever_was_changed_in_our_entry_is_named() {
        let profile = Profile::of(Agent::ClaudeCode);
        let settings = with_hooks(Map::new(), profile, &command("/opt/stage0", Agent::ClaudeCode)).unwrap();
        for (pointer, value, named) in [
            ("/matcher", json!("Bash"), "matcher"),
            ("/matcher", json!(5), "matcher"),
            ("/hooks/0/type", json!("prompt"), "type"),
            ("/hooks/0/timeout", json!(0), "timeout"),
            ("/hooks/0/onFailure", json!("continue"), "onFailure"),
            ("/hooks/0/async", json!(true), "async"),
            ("/hooks/0/asyncRewake", json!(true), "asyncRewake"),
            ("/hooks/0/if", json!("Bash(git *)"), "if"),
            ("/hooks/0/once", json!(true), "once"),
            ("/onFailure", json!("block"), "onFailure"),
        ] {
            let mut changed = Value::Object(settings.clone());
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            changed.pointer_mut(&format!("/hooks/PreToolUse/0{parent}")).unwrap()[name] = value;
            let found = installed(&object(changed), profile, "PreToolUse").unwrap();
            assert_eq!(found.differences, [named], "{pointer}");
        }
    }

    #[test]
    fn a_link_stays_a_link_and_one_that_leads_nowhere_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real.json"), dir.path().join("settings.json"));
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert!(SettingsFile::read(link.clone()).unwrap().write("{}").is_err());
        fs::write(&real, "{}").unwrap();
        SettingsFile::read(link.clone()).unwrap().write("{\"a\": 1}").unwrap();
        assert_eq!(fs::read_to_string(&real).unwrap(), "{\"a\": 1}");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn a_switch_that_turns_hooks_off_is_named() {
        let off = |value, agent| switched_off(&object(value), Profile::of(agent));
        assert_eq!(off(json!({"disableAllHooks": true}), Agent::ClaudeCode).unwrap(), "`disableAllHooks` is true");
        assert_eq!(off(json!({"disableAllHooks": false}), Agent::ClaudeCode), None);
        assert!(off(json!({"hooksConfig": {"enabled": false}}), Agent::Gemini).is_some());
        assert!(off(json!({"hooksConfig": {"disabled": ["stage0"]}}), Agent::Gemini).is_some());
    }

    #[test]
    fn settings_that_are_no_object_are_refused() {
        let profile = Profile::of(Agent::Gemini);
        for broken in [json!({"hooks": []}), json!({"hooks": {"BeforeTool": {}}})] {
            assert!(with_hooks(object(broken), profile, "x").is_err());
        }
    }
}
