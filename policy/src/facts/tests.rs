//! What holds of all facts together: the facts that every pack reads do not depend on those that only some packs name.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};
use stage0_contract::CheckRequest;

use super::*;
use crate::engine::Engine;

const AT: i64 = 1_773_662_400;

/// A word of a request, often an odd one.
fn word() -> impl Strategy<Value = Value> {
    prop_oneof![
        prop::sample::select(vec![
            "deploy",
            "send_email",
            "read-file",
            "mcp__github__push",
            "d\u{435}ploy",
            "staging",
            "prod",
            "a/b",
            "../x",
            " ",
            "amount",
            "T1",
        ])
        .prop_map(Value::from),
        prop::sample::select(vec![json!(null), json!(7), json!(["a", 1]), json!({"a": 1}), json!(true)]),
    ]
}

fn words() -> impl Strategy<Value = Vec<&'static str>> {
    let known = ["deploy", "send_email", "read file", "mcp__a__b__c", "shell", "notify", "d\u{435}ploy", "none"];
    prop::sample::subsequence(known.to_vec(), 0..4)
}

fn context() -> impl Strategy<Value = Value> {
    const NAMES: [&str; 12] = [
        "current_tool",
        "active_mcp_servers",
        "target_resources",
        "resource_scope",
        "tenant_id",
        "target_tenants",
        "environment",
        "agent_id",
        "run_id",
        "estimated_cost_usd",
        "current_iteration",
        "actor_role",
    ];
    prop::collection::btree_map(prop::sample::select(NAMES.to_vec()), word(), 0..8)
        .prop_map(|members| Value::Object(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()))
}

fn request() -> impl Strategy<Value = CheckRequest> {
    (words(), words(), context(), prop::bool::ANY).prop_filter_map("refused", |(tools, effects, context, is_scoped)| {
        let constraints: &[&str] = if is_scoped { &["tenant_isolation", "resource_scope: a/*"] } else { &[] };
        CheckRequest::parse(json!({"goal": "Do what was asked", "tools": tools, "side_effects": effects,
            "constraints": constraints, "context": context}))
        .ok()
    })
}

proptest! {
    #[test]
    fn the_facts_of_every_pack_are_the_same_whether_others_are_read_or_not(request in request()) {
        thread_local!(static ENGINE: Engine = Engine::new(Pack::embedded().unwrap()).unwrap());
        ENGINE.with(|engine| {
            let read = |groups| engine.facts_in(&request, &Circumstances::outside_of_a_server(AT, groups));
            let (Ok(few), Ok(all)) = (read(Groups::default()), read(Groups::ALL)) else { return Ok(()) };
            for attribute in Attribute::all() {
                if attribute.group() == Group::Request {
                    prop_assert_eq!(attribute.value(&few), attribute.value(&all), "{}", attribute.name());
                } else if attribute.name() != "run_named" {
                    prop_assert_eq!(attribute.value(&few), None, "{}", attribute.name());
                    let is_declared = !matches!(attribute.kind(), Kind::Custom | Kind::RunCalls);
                    let is_there = attribute.is_optional() || attribute.value(&all).is_some();
                    prop_assert!(is_there || !is_declared, "{}", attribute.name());
                }
            }
            Ok(())
        })?;
    }
}

#[test]
fn the_baseline_reads_no_fact_beyond_those_of_every_pack() {
    let pack: Arc<Pack> = Pack::embedded().unwrap();
    assert!(pack.custom.is_empty() && pack.run_calls.is_empty() && pack.run_needs() == RunNeeds::default());
    for group in [Group::Proposal, Group::Time, Group::Caller, Group::Run, Group::Custom] {
        assert!(!pack.groups.contains(group), "{group:?}");
    }
}
