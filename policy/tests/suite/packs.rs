//! Packs on disk: one fault refuses the whole pack, and every fault is reported with its file and line.

use std::fs;
use std::path::Path;

use serde_json::json;
use stage0_contract::CheckRequest;
use stage0_policy::{Engine, Fault, Pack, PackSet, PackSetError};

/// A copy of the baseline that a test breaks.
pub(super) struct Broken {
    pub(super) folder: tempfile::TempDir,
}

impl Broken {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let baseline = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/baseline");
        for entry in fs::read_dir(baseline).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        Self { folder }
    }

    pub(super) fn text(&self, file: &str) -> String {
        fs::read_to_string(self.folder.path().join(file)).unwrap()
    }

    pub(super) fn write(self, file: &str, text: &str) -> Self {
        fs::write(self.folder.path().join(file), text).unwrap();
        self
    }

    /// Replaces the first occurrence and returns its line.
    pub(super) fn replace(self, file: &str, from: &str, to: &str) -> (Self, usize) {
        let text = self.text(file);
        let at = text.find(from).unwrap_or_else(|| panic!("{from:?} stands in {file}"));
        let line = text[..at].lines().count() + usize::from(text[..at].ends_with('\n') || at == 0);
        (self.write(file, &text.replacen(from, to, 1)), line)
    }

    fn without(self, file: &str) -> Self {
        fs::remove_file(self.folder.path().join(file)).unwrap();
        self
    }

    pub(super) fn faults(&self) -> Vec<Fault> {
        Pack::from_dir(self.folder.path()).expect_err("the pack is refused").faults
    }

    /// The only fault, as text.
    pub(super) fn fault(&self) -> String {
        let faults = self.faults();
        assert_eq!(faults.len(), 1, "{faults:#?}");
        faults[0].to_string()
    }
}

const RULE: &str = "forbid (principal, action, resource)\nwhen { context.goal_vague && !context.side_effects };";

#[test]
fn the_baseline_pack_on_disk_has_the_version_of_the_embedded_one() {
    let copy = Broken::new();
    let pack = Pack::from_dir(copy.folder.path()).unwrap();
    assert_eq!(pack.version(), Pack::embedded().unwrap().version());
}

#[test]
fn a_missing_file_of_a_pack_is_named() {
    for file in [
        "pack.toml",
        "schema.cedarschema",
        "vocabulary.toml",
        "effects.toml",
        "tools.toml",
        "constraints.toml",
        "codes.toml",
        "cases.json",
    ] {
        assert_eq!(Broken::new().without(file).fault(), format!("{file}: is missing"));
    }
}

#[test]
fn a_file_that_is_no_part_of_a_pack_is_refused() {
    assert_eq!(Broken::new().write("value.ceder", "").fault(), "value.ceder: is no file of a pack");
    let nested = Broken::new();
    fs::create_dir(nested.folder.path().join("old")).unwrap();
    assert_eq!(nested.fault(), "old: is no file of a pack");
}

#[test]
fn every_broken_annotation_names_file_line_and_rule() {
    let first = "value.cedar:3: value.bare_request: ";
    for (from, to, message) in [
        ("@family(\"value\")", "@family(\"Value\")", "`@family` must be"),
        ("@trigger(\"criteria_missing\")", "@trigger(\"sometimes\")", "`@trigger` must be"),
        ("@effect(\"deny\")", "@effect(\"explode\")", "`@effect` must be"),
        ("@code(\"MISSING_SUCCESS_CRITERIA\")\n", "", "`@code` is missing"),
        ("@code(\"MISSING_SUCCESS_CRITERIA\")", "@code(\"missing\")", "`@code` must be"),
        ("@severity(\"HIGH\")", "@severity(\"SEVERE\")", "`@severity` must be"),
        ("@weight(\"60\")", "@weight(\"600\")", "`@weight` must be"),
        ("@weight(\"60\")", "@wait(\"60\")", "`@wait` is no annotation"),
        ("@next_action(\"fix_request\")", "@next_action(\"panic\")", "`@next_action` must be"),
        ("@message(\"the", "@message(\"\")\n@details(\"rolle\")\n//(\"the", "`@details` must be"),
    ] {
        let faults = Broken::new().replace("value.cedar", from, to).0.faults();
        assert!(faults.iter().all(|f| f.to_string().starts_with(first)), "{faults:#?}");
        assert!(faults.iter().any(|f| f.message.starts_with(message)), "{message}: {faults:#?}");
    }
}

