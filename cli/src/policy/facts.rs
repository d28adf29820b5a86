//! `stage0 policy facts`: the facts that rules read and the triggers, from the evaluator's own table.
//! `docs/policy/facts.md` is what `--markdown` prints; a test compares the two.

use anyhow::ensure;
use stage0_policy::{FactRow, fact_table};

use super::markdown;
use crate::args::policy::FactsArgs;
use crate::out::{self, Terminal, wrapped};

const PREFACE: &str = "\
# Facts

<!-- Written by `stage0 policy facts --markdown`; do not edit it. -->

What a rule reads as `context.<fact>`. A type with `?` may be absent: ask with `context has <fact>` first. Facts marked
with ² are for packs of edition 2, and so for every pack that extends one.

Facts that hold *words* of the request are hidden in answers and in records where the request holds a secret. What the
request says of itself is not proven: only the facts of the caller are, by the key.

A value *cannot be read* if it has another type than the contract gives it, or if it is a name that mixes alphabets or
hides characters. It could stand for anything, so facts show it as `?` where their meaning says so, and no allow-list
holds `?`.
";

/// The groups of the table: name, heading, and what they have in common.
const GROUPS: [(&str, &str, &str); 6] = [
    ("request", "What the request declares", ""),
    ("proposal", "What the request proposes", "Read from the request when a rule of the pack names one of them."),
    ("time", "Time", "The moment of the check, at the server."),
    ("caller", "Caller", "What the key proves. A gateway that does not send them makes the rule fail, which denies."),
    (
        "run",
        "Run",
        "What the server has counted before this check. A rule that reads one of them must ask `context.run_named` \
         too: without a run nothing is counted.",
    ),
    (
        "custom",
        "Members of your own",
        "`type Custom` in the pack's schema declares them: `Bool`, `Long`, `String`, `decimal` and `Set<String>`, all \
         with `?`. A value of another type defers the check.",
    ),
];

const TRIGGERS: &str = "\
A rule is evaluated only where its `@trigger` holds; `always` is the default. A trigger saves time and changes no
decision: a pack in which one hides a rule that would apply is refused.
";

pub(super) fn facts(arguments: &FactsArgs) -> anyhow::Result<()> {
    let FactsArgs { word, json, markdown } = arguments;
    let rows: Vec<FactRow> = fact_table().filter(|row| matches(row, word.as_deref())).collect();
    if *json {
        return out::json(&rows);
    }
    if *markdown {
        return Ok(out::write(document(&rows).as_bytes())?);
    }
    let word = word.as_deref().unwrap_or_default();
    ensure!(!rows.is_empty(), "no fact and no trigger has `{word}` in its name; `stage0 policy facts` lists all");
    Ok(out::line(text(&rows))?)
}

fn matches(row: &FactRow, word: Option<&str>) -> bool {
    word.is_none_or(|word| row.group == word || row.name.contains(word))
}

fn type_of(row: &FactRow) -> Option<String> {
    let mark = if row.is_optional { "?" } else { "" };
    Some(format!("{}{mark}", row.cedar_type?))
}

fn text(rows: &[FactRow]) -> String {
    const WIDTH: usize = 100;
    const INDENT: usize = 6;
    let width = Terminal::of_stdout().width.unwrap_or(WIDTH).clamp(40, WIDTH);
    let mut text = String::new();
    let line = |row: &FactRow, kind: &str| {
        let marks = [(row.holds_words, "words"), (row.is_trigger && row.cedar_type.is_some(), "trigger")];
        let marks: Vec<&str> = marks.into_iter().filter(|(holds, _)| *holds).map(|(_, mark)| mark).collect();
        let marks = if marks.is_empty() { String::new() } else { format!("  ({})", marks.join(", ")) };
        let doc = wrapped(&format!("      {}", row.doc), width, INDENT);
        format!("\n  {}{kind}{marks}\n{doc}", row.name)
    };
    for (group, heading, about) in GROUPS {
        let of_group = rows.iter().filter(|row| row.group == group);
        let lines: String = of_group.filter_map(|row| Some(line(row, &format!(": {}", type_of(row)?)))).collect();
        if !lines.is_empty() {
            let about = if about.is_empty() { String::new() } else { format!("\n{}", wrapped(about, width, 0)) };
            text.push_str(&format!("\n\n{heading}{about}{lines}"));
        }
    }
    let triggers = rows.iter().filter(|row| row.cedar_type.is_none());
    let lines: String = triggers.map(|row| line(row, "")).collect();
    if !lines.is_empty() {
        text.push_str(&format!("\n\nTriggers that are no facts{lines}"));
    }
    text.trim_start().to_owned()
}

fn document(rows: &[FactRow]) -> String {
    let mut page = PREFACE.to_owned();
    for (group, heading, about) in GROUPS {
        let of_group = rows.iter().filter(|row| row.group == group);
        let cells: Vec<Vec<String>> = of_group.filter_map(cells).collect();
        let about = if about.is_empty() { String::new() } else { format!("{about}\n\n") };
        let table = markdown::table(&["fact", "type", "words", "meaning"], &cells);
        page.push_str(&format!("\n## {heading}\n\n{about}{table}"));
    }
    let triggers: Vec<Vec<String>> = rows
        .iter()
        .filter(|row| row.is_trigger)
        .map(|row| {
            let fact = if row.cedar_type.is_some() { "yes" } else { "" };
            vec![row.name.to_owned(), fact.to_owned(), row.doc.to_owned()]
        })
        .collect();
    page.push_str(&format!(
        "\n## Triggers\n\n{TRIGGERS}\n{}",
        markdown::table(&["trigger", "also a fact", "holds if"], &triggers)
    ));
    page
}

fn cells(row: &FactRow) -> Option<Vec<String>> {
    let edition = if row.edition > 1 { "²" } else { "" };
    let words = if row.holds_words { "words" } else { "" };
    Some(vec![row.name.to_owned(), format!("`{}`{edition}", type_of(row)?), words.to_owned(), row.doc.to_owned()])
}
