//! `stage0 policy diff`: the text that a person reads before a pack is put into force, its exit code, and its JSON.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::{Ended, ended, stage0};
use crate::policy::change;

const RULE: &str = r#"@id("refund.too_large")
@effect("defer")
@code("REFUND_TOO_LARGE")
@message("a refund of more than 500 needs an approval")
@question("Who approves the refund?")
@next_action("request_approval")
forbid (principal, action, resource)
when { context.custom has amount && context.custom.amount > 500 };

@id("refund.in_cents")
@effect("deny")
@code("REFUND_TOO_LARGE")
@message("an amount is in euros, not in cents")
forbid (principal, action, resource)
when { context.custom has amount && context.custom.amount > 100000 };
"#;
const CASES: &str = r#"[
{"id": "small", "expect": ["ALLOW"],
 "request": {"goal": "Look up order 8841", "success_criteria": ["x"], "context": {"amount": 500}}},
{"id": "large", "expect": ["DEFER"],
 "request": {"goal": "Look up order 8842", "success_criteria": ["x"], "context": {"amount": 501}}},
{"id": "in-cents", "expect": ["DENY"],
 "request": {"goal": "Look up order 8843 \u001b[2J", "success_criteria": ["x"], "context": {"amount": 100001}}}
]
"#;

/// A folder with the pack `old`, and its copy `new`.
struct Packs(tempfile::TempDir);

impl Packs {
    fn new() -> Self {
        let packs = Self(tempfile::tempdir().unwrap());
        for name in ["old", "new"] {
            let dir = packs.path(name);
            fs::create_dir(&dir).unwrap();
            for (file, text) in [
                ("pack.toml", "name = \"acme\"\nversion = \"1.0.0\"\nextends = \"baseline@2\"\n"),
                ("schema.cedarschema", "type Custom = { amount?: Long };\n"),
                ("codes.toml", "[REFUND_TOO_LARGE]\nmeaning = \"m\"\nremedy = \"r\"\n"),
                ("refund.cedar", RULE),
                ("cases.json", CASES),
            ] {
                fs::write(dir.join(file), text).unwrap();
            }
        }
        packs
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn change(&self, file: &str, from: &str, to: &str) {
        change(&self.path("new"), file, from, to);
    }

    fn diff(&self, more: &[&str]) -> Ended {
        diff(&self.path("old"), &self.path("new"), more)
    }
}

fn diff(old: &Path, new: &Path, more: &[&str]) -> Ended {
    ended(stage0(&["policy", "diff"]).arg(old).arg(new).args(more))
}

/// The text with the digests replaced, which change with every edit of the baseline.
fn without_digests(text: &str) -> String {
    let shown = |line: &str| match (line.split_once('+'), line.strip_prefix("digest ")) {
        (Some((label, _)), _) if line.starts_with("old  ") || line.starts_with("new  ") => format!("{label}+…"),
        (_, Some(digest)) => {
            assert!(digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()), "{digest}");
            "digest …".to_owned()
        }
        _ => line.to_owned(),
    };
    text.lines().map(|line| shown(line) + "\n").collect()
}

#[test]
fn a_pack_and_its_copy_have_no_difference() {
    let packs = Packs::new();
    packs.change("refund.cedar", "@id(\"refund.too_large\")", "// Why.\n@id(\"refund.too_large\")");
    let same = packs.diff(&[]);
    assert_eq!((same.code, same.err.as_str()), (0, ""));
    let lines: Vec<&str> = same.out.lines().collect();
    assert!(lines[0].starts_with("old  acme@1.0.0+") && lines[1].starts_with("new  acme@1.0.0+"), "{}", same.out);
    assert_ne!(lines[0].strip_prefix("old"), lines[1].strip_prefix("new"));
    assert!(same.out.ends_with("\nno difference\n"), "{}", same.out);
    assert!(same.out.contains("; 0 come to another verdict\n"), "{}", same.out);
    assert!(!same.out.contains("Rules") && !same.out.contains("Words"), "{}", same.out);
}

#[test]
fn what_is_looser_is_shown_first_and_ends_with_exit_code_1() {
    let packs = Packs::new();
    looser(&packs);
    let shown = packs.diff(&[]);
    assert_eq!((shown.code, shown.err.as_str()), (1, ""));
    assert_eq!(without_digests(&shown.out), LOOSER, "{}", shown.out);
    assert!(shown.out.lines().all(|line| line.chars().count() <= 100), "{}", shown.out);
    let allowed = packs.diff(&["--allow-looser"]);
    assert_eq!((allowed.code, allowed.out), (0, shown.out));
}

#[test]
fn what_is_only_stricter_ends_with_exit_code_0() {
    let packs = Packs::new();
    packs.change("refund.cedar", "(\"request_approval\")", "(\"request_approval\")\n@quorum(\"2\")");
    let stricter = packs.diff(&[]);
    assert_eq!((stricter.code, stricter.err.as_str()), (0, ""));
    assert!(stricter.out.contains("\n      @quorum: none → 2 (stricter)\n"), "{}", stricter.out);
    assert!(stricter.out.ends_with("\nstricter: 0 cases, 1 entry\n"), "{}", stricter.out);
    let back = diff(&packs.path("new"), &packs.path("old"), &[]);
    assert_eq!(back.code, 1);
    assert!(back.out.ends_with("\nlooser: 0 cases, 1 entry\n"), "{}", back.out);
}

