//! The form of `cases*.json`: one case a line, members in the order of their author.
//!
//! The text is read as tokens, so that numbers, escapes and the order of members stay as they were written.

use serde::de::IgnoredAny;
use stage0_contract::IssueCode;

use crate::cedar_text::string_length;
use crate::files::Fault;
use crate::pack::CaseOutcome;

/// The status of a request that is refused.
const REFUSED: &str = "[422]";

/// A file of cases in which one case expects what came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acceptance {
    /// The new text of the file.
    pub text: String,
    /// Members of the case that contradict what came out all the same, and that its author must change.
    pub contradicted: Vec<&'static str>,
}

pub(super) fn format(file: &str, text: &str) -> Result<String, Vec<Fault>> {
    if let Err(error) = serde_json::from_str::<Vec<IgnoredAny>>(text) {
        return Err(vec![Fault::new(file, error.to_string()).at(error.line())]);
    }
    let cases = split(text);
    let lines: Vec<String> = cases.iter().map(|case| spaced(case)).collect();
    Ok(if lines.is_empty() { "[]\n".to_owned() } else { format!("[\n{}\n]\n", lines.join(",\n")) })
}

/// Rewrites `expect` and `codes` of a case that failed to what came out; `None` if the text has no such case.
pub fn accept_case(text: &str, outcome: &CaseOutcome) -> Option<Acceptance> {
    let id = serde_json::to_string(&outcome.id).ok()?;
    let mut cases: Vec<String> = split(text).into_iter().map(spaced).collect();
    let case = cases.iter_mut().find(|case| member(case, "id").is_some_and(|value| value == id))?;
    let verdict = outcome.verdict.map_or(REFUSED.to_owned(), |verdict| format!("[\"{verdict}\"]"));
    let codes = outcome.codes.iter().map(|code| format!("\"{code}\"")).collect::<Vec<_>>().join(", ");
    *case = with_member(case, "expect", &verdict)?;
    if !codes.is_empty() || member(case, "codes").is_some() {
        *case = with_member(case, "codes", &format!("[{codes}]"))?;
    }
    let expected = &outcome.expected;
    let has = |code: &IssueCode| outcome.codes.contains(code);
    let contradicted = [
        ("codes_any", !expected.codes_any.is_empty() && !expected.codes_any.iter().any(has)),
        ("absent_codes", expected.absent_codes.iter().any(has)),
        ("approval", !expected.asked_by(outcome.approval.as_ref())),
        ("says", !outcome.unsaid.is_empty()),
    ];
    let contradicted = contradicted.into_iter().filter(|(_, holds)| *holds).map(|(name, _)| name).collect();
    Some(Acceptance { text: format!("[\n{}\n]\n", cases.join(",\n")), contradicted })
}

/// The elements of an array.
fn split(text: &str) -> Vec<&str> {
    let inner = text.trim().strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or_default();
    pieces(inner).into_iter().map(str::trim).filter(|piece| !piece.is_empty()).collect()
}

/// A text cut at the commas that stand in no bracket and in no string.
fn pieces(text: &str) -> Vec<&str> {
    let (mut found, mut start, mut depth) = (Vec::new(), 0, 0_usize);
    for (at, token) in tokens(text) {
        match token {
            "{" | "[" => depth += 1,
            "}" | "]" => depth = depth.saturating_sub(1),
            "," if depth == 0 => {
                found.push(text.get(start..at).unwrap_or_default());
                start = at + 1;
            }
            _ => {}
        }
    }
    found.push(text.get(start..).unwrap_or_default());
    found
}

/// Tokens of JSON with their offset; white space is left out.
fn tokens(text: &str) -> Vec<(usize, &str)> {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let length = match rest.as_bytes().first() {
            Some(b'"') => string_length(rest),
            Some(b'{' | b'}' | b'[' | b']' | b',' | b':') => 1,
            Some(byte) if byte.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            _ => rest.find(|c: char| c.is_ascii_whitespace() || "{}[],:\"".contains(c)).unwrap_or(rest.len()),
        };
        found.push((at, rest.get(..length).unwrap_or(rest)));
        at += length;
    }
    found
}

/// In one line, with a space behind each comma and colon.
fn spaced(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for (_, token) in tokens(text) {
        line.push_str(token);
        if matches!(token, "," | ":") {
            line.push(' ');
        }
    }
    line
}

/// The members of an object: name in quotes, and value.
fn members(object: &str) -> Vec<(&str, &str)> {
    let inner = object.trim().strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or_default();
    let pair = |piece| {
        let (colon, _) = tokens(piece).into_iter().find(|(_, token)| *token == ":")?;
        Some((piece.get(..colon)?.trim(), piece.get(colon + 1..)?.trim()))
    };
    pieces(inner).into_iter().filter_map(pair).collect()
}

