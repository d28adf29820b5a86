//! The grammar of constraint strings: what is read is written in one form, which is read as the same.
//!
//! A number is what the text says, never rounded; a refusal and a suggestion name constraints, and quote nothing.

use stage0_contract::{Constraint, ConstraintName, ConstraintValue, LimitName, MAX_USD, Names, Reading, plain};

use crate::{Target, text};

pub(crate) const TARGET: Target = Target::new("constraint", check);

const MAX_SUGGESTIONS: usize = 3;
const MAX_REFUSAL_CHARS: usize = 300;

fn check(input: &[u8]) -> bool {
    let text = text(input);
    let read = [Names::built_in(), Names::first_edition()].map(|names| is_stable(&text, names));
    read.contains(&true)
}

/// Whether the text has an effect.
fn is_stable(text: &str, names: &Names) -> bool {
    let read = Constraint::read(text, names);
    let again = Constraint::read(&plain(text), names);
    assert_eq!(format!("{read:?}"), format!("{again:?}"), "the text without invisible characters is another one");
    let constraint = match read {
        Ok(Reading::Constraint(constraint)) => constraint,
        Ok(Reading::NotUnderstood(meant)) => {
            assert!(meant.len() <= MAX_SUGGESTIONS, "{meant:?}");
            assert!(meant.iter().all(|name| ConstraintName::parse(name).is_some()), "{meant:?}");
            return false;
        }
        Ok(Reading::Off | Reading::Text) => return false,
        Err(refused) => {
            let refused = refused.to_string();
            assert!(refused.chars().count() <= MAX_REFUSAL_CHARS, "{refused}");
            return false;
        }
    };
    if let ConstraintValue::Limit(limit, number) = constraint.value {
        is_as_written(limit, number, text);
    }
    let form = constraint.normalised();
    // In a scope brackets are part of a path, and those around the whole list are not: `[[id]]` is `[id]`.
    let is_bracketed = form.split_once(": ").is_some_and(|(_, value)| value.starts_with('[') && value.ends_with(']'));
    if !is_bracketed {
        match Constraint::read(&form, names) {
            Ok(Reading::Constraint(again)) => assert_eq!(again.normalised(), form, "of {text:?}"),
            other => panic!("{form:?}, of {text:?}, is read as {other:?}"),
        }
    }
    true
}

/// A limit is the number that stands there; whole ones are compared digit by digit.
fn is_as_written(limit: LimitName, number: i64, text: &str) {
    assert!(number >= 0, "{number}");
    match limit {
        LimitName::MaxCost => assert!(number <= MAX_USD * 1_000_000, "{number}"),
        LimitName::Timeout | LimitName::ApprovalMaxAge => {}
        LimitName::MaxIterations | LimitName::MaxRetries | LimitName::SameTool | LimitName::MaxRecords => {
            let text = plain(text);
            let (_, value) = text.split_once([':', '=']).expect("a limit has a value");
            let is_around = |c: char| c.is_whitespace() || "\"'`\u{201c}\u{201d}\u{2018}\u{2019}".contains(c);
            let value = value.trim_matches(is_around);
            let (whole, zeros) = value.split_once('.').unwrap_or((value, "0"));
            assert!(zeros.bytes().all(|byte| byte == b'0'), "{value} is read as {number}");
            assert_eq!(whole.trim_start_matches('0'), number.to_string().trim_start_matches('0'), "of {text:?}");
        }
    }
}
