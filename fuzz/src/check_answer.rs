//! Answers to checks: only a complete, recorded ALLOW lets a caller act, by the client and by the guards alike.
//!
//! The first byte of an input is the status: `2` for 200, anything else for another one.

use serde_json::Value;
use stage0_client::{Judged, judge};
use stage0_contract::parse_strict;
use stage0_guard::Decision;

use crate::Target;

pub(crate) const TARGET: Target = Target::new("check_answer", check);

const MAX_TEXT_CHARS: usize = 2_001;

fn check(input: &[u8]) -> bool {
    let (status, body) = match input.split_first() {
        Some((b'2', body)) => (200, body),
        Some((first, body)) => (300 + u16::from(*first), body),
        None => (200, input),
    };
    let judged = judge(status, body);
    let plain = parse_strict(body).ok();
    if let Some(plain) = &plain {
        let decision = Decision::read(status, plain);
        is_told(&decision);
        assert!(!decision.is_allow() || is_allow(status, plain), "{decision:?} of {plain}");
    }
    match &judged {
        Ok(judged) => {
            let plain = plain.expect("a decision is strict JSON");
            let allows = matches!(judged, Judged::Allowed(_));
            assert_eq!(allows, is_allow(status, &plain), "{judged:?} of {plain}");
            // As a hook and the MCP guard read it.
            let response = serde_json::to_value(judged.response()).unwrap();
            assert_eq!(Decision::read(status, &response).is_allow(), allows, "the guard differs: {response}");
            allows
        }
        Err(_) => false,
    }
}

/// What an ALLOW of the contract says, whatever else is in it.
fn is_allow(status: u16, body: &Value) -> bool {
    let is = |pointer: &str, value: &str| body.pointer(pointer).and_then(Value::as_str) == Some(value);
    status == 200
        && is("/verdict", "ALLOW")
        && is("/decision", "GO")
        && is("/meta/source", "stage0")
        && body.pointer("/meta/test_mode") == Some(&Value::Bool(false))
        && (is("/meta/audit", "required") || is("/meta/audit", "best-effort"))
}

/// What an agent reads is one bounded line, and there is one wherever the tool does not run.
fn is_told(decision: &Decision) {
    for decision in [decision.clone(), decision.clone().with_unread(&["`eval`", "a command substitution"])] {
        match decision.text() {
            None => assert!(decision.is_allow()),
            Some(text) => {
                assert!(!text.trim().is_empty() && text.chars().count() <= MAX_TEXT_CHARS, "{text}");
                assert!(!text.contains(char::is_control), "{text:?}");
            }
        }
    }
}
