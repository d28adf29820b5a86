//! The documents for people who write policy are true: every recipe is a pack that passes its cases, every command of
//! the guide does what the guide says, and the reference names what exists.
//!
//! Recipes are taken from the Markdown as they stand and put into packs of their own, so that none rests on another.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::Value;
use stage0_tests::command;

use crate::docs_commands::{free_ports, programs, run};
use crate::docs_examples::{blocks, document};

const GUIDE: &str = "policy/guide.md";
const RECIPES: &str = "policy/recipes.md";
const REFERENCE: &str = "policy/reference.md";
const MAP: &str = "policy/README.md";

/// The files of a pack that fenced blocks add up to.
#[derive(Default, Clone)]
struct Pack {
    manifest: String,
    rules: String,
    schema: String,
    codes: String,
    /// Files of words, by name.
    words: BTreeMap<String, String>,
    cases: Vec<Value>,
}

impl Pack {
    fn add(&mut self, text: &str) {
        for block in blocks(text, "toml") {
            let named = block.lines().next().and_then(|line| line.strip_prefix("# "));
            let file = match named.filter(|name| name.ends_with(".toml")).unwrap_or("pack.toml") {
                "pack.toml" => &mut self.manifest,
                "codes.toml" => &mut self.codes,
                name => self.words.entry(name.to_owned()).or_default(),
            };
            file.push_str(&block);
            file.push('\n');
        }
        self.rules.push_str(&blocks(text, "cedar").concat());
        self.schema.push_str(&blocks(text, "cedarschema").concat());
        for block in blocks(text, "json") {
            let cases: Vec<Value> = serde_json::from_str(&block).unwrap_or_else(|error| panic!("{error}: {block}"));
            self.cases.extend(cases);
        }
    }

    fn write(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("pack.toml"), &self.manifest).unwrap();
        let cases = if self.cases.is_empty() { String::new() } else { serde_json::to_string(&self.cases).unwrap() };
        let words = self.words.iter().map(|(name, text)| (name.as_str(), text));
        let others = [
            ("rules.cedar", &self.rules),
            ("schema.cedarschema", &self.schema),
            ("codes.toml", &self.codes),
            ("cases.json", &cases),
        ];
        for (name, text) in words.chain(others) {
            if !text.is_empty() {
                fs::write(folder.join(name), text).unwrap();
            }
        }
    }

    /// What `stage0 policy` says about it, and whether it is content.
    fn policy(&self, verb: &str) -> (bool, String) {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("acme");
        self.write(&folder);
        said(command().args(["policy", verb]).arg(&folder).output().unwrap())
    }
}

