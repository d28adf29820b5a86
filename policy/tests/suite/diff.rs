//! What one pack changes in the place of another: rules and cases, their direction, and what is no difference.

mod values;

use std::sync::{Arc, LazyLock};

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use stage0_contract::Verdict;
use stage0_policy::Pack;
use stage0_policy::diff::{Change, Direction, Outcome, PackDiff};

use super::packs_extend::{Packs, with_rule};

type Files<'f> = Vec<(&'f str, &'f str)>;

const GREET: &str = r#"[{"id": "greet", "expect": ["ALLOW"],
 "request": {"goal": "Summarize the minutes of May", "success_criteria": ["x"]}}]"#;

fn loaded(packs: &Packs, name: &str) -> Arc<Pack> {
    packs.load(name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn between(old: &Arc<Pack>, new: &Arc<Pack>) -> PackDiff {
    PackDiff::between(old, new).unwrap()
}

/// A pack of these files and lines of a manifest that extends the baseline.
fn pack(manifest: &str, files: &[(&str, &str)]) -> Arc<Pack> {
    loaded(&Packs::new().pack("ours", "baseline@2", manifest, files), "ours")
}

/// Packs that several tests compare others with.
fn with_our_rule() -> Arc<Pack> {
    static PACK: LazyLock<Arc<Pack>> = LazyLock::new(|| pack("", &with_rule()));
    Arc::clone(&PACK)
}

fn greeting() -> Arc<Pack> {
    static PACK: LazyLock<Arc<Pack>> = LazyLock::new(|| pack("", &[("cases.json", GREET)]));
    Arc::clone(&PACK)
}

fn weakens(list: &str, names: &[&str]) -> String {
    format!("[weakens]\nreason = \"we know better\"\n{list} = {names:?}\n")
}

/// The files of the pack with a rule, one of them edited.
fn edited<'f>(file: &'f str, text: &'f str) -> Files<'f> {
    with_rule().into_iter().map(|(name, old)| if name == file { (name, text) } else { (name, old) }).collect()
}

fn rule_file() -> &'static str {
    with_rule().iter().find(|(name, _)| *name == "ours.cedar").unwrap().1
}

/// The difference that an edit of the rule makes, and the one of taking it back.
fn rule_edit(from: &str, to: &str) -> [PackDiff; 2] {
    assert!(rule_file().contains(from), "{from}");
    let text = rule_file().replace(from, to);
    let (old, new) = (with_our_rule(), pack("", &edited("ours.cedar", &text)));
    [between(&old, &new), between(&new, &old)]
}

#[test]
fn a_pack_has_no_difference_from_itself() {
    for pack in [Pack::embedded().unwrap(), with_our_rule()] {
        let diff = between(&pack, &pack);
        assert!(!diff.outcome.is_different() && diff.rules.is_empty() && diff.words.is_empty(), "{diff:#?}");
        assert!(diff.values.is_empty() && diff.weakens.is_empty() && diff.cases.changed.is_empty(), "{diff:#?}");
        assert!(diff.cases.decided > 600 && diff.cases.left_out == 0, "{:?}", diff.cases.decided);
    }
}

#[test]
fn comments_order_and_defaults_that_are_written_out_are_no_difference() {
    let words = "[verbs]\nhigh = [\"beam\", \"teleport\"]\n";
    let manifest = "[approvals]\napprovers = [\"dba\", \"ops\"]\n[windows.night]\nzone = \"Etc/UTC\"\n\
                    days = [\"sat\", \"sun\"]\nopens = \"22:00\"\ncloses = \"02:00\"\n";
    let named = weakens("numbers", &["windows.night"]);
    let old = pack(&format!("{manifest}{named}"), &[with_rule(), vec![("effects.toml", words)]].concat());
    let rule = rule_file()
        .replace("context.custom has amount && ", "// Why.\n  (context.custom   has amount) &&\n")
        .replace("@effect", "@approve_within(\"60m\")\n@effect")
        .replace("@family(\"ours\")\n@trigger(\"always\")\n", "");
    let files = vec![
        ("effects.toml", "# Ours.\n[verbs]\nhigh = [\n  \"teleport\",\n  \"beam\",\n]\n"),
        ("other.cedar", rule.as_str()),
        ("schema.cedarschema", "type Custom = {\n    amount?: Long,\n};"),
        with_rule()[2],
        with_rule()[3],
    ];
    let manifest = "[windows.night]\nopens = \"22:00\"\ncloses = \"02:00\"\nzone = \"Etc/UTC\"\n\
                    days = [\"sun\", \"sat\"]\n[approvals]\napprovers = [\"ops\", \"dba\"]\n";
    let new = pack(&format!("{manifest}{named}"), &files);
    let diff = between(&old, &new);
    assert_ne!(diff.old, diff.new);
    // The rule says now what held by default. Nothing is looser by it, or stricter.
    assert_eq!(diff.rules.len(), 1, "{diff:#?}");
    let names: Vec<&str> = diff.rules[0].annotations.iter().map(|one| one.name).collect();
    assert_eq!((names, diff.rules[0].direction), (vec!["approve_within"], Direction::Neutral));
    let without = rule.replace("@approve_within(\"60m\")\n", "");
    let files: Files<'_> = files
        .into_iter()
        .map(|(name, text)| if name == "other.cedar" { (name, without.as_str()) } else { (name, text) })
        .collect();
    let diff = between(&old, &pack(&format!("{manifest}{named}"), &files));
    assert!(!diff.outcome.is_different() && diff.cases.changed.is_empty(), "{diff:#?}");
}

#[test]
fn a_rule_that_is_added_is_stricter_and_one_that_is_left_out_is_looser() {
    let (old, new) = (Pack::embedded().unwrap(), with_our_rule());
    let diff = between(&old, &new);
    let [rule] = diff.rules.as_slice() else { panic!("{diff:#?}") };
    assert_eq!((rule.rule.as_str(), rule.change, rule.direction), ("ours.large", Change::Added, Direction::Stricter));
    assert_eq!((rule.file.as_str(), rule.line, rule.code.as_str()), ("ours.cedar", 1, "LARGE_AMOUNT"));
    let [case] = diff.cases.changed.as_slice() else { panic!("{diff:#?}") };
    assert_eq!((case.case.as_str(), case.pack.as_str()), ("large", "ours@1.0.0"));
    assert_eq!((case.from, case.to), (Some(Verdict::Allow), Some(Verdict::Defer)));
    assert!(case.old_rules.is_empty());
    let decided = &case.new_rules[0];
    assert_eq!(
        (decided.rule.as_str(), decided.file.as_deref(), decided.line),
        ("ours.large", Some("ours.cedar"), Some(1))
    );
    assert!(!diff.outcome.is_looser() && diff.outcome.stricter.cases == 1, "{:?}", diff.outcome);

    let back = between(&new, &old);
    assert_eq!((back.rules[0].change, back.rules[0].direction), (Change::Removed, Direction::Looser));
    assert_eq!((back.cases.changed[0].from, back.cases.changed[0].to), (Some(Verdict::Defer), Some(Verdict::Allow)));
    assert!(back.outcome.is_looser());

    let without = pack(&weakens("without", &["approval.communication"]), &[]);
    let diff = between(&old, &without);
    let [rule] = diff.rules.as_slice() else { panic!("{diff:#?}") };
    assert_eq!((rule.change, rule.file.as_str()), (Change::Removed, "approval.cedar"));
    assert_eq!(
        (diff.weakens[0].pack.as_str(), diff.weakens[0].weakened.reason.as_str()),
        ("ours@1.0.0", "we know better")
    );
    assert_eq!(diff.weakens[0].weakened.without, ["approval.communication"]);
    assert!(diff.outcome.looser.cases > 0 && diff.outcome.stricter.cases == 0, "{:?}", diff.outcome);
    // What the pack in force says already is no news.
    assert!(between(&without, &without).weakens.is_empty() && between(&without, &old).weakens.is_empty());
}

#[test]
fn each_annotation_is_told_with_both_values_and_its_direction() {
    use Direction::{Looser, Neutral, Stricter, Unclear};
    for (from, to, name, values, direction) in [
        ("@weight(\"10\")", "@weight(\"11\")", "weight", ["10", "11"], Stricter),
        ("@severity(\"MEDIUM\")", "@severity(\"HIGH\")", "severity", ["MEDIUM", "HIGH"], Stricter),
        ("is large\")", "is too large\")", "message", ["the amount is large", "the amount is too large"], Neutral),
        (
            "Who approves the",
            "Who approves this",
            "question",
            ["Who approves the amount?", "Who approves this amount?"],
            Neutral,
        ),
        ("@family(\"ours\")", "@family(\"money\")", "family", ["ours", "money"], Neutral),
        ("@trigger(\"always\")", "@trigger(\"custom\")", "trigger", ["always", "custom"], Looser),
        ("@about(\"approval\")", "@about(\"approval\")\n@quorum(\"2\")", "quorum", ["", "2"], Stricter),
        ("@about(\"approval\")", "@about(\"approval\")\n@approve_within(\"2h\")", "approve_within", ["", "2h"], Looser),
        (
            "@about(\"approval\")",
            "@about(\"approval\")\n@approval_valid_for(\"5m\")",
            "approval_valid_for",
            ["", "5m"],
            Stricter,
        ),
        ("@about(\"approval\")", "@about(\"approval\")\n@approvers(\"ops\")", "approvers", ["", "ops"], Stricter),
        (
            "@about(\"approval\")",
            "@about(\"approval\")\n@approval_reason(\"required\")",
            "approval_reason",
            ["", "required"],
            Stricter,
        ),
        (
            "@about(\"approval\")",
            "@about(\"approval\")\n@details(\"custom.amount\")",
            "details",
            ["", "custom.amount"],
            Neutral,
        ),
        (
            "@next_action(\"request_approval\")",
            "@next_action(\"wait\")",
            "next_action",
            ["request_approval", "wait"],
            Stricter,
        ),
    ] {
        let [there, back] = rule_edit(from, to);
        let reversed = match direction {
            Looser => Stricter,
            Stricter => Looser,
            Neutral | Unclear => direction,
        };
        for (diff, values, direction) in [(there, values, direction), (back, [values[1], values[0]], reversed)] {
            let [rule] = diff.rules.as_slice() else { panic!("{to}: {diff:#?}") };
            let [annotation] = rule.annotations.as_slice() else { panic!("{to}: {rule:#?}") };
            let value = |value: &Option<String>| value.clone().unwrap_or_default();
            assert_eq!(
                (annotation.name, [value(&annotation.from), value(&annotation.to)]),
                (name, values.map(str::to_owned))
            );
            assert_eq!(
                (annotation.direction, rule.direction, rule.change),
                (direction, direction, Change::Changed),
                "{to}"
            );
            assert!(rule.condition.is_none() && diff.words.is_empty() && diff.values.is_empty(), "{diff:#?}");
        }
    }
}

#[test]
fn a_stricter_effect_is_stricter_and_changes_the_case() {
    let rule = rule_file()
        .replace("@effect(\"defer\")", "@effect(\"deny\")")
        .replace("@next_action(\"request_approval\")", "@next_action(\"stop\")");
    let cases = with_rule()[3].1.replace("[\"DEFER\"]", "[\"DENY\"]");
    let files = vec![("ours.cedar", rule.as_str()), with_rule()[1], with_rule()[2], ("cases.json", cases.as_str())];
    let (old, new) = (with_our_rule(), pack("", &files));
    let diff = between(&old, &new);
    let effect = diff.rules[0].annotations.iter().find(|one| one.name == "effect").unwrap();
    assert_eq!((effect.from.as_deref(), effect.to.as_deref()), (Some("defer"), Some("deny")));
    assert_eq!((effect.direction, diff.rules[0].direction), (Direction::Stricter, Direction::Stricter));
    let [case] = diff.cases.changed.as_slice() else { panic!("one case, though both packs have it: {diff:#?}") };
    assert_eq!((case.from, case.to, case.direction), (Some(Verdict::Defer), Some(Verdict::Deny), Direction::Stricter));
    assert_eq!(between(&new, &old).rules[0].direction, Direction::Looser);
}

#[test]
fn a_condition_is_told_in_both_texts_and_judged_by_its_parts() {
    let amount = "context.custom.amount > 500 }";
    let more = "context.custom.amount > 500 && context.custom.amount < 900 }";
    let [narrower, wider] = rule_edit(amount, more);
    let condition = narrower.rules[0].condition.as_ref().unwrap();
    assert_eq!(condition.from, ["when { context.custom has amount && context.custom.amount > 500 }"]);
    assert_eq!(
        condition.to,
        ["when { context.custom has amount && context.custom.amount > 500 && context.custom.amount < 900 }"]
    );
    assert_eq!((narrower.rules[0].direction, wider.rules[0].direction), (Direction::Looser, Direction::Stricter));
    let [excepted, not_excepted] = rule_edit(amount, &format!("{amount} unless {{ context.high_effect }}"));
    assert_eq!(
        (excepted.rules[0].direction, not_excepted.rules[0].direction),
        (Direction::Looser, Direction::Stricter)
    );
    let one = format!("{amount} unless {{ context.high_effect }}");
    let fewer = format!("{amount} unless {{ context.high_effect && context.side_effects }}");
    let text = |condition: &str| rule_file().replace(amount, condition);
    let [old, new] = [text(&one), text(&fewer)].map(|text| pack("", &edited("ours.cedar", &text)));
    assert_eq!(between(&old, &new).rules[0].direction, Direction::Stricter, "fewer exceptions");
    let [number, _] = rule_edit("> 500", ">= 501");
    assert_eq!(number.rules[0].direction, Direction::Unclear);
    assert!(number.outcome.is_looser(), "what cannot be judged counts as looser");
}

#[test]
fn a_request_that_one_pack_refuses_is_counted_as_such() {
    let window = |days: &str| {
        let hours = "opens = \"11:00\"\ncloses = \"13:00\"\n";
        let named = weakens("numbers", &["windows.noon"]);
        format!("[windows.noon]\nzone = \"Etc/UTC\"\ndays = {days}\n{hours}{named}")
    };
    let case = |expect: &str| {
        format!(
            r#"[{{"id": "noon", "expect": ["{expect}"], "request": {{"goal": "Summarize the minutes of May",
            "success_criteria": ["x"], "constraints": ["allowed_change_window: noon"]}}}}]"#
        )
    };
    let old = Pack::embedded().unwrap();
    let rules = [("ours.cedar", rule_file()), with_rule()[1], with_rule()[2], ("cases-ours.json", with_rule()[3].1)];
    for (days, verdict) in [("[\"mon\"]", Verdict::Allow), ("[\"tue\"]", Verdict::Defer)] {
        let cases = case(verdict.as_str());
        let files: Files<'_> = rules.iter().copied().chain([("cases.json", cases.as_str())]).collect();
        let new = pack(&window(days), &files);
        let diff = between(&old, &new);
        let noon = diff.cases.changed.iter().find(|case| case.case == "noon").unwrap();
        assert_eq!(
            (noon.from, noon.to, noon.direction),
            (None, Some(verdict), Direction::Looser),
            "it could not pass before"
        );
        assert!(noon.old_rules.is_empty());
        assert_eq!((diff.cases.only_new_decides, diff.cases.only_old_decides), (1, 0));
        let back = between(&new, &old);
        assert_eq!((back.cases.only_new_decides, back.cases.only_old_decides), (0, 1));
        assert_eq!(back.cases.decided, diff.cases.decided);
        assert!(diff.cases.none_decides > 0, "the baseline has cases of requests that are refused");
    }
    // A refusal lets no less pass than a DENY.
    let denies = rule_file()
        .replace("@effect(\"defer\")", "@effect(\"deny\")")
        .replace("@next_action(\"request_approval\")", "@next_action(\"stop\")")
        .replace("context.custom has amount && context.custom.amount > 500", "context.windows_open.contains(\"noon\")");
    let cases = case("DENY");
    let files = vec![("ours.cedar", denies.as_str()), with_rule()[2], ("cases.json", cases.as_str())];
    let diff = between(&old, &pack(&window("[\"mon\"]"), &files));
    let noon = diff.cases.changed.iter().find(|case| case.case == "noon").unwrap();
    assert_eq!((noon.from, noon.to, noon.direction), (None, Some(Verdict::Deny), Direction::Neutral));
    assert_eq!(diff.cases.changed.last(), Some(noon), "what is neither looser nor stricter comes last");
}

