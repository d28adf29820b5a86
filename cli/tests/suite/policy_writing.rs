//! `stage0 policy new`, `fmt`, `lint`, `explain` and `facts`: what an author of a pack does with them.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::harness::{Ended, ended, run, run_with_input, stage0};
use crate::policy::{baseline, change, copy, policy};

/// A new pack in a folder of its own.
pub(crate) fn new_pack() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let pack = dir.path().join("acme");
    let made = policy("new", &pack);
    assert_eq!(made.code, 0, "{}", made.err);
    (dir, pack)
}

fn with(arguments: &[&str], dir: &Path) -> Ended {
    ended(stage0(&["policy"]).args(arguments).arg(dir))
}

#[test]
fn a_new_pack_passes_its_cases_and_every_check() {
    let (_dir, pack) = new_pack();
    let tested = policy("test", &pack);
    assert_eq!((tested.code, tested.err.as_str()), (0, ""), "{}", tested.out);
    for arguments in [&["lint"][..], &["fmt", "--check"], &["validate"]] {
        let checked = with(arguments, &pack);
        assert_eq!(checked.code, 0, "{arguments:?}: {}{}", checked.out, checked.err);
    }
    let valid = policy("validate", &pack);
    assert!(valid.out.starts_with("acme@0.1.0+"), "{}", valid.out);
}

#[test]
fn a_new_pack_has_the_name_that_it_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let pack = dir.path().join("Überwachung");
    let refused = policy("new", &pack);
    assert_eq!((refused.code, pack.exists()), (1, false), "{}", refused.out);
    assert!(refused.err.contains("--name"), "{}", refused.err);
    let made = ended(stage0(&["policy", "new", "--name", "watch", "--json"]).arg(&pack));
    assert_eq!(made.code, 0, "{}", made.err);
    let made: Value = serde_json::from_str(&made.out).unwrap();
    assert!(made["version"].as_str().unwrap().starts_with("watch@0.1.0+"), "{made}");
}

#[test]
fn a_folder_that_is_not_empty_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    let refused = ended(stage0(&["policy", "new", "--name", "acme"]).arg(dir.path()));
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("is not empty"), "{}", refused.err);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn every_template_is_a_pack_to_start_from() {
    let dir = tempfile::tempdir().unwrap();
    let unknown = ended(stage0(&["policy", "new", "--template", "nothing"]).arg(dir.path().join("a")));
    assert_eq!(unknown.code, 1);
    let names = unknown.err.rsplit("there are ").next().unwrap().trim().to_owned();
    assert!(names.contains("coding-agent"), "{}", unknown.err);
    for name in names.split(", ") {
        let pack = dir.path().join(format!("my-{name}"));
        let made = ended(stage0(&["policy", "new", "--template", name]).arg(&pack));
        assert_eq!(made.code, 0, "{name}: {}", made.err);
        let tested = policy("test", &pack);
        assert_eq!(tested.code, 0, "{name}: {}{}", tested.out, tested.err);
        let manifest = fs::read_to_string(pack.join("pack.toml")).unwrap();
        assert!(
            manifest.contains(&format!("name = \"my-{name}\"")) && manifest.contains("version = \"0.1.0\""),
            "{manifest}"
        );
    }
}

#[test]
fn formatting_changes_the_form_and_nothing_else() {
    let (_dir, pack) = new_pack();
    let read = |file: &str| fs::read_to_string(pack.join(file)).unwrap();
    let (rules, cases) = (read("rules.cedar"), read("cases.json"));
    change(&pack, "rules.cedar", "forbid (principal, action, resource)\n", "forbid( principal,action,\n\n  resource )");
    change(&pack, "cases.json", "\"expect\": [", "\"expect\":\n   [ ");
    let untidy = read("rules.cedar");
    let checked = with(&["fmt", "--check"], &pack);
    assert_eq!(checked.code, 1, "{}", checked.out);
    assert!(checked.out.contains("would change") && checked.err.contains("stage0 policy fmt"), "{}", checked.err);
    assert_eq!(read("rules.cedar"), untidy, "a check writes nothing");
    let formatted = with(&["fmt"], &pack);
    assert_eq!(formatted.code, 0, "{}", formatted.err);
    assert_eq!((read("rules.cedar"), read("cases.json")), (rules, cases));
    assert_eq!(fs::read_dir(&pack).unwrap().count(), 5, "nothing is left beside the files");
}