fn said(output: Output) -> (bool, String) {
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// The parts of a document below each heading of the second level, with the heading.
fn sections(text: &str) -> Vec<(&str, &str)> {
    text.split("\n## ").skip(1).map(|section| section.split_once('\n').unwrap()).collect()
}

/// The recipes by name, each as a pack that extends the baseline.
fn recipes() -> Vec<(String, Pack)> {
    let text = document(RECIPES);
    let (with_rules, others): (Vec<_>, Vec<_>) =
        sections(&text).into_iter().partition(|(_, section)| !blocks(section, "cedar").is_empty());
    let mut base = Pack::default();
    others.iter().for_each(|(_, section)| base.add(section));
    assert!(base.manifest.contains("extends = \"baseline@2\""), "{}", base.manifest);
    let recipe = |(name, section): (&str, &str)| {
        let mut pack = base.clone();
        pack.add(section);
        (name.to_owned(), pack)
    };
    with_rules.into_iter().map(recipe).collect()
}

fn recipe(name: &str) -> Pack {
    recipes().into_iter().find(|(known, _)| known == name).map(|(_, pack)| pack).unwrap()
}

#[test]
fn every_recipe_is_a_pack_that_passes_its_cases_and_has_nothing_to_lint() {
    let recipes = recipes();
    assert!(recipes.len() >= 12, "{} recipes", recipes.len());
    let mut wrong = vec![];
    for (name, pack) in &recipes {
        for verb in ["test", "lint"] {
            let (passes, said) = pack.policy(verb);
            if !passes {
                wrong.push(format!("{name}: policy {verb}: {said}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_recipe_says_the_sentence_and_what_it_does_not_cover_and_refuses_and_allows_something() {
    let text = document(RECIPES);
    let sections: Vec<_> = sections(&text).into_iter().filter(|(_, text)| text.contains("```cedar\n")).collect();
    assert_eq!(sections.len(), recipes().len());
    for (name, section) in sections {
        assert!(section.trim_start().starts_with("> "), "{name}: the sentence");
        assert_eq!(section.matches("**Not covered:** ").count(), 1, "{name}");
        let mut pack = Pack::default();
        pack.add(section);
        let expected: BTreeSet<&str> = pack
            .cases
            .iter()
            .flat_map(|case| case["expect"].as_array().unwrap())
            .map(|v| v.as_str().unwrap())
            .collect();
        assert!(expected.contains("ALLOW") && expected.len() > 1, "{name}: {expected:?}");
    }
}

#[test]
fn a_recipe_with_another_number_fails_the_case_that_stands_for_the_number() {
    for (name, right, wrong, case) in [
        ("A spending limit", "amount <= 500", "amount <= 499", "refund-at-the-limit"),
        ("A spending limit", "amount <= 500", "amount <= 501", "refund-above-the-limit"),
        ("At most three e-mails in a run", "send_email < 3", "send_email < 4", "mail-the-fourth"),
        ("psql only in staging", "[\"staging\"]", "[\"production\"]", "psql-in-staging"),
    ] {
        let mut pack = recipe(name);
        assert!(pack.rules.contains(right), "{name}");
        pack.rules = pack.rules.replace(right, wrong);
        let (passes, said) = pack.policy("test");
        assert!(!passes && said.contains(case), "{name}: {said}");
    }
}

/// The form that the guide warns of.
#[test]
fn a_limit_that_lists_what_is_wrong_lets_through_what_has_no_amount() {
    let mut pack = recipe("A spending limit");
    let (before, after) = pack.rules.split_once("when {").unwrap();
    assert!(after.contains("unless {"));
    let lists_what_is_wrong = "when {
        context.tools.contains(\"refund\") && context.custom has amount && context.custom.amount > 500
    };";
    pack.rules = format!("{before}{lists_what_is_wrong}");
    let (passes, said) = pack.policy("test");
    assert!(!passes && said.contains("refund-without-an-amount"), "{said}");
    assert!(!said.contains("refund-above-the-limit"), "{said}");
}

/// `stage0 dev` runs in the background, on a port of this test, until the script ends.
const STANDS_IN: &str = r#"
set -e -o pipefail
started=
trap '[ -z "$started" ] || { kill $started; wait; }' EXIT
stage0() {
  [ "$1" = dev ] || { command stage0 "$@"; return; }
  command stage0 "$@" --listen 127.0.0.1:8443 > dev.log 2>&1 &
  started=$!
  for _ in $(seq 300); do grep -q 'is ready at' dev.log && return; sleep 0.1; done
  cat dev.log
  return 1
}
"#;

#[test]
fn the_guide_ends_with_refusals_of_a_running_server() {
    let directory = tempfile::tempdir().unwrap();
    let bin = programs(directory.path());
    let text = document(GUIDE);
    let steps = blocks(&text, "sh");
    assert!(steps.len() >= 9, "{} blocks", steps.len());
    let port = free_ports().next().unwrap().to_string();
    let script = format!("{STANDS_IN}{}", steps.concat()).replace("8443", &port);
    let said = run(directory.path(), &bin, &script);
    for expected in [
        "REFUND_TOO_LARGE: a refund of more than 500 is not allowed",
        "\"custom.amount\":750",
        "ALLOW (GO)",
        "DEPLOYMENT_BY_OTHERS",
    ] {
        assert!(said.contains(expected), "`{expected}` in:\n{said}");
    }
    let explained = blocks(&text, "text").into_iter().find(|block| block.starts_with("Rules that apply")).unwrap();
    assert!(said.contains(&explained), "`{explained}` in:\n{said}");
    // The rule that the guide explains first is the one that it has the reader write.
    let shown = blocks(&text, "cedar").swap_remove(0);
    assert!(steps.iter().any(|step| step.contains(&shown)), "{shown}");
}

#[test]
fn the_rules_about_runs_that_the_guide_shows_are_those_of_the_recipes() {
    let shown = blocks(&document(GUIDE), "cedar").swap_remove(1);
    let all: String = recipes().into_iter().map(|(_, pack)| pack.rules).collect();
    let conditions: Vec<_> = shown.split("\n\n").map(|rule| rule.split_once('\n').unwrap().1.trim_end()).collect();
    assert_eq!(conditions.len(), 3);
    for condition in conditions {
        assert!(all.contains(&format!("{condition};\n")), "{condition}");
    }
}

#[test]
fn the_rule_of_the_readme_passes_the_cases_of_its_recipe() {
    let mut pack = recipe("A spending limit");
    pack.rules = blocks(&document("../README.md"), "cedar").concat();
    assert!(pack.rules.contains("forbid"));
    let (passes, said) = pack.policy("test");
    assert!(passes, "{said}");
}

#[test]
fn the_rule_the_manifest_and_the_cases_of_the_reference_are_one_pack() {
    let text = document(REFERENCE);
    let mut pack = Pack::default();
    for (heading, section) in sections(&text) {
        if ["Files", "Rules", "Cases"].contains(&heading) {
            pack.add(section);
        }
    }
    pack.schema = recipe("A spending limit").schema;
    pack.codes = recipe("A spending limit").codes;
    let (passes, said) = pack.policy("test");
    assert!(passes, "{said}");
}

#[test]
fn the_weakening_of_the_reference_loads_and_each_line_of_it_is_needed() {
    let text = document(REFERENCE);
    let manifest = blocks(&text, "toml").into_iter().find(|block| block.contains("\nwithout = ")).unwrap();
    let of = |manifest: String| Pack { manifest, ..Pack::default() }.policy("validate");
    let (valid, said) = of(manifest.clone());
    assert!(valid, "{said}");
    for (line, expected) in
        [("reason = ", "reason"), ("without = ", "weakens"), ("numbers = ", "windows.business_hours")]
    {
        let rest: Vec<_> = manifest.lines().filter(|text| !text.starts_with(line)).collect();
        assert_eq!(rest.len() + 1, manifest.lines().count(), "{line}");
        let (valid, said) = of(rest.join("\n"));
        // Without its line, a rule is simply not left out: the pack is valid, and milder in one thing less.
        assert_eq!(valid, line == "without = ", "{line}: {said}");
        assert!(valid || said.contains(expected), "{line}: {said}");
    }
}

#[test]
fn the_words_of_the_reference_are_one_pack_and_weakens_names_exactly_the_milder_ones() {
    let text = document(REFERENCE);
    let mut pack = Pack::default();
    let sections = sections(&text);
    pack.add(sections.iter().find(|(heading, _)| *heading == "Words").unwrap().1);
    assert_eq!(pack.words.len(), 4, "{:?}", pack.words.keys());
    for verb in ["test", "lint"] {
        let (passes, said) = pack.policy(verb);
        assert!(passes, "{verb}: {said}");
    }
    let milder = ["reconcile", "jira_key_required", "preprod"];
    let names = |names: &[&str]| {
        let shown = format!("words = {milder:?}");
        assert!(pack.manifest.contains(&shown), "{}", pack.manifest);
        let manifest = pack.manifest.replace(&shown, &format!("words = {names:?}"));
        Pack { manifest, ..pack.clone() }.policy("validate")
    };
    for left_out in milder {
        let rest: Vec<_> = milder.into_iter().filter(|word| *word != left_out).collect();
        let (valid, said) = names(&rest);
        assert!(!valid && said.contains(&format!("add \"{left_out}\" to `words`")), "{left_out}: {said}");
    }
    for stricter in ["close_books", "deploybox"] {
        let (valid, said) = names(&[&milder[..], &[stricter]].concat());
        assert!(!valid && said.contains(&format!("`{stricter}` in `words` is not milder")), "{stricter}: {said}");
    }
}

#[test]
fn the_map_names_every_command_and_every_template_and_no_others() {
    let text = document(MAP);
    let rows = |start: &str| -> BTreeSet<String> {
        let rows = text.lines().filter_map(|line| line.strip_prefix(start));
        rows.map(|rest| rest.split([' ', '`', ']']).next().unwrap().to_owned()).collect()
    };
    let (_, help) = said(command().args(["policy", "--help"]).output().unwrap());
    let listed = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let known = listed.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let known: BTreeSet<_> = known.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect();
    assert_eq!(rows("| `stage0 policy "), known);

    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let templates: BTreeSet<_> = names.filter(|name| name != "baseline").collect();
    assert!(!templates.is_empty());
    assert_eq!(rows("| [").intersection(&templates).cloned().collect::<BTreeSet<_>>(), templates);
    let directory = tempfile::tempdir().unwrap();
    for template in templates {
        let made = directory.path().join(&template);
        let new = command().args(["policy", "new", "--template", &template]).arg(&made).output().unwrap();
        let (made_it, text) = said(new);
        assert!(made_it, "{template}: {text}");
        let (passes, text) = said(command().args(["policy", "test"]).arg(&made).output().unwrap());
        assert!(passes, "{template}: {text}");
    }
}