#[test]
fn the_looser_cases_come_first_and_the_largest_steps_before_the_others() {
    let left_out = ["approval.communication", "effects.high_without_guardrail", "secrets.in_request"];
    let new = pack(&weakens("without", &left_out), &with_rule());
    let diff = between(&Pack::embedded().unwrap(), &new);
    let steps: Vec<_> = diff.cases.changed.iter().map(|case| (case.from.unwrap(), case.to.unwrap())).collect();
    let mut seen = steps.clone();
    seen.dedup();
    use Verdict::{Allow, Defer, Deny};
    assert_eq!(seen, [(Deny, Allow), (Deny, Defer), (Defer, Allow), (Allow, Defer)]);
    let looser = steps.iter().filter(|(from, to)| from > to).count();
    assert_eq!((diff.outcome.looser.cases, diff.outcome.stricter.cases), (looser, steps.len() - looser));
    let deny = &diff.cases.changed[0];
    assert!(
        deny.old_rules.iter().all(|rule| left_out.contains(&rule.rule.as_str()) && rule.line.is_some()),
        "{deny:#?}"
    );
}

#[test]
fn no_more_than_4000_cases_are_decided_and_the_others_are_counted() {
    let cases = |name: &str, count: usize| -> String {
        let case = |n: usize| {
            format!(
                r#"{{"id": "{name}-{n}", "expect": ["ALLOW"], "request": {{"goal": "Summarize page {n} of {name}",
                "success_criteria": ["x"]}}}}"#
            )
        };
        format!("[{}]", (0..count).map(case).collect::<Vec<_>>().join(",\n"))
    };
    let of_baseline = between(&Pack::embedded().unwrap(), &Pack::embedded().unwrap()).cases;
    let inherited = of_baseline.decided + of_baseline.none_decides;
    let packs = ["one", "two"].map(|name| pack("", &[("cases.json", cases(name, 2_000).as_str())]));
    let found = between(&packs[0], &packs[1]).cases;
    assert_eq!(found.left_out, inherited);
    let refused = of_baseline.none_decides;
    assert_eq!((found.decided, found.none_decides, found.changed.len()), (4_000 - refused, refused, 0));
}