#[test]
fn a_file_that_cannot_be_parsed_is_not_formatted() {
    let (_dir, pack) = new_pack();
    change(&pack, "rules.cedar", "unless {", "unless {{");
    change(&pack, "cases.json", "\"expect\": [", "\"expect\":    [");
    let cases = fs::read_to_string(pack.join("cases.json")).unwrap();
    let refused = with(&["fmt"], &pack);
    assert_eq!((refused.code, refused.out.as_str()), (1, ""));
    assert!(refused.err.contains("[rules.cedar:"), "{}", refused.err);
    assert_eq!(fs::read_to_string(pack.join("cases.json")).unwrap(), cases, "all files or none");
}

/// The kinds of findings, and what is printed.
fn lint(pack: &Path, arguments: &[&str]) -> (i32, Vec<String>) {
    let found = ended(stage0(&["policy", "lint", "--json"]).args(arguments).arg(pack));
    let printed: Value = serde_json::from_str(&found.out).unwrap();
    let kinds = printed["findings"].as_array().unwrap().iter().map(|found| found["kind"].as_str().unwrap().to_owned());
    (found.code, kinds.collect())
}

/// A rule for offers, with this condition.
pub(crate) fn rule(id: &str, condition: &str) -> String {
    format!(
        "\n@id(\"{id}\")\n@effect(\"deny\")\n@code(\"DISCOUNT_TOO_HIGH\")\n@message(\"no\")\n\
         forbid (principal, action, resource)\n{condition};\n"
    )
}

pub(crate) fn add(pack: &Path, file: &str, text: &str) {
    let path = pack.join(file);
    let before = fs::read_to_string(&path).unwrap();
    fs::write(path, before + text).unwrap();
}

#[test]
fn lint_finds_rules_that_change_nothing() {
    let (_dir, pack) = new_pack();
    assert_eq!(lint(&pack, &[]), (0, Vec::new()));
    let condition =
        "when { context.tools.contains(\"offer_discount\") && context.high_effect && !context.high_effect }";
    add(&pack, "rules.cedar", &rule("discount.contradiction", condition));
    let (code, kinds) = lint(&pack, &[]);
    // It is a finding of its own kind only: that no case satisfies it follows.
    assert_eq!((code, kinds.as_slice()), (1, &["never-applies".to_owned()][..]));
    let shown = policy("lint", &pack);
    assert!(shown.out.contains("never-applies") && shown.out.contains("!context.high_effect"), "{}", shown.out);
    assert!(shown.err.contains("1 thing found: 1 never-applies"), "{}", shown.err);
    assert_eq!(lint(&pack, &["--allow", "never-applies"]), (0, Vec::new()));
    let unknown = ended(stage0(&["policy", "lint", "--allow", "everything"]).arg(&pack));
    assert!(unknown.code == 64 && unknown.err.contains("shadowed-rule"), "{}", unknown.err);
}

#[test]
fn lint_finds_rules_that_another_rule_covers() {
    let (_dir, pack) = new_pack();
    let same = "when { context.tools.contains(\"offer_discount\") }\nunless { context.custom has discount_percent && \
                context.custom.discount_percent <= 20 }";
    add(&pack, "rules.cedar", &rule("discount.again", same));
    assert_eq!(lint(&pack, &[]).1, ["shadowed-rule"]);
    let (_dir, pack) = new_pack();
    let narrower = same.replace("\"offer_discount\")", "\"offer_discount\") && context.criteria_missing == false");
    add(&pack, "rules.cedar", &rule("discount.narrower", &narrower));
    assert_eq!(lint(&pack, &[]).1, ["shadowed-rule"]);
    let (_dir, pack) = new_pack();
    add(
        &pack,
        "rules.cedar",
        &rule("discount.other", "when { context.tools.contains(\"offer_discount\") && context.tool_count > 1 }"),
    );
    assert_eq!(lint(&pack, &[]).1, ["dead-rule"], "it applies where the other one does not");
}

#[test]
fn lint_finds_a_rule_that_is_passed_by_leaving_a_member_out() {
    let (_dir, pack) = new_pack();
    let unless = "\") }\nunless { context.custom has discount_percent && context.custom.discount_percent <= 20 }";
    let when = "\") && context.custom has discount_percent && context.custom.discount_percent > 20 }";
    change(&pack, "rules.cedar", unless, when);
    assert_eq!(lint(&pack, &[]), (1, vec!["absent-member".to_owned()]));
    // Another rule that asks for the member settles it.
    let asks = "when { context.tools.contains(\"offer_discount\") && !(context.custom has discount_percent) }";
    add(&pack, "rules.cedar", &rule("discount.missing", asks));
    assert_eq!(lint(&pack, &[]), (0, Vec::new()));
}

