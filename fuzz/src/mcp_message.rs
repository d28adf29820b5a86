//! MCP messages: what the guard takes a message for, every reader takes it for, and what it does not understand goes no
//! further.
//!
//! Another reader is `serde_json`, which keeps the last of two members; one that ends lines at a carriage return is
//! played by cutting the message there.

use data_encoding::HEXLOWER;
use serde_json::{Map, Value};
use stage0_contract::parse_strict;
use stage0_mcp_guard::fuzz_support::{Seen, client_line, client_message, server_message, without_own_state};

use crate::Target;

pub(crate) const TARGET: Target = Target::new("mcp_message", check);

/// The members of JSON-RPC. There are no others in a message that is passed on.
const ENVELOPE: [&str; 6] = ["jsonrpc", "id", "method", "params", "result", "error"];

fn check(input: &[u8]) -> bool {
    let seen = client_message(input);
    is_seen_by_others(&seen, input, true);
    is_seen_by_others(&server_message(input), input, false);
    is_one_line(input);
    is_cut_out(input);
    is_passed_on(&seen)
}

fn is_passed_on(seen: &Seen) -> bool {
    match seen {
        Seen::Refused { .. } => false,
        Seen::Request { is_known, .. } | Seen::Notification { is_known, .. } => *is_known,
        Seen::Response { .. } => true,
    }
}

fn is_seen_by_others(seen: &Seen, input: &[u8], is_clients: bool) {
    if let Seen::Refused { answer } = seen {
        return is_error(answer);
    }
    let other = serde_json::from_slice::<Value>(input);
    // What is inside of a server's message concerns only the client, which may not read all of it.
    assert!(other.is_ok() || !is_clients, "another reader does not read it");
    let Ok(other) = other else { return };
    let members = other.as_object().expect("it is an object");
    assert!(members.keys().all(|name| ENVELOPE.contains(&name.as_str())), "{other}");
    assert_eq!(members.get("jsonrpc"), Some(&Value::from("2.0")));
    if is_clients {
        assert_eq!(parse_strict(input).as_ref(), Ok(&other), "two readers read two messages");
        assert!(has_no_near_names(members), "{other}");
    }
    let has = |name: &str| members.contains_key(name);
    match seen {
        Seen::Request { raw_id, method, .. } => {
            assert_eq!(members["method"], Value::from(method.as_str()));
            assert_eq!(serde_json::from_str::<Value>(raw_id).unwrap(), members["id"]);
            assert!(members["id"].is_string() || members["id"].is_i64(), "{other}");
            assert!(!has("result") && !has("error"), "{other}");
        }
        Seen::Notification { method, .. } => {
            assert_eq!(members["method"], Value::from(method.as_str()));
            assert!(!has("id") && !has("result") && !has("error"), "{other}");
        }
        Seen::Response { raw_id, is_error } => {
            assert!(!has("method") && !has("params") && has("result") != has("error"), "{other}");
            assert_eq!(*is_error, has("error"), "{other}");
            let id = raw_id.as_deref().map(|raw| serde_json::from_str::<Value>(raw).unwrap());
            assert_eq!(id.unwrap_or_default(), members["id"], "{other}");
        }
        Seen::Refused { .. } => {}
    }
    assert!(members.get("params").is_none_or(Value::is_object), "{other}");
}

/// The answer to what is refused looks like no success.
fn is_error(answer: &[u8]) {
    assert!(!answer.contains(&b'\n'), "an answer is one line");
    let answer: Value = serde_json::from_slice(answer).expect("an answer is JSON");
    assert!(answer["error"]["code"].is_i64() && answer["error"]["message"].is_string(), "{answer}");
    assert!(answer.get("result").is_none() && answer.get("id").is_some(), "{answer}");
}

fn has_no_near_names(members: &Map<String, Value>) -> bool {
    let is_unique = |members: &Map<String, Value>| {
        let mut names: Vec<String> = members.keys().map(|name| name.to_lowercase()).collect();
        names.sort_unstable();
        names.windows(2).all(|pair| pair[0] != pair[1])
    };
    is_unique(members) && members.get("params").and_then(Value::as_object).is_none_or(is_unique)
}

/// A line that passes is one message, also to a server that ends lines at a carriage return.
fn is_one_line(input: &[u8]) {
    for line in input.split(|byte| *byte == b'\n') {
        if !is_passed_on(&client_line(line)) {
            continue;
        }
        let pieces = line.split(|byte| *byte == b'\r').filter(|piece| !piece.trim_ascii().is_empty());
        assert_eq!(pieces.count(), 1, "several lines to some readers: {}", HEXLOWER.encode(line));
    }
}

/// Without the answers to the guard's own question a call is the same call.
fn is_cut_out(input: &[u8]) {
    let Some(cut) = without_own_state(input) else { return };
    let mut expected: Value = serde_json::from_slice(input).unwrap();
    let members = expected.as_object_mut().unwrap();
    let params = members.entry("params").or_insert_with(|| Map::new().into()).as_object_mut().unwrap();
    params.retain(|name, _| !["inputResponses", "requestState"].contains(&name.as_str()));
    assert_eq!(serde_json::from_slice::<Value>(&cut).unwrap(), expected);
    assert!(matches!(client_message(&cut), Seen::Request { .. }), "{}", String::from_utf8_lossy(&cut));
}
