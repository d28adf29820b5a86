//! The changes in `details.write` of an issue: applying them settles the issue, and they never invent evidence.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use stage0_contract::{CheckRequest, Decision, Issue};
use stage0_policy::{Engine, Pack};

/// A Monday at noon: the time of cases that give none.
const NOON: i64 = 1_773_662_400;
const BEFORE_NOON: &str = "2026-03-16T11:59:00Z";
/// The most cases that are tried for one rule.
const MAX_TRIED: usize = 25;

struct Case {
    id: String,
    request: Value,
    evaluated_at: i64,
}

fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/baseline");
    let mut cases = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("cases") {
            let file: Vec<Value> = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
            cases.extend(file.into_iter().map(|case| Case {
                id: case["id"].as_str().unwrap().to_owned(),
                request: case["request"].clone(),
                evaluated_at: case["evaluated_at"].as_i64().unwrap_or(NOON),
            }));
        }
    }
    cases
}

fn decide(engine: &Engine, request: &Value, at: i64) -> Option<Decision> {
    engine.decide(&CheckRequest::parse(request.clone()).ok()?, at).ok()
}

/// Rules by id, and whether each is final.
fn rules(pack: &Pack) -> BTreeMap<String, bool> {
    let codes = pack.reference()["codes"].as_array().unwrap();
    let rules = codes.iter().flat_map(|code| code["rules"].as_array().unwrap());
    rules.map(|rule| (rule["id"].as_str().unwrap().to_owned(), rule["final"].as_bool().unwrap())).collect()
}

/// The evidence that a person or a system would give.
fn evidence(path: &str, issue: &Issue, request: &Value) -> Value {
    let allowed = || issue.details.get("allowed").and_then(|allowed| allowed[0].as_str());
    match path {
        "goal" => json!("Summarise the weekly sales report for the regional team"),
        "success_criteria" => json!(["the summary names the three largest changes"]),
        "environment" | "context.environment" | "context.target_environment" => json!(allowed().unwrap_or("staging")),
        "context.actor_role" | "context.user_role" | "context.requester_role" => json!(allowed().unwrap_or("admin")),
        "context.approval_status" => json!("approved"),
        "context.approved_by" => json!("lead@example.com"),
        "context.approved_at" => json!(BEFORE_NOON),
        "context.customer_visible_approved" | "context.mfa_verified" | "context.rollback_plan" => json!(true),
        "context.ticket_id" => json!("OPS-1"),
        "context.record_count" | "context.current_iteration" => json!(1),
        "context.retry_count" | "context.elapsed_seconds" => json!(0),
        "context.cumulative_cost_usd" | "context.estimated_cost_usd" => json!(0),
        "context.tenant_id" => json!("t1"),
        "context.target_tenants" => json!(["t1"]),
        "context.active_mcp_servers" => json!([allowed().unwrap_or("github")]),
        "context.target_resources" => json!([allowed().unwrap_or("a/*").replace('*', "x")]),
        "context.resource_scope" => json!(allowed().unwrap_or("a/*").replace('*', "x")),
        "context.current_tool" => request["tools"][0].clone(),
        "context.recent_tools" => json!([]),
        "context.run_id" => json!("run-1"),
        "context.actor_id" => json!("agent-7"),
        "context.agent_id" => json!("agent-8"),
        "context.requested_by" => json!("requester@example.com"),
        other => panic!("no evidence is known for {other}"),
    }
}

/// Applies the changes in `write`, as a program would.
fn apply_changes(request: &Value, issue: &Issue) -> Value {
    let mut changed = request.clone();
    for change in issue.details.get("write").and_then(Value::as_array).into_iter().flatten() {
        let path = change["path"].as_str().unwrap();
        match change["op"].as_str() {
            Some("add") => {
                if changed[path].is_null() {
                    changed[path] = json!([]);
                }
                changed[path].as_array_mut().unwrap().push(change["value"].clone());
            }
            Some("replace") => {
                let (array, index) = path.trim_end_matches(']').split_once('[').unwrap();
                changed[array][index.parse::<usize>().unwrap()] = change["value"].clone();
            }
            Some(other) => panic!("{other} is no change"),
            None => {
                assert!(["person", "system"].contains(&change["by"].as_str().unwrap()), "{change}");
                let given = evidence(path, issue, request);
                match path.split_once('.') {
                    Some((object, member)) => {
                        if changed[object].is_null() {
                            changed[object] = json!({});
                        }
                        changed[object][member] = given;
                    }
                    None => changed[path] = given,
                }
            }
        }
    }
    changed
}

