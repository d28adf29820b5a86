//! Texts in rules that are compared with a fact that never holds them, because it has its words in another form.

use serde_json::Value;

use super::rules::Own;
use super::{Finding, Lint};
use crate::facts::Canonical;
use crate::files::Fault;
use crate::pack::Pack;

/// A text that a rule compares with a fact.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Literal {
    fact: String,
    word: String,
    /// The fact is a text, and no set of texts.
    is_whole: bool,
}

pub(super) fn findings(pack: &Pack, own: &[Own<'_>]) -> Vec<Finding> {
    own.iter()
        .flat_map(|own| compared(&own.json).into_iter().filter_map(|literal| finding(pack, own, &literal)))
        .collect()
}

fn finding(pack: &Pack, own: &Own<'_>, literal: &Literal) -> Option<Finding> {
    let Literal { fact, word, is_whole } = literal;
    let help = match Canonical::of(fact, word, pack) {
        Canonical::Same => return None,
        Canonical::Other(form) => format!("write `{form}`"),
        Canonical::OneOf(words) if words.is_empty() => format!("the pack declares nothing that `{fact}` could hold"),
        Canonical::OneOf(words) => format!("write one of `{}`", words.join("`, `")),
        Canonical::Never => "write it in the letters of one script, as a plain name or path".to_owned(),
    };
    let holds = if *is_whole { "is never" } else { "never holds" };
    let fault: Fault = own.fault(format!("`\"{word}\"` never matches: `context.{fact}` {holds} it in this form"));
    Some(Lint::NeverMatches.finding(fault.help(help)))
}

/// The texts that a policy compares with facts, each once; `json` is Cedar's own form of the policy.
fn compared(json: &Value) -> Vec<Literal> {
    let mut found = Vec::new();
    collect(json, &mut found);
    found
}

fn collect(json: &Value, found: &mut Vec<Literal>) {
    match json {
        Value::Object(members) => {
            for (operator, operands) in members {
                if matches!(operator.as_str(), "==" | "!=" | "contains" | "containsAll" | "containsAny")
                    && let (Some(left), Some(right)) = (operands.get("left"), operands.get("right"))
                {
                    for (one, other) in [(left, right), (right, left)] {
                        let Some(fact) = fact(one) else { continue };
                        // `["a"].contains(context.environment)` asks for a text, as `==` with a text does.
                        let is_whole = other.get("Value").is_some_and(Value::is_string) && operator != "contains"
                            || operator == "contains" && std::ptr::eq(one, right);
                        let literal = |word| Literal { fact: fact.to_owned(), word, is_whole };
                        let fresh: Vec<Literal> = texts(other).into_iter().map(literal).collect();
                        for literal in fresh {
                            if !found.contains(&literal) {
                                found.push(literal);
                            }
                        }
                    }
                }
                collect(operands, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        _ => {}
    }
}

/// `tools` of `context.tools`.
fn fact(json: &Value) -> Option<&str> {
    let access = json.get(".")?;
    let is_context = access.get("left")?.get("Var")?.as_str() == Some("context");
    access.get("attr")?.as_str().filter(|_| is_context)
}

/// A text, or the texts of a set.
fn texts(json: &Value) -> Vec<String> {
    let text = |json: &Value| json.as_str().or_else(|| json.get("Value")?.as_str()).map(str::to_owned);
    match (text(json), json.get("Set").or_else(|| json.get("Value")).and_then(Value::as_array)) {
        (Some(one), _) => vec![one],
        (None, Some(items)) => items.iter().filter_map(text).collect(),
        (None, None) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cedar_policy::Policy;

    /// What a condition compares, and what the baseline makes of it.
    fn judged(condition: &str) -> Vec<(String, Canonical)> {
        let policy: Policy = format!("forbid (principal, action, resource) when {{ {condition} }};").parse().unwrap();
        let pack = Pack::embedded().unwrap();
        let judged = |literal: Literal| {
            let canonical = Canonical::of(&literal.fact, &literal.word, &pack);
            (format!("{} {}", literal.fact, literal.word), canonical)
        };
        compared(&policy.to_json().unwrap()).into_iter().map(judged).collect()
    }

    fn other(form: &str) -> Canonical {
        Canonical::Other(form.to_owned())
    }

    #[test]
    fn every_way_to_compare_a_fact_with_a_text_is_seen() {
        for condition in [
            "context.tools.contains(\"send-email\")",
            "context.tools.containsAny([\"send-email\"])",
            "context.tools.containsAll([\"send-email\"])",
            "[\"send-email\"].containsAll(context.tools)",
            "context.bare || !(context.tools == [\"send-email\"])",
            "if context.tools != [\"send-email\"] then true else false",
            "context[\"tools\"].contains(\"send-email\")",
        ] {
            assert_eq!(judged(condition), [("tools send-email".to_owned(), other("send_email"))], "{condition}");
        }
        for condition in ["context.environment == \"prod\"", "[\"prod\"].contains(context.environment)"] {
            assert_eq!(judged(condition), [("environment prod".to_owned(), other("production"))], "{condition}");
        }
    }

    #[test]
    fn a_word_in_another_form_than_its_fact_has_never_matches() {
        for (fact, word, form) in [
            ("tools", "Psql", "psql"),
            ("run_tools", "read-record", "read_record"),
            ("run_target_tools", "Read Record", "read_record"),
            ("effects", "sendEmail", "send_email"),
            ("environments", "stg", "staging"),
            ("environments", "EU-West", "eu_west"),
            ("role", "Platform Admin", "platform_admin"),
            ("mcp_servers", "GitHub", "github"),
            ("target_tenants", "ACME", "acme"),
            ("targets", "Orders/../Orders/7", "orders/7"),
            ("groups", "Finance", "finance"),
        ] {
            let pack = Pack::embedded().unwrap();
            assert_eq!(Canonical::of(fact, word, &pack), other(form), "{fact} {word}");
            assert_eq!(Canonical::of(fact, form, &pack), Canonical::Same, "{fact} {form}");
            assert_eq!(Canonical::of(fact, "?", &pack), Canonical::Same, "{fact}");
        }
        let pack = Pack::embedded().unwrap();
        for (fact, word, known) in [
            ("effect_classes", "High", "high"),
            ("run_last_verdict", "deny", "DENY"),
            ("approval_status", "Approved", "approved"),
            ("windows_open", "night", "business_hours"),
        ] {
            let Canonical::OneOf(words) = Canonical::of(fact, word, &pack) else { panic!("{fact}") };
            assert!(words.iter().any(|one| one == known), "{words:?}");
            assert_eq!(Canonical::of(fact, known, &pack), Canonical::Same);
        }
        assert_eq!(Canonical::of("tools", "d\u{435}ploy", &pack), Canonical::Never);
    }

    #[test]
    fn a_text_as_it_was_sent_has_no_form() {
        for condition in [
            "context.key_name == \"Bot-1\"",
            "context.custom.country == \"CH\"",
            "context.custom.labels.contains(\"A-b\")",
            "context.tenant == \"\"",
            "context.targets.contains(\"a%41\")",
        ] {
            assert!(judged(condition).iter().all(|(_, canonical)| *canonical == Canonical::Same), "{condition}");
        }
    }
}
