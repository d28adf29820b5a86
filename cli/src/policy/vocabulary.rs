//! `stage0 policy vocabulary`: the words of a pack and what its codes mean, as text, as Markdown or as JSON.
//!
//! Owns the form of each; the words come from the evaluator. `docs/vocabulary.md`, which is also a page at `/docs`,
//! is what `--markdown` prints for the baseline; a test compares the two.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Map, Value};
use stage0_policy::Pack;

use crate::out;

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Text,
    Json,
    Markdown,
}

const PREFACE: &str = "\
# Codes and words

The reason codes of the baseline policy, and every word that it knows. `GET /v1/policy/vocabulary` (any valid key)
answers those of the policy in force. Made by `stage0 policy vocabulary --markdown`; do not edit.
";

/// A heading and a table.
struct Section {
    heading: &'static str,
    columns: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

/// Prints the vocabulary of a folder's pack, or of the one that is compiled in.
pub(super) fn vocabulary(dir: Option<&Path>, form: Form) -> anyhow::Result<()> {
    let pack = match dir {
        Some(dir) => Pack::from_dir(dir)?,
        None => Pack::embedded()?,
    };
    match form {
        Form::Json => out::json(pack.reference()),
        Form::Text => Ok(out::line(text(&sections(pack.reference())))?),
        Form::Markdown => Ok(out::write(markdown(&sections(pack.reference())).as_bytes())?),
    }
}

fn sections(reference: &Map<String, Value>) -> Vec<Section> {
    let mut sections = vec![codes(reference)];
    sections.extend(table(reference, "context", "Members of context", &["name", "type", "meaning"]));
    sections.extend(table(reference, "constraint_forms", "Constraints", &["name", "value", "aliases", "guardrail"]));
    for (member, heading) in [
        ("classes", "Side effects by class"),
        ("sensitive_tools", "Tools that can do anything"),
        ("side_effects", "How side effects are read"),
        ("tools", "How names of tools are read"),
        ("constraints", "Guardrails, tags and aliases"),
        ("vocabulary", "Environments, approvals, goals"),
    ] {
        let mut rows = Vec::new();
        if let Some(words) = reference.get(member) {
            lists("", words, &mut rows);
        }
        if !rows.is_empty() {
            sections.push(Section { heading, columns: vec!["list", "words"], rows });
        }
    }
    sections
}

fn codes(reference: &Map<String, Value>) -> Section {
    let rows = reference.get("codes").and_then(Value::as_array).into_iter().flatten();
    let row = |code: &Value| ["code", "severity", "meaning", "remedy"].map(|name| cell(code.get(name))).to_vec();
    Section {
        heading: "Codes",
        columns: vec!["code", "severity", "meaning", "what settles it"],
        rows: rows.map(row).collect(),
    }
}

/// An array of objects, as a table of some of their members.
fn table(
    reference: &Map<String, Value>,
    member: &str,
    heading: &'static str,
    columns: &[&'static str],
) -> Option<Section> {
    let items = reference.get(member)?.as_array()?;
    let row = |item: &Value| columns.iter().map(|column| cell(item.get(column))).collect();
    let rows = items.iter().map(row).collect();
    Some(Section { heading, columns: columns.to_vec(), rows })
}

/// Every list of words below a value, by its path.
fn lists(path: &str, value: &Value, rows: &mut Vec<Vec<String>>) {
    match value {
        Value::Object(members) => {
            for (name, inner) in members {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                lists(&path, inner, rows);
            }
        }
        other => rows.push(vec![path.to_owned(), cell(Some(other))]),
    }
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(yes)) => if *yes { "yes" } else { "no" }.to_owned(),
        Some(Value::Array(items)) => items.iter().map(|item| cell(Some(item))).collect::<Vec<_>>().join(", "),
        Some(other) => other.to_string(),
    }
}

fn text(sections: &[Section]) -> String {
    let mut text = String::new();
    for Section { heading, rows, .. } in sections {
        if !text.is_empty() {
            text.push_str("\n\n");
        }
        text.push_str(heading);
        for row in rows {
            let mut cells = row.iter().filter(|cell| !cell.is_empty());
            let first = cells.next().map_or("", String::as_str);
            let _ = write!(text, "\n  {first}");
            for cell in cells {
                let _ = write!(text, "\n      {cell}");
            }
        }
    }
    text
}

/// A whole document: `docs/vocabulary.md` is this for the baseline.
fn markdown(sections: &[Section]) -> String {
    let mut page = PREFACE.to_owned();
    for Section { heading, columns, rows } in sections {
        let _ = write!(page, "\n## {heading}\n\n| {} |\n|{}\n", columns.join(" | "), " --- |".repeat(columns.len()));
        for row in rows {
            let cells = row.iter().enumerate().map(|(index, cell)| match index {
                0 => format!("`{}`", cell.replace('|', "\\|")),
                _ => prose(cell),
            });
            let _ = writeln!(page, "| {} |", cells.collect::<Vec<_>>().join(" | "));
        }
    }
    page
}

/// Escapes what means something in a Markdown table, except code spans.
fn prose(text: &str) -> String {
    let mut escaped = String::new();
    for (index, part) in text.split('`').enumerate() {
        if index > 0 {
            escaped.push('`');
        }
        for letter in part.chars() {
            let code = index % 2 == 1;
            if letter == '|' || (!code && "\\*<".contains(letter)) {
                escaped.push('\\');
            }
            escaped.push(letter);
        }
    }
    escaped
}