#[test]
fn applying_the_proposed_changes_settles_the_issue_of_every_rule() {
    let pack = Pack::embedded().unwrap();
    let engine = Engine::new(pack.clone()).unwrap();
    let rules = rules(&pack);
    let mut tried: BTreeMap<String, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    for Case { id, request, evaluated_at } in cases() {
        let Some(decision) = decide(&engine, &request, evaluated_at) else { continue };
        for issue in &decision.issues {
            let write = issue.details.get("write");
            if rules[&issue.rule] {
                if write.is_some() {
                    wrong.push(format!("{id}: {} is final and says {write:?}", issue.rule));
                }
                tried.insert(issue.rule.clone(), 1);
                continue;
            }
            // A rule may have no remedy for one request, but it must have one for another.
            if write.is_none() || tried.get(&issue.rule).is_some_and(|count| *count >= MAX_TRIED) {
                continue;
            }
            *tried.entry(issue.rule.clone()).or_default() += 1;
            let changed = apply_changes(&request, issue);
            match decide(&engine, &changed, evaluated_at) {
                None => wrong.push(format!("{id}: {} makes {changed} a bad request", issue.rule)),
                Some(after)
                    if after
                        .issues
                        .iter()
                        .any(|i| i.rule == issue.rule && i.details.get("at") == issue.details.get("at")) =>
                {
                    wrong.push(format!("{id}: {} is still there after {write:?}: {changed}", issue.rule));
                }
                Some(_) => {}
            }
        }
    }
    let untried: Vec<&String> = rules.keys().filter(|id| !tried.contains_key(*id)).collect();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(untried.is_empty(), "no case has a remedy of {untried:?}");
}

#[test]
fn proposed_changes_never_invent_evidence_or_remove_anything() {
    let pack = Pack::embedded().unwrap();
    let engine = Engine::new(pack).unwrap();
    for Case { id, request, evaluated_at } in cases() {
        let Some(decision) = decide(&engine, &request, evaluated_at) else { continue };
        for issue in &decision.issues {
            for change in issue.details.get("write").and_then(Value::as_array).into_iter().flatten() {
                let path = change["path"].as_str().unwrap();
                let own = path.split('[').next().unwrap();
                match change["op"].as_str() {
                    Some("add") => assert!(["constraints", "side_effects"].contains(&own), "{id}: {change}"),
                    Some("replace") => assert_eq!(own, "constraints", "{id}: {change}"),
                    _ => assert!(change.get("value").is_none() && change["by"].is_string(), "{id}: {change}"),
                }
            }
        }
    }
}

#[test]
fn each_fact_is_one_issue_and_the_reason_of_an_allow_names_every_code() {
    let pack = Pack::embedded().unwrap();
    let engine = Engine::new(pack).unwrap();
    for Case { id, request, evaluated_at } in cases() {
        let Some(decision) = decide(&engine, &request, evaluated_at) else { continue };
        let facts: Vec<_> = decision.issues.iter().map(|i| (&i.code, &i.rule)).collect();
        assert_eq!(facts.len(), facts.iter().collect::<BTreeSet<_>>().len(), "{id}");
        let approvals = decision.issues.iter().filter(|issue| issue.code.as_str() == "APPROVAL_REQUIRED").count();
        assert!(approvals <= 2, "{id}: {:?}", decision.issues);
        if decision.verdict.as_str() == "ALLOW" {
            for issue in &decision.issues {
                assert!(decision.reason.contains(issue.code.as_str()), "{id}: {}", decision.reason);
            }
        }
    }
}