/// Adds a case for an offer without a discount, with these members beside its request and in its context.
pub(crate) fn add_case(pack: &Path, id: &str, members: &str, context: &str) {
    let case = format!(
        "{{\"id\": \"{id}\", {members}, \"request\": {{\"goal\": \"Offer a discount on order 8841\", \
         \"success_criteria\": [\"sent\"], \"tools\": [\"offer_gift\"], \"side_effects\": [], \
         \"context\": {{{context}}}}}}},"
    );
    change(pack, "cases.json", "[\n", &format!("[\n{case}\n"));
}

#[test]
fn lint_finds_a_rule_that_is_passed_by_naming_no_run() {
    let run = "\"run\": {\"allowed\": 3}";
    let pack_with = |condition: &str| {
        let (dir, pack) = new_pack();
        add(&pack, "rules.cedar", &rule("gift.too_many", condition));
        add_case(&pack, "many", &format!("\"expect\": [\"DENY\"], {run}"), "\"run_id\": \"r\"");
        add_case(&pack, "first", "\"expect\": [\"ALLOW\"]", "\"run_id\": \"r\"");
        (dir, pack)
    };
    let gift = "when { context.tools.contains(\"offer_gift\")";
    for open in [
        format!("{gift} }}\nunless {{ !context.run_named || context.run_allowed < 3 }}"),
        format!("{gift} && context.run_named && context.run_allowed >= 3 }}"),
    ] {
        let (_dir, pack) = pack_with(&open);
        assert_eq!(policy("test", &pack).code, 0, "{open}");
        assert_eq!(lint(&pack, &[]), (1, vec!["passes-without-run".to_owned()]), "{open}");
        // Another rule that refuses the same action without a run closes it.
        add(&pack, "rules.cedar", &rule("gift.without_run", &format!("{gift} && !context.run_named }}")));
        add_case(&pack, "no-run", "\"expect\": [\"DENY\"]", "");
        assert_eq!(lint(&pack, &[]), (0, Vec::new()), "{open}");
    }
    let closed = format!("{gift} }}\nunless {{ context.run_named && context.run_allowed < 3 }}");
    let (_dir, pack) = pack_with(&closed);
    assert_eq!(lint(&pack, &[]).1, ["passes-without-run"], "no case shows it");
    add_case(&pack, "no-run", "\"expect\": [\"DENY\"]", "");
    assert_eq!(lint(&pack, &[]), (0, Vec::new()));
}

#[test]
fn lint_finds_a_text_that_its_fact_never_holds() {
    let (_dir, pack) = new_pack();
    let tools = "when { context.tools.contains(\"offer_discount\")";
    change(&pack, "rules.cedar", tools, "when { context.tools.containsAny([\"offer_discount\", \"offer-gift\"])");
    assert_eq!(lint(&pack, &[]), (1, vec!["never-matches".to_owned()]));
    let shown = policy("lint", &pack);
    assert!(shown.out.contains("write `offer_gift`") && shown.out.contains("[rules.cedar:13:"), "{}", shown.out);
    change(&pack, "rules.cedar", "offer-gift", "offer_gift");
    assert_eq!(lint(&pack, &[]), (0, Vec::new()));
}

pub(crate) const OFFER: &str = r#"{"goal": "Offer a discount on order 8841",
    "success_criteria": ["the customer has the offer"], "tools": ["offer_discount"], "side_effects": [],
    "context": {"discount_percent": 21, "run_id": "r"}}"#;

#[test]
fn an_action_is_explained_at_a_time_and_for_a_caller_while_cases_fail() {
    let (_dir, pack) = new_pack();
    change(&pack, "cases.json", "\"expect\": [\"ALLOW\"]", "\"expect\": [\"DENY\"]");
    assert_eq!(policy("test", &pack).code, 1);
    let caller = "unless { context.now > datetime(\"2026-12-24\") && context.key_name == \"bot-1\" && \
                  context.member == \"mem_ada\" && context.groups.containsAll([\"support\", \"finance\"]) }";
    change(
        &pack,
        "rules.cedar",
        "unless { context.custom has discount_percent && context.custom.discount_percent <= 20 }",
        caller,
    );
    let explain = |arguments: &[&str]| {
        let told = run_with_input(stage0(&["policy", "explain"]).arg(&pack).arg("-").args(arguments), OFFER);
        assert_eq!(told.code, 0, "{}", told.err);
        told
    };
    let all = [
        ["--at", "2026-12-25T00:00:00Z"],
        ["--key-name", "bot-1"],
        ["--member", "mem_ada"],
        ["--group", "support"],
        ["--group", "finance"],
    ];
    let told = explain(all.as_flattened());
    assert!(told.out.starts_with("ALLOW"), "{}", told.out);
    assert!(told.err.contains("this is decided as its first check"), "{}", told.err);
    for left_out in 0..all.len() {
        let mut some = all.to_vec();
        // Each is needed: another time, or one fact of the caller less.
        if left_out == 0 {
            some[0][1] = "2026-12-23T00:00:00Z";
        } else {
            some.remove(left_out);
        }
        let told = explain(some.as_flattened());
        assert!(told.out.starts_with("DENY"), "{some:?}: {}", told.out);
    }
    let with_case = ended(stage0(&["policy", "explain", "--case", "x", "--key-name", "bot-1"]).arg(&pack));
    assert_eq!(with_case.code, 64, "{}", with_case.err);
}