#[test]
fn json_has_stable_members_and_the_digest() {
    let packs = Packs::new();
    looser(&packs);
    let told = packs.diff(&["--json"]);
    assert_eq!(told.code, 1);
    let told: Value = serde_json::from_str(&told.out).unwrap();
    let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(names(&told), "old new outcome rules words values weakens cases diff_digest");
    assert_eq!(names(&told["outcome"]), "looser stricter neutral");
    assert_eq!(names(&told["rules"][0]), "rule change direction effect code message file line annotations condition");
    assert_eq!(names(&told["words"][0]), "file word change from to direction");
    assert_eq!(names(&told["values"][0]), "file name from to direction");
    assert_eq!(names(&told["weakens"][0]), "pack reason without replaces words numbers");
    assert_eq!(names(&told["cases"]), "decided only_old_decides only_new_decides none_decides left_out changed");
    assert_eq!(names(&told["cases"]["changed"][0]), "case pack goal from to direction old_rules new_rules");
    assert_eq!(names(&told["cases"]["changed"][0]["old_rules"][0]), "rule code file line");
    let shown = packs.diff(&[]).out;
    assert!(shown.contains(&format!("\ndigest {}\n", told["diff_digest"].as_str().unwrap())));
}

#[test]
fn packs_that_are_compiled_in_go_by_their_names() {
    let stricter = diff(Path::new("baseline"), Path::new("data-protection"), &[]);
    assert_eq!((stricter.code, stricter.err.as_str()), (0, ""));
    assert!(stricter.out.starts_with("old  baseline@2.0.0+") && stricter.out.contains("\nnew  data-protection@"));
    let last = stricter.out.lines().last().unwrap();
    assert!(last.starts_with("stricter: ") && !last.contains("looser"), "{last}");
    assert!(stricter.out.contains(" more: --json has them all\n"), "{}", stricter.out);
    let looser = diff(Path::new("data-protection"), Path::new("baseline"), &[]);
    assert_eq!(looser.code, 1);
    assert!(!looser.out.contains("--json has them all"), "every looser case is shown: {}", looser.out);
}

#[test]
fn a_pack_that_is_refused_is_not_compared() {
    let packs = Packs::new();
    packs.change("refund.cedar", "@effect(\"deny\")", "@effect(\"denies\")");
    let refused = packs.diff(&[]);
    assert_eq!((refused.code, refused.out.as_str()), (1, ""));
    assert!(refused.err.contains("[refund.cedar:") && refused.err.contains("`@effect` must be"), "{}", refused.err);
    let told: Value = serde_json::from_str(&packs.diff(&["--json"]).out).unwrap();
    assert!(told["refused"].as_str().unwrap().ends_with("/new") && told["faults"][0]["line"].is_number(), "{told}");
    let missing = diff(&packs.path("old"), &packs.path("nowhere"), &[]);
    assert_eq!((missing.code, missing.out.as_str()), (1, ""));
}

/// A new pack that is looser in most ways, and stricter in one.
fn looser(packs: &Packs) {
    packs.change("pack.toml", "1.0.0", "1.1.0");
    let weakens = "extends = \"baseline@2\"\n[scores.floor]\ndeny = 60\n[weakens]\nreason = \"refunds are small\"\n\
                   words = [\"refund\"]\nnumbers = [\"scores.floor.deny\"]\n";
    packs.change("pack.toml", "extends = \"baseline@2\"\n", weakens);
    fs::write(packs.path("new").join("effects.toml"), "[verbs]\nmedium = [\"refund\"]\nhigh = [\"beam\"]\n").unwrap();
    packs.change("refund.cedar", "500 };", "500 && context.custom.amount > 600 };");
    packs.change("refund.cedar", "of more than 500", "of more than 600");
    packs.change("refund.cedar", "@effect(\"deny\")", "@effect(\"defer\")\n@question(\"Is it in cents?\")");
    packs.change("cases.json", "\"amount\": 501", "\"amount\": 601");
    packs.change("cases.json", "\"DENY\"", "\"DEFER\"");
}

const LOOSER: &str = r#"old  acme@1.0.0+…
new  acme@1.1.0+…

Rules
  ~ looser    refund.in_cents defers: an amount is in euros, not in cents (refund.cedar:10)
      @effect: deny → defer (looser)
      @next_action: stop → provide_context
      @question: none → Is it in cents?
      @severity: HIGH → MEDIUM (looser)
      @weight: 35 → 10 (looser)
  ~ looser    refund.too_large defers: a refund of more than 600 needs an approval (refund.cedar:1)
      @message: a refund of more than 500 needs an approval → a refund of more than 600 needs an
      approval
      condition (looser)
        - when { context.custom has amount && context.custom.amount > 500 }
        + when { context.custom has amount && context.custom.amount > 500 && context.custom.amount >
          600 }

Words
  effects.toml
    looser    moved from verbs.high to verbs.medium: refund
    stricter  added to verbs.high: beam

Values
  looser    pack.toml scores.floor.deny: 61 → 60

acme@1.1.0 says that it weakens
  reason    refunds are small
  words     refund
  numbers   scores.floor.deny

Cases
  641 decided by both packs, 40 refused by both; 2 come to another verdict
  looser    DENY → DEFER: 1 case
    in-cents (acme@1.1.0): Look up order 8843 \u{1b}[2J
      refund.in_cents → refund.in_cents, refund.too_large
  looser    DEFER → ALLOW: 1 case
    large (acme@1.0.0): Look up order 8842
      refund.too_large → no rule objects

digest …
looser: 2 cases, 4 entries; stricter: 0 cases, 1 entry
"#;