#[test]
fn all_faults_of_a_pack_are_reported() {
    let broken = Broken::new().replace("value.cedar", "@severity(\"HIGH\")", "@severity(\"SEVERE\")").0;
    let broken = broken.replace("loop.cedar", "@weight(\"25\")", "@weight(\"x\")").0;
    let broken = broken.replace("vocabulary.toml", "\"prod\"", "\"Prod\"").0;
    let broken = broken.replace("pack.toml", "opens = \"09:00\"", "opens = \"nine\"").0;
    let mut files: Vec<String> = broken.faults().into_iter().map(|f| f.file).collect();
    files.dedup();
    assert!(
        ["pack.toml", "vocabulary.toml", "value.cedar", "loop.cedar"].iter().all(|f| files.contains(&(*f).to_owned()))
    );
}

#[test]
fn a_rule_that_advises_is_never_of_high_severity() {
    let (broken, _) = Broken::new().replace("secrets.cedar", "@effect(\"deny\")", "@effect(\"advise\")");
    assert!(broken.fault().starts_with("secrets.cedar:3: secrets.in_request: advice is never HIGH"));
}

#[test]
fn a_rule_that_defers_must_have_a_question() {
    let (broken, _) = Broken::new().replace("value.cedar", "@question(\"What concrete", "//(\"");
    let fault = broken.fault();
    assert!(fault.contains("value.vague_goal: `@question` is missing"), "{fault}");
}

#[test]
fn two_rules_with_the_same_id_are_refused() {
    let (broken, _) = Broken::new().replace("value.cedar", "@id(\"value.no_criteria\")", "@id(\"loop.cost\")");
    let fault = broken.fault();
    assert!(fault.starts_with("value.cedar:17: loop.cost: its `@id` is taken by loop.cedar:"), "{fault}");
}

#[test]
fn a_rule_that_permits_is_refused() {
    let (broken, _) = Broken::new().replace("value.cedar", RULE, &RULE.replace("forbid", "permit"));
    assert!(broken.faults().iter().any(|f| f.message == "a rule must be a `forbid`" && f.rule.is_some()));
}

#[test]
fn a_cedar_syntax_error_is_reported_with_its_line() {
    let (broken, line) =
        Broken::new().replace("value.cedar", "when { context.goal_vague", "whenever { context.goal_vague");
    let faults = broken.faults();
    assert!(faults.iter().any(|f| f.file == "value.cedar" && f.line == Some(line)), "{line}: {faults:#?}");
}

#[test]
fn cedar_that_is_nested_too_deeply_is_reported_with_its_line() {
    for deep in ["(".repeat(20_000) + "true" + &")".repeat(20_000), "true".to_owned() + &" && true".repeat(20_000)] {
        let (broken, line) = Broken::new().replace("value.cedar", "context.goal_vague && !context.side_effects", &deep);
        let fault = broken.fault();
        assert!(
            fault.starts_with(&format!("value.cedar:{line}: "))
                && fault.contains("more than") | fault.contains("deeper")
        );
    }
    let deep = format!("    bare: {}Bool{},", "Set<".repeat(20_000), ">".repeat(20_000));
    let (broken, line) = Broken::new().replace("schema.cedarschema", "    bare: Bool,", &deep);
    assert!(broken.faults().iter().any(|f| f.file == "schema.cedarschema" && f.line == Some(line)));
}

#[test]
fn cedar_of_the_maximum_depth_is_parsed_and_validated() {
    let deep =
        "(".repeat(25) + "context.goal_vague && !context.side_effects" + &" && true".repeat(200) + &")".repeat(25);
    let (pack, _) = Broken::new().replace("value.cedar", "context.goal_vague && !context.side_effects", &deep);
    // An evaluator parses the pack again on a thread with an ordinary stack.
    Engine::new(Pack::from_dir(pack.folder.path()).unwrap()).unwrap();
}

/// The text of `count` rules that no request satisfies.
pub(super) fn many_rules(count: usize) -> String {
    let rule = |n: usize| {
        format!(
            "// {n}\n@id(\"many.r{n}\") @family(\"many\") @trigger(\"always\") @effect(\"advise\") \
             @code(\"UNCLEAR_VALUE_SIGNAL\") @about(\"goal\") @severity(\"LOW\")\n\
             @message(\"m\") @next_action(\"wait\") @weight(\"0\")\n\
             forbid (principal, action, resource) when {{ context.iteration > 1000000000 }};\n"
        )
    };
    (0..count).map(rule).collect()
}