#[test]
fn no_secret_of_a_case_is_part_of_the_difference() {
    let case = |goal: &str| {
        format!(
            r#"[{{"id": "told", "expect": ["ALLOW"], "request": {{"goal": "{goal}", "success_criteria": ["x"]}}}}]"#
        )
    };
    let without = weakens("without", &["secrets.in_request"]);
    let secret = case("Summarize what password=hunter22 opens");
    let diff = between(&Pack::embedded().unwrap(), &pack(&without, &[("cases.json", secret.as_str())]));
    let told = diff.cases.changed.iter().find(|case| case.case == "told").unwrap();
    assert_eq!((told.goal.as_str(), told.from, told.to), ("[redacted]", Some(Verdict::Deny), Some(Verdict::Allow)));
    assert!(!serde_json::to_string(&diff).unwrap().contains("hunter22"));
    // A form that only one of the packs knows hides the text of both.
    let form = "[[forms]]\nkind = \"acme\"\npatterns = ['acmekey_[0-9a-z]{20,}']\n";
    let acme = case("Summarize the use of acmekey_0123456789abcdefghij0").replace("ALLOW", "DENY");
    let diff = between(&Pack::embedded().unwrap(), &pack("", &[("secrets.toml", form), ("cases.json", acme.as_str())]));
    let told = diff.cases.changed.iter().find(|case| case.case == "told").unwrap();
    assert_eq!((told.goal.as_str(), told.from, told.to), ("[redacted]", Some(Verdict::Allow), Some(Verdict::Deny)));
    assert!(!serde_json::to_string(&diff).unwrap().contains("acmekey_0"));
    let harmless = between(&Pack::embedded().unwrap(), &with_our_rule());
    assert_eq!(harmless.cases.changed[0].goal, "Pay the invoice of May");
}

