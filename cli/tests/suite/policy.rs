//! `stage0 policy`: the output for pack authors, without a server.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::{Ended, ended, run_with_input, stage0};

fn baseline() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/baseline")
}

/// A copy of the baseline that a test may change.
fn copy() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(baseline()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    dir
}

fn change(dir: &Path, file: &str, from: &str, to: &str) {
    let path = dir.join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{file} has no {from}");
    std::fs::write(path, text.replacen(from, to, 1)).unwrap();
}

fn policy(what: &str, dir: &Path) -> Ended {
    ended(stage0(&["policy", what]).arg(dir))
}

#[test]
fn a_good_pack_is_valid_and_its_cases_pass() {
    let valid = policy("validate", &baseline());
    assert_eq!(valid.code, 0, "{}", valid.err);
    assert!(valid.out.starts_with("baseline@") && valid.out.contains(" is valid: "), "{}", valid.out);
    let tested = policy("test", &baseline());
    assert_eq!(tested.code, 0, "{}", tested.err);
    assert!(tested.out.starts_with("all ") && tested.out.ends_with(" cases pass\n"), "{}", tested.out);
}

#[test]
fn a_broken_pack_is_refused_with_file_and_line() {
    let dir = copy();
    change(dir.path(), "effects.cedar", "forbid", "forbidden");
    for what in ["validate", "test"] {
        let refused = policy(what, dir.path());
        assert_eq!((refused.code, refused.out.as_str()), (1, ""), "{what}");
        assert!(refused.err.contains("effects.cedar:"), "{what}: {}", refused.err);
    }
    let missing = policy("validate", &dir.path().join("nowhere"));
    assert_eq!(missing.code, 1);
}

#[test]
fn a_pack_that_is_nested_too_deep_is_refused() {
    let dir = copy();
    let deep = format!("{}context.goal_vague{} &&", "(".repeat(20_000), ")".repeat(20_000));
    change(dir.path(), "value.cedar", "context.goal_vague &&", &deep);
    for what in ["validate", "test"] {
        let refused = policy(what, dir.path());
        assert_eq!(refused.code, 1, "{what}: {}", refused.err);
        assert!(
            refused.err.contains("value.cedar:") && refused.err.contains("nested deeper"),
            "{what}: {}",
            refused.err
        );
    }
}

#[test]
fn policy_test_refuses_what_validate_refuses() {
    let dir = copy();
    let path = dir.path().join("value.cedar");
    let text = std::fs::read_to_string(&path).unwrap();
    let first = text.find("@id(\"").unwrap();
    let end = first + text[first..].find(';').unwrap() + 1;
    let copied = text[first..end].replacen("@id(\"", "@id(\"untested.", 1).replacen(
        "when {",
        "when { context.iteration == 123456 &&",
        1,
    );
    std::fs::write(&path, format!("{text}\n{copied}\n")).unwrap();
    let (validated, tested) = (policy("validate", dir.path()), policy("test", dir.path()));
    assert_eq!((validated.code, tested.code), (1, 1), "{}{}", validated.err, tested.err);
    for told in [&validated.err, &tested.err] {
        assert!(told.contains("value.cedar:") && told.contains("an untested rule is no rule"), "{told}");
    }
    assert!(tested.err.contains("0 of ") && !tested.out.contains("cases pass"), "{}{}", tested.out, tested.err);

    let told = |what| {
        let ended = ended(stage0(&["policy", what, "--json"]).arg(dir.path()));
        assert_eq!(ended.code, 1);
        serde_json::from_str::<Value>(&ended.out).unwrap()
    };
    assert_eq!(told("validate")["valid"], false);
    assert_eq!((&told("test")["passed"], told("test")["faults"].as_array().unwrap().len()), (&Value::Bool(false), 1));
    let good = ended(stage0(&["policy", "test", "--json"]).arg(baseline()));
    assert_eq!(serde_json::from_str::<Value>(&good.out).unwrap()["passed"], true);
}

#[test]
fn a_failing_case_shows_the_expected_and_the_actual_result() {
    let dir = copy();
    change(dir.path(), "cases.json", r#""expect": ["ALLOW"]"#, r#""expect": ["DENY"]"#);
    let failed = policy("test", dir.path());
    assert_eq!(failed.code, 1);
    assert!(failed.out.contains("FAIL ") && failed.out.contains("  expected  DENY"), "{}", failed.out);
    assert!(failed.out.contains("  actual    ALLOW"), "{}", failed.out);
    assert!(failed.err.contains("1 of "), "{}", failed.err);
}

const DEPLOY: &str = r#"{"goal": "Deploy the hotfix", "success_criteria": ["it runs"], "side_effects": ["deploy"],
    "constraints": ["mfa_required"], "context": {"mfa_verified": true}}"#;

#[test]
fn an_explanation_shows_facts_rules_and_verdict() {
    let told = run_with_input(&mut stage0(&["policy", "explain", "baseline", "-"]), DEPLOY);
    assert_eq!(told.code, 0, "{}", told.err);
    assert!(told.out.starts_with("DENY (NO_GO)"), "{}", told.out);
    for part in ["SIDE_EFFECTS_NEED_GUARDRAILS", "Facts\n", "Rules that matched", "Rules that did not match"] {
        assert!(told.out.contains(part), "{part}: {}", told.out);
    }
    let mut command = stage0(&["policy", "explain"]);
    let same = run_with_input(command.arg(baseline()).args(["-", "--json"]), DEPLOY);
    assert_eq!(same.code, 0, "{}", same.err);
    let told: Value = serde_json::from_str(&same.out).unwrap();
    assert_eq!(told["decision"]["verdict"], "DENY");
}

#[test]
fn an_invalid_action_is_not_explained() {
    let told = run_with_input(&mut stage0(&["policy", "explain", "baseline", "-"]), r#"{"goal": " ", "tools": 7}"#);
    assert_eq!((told.code, told.out.as_str()), (1, ""));
    assert!(told.err.contains("goal") && told.err.contains("tools"), "{}", told.err);
}

#[test]
fn the_vocabulary_page_shows_the_words_of_the_baseline() {
    let shown = std::fs::read_to_string(baseline().join("../../docs/vocabulary.md")).unwrap();
    let printed = ended(&mut stage0(&["policy", "vocabulary", "--markdown"]));
    assert_eq!(printed.code, 0, "{}", printed.err);
    assert!(shown == printed.out, "run `stage0 policy vocabulary --markdown > docs/vocabulary.md`");
    let json = ended(stage0(&["policy", "vocabulary", "--json"]).arg(baseline()));
    let words: Value = serde_json::from_str(&json.out).unwrap();
    for member in ["edition", "classes", "sensitive_tools", "constraint_forms", "context", "codes", "side_effects"] {
        assert!(words.get(member).is_some(), "{member}");
    }
    assert!(words["codes"].as_array().unwrap().iter().all(|code| code["meaning"].is_string()));
}
