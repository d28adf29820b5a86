//! The body of a check, and the message in which a gateway hands it on.
//!
//! A request that is taken keeps the contract's bounds and is the same after it was sent; a refusal names fields and
//! quotes no value. What a message says first is what it says as a whole.

use serde_json::{Map, Value};
use stage0_contract::{
    CheckRequest, Constraint, Envelope, EvaluateRequest, MAX_GOAL_CHARS, MAX_ITEM_CHARS, MAX_ITEMS, RejectedRequest,
    is_blank, parse_strict,
};

use crate::Target;

pub(crate) const TARGET: Target = Target::new("check_request", check);

/// For each byte of a body; each bad member has a path and a text.
const MAX_REFUSAL_GROWTH: usize = 200;
const SMALLEST_REFUSAL: usize = 4_096;

fn check(input: &[u8]) -> bool {
    is_announced(input);
    let Ok(body) = parse_strict(input) else { return false };
    match CheckRequest::parse(body.clone()) {
        Ok(request) => {
            is_bounded(&request);
            is_the_same_when_sent(&request);
            is_the_same_with_sorted_members(&body, &request);
            true
        }
        Err(refused) => {
            quotes_nothing(&refused, input.len());
            false
        }
    }
}

fn is_bounded(request: &CheckRequest) {
    assert!(!is_blank(&request.goal) && request.goal.chars().count() <= MAX_GOAL_CHARS);
    for items in [&request.success_criteria, &request.constraints, &request.tools, &request.side_effects] {
        assert!(items.len() <= MAX_ITEMS);
        assert!(items.iter().all(|item| !is_blank(item) && item.chars().count() <= MAX_ITEM_CHARS), "{items:?}");
    }
    assert!(request.constraints.iter().all(|constraint| Constraint::parse(constraint).is_ok()));
    let ignored = request.ignored_fields();
    assert!(ignored.len() <= 20 && ignored.iter().all(|name| name.is_ascii() && !name.contains(' ')), "{ignored:?}");
}

fn is_the_same_when_sent(request: &CheckRequest) {
    let sent = serde_json::to_value(request).unwrap();
    let received: CheckRequest = serde_json::from_value(sent).unwrap();
    assert_eq!(&received, request);
    assert_eq!(received.task_hash(), request.task_hash());
}

fn is_the_same_with_sorted_members(body: &Value, request: &CheckRequest) {
    let sorted: Map<String, Value> =
        body.as_object().unwrap().iter().rev().map(|(n, v)| (n.clone(), v.clone())).collect();
    let sorted = CheckRequest::parse(Value::Object(sorted)).expect("the order of members decides nothing");
    assert_eq!((sorted.task_hash(), sorted.ignored_fields()), (request.task_hash(), request.ignored_fields()));
}

fn quotes_nothing(refused: &RejectedRequest, length: usize) {
    assert!(!refused.errors.is_empty());
    let mut bytes = 0;
    for error in &refused.errors {
        assert!(error.path.bytes().all(|byte| byte.is_ascii_graphic()), "{error:?}");
        assert!(error.message.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()), "{error:?}");
        bytes += error.path.len() + error.message.len();
    }
    assert!(bytes <= SMALLEST_REFUSAL + MAX_REFUSAL_GROWTH * length, "{bytes} bytes for {length}");
}

/// A message's first members are found without the rest of it.
fn is_announced(input: &[u8]) {
    // An array of the members in their order is read as well, and never sent.
    if !input.trim_ascii_start().starts_with(b"{") {
        return;
    }
    let Ok(request) = serde_json::from_slice::<EvaluateRequest>(input) else { return };
    assert_eq!(Envelope::of(input), Some(Envelope::from(&request)));
}
