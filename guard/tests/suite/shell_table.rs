//! Shell commands and what they are asked about: `fixtures/shell.json`, and what holds of every command.

use proptest::prelude::*;
use serde_json::Value;
use stage0_guard::{Reading, Table, classify};

const FIXTURE: &str = include_str!("../../fixtures/shell.json");
const CWD: &str = "/home/ada/project";

fn table() -> Table {
    Table::builtin().unwrap()
}

fn read(command: &str) -> Reading {
    classify(&table(), command, Some(CWD))
}

fn texts(value: Option<&Value>) -> Option<Vec<String>> {
    Some(value?.as_array()?.iter().map(|text| text.as_str().unwrap().to_owned()).collect())
}

#[test]
fn each_command_has_the_effects_of_its_group() {
    let groups: Value = serde_json::from_str(FIXTURE).unwrap();
    let table = table();
    let mut wrong = Vec::new();
    let mut count = 0;
    for group in groups.as_array().unwrap() {
        let (exactly, at_least) = (texts(group.get("effects")), texts(group.get("at_least")));
        let at_most = texts(group.get("at_most"));
        let rules = [&exactly, &at_least, &at_most].into_iter().flatten().count();
        assert_eq!(rules, 1, "{}: one of the three", group["about"]);
        for command in texts(group.get("commands")).unwrap() {
            count += 1;
            let reading = classify(&table, &command, Some(CWD));
            let holds = match (&exactly, &at_least) {
                (Some(effects), _) => reading.effects == *effects,
                (_, Some(effects)) => effects.iter().all(|effect| reading.effects.contains(effect)),
                _ => reading.effects.iter().all(|effect| at_most.iter().flatten().any(|allowed| allowed == effect)),
            };
            if !holds {
                wrong.push(format!("{}: {command:?} is {:?} {:?}", group["about"], reading.effects, reading.unread));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count >= 1_000, "{count}");
}

/// Commands of the fixture that are more than an ordinary change, with what they are at least.
fn grave() -> Vec<(String, Vec<String>)> {
    let groups: Value = serde_json::from_str(FIXTURE).unwrap();
    let ordinary = ["read", "execute", "filesystem_modification", "commit", "install", "external_api"];
    let mut grave = Vec::new();
    for group in groups.as_array().unwrap() {
        let effects = texts(group.get("effects")).or_else(|| texts(group.get("at_least"))).unwrap_or_default();
        if effects.iter().any(|effect| !ordinary.contains(&effect.as_str())) {
            let commands = texts(group.get("commands")).unwrap();
            grave.extend(commands.into_iter().map(|command| (command, effects.clone())));
        }
    }
    assert!(grave.len() > 300);
    grave
}

#[test]
fn nothing_harmless_around_a_command_makes_it_harmless() {
    let table = table();
    let mut wrong = Vec::new();
    // A backslash at the end joins the next line, which is what its command lacked.
    for (command, effects) in grave().into_iter().filter(|(command, _)| !command.ends_with('\\')) {
        for around in [
            format!("ls; {command}"),
            format!("true && {command}"),
            format!("ls\n{command}\n"),
            format!("{command}\nls -l"),
            format!("(\n{command}\n)"),
            format!("if true; then\n{command}\nfi"),
            format!("sleep 1 & {command}"),
        ] {
            let reading = classify(&table, &around, Some(CWD));
            // A command that ends its own parenthesis or quotation eats what is around it: unknown is as good.
            let holds = |effect: &String| {
                reading.effects.contains(effect) || reading.effects.iter().any(|found| found == "unknown")
            };
            if !effects.iter().all(holds) {
                wrong.push(format!("{around:?}: {:?}", reading.effects));
            }
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_command_of_the_largest_size_is_read_in_linear_time() {
    for piece in [
        "a;",
        "(",
        ")",
        "ls ",
        "'",
        "\"",
        "$x",
        "<<a\n",
        "nohup ",
        "env ",
        "xargs ",
        "cd a;",
        "cd ../b && (",
        "a|",
        ">a ",
        "find -exec ",
        "bash -c ",
        "\\",
        "#",
        "*{",
        "a=b ",
        "git -C ",
        "rm a/../",
        "s/a/b/;",
        "sed ",
    ] {
        let command = piece.repeat(1_000_000 / piece.len());
        let start = std::time::Instant::now();
        assert!(!read(&command).effects.is_empty());
        // Unoptimised and beside other work it takes a second; what grows with the square takes hours.
        assert!(start.elapsed().as_secs() < 60, "{piece:?}: {:?}", start.elapsed());
    }
}

#[test]
fn targets_are_named_as_a_policy_compares_them() {
    let reading = read("cp src/../a.rs /tmp/x && curl -s https://example.com/y > out/../b 2>/dev/null");
    assert_eq!(reading.targets, ["a.rs", "/tmp/x", "b", "https://example.com/y"]);
    let many = format!("touch {}", (0..300).map(|n| format!("f{n} ")).collect::<String>());
    let reading = read(&many);
    assert!(reading.targets.len() == 200 && reading.effects.contains(&"unknown".to_owned()), "{:?}", reading.effects);
}

proptest! {
    #[test]
    fn a_substitution_or_an_eval_is_never_harmless(
        before in "[ -~\n]{0,30}", mark in "(\\$\\(|`| eval )", after in "[ -~\n]{0,30}",
    ) {
        let reading = read(&format!("{before}{mark}{after}"));
        prop_assert!(reading.effects.contains(&"unknown".to_owned()), "{:?}", reading);
        prop_assert!(!reading.unread.is_empty());
    }

    #[test]
    fn any_text_is_read_without_a_fault_and_has_effects(command in "\\PC{0,60}|[ -~\n]{0,80}") {
        prop_assert!(!read(&command).effects.is_empty());
    }

    #[test]
    fn however_rm_is_spelled_it_deletes(quotes in proptest::collection::vec(0..4_usize, 2)) {
        let spelled: String = "rm".chars().zip(quotes).map(|(c, quote)| match quote {
            0 => c.to_string(),
            1 => format!("\\{c}"),
            2 => format!("'{c}'"),
            _ => format!("\"{c}\""),
        }).collect();
        let reading = read(&format!("{spelled} -rf build"));
        prop_assert_eq!(reading.effects, ["delete"], "{}", spelled);
    }
}
