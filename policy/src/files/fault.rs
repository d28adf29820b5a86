//! Faults: why a pack is refused, with the place where its author can mend it.
//!
//! A refusal lists every fault that was found, not only the first.

use std::fmt;
use std::ops::Range;

use miette::Diagnostic;
use serde::Serialize;

/// One fault of a pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The name of the file, or the folder's path.
    pub file: String,
    /// The line, from 1, if it is known.
    pub line: Option<usize>,
    /// The character of the line, from 1, if it is known.
    pub column: Option<u32>,
    /// The rule's `@id` or the case's `id`, if the fault has one.
    pub rule: Option<String>,
    /// What is wrong: lower case, no full stop.
    pub message: String,
    /// What to write instead, where it is known.
    pub help: Option<Box<str>>,
    /// The bytes of the file that are wrong, if they are known.
    #[serde(skip)]
    pub span: Option<Box<Range<usize>>>,
}

/// Why a pack is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct PackError {
    /// Every fault that was found; never empty.
    pub faults: Vec<Fault>,
}

impl Fault {
    pub(crate) fn new(file: &str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { file: file.to_owned(), line: None, column: None, rule: None, message, help: None, span: None }
    }

    /// A fault that Cedar found in the text of a file.
    pub(crate) fn diagnosed(file: &str, text: &str, error: &(impl Diagnostic + ?Sized)) -> Self {
        let label = error.labels().and_then(|mut labels| labels.next());
        let mut message = error.to_string();
        // The rule is named by the fault itself.
        if let Some((_, rest)) = message.strip_prefix("for policy `").and_then(|rest| rest.split_once("`, ")) {
            message = rest.to_owned();
        }
        if let Some(expected) = label.as_ref().and_then(|label| label.label()) {
            message = format!("{message}: {expected}");
        }
        // A set of anything; the name is Cedar's own.
        let message = message.replace("Set<__cedar::internal::Any>", "Set");
        let written = label.as_ref().map(|label| label.offset()..label.offset() + label.len());
        let help = type_hint(&message, text, written.as_ref()).map(Box::from);
        let fault = Self {
            help: help.or_else(|| error.help().map(|help| help.to_string().into())),
            ..Self::new(file, message)
        };
        match written {
            Some(written) => fault.within(text, written),
            None => fault,
        }
    }

    pub(crate) fn at(mut self, line: usize) -> Self {
        self.line = Some(line);
        self
    }

    /// Places the fault at bytes of the file's text.
    pub(crate) fn within(mut self, text: &str, span: Range<usize>) -> Self {
        self.point(text, span);
        self
    }

    pub(crate) fn rule(mut self, rule: &str) -> Self {
        self.rule = Some(rule.to_owned());
        self
    }