#[test]
fn every_template_is_compared_with_the_baseline() {
    let baseline = Pack::embedded().unwrap();
    for name in Pack::templates() {
        let template = Pack::template(name).unwrap().unwrap();
        let diff = between(&baseline, &template);
        let ours = diff.rules.iter().filter(|rule| rule.change == Change::Added).count();
        assert_eq!(ours, template.rule_count() - baseline.rule_count(), "{name}: none of them leaves a rule out");
        assert!(ours > 0 && diff.words.is_empty() && diff.outcome.stricter.cases > 0, "{name}: {:?}", diff.outcome);
        assert_eq!(diff.outcome.is_looser(), template.weakened().is_some(), "{name}: {:?}", diff.outcome);
        assert_eq!(diff.weakens.len(), usize::from(template.weakened().is_some()), "{name}");
        let named = template.weakened().map(|weakened| weakened.replaces.clone()).unwrap_or_default();
        let changed = diff.rules.iter().filter(|rule| rule.change == Change::Changed);
        for rule in changed {
            let is_named = named.contains(&rule.rule);
            assert!(is_named || rule.direction == Direction::Stricter, "{name}: {rule:#?}");
        }
        let is_told =
            |id: &String| diff.rules.iter().any(|rule| rule.rule == *id && rule.direction == Direction::Looser);
        assert!(named.iter().all(is_told), "{name}: {named:?}");
        assert_eq!(diff.cases.left_out, 0, "{name}");
        let back = between(&template, &baseline);
        let Outcome { looser, stricter, .. } = diff.outcome;
        assert_eq!((back.outcome.looser.cases, back.outcome.stricter.cases), (stricter.cases, looser.cases), "{name}");
        assert_ne!(back.diff_digest, diff.diff_digest, "{name}");
    }
}

