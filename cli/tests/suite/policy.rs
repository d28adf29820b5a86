//! `stage0 policy`: the output for pack authors, without a server.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::harness::{Ended, ended, stage0};

pub(crate) fn baseline() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/baseline")
}

/// A copy of the baseline that a test may change.
pub(crate) fn copy() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(baseline()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    dir
}

pub(crate) fn change(dir: &Path, file: &str, from: &str, to: &str) {
    let path = dir.join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{file} has no {from}");
    std::fs::write(path, text.replacen(from, to, 1)).unwrap();
}

pub(crate) fn policy(what: &str, dir: &Path) -> Ended {
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
        assert!(refused.err.contains("[effects.cedar:"), "{what}: {}", refused.err);
        assert!(refused.err.contains("forbidden (principal, action, resource)"), "{what}: {}", refused.err);
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
            refused.err.contains("[value.cedar:") && refused.err.contains("nested deeper"),
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

#[test]
fn a_fault_is_shown_where_it_stands_with_what_to_write() {
    let dir = copy();
    change(dir.path(), "effects.cedar", "@severity(", "@serverity(");
    let refused = policy("validate", dir.path());
    assert_eq!(refused.code, 1);
    let lines: Vec<&str> = refused.err.lines().collect();
    let at = lines.iter().position(|line| line.contains("│ @serverity(\"")).unwrap();
    assert!(lines[at + 1].contains("· ─") && lines[at + 1].trim_end().ends_with('─'), "{}", refused.err);
    assert!(refused.err.contains("`@serverity` is no annotation of a rule"), "{}", refused.err);

    let told = ended(stage0(&["policy", "validate", "--json"]).arg(dir.path()));
    let told: Value = serde_json::from_str(&told.out).unwrap();
    let fault = &told["faults"][0];
    assert_eq!((&fault["file"], &fault["column"]), (&Value::from("effects.cedar"), &Value::from(1)), "{fault}");
    assert!(fault["line"].as_u64().unwrap() > 1 && fault.get("help").is_some(), "{fault}");
}

#[test]
fn an_excerpt_shows_no_escape_sequences_of_the_file() {
    let dir = copy();
    change(dir.path(), "pack.toml", "name = ", "# \u{202e}\nname = \u{1b}[2J");
    let refused = policy("validate", dir.path());
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("pack.toml:") && !refused.err.contains(['\u{1b}', '\u{202e}']), "{:?}", refused.err);
}

#[test]
fn a_failing_case_shows_the_rules_that_decided() {
    let dir = copy();
    change(dir.path(), "cases.json", r#""expect": ["DENY"]"#, r#""expect": ["ALLOW"]"#);
    let failed = policy("test", dir.path());
    assert_eq!(failed.code, 1);
    assert!(failed.out.contains("\n  because   HIGH SIDE_EFFECTS_NEED_GUARDRAILS: "), "{}", failed.out);
    assert!(failed.out.contains("effects.high_without_guardrail (effects.cedar:"), "{}", failed.out);
    assert!(failed.err.contains("--case "), "{}", failed.err);
}

#[test]
fn accepting_rewrites_the_cases_that_fail_and_no_other() {
    let dir = copy();
    let before = std::fs::read_to_string(dir.path().join("cases.json")).unwrap();
    change(
        dir.path(),
        "cases.json",
        r#""expect": ["ALLOW"], "codes": []"#,
        r#""expect": ["DENY"], "codes": ["NEVER"]"#,
    );
    let accepted = ended(stage0(&["policy", "test", "--accept"]).arg(dir.path()));
    assert_eq!(accepted.code, 0, "{}", accepted.err);
    assert!(accepted.out.starts_with("FAIL ") && accepted.out.ends_with(" cases pass\n"), "{}", accepted.out);
    assert!(accepted.err.contains("accepted 1 case in "), "{}", accepted.err);
    assert_eq!(std::fs::read_to_string(dir.path().join("cases.json")).unwrap(), before);
    let again = ended(stage0(&["policy", "test", "--accept"]).arg(dir.path()));
    assert!(again.code == 0 && !again.err.contains("accepted"), "{}", again.err);
}

#[test]
fn junit_has_a_case_for_each_case_and_one_for_the_pack() {
    let (dir, out) = (copy(), tempfile::tempdir().unwrap());
    let file = out.path().join("cases.xml");
    let run = || {
        let code = ended(stage0(&["policy", "test", "--junit"]).arg(&file).arg(dir.path())).code;
        (code, std::fs::read_to_string(&file).unwrap())
    };
    let (code, good) = run();
    assert_eq!(code, 0);
    assert!(good.contains("failures=\"0\" errors=\"0\"") && good.contains("name=\"case-001\"/>"), "{good}");
    change(dir.path(), "cases.json", r#""expect": ["ALLOW"]"#, r#""expect": ["DENY"]"#);
    let (code, failed) = run();
    assert_eq!(code, 1);
    assert!(failed.contains("failures=\"1\" errors=\"0\"") && failed.contains("<failure message=\"expected DENY"));
    change(dir.path(), "effects.cedar", "forbid", "forbidden");
    let (code, refused) = run();
    assert_eq!(code, 1);
    assert!(refused.contains("tests=\"1\" failures=\"0\" errors=\"1\""), "{refused}");
}

#[test]
fn a_watch_runs_the_cases_again_after_a_change() {
    let dir = copy();
    let mut command = stage0(&["policy", "test", "--watch"]);
    let mut watch = Stopped(command.arg(dir.path()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut lines = BufReader::new(watch.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.by_ref().find(|line| !line.is_empty()).unwrap().ends_with(" cases pass"));
    change(dir.path(), "cases.json", r#""expect": ["ALLOW"]"#, r#""expect": ["DENY"]"#);
    assert!(lines.by_ref().find(|line| !line.is_empty()).unwrap().starts_with("FAIL "));
    change(dir.path(), "cases.json", r#""expect": ["DENY"]"#, r#""expect": ["ALLOW"]"#);
    assert!(lines.any(|line| line.ends_with(" cases pass")));
}

/// Ends a process with the test.
struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
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
