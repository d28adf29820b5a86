//! Whether a policy knows the effects of a user's table: a misspelt one counts as unknown, and so as high.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use serde_json::json;
use stage0_contract::CheckRequest;
use stage0_guard::{NamedEffect, Table};
use stage0_policy::{Engine, Pack};

/// What the built-in policy says of an effect that it does not know.
const NOT_KNOWN: &str = "UNKNOWN_SIDE_EFFECT";
/// Words of the guard itself that the policy counts as high without knowing them. Tables name them on purpose.
const KNOWN_TO_THE_GUARD: [&str; 2] = ["unknown", "read: credentials"];

/// The effects that the built-in policy does not know, one sentence each. A pack of one's own may know more, so they
/// are no mistake for certain.
pub(super) fn doubts(file: &Path) -> anyhow::Result<Vec<String>> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read `{}`", file.display()))?;
    let named = Table::named_effects(&file.display().to_string(), &text)?;
    if named.is_empty() {
        return Ok(Vec::new());
    }
    let engine = Engine::new(Pack::embedded()?)?;
    Ok(named.iter().filter_map(|named| doubt(&engine, named)).collect())
}

fn doubt(engine: &Engine, named: &NamedEffect) -> Option<String> {
    let NamedEffect { of, effect } = named;
    if KNOWN_TO_THE_GUARD.contains(&effect.trim()) {
        return None;
    }
    let action = json!({"goal": "Run the tool", "success_criteria": ["it ends"], "side_effects": [effect]});
    let request = CheckRequest::parse(action);
    let Some(decision) = request.ok().and_then(|request| engine.decide(&request, 0).ok()) else {
        return Some(format!("the effect `{effect}` of {of} cannot stand in a check"));
    };
    let issue = decision.issues.iter().find(|issue| issue.code.as_str() == NOT_KNOWN)?;
    let near = issue.details.get("did_you_mean").and_then(|words| words.get(0)).and_then(|word| word.as_str());
    let near = near.map(|near| format!(": did you mean `{near}`?")).unwrap_or_default();
    Some(format!("the built-in policy does not know the effect `{effect}` of {of}, and counts it as unknown{near}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> anyhow::Result<Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("rules.toml");
        fs::write(&file, text).unwrap();
        doubts(&file)
    }

    fn tool(effect: &str) -> String {
        format!("[[tool]]\nnames = [\"A\"]\neffects = [\"read\", \"{effect}\"]")
    }

    #[test]
    fn a_misspelt_effect_is_told_with_the_nearest_word() {
        for (word, near) in [
            ("external_notificaton", "external_notification"),
            ("delte", "delete"),
            ("code_modificaton", "code_modification"),
            ("permision_change", "permission_change"),
        ] {
            let found = found(&tool(word)).unwrap();
            let wanted = format!("`{word}` of the tool `A`, and counts it as unknown: did you mean `{near}`?");
            assert!(found.len() == 1 && found[0].ends_with(&wanted), "{found:?}");
        }
        let far = found(&tool("frobnicate")).unwrap();
        assert!(far.len() == 1 && !far[0].contains("did you mean"), "{far:?}");
        let option = "[[command]]\nrun = [\"x\"]\neffects = [\"read\"]\noptions = { \"--all\" = [\"delte\"] }";
        assert!(found(option).unwrap()[0].contains("of the command `x`"));
    }

    #[test]
    fn words_that_the_policy_or_the_guard_itself_knows_are_left_alone() {
        for word in [
            "unknown",
            "external_notification",
            "External Notification",
            "read: credentials",
            "filesystem_modification",
            "deploy",
            "privilege_escalation",
            "external_api",
            "overwrite",
            "download",
        ] {
            assert_eq!(found(&tool(word)).unwrap(), Vec::<String>::new(), "{word}");
        }
        assert!(found("").unwrap().is_empty());
    }

    #[test]
    fn a_file_with_a_mistake_in_its_form_or_none_at_all_is_refused() {
        assert!(found("[[tool]]\nnames = [\"mcp__crm__update\"]\neffects = [\"read\"]").is_err());
        assert!(doubts(Path::new("/no/such.toml")).unwrap_err().to_string().contains("/no/such.toml"));
    }
}
