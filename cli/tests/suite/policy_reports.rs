//! What `stage0 policy` reports to the author of a pack: who must approve, what is weakened, what to copy, and how a
//! run is explained.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::harness::{ended, run_with_input, stage0};
use crate::policy::{change, policy};
use crate::policy_writing::{OFFER, add, add_case, new_pack, rule};

/// A pack whose rule asks `finance` about a gift.
fn asking_pack(case: &str) -> (tempfile::TempDir, PathBuf) {
    let (dir, pack) = new_pack();
    let asks = rule("gift.approval", "when { context.tools.contains(\"offer_gift\") }").replace(
        "@effect(\"deny\")",
        "@effect(\"defer\")\n@question(\"Who in finance approves it?\")\n@next_action(\"request_approval\")\n\
         @approvers(\"finance\")\n@approve_within(\"2h\")",
    );
    add(&pack, "rules.cedar", &asks);
    add_case(&pack, "gift", case, "");
    (dir, pack)
}

#[test]
fn a_case_says_who_must_approve() {
    let deferred = |approval: &str| format!("\"expect\": [\"DEFER\"], \"approval\": {approval}");
    let (_dir, pack) = asking_pack(&deferred("{\"groups\": [\"finance\"], \"quorum\": 1}"));
    let tested = policy("test", &pack);
    assert_eq!(tested.code, 0, "{}{}", tested.out, tested.err);
    let told = ended(stage0(&["policy", "explain", "--case", "gift"]).arg(&pack));
    assert!(told.out.contains("needs one approval from the group `finance` within 2 h"), "{}", told.out);
    for (from, to) in [("(\"finance\")", "(\"finanze\")"), ("@approvers(\"finance\")\n", "")] {
        let (_dir, pack) = asking_pack(&deferred("{\"groups\": [\"finance\"]}"));
        change(&pack, "rules.cedar", from, to);
        let tested = policy("test", &pack);
        assert!(
            tested.code == 1
                && tested
                    .out
                    .contains("approval  expected one approval from the group `finance`, and the rules ask for "),
            "{}",
            tested.out
        );
        let refused = policy("validate", &pack);
        assert!(refused.err.contains("finance") && refused.err.contains(" and comes to DEFER"), "{}", refused.err);
    }
    for (case, told) in [
        (deferred("{\"group\": [\"finance\"]}"), "unknown field `group`"),
        (deferred("{\"quorum\": 0}"), "must be a number from 1 to 10"),
        (deferred("{\"groups\": [\"Finance\"]}"), "must be 1 to 50 names of groups"),
        ("\"expect\": [\"DENY\"], \"approval\": {}".to_owned(), "only a DEFER asks for an approval"),
    ] {
        let (_dir, pack) = asking_pack(&case);
        let refused = policy("validate", &pack);
        assert!(refused.code == 1 && refused.err.contains(told), "{case}: {}", refused.err);
    }
    let (_dir, pack) = asking_pack(&deferred("{\"quorum\": 1}"));
    assert_eq!(policy("test", &pack).code, 1, "any member is another demand than one of finance");
}

/// Accepts what comes out of a case: the exit code, what is reported, and the cases as they are afterwards.
fn accept(case: &str) -> (i32, String, String) {
    let (_dir, pack) = asking_pack(case);
    let accepted = ended(stage0(&["policy", "test", "--accept"]).arg(&pack));
    (accepted.code, accepted.err, fs::read_to_string(pack.join("cases.json")).unwrap())
}

#[test]
fn accepting_a_case_changes_no_approval_that_it_expects() {
    let right = "\"expect\": [\"DEFER\"], \"codes\": [\"NEVER\"], \"approval\": {\"groups\": [\"finance\"]}";
    let (code, reported, cases) = accept(right);
    assert_eq!(code, 0, "{reported}");
    assert!(reported.contains("accepted 1 case in ") && !reported.contains("says otherwise"), "{reported}");
    let accepted = "\"codes\": [\"DISCOUNT_TOO_HIGH\"], \"approval\": {\"groups\": [\"finance\"]}";
    assert!(cases.contains(accepted), "{cases}");

    let (code, reported, cases) = accept(&right.replace("finance", "legal"));
    assert_eq!(code, 1, "{reported}");
    assert!(reported.contains("`approval` of gift says otherwise: change it by hand\n"), "{reported}");
    assert!(cases.contains(&accepted.replace("finance", "legal")), "{cases}");
}

