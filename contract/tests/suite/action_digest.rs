//! The digest of an action, by known answers that a client's author can use as well, and by a second canonical form
//! that is written here from the description alone.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Number, Value, json};
use sha2::{Digest as _, Sha256};
use stage0_contract::{
    AccountId, ActionDigest, CheckRequest, JsonError, LOOP_STATE_MEMBERS, PolicyVersion, VOLATILE_CONTEXT_MEMBERS,
    parse_strict,
};

#[derive(Deserialize)]
struct Vectors {
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    name: String,
    same_as: Option<String>,
    request: String,
    account: String,
    environment: String,
    policy_version: String,
    also_volatile: Vec<String>,
    canonical: String,
    digest: String,
}

fn vectors() -> Vec<Vector> {
    let Vectors { vectors } = serde_json::from_str(include_str!("../vectors/action_digest.json")).unwrap();
    vectors
}

fn parsed(text: &str) -> CheckRequest {
    CheckRequest::parse(parse_strict(text.as_bytes()).unwrap()).unwrap_or_else(|refused| panic!("{text}: {refused:?}"))
}

fn digest_of(request: &CheckRequest, of: &Vector) -> ActionDigest {
    let account = AccountId::parse(&of.account).unwrap();
    let policy_version = PolicyVersion::parse(&of.policy_version).unwrap();
    ActionDigest::of(request, &account, &of.environment, &policy_version, &of.also_volatile)
}

fn sha256(text: &str) -> String {
    HEXLOWER.encode(&Sha256::digest(text.as_bytes()))
}

/// JSON without white space, with sorted members.
fn canonical(value: &Value) -> String {
    match value {
        Value::Number(number) => canonical_number(number),
        Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        Value::Object(members) => {
            let sorted: BTreeMap<&[u8], String> = members
                .iter()
                .map(|(name, value)| (name.as_bytes(), format!("{}:{}", json!(name), canonical(value))))
                .collect();
            format!("{{{}}}", sorted.into_values().collect::<Vec<_>>().join(","))
        }
        other => other.to_string(),
    }
}

fn canonical_number(number: &Number) -> String {
    match number.as_f64() {
        Some(float) if number.is_f64() && float == float.trunc() && float.abs() < 9.0e15 => (float as i64).to_string(),
        _ => number.to_string(),
    }
}

/// The text whose hash is the digest, made from the request's text and not from its parsed form.
fn canonical_action(of: &Vector) -> String {
    const NULL_IS_ABSENT: [&str; 10] = [
        "goal",
        "success_criteria",
        "constraints",
        "tools",
        "side_effects",
        "context",
        "environment",
        "pro",
        "policy_pack_version",
        "debug_store_input",
    ];
    let Value::Object(mut bound) = serde_json::from_str(&of.request).unwrap() else { panic!("no object") };
    bound.retain(|name, value| !value.is_null() || !NULL_IS_ABSENT.contains(&name.as_str()));
    bound.retain(|name, value| *value != "" || !["environment", "policy_pack_version"].contains(&name.as_str()));
    for list in ["success_criteria", "constraints", "tools"] {
        bound.entry(list).or_insert(json!([]));
    }
    for flag in ["pro", "debug_store_input"] {
        bound.entry(flag).or_insert(json!(false));
    }
    let mut context = bound.remove("context").map_or_else(Default::default, |all| all.as_object().unwrap().clone());
    let volatile = ["current_iteration", "retry_count", "elapsed_seconds", "recent_tools", "cumulative_cost_usd"]
        .map(str::to_owned);
    let of_contract = ["record_count", "tenant_id", "run_id"];
    context.retain(|name, _| {
        let by_pack = of.also_volatile.contains(name) && !of_contract.contains(&name.as_str());
        !name.starts_with("approval_") && !name.starts_with("approved_") && !volatile.contains(name) && !by_pack
    });
    let state = context.remove("loop_state").unwrap_or_default();
    if let Some(run) = state.get("run_id") {
        context.insert("loop_state".to_owned(), json!({"run_id": run}));
    }
    match (bound.get("environment"), context.get("environment")) {
        (None, inner) => {
            bound.insert("environment".to_owned(), inner.cloned().unwrap_or_default());
            context.remove("environment");
        }
        (Some(outer), Some(inner)) if outer == inner => drop(context.remove("environment")),
        (Some(_), _) => {}
    }
    for absent in ["side_effects", "policy_pack_version"] {
        bound.entry(absent).or_insert(Value::Null);
    }
    bound.insert("context".to_owned(), if context.is_empty() { Value::Null } else { context.into() });
    canonical(&json!({
        "account": of.account, "environment": of.environment, "policy_version": of.policy_version, "request": bound,
    }))
}

#[test]
fn every_known_answer_holds_and_so_does_its_canonical_text() {
    for vector in vectors() {
        let name = &vector.name;
        assert_eq!(canonical_action(&vector), vector.canonical, "{name}");
        assert_eq!(sha256(&vector.canonical), vector.digest, "{name}");
        assert_eq!(digest_of(&parsed(&vector.request), &vector).as_str(), vector.digest, "{name}");
        assert!(ActionDigest::parse(&vector.digest).is_ok());
    }
}