/// Canonical JSON as the reference says: members by name, no blanks.
fn canonical(value: &Value) -> String {
    let joined = |parts: Vec<String>| parts.join(",");
    match value {
        Value::Object(members) => {
            let mut sorted: Vec<_> = members.iter().collect();
            sorted.sort_by_key(|(name, _)| *name);
            let member =
                |(name, value): (&String, &Value)| format!("{}:{}", Value::from(name.as_str()), canonical(value));
            format!("{{{}}}", joined(sorted.into_iter().map(member).collect()))
        }
        Value::Array(items) => format!("[{}]", joined(items.iter().map(canonical).collect())),
        other => other.to_string(),
    }
}

#[test]
fn the_digest_is_of_all_that_is_shown() {
    let (old, new) = (Pack::embedded().unwrap(), with_our_rule());
    let diff = between(&old, &new);
    let mut shown = serde_json::to_value(&diff).unwrap();
    shown.as_object_mut().unwrap().remove("diff_digest");
    let hex: String = Sha256::digest(canonical(&shown)).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(diff.diff_digest, hex);
    assert_eq!(between(&old, &new).diff_digest, hex, "it does not depend on chance");
    let members: Vec<&String> = shown.as_object().unwrap().keys().collect();
    assert_eq!(members, ["old", "new", "outcome", "rules", "words", "values", "weakens", "cases"]);
    let message = rule_file().replace("is large", "is too large");
    assert_ne!(between(&old, &pack("", &edited("ours.cedar", &message))).diff_digest, hex);
}
