//! Why somebody decided: a text for people, which is recorded.
//!
//! It may not look like another text: control characters and those that change the direction of writing are refused.
//! Secrets are masked by the policy before it is stored.

use stage0_contract::{FieldError, MAX_REASON_CHARS, Refusal, hidden, is_blank, is_invisible};

/// Stands for a reason that cannot be searched for secrets. A denial or a revocation does not wait for its reason.
pub(super) const LEFT_OUT: &str = "(left out: it could not be searched for secrets)";

/// The reason without outer white space; an empty one is none.
pub(super) fn checked<'a>(field: &str, reason: &'a str) -> Result<&'a str, Refusal> {
    let reason = reason.trim();
    let refuse = |why: String| Err(Refusal::Invalid(vec![FieldError::new(field, why)]));
    if reason.chars().count() > MAX_REASON_CHARS {
        return refuse(format!("must be at most {MAX_REASON_CHARS} characters"));
    }
    let is_odd = |c: char| is_invisible(c) || (c.is_control() && c != '\n' && c != '\t');
    if let Some(odd) = hidden(reason).or_else(|| reason.chars().find(|c| is_odd(*c))) {
        return refuse(format!("must have no control or invisible characters, and has U+{:04X}", u32::from(odd)));
    }
    if !reason.is_empty() && is_blank(reason) {
        return refuse("must not be blank".to_owned());
    }
    Ok(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_that_hides_something_is_refused_and_a_plain_one_is_not() {
        for bad in ["ok\u{202e}ko", "a\u{200b}b", "bell\u{7}", "nul\u{0}", "\u{9b}31m", "x\r"] {
            let text = format!("{bad}y");
            assert!(matches!(checked("reason", &text), Err(Refusal::Invalid(_))), "{bad:?}");
        }
        for good in ["", "not on a Friday", "two\nlines", "größer ✓", "承認"] {
            assert_eq!(checked("reason", good), Ok(good));
        }
        assert_eq!(checked("reason", "  trimmed \n"), Ok("trimmed"));
    }

    #[test]
    fn a_reason_has_at_most_a_thousand_characters() {
        let most = "ü".repeat(MAX_REASON_CHARS);
        assert_eq!(checked("reason", &most), Ok(most.as_str()));
        let longer = format!("{most}x");
        let refused = checked("reason", &longer);
        assert!(matches!(refused, Err(Refusal::Invalid(errors)) if errors[0].path == "reason"));
    }
}
