//! `stage0 policy vocabulary`: the words of a pack and what its codes mean, as a page for people or as JSON.
//!
//! Owns the form of both. The words are the evaluator's; the page at `/docs` holds what `--html` prints of the baseline.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Map, Value};
use stage0_evaluator::Pack;

use crate::out;

/// In which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Text,
    Json,
    Html,
}

/// A heading and a table.
struct Section {
    id: String,
    heading: String,
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
        Form::Html => Ok(out::write(html(&sections(pack.reference())).as_bytes())?),
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
            sections.push(Section {
                id: member.to_owned(),
                heading: heading.to_owned(),
                columns: vec!["list", "words"],
                rows,
            });
        }
    }
    sections
}

fn codes(reference: &Map<String, Value>) -> Section {
    let rows = reference.get("codes").and_then(Value::as_array).into_iter().flatten();
    let row = |code: &Value| ["code", "severity", "meaning", "remedy"].map(|name| told(code.get(name))).to_vec();
    Section {
        id: "codes".to_owned(),
        heading: "Codes".to_owned(),
        columns: vec!["code", "severity", "meaning", "what settles it"],
        rows: rows.map(row).collect(),
    }
}

/// An array of objects, as a table of some of their members.
fn table(reference: &Map<String, Value>, member: &str, heading: &str, columns: &[&'static str]) -> Option<Section> {
    let items = reference.get(member)?.as_array()?;
    let row = |item: &Value| columns.iter().map(|column| told(item.get(column))).collect();
    let rows = items.iter().map(row).collect();
    Some(Section { id: member.to_owned(), heading: heading.to_owned(), columns: columns.to_vec(), rows })
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
        other => rows.push(vec![path.to_owned(), told(Some(other))]),
    }
}

fn told(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(yes)) => if *yes { "yes" } else { "no" }.to_owned(),
        Some(Value::Array(items)) => items.iter().map(|item| told(Some(item))).collect::<Vec<_>>().join(", "),
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

fn html(sections: &[Section]) -> String {
    let mut page = String::new();
    for Section { id, heading, columns, rows } in sections {
        let _ = writeln!(page, "<h3 id=\"words-{}\">{}</h3>", escaped(id), escaped(heading));
        page.push_str("<div class=\"scroll\"><table>\n<tr>");
        for column in columns {
            let _ = write!(page, "<th>{}</th>", escaped(column));
        }
        page.push_str("</tr>\n");
        for row in rows {
            page.push_str("<tr>");
            for (index, cell) in row.iter().enumerate() {
                let cell = escaped(cell);
                let _ = if index == 0 {
                    write!(page, "<td><code>{cell}</code></td>")
                } else {
                    write!(page, "<td>{cell}</td>")
                };
            }
            page.push_str("</tr>\n");
        }
        page.push_str("</table></div>\n");
    }
    page
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