#[test]
fn of_the_rules_that_nearly_apply_the_nearest_five_are_shown() {
    let (_dir, pack) = new_pack();
    for n in 0..7 {
        let about = format!("when {{ context.tools.contains(\"tool_{n}\") && context.tool_count > 0 }}");
        let other = format!("{about}\nunless {{ context.side_effects }}");
        add(&pack, "rules.cedar", &rule(&format!("another.tool_{n}"), &other));
    }
    let told = run_with_input(stage0(&["policy", "explain"]).arg(&pack).arg("-"), &OFFER.replace("21", "20"));
    assert_eq!(told.code, 0, "{}", told.err);
    let near = told.out.split("Rules that nearly apply\n").nth(1).unwrap();
    assert!(near.starts_with("  discount.too_high denies"), "{near}");
    assert_eq!(near.matches("another.tool_").count(), 4, "{near}");
}

#[test]
fn lint_finds_cases_that_are_missing_and_codes_that_are_misspelt() {
    let (_dir, pack) = new_pack();
    change(
        &pack,
        "cases.json",
        "\"expect\": [\"ALLOW\"], ",
        "\"expect\": [\"ALLOW\"], \"absent_codes\": [\"DISCOUNT_TO_HIGH\"], ",
    );
    assert_eq!(lint(&pack, &[]).1, ["unknown-code"]);
    let (_dir, pack) = new_pack();
    let cases = fs::read_to_string(pack.join("cases.json")).unwrap();
    let denied: Vec<&str> =
        cases.lines().filter(|line| line.contains("DENY")).map(|line| line.trim_end_matches(',')).collect();
    fs::write(pack.join("cases.json"), format!("[\n{}\n]\n", denied.join(",\n"))).unwrap();
    assert_eq!(lint(&pack, &[]).1, ["untested-rule"]);
}

#[test]
fn lint_finds_words_that_no_case_has() {
    let (_dir, pack) = new_pack();
    fs::write(pack.join("tools.toml"), "[sensitive]\nruns = [\"offer_discount\", \"launch_rocket\"]\n").unwrap();
    let found = policy("lint", &pack);
    assert_eq!(found.code, 1, "{}", found.err);
    assert!(found.out.contains("unused-word: no case has these words of `runs`: `launch_rocket`\n"), "{}", found.out);
}

#[test]
fn a_pack_that_is_refused_is_not_linted() {
    let (_dir, pack) = new_pack();
    change(&pack, "rules.cedar", "@effect", "@efect");
    let refused = policy("lint", &pack);
    assert_eq!((refused.code, refused.out.as_str()), (1, ""));
    assert!(refused.err.contains("`@efect` is no annotation"), "{}", refused.err);
}

const DEPLOY: &str = r#"{"goal": "Deploy the hotfix", "success_criteria": ["it runs"], "side_effects": ["deploy"],
    "constraints": ["mfa_required"], "context": {"mfa_verified": true}}"#;

#[test]
fn an_explanation_says_why_each_rule_applies_or_not() {
    let told = run_with_input(&mut stage0(&["policy", "explain", "baseline", "-"]), DEPLOY);
    assert_eq!(told.code, 0, "{}", told.err);
    assert!(told.out.starts_with("DENY (NO_GO)"), "{}", told.out);
    for part in
        ["SIDE_EFFECTS_NEED_GUARDRAILS", "Rules that apply\n", "met     context.high_effect", "high_effect = true"]
    {
        assert!(told.out.contains(part), "{part}: {}", told.out);
    }
    assert!(!told.out.contains("Facts\n"), "{}", told.out);
    let all = run_with_input(&mut stage0(&["policy", "explain", "baseline", "-", "--all"]), DEPLOY);
    for part in
        ["Rules that are not evaluated", "its trigger `loop_effect` does not hold: ", "Facts\n", "Triggers that hold"]
    {
        assert!(all.out.contains(part), "{part}: {}", all.out);
    }
    let mut command = stage0(&["policy", "explain"]);
    let same = run_with_input(command.arg(baseline()).args(["-", "--json"]), DEPLOY);
    assert_eq!(same.code, 0, "{}", same.err);
    let told: Value = serde_json::from_str(&same.out).unwrap();
    assert_eq!(told["decision"]["verdict"], "DENY");
    let rules = told["rules"].as_array().unwrap();
    let counted = |outcome: &str| rules.iter().filter(|rule| rule["outcome"] == outcome).count();
    assert_eq!(counted("applies"), told["rules_matched"].as_array().unwrap().len());
    assert!(counted("not_evaluated") > 0 && counted("failed") == 0);
}