#[test]
fn vectors_are_of_one_action_exactly_where_they_say_so() {
    let all = vectors();
    let mut actions: BTreeMap<&str, &str> = BTreeMap::new();
    for vector in &all {
        match &vector.same_as {
            Some(other) => {
                let other = all.iter().find(|vector| vector.name == *other).unwrap();
                assert_eq!(vector.digest, other.digest, "{}", vector.name);
                assert!(vector.request != other.request || vector.also_volatile != other.also_volatile);
            }
            None => assert_eq!(actions.insert(&vector.digest, &vector.name), None, "{}", vector.name),
        }
    }
    assert!(actions.len() > 40, "{}", actions.len());
}

/// A gateway sends the parsed request to an evaluator, which computes the digest.
#[test]
fn the_digest_is_the_same_after_the_request_has_crossed_the_wire() {
    for vector in vectors() {
        let wire = serde_json::to_string(&parsed(&vector.request)).unwrap();
        let request: CheckRequest = serde_json::from_str(&wire).unwrap();
        assert_eq!(digest_of(&request, &vector).as_str(), vector.digest, "{}", vector.name);
    }
}

#[test]
fn a_request_that_says_something_twice_has_no_digest() {
    for text in [
        r#"{"goal":"a b","tools":["x"],"tools":["y"]}"#,
        r#"{"goal":"a b","context":{"run_id":"1","run\u005fid":"2"}}"#,
    ] {
        assert!(matches!(parse_strict(text.as_bytes()), Err(JsonError::DuplicateMember { .. })), "{text}");
    }
}

#[test]
fn every_byte_of_the_goal_is_bound() {
    let base = &vectors()[0];
    let request: Value = serde_json::from_str(&base.request).unwrap();
    let goal = request["goal"].as_str().unwrap().as_bytes().to_vec();
    for place in 0..goal.len() {
        let mut changed = goal.clone();
        changed[place] ^= 1;
        let mut request = request.clone();
        request["goal"] = String::from_utf8(changed).unwrap().into();
        let digest = digest_of(&CheckRequest::parse(request).unwrap(), base);
        assert_ne!(digest.as_str(), base.digest, "{place}");
    }
}

/// What a loop has counted is left out under either spelling.
#[test]
fn a_counter_of_the_loop_state_is_volatile_or_names_the_run() {
    for member in LOOP_STATE_MEMBERS {
        let is_volatile = VOLATILE_CONTEXT_MEMBERS.contains(&member.name) || member.name == "repeated_tools";
        assert!(is_volatile || member.name == "run_id", "{}", member.name);
    }
}

/// Values that are equal, nearly equal, and equal in another form.
fn small_value() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "1",
        "1.0",
        "1e0",
        "0",
        "-0.0",
        "1.5",
        "true",
        "null",
        r#""a""#,
        r#""\u0061""#,
        r#""A""#,
        "[]",
        "[1]",
        "[1.0]",
        "{}",
        r#"{"x":1,"y":2}"#,
        r#"{"y":2,"x":1.0}"#,
    ])
}

fn small_request() -> impl Strategy<Value = String> {
    let names = vec![
        "approval_note",
        "approved_x",
        "note",
        "notes",
        "trace",
        "colour",
        "change",
        "approval",
        "window",
        "cursor",
    ];
    let members = || prop::collection::btree_map(prop::sample::select(names.clone()), small_value(), 0..3);
    let context = prop::option::of(members());
    let rest = prop::sample::select(vec![
        r#""goal":"a b""#,
        r#""tools":[],"goal":"a b""#,
        r#""goal":"a b","tools":["x"]"#,
        r#""goal":"a c""#,
        r#""goal":"a b","side_effects":[]"#,
        r#""goal":"a b","environment":"staging""#,
    ]);
    (rest, context, members()).prop_map(|(rest, context, unknown)| {
        let list = |members: BTreeMap<&str, &str>| {
            members.into_iter().map(|(name, value)| format!("\"{name}\":{value}")).collect::<Vec<_>>().join(",")
        };
        let context = context.map_or_else(String::new, |members| format!(",\"context\":{{{}}}", list(members)));
        let unknown = if unknown.is_empty() { String::new() } else { format!(",{}", list(unknown)) };
        format!("{{{rest}{context}{unknown}}}")
    })
}

proptest! {
    #[test]
    fn digests_are_equal_exactly_where_the_bound_canonical_forms_are(one in small_request(), other in small_request()) {
        let [one, other] = [one, other].map(|request| Vector {
            request,
            also_volatile: vec!["trace".to_owned()],
            ..vectors().remove(0)
        });
        let texts = [&one, &other].map(canonical_action);
        let digests = [&one, &other].map(|vector| {
            let request = CheckRequest::parse(parse_strict(vector.request.as_bytes()).unwrap());
            request.map(|request| digest_of(&request, vector))
        });
        prop_assume!(digests.iter().all(Result::is_ok));
        let [first, second] = digests.map(Result::unwrap);
        prop_assert_eq!(first == second, texts[0] == texts[1], "{:?}", texts);
        prop_assert_eq!(first.as_str(), sha256(&texts[0]));
    }
}
