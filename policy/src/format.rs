//! The one form of a pack's rules and cases, so that a change shows nothing else.
//!
//! Rules are laid out by Cedar's own formatter, each by itself: comments and blank lines between them stay. A case is
//! one line. No other file is changed, and what a rule or a case means never is.

mod cases;

use std::ops::Range;
use std::path::Path;

use cedar_policy_formatter::{Config, policies_str_to_pretty};

use crate::cedar_text;
use crate::files::{Fault, Files, PackError, line_of};
use crate::pack::{on_large_stack, shape};

pub use cases::{Acceptance, accept_case};

/// Room for `unless ` remains in a line of 120 columns.
const LINE_WIDTH: usize = 113;
const INDENT_WIDTH: isize = 4;

/// A file of a pack, and the form that it should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormattedFile {
    /// Its name.
    pub file: String,
    /// Its text in the one form.
    pub text: String,
    /// Whether the text differs from what the file holds.
    pub changed: bool,
}

/// Brings the rules and cases of a folder into the one form. Writes nothing. A text that cannot be parsed is a fault.
pub fn format_pack(folder: &Path) -> Result<Vec<FormattedFile>, PackError> {
    let files = Files::read(folder)?;
    on_large_stack(|| {
        let (mut formatted, mut faults) = (Vec::new(), Vec::new());
        let rules = files.policies().map(|(file, text)| (file, text, format_rules(file, text)));
        let cases = files.cases().map(|(file, text)| (file, text, cases::format(file, text)));
        for (file, text, result) in rules.chain(cases) {
            match result {
                Ok(result) => {
                    let changed = result != text;
                    formatted.push(FormattedFile { file: file.to_owned(), text: result, changed });
                }
                Err(found) => faults.extend(found),
            }
        }
        if faults.is_empty() { Ok(formatted) } else { Err(PackError { faults }) }
    })
}

fn format_rules(file: &str, text: &str) -> Result<String, Vec<Fault>> {
    shape::statements(file, text).map_err(|fault| vec![fault])?;
    if let Err(errors) = text.parse::<cedar_policy::PolicySet>() {
        return Err(errors.iter().map(|error| Fault::diagnosed(file, text, error)).collect());
    }
    let config = Config { line_width: LINE_WIDTH, indent_width: INDENT_WIDTH };
    let (mut formatted, mut end) = (String::new(), 0);
    for Range { start, end: after } in cedar_text::statements(text) {
        formatted.push_str(&between(text.get(end..start).unwrap_or_default(), end == 0));
        let statement = text.get(start..after).unwrap_or_default();
        let pretty = policies_str_to_pretty(statement, &config)
            .map_err(|error| vec![Fault::new(file, error.to_string()).at(line_of(text, start))])?;
        formatted.push_str(&cedar_text::with_braces_beside(pretty.trim_end()));
        end = after;
    }
    formatted.push_str(between(text.get(end..).unwrap_or_default(), end == 0).trim_end());
    formatted.push('\n');
    Ok(formatted)
}

/// What stands between two rules: comments in lines of their own, without trailing spaces; at most one blank line. A
/// comment behind the semicolon of the first stays in its line.
fn between(text: &str, is_first: bool) -> String {
    let mut lines: Vec<&str> = Vec::new();
    for line in text.lines().map(str::trim) {
        if !(line.is_empty() && lines.last().is_none_or(|last| last.is_empty())) {
            lines.push(line);
        }
    }
    let is_behind = !is_first && text.lines().next().is_some_and(|first| !first.trim().is_empty());
    if is_behind && lines.get(1).is_none_or(|second| !second.is_empty()) {
        lines.insert(1, "");
    }
    let shown: String = lines.iter().map(|line| format!("{line}\n")).collect();
    match (is_first, is_behind) {
        (true, _) => shown,
        (false, true) => format!(" {shown}"),
        (false, false) => format!("\n\n{shown}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn formatted(text: &str) -> String {
        format_rules("a.cedar", text).unwrap()
    }

    const GOOD: &str = "// File.\n\n// Of the rule.\n@id(\"a\")\nforbid (principal, action, resource)\n\
                        when { context.a };\n\n@id(\"b\")\nforbid (principal, action, resource); // Why.\n\n// Last.\n";

    #[test]
    fn comments_and_blank_lines_between_rules_stay() {
        assert_eq!(formatted(GOOD), GOOD);
        let untidy = GOOD
            .replace("\n\n", "\n\n\n\n")
            .replace("(principal, action, resource)", "( principal,action ,\n\nresource )")
            .replace("// Of the rule.", "   // Of the rule.   ");
        assert_eq!(formatted(&untidy), GOOD);
    }

    #[test]
    fn a_rule_is_set_apart_from_the_one_before_it() {
        let text = "@id(\"a\") forbid (principal, action, resource);@id(\"b\")forbid (principal, action, resource);";
        let shown = formatted(text);
        assert_eq!(shown.matches("\n\n@id").count(), 1, "{shown}");
        assert_eq!(formatted(&shown), shown);
        assert_eq!(formatted("// Nothing yet.\n"), "// Nothing yet.\n");
        let rule = |id: &str| format!("@id(\"{id}\")\nforbid (principal, action, resource);");
        let behind = formatted(&format!("// File.\n\n{} // Behind.\n{}", rule("a"), rule("b")));
        assert_eq!(behind, format!("// File.\n\n{} // Behind.\n\n{}\n", rule("a"), rule("b")));
        assert_eq!(formatted(&behind), behind);
    }

    #[test]
    fn a_file_that_cannot_be_parsed_is_a_fault_and_stays() {
        let faults = format_rules("a.cedar", "@id(\"a\")\nforbid (principal;\n").unwrap_err();
        assert_eq!((faults[0].file.as_str(), faults[0].line), ("a.cedar", Some(2)));
        let deep = format!("forbid(principal, action, resource) when {{ {}1 }};", "(".repeat(50_000));
        assert!(format_rules("a.cedar", &deep).unwrap_err()[0].message.contains("nested deeper"));
    }
}