#[test]
fn a_rule_that_nearly_applies_is_shown_with_the_part_that_does_not_hold() {
    let (_dir, pack) = new_pack();
    let told = ended(stage0(&["policy", "explain", "--case", "discount-at-the-limit"]).arg(&pack));
    assert_eq!(told.code, 0, "{}", told.err);
    for part in [
        "ALLOW (GO)",
        "Rules that nearly apply\n  discount.too_high denies (rules.cedar:7)\n",
        "not met unless context.custom has discount_percent && context.custom.discount_percent <= 20",
        "custom.discount_percent = 20",
    ] {
        assert!(told.out.contains(part), "{part}: {}", told.out);
    }
    let above = ended(stage0(&["policy", "explain", "--case", "discount-above-the-limit"]).arg(&pack));
    assert!(above.out.contains("Rules that apply\n  discount.too_high denies ("), "{}", above.out);
    assert!(above.out.contains("(rules.cedar:"), "{}", above.out);
    let unknown = ended(stage0(&["policy", "explain", "--case", "nothing"]).arg(&pack));
    assert!(unknown.code == 1 && unknown.err.contains("has no case `nothing`"), "{}", unknown.err);
    let neither = ended(stage0(&["policy", "explain"]).arg(&pack));
    assert_eq!(neither.code, 64, "{}", neither.err);
}

#[test]
fn an_invalid_action_is_not_explained() {
    let told = run_with_input(&mut stage0(&["policy", "explain", "baseline", "-"]), r#"{"goal": " ", "tools": 7}"#);
    assert_eq!((told.code, told.out.as_str()), (1, ""));
    assert!(told.err.contains("goal") && told.err.contains("tools"), "{}", told.err);
}

#[test]
fn the_page_of_facts_is_what_the_command_prints() {
    let shown = fs::read_to_string(baseline().join("../../docs/policy/facts.md")).unwrap();
    let printed = run(&["policy", "facts", "--markdown"]);
    assert_eq!(printed.code, 0, "{}", printed.err);
    assert!(shown == printed.out, "run `stage0 policy facts --markdown > docs/policy/facts.md`");
    let json: Value = serde_json::from_str(&run(&["policy", "facts", "--json"]).out).unwrap();
    for row in json.as_array().unwrap() {
        assert!(printed.out.contains(&format!("| `{}` |", row["name"].as_str().unwrap())), "{row}");
        assert!(row["doc"].as_str().unwrap().ends_with(['.', '?']), "{row}");
    }
}

#[test]
fn facts_are_found_by_a_word_or_a_group() {
    let told = run(&["policy", "facts", "key_name"]);
    assert!(told.out.starts_with("Caller\n") && told.out.contains("key_name: String"), "{}", told.out);
    let group = run(&["policy", "facts", "run"]);
    assert!(group.out.contains("run_calls: RunCalls") && !group.out.contains("high_effect"), "{}", group.out);
    let none = run(&["policy", "facts", "nonsense"]);
    assert!(none.code == 1 && none.err.contains("nonsense"), "{}", none.err);
}

#[test]
fn a_copy_of_the_baseline_has_the_one_form_of_cases() {
    let dir = copy();
    let formatted = policy("fmt", dir.path());
    assert_eq!(formatted.code, 0, "{}", formatted.err);
    let lines = |dir: &Path, file: &str| -> Vec<String> {
        fs::read_to_string(dir.join(file)).unwrap().lines().map(|line| line.trim().to_owned()).collect()
    };
    for file in ["cases.json", "cases-2.json"] {
        assert!(lines(dir.path(), file) == lines(&baseline(), file), "{file}");
    }
    let again = with(&["fmt", "--check"], dir.path());
    assert_eq!(again.code, 0, "{}", again.out);
    let tested = policy("test", dir.path());
    assert_eq!(tested.code, 0, "{}", tested.err);
}