fn member<'o>(object: &'o str, name: &str) -> Option<&'o str> {
    let quoted = format!("\"{name}\"");
    members(object).into_iter().find(|(known, _)| *known == quoted).map(|(_, value)| value)
}

/// The object with a member replaced, or added in front of `request`.
fn with_member(object: &str, name: &str, value: &str) -> Option<String> {
    let quoted = format!("\"{name}\"");
    let mut members: Vec<(String, String)> =
        members(object).into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    match members.iter_mut().find(|(known, _)| *known == quoted) {
        Some((_, old)) => value.clone_into(old),
        None => {
            let at = members.iter().position(|(name, _)| name == "\"request\"")?;
            members.insert(at, (quoted, value.to_owned()));
        }
    }
    let shown: Vec<String> = members.into_iter().map(|(name, value)| format!("{name}: {value}")).collect();
    Some(format!("{{{}}}", shown.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::Expectation;
    use stage0_contract::Verdict;

    const CASES: &str = "[\n{\"id\": \"a\", \"expect\": [\"ALLOW\"], \"request\": {\"goal\": \"a, \\\"b\\\": {c}\", \
                         \"context\": {\"x\": 1.50, \"b\": [1, {}]}}},\n{\"id\": \"b\", \"codes\": [\"OLD\"], \
                         \"expect\": [\"DENY\"], \"absent_codes\": [\"NEW\"], \"request\": {}}\n]\n";

    #[test]
    fn a_case_is_one_line_and_keeps_its_members_and_numbers_as_they_are() {
        assert_eq!(format("cases.json", CASES).unwrap(), CASES);
        let untidy = CASES.replace(", \"", " ,\n   \"").replace("[1, {}]", "[ 1 ,{ } ]").replace("\n{", "\n\n   {");
        assert_ne!(untidy, CASES);
        assert_eq!(format("cases.json", &untidy).unwrap(), CASES);
        assert_eq!(format("cases.json", " [ ] ").unwrap(), "[]\n");
    }

    #[test]
    fn text_that_is_no_array_is_a_fault() {
        assert_eq!(format("cases.json", "[\n{]").unwrap_err()[0].line, Some(2));
        assert_eq!(format("cases.json", "{}").unwrap_err().len(), 1);
    }

    fn outcome(id: &str, verdict: Option<Verdict>, codes: &[&str]) -> CaseOutcome {
        let code = |text: &&str| IssueCode::parse(text).unwrap();
        let expected = Expectation {
            verdicts: vec![Verdict::Deny],
            refused: false,
            codes: Vec::new(),
            codes_any: Vec::new(),
            says: Vec::new(),
            absent_codes: vec![code(&"NEW")],
            approval: None,
        };
        let codes = codes.iter().map(code).collect();
        let id = id.to_owned();
        CaseOutcome {
            id,
            expected,
            verdict,
            codes,
            reasons: Vec::new(),
            approval: None,
            unsaid: Vec::new(),
            error: None,
            passed: false,
        }
    }

    #[test]
    fn accepting_rewrites_what_is_expected_and_nothing_else() {
        let accepted = accept_case(CASES, &outcome("a", Some(Verdict::Defer), &["OLD"])).unwrap();
        let wanted = CASES.replacen("\"expect\": [\"ALLOW\"], ", "\"expect\": [\"DEFER\"], \"codes\": [\"OLD\"], ", 1);
        assert_eq!((accepted.text, accepted.contradicted), (wanted, Vec::new()));
        let refused = accept_case(CASES, &outcome("b", None, &[])).unwrap();
        let wanted =
            CASES.replacen("\"codes\": [\"OLD\"], \"expect\": [\"DENY\"]", "\"codes\": [], \"expect\": [422]", 1);
        assert_eq!(refused.text, wanted);
        let allowed = accept_case(CASES, &outcome("a", Some(Verdict::Allow), &[])).unwrap();
        assert_eq!(allowed.text, CASES, "no empty list of codes is added");
        assert_eq!(accept_case(CASES, &outcome("c", None, &[])), None);
    }

    #[test]
    fn what_the_author_forbade_is_not_accepted_silently() {
        let accepted = accept_case(CASES, &outcome("b", Some(Verdict::Deny), &["NEW"])).unwrap();
        assert_eq!(accepted.contradicted, ["absent_codes"]);
        assert!(accepted.text.contains("\"absent_codes\": [\"NEW\"]"));
    }
}
