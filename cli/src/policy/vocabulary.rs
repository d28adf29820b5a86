//! `stage0 policy vocabulary`: the words of a pack and what its codes mean, as text, as Markdown or as JSON.
//! `docs/vocabulary.md` is what `--markdown` prints for the baseline; a test compares the two.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Map, Value};
use stage0_policy::Pack;

use super::markdown;
use crate::out;

const PREFACE: &str = "\
# Codes and words

<!-- Written by `stage0 policy vocabulary --markdown`; do not edit it. -->

The reason codes of the baseline policy, and every word that it knows. `GET /v1/policy/vocabulary` (any valid key)
answers those of the policy in force.
";

struct Section {
    heading: &'static str,
    columns: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

pub(super) fn vocabulary(dir: Option<&Path>, as_json: bool, as_markdown: bool) -> anyhow::Result<()> {
    let pack = dir.map_or_else(Pack::embedded, Pack::from_dir)?;
    let reference = pack.reference();
    if as_json {
        return out::json(reference);
    }
    if as_markdown {
        return Ok(out::write(document(&sections(reference)).as_bytes())?);
    }
    Ok(out::line(text(&sections(reference)))?)
}

fn sections(reference: &Map<String, Value>) -> Vec<Section> {
    let codes = table(reference, "codes", "Codes", &["code", "severity", "meaning", "remedy"]);
    let columns = vec!["code", "severity", "meaning", "what settles it"];
    let mut sections = Vec::from_iter(codes.map(|codes| Section { columns, ..codes }));
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

fn document(sections: &[Section]) -> String {
    let mut page = PREFACE.to_owned();
    for Section { heading, columns, rows } in sections {
        let _ = write!(page, "\n## {heading}\n\n{}", markdown::table(columns, rows));
    }
    page
}
