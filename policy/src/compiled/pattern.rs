//! The pattern of `like`: literal texts with wildcards between them.

use serde_json::Value as Json;

/// The texts between the wildcards. Without a wildcard there is one; a wildcard at an end has an empty one beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern(Box<[Box<str>]>);

impl Pattern {
    /// From Cedar's own form of it, such as `["Wildcard", {"Literal": "a"}]`.
    pub(super) fn of(elements: &Json) -> Option<Self> {
        let mut texts = vec![String::new()];
        for element in elements.as_array()? {
            match element.get("Literal") {
                Some(literal) => texts.last_mut()?.push_str(literal.as_str()?),
                None if element == "Wildcard" => texts.push(String::new()),
                None => return None,
            }
        }
        Some(Self(texts.into_iter().map(String::into_boxed_str).collect()))
    }

    pub(super) fn matches(&self, text: &str) -> bool {
        let (first, middle, last) = match &*self.0 {
            [] => return text.is_empty(),
            [only] => return text == &**only,
            [first, middle @ .., last] => (first, middle, last),
        };
        let Some(mut rest) = text.strip_prefix(&**first).and_then(|rest| rest.strip_suffix(&**last)) else {
            return false;
        };
        // The leftmost place of each leaves the most for those behind it.
        middle.iter().all(|wanted| match rest.split_once(&**wanted) {
            Some((_, behind)) => {
                rest = behind;
                true
            }
            None => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cedar_policy::{Context, Entities, EvalResult, Expression, Request, RestrictedExpression, eval_expression};
    use serde_json::json;

    /// `*` is a wildcard.
    fn pattern(text: &str) -> Pattern {
        let elements = text.chars().map(|c| if c == '*' { json!("Wildcard") } else { json!({"Literal": c}) });
        Pattern::of(&elements.collect()).unwrap()
    }

    fn by_cedar(pattern: &str, text: &str) -> bool {
        let context = Context::from_pairs([("t".to_owned(), RestrictedExpression::new_string(text.to_owned()))]);
        let [principal, action, resource] = ["A::\"a\"", "Action::\"a\"", "R::\"r\""].map(|uid| uid.parse().unwrap());
        let request = Request::new(principal, action, resource, context.unwrap(), None).unwrap();
        let expression: Expression = format!("context.t like \"{pattern}\"").parse().unwrap();
        eval_expression(&request, &Entities::empty(), &expression).unwrap() == EvalResult::Bool(true)
    }

    #[test]
    fn a_text_matches_a_pattern_where_it_does_in_cedar() {
        let texts = ["", "a", "ab", "aba", "abab", "aab", "b", "ba", "aXbXa", "y\u{306}", "\u{65e5}a\u{672c}", "aa"];
        let patterns = ["", "*", "**", "a", "a*", "*a", "*a*", "a*a", "a*b*a", "*ab*ab*", "a**b", "*\u{672c}", "ab*ab"];
        for wanted in patterns {
            for text in texts {
                assert_eq!(pattern(wanted).matches(text), by_cedar(wanted, text), "{text:?} like {wanted:?}");
            }
        }
    }

    #[test]
    fn a_form_of_pattern_that_is_not_known_is_none() {
        assert_eq!(Pattern::of(&json!(["Wildcard", {"Range": "a-z"}])), None);
        assert_eq!(Pattern::of(&json!("a*")), None);
    }
}