    /// Says what to write instead.
    pub(crate) fn help(mut self, help: impl Into<Box<str>>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Finds the faulty words of a fault of which only the line is known: the first words in backticks that stand in
    /// the paragraph that begins there, else the rule's or the case's name, else the line. `text` is that of its file.
    pub fn locate(&mut self, text: &str) {
        let (None, Some(line)) = (&self.span, self.line) else { return };
        let Some(start) = start_of(text, line) else { return };
        let rest = text.get(start..).unwrap_or_default();
        let first = rest.lines().next().unwrap_or_default();
        let paragraph = rest.get(..rest.find("\n\n").unwrap_or(rest.len())).unwrap_or_default();
        let quoted = self.message.split('`').skip(1).step_by(2).find_map(|word| found(paragraph, word));
        let named = || found(first, &format!("\"{}\"", self.rule.as_ref()?));
        let all = || first.len() - first.trim_start().len()..first.trim_end().len().max(1);
        let span = quoted.or_else(named).unwrap_or_else(all);
        self.point(text, start + span.start..start + span.end);
    }

    fn point(&mut self, text: &str, span: Range<usize>) {
        let before = text.get(..span.start).unwrap_or_default();
        let line = before.rsplit_once('\n').map_or(before, |(_, line)| line);
        self.line = Some(line_of(text, span.start));
        self.column = u32::try_from(line.chars().count() + 1).ok();
        self.span = Some(Box::new(span));
    }
}

/// What to write where Cedar only names two types, or does not read a number at all.
fn type_hint(message: &str, text: &str, written: Option<&Range<usize>>) -> Option<&'static str> {
    const DECIMAL: &str = "compare a `decimal` by `.lessThan(decimal(\"9.99\"))`, `.lessThanOrEqual(…)`, \
        `.greaterThan(…)` or `.greaterThanOrEqual(…)`; `<`, `<=`, `>` and `>=` are for `Long`";
    const LONG: &str = "compare a `Long` by `<`, `<=`, `>` or `>=`; for a member with decimals declare `decimal` in \
        the schema, and write its numbers as `decimal(\"20.0\")`";
    const SET: &str = "a set is asked by `.contains(\"a\")`, `.containsAny([\"a\", \"b\"])` or \
        `[\"a\", \"b\"].containsAll(…)`, and another type by `==`";
    const TYPES: &str = "both sides of a comparison have one type: `Long` is written `20`, `decimal` is \
        `decimal(\"20.0\")`, `String` is `\"a\"`, `Bool` is `true`, `Set<String>` is `[\"a\", \"b\"]`";
    if let Some((_, types)) = message.split_once("unexpected type: expected ") {
        let (expected, found) = types.split_once(" but saw ")?;
        return match (expected, found) {
            ("Long", "decimal") => Some(DECIMAL),
            ("decimal", "Long") => Some(LONG),
            (expected, found) if expected.starts_with("Set") || found.starts_with("Set") => Some(SET),
            _ => None,
        };
    }
    if message.contains("the types ") && message.ends_with(" are not compatible") {
        return Some(if message.contains("Set<") { SET } else { TYPES });
    }
    // `20.5`: Cedar reads a member of 20.
    let before = text.get(..written?.start)?.strip_suffix('.')?;
    let is_number = before.ends_with(|c: char| c.is_ascii_digit()) && message.contains("expected identifier");
    is_number.then_some(DECIMAL)
}

/// Where a word stands in a text; an annotation with its value.
fn found(text: &str, word: &str) -> Option<Range<usize>> {
    let of_word = |c: char| c.is_alphanumeric() || c == '_';
    let begins = word.starts_with(of_word);
    let ends = word.ends_with(of_word);
    let whole = |at: usize| {
        let before = text.get(..at).and_then(|before| before.chars().next_back());
        let after = text.get(at + word.len()..).and_then(|after| after.chars().next());
        !(begins && before.is_some_and(of_word) || ends && after.is_some_and(of_word))
    };
    let (at, _) = text.match_indices(word).find(|(at, _)| !word.is_empty() && whole(*at))?;
    let after = text.get(at + word.len()..).unwrap_or_default();
    let value = match after.strip_prefix("(\"").filter(|_| word.starts_with('@')).and_then(|rest| rest.find("\")")) {
        Some(length) => length + "(\"\")".len(),
        None => 0,
    };
    Some(at..at + word.len() + value)
}

impl PackError {
    pub(crate) fn of(fault: Fault) -> Self {
        Self { faults: vec![fault] }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(rule) = &self.rule {
            write!(f, ": {rule}")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl fmt::Display for PackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the policy pack is refused ({})", counted(self.faults.len()))?;
        self.faults.iter().try_for_each(|fault| {
            write!(f, "\n  {fault}")?;
            fault.help.iter().try_for_each(|help| write!(f, "\n    help: {help}"))
        })
    }
}

fn counted(faults: usize) -> String {
    format!("{faults} {}", if faults == 1 { "fault" } else { "faults" })
}

/// The line (from 1) of a byte offset.
pub(crate) fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|b| *b == b'\n').count() + 1
}

/// The byte offset at which a line (from 1) begins.
fn start_of(text: &str, line: usize) -> Option<usize> {
    if line == 1 {
        return Some(0);
    }
    text.match_indices('\n').nth(line.checked_sub(2)?).map(|(at, _)| at + 1)
}

