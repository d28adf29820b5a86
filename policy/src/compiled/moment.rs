//! The moment that a rule writes as `datetime("2026-12-20T00:00:00+0100")`.
//!
//! Cedar itself reads the text when the rule is compiled, so that both mean the same moment.

use cedar_policy::{Context, Entities, EvalResult, Expression, Request, eval_expression};

use crate::evaluation::{ACTION, PRINCIPAL, RESOURCE};

/// Milliseconds since the epoch; none for a text that Cedar does not take.
pub(super) fn of(text: &str) -> Option<i64> {
    // Everything that stands in a moment, and nothing that ends a text in Cedar.
    if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b':' | b'.')) {
        return None;
    }
    let since = format!("datetime(\"{text}\").durationSince(datetime(\"1970-01-01\")).toMilliseconds()");
    let expression: Expression = since.parse().ok()?;
    let [principal, action, resource] = [PRINCIPAL, ACTION, RESOURCE].map(|uid| uid.parse().ok());
    let request = Request::new(principal?, action?, resource?, Context::empty(), None).ok()?;
    match eval_expression(&request, &Entities::empty(), &expression) {
        Ok(EvalResult::Long(milliseconds)) => Some(milliseconds),
        Ok(_) | Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_what_cedar_reads() {
        for (text, milliseconds) in [
            ("1970-01-01", Some(0)),
            ("2026-12-20T00:00:00+0100", Some(1_797_721_200_000)),
            ("2026-12-19T23:00:00.001Z", Some(1_797_721_200_001)),
            ("0000-01-01T00:00:00Z", Some(-62_167_219_200_000)),
            ("2026-02-30", None),
            ("2026-12-20T00:00:00", None),
            ("", None),
            ("2026-12-20\").toDate(datetime(\"2026-12-20", None),
        ] {
            assert_eq!(of(text), milliseconds, "{text}");
        }
    }

    #[test]
    fn every_second_that_a_check_can_have_is_a_moment_of_cedar() {
        for second in [-62_167_219_200, -1, 0, 1_773_662_400, 253_402_207_200] {
            let written = jiff::Timestamp::from_second(second).unwrap().to_string();
            assert_eq!(of(&written), Some(second * 1_000), "{written}");
        }
    }
}