#[test]
fn the_lines_for_a_missing_code_can_be_copied_as_they_are() {
    let (_dir, pack) = new_pack();
    let codes = pack.join("codes.toml");
    fs::write(&codes, "").unwrap();
    let refused = policy("validate", &pack);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("`DISCOUNT_TOO_HIGH` is missing: `discount.too_high` ("), "{}", refused.err);
    let lines = "[DISCOUNT_TOO_HIGH]\nmeaning = \"what it means\"\nremedy = \"what to do\"\n";
    let shown: String = refused.err.lines().map(|line| format!("{}\n", line.trim())).collect();
    assert!(shown.contains(&format!("help: add these lines to codes.toml:\n{lines}")), "{}", refused.err);

    let reported = ended(stage0(&["policy", "validate", "--json"]).arg(&pack));
    let reported: Value = serde_json::from_str(&reported.out).unwrap();
    let help = reported["faults"][0]["help"].as_str().unwrap();
    assert_eq!(format!("{}\n", help.split_once('\n').unwrap().1), lines);
    fs::write(&codes, lines).unwrap();
    let valid = policy("validate", &pack);
    assert_eq!(valid.code, 0, "{}", valid.err);
}

/// What the last line says that the pack makes milder.
fn weakened(pack: &std::path::Path) -> String {
    let mut lines = Vec::new();
    for what in ["validate", "test"] {
        let checked = policy(what, pack);
        assert_eq!(checked.code, 0, "{}", checked.err);
        lines.push(checked.out.lines().last().unwrap().to_owned());
    }
    assert_eq!(lines[0], lines[1]);
    lines.swap_remove(0)
}

#[test]
fn a_pack_that_weakens_its_parent_says_so_wherever_it_is_checked() {
    let (_dir, pack) = new_pack();
    assert!(!weakened(&pack).contains("weakens"));
    add(&pack, "pack.toml", "\n[weakens]\nreason = \"ours\"\nwithout = [\"approval.communication\"]\n");
    assert_eq!(weakened(&pack), "weakens baseline@2.0.0: leaves out approval.communication");

    add(&pack, "pack.toml", "words = [\"reconcile\"]\nnumbers = [\"scores.floor.deny\"]\n[scores.floor]\ndeny = 60\n");
    fs::write(pack.join("effects.toml"), "[verbs]\nmedium = [\"reconcile\"]\n").unwrap();
    let left_out = "leaves out approval.communication; milder words reconcile; milder numbers scores.floor.deny";
    assert_eq!(weakened(&pack), format!("weakens baseline@2.0.0: {left_out}"));

    change(&pack, "pack.toml", "without", "replaces");
    let gift = "when { context.tools.contains(\"offer_gift\") }";
    add(&pack, "rules.cedar", &rule("approval.communication", gift));
    add_case(&pack, "gift", "\"expect\": [\"DENY\"]", "");
    assert_eq!(weakened(&pack), format!("weakens baseline@2.0.0: {}", left_out.replace("leaves out", "replaces")));
}

#[test]
fn a_run_is_explained_as_json_with_what_it_has_counted() {
    let (_dir, pack) = new_pack();
    let gift =
        "when { context.tools.contains(\"offer_gift\") }\nunless { context.run_named && context.run_allowed < 3 }";
    add(&pack, "rules.cedar", &rule("gift.too_many", gift));
    add_case(&pack, "fourth", "\"expect\": [\"DENY\"], \"run\": {\"allowed\": 3}", "\"run_id\": \"r\"");
    let told = ended(stage0(&["policy", "explain", "--case", "fourth", "--json"]).arg(&pack));
    assert_eq!((told.code, told.err.as_str()), (0, ""));
    let told: Value = serde_json::from_str(&told.out).unwrap();
    assert_eq!((&told["decision"]["verdict"], &told["facts"]["run_allowed"]), (&"DENY".into(), &3.into()));
    assert_eq!(told["facts"]["run_named"], true);
    let rule = told["rules"].as_array().unwrap().iter().find(|rule| rule["rule"] == "gift.too_many").unwrap();
    assert_eq!(rule["outcome"], "applies", "{rule}");
    assert!(
        rule.to_string().contains("[\"run_allowed\",3]") || rule.to_string().contains("\"run_allowed\":3"),
        "{rule}"
    );

    // Of an action the counts are not known. Standard output is still JSON alone.
    let mut command = stage0(&["policy", "explain"]);
    let first = OFFER.replace("offer_discount", "offer_gift");
    let told = run_with_input(command.arg(&pack).args(["-", "--json"]), &first);
    assert_eq!(told.code, 0, "{}", told.err);
    assert!(told.err.contains("this is decided as its first check"), "{}", told.err);
    let told: Value = serde_json::from_str(&told.out).unwrap();
    assert_eq!((&told["decision"]["verdict"], &told["facts"]["run_allowed"]), (&"ALLOW".into(), &0.into()));
}