#[test]
fn a_pack_has_a_thousand_rules_at_most() {
    let faults = Broken::new().write("many.cedar", &many_rules(10_000)).faults();
    assert_eq!(faults.len(), 1, "{faults:#?}");
    assert!(faults[0].to_string().contains(": the pack has more than 1000 rules"), "{}", faults[0]);
    // Within the limit, each rule is checked and reported with its own line.
    let faults = Broken::new().write("many.cedar", &many_rules(900)).faults();
    assert_eq!(faults.len(), 900, "{:#?}", &faults[..2]);
    assert!(faults.iter().all(|f| f.message.starts_with("no case satisfies it")), "{}", faults[0]);
    let fault = faults.iter().find(|f| f.rule.as_deref() == Some("many.r500")).unwrap();
    assert_eq!(fault.line, Some(500 * 4 + 2));
}

#[test]
fn a_pack_has_two_thousand_cases_at_most() {
    let cases: Vec<String> =
        (0..2_001).map(|n| format!(r#"{{"id": "c{n}", "expect": ["ALLOW"], "request": {{"goal": "g g"}}}}"#)).collect();
    let broken = Broken::new().without("cases-2.json");
    let fault = broken.write("cases.json", &format!("[{}]", cases.join(","))).fault();
    assert_eq!(fault, "cases.json: there are 2001 cases, and may be 2000");
}

#[test]
fn a_folder_that_is_too_large_for_a_pack_is_not_read_whole() {
    let big = Broken::new().write("big.cedar", &" ".repeat(5 << 20));
    assert!(big.fault().starts_with("big.cedar: is larger than "));
    let mut many = Broken::new();
    for n in 0..3 {
        many = many.write(&format!("{n}.cedar"), &" ".repeat(3 << 20));
    }
    assert!(many.fault().contains("has more than 8388608 bytes in all its files"));
    let mut many = Broken::new();
    for n in 0..100 {
        many = many.write(&format!("{n}.cedar"), "");
    }
    assert!(many.fault().contains("has more than 100 files"));
}

#[test]
fn strict_validation_refuses_rules_that_could_fail_when_they_are_evaluated() {
    let from = "context.goal_vague && !context.side_effects";
    for (line, to) in [
        (43, "context.role == \"admin\""),
        (43, "context.goal_vague && context.iteration == \"1\""),
        (43, "context.goal_vague && context.declared.contains(1)"),
        (31, "context.goal_vague && context.mood"),
    ] {
        let (broken, _) = Broken::new().replace("value.cedar", from, to);
        let faults = broken.faults();
        assert!(
            faults.iter().any(|f| f.file == "value.cedar"
                && f.line == Some(line)
                && f.rule.as_deref() == Some("value.vague_goal")),
            "{to}: {faults:#?}"
        );
    }
}

#[test]
fn a_schema_that_differs_from_the_fact_table_is_refused() {
    let (broken, _) = Broken::new().replace("schema.cedarschema", "approver_named: Bool", "approver_named: String");
    assert!(broken.faults().iter().any(|f| f.file == "approval.cedar"));
    let (broken, _) =
        Broken::new().replace("schema.cedarschema", "    bare: Bool,", "    bare: Bool,\n    mood: Bool,");
    assert!(broken.faults().iter().all(|f| f.file == "schema.cedarschema" && f.message.contains("mood")));
}

#[test]
fn a_pack_needs_a_case_for_every_rule_and_every_case_must_pass() {
    assert!(Broken::new().write("cases.json", "[]").faults()[0].message.starts_with("there is no case"));
    let broken = Broken::new().without("cases-2.json");
    let text = broken.text("cases.json");
    let untested: Vec<&str> = text.lines().filter(|line| !line.contains("TENANT_ISOLATION_VIOLATION")).collect();
    let fault = broken.write("cases.json", &untested.join("\n")).fault();
    assert!(fault.contains("scope.tenant_outside: no case satisfies it"), "{fault}");
    let (broken, line) = Broken::new().replace(
        "cases.json",
        r#""expect": ["ALLOW"], "codes": [], "request": {"goal": "Search for information"#,
        r#""expect": ["DENY"], "codes": ["TOOL_NOT_ALLOWED"], "request": {"goal": "Search for information"#,
    );
    let fault = broken.fault();
    assert!(fault.starts_with(&format!("cases.json:{line}: case-001: the case wants DENY")), "{fault}");
}

#[test]
fn a_case_with_unknown_or_invalid_members_is_refused() {
    for (from, to) in [
        ("\"expect\": [\"ALLOW\"]", "\"expects\": [\"ALLOW\"]"),
        ("\"expect\": [\"ALLOW\"]", "\"expect\": [\"MAYBE\"]"),
        ("\"expect\": [\"ALLOW\"]", "\"expect\": []"),
        ("\"id\": \"case-002\"", "\"id\": \"case-001\""),
        ("\"constraints\": [\"informational only\"", "\"constraints\": [\"max_retries: many\""),
    ] {
        let (broken, _) = Broken::new().replace("cases.json", from, to);
        let faults = broken.faults();
        assert!(faults[0].file == "cases.json" && faults[0].line.is_some(), "{to}: {faults:#?}");
    }
}

#[test]
fn a_trigger_that_hides_a_rule_is_refused() {
    let (broken, _) =
        Broken::new().replace("effects.cedar", "@trigger(\"high_effect\")", "@trigger(\"unknown_effect\")");
    let faults = broken.faults();
    assert!(faults.iter().any(|f| f.message.starts_with("its `@trigger` hides it") && f.line.is_some()), "{faults:#?}");
}

#[test]
fn a_folder_of_packs_loads_them_all_or_names_the_refused_one() {
    let parent = tempfile::tempdir().unwrap();
    let next = Broken::new().replace("pack.toml", "version = \"2.0.0\"", "version = \"1.2.0\"").0;
    fs::rename(next.folder.path(), parent.path().join("next")).unwrap();
    let set = PackSet::embedded().unwrap().with_dir(parent.path()).unwrap();
    assert_eq!(set.versions().len(), 2);
    fs::write(parent.path().join("next/value.cedar"), "").unwrap();
    let refused = PackSet::embedded().unwrap().with_dir(parent.path());
    assert!(matches!(refused, Err(PackSetError::Refused(folder, _)) if folder.ends_with("next")));
}

#[test]
fn a_pack_of_the_first_edition_keeps_its_verdicts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/first-edition");
    let first = Engine::new(Pack::from_dir(&folder).unwrap()).unwrap();
    let second = Engine::new(Pack::embedded().unwrap()).unwrap();
    let verdicts = |body: serde_json::Value| {
        let request = CheckRequest::parse(body).unwrap();
        [&first, &second].map(|engine| engine.decide(&request, 1_773_662_400).unwrap().verdict.as_str())
    };
    let effect = |effect: &str| {
        verdicts(json!({"goal": "Carry out the step", "success_criteria": ["x"], "side_effects": [effect],
            "context": {}}))
    };
    for word in ["none", "read_only", "writes", "file_read"] {
        assert_eq!(effect(word), ["DENY", "ALLOW"], "{word}");
    }
    assert_eq!(effect("execute: DROP TABLE users"), ["ALLOW", "DENY"]);
    assert_eq!(effect("write"), ["ALLOW", "ALLOW"]);
    assert_eq!(effect("teleport"), ["DENY", "DENY"]);
    let tool = |tool: &str| {
        verdicts(json!({"goal": "Carry out the step", "success_criteria": ["x"], "tools": [tool], "side_effects": [],
            "pro": true}))
    };
    assert_eq!(tool("mcp__shell__run_command"), ["ALLOW", "DENY"]);
    assert_eq!(tool("bash"), ["DENY", "DENY"]);
    assert_eq!(tool("delete_file"), ["ALLOW", "DENY"]);
}

#[test]
fn a_pack_of_the_first_edition_has_no_files_of_the_second() {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/first-edition")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    fs::write(folder.path().join("effects.toml"), "").unwrap();
    let faults = Pack::from_dir(folder.path()).expect_err("the pack is refused").faults;
    assert_eq!(faults.len(), 1, "{faults:#?}");
    assert_eq!(faults[0].to_string(), "effects.toml: is read for packs of `edition = 2` alone");
}

#[test]
fn a_pack_may_defer_on_an_undeclared_effect() {
    let body = json!({"goal": "Clean up", "success_criteria": ["x"], "tools": ["delete_file"], "side_effects": []});
    let request = CheckRequest::parse(body).unwrap();
    let verdict = |pack: &Path| {
        let engine = Engine::new(Pack::from_dir(pack).unwrap()).unwrap();
        let decision = engine.decide(&request, 1_773_662_400).unwrap();
        assert!(decision.issues.iter().any(|issue| issue.code.as_str() == "UNDECLARED_SIDE_EFFECT"));
        decision.verdict.as_str()
    };
    let advises = Broken::new();
    assert_eq!(verdict(advises.folder.path()), "ALLOW");
    let defers =
        Broken::new().replace("tools.toml", "undeclared_effects = \"advise\"", "undeclared_effects = \"defer\"").0;
    // The pack's own cases that expect advice would refuse it now.
    let cases = defers.text("cases.json").replace("\"expect\": [\"ALLOW\"]", "\"expect\": [\"ALLOW\", \"DEFER\"]");
    let defers = defers.write("cases.json", &cases);
    assert_eq!(verdict(defers.folder.path()), "DEFER");
    let mute = defers.replace("scope.cedar", "@question(\"Which side effects does the tool have", "//(\"").0;
    assert!(mute.fault().contains("scope.undeclared_effect: `@question` is missing"), "{}", mute.fault());
}