/// A fault of a TOML file at the place that the parser names.
pub(crate) fn toml_fault(file: &str, text: &str, error: &toml::de::Error) -> Fault {
    let fault = Fault::new(file, error.message().trim().replace('\n', "; "));
    match error.span() {
        Some(span) => fault.within(text, span),
        None => fault,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = "// One.\n\n@id(\"a.b\")\n@serverity(\"HIGH\")\nforbid (principal, action, resource)\n\
                         when { context.goals && context.goal };\n\n@id(\"c\")\nforbid(principal, action, resource);\n";

    fn marked(fault: Fault) -> (Option<usize>, Option<u32>, String) {
        let mut fault = fault;
        fault.locate(RULES);
        let text = fault.span.and_then(|span| RULES.get(*span)).unwrap_or_default();
        (fault.line, fault.column, text.to_owned())
    }

    #[test]
    fn the_faulty_words_of_a_rule_are_found_by_the_message() {
        let fault = |message: &str| Fault::new("a.cedar", message).at(3).rule("a.b");
        let word = marked(fault("`@serverity` is no annotation of a rule"));
        assert_eq!(word, (Some(4), Some(1), "@serverity(\"HIGH\")".to_owned()));
        let whole = marked(fault("`context.goal` is no fact"));
        assert_eq!(whole, (Some(6), Some(25), "context.goal".to_owned()), "not the beginning of `context.goals`");
        let missing = marked(fault("`@severity` is missing"));
        assert_eq!(missing, (Some(3), Some(5), "\"a.b\"".to_owned()));
        let other = marked(fault("its `c` is elsewhere"));
        assert_eq!(other.2, "\"a.b\"", "the next rule is not searched");
        assert_eq!(marked(Fault::new("a.cedar", "odd").at(5)).2, "forbid (principal, action, resource)");
        assert_eq!(marked(Fault::new("a.cedar", "odd").at(99)), (Some(99), None, String::new()));
        assert_eq!(marked(Fault::new("a.cedar", "odd")), (None, None, String::new()));
    }

    #[test]
    fn a_place_that_is_known_is_kept_and_columns_count_characters() {
        let text = "name = \"ü\" x\n";
        let fault = Fault::new("pack.toml", "`name` is odd").within(text, 12..13);
        assert_eq!((fault.line, fault.column), (Some(1), Some(12)));
        let mut again = fault.clone();
        again.locate(text);
        assert_eq!(again, fault);
    }

    #[test]
    fn cedars_own_faults_have_their_place_and_say_what_was_expected() {
        let text = "@id(\"a\")\nforbid (principal action);\n";
        let errors = text.parse::<cedar_policy::PolicySet>().unwrap_err();
        let fault = Fault::diagnosed("a.cedar", text, errors.iter().next().unwrap());
        assert_eq!((fault.line, fault.column), (Some(2), Some(19)), "{fault:?}");
        assert!(fault.message.contains("expected"), "{fault:?}");
    }

    #[test]
    fn a_number_with_a_point_is_written_as_a_decimal() {
        let text = "@id(\"a\")\nforbid (principal, action, resource) when { context.custom.amount <= 20.5 };\n";
        let errors = text.parse::<cedar_policy::PolicySet>().unwrap_err();
        let fault = Fault::diagnosed("a.cedar", text, errors.iter().next().unwrap());
        assert!(fault.help.as_deref().unwrap().contains("decimal(\"9.99\")"), "{fault:?}");
        let text = text.replace("20.5", "context.5");
        let errors = text.parse::<cedar_policy::PolicySet>().unwrap_err();
        let fault = Fault::diagnosed("a.cedar", &text, errors.iter().next().unwrap());
        assert_eq!(fault.help, None, "no number stands before the point");
    }

    #[test]
    fn a_comparison_of_two_types_says_how_each_is_compared() {
        let help = |message: &str| type_hint(message, "", None).unwrap_or_default();
        for (message, expected) in [
            ("unexpected type: expected Long but saw decimal", ".lessThan(decimal("),
            ("unexpected type: expected decimal but saw Long", "declare `decimal` in the schema"),
            ("unexpected type: expected String but saw Set<String>", ".contains("),
            ("unexpected type: expected Set but saw Long", "another type by `==`"),
            ("the types String and Set<String> are not compatible", ".containsAny("),
            ("the types Long and String are not compatible", "`Bool` is `true`"),
        ] {
            assert!(help(message).contains(expected), "{message}: {}", help(message));
        }
        assert_eq!(help("unexpected type: expected Bool but saw Long"), "");
        assert_eq!(help("expected identifier"), "");
    }

    #[test]
    fn a_refusal_shows_help_below_its_fault() {
        let error = PackError::of(Fault::new("pack.toml", "`nam` is unknown").at(1).help("write `name`"));
        let shown = "the policy pack is refused (1 fault)\n  pack.toml:1: `nam` is unknown\n    help: write `name`";
        assert_eq!(error.to_string(), shown);
    }
}
