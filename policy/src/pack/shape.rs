//! The shape of Cedar's texts, before they are parsed: where each rule begins, how deep it is nested, how long it is.
//!
//! Cedar's parser and validator recurse into an expression, so text that is nested too deep would end the process. The
//! parser's work grows with the square of a schema's length.

use crate::cedar_text::string_length;
use crate::files::Fault;

/// Brackets of one text within each other.
const MAX_NESTING: usize = 32;
/// Operators of one rule (`&&`, `+`, `!`, `.`, `if`, …): a chain of them is as deep as it is long.
const MAX_OPERATORS: usize = 500;
/// Annotations of one rule; Cedar compares each with all before it. Those that mean something are fewer.
const MAX_ANNOTATIONS: usize = 32;
/// Members of all types of one schema. Of facts there are some hundred, of own members and counted tools 250 at most.
const MAX_MEMBERS: usize = 500;
/// Declarations, members, names in lists and annotations of one schema.
const MAX_PARTS: usize = 2_500;
/// Rules of one pack: every check asks those whose trigger holds.
pub(super) const MAX_RULES: usize = 1_000;

/// The line (from 1) of each statement of a policy file, or what makes it too deep to be parsed.
pub(crate) fn statements(file: &str, text: &str) -> Result<Vec<usize>, Fault> {
    read(file, text, false)
}

/// Whether a schema can be parsed; its types nest in `<` and `>`.
pub(super) fn schema(file: &str, text: &str) -> Result<(), Fault> {
    // Comments and texts count as well: they are few, and a member more or less is no matter.
    let count = |marks: &[char]| text.matches(marks).count();
    let members = count(&[':']);
    if members > MAX_MEMBERS {
        let message = format!("the schema has {members} members, and may have {MAX_MEMBERS}");
        return Err(Fault::new(file, message));
    }
    if count(&[':', ',', ';', '@']) > MAX_PARTS {
        return Err(Fault::new(file, format!("the schema has more than {MAX_PARTS} declarations and members")));
    }
    read(file, text, true).map(|_| ())
}

fn read(file: &str, text: &str, angles: bool) -> Result<Vec<usize>, Fault> {
    let mut statements = Vec::new();
    let (mut line, mut depth, mut within) = (1, 0_usize, false);
    let (mut operators, mut annotations) = (0, 0);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if rest.starts_with("//") {
            rest = rest.find('\n').and_then(|end| rest.get(end..)).unwrap_or_default();
            continue;
        }
        if !within && !c.is_whitespace() {
            statements.push(line);
            (within, operators, annotations) = (true, 0, 0);
        }
        let length = match c {
            '"' => string_length(rest),
            'a'..='z' | 'A'..='Z' | '_' => rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len()),
            other => other.len_utf8(),
        };
        let token = rest.get(..length).unwrap_or_default();
        match token {
            "(" | "[" | "{" => depth += 1,
            "<" if angles => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            ">" if angles => depth = depth.saturating_sub(1),
            // Each of these is a level of the expression around it, `&&` and `||` twice.
            "&" | "|" | "!" | "+" | "-" | "*" | "." | "if" | "else" | "has" | "like" | "in" | "is" if !angles => {
                operators += 1;
            }
            "@" if !angles => annotations += 1,
            ";" => within = false,
            _ => {}
        }
        let fault = |message: String| Err(Fault::new(file, message).at(line));
        if depth > MAX_NESTING {
            return fault(format!("brackets are nested deeper than {MAX_NESTING} levels"));
        }
        if operators > MAX_OPERATORS {
            return fault(format!("the rule has more than {MAX_OPERATORS} operators: split it into several rules"));
        }
        if annotations > MAX_ANNOTATIONS {
            return fault(format!("the rule has more than {MAX_ANNOTATIONS} annotations"));
        }
        line += token.bytes().filter(|b| *b == b'\n').count();
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(statements)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<usize> {
        statements("a.cedar", text).unwrap()
    }

    #[test]
    fn a_rule_begins_behind_comments_and_blank_lines() {
        let text = "// one; (\n\n@id(\"a;\\\"b\n\")\nforbid (principal, action, resource);\n  // two\n \
                    @id(\"b\") forbid(p);forbid(q); // end";
        assert_eq!(lines(text), [3, 7, 7]);
        assert!(lines(" \n// nothing\n").is_empty());
    }

    #[test]
    fn what_is_too_deep_is_reported_with_its_line() {
        let nested =
            |depth: usize| format!("forbid(p)\nwhen {}true{};", "{(".repeat(depth / 2), ")}".repeat(depth / 2));
        assert_eq!(lines(&nested(MAX_NESTING)), [1]);
        let fault = statements("a.cedar", &nested(20_000)).unwrap_err();
        assert_eq!(fault.to_string(), "a.cedar:2: brackets are nested deeper than 32 levels");
        assert_eq!(lines(&format!("forbid(p) when {{ \"{}\" == \"\" }};", "(".repeat(20_000))), [1]);
        assert_eq!(lines(&format!("// {}\nforbid(p);", "(".repeat(20_000))), [2]);
        assert!(schema("s", &format!("type T = {}Long;", "Set<".repeat(20_000))).is_err());
        assert!(schema("s", "type T = { a: Set<Set<Long>>, };").is_ok());
    }

    #[test]
    fn a_schema_is_so_long_at_most() {
        let members = |count: usize| format!("type T = {{ {} }};", "a: Long, ".repeat(count));
        assert!(schema("s", &members(MAX_MEMBERS)).is_ok());
        let fault = schema("s", &members(10_000)).unwrap_err();
        assert_eq!(fault.to_string(), "s: the schema has 10000 members, and may have 500");
        for one in ["entity A;", "@a entity A;\n", "type A = Long;"] {
            let fault = schema("s", &one.repeat(10_000)).unwrap_err();
            assert_eq!(fault.to_string(), "s: the schema has more than 2500 declarations and members");
        }
        assert!(schema("s", &format!("entity {}B;", "A, ".repeat(10_000))).is_err());
    }

    #[test]
    fn a_rule_has_so_many_annotations_at_most() {
        let with = |annotations: usize| format!("{}forbid(p);\n", "@a(\"@\")\n".repeat(annotations));
        assert_eq!(lines(&with(MAX_ANNOTATIONS).repeat(3)), [1, 34, 67], "each rule has its own");
        let fault = statements("a.cedar", &with(50_000)).unwrap_err();
        assert_eq!(fault.to_string(), "a.cedar:33: the rule has more than 32 annotations");
    }

    #[test]
    fn a_chain_of_operators_is_as_deep_as_it_is_long() {
        for link in [" && true", " || true", "+1", ".a", " - 1", " if true then 1 else"] {
            let fault =
                statements("a.cedar", &format!("forbid(p)\nwhen {{ true{} }};", link.repeat(20_000))).unwrap_err();
            assert!(
                fault.to_string().starts_with("a.cedar:2: the rule has more than 500 operators"),
                "{link}: {fault}"
            );
        }
        let each = format!("forbid(p) when {{ true{} }};\n", " && true".repeat(100));
        assert_eq!(lines(&each.repeat(50)).len(), 50, "each rule has its own");
        let list = format!("forbid(p) when {{ [{}].contains(1) }};", "1, ".repeat(5_000));
        assert_eq!(lines(&list), [1], "a long list is not deep");
    }
}
